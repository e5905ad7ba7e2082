"""A pool: keep a number of worker processes alive, until told to stop.

Theory of operation. `run` is one loop in the main thread. It waits for the next thing that happened: a signal, a child
that is ready or has ended, a word from the manager. Signal handlers and other threads do nothing but put a function
into `_events`; the loop calls it. After each event come its duties, always in this order: end what is out of time, the
pool itself or a task in a child (`overtime`), bury the dead, bring the number back.

A child that ends unasked is replaced: at once if it had lived for a while, else after a pause that doubles. Which of
its tasks had begun is read from its slot table and told to the manager (`keeper`). A child that says that it cannot
start (a module that does not import, a rejected key) ends the whole pool with that error, shown once: the next child
would fail the same way. A place where no child was ever ready and `BOOT_ATTEMPTS` have died stays empty; when all do,
the pool gives up.

Stop, in this order:

 1. Asked (signal, manager, manager away for too long): no child is replaced any more, all children drain.
 2. Out of time, or asked a second time: the rest is killed; their tasks go back without counting a death.
 3. The last deaths are told, then `leave`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import inf
from types import FrameType

from taskq import logs, threads
from taskq.clock import Clock, SystemClock
from taskq.config import Join, PoolSettings
from taskq.errors import TaskqError
from taskq.layout import counted
from taskq.service import Connection
from taskq.shapes import NACK, ChildInfo, Evidence, PoolInfo
from taskq.wire.client import RemoteQueue
from taskq.workers import failures
from taskq.workers.child import Child, how
from taskq.workers.failures import NO_RETRY
from taskq.workers.keeper import Death, Hooks, Keeper
from taskq.workers.slots import Running
from taskq.workers.stacks import stack_of

QUICK_DEATH = 10.0
"""Seconds: a child that lived longer is replaced at once."""
LONGEST_PAUSE = 5.0
"""Seconds before a child is replaced, at most."""
BOOT_ATTEMPTS = 5
"""So many children that die before one was ever ready, and their place stays empty."""
AWAY_LIMIT = 60.0
"""Seconds that a local pool waits for its manager."""
ANSWER_TIMEOUT = 10.0
"""Seconds for an answer to the pool's own words: a heartbeat whose answer got lost is repeated before leases end."""
GOODBYE = 5.0
"""Seconds for the last words to the manager."""

