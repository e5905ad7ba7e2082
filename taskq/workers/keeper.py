"""The pool's word to the manager, heartbeats and deaths of worker processes; and the manager's to it: what to cancel.

One thread with one connection. What must arrive (a death) is kept and repeated until it has; a heartbeat that did not
arrive is simply followed by the next one. Between heartbeats it asks every `LOOK` seconds, or `BUSY_LOOK` while
something runs, what is to be cancelled; so too a manager that was restarted hears from the pool at once.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple
from zlib import crc32

from taskq import logs, threads
from taskq.clock import Clock
from taskq.config import Join
from taskq.errors import AuthenticationFailed, BadArguments, Malformed, ManagerUnavailable, StaleRun, TaskqError
from taskq.pauses import Pauses
from taskq.service import Connection
from taskq.shapes import ChildInfo, Evidence, PoolInfo, Report

LOOK = 2.0
"""Seconds between two questions whether the manager is there. Each wakes a thread here twice, for the question and for
the answer; a pool that has nothing to do wakes nobody more often than once a second."""
BUSY_LOOK = 0.5
"""The same while a task runs, which might be cancelled."""

_log = logging.getLogger(__name__)


class Death(NamedTuple):
    """A worker process that ended, as `QueueService.child_died` takes it."""

    incarnation: str
    how: str
    started: Sequence[tuple[int, int]]
    counts: bool
    evidence: Evidence
    outcomes: Sequence[Report] = ()


class Hooks(NamedTuple):
    """What the keeper asks the pool, and tells it, from its own thread.

    ``children`` describes those that live, ``busy`` tells whether any of them runs a task. ``on_drain``: the manager
    wants the pool to leave. ``on_join``: the manager has another address or key than before. ``on_cancel``: this has
    changed, all (incarnation, run) that are to be cancelled.
    """

    children: Callable[[], list[ChildInfo]]
    busy: Callable[[], bool]
    on_drain: Callable[[], None]
    on_join: Callable[[Join], None]
    on_cancel: Callable[[Sequence[tuple[str, int]]], None]


class Keeper:
    """See the module's text.

    ``find_join`` says where the manager is, anew before each attempt to reach it, and ``connect`` makes a connection.
    """

    def __init__(
        self,
        find_join: Callable[[], Join],
        connect: Callable[[Join], Connection],
        pool: PoolInfo,
        hooks: Hooks,
        clock: Clock,
    ) -> None:
        self._find_join = find_join
        self._connect = connect
        self._pool = pool
        self._hooks = hooks
        self._to_cancel: list[tuple[str, int]] = []
        self._clock = clock
        self._queue: Connection | None = None
        self._join: Join | None = None
        self._deaths: deque[Death] = deque()
        self._changed = threads.event()
        self._leaving = False
        self._stopped = threads.event()
        self._pauses = Pauses(crc32(pool["id"].encode()))
        self._beat_due = True
        self._next_beat = 0.0
        self._asked_to_drain = False
        self._said: set[str] = set()
        self._thread = threads.new_thread(self._run, "taskq-keeper")
        self.away_since: float | None = None
        """Monotonic seconds when it was first seen that the manager is away; None while it answers. (Not: when it last
        answered, which is long ago for a pool that was suspended.)"""

    def first_contact(self) -> Join:
        """Reach the manager for the first time, in the calling thread; gives where it is. Raises what stands in the
        way: `ManagerUnavailable`, `AuthenticationFailed`, `PermissionDenied`, `ProtocolMismatch`, `ConfigError`."""
        queue = self._reach()
        try:
            queue.to_cancel(self._pool["id"])  # nothing yet, but a key that is not for workers is told so here
        except TaskqError:
            queue.close()
            raise
        assert self._join is not None
        self.start()
        return self._join

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def look(self) -> None:
        """Send a heartbeat now, since something has changed."""
        self._beat_due = True
        self._changed.set()

    def died(self, death: Death) -> None:
        """A worker process has ended; the manager will hear of it, however long that takes."""
        self._deaths.append(death)
        self._changed.set()

    def leave(self, timeout: float) -> bool:
        """Deliver what is left, say goodbye and end the thread; False when ``timeout`` seconds were not enough."""
        self._leaving = True
        self._changed.set()
        self._thread.join(timeout)
        self._stopped.set()
        self._changed.set()
        queue = self._queue
        if queue is not None:
            queue.close()
        in_time = not self._thread.is_alive()
        self._thread.join(LOOK)
        return in_time

    # -- the thread

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._changed.clear()
            try:
                self._speak()
            except TaskqError as error:
                self._lose(error)
                self._stopped.wait(self._pauses.next())
            except Exception as error:
                logs.event(_log, logging.ERROR, "internal_error", "the heartbeat failed", error=repr(error))
                self._stopped.wait(LOOK)
            else:
                if not self._stopped.is_set():
                    look = BUSY_LOOK if self._hooks.busy() else LOOK
                    self._changed.wait(max(0.0, min(look, self._next_beat - self._clock.monotonic())))

    def _speak(self) -> None:
        """Say what is to be said now."""
        queue = self._reach()
        while self._deaths:
            self._deliver(queue, self._deaths[0])
            self._deaths.popleft()
        if self._leaving:
            queue.leave(self._pool["id"])
            self._stopped.set()
            self._changed.set()
        elif self._beat_due or self._clock.monotonic() >= self._next_beat:
            self._beat_due = False
            self._beat(queue)
        else:
            self._ask_what_to_cancel(queue)
        self.away_since = None
        self._pauses.reset()

    def _deliver(self, queue: Connection, death: Death) -> None:
        try:
            queue.child_died(self._pool["id"], *death)
        except (BadArguments, Malformed, StaleRun) as error:  # it would be refused for ever
            logs.event(_log, logging.ERROR, "internal_error", f"the report of a death was refused: {error.message}")

    def _beat(self, queue: Connection) -> None:
        self._look_for_another_key()
        reply = queue.beat(self._pool, self._hooks.children())
        self._next_beat = self._clock.monotonic() + reply["interval"]
        if reply["drain"] and not self._asked_to_drain:
            self._asked_to_drain = True
            self._hooks.on_drain()

    def _look_for_another_key(self) -> None:
        """Tell the pool of a key that was changed, before the one that its worker processes have is worth nothing."""
        with suppress(TaskqError):  # it is for later; the connection holds
            join = self._find_join()
            if self._join is not None and join.addresses == self._join.addresses and join.key != self._join.key:
                self._join = join
                self._hooks.on_join(join)

    def _ask_what_to_cancel(self, queue: Connection) -> None:
        runs = [(incarnation, run) for incarnation, run in queue.to_cancel(self._pool["id"])]
        if runs != self._to_cancel:
            self._to_cancel = runs
            self._hooks.on_cancel(runs)

    def _reach(self) -> Connection:
        """The connection, which connects with its first call."""
        if self._queue is None:
            join = self._find_join()
            self._queue = self._connect(join)
            self._beat_due = True
            if self._join is not None and join != self._join:
                self._hooks.on_join(join)
            self._join = join
        return self._queue

    def _lose(self, error: TaskqError) -> None:
        if self._queue is not None:
            self._queue.close()
            self._queue = None
        if self.away_since is None:
            self.away_since = self._clock.monotonic()
            self._said.clear()
        if isinstance(error, AuthenticationFailed):
            self._say(logging.ERROR, "key_rejected", f"{error.message}; {error.hint}")
        elif not self._said:
            level = logging.WARNING if isinstance(error, ManagerUnavailable) else logging.ERROR
            self._say(level, "connection_lost", error.message)

    def _say(self, level: int, name: str, text: str) -> None:
        """Log this unless it was said since the manager has been away: what only repeats itself tells nobody more."""
        if text not in self._said:
            self._said.add(text)
            logs.event(_log, level, name, text)
