"""Group commit, feeds and waiting: what the queue's threads do to each other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from taskq.clock import SystemClock
from taskq.config import QueueSettings
from taskq.errors import OutcomeUnknown, ShuttingDown, StoreFailed
from taskq.queue.job_queue import JobQueue
from taskq.service import ACK, NACK, Outcome
from taskq.stores.base import Batch
from taskq.stores.memory import MemoryStore

POOL: Any = {"id": "pool", "name": "pool", "host": "h", "pid": 1, "local": None}


class GatedStore(MemoryStore):
    """A store whose disk is as slow, or as broken, as the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.broken = False
        self.batches: list[Batch] = []

    def write(self, batch: Batch) -> None:
        self.entered.release()
        assert self.gate.wait(10)
        if self.broken:
            raise StoreFailed("the disk is gone")
        self.batches.append(batch)
        super().write(batch)


@pytest.fixture
def store() -> GatedStore:
    return GatedStore()


@pytest.fixture
def failures() -> list[BaseException]:
    return []


@pytest.fixture
def queue(store: GatedStore, failures: list[BaseException]) -> Iterator[JobQueue]:
    queue = JobQueue(store, SystemClock(), QueueSettings(), failures.append)
    queue.open()
    yield queue
    store.gate.set()
    queue.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def item(kind: str = "x", **options: Any) -> Any:
    from taskq.queue.task import NewTask

    return NewTask(kind, b"p", **options)


def join(queue: JobQueue, name: str = "w", types: tuple[str, ...] = ("x",)) -> int:
    info: Any = {
        **{"incarnation": name, "pool": POOL, "name": name, "host": "h", "pid": 2, "threads": 4, "queues": ()},
        "types": [
            {"name": t, "parameters": (), "queue": "default", "max_retries": 3, "backoff": 1.0, "timeout": None}
            for t in types
        ],
    }
    return queue.attach(info, ())["session"]


def until(condition: Callable[[], object]) -> None:
    waited = threading.Event()
    for _ in range(2_000):
        if condition():
            return
        waited.wait(0.005)
    raise AssertionError("it did not come about within 10 s")


def test_who_comes_during_a_commit_is_in_the_next_one_together(
    queue: JobQueue, store: GatedStore, threads: ThreadPoolExecutor
) -> None:
    store.gate.clear()
    first = threads.submit(queue.submit, 1, 1, [item()])
    assert store.entered.acquire(timeout=10)
    others = [threads.submit(queue.submit, client, 1, [item()]) for client in range(2, 12)]
    until(lambda: queue._commit.mark == 11)
    assert not first.done() and not any(other.done() for other in others), "a reply overtook its commit"
    store.gate.set()
    ids = [list(call.result(10).ids) for call in (first, *others)]
    assert sorted(ids) == [[number] for number in range(1, 12)]
    assert [len(batch.new) for batch in store.batches] == [1, 10]
    assert [len(batch.calls) for batch in store.batches] == [1, 10]


def test_a_task_that_finishes_before_it_was_written_as_running_is_written_once(
    queue: JobQueue, store: GatedStore
) -> None:
    session = join(queue)
    queue.submit(1, 1, [item()])
    (task,) = queue.reserve("w", session, 1, 0, (), 1.0).tasks
    queue.report("w", session, [(ACK, task.id, task.run, b"r", 0.1)])
    rows = [row for batch in store.batches for row in (*batch.new, *batch.changed)]
    assert [(row.id, row.state) for row in rows] == [(1, 1), (1, 4)]
    assert not queue._state.tasks, "a final record leaves memory once it is stored"


def test_a_hand_out_is_written_when_its_task_still_runs_after_two_rounds(queue: JobQueue, store: GatedStore) -> None:
    """Other commits leave it out, since most tasks of a busy queue end before it is worth a row."""
    session = join(queue)
    queue.submit(1, 1, [item(), item()])
    slow, quick = queue.reserve("w", session, 2, 0, (), 1.0).tasks
    queue.report("w", session, [(ACK, quick.id, quick.run, b"r", 0.1)])
    queue.tick()
    assert [(row.id, row.state) for batch in store.batches for row in batch.changed] == [(quick.id, 4)]
    queue.tick()
    assert [(row.id, row.state) for batch in store.batches for row in batch.changed] == [(quick.id, 4), (slow.id, 3)]
    written = len(store.batches)
    queue.tick()
    queue.tick()
    assert len(store.batches) == written, "nothing is written twice"


