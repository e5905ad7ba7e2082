"""What the queue does, in process: `JobQueue` over both stores, with a clock that the test moves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import wait_until

from taskq.clock import FakeClock
from taskq.config import QueueSettings
from taskq.errors import (
    BadArguments,
    KeyConflict,
    PayloadTooLarge,
    QueueFull,
    ShuttingDown,
    StaleRun,
    TaskNotFound,
)
from taskq.queue.job_queue import JobQueue
from taskq.queue.task import State
from taskq.queue.task_row import TaskRow
from taskq.queue.terms import new_task
from taskq.shapes import ACK, GIVE_BACK, NACK, SNOOZE, Handout, TypeInfo
from taskq.stores.base import KEEP_CALLS, Store
from taskq.stores.memory import MemoryStore
from taskq.stores.sqlite import SqliteStore

CLIENT = 77
ERROR = ("error", "OSError", "no such thing", "Traceback …")


def offered(name: str) -> TypeInfo:
    """A task type as a worker announces it."""
    return TypeInfo(
        name=name, parameters=[("value", 1, True)], queue="default", max_retries=3, backoff=1.0, timeout=None, workers=0
    )


class Desk:
    """One queue with one worker, in few words."""

    def __init__(self, store: Store, worker: str = "one", **limits: Any) -> None:
        self.store = store
        self.clock = FakeClock()
        self.queue = JobQueue(store, self.clock, QueueSettings(**limits))
        self.queue.open()
        self.seq = 0
        self.session = self.join(worker)

    def join(self, incarnation: str, *queues: str) -> int:
        """A worker process joins; gives its session."""
        pool = {"id": f"pool-of-{incarnation}", "name": "pool", "host": "here", "pid": 1, "local": None}
        types = [offered("noop"), offered("other")]
        worker = {"incarnation": incarnation, "pool": pool, "name": f"pool/{incarnation}", "host": "here"}
        info: Any = {**worker, "pid": 2, "threads": 100, "queues": queues, "types": types}
        return self.queue.attach(info, ())["session"]

    def submit(self, *payloads: bytes, type: str = "noop", **options: Any) -> list[int]:
        """Submit tasks with these payloads; gives their ids."""
        self.seq += 1
        tasks = [new_task(type, payload, **options) for payload in payloads or (b"p",)]
        return list(self.queue.submit(CLIENT, self.seq, tasks).ids)

    def reserve(self, slots: int = 100) -> list[Handout]:
        """What the worker is handed now."""
        return list(self.queue.reserve("one", self.session, slots, 0, (), 0).tasks)

    def report(self, *report: Any) -> bool:
        """Report one outcome; gives whether it was taken."""
        return not self.queue.report("one", self.session, [report])

    def fail(self, task: Handout, delay: float | None = None) -> bool:
        """Report that an attempt failed."""
        return self.report(NACK, task.id, task.run, ERROR, delay, 0.1)

    def state(self, id: int) -> str:
        """The state of a task."""
        return self.queue.result(id).state

    def later(self, seconds: float) -> None:
        """Let time pass, with heartbeats of the worker, so that it keeps its tasks."""
        self.clock.advance(seconds)
        self.beat()
        self.queue.tick()

    def beat(self) -> None:
        """A heartbeat of the worker's pool."""
        pool: Any = {"id": "pool-of-one", "name": "pool", "host": "here", "pid": 1, "local": None}
        child: Any = {
            "incarnation": "one",
            "pid": 2,
            "stopped": False,
            "cpu_percent": 0.0,
            "rss_bytes": 0,
            "running": (),
        }
        self.queue.beat(pool, [child])


MakeDesk = Callable[..., Desk]


@pytest.fixture(params=["memory", "sqlite"])
def make_desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeDesk]:
    """Makes desks; they are closed at the end."""
    made: list[Desk] = []

    def make(**limits: Any) -> Desk:
        store = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / f"{len(made)}.sqlite")
        made.append(Desk(store, **limits))
        return made[-1]

    yield make
    for desk in made:
        desk.queue.close()


@pytest.fixture
def desk(make_desk: MakeDesk) -> Desk:
    """A queue with the default settings."""
    return make_desk()


# -- submit, reserve, acknowledge


def test_a_task_goes_its_way(desk: Desk) -> None:
    [id] = desk.submit(b"payload")
    assert desk.state(id) == "pending"
    [task] = desk.reserve()
    assert (task.id, task.type, task.payload, task.queue, task.attempt) == (id, "noop", b"payload", "default", 1)
    assert desk.state(id) == "running"
    assert desk.report(ACK, id, task.run, b"result", 0.1)
    outcome = desk.queue.result(id)
    assert (outcome.state, outcome.result, outcome.error) == ("completed", b"result", None)
    assert desk.reserve() == []


