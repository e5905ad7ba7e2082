"""Workers that wait for tasks: who is woken when some become pending.

Each waiting `reserve` has a condition of its own, and new tasks wake no more of them than there are tasks: a crowd that
wakes for one task costs more than the task. A call must not come to nothing while others wait: workers that may not
take tasks now (silent, suspended, leaving) are not called, and who finds that it cannot after all hands its call on.
All methods are called with the queue's lock held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from taskq.queue.leases import Worker

_ALL = None
"""Where workers sit that serve every queue."""


class Seat:
    """One waiting `reserve`."""

    __slots__ = ("called", "condition", "worker")

    def __init__(self, lock: threading.Lock, worker: Worker) -> None:
        self.condition = threading.Condition(lock)
        self.worker = worker
        self.called = False

    def call(self) -> None:
        """Wake it."""
        self.called = True
        self.condition.notify()


class WaitingRoom:
    """All waiting `reserve` calls, by the queues that they serve, in the order in which they came.

    ``may_reserve`` tells whether a worker may take tasks now.
    """

    def __init__(self, lock: threading.Lock, may_reserve: Callable[[Worker], bool]) -> None:
        self._lock = lock
        self._may_reserve = may_reserve
        self._seats: dict[str | None, dict[Seat, None]] = {}

    def wait(self, worker: Worker, timeout: float) -> bool:
        """Wait until this worker is called, at most ``timeout`` seconds; gives whether it was."""
        seat = Seat(self._lock, worker)
        places = worker.queues or (_ALL,)
        for place in places:
            self._seats.setdefault(place, {})[seat] = None
        try:
            seat.condition.wait(timeout)
        finally:
            for place in places:
                del self._seats[place][seat]
                if not self._seats[place]:
                    del self._seats[place]
        return seat.called

    def hand_on(self, worker: Worker) -> None:
        """This worker was called and takes nothing: call another one that could."""
        for place in list(self._seats) if not worker.queues else (_ALL, *worker.queues):
            for seat in self._seats.get(place, ()):
                if not seat.called and seat.worker.types & worker.types and self._may_reserve(seat.worker):
                    seat.call()
                    return

    def rivals(self, worker: Worker) -> int:
        """How many others wait for the same queues; it may count one twice that serves several of them."""
        if not worker.queues:
            return sum(map(len, self._seats.values()))
        return sum(len(self._seats.get(place, ())) for place in (_ALL, *worker.queues))

    def wake(self, ready: Mapping[tuple[str, str], int]) -> None:
        """Tasks have become pending, so many by (queue, type): call as many workers that serve them."""
        for (queue, kind), count in ready.items():
            left = count
            for place in (_ALL, queue):
                for seat in self._seats.get(place, ()):
                    if left <= 0:
                        break
                    if not seat.called and kind in seat.worker.types and self._may_reserve(seat.worker):
                        seat.call()
                        left -= 1

    def recall(self, incarnation: str) -> None:
        """Call the waiting calls of one worker: something about itself has changed."""
        for seats in self._seats.values():
            for seat in seats:
                if seat.worker.incarnation == incarnation:
                    seat.call()

    def recall_all(self) -> None:
        """Call everybody."""
        for seats in self._seats.values():
            for seat in seats:
                seat.call()