def test_whoever_is_told_that_a_task_runs_can_rely_on_it(queue: JobQueue, store: GatedStore) -> None:
    session = join(queue)
    queue.submit(1, 1, [item()])
    (task,) = queue.reserve("w", session, 1, 0, (), 1.0).tasks
    assert [told.state for told in queue.wait([task.id], 0)] == ["running"]
    assert store.get([task.id])[task.id].state == 3


def test_a_hand_out_waits_for_the_submit_that_it_hands_out(
    queue: JobQueue, store: GatedStore, threads: ThreadPoolExecutor
) -> None:
    session = join(queue)
    assert store.entered.acquire(timeout=10)
    store.gate.clear()
    submit = threads.submit(queue.submit, 1, 1, [item()])
    assert store.entered.acquire(timeout=10)
    reserve = threads.submit(queue.reserve, "w", session, 1, 0, (), 10.0)
    until(lambda: queue._state.leases.workers["w"].running)
    assert not reserve.done(), "a task left that might not be on disk"
    store.gate.set()
    assert [task.id for task in reserve.result(10).tasks] == list(submit.result(10).ids)


def test_a_failed_write_is_told_to_all_that_wait_and_nothing_is_accepted_any_more(
    queue: JobQueue, store: GatedStore, threads: ThreadPoolExecutor, failures: list[BaseException]
) -> None:
    store.gate.clear()
    store.broken = True
    calls = [threads.submit(queue.submit, 1, 1, [item()])]
    assert store.entered.acquire(timeout=10)
    calls += [threads.submit(queue.submit, client, 1, [item()]) for client in (2, 3)]
    until(lambda: queue._commit.mark == 3)
    store.gate.set()
    for call in calls:
        with pytest.raises(OutcomeUnknown):
            call.result(10)
    assert [str(failure) for failure in failures] == ["the disk is gone"], "the manager is told once"
    with pytest.raises(OutcomeUnknown):
        queue.submit(4, 1, [item()])


def test_twins_of_one_call_get_the_same_ids_though_they_come_together(
    queue: JobQueue, store: GatedStore, threads: ThreadPoolExecutor
) -> None:
    store.gate.clear()
    twins = [threads.submit(queue.submit, 1, 1, [item(), item(key="k")]) for _ in range(8)]
    assert store.entered.acquire(timeout=10)
    store.gate.set()
    assert {tuple(twin.result(10).ids) for twin in twins} == {(1, 2)}
    assert len(queue._state.tasks) == 2


def test_a_submit_wakes_no_more_workers_than_it_brings_tasks(queue: JobQueue, threads: ThreadPoolExecutor) -> None:
    sessions = {name: join(queue, name) for name in "abcd"}
    calls = {n: threads.submit(queue.reserve, n, session, 4, 0, (), 15.0) for n, session in sessions.items()}
    until(lambda: sum(map(len, queue._waiting._seats.values())) == 4)
    queue.submit(1, 1, [item(), item()])
    until(lambda: sum(call.done() for call in calls.values()) == 2)
    assert sum(map(len, queue._waiting._seats.values())) == 2, "others woke for nothing"
    served = [call.result(10) for call in calls.values() if call.done()]
    assert sorted(task.id for reply in served for task in reply.tasks) == [1, 2], "each got one"
    for name, session in sessions.items():
        queue.drain(name, session)
    assert all(call.result(10).closed or call.result(10).tasks for call in calls.values())


def test_a_waiting_reserve_of_a_dead_or_re_attached_worker_ends_with_nothing(
    queue: JobQueue, threads: ThreadPoolExecutor
) -> None:
    for end in (lambda: join(queue), lambda: queue.child_died("pool", "w", "signal 9", (), True)):
        session = join(queue)
        call = threads.submit(queue.reserve, "w", session, 1, 0, (), 15.0)
        until(lambda: queue._waiting._seats)
        end()
        assert call.result(10).closed and not call.result(10).tasks


