"""Tasks that must begin by a certain time, and those that start at one: the rules of the pure queue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_basic_queue import Desk

from taskq.config import QueueSettings
from taskq.errors import BadArguments
from taskq.queue.check import check
from taskq.queue.expiry import Expiry
from taskq.queue.idempotency import content_digest
from taskq.queue.leases import Moment, Worker
from taskq.queue.limits import checked
from taskq.queue.places import HOLD
from taskq.queue.ready import SPARE
from taskq.queue.state import DUE_STEP, QueueState
from taskq.queue.task import State, Task
from taskq.queue.task_log import transitions
from taskq.queue.task_row import TaskRow, to_row
from taskq.queue.terms import NewTask, Terms, new_task
from taskq.shapes import ACK, GIVE_BACK, NACK, SNOOZE
from taskq.stores.memory import MemoryStore
from taskq.stores.sqlite import SqliteStore

POOL = {"id": "pool", "name": "pool", "host": "h", "pid": 1, "local": None}
ERROR = ("error", "ValueError", "no", "")
START = Moment(100.0, 5_000.0)


def after(seconds: float, jump: float = 0.0) -> Moment:
    """So much later; ``jump``: by how much somebody set the wall clock since."""
    return Moment(START.mono + seconds, START.wall + seconds + jump)


def new_state(**settings: Any) -> QueueState:
    return QueueState(QueueSettings(**settings))


def join(state: QueueState, now: Moment = START, held: tuple[tuple[int, int], ...] = ()) -> Worker:
    info: Any = {
        **{"incarnation": "w", "pool": POOL, "name": "w", "host": "h", "pid": 2, "threads": 4},
        **{"queues": (), "types": [{"name": "x"}]},
    }
    return state.attach(info, list(held), now)[0]


def put(state: QueueState, *items: NewTask, now: Moment = START) -> list[int]:
    return state.submit(1, items, {}, now).ids


def take(state: QueueState, worker: Worker, now: Moment = START) -> list[int]:
    return [task.id for task in state.reserve(worker, 10, 0, (), 0, now)[0]]


def tick(state: QueueState, now: Moment) -> list[Task]:
    """What changes; final records leave memory, as they do once they are stored."""
    written = []
    for changes in state.tick(now):
        written += changes.written
        state.forget(changes.final)
    check(state)
    return written


def test_what_has_not_begun_by_its_time_fails() -> None:
    state = new_state()
    put(state, new_task("x", b"", expires=10.0), new_task("x", b"", expires_by=START.wall + 20), new_task("x", b""))
    put(state, new_task("x", b"", delay=5.0, expires=10.0))
    assert state.next_deadline(START) == 5.0
    tick(state, after(5))
    assert state.next_deadline(after(5)) == 5.0
    assert not tick(state, after(9.9))
    first, last = tick(state, after(10))
    assert [(task.id, task.state) for task in (first, last)] == [(1, State.FAILED), (4, State.FAILED)]
    assert first.error is not None and first.error.kind == "expired"
    assert first.error.message == "it did not begin within 10s"
    assert first.finished_at == after(10).wall
    assert [line.text for line in transitions([first])] == ["task 1 (x) failed for good: it has expired"]
    (second,) = tick(state, after(20))
    assert second.error is not None and (second.id, second.error.message) == (2, "it did not begin by its time")
    assert state.next_deadline(after(20)) is None
    assert take(state, join(state, after(30)), after(30)) == [3]


def test_what_waits_for_its_date_expires_without_becoming_pending() -> None:
    state = new_state()
    put(state, new_task("x", b"", at=START.wall + 100, expires=10.0))
    (task,) = tick(state, after(10))
    assert (task.state, task.due_at) == (State.FAILED, START.wall + 100)


def test_a_running_task_does_not_expire_but_its_next_attempt_does() -> None:
    state = new_state()
    worker = join(state)
    put(state, *[new_task("x", b"", expires=10.0)] * 3)
    runs = {task.id: task.run for task in state.reserve(worker, 3, 0, (), 0, START)[0]}
    assert not tick(state, after(10))
    reports = [(NACK, 1, runs[1], ERROR, 5.0, 1.0), (GIVE_BACK, 2, runs[2]), (ACK, 3, runs[3], b"r", 1.0)]
    state.forget(state.report(worker, reports, after(11))[1].final)
    check(state)
    between, returned = sorted(tick(state, after(11)), key=lambda task: task.id)
    assert (between.id, between.state, between.failures) == (1, State.FAILED, 1)
    assert between.error is not None and between.error.kind == "expired"
    assert between.error.message == "it did not begin again within 10s, after 1 attempt; the last: ValueError: no"
    assert (returned.id, returned.state) == (2, State.FAILED)


def test_a_snoozed_task_expires_once() -> None:
    state = new_state()
    worker = join(state)
    put(state, new_task("x", b"", expires=10.0))
    for seconds in (0, 2, 4):  # back and forth: it stands in the heap once
        tick(state, after(seconds))
        (task,) = state.reserve(worker, 1, 0, (), 0, after(seconds))[0]
        state.report(worker, [(SNOOZE, 1, task.run, 1.0)], after(seconds))
        check(state)
    assert [task.state for task in tick(state, after(10))] == [State.FAILED]
    assert not len(state.places.expiry)


def test_nothing_is_handed_out_after_its_time() -> None:
    state = new_state()
    put(state, *[new_task("x", b"", expires=10.0)] * (DUE_STEP + 5))
    changes = state.expire(after(10))
    assert len(changes.final) == DUE_STEP + 5
    assert take(state, join(state), after(10)) == []


def test_after_a_restart_tasks_expire_once_no_worker_can_have_them() -> None:
    before = new_state()
    put(before, new_task("x", b"", expires=10.0), new_task("x", b"", expires=10.0), new_task("x", b"", expires=99.0))
    rows = [to_row(task) for task in before.tasks.values()]
    state = QueueState(QueueSettings(), epoch=2, next_id=4)
    state.leases.expect("w", "pool", "w", "h", 2, after(20).mono)
    state.load(rows, after(20))
    put(state, new_task("x", b"", expires=1.0), now=after(20))
    check(state)
    assert [task.id for task in tick(state, after(21))] == [4], "a new one expires at once"
    run = 2**40 + 5  # the last manager handed it out and could not store that any more
    worker = join(state, after(22), held=((1, run),))
    assert worker.running.keys() == {1}
    check(state)
    tick(state, after(22))  # all workers are back
    assert [task.id for task in tick(state, after(22))] == [2]
    state.report(worker, [(ACK, 1, run, b"r", 1.0)], after(23))
    assert take(state, worker, after(23)) == [3]


def test_after_a_restart_the_time_is_the_same() -> None:
    before = new_state()
    put(before, new_task("x", b"", expires=60.0), new_task("x", b"", at=START.wall + 50))
    rows = [TaskRow._make(to_row(task)) for task in before.tasks.values()]
    state = QueueState(QueueSettings(), epoch=2, next_id=3)
    state.load(rows, after(30))
    tick(state, after(30 + HOLD))
    assert not tick(state, after(49.9))
    assert [task.id for task in tick(state, after(50))] == [2]
    assert [task.id for task in tick(state, after(60))] == [1]


@pytest.mark.parametrize("jump", [-1_000.0, 1_000.0])
def test_dates_follow_the_wall_clock_when_it_is_set(jump: float) -> None:
    state = new_state()
    put(state, new_task("x", b"", at=START.wall + 100), new_task("x", b"", expires=200.0))
    tick(state, after(0))
    changed = tick(state, after(1, jump))
    assert [task.id for task in changed] == ([] if jump < 0 else [2, 1])
    if jump < 0:
        assert state.next_deadline(after(1, jump)) == 100 - 1 + 1_000
        assert not tick(state, after(1_099.9, jump))
        assert [task.id for task in tick(state, after(1_100, jump))] == [1]


@pytest.mark.parametrize("jump", [-1_000.0, 1_000.0])
def test_a_pause_that_begins_just_after_the_clock_was_set_is_as_long_as_any(jump: float) -> None:
    state = new_state()
    worker = join(state)
    put(state, new_task("x", b""), new_task("x", b""))
    first, second = (state.tasks[id] for id in take(state, worker))
    error = ("error", "E", "m", "t")
    state.report(worker, [(NACK, first.id, first.run, error, 60.0, 0.1)], START)
    tick(state, after(0))
    state.report(worker, [(NACK, second.id, second.run, error, 60.0, 0.1)], after(1, jump))  # no tick since it was set
    assert not tick(state, after(2, jump))
    assert [first.due_at - START.wall, second.due_at - START.wall] == [60 + jump, 61 + jump]
    assert [task.id for task in tick(state, after(61, jump))] == [first.id, second.id]
    check(state)


def test_a_date_in_the_past_is_now() -> None:
    state = new_state()
    put(state, new_task("x", b"", at=START.wall - 5))
    assert (state.tasks[1].state, state.tasks[1].due_at) == (State.PENDING, START.wall)


def test_what_is_done_long_before_its_time_does_not_stay_in_memory() -> None:
    expiry = Expiry()
    for number in range(3 * SPARE):
        expiry.push(_task(number))
    expiry.forget(range(3 * SPARE - 10))
    assert len(expiry) == 10 and len(expiry._heap) <= SPARE + 20
    assert expiry.pop(9_999.0, {3 * SPARE - 1: _task(3 * SPARE - 1)}, 5) != []


def _task(number: int) -> Task:
    return Task(number, Terms("x", expires=10.0), b"", None, "", 1, 0.0, 0.0, State.PENDING)


@pytest.mark.parametrize(
    ("item", "complaint"),
    [
        (new_task("x", b"", expires=0.0), "expires after more than 0"),
        (new_task("x", b"", expires=-1.0), "expires is a number"),
        (new_task("x", b"", expires_by=float("nan")), "since 1970"),
        (new_task("x", b"", at=-1.0), "since 1970"),
        (new_task("x", b"", at=1e12), "since 1970"),
        (new_task("x", b"", at=5.0, delay=5.0), "not both"),
        (new_task("x", b"", delay=10.0, expires=10.0), "expire before it is due"),
    ],
)
def test_what_makes_no_sense_is_refused_at_the_door(item: NewTask, complaint: str) -> None:
    with pytest.raises(BadArguments, match=complaint):
        checked([new_task("x", b""), item], 100)


def test_when_a_task_runs_or_expires_is_not_part_of_what_it_is() -> None:
    plain = new_task("x", b"", key="k")
    for item in (new_task("x", b"", at=5.0), new_task("x", b"", expires=5.0), new_task("x", b"", expires_by=9.0)):
        assert content_digest(item) == content_digest(plain)


# -- through the shell ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite"])
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Desk]:
    made = Desk(MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "store.sqlite"))
    yield made
    made.queue.close()


def test_a_worker_gets_nothing_that_has_expired_though_nobody_has_looked_since(desk: Desk) -> None:
    late, in_time = desk.submit(b"p", expires=10.0) + desk.submit(b"p")
    desk.clock.advance(10.0)
    desk.beat()
    assert [task.id for task in desk.reserve()] == [in_time]
    outcome = desk.queue.result(late)
    assert (outcome.state, outcome.error) == ("failed", ("expired", "", "it did not begin within 10s", ""))
    (record,) = desk.queue.get([late])
    assert record is not None and record["expires_at"] == record["submitted_at"] + 10


def test_the_next_manager_knows_when_tasks_are_due_and_expire(desk: Desk) -> None:
    late, later = desk.submit(b"p", expires=60.0) + desk.submit(b"p", at=desk.clock.wall() + 100.0)
    desk.queue.close()
    again = Desk(desk.store)
    again.later(59.9)
    assert (again.state(late), again.state(later)) == ("pending", "scheduled")
    again.later(0.1)
    assert again.queue.result(late).error == ("expired", "", "it did not begin within 1m00s", "")
    again.later(39.9)
    assert again.reserve() == []
    again.later(0.1)
    assert [task.id for task in again.reserve()] == [later]
    again.queue.close()
