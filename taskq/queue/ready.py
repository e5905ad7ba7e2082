"""Which pending task is handed out next: the one dispatcher. PURE.

Theory of operation. Pending tasks stand on *shelves*, one for each (queue, type). A shelf has a *lane* for each
priority, and a lane gives its tasks by rising id. Ids rise in the order in which submits are committed, so a lane is
nearly always appended to at its end and taken from at its front: a deque; the few that come back out of order (retries,
given back ones) wait in a small heap beside it. A worker's hand-out merges the heads of the shelves it serves by
(higher priority, lower id); between queues there is no other order.

A task that stops being pending by other ways than a hand-out (cancel) is not searched for: its entry goes stale, is
skipped when it comes to the front, and a lane with more stale than live entries is rebuilt.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import chain, groupby
from math import inf
from operator import attrgetter

from taskq.queue.task import PENDING, Task

SPARE = 1_000
"""Stale entries that are not worth a rebuilding."""

_terms = attrgetter("terms")


class Lane:
    """Pending tasks of one queue, type and priority, lowest id first."""

    __slots__ = ("_late", "_line")

    def __init__(self) -> None:
        self._line: deque[Task] = deque()
        self._late: list[tuple[int, int, Task]] = []  # by id, then run: an outdated copy may be there too

    def __len__(self) -> int:
        return len(self._line) + len(self._late)

    def push(self, task: Task) -> None:
        """Add a task, wherever its id belongs."""
        if not self._line or task.id > self._line[-1].id:
            self._line.append(task)
        else:
            heapq.heappush(self._late, (task.id, task.run, task))

    def extend(self, tasks: Sequence[Task]) -> None:
        """Add tasks whose ids rise and are higher than all that were given before."""
        self._line.extend(tasks)

    def head(self) -> Task | None:
        """The next task, without taking it; stale entries before it are dropped."""
        while self._line and self._line[0].state is not PENDING:
            self._line.popleft()
        while self._late and self._late[0][2].state is not PENDING:
            heapq.heappop(self._late)
        if self._late and (not self._line or self._late[0][0] < self._line[0].id):
            return self._late[0][2]
        return self._line[0] if self._line else None

    def take(self, limit: int, below: float) -> list[Task]:
        """Take up to ``limit`` tasks with ids under ``below``."""
        taken: list[Task] = []
        line = self._line
        while len(taken) < limit and (task := self.head()) is not None and task.id < below:
            if not line or task is not line[0]:
                heapq.heappop(self._late)
                taken.append(task)
                continue
            last = min(below, self._late[0][0]) if self._late else below
            while line and len(taken) < limit and line[0].id < last:
                task = line.popleft()
                if task.state is PENDING:
                    taken.append(task)
        return taken

    def tidy(self) -> None:
        """Drop all stale entries."""
        self._line = deque([task for task in self._line if task.state is PENDING])
        self._late = [entry for entry in self._late if entry[2].state is PENDING]
        heapq.heapify(self._late)

    def absorb(self, later: Lane) -> None:
        """Take over the entries of a lane whose ids are all higher than those here."""
        self._line.extend(later._line)
        for entry in later._late:
            heapq.heappush(self._late, entry)

    def entries(self) -> list[Task]:
        """All that is pending here, in no order."""
        return [task for task in (*self._line, *(task for _, _, task in self._late)) if task.state is PENDING]


class Shelf:
    """Pending tasks of one queue and type, in lanes by priority.

    ``pending`` counts those that are really pending; `taskq.queue.state` keeps it.
    """

    __slots__ = ("_lanes", "_order", "pending", "queue", "type")

    def __init__(self, queue: str, type: str) -> None:
        self.queue = queue
        self.type = type
        self.pending = 0
        self._lanes: dict[int, Lane] = {}
        self._order: list[int] = []  # negated priorities, so that the highest comes first

    def push(self, task: Task) -> None:
        """Add a pending task."""
        priority = task.terms.priority
        self._lane(priority).push(task)

    def extend(self, priority: int, tasks: Sequence[Task]) -> None:
        """Add pending tasks whose ids rise and are higher than all that were given before."""
        self.pending += len(tasks)
        self._lane(priority).extend(tasks)

    def _lane(self, priority: int) -> Lane:
        lane = self._lanes.get(priority)
        return self._add(priority, Lane()) if lane is None else lane

    def _add(self, priority: int, lane: Lane) -> Lane:
        self._lanes[priority] = lane
        insort(self._order, -priority)
        return lane

    def head(self) -> tuple[int, int, Task] | None:
        """(negated priority, id, task) of the next one, None when the shelf is empty."""
        while self._order:
            task = self._lanes[-self._order[0]].head()
            if task is not None:
                return self._order[0], task.id, task
            del self._lanes[-self._order.pop(0)]
        return None

    def take(self, limit: int, before: tuple[float, float]) -> list[Task]:
        """Take up to ``limit`` tasks of the lane that `head` looked at, which come before (negated priority, id)."""
        priority, id = before
        taken = self._lanes[-self._order[0]].take(limit, inf if self._order[0] < priority else id)
        self.pending -= len(taken)
        return taken

    def heads(self) -> Iterator[Task]:
        """The next task of each lane."""
        for lane in self._lanes.values():
            task = lane.head()
            if task is not None:
                yield task

    def tidy(self) -> None:
        """Drop stale entries when most are stale."""
        if sum(map(len, self._lanes.values())) > 2 * self.pending + SPARE:
            for lane in self._lanes.values():
                lane.tidy()

    def absorb(self, later: Shelf) -> None:
        """Take over the tasks of a shelf whose ids are all higher than those here."""
        self.pending += later.pending
        for priority, lane in later._lanes.items():
            if priority in self._lanes:
                self._lanes[priority].absorb(lane)
            else:
                self._add(priority, lane)

    def entries(self) -> list[Task]:
        """All that is pending here, in no order."""
        return [task for lane in self._lanes.values() for task in lane.entries()]


class Ready:
    """All shelves that are not empty; gives the next tasks for what a worker serves."""

    def __init__(self) -> None:
        self.shelves: dict[tuple[str, str], Shelf] = {}

    def shelf(self, queue: str, type: str) -> Shelf:
        """The shelf of this queue and type, made when it is not there."""
        found = self.shelves.get((queue, type))
        if found is None:
            found = self.shelves[queue, type] = Shelf(queue, type)
        return found

    def push(self, task: Task) -> None:
        """Add a task that has just become pending."""
        shelf = self.shelves.get((task.queue, task.type)) or self.shelf(task.queue, task.type)
        shelf.pending += 1
        shelf.push(task)

    def extend(self, tasks: Iterable[Task]) -> dict[tuple[str, str], int]:
        """Add pending tasks whose ids rise and are higher than all given before; how many, by (queue, type)."""
        counts: dict[tuple[str, str], int] = {}
        for terms, group in groupby(tasks, _terms):
            place, run = (terms.queue, terms.type), list(group)
            self.shelf(*place).extend(terms.priority, run)
            counts[place] = counts.get(place, 0) + len(run)
        return counts

    def gone(self, task: Task) -> None:
        """A task that was here is no longer pending, and was not taken by `take`."""
        shelf = self.shelves[task.queue, task.type]
        shelf.pending -= 1
        if shelf.pending:
            shelf.tidy()
        else:
            del self.shelves[task.queue, task.type]

    def serving(self, queues: Container[str], types: Container[str]) -> list[Shelf]:
        """The shelves of these queues (empty = all) and types."""
        return [
            shelf for shelf in self.shelves.values() if shelf.type in types and (not queues or shelf.queue in queues)
        ]

    def take(self, shelves: list[Shelf], limit: int) -> list[Task]:
        """Take up to ``limit`` tasks from these shelves, best first; they are counted out, their state is as before."""
        heads = [(*head, shelf) for shelf in shelves if (head := shelf.head()) is not None]
        heads.sort(key=lambda entry: entry[:2])
        taken: list[Task] = []
        while heads and len(taken) < limit:
            shelf = heads.pop(0)[3]
            taken += shelf.take(limit - len(taken), heads[0][:2] if heads else (inf, inf))
            head = shelf.head()
            if head is not None:
                insort(heads, (*head, shelf), key=lambda entry: entry[:2])
        for shelf in shelves:
            if not shelf.pending:
                self.shelves.pop((shelf.queue, shelf.type), None)  # it may be empty since the call before this one
        return taken

    def absorb(self, later: Ready) -> None:
        """Take over the tasks of ``later``, whose ids are all higher than those here."""
        for place, shelf in later.shelves.items():
            if place in self.shelves:
                self.shelves[place].absorb(shelf)
            else:
                self.shelves[place] = shelf


def oldest(places: Sequence[Ready], wall: float) -> dict[str, float]:
    """For each queue with tasks here: how many seconds the one that came first has waited."""
    ages: dict[str, float] = {}
    for shelf in chain.from_iterable(ready.shelves.values() for ready in places):
        for task in shelf.heads():
            ages[shelf.queue] = max(ages.get(shelf.queue, 0.0), wall - task.due_at)
    return ages
