"""The threads of one worker process: reserve, run, report.

Theory of operation::

                    manager
             reserve │     ▲ report                     (two connections: `attachment`)
                     ▼     │
      reserving thread    reporting thread
                     │     ▲
           _backlog  │     │  _finished                 (a SimpleQueue, a deque)
                     ▼     │
            task threads 0 … n-1  ── slot table ──▶ parent: heartbeats, deaths
                     │
                 executor: the user's function

Task threads do no network IO and take no lock of ours (how that goes without lost wake-ups is told in `backlog`).

*How much to reserve.* As many tasks as there are free threads, and of types that are fast some more: they would be over
before another reserve had its answer. What has waited for a second without any task being finished goes back to
the manager, since long tasks are in front of it.

*Stop*, in this order:

 1. No more reserving. The manager is told, so that a reserve that waits there returns at once.
 2. What was not begun goes back to its queue (worse to lose a task than to run it twice).
 3. Running tasks finish; whoever is out of patience kills the process, the parent then reports what had begun.
 4. The last outcomes are delivered; while there is no manager, it is looked for until the parent ends the wait.
 5. Goodbye to the manager (`detach`), a mark in the slot table for the parent, exit.

A parent that is gone (end of file on standard input) means the same, but the wait of step 4 ends by itself after
`ORPHAN_PATIENCE`. What is lost with the connection, and why nothing is run or reported twice by it, is told in
`attachment`.
"""

from __future__ import annotations

import contextlib
import logging
import queue
from collections import deque
from collections.abc import Callable
from traceback import format_exc

from taskq import logs
from taskq.clock import Clock
from taskq.errors import ShuttingDown, TaskqError
from taskq.pauses import Pauses
from taskq.registry import STOPPING
from taskq.service import MAX_BATCH, MAX_BATCH_BYTES, MAX_WAIT
from taskq.shapes import ACK, GIVE_BACK, NACK, PROGRESS, Handout
from taskq.threads import Thread, event, simple_queue, start_thread
from taskq.workers.attachment import Attachment, Outcome, ReportedDead
from taskq.workers.backlog import Backlog
from taskq.workers.executor import Executor, Types
from taskq.workers.slots import SlotTable

ORPHAN_PATIENCE = 30.0
"""Seconds that a process without parent looks for the manager to deliver its last outcomes."""
TICK = 1.0
"""Seconds between two looks at the connection, and at tasks that cannot begin, while all threads are busy."""

_log = logging.getLogger(__name__)


