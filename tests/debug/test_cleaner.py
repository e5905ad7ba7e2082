"""The thread that cleans up: when it works, and that nothing ends it but `stop`."""

from __future__ import annotations

import threading

import pytest

from taskq.clock import FakeClock
from taskq.config import QueueSettings
from taskq.errors import StoreFailed
from taskq.queue import cleaner
from taskq.queue.cleaner import Cleaner
from taskq.queue.job_queue import JobQueue
from taskq.stores.memory import MemoryStore


class Pieces:
    """Work in so many pieces; ``over`` is set after the last one."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.over = threading.Event()

    def __call__(self) -> bool:
        self.left -= 1
        if self.left <= 0:
            self.over.set()
        return self.left > 0


@pytest.fixture
def rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks by itself once in a blue moon."""
    monkeypatch.setattr(cleaner, "PERIOD", 3600.0)


@pytest.mark.usefixtures("rare")
def test_it_comes_when_called_and_does_one_piece_after_the_other() -> None:
    pieces = Pieces(20)
    thread = Cleaner(pieces)
    thread.start()
    assert not pieces.over.wait(0.05) and pieces.left == 20
    thread.call()
    assert pieces.over.wait(10)
    thread.stop()
    assert pieces.left == 0


def test_it_looks_by_itself_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaner, "PERIOD", 0.01)
    looked = threading.Semaphore(0)

    def look() -> bool:
        looked.release()
        return False

    thread = Cleaner(look)
    thread.start()
    assert all(looked.acquire(timeout=10) for _ in range(3))
    thread.stop()


@pytest.mark.usefixtures("rare")
def test_it_stops_between_two_pieces() -> None:
    begun = threading.Event()

    def endless() -> bool:
        begun.set()
        return True

    thread = Cleaner(endless)
    thread.start()
    thread.call()
    assert begun.wait(10)
    thread.stop()


@pytest.mark.parametrize("error", [StoreFailed("the disk is gone"), ZeroDivisionError()], ids=["ours", "a bug"])
def test_an_error_does_not_end_it(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(cleaner, "PERIOD", 0.01)
    pieces = Pieces(2)

    def fail_once() -> bool:
        if pieces() and pieces.left == 1:
            raise error
        return False

    thread = Cleaner(fail_once)
    thread.start()
    assert pieces.over.wait(10)
    thread.stop()


@pytest.mark.usefixtures("rare")
def test_what_people_purge_is_given_back_at_once() -> None:
    class Shrinking(MemoryStore):
        shrunk = threading.Event()

        def shrink(self) -> bool:
            self.shrunk.set()
            return False

    store = Shrinking()
    queue = JobQueue(store, FakeClock(), QueueSettings())
    queue.open()
    queue.start()
    assert not store.shrunk.wait(0.05)
    queue.purge(["completed"], 0.0)
    assert store.shrunk.wait(10)
    queue.close()
