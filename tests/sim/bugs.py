"""Bugs that a run can plant in itself, to show that the simulation finds such things."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taskq import threads
from taskq.queue.commit import GroupCommit
from taskq.queue.core import QueueCore
from taskq.queue.job_queue import JobQueue
from taskq.queue.leases import Leases
from taskq.queue.state import QueueState
from taskq.stores.memory import MemoryStore
from taskq.stores.reading import Reading

from .disk import Mounted


def reply_before_commit() -> None:
    """Only the housekeeper waits for the disk."""
    right = GroupCommit.settle

    def wrong(self: GroupCommit, mark: int) -> None:
        if getattr(threads.current(), "name", "") == "housekeeper":
            right(self, mark)

    GroupCommit.settle = wrong  # type: ignore[method-assign]


def no_run_check() -> None:
    """An outcome counts with whatever run it comes."""
    right = QueueState.report

    def wrong(self: QueueState, worker: Any, reports: Any, now: Any) -> Any:
        current = [(one[0], one[1], self.tasks[one[1]].run, *one[3:]) for one in reports if one[1] in self.tasks]
        for one in current:
            task = self.tasks[one[1]]
            holder = self.leases.workers.get(task.worker or "")
            if holder is not None and holder.running.pop(task.id, None):
                worker.running[task.id] = task
        return right(self, worker, current, now)

    QueueState.report = wrong  # type: ignore[method-assign]


def forgets_calls() -> None:
    """The store does not keep which calls were made."""
    right = MemoryStore.write

    def wrong(self: MemoryStore, batch: Any) -> None:
        batch.calls = []
        right(self, batch)

    MemoryStore.write = wrong  # type: ignore[method-assign]


def runs_begin_anew() -> None:
    """After a restart the same run numbers are given again."""
    right = QueueState.__init__

    def wrong(self: QueueState, settings: Any, *, epoch: int = 1, next_id: int = 1) -> None:
        right(self, settings, epoch=1, next_id=next_id)

    QueueState.__init__ = wrong  # type: ignore[method-assign]


def lost_wakeup() -> None:
    """Nobody is called when tasks become pending."""
    QueueCore._wake = lambda self, ready: None  # type: ignore[method-assign]


def uniques_are_forgotten() -> None:
    """A restart does not take the unique values back from the store."""
    MemoryStore.uniques = lambda self, now: []  # type: ignore[method-assign]
    Reading.uniques = lambda self, now: []  # type: ignore[method-assign]


def purge_leaves_one() -> None:
    """The newest of those that are to be deleted stays."""
    right = Mounted.purge_in_store

    def wrong(self: Mounted, states: Any, finished_before: float, limit: int, now: float) -> Any:
        return right(self, states, finished_before - 4.0, limit, now)

    Mounted.purge_in_store = wrong  # type: ignore[method-assign]


def history_is_lost() -> None:
    """Who begins anew has no past."""
    right = JobQueue.requeue

    def wrong(self: JobQueue, ids: Any) -> Any:
        labels = right(self, ids)
        gone = [id for id, label in zip(ids, labels, strict=True) if label == "requeued"]
        for id in gone:
            self._store.forget_attempts(id)
        return labels

    JobQueue.requeue = wrong  # type: ignore[method-assign]


def lease_without_heartbeats() -> None:
    """A heartbeat extends no lease."""
    Leases.beat = lambda self, info, children, now: None  # type: ignore[method-assign]


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug
    for bug in (
        reply_before_commit,
        no_run_check,
        forgets_calls,
        runs_begin_anew,
        lost_wakeup,
        uniques_are_forgotten,
        purge_leaves_one,
        history_is_lost,
        lease_without_heartbeats,
    )
}
