"""Group commit, feeds and waiting: what the queue's threads do to each other."""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest

from taskq.clock import SystemClock
from taskq.config import QueueSettings
from taskq.errors import KeyConflict, OutcomeUnknown, ShuttingDown, StorageFull, StoreFailed
from taskq.queue.housekeeper import OVERSLEPT, ROUND, Housekeeper
from taskq.queue.job_queue import JobQueue
from taskq.queue.task import Task
from taskq.queue.task_row import TaskRow
from taskq.queue.waiting import Seat
from taskq.shapes import ACK, NACK, SNOOZE, Outcome
from taskq.stores.base import Batch, KeyRow
from taskq.stores.memory import MemoryStore

UNIQUE = {"unique": b"u", "unique_in": ("pending",)}
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
    from taskq.queue.terms import new_task

    return new_task(kind, b"p", **options)


def join(queue: JobQueue, name: str = "w", types: tuple[str, ...] = ("x",), queues: tuple[str, ...] = ()) -> int:
    info: Any = {
        **{"incarnation": name, "pool": POOL, "name": name, "host": "h", "pid": 2, "threads": 4, "queues": queues},
        "types": [
            {"name": t, "parameters": (), "queue": "default", "max_retries": 3, "backoff": 1.0, "timeout": None}
            for t in types
        ],
    }
    return queue.attach(info, ())["session"]


def seats(queue: JobQueue) -> list[Seat]:
    with queue._lock:
        return queue._waiting.seats()


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
    until(lambda: len(queue._commit._unwritten.calls) == 10)
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
    assert not wait([reserve], timeout=0.1).done, "a task left that might not be on disk"
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
    until(lambda: len(queue._commit._unwritten.calls) == 2)
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
    assert not wait(twins, timeout=0.1).done, "a twin was told of what may not reach the disk"
    store.gate.set()
    assert {tuple(twin.result(10).ids) for twin in twins} == {(1, 2)}
    assert len(queue._state.tasks) == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"key": "k"}, {"key": "k", "priority": 5}),
        (dict(UNIQUE), {**UNIQUE, "unique_raises": True}),
    ],
    ids=["a key of other content", "a unique twin"],
)
def test_nobody_is_refused_for_a_task_that_may_not_reach_the_disk(
    first: dict[str, Any], second: dict[str, Any], queue: JobQueue, store: GatedStore, threads: ThreadPoolExecutor
) -> None:
    store.gate.clear()
    store.broken = True
    submit = threads.submit(queue.submit, 1, 1, [item(**first)])
    assert store.entered.acquire(timeout=10)
    refused = threads.submit(queue.submit, 2, 1, [item(**second)])
    assert not wait([refused], timeout=0.1).done
    store.gate.set()
    for call in (submit, refused):
        with pytest.raises(OutcomeUnknown):
            call.result(10)