class Worker:
    """The threads of one process around an `Attachment`; see the module's text. ``types`` finds the functions."""

    def __init__(self, attachment: Attachment, types: Types, slots: SlotTable, threads: int, clock: Clock) -> None:
        self._attachment = attachment
        self._slots = slots
        self._monotonic = clock.monotonic
        self._executor = Executor(types, slots, self._on_progress, clock.monotonic)
        self._threads = threads
        self._all_threads: list[Thread] = []
        self._backlog = Backlog(threads, attachment.held)
        self._finished: deque[Outcome] = deque()
        self._unsent: dict[int, Outcome] = {}  # by identity of the hand-out: another store may give the same run
        self._progress: dict[int, Outcome] = {}
        self._early: deque[int] = deque(maxlen=MAX_BATCH)  # cancelled before they came; no reserve brings more of them
        self._reporter_waits = False
        self._report_wake: queue.SimpleQueue[None] = simple_queue()
        self._draining = False
        self._drain_told = False
        self._orphan = False
        self._reserving_over = False
        self._pauses = Pauses(attachment.salt)
        self._lost_at: float | None = None
        self.over = event()
        """Set when everything is delivered, or there is no hope for it."""

    # -- for whoever owns the process

    def start(self) -> None:
        """Start all threads."""
        for slot in range(self._threads):
            self._start(f"taskq-task-{slot}", self._work, slot)
        self._start("taskq-reserve", self._guard, self._reserve_step)
        self._start("taskq-report", self._guard, self._report_step)

    def _start(self, name: str, target: Callable[..., None], argument: object) -> None:
        self._all_threads.append(start_thread(target, name, argument))

    def join(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds for each thread, when it is `over`."""
        for thread in self._all_threads:
            thread.join(timeout)
        self._executor.close()

    def drain(self, *, orphan: bool = False) -> None:
        """Begin the stop, see the module's text. Safe in a signal handler; may be called again."""
        self._orphan = self._orphan or orphan
        self._draining = True
        self.wake()

    def wake(self) -> None:
        """Let both network threads look at what has changed. Safe in a signal handler."""
        self._backlog.wake()
        self._report_wake.put(None)

    def _guard(self, step: Callable[[], None]) -> None:
        """Repeat one step of a network thread until the end; a mistake in it must not end the thread."""
        while not self.over.is_set():
            try:
                step()
            except ReportedDead as error:
                logs.event(_log, logging.ERROR, "worker_left", f"the manager was told that this process died: {error}")
                self._end()
            except TaskqError as error:
                level = logging.DEBUG if isinstance(error, ShuttingDown) else logging.WARNING
                logs.event(_log, level, "connection_lost", f"the manager refused a call: {error.message}")
                self.over.wait(TICK)
            except Exception:
                logs.event(_log, logging.ERROR, "internal_error", "a network thread failed", error=format_exc())
                self.over.wait(TICK)

    def _end(self) -> None:
        self.over.set()
        self._attachment.close()
        self._backlog.close()
        self.wake()

    def cancel(self, run: int) -> None:
        """Ask a run to stop; one that has not begun never does, not even one whose hand-out is still on its way here.

        To be called by one thread."""
        held, early = self._attachment.held, self._early
        if run not in held:
            early.append(run)
        awaited = set(early)
        for former in [one for one in STOPPING.copy() if one not in held and one not in awaited]:
            STOPPING.discard(former)
        self._executor.cancel(run)  # it looks there when a task begins, so the task may come later

    def after_fork(self) -> None:
        """In a process that a task forked: nothing of the worker's goes on there."""
        self._slots.disown()
        self._executor.after_fork()

    # -- task threads

    def _work(self, slot: int) -> None:
        self._slots.own(slot)
        backlog, finished, held, run = self._backlog, self._finished, self._attachment.held, self._executor.run
        while (handout := backlog.take()) is not None:
            if held.get(handout.run) is handout:  # else it was taken away while it waited here
                report = run(slot, handout)
                backlog.note_run_time(handout.type, report[-1])  # of a snooze its delay, which is as slow as can be
                finished.append(Outcome(handout, report))
            backlog.settle(slot)
            if self._reporter_waits:
                self._reporter_waits = False
                self._report_wake.put(None)

    def _on_progress(self, handout: Handout, fraction: float, note: str) -> None:
        """Keep the newest word of each task for the next report, which is at most a `TICK` away."""
        self._progress[handout.run] = Outcome(handout, (PROGRESS, handout.id, handout.run, fraction, note))

    # -- the reserving thread

    def _reserve_step(self) -> None:
        if self._draining:
            self._stop_reserving()
        if not self._attachment.up:
            self._attach()
        elif not self._draining:
            try:
                self._reserve()
            except ShuttingDown:
                self._backlog.sleep(TICK)  # what comes next is its end, or a command to drain
        elif not self._backlog.sleep(TICK):
            self._attachment.ping()

    def _reserve(self) -> None:
        wanted = self._backlog.wanted()
        if wanted.slots or wanted.extra:
            # A reserve for fast types alone must not wait: a thread that gets free meanwhile could take any type.
            self._backlog.add(self._attachment.reserve(*wanted, MAX_WAIT if wanted.slots else 0.0), wanted)
            return
        before = self._backlog.under_way
        if not self._backlog.wait(TICK):
            if self._backlog.under_way == before:
                self._give_back_unstarted()
            self._attachment.ping()

    def _give_back_unstarted(self) -> None:
        for handout in self._backlog.take_back():
            self._finished.append(Outcome(handout, (GIVE_BACK, handout.id, handout.run)))
        self._report_wake.put(None)

    def _stop_reserving(self) -> None:
        """Step 2 of the stop, after which nothing more comes in."""
        if not self._reserving_over:
            self._give_back_unstarted()
            self._backlog.close()
            self._reserving_over = True
            self._report_wake.put(None)

    def _attach(self) -> None:
        """Look for the manager; once, with a pause after it if that was in vain."""
        if self._reserving_over and not self._attachment.held and not self._backlog.under_way:
            self._end()  # there is nothing to deliver; the parent tells the manager of the exit
            return
        try:
            self._attachment.attach()
        except TaskqError as error:
            logs.event(_log, logging.DEBUG, "connection_lost", error.message)
            self._pause(self._pauses.next())
        else:
            self._pauses.reset()
            self._lost_at = None
            self._forget_early_cancels()

    def _forget_early_cancels(self) -> None:
        """What was on its way was lost with the former session; and another store may give the same run numbers."""
        early, self._early = self._early, deque(maxlen=MAX_BATCH)
        for run in early.copy():
            if run not in self._attachment.held:
                STOPPING.discard(run)

    def _pause(self, seconds: float) -> None:
        if self._lost_at is None:
            self._lost_at = self._monotonic()
        if self._orphan and not self._backlog.under_way and self._monotonic() - self._lost_at > ORPHAN_PATIENCE:
            text = f"no parent and no manager: {len(self._attachment.held)} outcomes could not be delivered"
            logs.event(_log, logging.ERROR, "worker_left", text)
            self._end()
        self.over.wait(seconds)

    # -- the reporting thread

    def _report_step(self) -> None:
        if self._draining and not self._drain_told and self._attachment.up:
            self._drain_told = True
            self._attachment.drain()
        self._collect()
        if self._unsent:
            if self._attachment.report(list(self._unsent.values())):
                self._unsent = {}
                self._backlog.delivered()
            else:
                self._attachment.wait(TICK)
        elif self._all_done():
            self._leave()
        else:
            self._wait_for_outcomes()

    def _collect(self) -> None:
        """Add what has finished to what is still to be sent, up to the limits of one call; and the newest progress.

        Of each task there is one word at most, so that however long the manager is away, what it has missed is no more
        than is held and fits into one call."""
        unsent = self._unsent
        for run in list(self._progress):
            newest = self._progress.pop(run)
            before = unsent.get(id(newest.handout))
            if before is None or before.report[0] == PROGRESS:  # else the task is over, and nobody asks how far it is
                unsent[id(newest.handout)] = newest
        size = sum(map(_size, unsent.values()))
        while self._finished and len(unsent) < MAX_BATCH and size < MAX_BATCH_BYTES:
            outcome = self._finished.popleft()
            size += _size(outcome)
            unsent.pop(id(outcome.handout), None)  # its progress; outcomes keep the order in which they came
            unsent[id(outcome.handout)] = outcome

    def _wait_for_outcomes(self) -> None:
        self._reporter_waits = True
        if not self._finished and not self._all_done():
            with contextlib.suppress(queue.Empty):
                self._report_wake.get(timeout=TICK)
        self._reporter_waits = False

    def _all_done(self) -> bool:
        return self._reserving_over and not self._backlog.under_way and not self._finished

    def _leave(self) -> None:
        """Step 5 of the stop."""
        if self._attachment.detach():
            self._slots.set_left()
        self._end()


def _size(outcome: Outcome) -> int:
    """About how many bytes an outcome takes in a call."""
    report = outcome.report
    if report[0] == ACK:
        return 40 + len(report[3])
    return 200 + sum(map(len, report[3])) if report[0] == NACK else 100
