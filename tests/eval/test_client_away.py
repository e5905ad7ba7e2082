"""The Python client where it has to wait: while its manager is away or comes back, and until something is forgotten."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster import wait_until
from here import Here

from taskq import errors
from taskq.builtin_tasks import compute, sleep
from taskq.client import Client
from taskq.results import TaskHandle
from taskq.service import MAX_BATCH
from taskq.shapes import Finished
from taskq.stores.memory import MemoryStore
from taskq.wire.client import RemoteQueue


def test_handles_survive_a_restart_of_the_manager(here: Here) -> None:
    here.worker()
    q, other = here.client(), here.client()
    handles = q.map(sleep, [0.01] * 100)
    foreign = other.handle(handles[-1].id)
    done: list[TaskHandle[float]] = []
    threads = [
        threading.Thread(target=lambda: done.extend(q.as_completed(handles, 60))),
        threading.Thread(target=lambda: foreign.result(60)),
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: any(handle.outcome for handle in handles))
    here.end()
    here.begin()
    more = q.submit(compute, "double", 3)
    for thread in threads:
        thread.join()
    assert len(done) == 100
    assert foreign.result(0) == 0.01
    assert more.result(20) == 6


def test_waiting_for_a_manager_that_is_away_is_patient(here: Here) -> None:
    attempts = []

    def connect() -> RemoteQueue:
        attempts.append(time.monotonic())
        return RemoteQueue(here.join)

    here.end()
    with Client.over(connect) as q, pytest.raises(TimeoutError):
        q.handle(1).result(1.0)
    assert len(attempts) < 30
    here.begin()


def test_result_waits_through_the_managers_absence_until_its_own_timeout(here: Here) -> None:
    q = here.client(connect_timeout=0.2)
    handle = q.submit(sleep, 60)
    other = here.client(connect_timeout=0.2).handle(handle.id)
    with pytest.raises(TimeoutError):
        handle.result(0.05)
    here.end()
    with pytest.raises(TimeoutError):
        handle.result(0.2)
    with pytest.raises(TimeoutError):
        other.result(0.2)
    with pytest.raises(errors.ManagerUnavailable):
        q.submit(sleep, 1)
    here.begin()
    assert handle.state() == "pending"


def test_waiting_by_id_for_more_than_a_batch(here: Here) -> None:
    mine, yours = here.client(), here.client()
    handles = mine.map(compute, ["double"] * (MAX_BATCH + 10), range(MAX_BATCH + 10))
    others = [yours.handle(handle.id) for handle in handles]
    here.worker()
    assert len(list(yours.as_completed(others, 60))) == len(others)


def test_a_manager_that_comes_back_on_another_port_is_found_by_its_join_file(here: Here, tmp_path: Path) -> None:
    file = tmp_path / "join.json"
    file.touch(mode=0o600)
    file.write_text(here.join.to_json())
    with Client(file) as q:
        handle = q.submit(sleep, 0)
        with pytest.raises(TimeoutError):
            handle.result(0.05)
        before, here.port = here.port, 0
        here.end()
        here.begin()
        assert here.port != before
        file.write_text(here.join.to_json())
        here.worker()
        assert handle.result(20) == 0


def test_another_store_makes_handles_raise_store_changed(here: Here) -> None:
    q = here.client()
    handle = q.submit(sleep, 60)
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            handle.result(30)
        except errors.StoreChanged as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: q._feed._lags)
    here.end()
    here.store = MemoryStore()
    here.begin()
    thread.join()
    assert caught
    for ask in (handle.state, handle.cancel, handle.result):
        with pytest.raises(errors.StoreChanged, match=f"task {handle.id}"):
            ask()
    here.worker()
    assert q.submit(compute, "double", 2).result(10) == 4


@contextmanager
def interrupted(seconds: float) -> Iterator[None]:
    """The block is broken off by a KeyboardInterrupt after so many seconds."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interrupted_wait_leaves_the_client_usable(here: Here) -> None:
    q = here.client()
    handle = q.submit(sleep, 0.1)
    with interrupted(0.1):
        handle.result()
    with interrupted(0.1):
        list(q.as_completed([handle]))
    here.worker()
    assert handle.result(10) == 0.1
    assert q.submit(compute, "double", 2).result(10) == 4


def test_after_an_interrupted_call_another_store_is_noticed(here: Here) -> None:
    id = here.client().submit(sleep, 60).id
    handle = here.client().handle(id)
    assert handle.state() == "pending"
    with interrupted(0.2):
        handle.result()
    here.end()
    here.store = MemoryStore()
    here.begin()
    with pytest.raises(errors.StoreChanged):
        handle.result(5)


class LagsOnce(RemoteQueue):
    """A connection whose feed drops the first news and says so."""

    def finished(self, client: int, cursor: int, timeout: float) -> Finished:
        reply = super().finished(client, cursor, timeout)
        if reply.outcomes and not getattr(self, "lagged", False):
            self.lagged = True
            return Finished(reply.cursor, True, ())
        return reply


def test_news_that_was_dropped_is_asked_for(here: Here) -> None:
    with Client.over(lambda: LagsOnce(here.join)) as q:
        handles = q.map(compute, ["double"] * 5, range(5))
        watch = q.as_completed(handles, 20)
        with pytest.raises(TimeoutError):
            handles[0].result(0.2)
        here.worker()
        assert len(list(watch)) == 5


def test_dropped_handles_are_forgotten(here: Here) -> None:
    q = here.client()
    kept = q.submit(sleep, 60)
    q.map(sleep, [60] * 100)
    gc.collect()
    assert list(q._feed._open) == [kept.id]


def test_a_client_that_nobody_closes_ends_with_its_last_handle(here: Here) -> None:
    here.worker()

    def standing() -> tuple[int, int]:
        """Connections at the manager, and threads of clients that wait for news."""
        names = [thread.name for thread in threading.enumerate()]
        return len(here.server._server._connections), names.count("taskq-results")

    other_id = here.client().submit(sleep, 0.2).id
    connections, _ = standing()
    q: Client | None = Client(here.join)
    handle: TaskHandle[Any] | None = q.submit(sleep, 0.2)
    other: TaskHandle[Any] | None = q.handle(other_id)
    q = None
    assert (handle.result(10), other.result(10)) == (0.2, 0.2)
    assert standing() == (connections + 3, 1)
    handle = other = None
    # The manager notices the end of a connection when the poll that waits there is answered.
    wait_until(lambda: standing() in ((connections, 0), (connections + 1, 0)))