def test_tasks_come_in_the_order_in_which_they_were_submitted(desk: Desk) -> None:
    ids = desk.submit(b"a", b"b") + desk.submit(b"c")
    assert ids == sorted(ids)
    assert [task.id for task in desk.reserve()] == ids


def test_no_more_tasks_than_slots(desk: Desk) -> None:
    desk.submit(*[b"p"] * 5)
    assert [len(desk.reserve(2)) for _ in range(4)] == [2, 2, 1, 0]


def test_a_task_is_handed_out_once(desk: Desk) -> None:
    desk.submit(*[b"p"] * 10)
    two = desk.join("two")
    first, second = desk.reserve(5), desk.queue.reserve("two", two, 100, 0, (), 0).tasks
    assert len({task.id for task in [*first, *second]}) == 10
    assert len({task.run for task in [*first, *second]}) == 10


def test_a_large_payload_and_result_come_back_whole(desk: Desk) -> None:
    large = bytes(range(256)) * 1_000
    [id] = desk.submit(large)
    [task] = desk.reserve()
    assert task.payload == large
    desk.report(ACK, id, task.run, large, 0.1)
    assert desk.queue.result(id).result == large
    [brief] = desk.queue.wait([id], 0)
    assert (brief.state, brief.result) == ("completed", None)  # too large to travel with the news


def test_a_waiting_worker_gets_a_task_as_soon_as_it_comes(desk: Desk) -> None:
    got: list[Handout] = []
    worker = threading.Thread(
        target=lambda: got.extend(desk.queue.reserve("one", desk.session, 1, 0, (), timeout=20).tasks)
    )
    worker.start()
    [id] = desk.submit()
    worker.join(10)
    assert [task.id for task in got] == [id]


def test_only_known_types_are_handed_to_a_worker(desk: Desk) -> None:
    desk.submit(type="of another worker")
    [id] = desk.submit(type="other")
    assert [task.id for task in desk.reserve()] == [id]


def test_named_queues_are_served_by_whom_they_concern(desk: Desk) -> None:
    [mail] = desk.submit(queue="mail")
    desk.submit(queue="default")
    session = desk.join("two", "mail")
    assert [task.id for task in desk.queue.reserve("two", session, 10, 0, (), 0).tasks] == [mail]


def test_an_unknown_task_is_not_found(desk: Desk) -> None:
    with pytest.raises(TaskNotFound):
        desk.queue.result(4711)
    assert desk.queue.get([4711]) == [None]
    assert [outcome.state for outcome in desk.queue.wait([4711], 0)] == ["unknown"]


# -- priority and delay


def test_higher_priorities_come_first_and_equals_in_order(desk: Desk) -> None:
    [low] = desk.submit(priority=-5)
    [first] = desk.submit()
    [high] = desk.submit(priority=9)
    [second] = desk.submit()
    assert [task.id for task in desk.reserve()] == [high, first, second, low]


def test_a_delayed_task_waits_for_its_time(desk: Desk) -> None:
    [id] = desk.submit(delay=10.0)
    assert desk.state(id) == "scheduled"
    desk.later(9.9)
    assert desk.reserve() == []
    desk.later(0.2)
    assert [task.id for task in desk.reserve()] == [id]


def test_the_wall_clock_may_jump_without_hurting_leases(desk: Desk) -> None:
    [id] = desk.submit()
    [task] = desk.reserve()
    desk.clock.jump(365 * 86_400)
    desk.queue.tick()
    assert desk.state(id) == "running"
    assert desk.report(ACK, id, task.run, b"", 0.1)


def test_a_manager_that_was_suspended_waits_for_one_more_heartbeat(make_desk: MakeDesk) -> None:
    desk = make_desk(lease=30.0)
    [id] = desk.submit()
    desk.reserve()
    meant_at = desk.clock.monotonic() + 1.0
    desk.clock.advance(3600.0)  # as after the sleep of a laptop; nobody could be heard
    desk.queue.tick(meant_at)
    desk.clock.advance(9.9)
    desk.queue.tick(desk.clock.monotonic())
    assert desk.state(id) == "running"
    desk.clock.advance(0.2)
    desk.queue.tick(meant_at)  # again, and still no word: that gives no more time
    assert desk.state(id) == "scheduled"


