"""One connection to the manager that comes back: it is opened anew when it was lost, and says whose store it meets.

The client's submits, its results feed and its waits for other people's tasks each use a link of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

from taskq.clock import SystemClock
from taskq.errors import Busy, ManagerUnavailable, OutcomeUnknown, ShuttingDown, TaskqError
from taskq.queue.retry import unit_hash
from taskq.service import Hello, QueueService

T = TypeVar("T")

PASSING = (ManagerUnavailable, OutcomeUnknown, ShuttingDown, Busy)
"""Errors after which the same call may succeed a little later: every verb that a client calls can be repeated."""

MAX_PAUSE = 3.0
"""Seconds: longest pause between two attempts to reconnect."""


class Remote(QueueService, Protocol):
    """A queue behind a connection."""

    def close(self) -> None:
        """Let go of it; a call that waits in another thread ends with `ManagerUnavailable`."""
        ...


def pause(attempt: int, salt: int) -> float:
    """Seconds before the ``attempt``-th try (1, 2, …): none, then doubling from 50 ms, spread so that many clients come
    back apart.

    >>> pause(1, 7), 0.05 <= pause(2, 7) <= 0.1, pause(99, 7) <= MAX_PAUSE
    (0.0, True, True)
    """
    if attempt <= 1:
        return 0.0
    longest = min(MAX_PAUSE, 0.05 * 2.0 ** min(attempt - 1, 16))
    return longest / 2 + longest / 2 * unit_hash(salt, attempt)


class Link:
    """A connection made by ``connect`` when it is first used. One call at a time; calls from any thread.

    ``met`` is told what the manager says of itself each time that a connection is made. ``salt``: any number of this
    process's own, for the pauses.
    """

    def __init__(self, connect: Callable[[], Remote], met: Callable[[Hello], None], salt: int) -> None:
        self._connect = connect
        self._met = met
        self._salt = salt
        self._lock = threading.Lock()
        self._remote: Remote | None = None
        self.hello: Hello | None = None
        """What the manager of the last connection said."""
        self._was_connected = False
        self._closed = threading.Event()
        self._clock = SystemClock()

    def call(self, verb: Callable[[QueueService], T], patience: float, *, first_too: bool = False) -> T:
        """The result of ``verb``; after a lost connection it is repeated for up to ``patience`` seconds.

        A manager that was never reached is not waited for unless ``first_too``. Raises what ``verb`` raises.
        """
        with self._lock:
            give_up: float | None = None
            attempt = 0
            while True:
                try:
                    return verb(self._connected())
                except PASSING as error:
                    if isinstance(error, (ManagerUnavailable, OutcomeUnknown)):
                        self._drop()
                    now = self._clock.monotonic()
                    if give_up is None:
                        give_up = now + patience
                    attempt += 1
                    wait = pause(attempt, self._salt)
                    unreachable = not (self._was_connected or first_too)
                    if unreachable or self._closed.is_set() or now + wait >= give_up:
                        raise
                    self._closed.wait(wait)

    def close(self) -> None:
        """Close the connection, also under a call that waits in another thread."""
        self._closed.set()
        if (remote := self._remote) is not None:
            remote.close()

    def _connected(self) -> Remote:
        if self._closed.is_set():
            raise closed()
        if self._remote is None:
            remote = self._connect()
            try:
                self.hello = remote.hello()
                self._met(self.hello)
            except BaseException:
                remote.close()
                raise
            self._remote = remote
            self._was_connected = True
            if self._closed.is_set():  # `close` may have come too early to see the new connection
                self._drop()
                raise closed()
        return self._remote

    def _drop(self) -> None:
        if self._remote is not None:
            self._remote.close()
            self._remote = None


def closed() -> TaskqError:
    """The error of a call on a client that was closed."""
    return TaskqError("this client is closed")
