"""What all verbs of the queue share: lock, clock, store, and the way from a decision to the disk and to who waits.

Theory of operation. One lock guards the state. Public methods take it, underscore methods assume it (those that do not
say so). A verb decides under the lock by asking the pure state machine, puts what changed into the next commit, waits
for that commit where its reply depends on it, and then wakes whoever is concerned. Reads of the store happen without
the lock, and so does logging: lines are made under it, and written by who has let go of it. Nothing here knows sockets,
and nothing in the state machine knows any of this.

A reply that tells of a change (submit, report, cancel; also a state or result that somebody asks for) leaves after the
commit that holds it. A hand-out is not waited for: the housekeeper has it written within 50 ms, if the task still runs
then; but a `reserve` waits for the commit of the submits that it hands out.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from math import inf
from typing import Any

from taskq import threads
from taskq.clock import Clock
from taskq.config import QueueSettings
from taskq.errors import ShuttingDown, StoreFailed
from taskq.logs import event
from taskq.queue import task_log
from taskq.queue.ageing import Ageing
from taskq.queue.announced import Announced
from taskq.queue.backups import Backups
from taskq.queue.changes import Changes
from taskq.queue.cleaner import Cleaner
from taskq.queue.commit import GroupCommit
from taskq.queue.dispatch import Rules
from taskq.queue.feeds import Feeds
from taskq.queue.housekeeper import LINGER, OVERSLEPT, ROUND, Housekeeper
from taskq.queue.idempotency import Recent
from taskq.queue.leases import Moment, Worker
from taskq.queue.state import QueueState
from taskq.queue.task import State, Task
from taskq.queue.task_row import TaskRow
from taskq.queue.waiting import WaitingRoom
from taskq.stores.base import Opened, Store
from taskq.turns import Turns

log = logging.getLogger("taskq.queue")

PURGE_STEP = 1_000
"""Records deleted in one transaction, at most, so that a purge holds nobody up."""
LOOK_AFTER = 8 * 2**20
"""Bytes of payloads that are accepted between two looks at the room on the disk."""
DISK_FULL = "the disk is nearly full: no new tasks are accepted, outcomes of accepted ones are"
PROGRESS_STEP = 5_000
"""Records between two words of progress while loading."""


class QueueCore:
    """The state with its lock, clock and store; the verbs are in the classes that build on it."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        settings: QueueSettings,
        on_failure: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.settings = settings
        self.local_pool: str | None = None
        self.self_report: Callable[[], dict[str, Any]] = dict
        self._store = store
        self._clock = clock
        self._on_failure = on_failure
        self._lock = threads.lock()
        self._finals = Turns()
        """Held, outside of the other one, by who changes or deletes records that are final and in the store only."""
        self._waiting = WaitingRoom(self._lock, self._may_reserve)
        self._recent = Recent()
        self._lines: deque[task_log.Line] = deque()
        self._shut = False
        self._has_space = True
        self._unlooked = 0
        self._lingering = 0
        self._housekeeper = Housekeeper(self)
        self._cleaner = Cleaner(self.clean)
        self._backups = Backups(store)

    # -- life

    def open(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Take the store and load its live records; ``progress`` is told (done, total) from time to time."""
        opened = self._store.open(lambda opened, rows: self._load(opened, _with_progress(rows, opened.live, progress)))
        for note in opened.notes:
            event(log, logging.WARNING, "store_doubtful", note)
        self._state.uniqueness.add(self._store.uniques(self._clock.wall()))
        self._state.resume(self._now())
        self._has_space = self._store.has_space()

    def _load(self, opened: Opened, rows: Iterator[TaskRow]) -> None:
        """Take over what the store has, while it may still turn out to be damaged."""
        now = self._now()
        self._opened = opened
        self._started_at = now.wall
        self._started_mono = now.mono
        self._ageing = Ageing(now, opened.last_record_at, opened.last_call_at)
        self._state = QueueState(self.settings, epoch=opened.epoch, next_id=opened.next_id)
        self._state.figures.totals.update(opened.totals)
        self._state.figures.final.update(opened.final)
        self._feeds = Feeds(self._lock, opened.epoch << 40)
        self._commit = GroupCommit(
            self._lock,
            self._store,
            stored_below=opened.next_id,
            head=lambda: (self._state.next_id, self._state.figures.totals),
            settled=self._settled,
            failed=self._on_failure,
        )
        self._announced = Announced(opened.types)
        self._state.rules = Rules(opened.queues)
        for worker in opened.workers:
            self._state.leases.expect(*worker, now=now.mono)
        self._state.load(rows, now)

    def start(self) -> None:
        """Start the threads of the queue's own. Raises `RuntimeError`: no room for one; it may be called again then."""
        self._housekeeper.start()
        self._cleaner.start()

    def shut(self) -> None:
        """Take no more work: submits, waiting reserves and feeds answer `ShuttingDown`; reports still count."""
        with self._lock:
            self._shut = True
            self._waiting.recall_all()
            self._feeds.close()

    def close(self) -> None:
        """Write what is left and close the store."""
        self.shut()
        self._housekeeper.stop()
        self._cleaner.stop()
        self._backups.stop()
        with self._lock:
            if not self._commit.broken:
                self._commit.settle_all()
        task_log.say(self._lines)
        self._store.close()

    # -- chores (see `taskq.queue.housekeeper` and `taskq.queue.cleaner`)

    def tick(self, meant_at: float = inf) -> float:
        """Do what is due; gives the seconds until there is more to do.

        ``meant_at``: monotonic seconds when this was to happen. If that is long ago, this process was suspended, or its
        machine, and heartbeats of that time could not be heard.
        """
        with self._lock:
            now = self._now()
            if now.mono > meant_at + OVERSLEPT:
                self._state.leases.spare(now.mono)
            for changes in self._state.tick(now):
                self._finish(changes, durable=False)
            self._commit.settle(max(self._lingering, self._commit.ripen()))
            self._lingering = self._commit.mark
            waits = [self._state.next_deadline(now), None if self._commit.idle else LINGER]
        task_log.say(self._lines)
        return min((wait for wait in waits if wait is not None), default=ROUND)

    def look_after_disk(self) -> None:
        """Find out whether there is room for new tasks, and whether the store's files are still its own."""
        self._unlooked = 0
        try:
            has_space = self._store.has_space()
        except StoreFailed as error:
            with self._lock:
                self._commit.give_up(error)
            raise
        if self._has_space and not has_space:
            event(log, logging.WARNING, "storage_low", DISK_FULL)
        if has_space and not self._has_space:
            event(log, logging.INFO, "storage_back", "there is room on the disk again: new tasks are accepted")
        self._has_space = has_space

    def _look_if_much_came(self, size: int) -> None:
        """A second may be too long to wait with a look at the disk when much comes in."""
        self._unlooked += size
        if self._unlooked > LOOK_AFTER:
            self.look_after_disk()

    def tidy(self) -> None:
        """Forget what nobody asks for any more."""
        with self._lock:
            self._feeds.forget_quiet(self._clock.monotonic())
            self._recent.turn(self._commit.mark, self._commit.covered)
            self._state.figures.forget_idle()

    def clean(self) -> bool:
        """Delete a piece of what is too old in the store; gives whether there may be more."""
        with self._lock:
            now = self._now()
            wall, calls = self._ageing.records(now), self._ageing.calls(now)
        done = self._purge_piece([State.COMPLETED, State.CANCELLED], wall - self.settings.keep_completed)
        failed = self._purge_piece([State.FAILED], wall - self.settings.keep_failed)
        forgotten = self._store.forget_results(wall, PURGE_STEP)
        pruned, shrunk = self._store.prune(wall, calls), self._store.shrink()
        return max(done, failed, forgotten) > 0 or pruned or shrunk

    def monotonic(self) -> float:
        """Seconds of the queue's clock."""
        return self._clock.monotonic()

    def _now(self) -> Moment:
        return Moment(self._clock.monotonic(), self._clock.wall())

    def _refuse_if_shut(self) -> None:
        if self._shut:
            raise ShuttingDown("the manager is stopping", hint="try again when it is back")

    # -- what follows a decision

    def _record(self, changes: Changes) -> int:
        """Put changes into the next commit; gives its mark."""
        self._commit.add_left(changes.left)
        self._commit.add_result_ends(changes.result_ends)
        if not changes.written and not changes.moved and not changes.left:
            return self._commit.mark
        self._lines.extend(task_log.transitions(changes.written))
        self._commit.add_attempts(changes.attempts)
        mark = self._commit.add([*changes.written, *changes.moved] if changes.moved else changes.written)
        self._housekeeper.expect(LINGER)
        self._housekeeper.expect(self._state.places.next_date() - self._clock.wall())
        return mark

    def _record_handouts(self, tasks: Sequence[Task]) -> None:
        self._lines.extend(task_log.transitions(tasks))
        self._commit.hand_out(tasks)
        self._housekeeper.expect(LINGER)

    def _finish(self, changes: Changes, *, durable: bool) -> None:
        """Record changes, wait for their commit if asked to, then wake whom they concern."""
        mark = self._record(changes)
        if durable:
            self._commit.settle(mark)
        self._wake(changes.ready)
        for incarnation in changes.recall:
            self._waiting.recall(incarnation)

    def _wake(self, ready: Mapping[tuple[str, str], int]) -> None:
        """Call workers for tasks that became pending; where a queue has a limit, for those that fit into it now."""
        if self._state.rules.rows:
            ready = self._state.rules.to_be_called_for(ready, self._state.places.ready, self._state.figures)
        if ready:
            self._waiting.wake(ready)

    def _may_reserve(self, worker: Worker) -> bool:
        return not worker.alone and worker.may_reserve(self._clock.monotonic(), self._state.leases.heartbeat)

    def _settled(self, final: list[Task]) -> None:
        self._state.forget(final)
        self._feeds.publish(final)

    def _write_out(self) -> None:
        with self._lock:
            self._commit.settle_all()

    def _calls_now(self) -> float:
        """The time that keys and calls go by (`ageing`)."""
        with self._lock:
            return self._ageing.calls(self._now())

    def _purge_piece(self, states: Sequence[State], finished_before: float) -> int:
        with self._finals:
            gone = self._store.purge(states, finished_before, PURGE_STEP, self._calls_now())
        with self._lock:
            for state, count in gone.items():
                self._state.figures.final[state] -= count
        return sum(gone.values())


def _with_progress(rows: Iterator[TaskRow], total: int, progress: Callable[[int, int], None]) -> Iterator[TaskRow]:
    done = 0
    while piece := list(islice(rows, PROGRESS_STEP)):
        progress(done, total)
        yield from piece
        done += len(piece)
    progress(total, total)