def test_a_manager_that_is_suspended_again_and_again_forgives_each_time(make_desk: MakeDesk) -> None:
    """Also when the first heartbeat is heard before the suspension is noticed."""
    desk = make_desk(lease=30.0)
    [id] = desk.submit()
    desk.reserve()
    for _ in range(3):
        meant_at = desk.clock.monotonic() + 1.0
        desk.clock.advance(3600.0)
        desk.beat()
        desk.queue.tick(meant_at)
        meant_at = desk.clock.monotonic() + 1.0
        desk.clock.advance(3600.0)
        desk.queue.tick(meant_at)
        assert desk.state(id) == "running"


# -- failures and retries


def test_a_failed_attempt_is_retried_with_growing_pauses_and_then_it_is_final(desk: Desk) -> None:
    [id] = desk.submit(max_retries=2, backoff=4.0)
    for attempt, longest in ((1, 4.0), (2, 8.0)):
        [task] = desk.reserve()
        assert task.attempt == attempt
        assert desk.fail(task)
        assert desk.state(id) == "scheduled"
        desk.later(longest / 2 - 0.01)  # jitter takes off up to a half
        assert desk.reserve() == []
        desk.later(longest / 2 + 0.02)
    [task] = desk.reserve()
    assert task.attempt == 3
    desk.fail(task)
    outcome = desk.queue.result(id)
    assert (outcome.state, outcome.failures, outcome.error) == ("failed", 3, ERROR)
    desk.later(86_400)
    assert desk.reserve() == []


def test_without_retries_the_first_failure_is_final(desk: Desk) -> None:
    [id] = desk.submit(max_retries=0)
    desk.fail(desk.reserve()[0])
    assert desk.state(id) == "failed"


def test_a_permanent_failure_is_not_retried(desk: Desk) -> None:
    [id] = desk.submit(max_retries=5)
    desk.fail(desk.reserve()[0], delay=-1)
    assert desk.state(id) == "failed"


def test_a_task_may_say_when_to_try_again(desk: Desk) -> None:
    desk.submit(max_retries=1, backoff=1.0)
    desk.fail(desk.reserve()[0], delay=60.0)
    desk.later(59.0)
    assert desk.reserve() == []
    desk.later(1.1)
    assert len(desk.reserve()) == 1


