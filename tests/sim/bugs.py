"""Bugs that a run can plant in itself, to show that the simulation finds such things."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taskq import threads
from taskq.queue.commit import GroupCommit
from taskq.queue.core import QueueCore
from taskq.queue.state import QueueState
from taskq.stores.memory import MemoryStore


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


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug for bug in (reply_before_commit, no_run_check, forgets_calls, runs_begin_anew, lost_wakeup)
}
