"""Tasks that must have begun by a certain time, by that time. PURE.

A heap of (time, id); whether an entry still means anything is looked up when its time has come. A task that runs then
is let go: it stands here again when it is pending or scheduled again. Final tasks are not searched for: their entries
go stale, and a heap with more stale than live ones is rebuilt, so that what was to expire in a year and is done in a
minute does not stay in memory for that long.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from math import inf

from taskq.layout import duration
from taskq.queue.ready import SPARE
from taskq.queue.task import PENDING, SCHEDULED, Task, TaskError

WAITING = frozenset({PENDING, SCHEDULED})
"""States in which a task has not begun, or not begun again."""


class Expiry:
    """The heap of tasks that expire."""

    __slots__ = ("_heap", "_ids")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._ids: set[int] = set()  # those whose entry means anything

    def __len__(self) -> int:
        return len(self._ids)

    def push(self, task: Task) -> None:
        """Add a task that waits, if it expires and is not here yet."""
        at = task.expires_at
        if at is not None and task.id not in self._ids:
            self._ids.add(task.id)
            heapq.heappush(self._heap, (at, task.id))

    def first(self) -> float:
        """When the next entry's time comes (wall-clock seconds), infinity when there is none."""
        return self._heap[0][0] if self._heap else inf

    def pop(self, wall: float, tasks: Mapping[int, Task], limit: float) -> list[Task]:
        """Take up to ``limit`` of these tasks that still wait at their time."""
        expired: list[Task] = []
        while self._heap and self._heap[0][0] <= wall and len(expired) < limit:
            number = heapq.heappop(self._heap)[1]
            if number not in self._ids:
                continue
            self._ids.discard(number)
            task = tasks.get(number)
            if task is not None and task.state in WAITING:
                expired.append(task)
        return expired

    def forget(self, ids: Iterable[int]) -> None:
        """These tasks are final."""
        self._ids.difference_update(ids)
        if len(self._heap) > 2 * len(self._ids) + SPARE:
            self._heap = [entry for entry in self._heap if entry[1] in self._ids]
            heapq.heapify(self._heap)

    def absorb(self, earlier: Expiry, tasks: Mapping[int, Task]) -> None:
        """Take in those that stood in ``earlier`` and still wait; it is empty then."""
        for number in earlier._ids:
            task = tasks.get(number)
            if task is not None and task.state in WAITING:
                self.push(task)
        earlier._heap, earlier._ids = [], set()

    def ids(self) -> set[int]:
        """The tasks that stand here."""
        return set(self._ids)


def expired(task: Task) -> TaskError:
    """Why a task that did not begin in time failed; an error of an earlier attempt is told of too."""
    terms = task.terms
    when = "by its time" if terms.expires is None else f"within {duration(terms.expires)}"
    tries = task.failures + task.deaths
    if not tries:
        return TaskError("expired", "", f"it did not begin {when}")
    last = task.error
    why = ": ".join(part for part in (last.type, last.message) if part) if last is not None else ""
    attempts = f"{tries} attempt{'s' if tries > 1 else ''}"
    return TaskError(
        "expired", "", f"it did not begin again {when}, after {attempts}{f'; the last: {why}' if why else ''}"
    )
