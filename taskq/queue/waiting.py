"""Workers that wait for tasks: who is woken when some become pending.

Each waiting `reserve` has a condition of its own, and new tasks wake no more of them than there are tasks: a crowd that
wakes for one task costs more than the task. A call must not come to nothing while others wait: workers that may not
take tasks now (silent, suspended, leaving) are not called, and who finds that it cannot after all hands its call on.
All methods are called with the queue's lock held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from taskq import threads
from taskq.queue.leases import Worker
from taskq.queue.ready import Shelf

_ALL = None
"""Where workers sit that serve every queue."""


class Seat:
    """One waiting `reserve`."""

    __slots__ = ("called", "condition", "worker")

    def __init__(self, lock: threads.Lock, worker: Worker) -> None:
        self.condition = threads.condition(lock)
        self.worker = worker
        self.called = False

    def call(self) -> None:
        """Wake it."""
        self.called = True
        self.condition.notify()


Group = dict[Seat, None]
"""Seats that serve the same types, in the order in which they were taken."""


class WaitingRoom:
    """All waiting `reserve` calls, by the queues and types that they serve: those who could not take a task anyway cost
    nothing, however many they are.

    ``may_reserve`` tells whether a worker may take tasks now.
    """

    def __init__(self, lock: threads.Lock, may_reserve: Callable[[Worker], bool]) -> None:
        self._lock = lock
        self._may_reserve = may_reserve
        self._places: dict[str | None, dict[frozenset[str], Group]] = {}

    def wait(self, worker: Worker, timeout: float) -> bool:
        """Wait until this worker is called, at most ``timeout`` seconds; gives whether it was."""
        seat = Seat(self._lock, worker)
        places, types = _places(worker), worker.types  # as they are now: it may attach again meanwhile
        for place in places:
            self._places.setdefault(place, {}).setdefault(types, {})[seat] = None
        try:
            seat.condition.wait(timeout)
        finally:
            for place in places:
                self._leave(seat, place, types)
        return seat.called

    def _leave(self, seat: Seat, place: str | None, types: frozenset[str]) -> None:
        groups = self._places[place]
        del groups[types][seat]
        if not groups[types]:
            del groups[types]
        if not groups:
            del self._places[place]

    def seats(self) -> list[Seat]:
        """All that are taken; one that serves several queues comes several times."""
        return [seat for place in self._places for seat in self._at(place)]

    def _at(self, place: str | None) -> Iterator[Seat]:
        for group in self._places.get(place, {}).values():
            yield from group

    def _serving(self, queue: str, kind: str) -> Iterator[Group]:
        for place in (_ALL, queue):
            for types, group in self._places.get(place, {}).items():
                if kind in types:
                    yield group

    def hand_on(self, worker: Worker) -> None:
        """This worker was called and takes nothing: call another one that could."""
        for place in list(self._places) if not worker.queues else (_ALL, *_places(worker)):
            for seat in self._at(place):
                if not seat.called and seat.worker.types & worker.types and self._may_reserve(seat.worker):
                    seat.call()
                    return

    def rivals(self, shelves: Sequence[Shelf]) -> int:
        """How many wait that serve one of these shelves; it may count one twice that serves several queues."""
        wanted: dict[str | None, set[str]] = {}
        for shelf in shelves:
            for place in (_ALL, shelf.queue):
                wanted.setdefault(place, set()).add(shelf.type)
        return sum(
            len(group)
            for place, kinds in wanted.items()
            for types, group in self._places.get(place, {}).items()
            if not kinds.isdisjoint(types)
        )

    def wake(self, ready: Mapping[tuple[str, str], int]) -> None:
        """Tasks have become pending, so many by (queue, type): call as many workers that serve them."""
        for (queue, kind), count in ready.items():
            left = count
            for group in self._serving(queue, kind):
                for seat in group:
                    if left <= 0:
                        break
                    if not seat.called and self._may_reserve(seat.worker):
                        seat.call()
                        left -= 1

    def recall(self, incarnation: str) -> None:
        """Call the waiting calls of one worker: something about itself has changed."""
        for seat in self.seats():
            if seat.worker.incarnation == incarnation:
                seat.call()

    def recall_all(self) -> None:
        """Call everybody."""
        for seat in self.seats():
            seat.call()


def _places(worker: Worker) -> tuple[str | None, ...]:
    """The queues that a worker serves, each once and always in the same order."""
    return tuple(dict.fromkeys(worker.queues_named)) or (_ALL,)