def test_each_transition_is_a_line_with_the_figures_of_its_attempt(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("attempt", "wait_s", "outcome", "error", "worker")

    def logged() -> list[tuple[Any, ...]]:
        """The event and some fields of each line since the last call."""
        desk.queue.tick()
        lines = [vars(line) for line in caplog.records]
        caplog.clear()
        return [(line["taskq_event"], *map(line["taskq_fields"].get, names)) for line in lines]

    with caplog.at_level("DEBUG", "taskq.queue"):
        desk.submit(b"x", max_retries=1)
        assert logged() == [("task_submitted", None, None, "pending", None, None)]
        [task] = desk.reserve()
        desk.fail(task, 8.0)
        assert logged()[-1] == ("task_retried", 1, None, "scheduled", "OSError", "pool/one")
        desk.later(8.5)
        desk.later(4.0)
        [task] = desk.reserve()
        desk.report(ACK, task.id, task.run, b"r", 0.0)
        due, *_, completed = logged()
        assert due == ("task_returned", 1, None, "pending", None, None)
        assert completed == ("task_completed", 2, 4.5, "completed", None, "pool/one")


def test_a_snoozed_task_uses_no_attempt(desk: Desk) -> None:
    [id] = desk.submit(max_retries=0)
    [task] = desk.reserve()
    assert desk.report(SNOOZE, id, task.run, 5.0)
    assert desk.state(id) == "scheduled"
    desk.later(5.1)
    assert desk.reserve()[0].attempt == 1


def test_what_never_started_goes_back_to_the_front(desk: Desk) -> None:
    first, second = desk.submit(b"a", b"b")
    [task] = desk.reserve(1)
    assert desk.report(GIVE_BACK, first, task.run)
    assert [(task.id, task.attempt) for task in desk.reserve()] == [(first, 1), (second, 1)]


# -- leases and fences


def test_a_silent_workers_task_runs_elsewhere_and_its_late_outcome_is_refused(make_desk: MakeDesk) -> None:
    desk = make_desk(lease=2.0)
    [id] = desk.submit()
    [old] = desk.reserve()
    desk.clock.advance(10.0)
    desk.queue.tick()
    assert desk.state(id) == "scheduled"
    desk.clock.advance(2.0)
    desk.queue.tick()
    session = desk.join("two")
    [new] = desk.queue.reserve("two", session, 1, 0, (), 0).tasks
    assert new.id == id and new.run > old.run and new.attempt == 2
    assert not desk.report(ACK, id, old.run, b"late", 0.1)
    assert desk.state(id) == "running"
    assert not desk.queue.report("two", session, [(ACK, id, new.run, b"in time", 0.1)])
    assert desk.queue.result(id).result == b"in time"


def test_an_outcome_counts_once(desk: Desk) -> None:
    [id] = desk.submit()
    [task] = desk.reserve()
    assert desk.report(ACK, id, task.run, b"first", 0.1)
    assert not desk.report(ACK, id, task.run, b"second", 0.1)
    assert not desk.fail(task)
    assert desk.queue.result(id).result == b"first"


def test_a_former_session_of_a_worker_is_over(desk: Desk) -> None:
    old = desk.session
    desk.session = desk.join("one")
    assert desk.queue.reserve("one", old, 1, 0, (), 0).closed
    with pytest.raises(StaleRun):
        desk.queue.report("one", old, [])


def test_what_a_dead_worker_had_not_begun_goes_back_at_once(desk: Desk) -> None:
    begun, waiting = desk.submit(b"a", b"b", max_retries=0)
    tasks = {task.id: task for task in desk.reserve()}
    desk.queue.child_died("pool-of-one", "one", "signal 9", [(begun, tasks[begun].run)], True, {})
    assert desk.state(begun) == "scheduled"  # a death, not a failure: it is tried again all the same
    assert desk.state(waiting) == "pending"


def test_a_task_that_kills_its_workers_is_poisoned_after_three(desk: Desk) -> None:
    [id] = desk.submit()
    for death in range(3):
        name = f"victim-{death}"
        session = desk.join(name)
        desk.clock.advance(10.0)
        desk.queue.tick()
        session = desk.join(name)  # fresh heartbeat after the time that has passed
        [task] = desk.queue.reserve(name, session, 1, 0, (), 0).tasks
        desk.queue.child_died(f"pool-of-{name}", name, "signal 11", [(id, task.run)], True, {})
    outcome = desk.queue.result(id)
    assert (outcome.state, outcome.deaths, outcome.error and outcome.error[0]) == ("failed", 3, "poisoned")


# -- submitting again


def test_the_same_call_again_gives_the_same_ids(desk: Desk) -> None:
    tasks = [new_task("noop", b"a"), new_task("noop", b"b")]
    first = desk.queue.submit(CLIENT, 100, tasks)
    assert desk.queue.submit(CLIENT, 100, tasks).ids == first.ids
    assert len(desk.reserve()) == 2
    with pytest.raises(KeyConflict):
        desk.queue.submit(CLIENT, 100, [new_task("noop", b"other")])


def test_the_same_key_again_gives_the_same_task(desk: Desk) -> None:
    [id] = desk.submit(key="order-1")
    assert desk.submit(key="order-1") == [id]
    [task] = desk.reserve()
    desk.report(ACK, id, task.run, b"", 0.1)
    assert desk.submit(key="order-1") == [id]  # also when it is done
    assert desk.reserve() == []


def test_the_same_call_again_gives_the_same_ids_also_where_keys_had_theirs(desk: Desk) -> None:
    keyed, plain = new_task("noop", b"k", key="k"), new_task("noop", b"p")
    first = desk.queue.submit(CLIENT, 100, [keyed])
    second = desk.queue.submit(CLIENT, 101, [plain, keyed, plain, keyed._replace(key="l"), keyed._replace(key="l")])
    assert (second.ids[1], list(second.existing)) == (first.ids[0], [1, 4]) and second.ids[3] == second.ids[4]
    assert desk.queue.submit(CLIENT, 101, [plain, keyed, plain, *[keyed._replace(key="l")] * 2]) == second
    store = desk.queue._store
    desk.queue.close()
    desk.queue = JobQueue(store, desk.clock, desk.queue.settings)
    desk.queue.open()
    assert desk.queue.submit(CLIENT, 101, [plain, keyed, plain, *[keyed._replace(key="l")] * 2]) == second
    assert len(desk.queue._state.tasks) == 4


def test_a_call_that_hit_a_key_gives_the_same_ids_also_when_the_key_is_not_kept_any_more(desk: Desk) -> None:
    keyed = new_task("noop", b"k", key="k")
    (id,) = desk.queue.submit(CLIENT, 100, [keyed]).ids
    (task,) = desk.reserve()
    desk.report(ACK, id, task.run, b"", 0.1)
    desk.later(1)
    assert desk.queue.purge(["completed"], 0.0) == 1
    desk.later(KEEP_CALLS - 60)
    hit = desk.queue.submit(CLIENT, 101, [keyed])
    assert (list(hit.ids), list(hit.existing)) == ([id], [0])
    desk.later(120)
    desk.queue.clean()
    for _ in range(3):  # until nothing of it is among the newest either
        desk.queue.tidy()
    assert desk.queue.submit(CLIENT, 101, [keyed]) == hit
    assert desk.queue.submit(CLIENT, 102, [keyed]).ids[0] > id


def test_the_same_key_with_another_content_is_a_conflict(desk: Desk) -> None:
    desk.submit(b"a", key="order-1")
    with pytest.raises(KeyConflict):
        desk.submit(b"b", key="order-1")


# -- cancel


def test_a_cancelled_task_never_runs(desk: Desk) -> None:
    waiting, scheduled = desk.submit(b"a") + desk.submit(b"b", delay=5.0)
    assert desk.queue.cancel([waiting, scheduled, 4711]) == ["cancelled", "cancelled", "unknown"]
    desk.later(10)
    assert desk.reserve() == []
    assert [desk.state(waiting), desk.state(scheduled)] == ["cancelled", "cancelled"]


def test_what_runs_may_finish_but_is_not_tried_again(desk: Desk) -> None:
    done, broken = desk.submit(b"a", b"b", max_retries=5)
    tasks = {task.id: task for task in desk.reserve()}
    assert desk.queue.cancel([done, broken]) == ["running", "running"]
    desk.report(ACK, done, tasks[done].run, b"", 0.1)
    desk.fail(tasks[broken])
    assert [desk.state(done), desk.state(broken)] == ["completed", "cancelled"]
    assert desk.queue.cancel([done]) == ["completed"]


def test_a_pool_hears_what_it_is_to_cancel_also_after_a_restart(make_desk: MakeDesk) -> None:
    desk = make_desk()
    first, second, waiting = desk.submit(b"a", b"b", b"c")
    tasks = {task.id: task for task in desk.reserve(2)}
    assert desk.queue.to_cancel("pool-of-one") == []
    desk.queue.cancel([first, second, waiting])
    held = [("one", tasks[first].run), ("one", tasks[second].run)]
    assert desk.queue.to_cancel("pool-of-one") == held
    assert desk.queue.to_cancel("another") == []
    desk.queue.close()
    desk.queue = JobQueue(desk.queue._store, desk.clock, QueueSettings())
    desk.queue.open()
    assert desk.queue.to_cancel("pool-of-one") == held
    desk.queue.child_died("pool-of-one", "one", "signal 9", [], True, {})
    assert desk.queue.to_cancel("pool-of-one") == []
    assert [desk.state(id) for id in (first, second, waiting)] == ["cancelled"] * 3


def test_what_a_process_was_killed_for_fails_and_the_rest_goes_back_uncounted(desk: Desk) -> None:
    stuck, again, cancelled, neighbour = desk.submit(*[b"p"] * 4, max_retries=1)
    tasks = {task.id: task for task in desk.reserve()}
    desk.fail(tasks[stuck], 0.0)
    desk.later(0.1)
    [tasks[stuck]] = desk.reserve()
    desk.queue.cancel([cancelled])
    error = ("timeout", "TaskTimeout", "too long", "Stack …")
    outcomes = [(NACK, id, tasks[id].run, error, None, 9.0) for id in (stuck, again)]
    outcomes.append((NACK, cancelled, tasks[cancelled].run, ("cancelled", "TaskCancelled", "", "Stack …"), None, 9.0))
    desk.queue.child_died("pool-of-one", "one", "a task", [], False, {}, outcomes)
    records = dict(zip(tasks, desk.queue.get(list(tasks)), strict=True))
    assert [records[id]["state"] for id in (stuck, again, cancelled, neighbour)] == [  # type: ignore[index]
        *("failed", "scheduled", "cancelled", "pending"),
    ]
    assert [records[id]["failures"] for id in (stuck, again, cancelled, neighbour)] == [2, 1, 0, 0]  # type: ignore[index]
    assert {record["deaths"] for record in records.values() if record} == {0}
    assert records[stuck]["error"]["traceback"] == records[cancelled]["error"]["traceback"] == "Stack …"  # type: ignore[index]


def test_a_task_without_a_timeout_has_that_of_its_queue(make_desk: MakeDesk) -> None:
    desk = make_desk(timeout=50.0, queue_timeouts={"mail": 5.0, "free": 0.0})
    desk.submit()
    desk.submit(queue="mail")
    desk.submit(queue="free")
    desk.submit(queue="mail", timeout=7.0)
    desk.submit(queue="mail", timeout=0.0)
    assert [task.timeout for task in desk.reserve()] == [50.0, 5.0, None, 7.0, None]


def test_a_process_that_is_to_end_gets_nothing_more(desk: Desk) -> None:
    pool: Any = {"id": "pool-of-one", "name": "pool", "host": "here", "pid": 1, "local": None}
    child: Any = {"incarnation": "one", "pid": 2, "stopped": False, "leaving": True, "running": ()}
    desk.submit()
    desk.queue.beat(pool, [child])
    assert desk.queue.reserve("one", desk.session, 1, 0, (), 20) == ((), True)


# -- limits


def test_a_full_queue_refuses_and_accepts_again_when_there_is_room(make_desk: MakeDesk) -> None:
    desk = make_desk(max_pending=3)
    desk.submit(b"a", b"b")
    with pytest.raises(QueueFull, match='queue "default" is full'):
        desk.submit(b"c", b"d")
    assert len(desk.submit(b"c")) == 1  # nothing of the refused call was taken
    desk.submit(queue="another")
    desk.reserve(2)
    assert len(desk.submit(b"d")) == 1


def test_a_payload_over_the_limit_is_refused(make_desk: MakeDesk) -> None:
    desk = make_desk(max_payload=100)
    desk.submit(b"x" * 100)
    with pytest.raises(PayloadTooLarge):
        desk.submit(b"x", b"x" * 101)
    assert len(desk.reserve()) == 1


@pytest.mark.parametrize(
    "options",
    [{"queue": ""}, {"delay": -1.0}, {"max_retries": -1}, {"priority": "high"}, {"timeout": -1.0}, {"key": ""}],
)
def test_values_out_of_range_are_refused(desk: Desk, options: dict[str, Any]) -> None:
    with pytest.raises(BadArguments):
        desk.submit(b"a", **options)
    assert desk.reserve() == []


# -- what people see


def test_figures_count_what_happened(desk: Desk) -> None:
    ids = desk.submit(*[b"p"] * 4, max_retries=0)
    desk.submit(delay=60.0)
    tasks = desk.reserve(3)
    desk.report(ACK, tasks[0].id, tasks[0].run, b"", 0.1)
    desk.fail(tasks[1])
    desk.queue.cancel([ids[3]])
    found = desk.queue.snapshot()
    [queue] = found["queues"]
    assert {name: queue[name] for name in ("pending", "scheduled", "running")} == {
        "pending": 0,
        "scheduled": 1,
        "running": 1,
    }
    totals = found["totals"]
    assert {name: totals[name] for name in ("submitted", "completed", "failed", "cancelled")} == {
        "submitted": 5,
        "completed": 1,
        "failed": 1,
        "cancelled": 1,
    }


def test_tasks_are_listed_newest_first_and_by_what_is_asked(desk: Desk) -> None:
    one, two = desk.submit(b"a") + desk.submit(b"b", queue="mail")
    [three] = desk.submit(b"c", type="other", delay=60.0)
    listed = lambda *asked: [row["id"] for row in desk.queue.list_tasks(*asked)]  # noqa: E731
    assert listed(None, None, None, 50) == [three, two, one]
    assert listed(None, None, None, 2) == [three, two]
    assert listed("pending", None, None, 50) == [two, one]
    assert listed(None, "other", None, 50) == [three]
    assert listed(None, None, "mail", 50) == [two]


def test_finished_records_can_be_purged_and_others_cannot(desk: Desk) -> None:
    done, open_ = desk.submit(b"a", b"b")
    [task] = desk.reserve(1)
    desk.report(ACK, done, task.run, b"", 0.1)
    desk.later(100)
    assert desk.queue.purge(["completed"], 200.0) == 0
    assert desk.queue.purge(["completed"], 50.0) == 1
    assert desk.queue.get([done]) == [None]
    assert desk.state(open_) == "pending"
    with pytest.raises(BadArguments):
        desk.queue.purge(["pending"], 0.0)


def test_news_of_finished_tasks_reaches_their_client(desk: Desk) -> None:
    feed = desk.queue.finished(CLIENT, 0, 0.0)
    [id] = desk.submit()
    [task] = desk.reserve()
    desk.report(ACK, id, task.run, b"result", 0.1)
    news = desk.queue.finished(CLIENT, feed.cursor, 0.0)
    assert [(item.id, item.state, item.result) for item in news.outcomes] == [(id, "completed", b"result")]
    assert not desk.queue.finished(CLIENT, news.cursor, 0.0).outcomes


def test_a_queue_that_stops_takes_outcomes_and_nothing_new(desk: Desk) -> None:
    [id] = desk.submit()
    [task] = desk.reserve()
    feed = desk.queue.finished(CLIENT, 0, 0.0)

    def wait_for_news() -> None:
        with pytest.raises(ShuttingDown):
            desk.queue.finished(CLIENT, feed.cursor, 20.0)

    waiting = threading.Thread(target=wait_for_news)
    waiting.start()
    desk.queue.shut()
    waiting.join(5)
    assert not waiting.is_alive()
    with pytest.raises(ShuttingDown):
        desk.submit()
    assert desk.report(ACK, id, task.run, b"", 0.1)
    assert desk.state(id) == "completed"


# -- results with a time of their own


def test_a_result_is_gone_when_its_time_is_over_and_its_record_stays(desk: Desk) -> None:
    [short] = desk.submit(result_ttl=60.0)
    [usual] = desk.submit()
    for task in desk.reserve():
        assert desk.report(ACK, task.id, task.run, b"result", 0.1)
    assert desk.queue.wait([short], 0.0)[0].result is None, "who wants it asks for it, then"
    desk.later(59.9)
    assert desk.queue.result(short).result == b"result"
    desk.later(0.2)
    outcome = desk.queue.result(short)
    assert (outcome.state, outcome.result) == ("completed", None), "by the clock, before anybody has deleted it"
    for record in (*desk.queue.get([short]), desk.queue.list_tasks(None, None, None, 2)[1]):
        assert record is not None and (record["state"], record["result"]) == ("completed", None)
    assert desk.queue.clean() and not desk.queue.clean()
    assert desk.store.get([short])[short].result is None, "and now it is"
    assert desk.queue.result(usual).result == desk.store.get([usual])[usual].result == b"result"


# -- a restart


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    before = Desk(SqliteStore(path))
    done, running, pending = before.submit(b"a", b"b", b"c")
    [scheduled] = before.submit(delay=100.0)
    tasks = before.reserve(2)
    before.report(ACK, done, tasks[0].run, b"result", 0.1)
    before.queue.close()

    after = Desk(SqliteStore(path), "another")
    after.seq = 100
    try:
        states = {id: after.state(id) for id in (done, running, pending, scheduled)}
        assert states == {done: "completed", running: "running", pending: "pending", scheduled: "scheduled"}
        assert after.queue.result(done).result == b"result"
        assert after.queue.hello()["epoch"] == before.queue.hello()["epoch"] + 1
        assert after.queue.hello()["store_id"] == before.queue.hello()["store_id"]
        totals = after.queue.snapshot()["totals"]
        assert (totals["submitted"], totals["completed"]) == (4, 1)
        assert after.queue.snapshot()["kept"]["completed"] == 1
        assert min(after.submit()) > scheduled
        after.clock.advance(60.0)  # the worker does not come back: its task goes on elsewhere
        after.queue.tick()
        assert after.state(running) == "scheduled"
    finally:
        after.queue.close()


def test_a_key_is_free_again_a_day_after_its_task_was_purged(desk: Desk) -> None:
    [id] = desk.submit(key="nightly")
    desk.report(ACK, id, desk.reserve()[0].run, b"", 0.1)
    desk.later(1.0)
    assert desk.queue.purge(["completed"], 0.5) == 1
    desk.later(86_400 - 10)
    desk.queue.tidy()
    assert not desk.queue.clean()
    assert desk.submit(key="nightly") == [id]
    desk.later(20)
    desk.queue.clean()
    desk.queue.tidy()
    desk.queue.tidy()
    [new] = desk.submit(key="nightly")
    assert new > id and desk.state(new) == "pending"


def test_old_records_go_by_themselves_and_failed_ones_later(desk: Desk) -> None:
    cancelled = desk.submit()
    desk.queue.cancel(cancelled)
    done, failed = desk.submit(b"a", b"b", max_retries=0)
    first, second = desk.reserve()
    desk.report(ACK, done, first.run, b"", 0.1)
    desk.fail(second)
    desk.later(86_400 - 10)
    assert not desk.queue.clean()
    fresh = desk.submit()
    desk.queue.cancel(fresh)
    desk.later(20)
    assert desk.queue.clean() and not desk.queue.clean()
    assert [record is None for record in desk.queue.get([done, *cancelled, failed, *fresh])] == [
        True,
        True,
        False,
        False,
    ]
    kept = desk.queue.snapshot()["kept"]
    assert [kept[state] for state in ("completed", "failed", "cancelled")] == [0, 1, 1]
    desk.later(30 * 86_400)
    while desk.queue.clean():
        pass
    assert desk.queue.get([failed, *fresh]) == [None, None]


def test_purging_ends_though_tasks_go_on_finishing() -> None:
    class Busy(MemoryStore):
        clock: FakeClock
        asked: list[float]

        def purge(self, states: Iterable[State], finished_before: float, limit: int, now: float) -> dict[State, int]:
            self.asked.append(finished_before)
            self.clock.advance(1.0)
            return super().purge(states, finished_before, limit, now)

    store = Busy()
    desk = Desk(store)
    store.clock, store.asked = desk.clock, []
    desk.queue.cancel(desk.submit())
    desk.later(1.0)
    assert desk.queue.purge(["cancelled"], 0.0) == 1
    assert len(store.asked) == 2 and len(set(store.asked)) == 1
    desk.queue.close()


@pytest.mark.parametrize("seconds", [float("nan"), -1.0, "1", None, True])
def test_what_is_no_time_to_wait_is_refused(desk: Desk, seconds: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: desk.queue.wait([1], seconds),
        lambda: desk.queue.finished(CLIENT, 0, seconds),
        lambda: desk.queue.purge(["failed"], seconds),
        lambda: desk.queue.reserve("one", desk.session, 1, 0, (), seconds),
    ]
    for call in calls:
        with pytest.raises(BadArguments, match="seconds"):
            call()


def test_no_call_asks_for_too_much(desk: Desk) -> None:
    for _ in range(3):
        desk.submit(*[b""] * 500)
    with pytest.raises(BadArguments):
        desk.reserve(-1)
    assert len(desk.reserve(10**9)) == 1_000
    with pytest.raises(BadArguments):
        desk.queue.cancel(range(1_001))


@pytest.mark.parametrize("end", [None, "goodbye", "death", "pool", "silence"])
def test_after_a_restart_tasks_wait_for_the_workers_that_are_still_there(make_desk: MakeDesk, end: str | None) -> None:
    desk = make_desk(lease=3.0)
    [id] = desk.submit()
    if end == "goodbye":
        desk.queue.detach("one", desk.session)
    elif end == "death":
        desk.queue.child_died("pool-of-one", "one", "signal 9", (), True, {})
    elif end == "pool":
        desk.queue.leave("pool-of-one")
    store = desk.queue._store
    store.close()
    for _ in range(2 if end == "silence" else 1):  # the first manager after it gives the worker up
        store.close()
        desk.queue = JobQueue(store, desk.clock, desk.queue.settings)
        desk.queue.open()
        desk.queue.tick()
        if end == "silence" and desk.queue._state.places.kept_back is not None:
            desk.clock.advance(4.0)
            desk.queue.tick()
            desk.queue.get([id])
    session = desk.join("two")
    found = desk.queue.reserve("two", session, 1, 0, (), 0).tasks
    assert [task.id for task in found] == ([] if end is None else [id])
    desk.clock.advance(5.0)
    desk.queue.tick()
    session = desk.join("two")
    assert end is not None or [task.id for task in desk.queue.reserve("two", session, 1, 0, (), 0).tasks] == [id]


def test_loading_takes_no_time_from_workers_that_come_back() -> None:
    """With millions of tasks it takes longer than a lease."""

    class SlowStore(MemoryStore):
        clock: FakeClock | None = None

        def _live(self) -> Iterator[TaskRow]:
            yield from super()._live()
            if self.clock is not None:
                self.clock.advance(100.0)

    store = SlowStore()
    before = Desk(store)
    running, _ = before.submit(b"a", b"b")
    before.reserve(1)
    before.queue.get([running])
    before.queue.close()
    store.clock = FakeClock()
    after = JobQueue(store, store.clock, QueueSettings(lease=30.0))
    after.open()
    store.clock.advance(4.0)
    after.tick()
    assert after.result(running).state == "running" and after._state.places.kept_back is not None
    store.clock.advance(1.0)
    after.tick()
    assert after._state.places.kept_back is None
    after.close()


def test_it_does_its_chores_by_itself(make_desk: MakeDesk) -> None:
    desk = make_desk()
    desk.queue.start()
    [id] = desk.submit(delay=5.0)
    desk.clock.advance(6.0)
    wait_until(lambda: desk.state(id) == "pending", 5.0, "the due task")