SIGNAL_WAIT = 1.0
"""Seconds for which the loop waits at most without a look at signals: the system may give a signal to another thread
(it does after SIGSTOP and SIGCONT), and then it does not end the wait of this one."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_log = logging.getLogger(__name__)


class Place:
    """One of the pool's places: its child, and what happened to those before it.

    ``due``: monotonic seconds when the next child is to start. ``quick``: deaths in a row after a short life.
    ``failed``: how many died before one was ever ready. ``fatal``: given up.
    """

    def __init__(self, number: int, now: float) -> None:
        self.number = number
        self.child: Child | None = None
        self.due = now
        self.quick = 0
        self.failed = 0
        self.proven = False
        self.fatal = False

    def bury(self, child: Child, now: float) -> None:
        """Its child has ended unasked: decide when, and whether, the next one starts."""
        self.child = None
        self.proven = self.proven or child.ready
        self.failed += not self.proven
        self.fatal = self.failed >= BOOT_ATTEMPTS
        self.wait(now, short=now - child.started_at < QUICK_DEATH and not child.leaving and not child.last_words)

    def wait(self, now: float, *, short: bool) -> None:
        """Put off the next start; longer each time, as long as lives are ``short``."""
        self.quick = self.quick + 1 if short else 0
        self.due = now + (0.0 if self.quick <= 1 else min(LONGEST_PAUSE, 0.1 * 2.0 ** min(self.quick - 2, 10)))


class WorkerPool:
    """See the module's text. ``find_join`` says, anew each time it is called, where the manager is."""

    def __init__(
        self, find_join: Callable[[], Join], settings: PoolSettings, clock: Clock | None = None, pool_id: str = ""
    ) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._pool = PoolInfo(
            id=pool_id or secrets.token_hex(8),
            name=settings.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            local=settings.local,
        )
        self._keeper = Keeper(
            find_join,
            self._connect,
            self._pool,
            Hooks(
                children=self._describe_children,
                busy=lambda: any(child.running() for child in self._children()),
                on_drain=lambda: self._post(self._drain, "the manager asked this pool to leave"),
                on_join=lambda join: self._post(self._move, join),
                on_cancel=lambda runs: self._post(self._cancel, runs),
            ),
            clock=self._clock,
        )
        self._events: queue.SimpleQueue[Callable[[], None]] = threads.simple_queue()
        self._places: list[Place] = []
        self._deadline: float | None = None
        """When what still runs is killed; None while the pool is not stopping."""
        self._next_look = inf
        """When a task in some child will have been running for too long."""
        self._exit_code = 0
        self._error: TaskqError | None = None

    # -- what it takes from the system

    def _connect(self, join: Join) -> Connection:
        return RemoteQueue(join, connect_timeout=self._settings.connect_timeout, call_timeout=ANSWER_TIMEOUT)

    def _new_child(self, place: Place, now: float) -> Child:
        return Child(place.number, now, partial(self._post, self._on_ready), partial(self._post, self._on_exit, place))

    # -- life

    def run(self) -> int:
        """Work until told to stop; gives the exit code. To be called in the main thread, whose signal handlers it
        uses. Raises what keeps the pool from starting: `ManagerUnavailable`, `AuthenticationFailed`, `ConfigError`, …
        """
        self._join = self._keeper.first_contact()
        now = self._clock.monotonic()
        self._places = [Place(number, now) for number in range(self._settings.workers)]
        count, threads = self._settings.workers, self._settings.threads
        text = f"{counted(count, 'worker process')} with {counted(threads, 'thread')} each"
        self._tell("pool_started", f"joined the manager {self._join.name}: {text}")
        with self._signals():
            try:
                while self._go_on():
                    self._next_event()()
            finally:
                self._kill_all()
                self._keeper.leave(GOODBYE)
        self._tell("pool_stopped", "all worker processes have left")
        if self._error is not None:
            raise self._error
        return self._exit_code

    def _tell(self, event: str, text: str) -> None:
        """Tell people; of a manager's own pool the manager has told them already."""
        if self._settings.local is None:
            logs.announce(_log, event, text)
        else:
            logs.event(_log, logging.DEBUG, event, text)

    def _go_on(self) -> bool:
        """A look at the children's memory and the duties of the loop; False when the pool is over."""
        if self._error is not None and self._deadline is None:
            return False
        now = self._clock.monotonic()
        for child in self._children():
            child.sample(now)
        self._end_what_is_out_of_time(now)
        self._end_what_is_over_its_timeout(now)
        if self._deadline is None:
            self._bring_number_back(now)
        if self._deadline is None and all(place.fatal for place in self._places):
            logs.event(_log, logging.ERROR, "child_failed", "no worker process gets as far as to start; giving up")
            self._exit_code = 1
            return False
        return self._deadline is None or any(place.child is not None for place in self._places)

    def _next_event(self) -> Callable[[], None]:
        """Wait for an event, or until a duty is due."""
        now = self._clock.monotonic()
        due = [place.due for place in self._places if place.child is None and not place.fatal]
        if self._deadline is not None:
            due = [self._deadline]
        due.append(self._next_look)
        with contextlib.suppress(queue.Empty):
            return self._events.get(timeout=min(max(0.0, min(due, default=now + SIGNAL_WAIT) - now), SIGNAL_WAIT))
        return lambda: None

    def _post(self, handler: Callable[..., None], *args: object) -> None:
        """Let the loop call this. Safe in a signal handler and in any thread."""
        self._events.put(partial(handler, *args))

    # -- duties

    def _end_what_is_out_of_time(self, now: float) -> None:
        if self._deadline is not None:
            if now >= self._deadline and any(place.child is not None for place in self._places):
                logs.event(_log, logging.WARNING, "stopping_hard", "out of time: what still runs is killed")
                self._kill_all()
        elif self._settings.local is not None:
            away_since = self._keeper.away_since
            if away_since is not None and now >= away_since + AWAY_LIMIT:
                self._drain(f"the manager has been away for {AWAY_LIMIT:g} s")

    def _end_what_is_over_its_timeout(self, now: float) -> None:
        """See `overtime`."""
        self._next_look = inf
        for child in self._children():
            if child.last_words:
                continue
            leave, kill, look_again = child.overtime.look(child.running(), now)
            self._next_look = min(self._next_look, look_again)
            if kill:
                self._break(child, kill, now)
            elif leave and not child.leaving:
                child.drain()
                self._keeper.look()

    def _break(self, child: Child, over: Sequence[Running], now: float) -> None:
        """Kill a child that is still at tasks which should have ended."""
        stacks = child.stacks()
        for one in over:
            cancelled = child.overtime.is_cancelled(one.run)
            stack = stack_of(one.thread, stacks)
            error = failures.overtime(one.deadline - one.started, cancelled=cancelled, stack=stack)
            delay = None if one.again else NO_RETRY
            child.last_words.append((NACK, one.id, one.run, error, delay, max(0.0, now - one.started)))
        names = ", ".join(f"{one.type} {one.id}" for one in over)
        text = f"worker process {child.number} (pid {child.pid}) is killed: there is no other way to stop {names}"
        logs.event(_log, logging.WARNING, "task_stuck", text)
        child.kill()

    def _bring_number_back(self, now: float) -> None:
        for place in self._places:
            if place.child is None and not place.fatal and place.due <= now:
                self._start_child(place, now)

    def _start_child(self, place: Place, now: float) -> None:
        child = self._new_child(place, now)
        try:
            child.start(self._join, self._pool, self._settings)
        except OSError as error:  # no room for a process: not its fault, and it may pass
            place.wait(now, short=True)
            logs.event(_log, logging.ERROR, "child_failed", f"cannot start a worker process: {error.strerror}")
        else:
            place.child = child
            logs.event(_log, logging.DEBUG, "child_started", f"worker process {place.number} has pid {child.pid}")

    # -- events

    def _on_ready(self, child: Child, error: TaskqError | None) -> None:
        if error is None:
            child.ready = True
            self._keeper.look()
        elif self._error is None and self._deadline is None:
            self._error = error
            if any(other.ready for other in self._children()):
                self._drain(f"worker processes cannot start any more ({error.message})")

    def _on_exit(self, place: Place, child: Child, code: int) -> None:
        """Bury a child: tell the manager what it had begun, unless it took leave itself."""
        if place.child is not child:
            return
        asked = self._deadline is not None
        if child.last_words:
            self._report_last_words(child)
        elif not child.left:
            self._report_death(child, code, counts=True, asked=asked)
        place.bury(child, self._clock.monotonic())
        child.close()

    def _report_death(self, child: Child, code: int, *, counts: bool, asked: bool) -> None:
        guilty, crash = child.autopsy()
        started = [(one.id, one.run) for one in guilty]
        evidence = child.evidence(self._clock.monotonic(), crash) if started else Evidence()
        self._keeper.died(Death(child.incarnation, how(code), started, counts, evidence))
        if asked and not started:
            return
        doing = ", ".join(f"{one.type} {one.id}" for one in guilty)
        text = f"worker process {child.number} (pid {child.pid}) ended with {how(code)}"
        text += f", running {doing}" if doing else ""
        logs.event(_log, logging.WARNING, "child_died", text, error=crash or None)

    def _report_last_words(self, child: Child) -> None:
        self._keeper.died(Death(child.incarnation, "a task that did not stop", (), False, {}, child.last_words))

    def _cancel(self, runs: Sequence[tuple[str, int]]) -> None:
        now = self._clock.monotonic()
        for child in self._children():
            child.cancel([run for incarnation, run in runs if incarnation == child.incarnation], now)

    def _move(self, join: Join) -> None:
        self._join = join
        for child in self._children():
            child.move(join)

    # -- the stop

    def _drain(self, reason: str) -> None:
        """Step 1 of the stop."""
        if self._deadline is not None:
            return
        self._deadline = self._clock.monotonic() + self._settings.drain_timeout
        running = sum(len(child.running()) for child in self._children())
        limit = f"at most {self._settings.drain_timeout:g} s"
        text = (
            f"{reason}: finishing {counted(running, 'running task')} ({limit})"
            if running
            else f"{reason}: nothing runs"
        )
        self._tell("draining", f"{text}; ask again to stop at once")
        for child in self._children():
            child.drain()

    def _kill_all(self) -> None:
        """Step 2 of the stop: when it returns there are no children."""
        children = self._children()
        for child in children:
            child.kill()
        for child in children:
            code = child.wait()
            if child.last_words:
                self._report_last_words(child)
            elif not child.left:
                self._report_death(child, code, counts=code != -signal.SIGKILL, asked=True)
            child.close()
        for place in self._places:
            place.child = None

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Handle the signals that ask for a stop while the block runs."""
        wanted = [
            number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP
        ]
        before = {number: signal.signal(number, self._on_signal) for number in wanted}  # nohup ignores SIGHUP
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._post(self._stop, number)

    def _stop(self, number: int) -> None:
        """A signal asked for the stop, for the first time or again."""
        if self._deadline is None:
            self._drain(f"stopping ({signal.Signals(number).name})")
        elif self._exit_code == 0:
            self._tell("stopping_hard", "asked again: what still runs is killed, its tasks go back")
            self._exit_code = 128 + number
            self._deadline = self._clock.monotonic()
            self._kill_all()

    # -- what the keeper asks for, from its own thread

    def _children(self) -> list[Child]:
        return [place.child for place in self._places if place.child is not None]

    def _describe_children(self) -> list[ChildInfo]:
        now = self._clock.monotonic()
        return [child.info(now) for child in self._children()]
