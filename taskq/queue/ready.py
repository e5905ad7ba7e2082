"""Which pending task is handed out next: the one dispatcher. PURE.

Theory of operation. Pending tasks stand on *shelves*, one for each (queue, type). A shelf has a *lane* for each
priority, and a lane gives its tasks by rising id. Ids rise in the order in which submits are committed, so a lane is
nearly always appended to at its end and taken from at its front: a deque; the few that come back out of order (retries,
given back ones) wait in a small heap beside it. A worker's hand-out merges the heads of the lanes it serves by (higher
priority, lower id). Which queues it is served from, and in which order, is decided in `taskq.queue.dispatch`.

Priorities age, so that nothing starves: for each `AGING` seconds that the head of a lane has been pending, the lane
counts as one priority higher. Only heads are compared, so nothing is ever sorted anew; a lane's run ends before the
first task that is too young to count as high as its head.

A task that stops being pending by other ways than a hand-out (cancel) is not searched for: its entry goes stale, is
skipped when it comes to the front, and a lane with more stale than live entries is rebuilt.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import deque
from collections.abc import Container, Iterable, MutableMapping, Sequence
from itertools import chain, groupby, islice
from math import inf
from operator import attrgetter

from taskq.queue.task import PENDING, Task

SPARE = 1_000
"""Stale entries that are not worth a rebuilding."""
COUNTED = 10_000
"""Entries that are looked at one by one to tell a position; of more, it is told about."""
AGING = 300.0
"""Seconds of waiting that count as much as one step of priority."""

_terms = attrgetter("terms")
_LAST = (inf, inf)


def rank(priority: int, due_at: float, wall: float) -> int:
    """The negated priority that a task counts as, when it has been pending since ``due_at``; the lowest goes first.

    >>> rank(2, 1_000.0, 1_001.0), rank(0, 1_000.0, 1_000.0 + 3 * AGING)
    (-2, -3)
    """
    waited = wall - due_at
    return -priority if waited < AGING else -priority - int(waited / AGING)


class Lane:
    """Pending tasks of one queue, type and priority, lowest id first."""

    __slots__ = ("_late", "_line", "priority")

    def __init__(self, priority: int) -> None:
        self.priority = priority
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

    def take(self, limit: int, below: float, latest: float) -> list[Task]:
        """Take up to ``limit`` tasks with ids under ``below``: the head, and what follows it without being pending only
        since a time after ``latest``."""
        taken: list[Task] = []
        line = self._line
        if (task := self.head()) is not None:
            latest = max(latest, task.due_at)
        while len(taken) < limit and (task := self.head()) is not None and task.id < below and task.due_at <= latest:
            if not line or task is not line[0]:
                heapq.heappop(self._late)
                taken.append(task)
                continue
            last = min(below, self._late[0][0]) if self._late else below
            while line and len(taken) < limit and line[0].id < last:
                if line[0].due_at > latest:
                    return taken
                task = line.popleft()
                if task.state is PENDING:
                    taken.append(task)
        return taken

    def front(self, limit: int, below: int) -> list[Task]:
        """Some of the next tasks with ids under ``below``, none only when there is none."""
        self.head()
        nearest = (*islice(self._line, limit), *(task for _, _, task in self._late[:limit]))
        return [task for task in nearest if task.state is PENDING and task.id < below]

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

    def before(self, mine: tuple[int, int], wall: float) -> int:
        """About how many tasks here go before one with this (rank, id), in a bounded number of looks.

        Nearly always ids and ages rise along the line, so it is bisected, and what is found there is counted only when
        it is little; of a large heap a sample is looked at.
        """
        first = bisect_left(self._line, True, key=lambda task: self._place(task, wall) >= mine)
        if first <= COUNTED:
            first = sum(task.state is PENDING for task in islice(self._line, first))
        step = len(self._late) // COUNTED + 1
        late = sum(task.state is PENDING and self._place(task, wall) < mine for _, _, task in self._late[::step])
        return first + late * step

    def _place(self, task: Task, wall: float) -> tuple[int, int]:
        return rank(self.priority, task.due_at, wall), task.id

    def entries(self) -> list[Task]:
        """All that is pending here, in no order."""
        return [task for task in (*self._line, *(task for _, _, task in self._late)) if task.state is PENDING]


class Shelf:
    """Pending tasks of one queue and type, in lanes by priority.

    ``pending`` counts those that are really pending; `taskq.queue.state` keeps it.
    """

    __slots__ = ("_lanes", "pending", "queue", "type")

    def __init__(self, queue: str, type: str) -> None:
        self.queue = queue
        self.type = type
        self.pending = 0
        self._lanes: dict[int, Lane] = {}

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
        if lane is None:
            lane = self._lanes[priority] = Lane(priority)
        return lane

    def heads(self) -> list[tuple[Lane, Task]]:
        """Each lane with its next task; empty lanes are dropped."""
        found = []
        for lane in list(self._lanes.values()):
            task = lane.head()
            if task is None:
                del self._lanes[lane.priority]
            else:
                found.append((lane, task))
        return found

    def front(self, limit: int, below: int) -> list[Task]:
        """Some of the next tasks of each lane with ids under ``below``, none only when there is none."""
        return [task for lane in self._lanes.values() for task in lane.front(limit, below)]

    def before(self, mine: tuple[int, int], wall: float) -> int:
        """About how many tasks here go before one with this (rank, id)."""
        return sum(lane.before(mine, wall) for lane in self._lanes.values())

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
                self._lanes[priority] = lane

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

    def of_queue(self, queue: str) -> list[Shelf]:
        """The shelves of one queue."""
        return [shelf for shelf in self.shelves.values() if shelf.queue == queue]

    def front(self, queue: str, limit: int, below: int) -> list[Task]:
        """Some of the next tasks of a queue with ids under ``below``, none only when there is none."""
        return [task for shelf in self.of_queue(queue) for task in shelf.front(limit, below)]

    def serving(self, queues: Container[str], types: Container[str]) -> list[Shelf]:
        """The shelves of these queues (empty = all) and types."""
        return [
            shelf for shelf in self.shelves.values() if shelf.type in types and (not queues or shelf.queue in queues)
        ]

    def take(
        self, shelves: Sequence[Shelf], limit: int, wall: float, room: MutableMapping[str, int] | None = None
    ) -> list[Task]:
        """Take up to ``limit`` tasks from these shelves, best first; they are counted out, their state is as before.

        ``room``: for some queues, how many may still be taken; what is taken is subtracted there.
        """
        heads = [
            (rank(lane.priority, task.due_at, wall), task.id, lane, shelf)
            for shelf in shelves
            for lane, task in shelf.heads()
        ]
        heapq.heapify(heads)  # ids differ, so that lanes are never compared
        taken: list[Task] = []
        while heads and len(taken) < limit:
            first, _, lane, shelf = heapq.heappop(heads)
            most = limit - len(taken)
            if room and shelf.queue in room:
                most = min(most, room[shelf.queue])
            aged = -first - lane.priority
            best, id = heads[0][:2] if heads else _LAST
            run = lane.take(most, inf if first < best else id, wall - aged * AGING if aged and heads else inf)
            shelf.pending -= len(run)
            taken += run
            if room and shelf.queue in room:
                room[shelf.queue] -= len(run)
                if not room[shelf.queue]:
                    continue
            task = lane.head()
            if task is not None:
                heapq.heappush(heads, (rank(lane.priority, task.due_at, wall), task.id, lane, shelf))
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
        for _, task in shelf.heads():
            ages[shelf.queue] = max(ages.get(shelf.queue, 0.0), wall - task.due_at)
    return ages
