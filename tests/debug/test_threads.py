"""The process is at its limit of threads for a moment: one `start` fails, and what is asked for after it works."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import pytest
from cluster import wait_until
from here import Here

from taskq import errors, threads
from taskq.builtin_tasks import compute
from taskq.callbacks import Callbacks
from taskq.client import Client
from taskq.clock import SystemClock
from taskq.config import Address, Join, PoolSettings, QueueSettings
from taskq.local_pool import LocalPool
from taskq.queue.backups import Backups
from taskq.queue.job_queue import JobQueue
from taskq.stores.memory import MemoryStore
from taskq.stores.sqlite import SqliteStore
from taskq.wire.server import WireServer

NO_THREAD = "can't start new thread"


class Scarce(threads.SystemThreads):
    """Threads of the system; the next one of each name in ``refused`` cannot be started."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    def thread(self, target: Callable[..., object], name: str, *args: object) -> threads.Thread:
        return ScarceThread(self.refused, target=target, args=args, name=name, daemon=True)


class ScarceThread(threading.Thread):
    def __init__(self, refused: list[str], **given: Any) -> None:
        super().__init__(**given)
        self._refused = refused

    def start(self) -> None:
        if self.name in self._refused:
            self._refused.remove(self.name)
            raise RuntimeError(NO_THREAD)
        super().start()


@pytest.fixture
def scarce() -> Iterator[Scarce]:
    made = Scarce()
    before = threads.use(made)
    yield made
    threads.use(before)
    assert not made.refused, "nobody asked for the thread"


# -- a client's --------------------------------------------------------------------------------------------------------


def test_a_result_is_waited_for_again(scarce: Scarce, here: Here) -> None:
    here.worker()
    handle = here.client().submit(compute, "double", 2)
    scarce.refused = ["taskq-results"]
    with pytest.raises(RuntimeError, match=NO_THREAD):
        handle.result(10)
    assert handle.result(10) == 4


def test_a_client_that_could_not_wait_is_closed(scarce: Scarce, here: Here) -> None:
    q = Client(here.join)
    handle = q.submit(compute, "double", 2)
    scarce.refused = ["taskq-results"]
    with pytest.raises(RuntimeError, match=NO_THREAD):
        handle.result(10)
    q.close()
    with pytest.raises(errors.TaskqError, match="closed"):
        handle.result(10)


@pytest.mark.parametrize(
    ("own", "name"), [(True, "taskq-callbacks"), (False, "taskq-callbacks"), (False, "taskq-others")]
)
def test_a_callback_that_was_not_taken_is_added_again_and_called_once(
    scarce: Scarce, here: Here, own: bool, name: str
) -> None:
    handle = here.client().submit(compute, "double", 2)
    watched = handle if own else here.client().handle(handle.id)
    called: SimpleQueue[int] = SimpleQueue()
    scarce.refused = [name]
    with pytest.raises(RuntimeError, match=NO_THREAD):
        watched.add_done_callback(lambda handle: called.put(1))
    watched.add_done_callback(lambda handle: called.put(2))
    here.worker()
    assert called.get(timeout=10) == 2
    assert handle.result(10) == 4
    assert called.empty(), "who was told that it failed is not called"


def test_callbacks_that_have_ended_start_no_thread() -> None:
    callbacks = Callbacks()
    callbacks.end()
    callbacks.add("handle", print)
    assert not callbacks


def test_a_pipeline_goes_on_with_the_next_task(scarce: Scarce, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq.pipeline.MAX_BATCH", 2)
    here.worker()
    scarce.refused = ["taskq-pipeline"]
    handles = []
    with here.client().pipeline() as p:
        handles += [p.submit(compute, "double", number) for number in range(2)]
        with pytest.raises(RuntimeError, match=NO_THREAD):
            p.submit(compute, "double", 2)
        handles += [p.submit(compute, "double", number) for number in range(2, 12)]
    assert [handle.result(10) for handle in handles] == [2 * number for number in range(12)]


def test_a_pipeline_without_a_thread_is_left(scarce: Scarce, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq.pipeline.MAX_BATCH", 2)
    scarce.refused = ["taskq-pipeline"]
    with pytest.raises(RuntimeError, match=NO_THREAD), here.client().pipeline() as p:
        for number in range(3):
            p.submit(compute, "double", number)


# -- a queue's ---------------------------------------------------------------------------------------------------------


class Copied(MemoryStore):
    """Notes which copies are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []

    def backup(self, target: Path, progress: Callable[[int, int], None]) -> None:
        progress(7, 7)
        self.copies.append(target.name)


def test_a_backup_that_did_not_begin_begins_when_asked_again(scarce: Scarce) -> None:
    store = Copied()
    backups = Backups(store)
    assert backups.ask("/there/first", 1) == (True, 7, 7)
    scarce.refused = ["backup"]
    with pytest.raises(errors.Busy, match=NO_THREAD) as caught:
        backups.ask("/there/second", 2)
    assert caught.value.hint
    assert backups.ask("/there/first", 1) == (True, 7, 7), "what is known of the one before is still known"
    assert backups.ask("/there/second", 2) == (True, 7, 7)
    assert store.copies == ["first", "second"]
    backups.stop()


def test_a_queue_whose_backup_did_not_begin_closes_its_store(scarce: Scarce, tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    queue = JobQueue(SqliteStore(path), SystemClock(), QueueSettings())
    queue.open()
    queue.start()
    scarce.refused = ["backup"]
    with pytest.raises(errors.Busy, match=NO_THREAD):
        queue.backup(str(tmp_path / "copy.sqlite"), 1)
    queue.close()
    again = SqliteStore(path)
    again.open()
    again.close()


@pytest.mark.parametrize("name", ["housekeeper", "cleaner"])
def test_a_queue_that_did_not_start_is_started_again_or_closed(scarce: Scarce, name: str) -> None:
    before = threading.active_count()
    for again in (False, True):
        queue = JobQueue(MemoryStore(), SystemClock(), QueueSettings())
        queue.open()
        scarce.refused = [name]
        with pytest.raises(RuntimeError, match=NO_THREAD):
            queue.start()
        if again:
            queue.start()
            assert threading.active_count() == before + 2, "none of them twice"
        queue.close()
        wait_until(lambda: threading.active_count() == before, what="its threads to end")


# -- a manager's -------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError(NO_THREAD)

    monkeypatch.setattr(threading.Thread, "start", start)


def test_a_server_that_did_not_start_gives_its_port_back(no_threads: None) -> None:
    service = cast("Any", JobQueue(MemoryStore(), SystemClock(), QueueSettings()))
    port = 0
    for _ in range(2):
        server = WireServer(service, "127.0.0.1", port, bytes(32))
        port = server.address.port
        with pytest.raises(RuntimeError, match=NO_THREAD):
            server.start()
        server.stop()


def test_a_pool_that_nobody_can_watch_is_killed(
    no_threads: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join = Join((Address("127.0.0.1", 1),), bytes(32))
    pool = LocalPool(join, tmp_path / "join.json", PoolSettings(), "here", lambda code: None)
    monkeypatch.setattr(pool, "_command", lambda: [sys.executable, "-c", "input()"])
    with pytest.raises(RuntimeError, match=NO_THREAD):
        pool.start(0.0)
    assert pool.alive
    pool.kill()
    assert not pool.alive
    assert pool._process is not None and pool._process.stdin is not None
    pool._process.stdin.close()  # which is the watcher's to do