def test_the_feed_brings_each_outcome_once_and_only_after_its_commit(
    queue: JobQueue, store: GatedStore, threads: ThreadPoolExecutor
) -> None:
    session = join(queue)
    begun = queue.finished(7, 0, 0.0)
    assert begun.lagged and not begun.outcomes, "a new feed: what is outstanding must be asked for by id"
    (first, second) = queue.submit(7, 1, [item(), item()]).ids
    queue.submit(8, 1, [item()])
    tasks = queue.reserve("w", session, 3, 0, (), 1.0).tasks
    listening = threads.submit(queue.finished, 7, begun.cursor, 15.0)
    while store.entered.acquire(blocking=False):
        pass
    store.gate.clear()
    reporting = threads.submit(
        queue.report, "w", session, [(ACK, task.id, task.run, b"r%d" % task.id, 0.1) for task in tasks]
    )
    assert store.entered.acquire(timeout=10)
    assert not listening.done() and not reporting.done()
    store.gate.set()
    news = listening.result(10)
    expected = [Outcome(number, "completed", b"r%d" % number, None, 0, 0, "w") for number in (first, second)]
    assert list(news.outcomes) == expected and not news.lagged
    assert queue.finished(7, begun.cursor, 0.0) == news, "an answer that was lost can be asked for again"
    assert not queue.finished(7, news.cursor, 0.0).outcomes


def test_who_falls_behind_the_feed_is_told_so(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq.queue.feeds.KEPT", 10)
    session = join(queue)
    cursor = queue.finished(7, 0, 0.0).cursor
    queue.submit(7, 1, [item()] * 15)
    tasks = queue.reserve("w", session, 15, 0, (), 1.0).tasks
    queue.report("w", session, [(ACK, task.id, task.run, b"r", 0.1) for task in tasks])
    news = queue.finished(7, cursor, 0.0)
    assert news.lagged and not news.outcomes
    assert {outcome.state for outcome in queue.wait([task.id for task in tasks], 0)} == {"completed"}


def test_waiting_for_tasks_of_others_ends_with_the_first(queue: JobQueue, threads: ThreadPoolExecutor) -> None:
    session = join(queue)
    first, second = queue.submit(1, 1, [item(), item()]).ids
    call = threads.submit(queue.wait, [first, second], 15.0)
    until(lambda: queue._feeds._watched)
    tasks = queue.reserve("w", session, 2, 0, (), 1.0).tasks
    queue.report("w", session, [(ACK, tasks[1].id, tasks[1].run, b"r", 0.1)])
    assert [outcome.id for outcome in call.result(10)] == [second]
    assert not queue._feeds._watched
    assert [outcome.state for outcome in queue.wait([first, second, 99], 0)] == ["running", "completed", "unknown"]
    assert [outcome.id for outcome in queue.wait([first, 99], 15.0)] == [99]


def test_stopping_wakes_all_that_wait(queue: JobQueue, threads: ThreadPoolExecutor) -> None:
    session = join(queue)
    (number,) = queue.submit(1, 1, [item("nobody serves this")]).ids
    cursor = queue.finished(1, 0, 0.0).cursor
    calls = [
        threads.submit(queue.reserve, "w", session, 1, 0, (), 15.0),
        threads.submit(queue.finished, 1, cursor, 15.0),
        threads.submit(queue.wait, [number], 15.0),
    ]
    until(lambda: queue._waiting._seats and queue._feeds._watched and queue._feeds._feeds[1].waiting)
    queue.shut()
    for call in calls:
        with pytest.raises(ShuttingDown):
            call.result(10)


def test_a_reply_about_many_tasks_stays_small(queue: JobQueue, store: GatedStore) -> None:
    session = join(queue)
    ids = queue.submit(1, 1, [item(max_retries=0)] * 500).ids
    tasks = queue.reserve("w", session, 500, 0, (), 1.0).tasks
    error = ("error", "E", "m", "t" * 8_000)
    queue.report("w", session, [(NACK, task.id, task.run, error, -1, 0.1) for task in tasks])
    outcomes = queue.wait(ids, 0)
    assert [outcome.id for outcome in outcomes] == list(ids)
    whole = [outcome for outcome in outcomes if outcome.error == error]
    assert outcomes[: len(whole)] == whole and 100 < len(whole) < 140
    assert all(outcome.error == (*error[:3], "") for outcome in outcomes[len(whole) :])
    assert queue.result(ids[-1]).error == error
