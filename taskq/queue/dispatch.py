"""Which queues a worker is served from, and in which order: what is paused, limits, turns. PURE.

Theory of operation. `Rules` holds what people have laid down for queues: a queue may be paused, and it may have a limit
of tasks that run at once, over all workers. Both stay when the manager starts again, and only hand-outs ask for them:
submits are accepted, and what runs goes on. Without rules nothing is looked up.

Between the queues that are open, a worker that asked for no order is served by priority and age over all of them
(`taskq.queue.ready`). With ``strict`` it gets tasks of a queue only when those that it named before have none for it;
with ``fair`` the queues take turns, and a batch is dealt out evenly. Each worker process has turns of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import zip_longest

from taskq.queue.figures import Figures
from taskq.queue.leases import Worker
from taskq.queue.ready import Ready, Shelf
from taskq.queue.task import RUNNING, Task
from taskq.service import FAIR, STRICT
from taskq.stores.base import QueueRow


class Rules:
    """What was laid down for queues, by name; those without any rule are not in here."""

    def __init__(self, rows: Iterable[QueueRow] = ()) -> None:
        self.rows: dict[str, QueueRow] = {}
        for row in rows:
            self.put(row)

    def of(self, queue: str) -> QueueRow:
        """The rules of this queue; there may be none."""
        return self.rows.get(queue) or QueueRow(queue)

    def put(self, row: QueueRow) -> None:
        """These are the rules of a queue from now on."""
        if row == QueueRow(row.name):
            self.rows.pop(row.name, None)
        else:
            self.rows[row.name] = row

    def room(self, queue: str, figures: Figures) -> int | None:
        """How many tasks of this queue may be handed out now, None when as many as there are."""
        row = self.rows.get(queue)
        if row is None:
            return None
        if row.paused_at is not None:
            return 0
        return None if row.max_running is None else max(0, row.max_running - running(queue, figures))

    def rooms(self, figures: Figures) -> dict[str, int]:
        """The same for all queues with a rule that limits them now."""
        rooms = ((name, self.room(name, figures)) for name in self.rows)
        return {name: room for name, room in rooms if room is not None}

    def open(self, shelves: list[Shelf], figures: Figures) -> list[Shelf]:
        """Those of these shelves whose tasks may be handed out now."""
        return [shelf for shelf in shelves if self.room(shelf.queue, figures) != 0] if self.rows else shelves

    def to_be_called_for(
        self, became: Mapping[tuple[str, str], int], ready: Ready, figures: Figures
    ) -> dict[tuple[str, str], int]:
        """How many tasks workers are to be called for, by (queue, type).

        Of those that became pending what may be handed out; of queues with a limit all that may be, since some of their
        tasks may have ended.
        """
        rooms = self.rooms(figures)
        calls = {place: count for place, count in became.items() if place[0] not in rooms}
        for place, shelf in ready.shelves.items() if any(rooms.values()) else ():
            if rooms.get(shelf.queue) and shelf.pending:
                calls[place] = min(shelf.pending, rooms[shelf.queue])
        return calls


def running(queue: str, figures: Figures) -> int:
    """How many tasks of a queue run now, over all workers."""
    found = figures.queues.get(queue)
    return 0 if found is None else found.counts[RUNNING]


def available(shelves: Sequence[Shelf], rooms: Mapping[str, int]) -> int:
    """How many tasks can be taken from these shelves, when so many may be of some queues."""
    if not rooms:
        return sum(shelf.pending for shelf in shelves)
    pending: dict[str, int] = {}
    for shelf in shelves:
        pending[shelf.queue] = pending.get(shelf.queue, 0) + shelf.pending
    return sum(min(count, rooms.get(queue, count)) for queue, count in pending.items())


def take(
    ready: Ready, worker: Worker, shelves: Sequence[Shelf], limit: int, wall: float, rooms: dict[str, int]
) -> list[Task]:
    """Take up to ``limit`` tasks from these shelves in the order that the worker asked for.

    ``rooms``: for some queues, how many may be taken; what is taken is subtracted there.
    """
    if worker.queue_order == STRICT:
        return _strict(ready, worker, shelves, limit, wall, rooms)
    if worker.queue_order == FAIR:
        return _fair(ready, worker, shelves, limit, wall, rooms)
    return ready.take(shelves, limit, wall, rooms)


def _strict(
    ready: Ready, worker: Worker, shelves: Sequence[Shelf], limit: int, wall: float, rooms: dict[str, int]
) -> list[Task]:
    taken: list[Task] = []
    queues = _by_queue(shelves)
    for name in worker.queues_named:
        if name in queues and len(taken) < limit:
            taken += ready.take(queues[name], limit - len(taken), wall, rooms)
    return taken


def _fair(
    ready: Ready, worker: Worker, shelves: Sequence[Shelf], limit: int, wall: float, rooms: dict[str, int]
) -> list[Task]:
    """Deal out from queue to queue, beginning after the one that came last; who has none left is out of the round."""
    queues = _by_queue(shelves)
    turns = _turns(worker, queues)
    dealt: dict[str, list[Task]] = {name: [] for name in turns}
    left = limit
    while turns and left:
        share, more = max(1, left // len(turns)), []
        for name in turns:
            found = ready.take(queues[name], min(share, left), wall, rooms)
            dealt[name] += found
            left -= len(found)
            if len(found) == share:
                more.append(name)
        turns = more
    taken = [task for round in zip_longest(*dealt.values()) for task in round if task is not None]
    if taken:
        worker.turn = taken[-1].queue
    return taken


def _turns(worker: Worker, queues: Collection[str]) -> list[str]:
    """These queues from the one on whose turn it is: in the order in which the worker named them, else by name."""
    names = worker.queues_named or tuple(sorted({*queues, worker.turn}))
    start = names.index(worker.turn) + 1 if worker.turn in names else 0
    return [name for name in (*names[start:], *names[:start]) if name in queues]


def _by_queue(shelves: Sequence[Shelf]) -> dict[str, list[Shelf]]:
    found: dict[str, list[Shelf]] = {}
    for shelf in shelves:
        found.setdefault(shelf.queue, []).append(shelf)
    return found
