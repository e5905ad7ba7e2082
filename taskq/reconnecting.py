"""One connection to the manager that comes back: it is opened anew when it was lost, and says whose store it meets.

The client's submits, its results feed and its waits for other people's tasks each use one of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from taskq import threads
from taskq.clock import Clock, SystemClock
from taskq.errors import Busy, ManagerUnavailable, OutcomeUnknown, ShuttingDown, TaskqError
from taskq.pauses import Pauses
from taskq.service import Connection, QueueService
from taskq.shapes import Hello

T = TypeVar("T")

PASSING = (ManagerUnavailable, OutcomeUnknown, ShuttingDown, Busy)
"""Errors after which the same call may succeed a little later: every verb that a client calls can be repeated."""


class Reconnecting:
    """A connection made by ``connect`` when it is first used. One call at a time; calls from any thread.

    ``met`` is told what the manager says of itself each time that a connection is made. ``salt``: any number of this
    process's own, for the pauses.
    """

    def __init__(
        self, connect: Callable[[], Connection], met: Callable[[Hello], None], salt: int, clock: Clock | None = None
    ) -> None:
        self._connect = connect
        self._met = met
        self._salt = salt
        self._lock = threads.lock()
        self._connection: Connection | None = None
        self.hello: Hello | None = None
        """What the manager of the last connection said."""
        self._was_connected = False
        self._closed = threads.event()
        self._clock = clock or SystemClock()

    def call(self, verb: Callable[[QueueService], T], patience: float, *, first_too: bool = False) -> T:
        """The result of ``verb``; after a lost connection it is repeated for up to ``patience`` seconds.

        A manager that was never reached is not waited for unless ``first_too``. Raises what ``verb`` raises.
        """
        with self._lock:
            give_up: float | None = None
            pauses = Pauses(self._salt)
            wait = 0.0  # the first time it is repeated at once
            while True:
                try:
                    return verb(self._connected())
                except PASSING as error:
                    if isinstance(error, (ManagerUnavailable, OutcomeUnknown)):
                        self._drop()
                    now = self._clock.monotonic()
                    if give_up is None:
                        give_up = now + patience
                    unreachable = not (self._was_connected or first_too)
                    if isinstance(error, Busy):  # the connection has repeated it for as long as a call may take
                        raise
                    if unreachable or self._closed.is_set() or now >= give_up:
                        raise
                    self._closed.wait(min(wait, give_up - now))
                    wait = pauses.next()
                except TaskqError:
                    raise  # an answer
                except BaseException:
                    self._drop()  # interrupted: it would connect anew by itself, and we not meet who is there now
                    raise

    def close(self) -> None:
        """Close the connection, also under a call that waits in another thread."""
        self._closed.set()
        if (connection := self._connection) is not None:
            connection.close()

    def _connected(self) -> Connection:
        if self._closed.is_set():
            raise closed()
        if self._connection is None:
            connection = self._connection = self._connect()
            try:
                if self._closed.is_set():  # `close` may have come too early to see the new connection
                    raise closed()
                self.hello = connection.hello()
                self._met(self.hello)
            except BaseException:
                self._drop()
                raise
            self._was_connected = True
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def closed() -> TaskqError:
    """The error of a call on a client that was closed."""
    return TaskqError("this client is closed")