def test_a_full_disk_refuses_new_tasks_and_nothing_else(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    session = join(queue)
    (number,) = queue.submit(1, 1, [item()]).ids
    monkeypatch.setattr(GatedStore, "has_space", lambda self: False)
    queue.look_after_disk()
    with pytest.raises(StorageFull):
        queue.submit(1, 2, [item()])
    assert queue.submit(1, 1, [item()]).ids == [number], "it was accepted while there was room"
    (task,) = queue.reserve("w", session, 1, 0, (), 0.0).tasks
    assert not queue.report("w", session, [(ACK, number, task.run, b"r", 0.1)])
    monkeypatch.undo()
    queue.look_after_disk()
    assert queue.submit(1, 2, [item()]).ids == [number + 1]


def test_a_death_that_is_told_again_is_on_disk_before_the_reply(
    queue: JobQueue, store: GatedStore, threads: ThreadPoolExecutor
) -> None:
    join(queue)
    while store.entered.acquire(blocking=False):
        pass
    store.gate.clear()
    told = [threads.submit(queue.child_died, "pool", "w", "signal 9", (), True, {})]
    assert store.entered.acquire(timeout=10)
    told += [threads.submit(queue.child_died, "pool", "w", "signal 9", (), True, {})]
    assert not wait(told, timeout=0.1).done
    store.gate.set()
    for call in told:
        call.result(10)


def test_keys_are_known_until_they_are_on_disk_however_many_there_are(
    queue: JobQueue, store: GatedStore, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskq.queue.idempotency.KEPT", 2)
    store.gate.clear()
    first = threads.submit(queue.submit, 1, 1, [item(key="k")])
    assert store.entered.acquire(timeout=10)
    others = [threads.submit(queue.submit, n, 1, [item(key=f"{n}-{i}") for i in range(3)]) for n in range(2, 8)]
    until(lambda: len(queue._commit._unwritten.calls) == 6)
    twin = threads.submit(queue.submit, 8, 1, [item(key="k")])
    again = threads.submit(queue.submit, 1, 1, [item(key="k")])
    until(lambda: len(queue._commit._unwritten.calls) == 7)
    store.gate.set()
    assert [list(call.result(10).ids) for call in (first, twin, again)] == [[1], [1], [1]]
    for call in others:
        call.result(10)
    queue.tidy()
    queue.tidy()
    assert queue.submit(9, 1, [item(key="k")]).ids == [1], "the store knows it when nobody else does any more"
    assert not queue._recent.key("2-0")


def test_what_goes_to_disk_during_a_look_into_the_store_is_looked_for_again(
    queue: JobQueue, store: GatedStore, threads: ThreadPoolExecutor
) -> None:
    """A key that is not in the store yet, and forgotten by the time that the lock is had, must not be taken for new."""
    queue.submit(2, 1, [item()])
    looks = []

    class Late(GatedStore):
        def find_keys(self, keys: Sequence[str]) -> dict[str, KeyRow]:
            found = super().find_keys(keys)
            looks.append(found)
            if len(looks) == 1:
                threads.submit(queue.submit, 1, 1, [item(key="k")]).result(10)
                queue.tidy()
                queue.tidy()
            return found

    store.__class__ = Late
    assert queue.submit(2, 2, [item(key="k")]).ids == queue.submit(1, 1, [item(key="k")]).ids
    assert looks[0] == {} and len(queue._state.tasks) == 2


def test_a_call_whose_tasks_were_there_already_is_stored_all_the_same(queue: JobQueue, store: GatedStore) -> None:
    queue.submit(1, 1, [item(key="k")])
    queue.submit(2, 1, [item(key="k")])
    assert store.find_call(2, 1) is not None


def test_a_state_is_told_only_when_it_is_on_disk(
    queue: JobQueue, store: GatedStore, threads: ThreadPoolExecutor
) -> None:
    session = join(queue)
    queue.submit(1, 1, [item()])
    (task,) = queue.reserve("w", session, 1, 0, (), 1.0).tasks
    while store.entered.acquire(blocking=False):
        pass
    store.gate.clear()
    error = ("error", "E", "m", "t")
    report = threads.submit(queue.report, "w", session, [(NACK, task.id, task.run, error, None, 0.1)])
    assert store.entered.acquire(timeout=10)
    asked = [threads.submit(queue.wait, [task.id], 0), threads.submit(queue.result, task.id)]
    assert not wait(asked, timeout=0.1).done, "the write is under way: it may fail"
    store.gate.set()
    assert [outcome.state for outcome in (*asked[0].result(10), asked[1].result(10))] == ["scheduled"] * 2
    report.result(10)


@pytest.mark.parametrize("end", ["re-attached", "dead"])
def test_a_session_that_ends_while_its_hand_out_waits_for_the_disk_gets_nothing(
    queue: JobQueue, store: GatedStore, threads: ThreadPoolExecutor, end: str
) -> None:
    session = join(queue)
    other = join(queue, "other")
    while store.entered.acquire(blocking=False):
        pass
    store.gate.clear()
    submit = threads.submit(queue.submit, 1, 1, [item()])
    assert store.entered.acquire(timeout=10)
    reserve = threads.submit(queue.reserve, "w", session, 1, 0, (), 10.0)
    until(lambda: queue._state.leases.workers["w"].running)
    if end == "dead":
        ending = threads.submit(queue.child_died, "pool", "w", "signal 9", (), True, {})
        until(lambda: "w" not in queue._state.leases.workers)
    else:
        ending = threads.submit(join, queue)
        until(lambda: not queue._state.leases.workers["w"].running)
    store.gate.set()
    ending.result(10)
    assert reserve.result(10) == ((), True)
    assert [task.id for task in queue.reserve("other", other, 1, 0, (), 1.0).tasks] == submit.result(10).ids


def test_a_task_that_is_purged_before_its_payload_was_read_is_left_out(queue: JobQueue, store: GatedStore) -> None:
    session = join(queue)
    (number,) = queue.submit(1, 1, [item()._replace(payload=bytes(5_000))]).ids

    class Late(GatedStore):
        def payloads(self, ids: Sequence[int]) -> dict[int, bytes]:
            queue.child_died("pool", "w", "signal 9", (), True, {})
            queue.cancel([number])
            assert queue.purge(["cancelled"], 0.0) == 1
            return super().payloads(ids)

    store.__class__ = Late
    assert not queue.reserve("w", session, 1, 0, (), 1.0).tasks


def test_a_batch_that_cannot_be_made_loses_no_change(
    queue: JobQueue, store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(tasks: Iterable[Task]) -> list[TaskRow]:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("taskq.queue.commit.to_rows", no_memory)
        with pytest.raises(MemoryError):
            queue.submit(1, 1, [item()])
    (second,) = queue.submit(2, 1, [item()]).ids
    assert queue.submit(1, 1, [item()]).ids == [1] and sorted(store.get([1, second])) == [1, 2]


def test_what_is_expected_during_a_round_is_not_slept_over() -> None:
    """What is recorded after a round has looked, and before it sleeps, is due in time too."""
    rounds: list[float] = []
    again = threading.Event()

    class Rounds:
        def tick(self, meant_at: float) -> float:
            rounds.append(time.monotonic())
            if len(rounds) == 1:
                keeper.expect(0.01)
            else:
                again.set()
            return ROUND

        def look_after_disk(self) -> None: ...

        def tidy(self) -> None: ...

        def monotonic(self) -> float:
            return time.monotonic()

    keeper = Housekeeper(Rounds())
    keeper.start()
    assert again.wait(10)
    keeper.stop()
    assert rounds[1] - rounds[0] < ROUND / 2


@pytest.mark.parametrize("where", ["tick", "look_after_disk"])
def test_a_suspension_is_noticed_wherever_it_falls(where: str) -> None:
    """The clock goes on while the thread stands in the middle of a round, and not only while it sleeps."""
    late: list[float] = []
    over = threading.Event()

    class Rounds:
        now = 0.0

        def tick(self, meant_at: float) -> float:
            late.append(self.now - meant_at)
            self.now += ROUND
            if len(late) == 2:
                self.suspended_in("tick")
            if len(late) >= 3:
                over.set()
            return 0.0

        def look_after_disk(self) -> None:
            if len(late) == 2:
                self.suspended_in("look_after_disk")

        def suspended_in(self, place: str) -> None:
            self.now += 3600.0 if place == where else 0.0

        def tidy(self) -> None: ...

        def monotonic(self) -> float:
            return self.now

    keeper = Housekeeper(Rounds())
    keeper.start()
    assert over.wait(10)
    keeper.stop()
    assert late[0] == 0.0 and late[1] < OVERSLEPT < 3600.0 <= late[2]


def test_tasks_leave_nothing_for_the_garbage_collector(queue: JobQueue) -> None:
    """The manager keeps it from looking through a million tasks, so there must be no cycles."""

    def live(number: int) -> None:
        session = join(queue)
        cursor = queue.finished(7, 0, 0.0).cursor
        items = [item(max_retries=0), item(key=f"k{number}"), item(delay=60.0), item(), item()]
        first, *_, last = queue.submit(7, number, items).ids
        with contextlib.suppress(KeyConflict):
            queue.submit(7, 1000 + number, [item("other", key=f"k{number}")])
        queue.submit(7, number, items)
        tasks = {task.id: task for task in queue.reserve("w", session, 9, 9, ("x",), 0.0).tasks}
        error = ("error", "E", "m", "t")
        queue.report("w", session, [(NACK, first, tasks[first].run, error, None, 0.1), (SNOOZE, last, 1, 0.1)])
        queue.report("w", session, [(SNOOZE, last, tasks[last].run, 0.0)])
        queue.child_died("pool", "w", "signal 9", (), False, {})
        queue.cancel(range(first, last + 1))
        queue.tick()
        queue.wait([first], 1.0)
        queue.finished(7, cursor, 0.0)
        queue.get([first, last])
        queue.snapshot()
        queue.purge(["cancelled", "failed"], 0.0)
        queue._state.leases._dead.clear()

    live(1)
    while gc.collect():  # what earlier tests left: one pass may set free what only the next one finds
        pass
    gc.disable()
    try:
        for number in range(2, 12):
            live(number)
        assert not queue._state.tasks
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_nobody_waits_for_a_line_of_the_log(queue: JobQueue) -> None:
    """A terminal may stand still; whoever writes to it must not hold the lock."""
    events: list[str] = []

    class Terminal(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            assert not queue._lock.locked()
            events.append(getattr(record, "taskq_event", ""))

    terminal, logger = Terminal(), logging.getLogger("taskq.queue")
    logger.addHandler(terminal)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        session = join(queue)
        first, second, third = queue.submit(1, 1, [item(max_retries=0), item(), item()]).ids
        tasks = {task.id: task for task in queue.reserve("w", session, 3, 0, (), 1.0).tasks}
        error = ("error", "E", "m", "t")
        reports = [(NACK, number, tasks[number].run, error, None, 0.1) for number in (first, second)]
        queue.report("w", session, reports)
        queue.child_died("pool", "w", "signal 9", [(third, tasks[third].run)], True, {})
        queue.cancel([third])
        queue.tick()
    finally:
        logger.removeHandler(terminal)
        logger.setLevel(level)
    assert events == [
        *["worker_joined", "task_submitted", "task_submitted", "task_submitted"],
        *["task_started", "task_started", "task_started", "task_failed", "task_retried"],
        *["task_retried", "worker_left", "task_cancelled"],
    ]


def test_a_submit_wakes_no_more_workers_than_it_brings_tasks(queue: JobQueue, threads: ThreadPoolExecutor) -> None:
    sessions = {name: join(queue, name) for name in "abcd"}
    calls = {n: threads.submit(queue.reserve, n, session, 4, 0, (), 15.0) for n, session in sessions.items()}
    until(lambda: len(seats(queue)) == 4)
    queue.submit(1, 1, [item(), item()])
    until(lambda: sum(call.done() for call in calls.values()) == 2)
    assert len(seats(queue)) == 2, "others woke for nothing"
    served = [call.result(10) for call in calls.values() if call.done()]
    assert sorted(task.id for reply in served for task in reply.tasks) == [1, 2], "each got one"
    for name, session in sessions.items():
        queue.drain(name, session)
    assert all(call.result(10).closed or call.result(10).tasks for call in calls.values())


def test_a_backlog_is_shared_only_with_those_who_could_take_from_it(
    queue: JobQueue, threads: ThreadPoolExecutor
) -> None:
    session = join(queue)
    others = {"elsewhere": (("x",), ("other",)), "of another type": (("y",), ()), "both": (("y",), ("default", "b"))}
    sessions = {name: join(queue, name, *serves) for name, serves in others.items()}
    calls = [threads.submit(queue.reserve, n, number, 1, 0, (), 15.0) for n, number in sessions.items()]
    until(lambda: len(seats(queue)) == 4)
    queue.submit(1, 1, [item() for _ in range(8)])
    assert len(queue.reserve("w", session, 8, 0, (), 1.0).tasks) == 8
    queue.submit(1, 2, [item("y"), item("y")])
    assert [len(call.result(10).tasks) for call in calls[1:]] == [1, 1]
    assert not calls[0].done()
    queue.drain("elsewhere", sessions["elsewhere"])
    assert calls[0].result(10).closed


def test_a_waiting_reserve_of_a_dead_or_re_attached_worker_ends_with_nothing(
    queue: JobQueue, threads: ThreadPoolExecutor
) -> None:
    for end in (lambda: join(queue), lambda: queue.child_died("pool", "w", "signal 9", (), True, {})):
        session = join(queue)
        call = threads.submit(queue.reserve, "w", session, 1, 0, (), 15.0)
        until(lambda: seats(queue))
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
    assert not wait([listening, reporting], timeout=0.1).done
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
    until(lambda: seats(queue) and queue._feeds._watched and queue._feeds._feeds[1].waiting)
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
