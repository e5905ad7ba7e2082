"""What a verb of the queue changed: the only thing that leaves the state machine. PURE."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from taskq.queue.task import Task
from taskq.stores.base import AttemptRow, KeyRow, ResultEnd, UniqueRow


@dataclass
class Changes:
    """What a verb changed.

    ``written``: records to store, final ones included. ``final``: those that became final. ``ready``: how many tasks
    became pending, by (queue, type). ``left``: worker processes that are no longer expected back. ``attempts``: those
    that are over and did not complete their task. ``recall``: worker processes whose waiting `reserve` has news.
    ``result_ends``: until when results are kept that have a time of their own. ``moved``: records to store that nothing
    has become of: their dates followed the clock.
    """

    written: list[Task] = field(default_factory=list)
    final: list[Task] = field(default_factory=list)
    ready: dict[tuple[str, str], int] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    attempts: list[AttemptRow] = field(default_factory=list)
    recall: list[str] = field(default_factory=list)
    result_ends: list[ResultEnd] = field(default_factory=list)
    moved: list[Task] = field(default_factory=list)

    def add(self, later: Changes) -> None:
        """Take over what changed after this."""
        self.written += later.written
        self.final += later.final
        self.left += later.left
        self.attempts += later.attempts
        self.recall += later.recall
        self.result_ends += later.result_ends
        self.moved += later.moved
        for place, count in later.ready.items():
            self.ready[place] = self.ready.get(place, 0) + count


class Accepted(NamedTuple):
    """What a submit led to: ids in order, positions of those that existed, keys to store, changes, unique
    values to store."""

    ids: list[int]
    existing: list[int]
    keys: list[KeyRow]
    changes: Changes
    uniques: list[UniqueRow]
