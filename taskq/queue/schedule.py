"""Scheduled tasks by the time at which they are due. PURE.

A heap. A task that is scheduled no more by another way than `pop` (cancel) is not searched for: its entry goes stale,
is dropped when it comes to the front, and a heap with more stale than live entries is rebuilt, so that tasks that were
put off for a year and cancelled do not stay in memory for that long.
"""

from __future__ import annotations

import heapq
from math import inf

from taskq.queue.ready import SPARE
from taskq.queue.task import SCHEDULED, Task


class Schedule:
    """The heap of scheduled tasks."""

    __slots__ = ("_heap", "_stale")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, Task]] = []  # by time, id, run: an outdated copy may be there too
        self._stale = 0

    def push(self, task: Task) -> None:
        """Add a task that has just become scheduled."""
        heapq.heappush(self._heap, (task.due_at, task.id, task.run, task))

    def first(self) -> float:
        """When the next task is due (wall-clock seconds), infinity when there is none."""
        while self._heap:
            due_at, _, _, task = self._heap[0]
            if task.state is SCHEDULED:
                return due_at
            heapq.heappop(self._heap)
            self._stale -= 1
        return inf

    def pop(self) -> Task:
        """Take the task that `first` told of just now."""
        return heapq.heappop(self._heap)[3]

    def gone(self) -> None:
        """A task is scheduled no more, and was not taken by `pop`."""
        self._stale += 1
        if 2 * self._stale > len(self._heap) + SPARE:
            self._rebuild([entry for entry in self._heap if entry[3].state is SCHEDULED])

    def _rebuild(self, entries: list[tuple[float, int, int, Task]]) -> None:
        self._heap = entries
        heapq.heapify(entries)
        self._stale = 0

    def shift(self, seconds: float) -> list[Task]:
        """Put off (or forward) what waits after an attempt; gives those tasks. What waits for its date stays."""
        moved = [task for _, task in self.entries() if task.run]
        for task in moved:
            task.due_at += seconds
            if task.started_at is not None:  # it tells after a restart how long the pause can be at most
                task.started_at += seconds
        self._rebuild([(task.due_at, task.id, task.run, task) for _, task in self.entries()])
        return moved

    def copy(self) -> list[tuple[float, int, int, Task]]:
        """The heap as it is, stale entries too: cheap, so that whoever must look at all of it can do so elsewhere."""
        return self._heap.copy()

    def entries(self) -> list[tuple[float, Task]]:
        """All that are scheduled, each with the time under which it stands here, in no order."""
        return [(due_at, task) for due_at, _, _, task in self._heap if task.state is SCHEDULED]
