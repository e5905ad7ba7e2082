"""Why a task does not run now: each cause on the pure queue."""

from __future__ import annotations

from typing import Any

import pytest

from taskq.clock import FakeClock
from taskq.config import QueueSettings
from taskq.errors import TaskNotFound
from taskq.queue import ready
from taskq.queue.explain import explain
from taskq.queue.job_queue import JobQueue
from taskq.queue.leases import Moment, Worker
from taskq.queue.state import QueueState
from taskq.queue.task_row import to_row
from taskq.queue.terms import NewTask, new_task
from taskq.service import STRICT
from taskq.shapes import ACK, NACK, SNOOZE
from taskq.stores.base import QueueRow
from taskq.stores.memory import MemoryStore

START = Moment(100.0, 1_700_000_000.0)
POOL = {"id": "pool", "name": "pool", "host": "h", "pid": 1, "local": None}
ERROR = ("error", "ValueError", "no\nmore", "")


def after(seconds: float) -> Moment:
    return Moment(START.mono + seconds, START.wall + seconds)


def info(name: str = "w", queues: tuple[str, ...] = (), order: str = "", types: tuple[str, ...] = ("x", "y")) -> Any:
    return {
        **{"incarnation": name, "pool": POOL, "name": name, "host": "h", "pid": 2, "threads": 2},
        **{"queues": queues, "queue_order": order, "types": [{"name": kind} for kind in types]},
    }


def join(state: QueueState, name: str = "w", **others: Any) -> Worker:
    return state.attach(info(name, **others), [], START)[0]


def put(state: QueueState, *items: NewTask, now: Moment = START) -> list[int]:
    return list(state.submit(1, items, {}, now).ids)


def take(state: QueueState, worker: Worker, slots: int = 1, now: Moment = START) -> list[int]:
    return [task.id for task in state.reserve(worker, slots, 0, (), 0, now)[0]]


def causes(state: QueueState, number: int, now: Moment = START, known: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    found = explain(state, state.tasks[number], now, known)
    for cause in found:
        assert cause["text"] and "\n" not in cause["text"], "one line a cause"
    return found


def codes(state: QueueState, number: int, now: Moment = START) -> list[str]:
    return [cause["code"] for cause in causes(state, number, now)]


def test_a_paused_queue_says_by_whom_and_since_when() -> None:
    state = QueueState(QueueSettings())
    join(state)
    [number] = put(state, new_task("x", b"", queue="mail"))
    state.rules.put(QueueRow("mail", "ann@host", START.wall))
    first, position = causes(state, number, after(5.0))
    assert (first["code"], first["by"], first["for_s"]) == ("queue_paused", "ann@host", 5.0)
    assert first["since"] == "2023-11-14T22:13:20.000Z"
    assert first["text"] == 'queue "mail" is paused by ann@host since 2023-11-14 22:13:20 UTC (5.0s)'
    assert (position["code"], position["before"], position["start_s"]) == ("position", 0, None)


def test_what_is_not_due_yet_says_why_and_what_else_keeps_it() -> None:
    state = QueueState(QueueSettings())
    worker = join(state)
    later, retried, put_off = put(
        state, new_task("x", b"", delay=90.0), new_task("x", b"", max_retries=4, backoff=8.0), new_task("y", b"")
    )
    assert take(state, worker, 2) == [retried, put_off]
    runs = {number: state.tasks[number].run for number in (retried, put_off)}
    reports = [(NACK, retried, runs[retried], ERROR, 10.0, 0.1), (SNOOZE, put_off, runs[put_off], 60.0)]
    assert state.report(worker, reports, START)[0] == []
    [cause] = causes(state, later)
    assert cause["text"] == "not due until 2023-11-14 22:14:50 UTC (in 1m30s): it was submitted for then"
    [cause] = causes(state, retried, after(4.0))
    assert (cause["code"], cause["due_s"], cause["failures"], cause["max_retries"]) == ("backoff", 6.0, 1, 4)
    assert cause["text"].endswith("(in 6.0s), after attempt 1 of 5 failed: ValueError: no")
    [cause] = causes(state, put_off)
    assert (cause["code"], cause["due_at"]) == ("not_due", "2023-11-14T22:14:20.000Z")
    state.rules.put(QueueRow("default", "ann@host", START.wall))
    assert codes(state, later) == ["not_due", "queue_paused"]


def test_what_expires_says_when() -> None:
    state = QueueState(QueueSettings())
    join(state)
    [number] = put(state, new_task("x", b"", delay=5.0, expires=60.0))
    first, last = causes(state, number, after(1.0))
    assert (first["code"], last["code"], last["left_s"]) == ("not_due", "expires", 59.0)
    assert last["text"] == "it expires if it has not begun by 2023-11-14 22:14:20 UTC (in 59s)"


def test_after_a_death_of_its_worker() -> None:
    state = QueueState(QueueSettings())
    worker = join(state)
    [number] = put(state, new_task("x", b""))
    take(state, worker)
    state.leases.remove("w", dead=True)
    state.worker_gone(worker, "signal 9", worker.under_way(), START, counts=True)
    first, second = causes(state, number)
    assert (first["code"], first["deaths"], second["code"]) == ("backoff_after_death", 1, "type_unserved")


def test_no_worker_for_its_type_or_its_queue() -> None:
    state = QueueState(QueueSettings())
    number, other = put(state, new_task("resize_imag", b""), new_task("x", b"", queue="mail"))
    [cause, _] = causes(state, number, known=("resize_imag",))
    assert cause["text"] == 'no worker is there to run "resize_imag"'
    join(state, types=("resize_image", "x"), queues=("default",))
    [cause, _] = causes(state, number)
    assert (cause["code"], cause["nearest"]) == ("type_unserved", "resize_image")
    assert cause["text"] == 'no worker offers "resize_imag" (nearest: "resize_image")'
    [cause, _] = causes(state, other)
    assert (cause["code"], cause["workers"]) == ("queue_unserved", ["w"])


def test_busy_silent_and_strict_workers() -> None:
    state = QueueState(QueueSettings())
    worker = join(state, queues=("a", "b"), order=STRICT)
    first, second, third = put(state, *[new_task("x", b"", queue="b")] * 3)
    assert codes(state, first) == ["next"]
    assert codes(state, second) == ["position"]
    put(state, new_task("x", b"", queue="a"))
    cause, _ = causes(state, first)
    assert (cause["code"], cause["queues"], cause["pending"]) == ("queues_before", ["a"], 1)
    take(state, worker, 2)
    cause, _ = causes(state, second)
    assert (cause["code"], cause["threads"], cause["workers"]) == ("slots_busy", 2, ["w"])
    cause, _ = causes(state, third, after(25.0))
    assert (cause["code"], cause["workers"]) == ("workers_away", ["w"])


def test_a_limit_and_the_time_that_the_recent_rate_promises() -> None:
    state = QueueState(QueueSettings())
    worker = join(state)
    ids = put(state, *[new_task("x", b"")] * 30)
    state.rules.put(QueueRow("default", max_running=1))
    for second in range(10):  # two a second
        for _ in range(2):
            now = after(second)
            state.leases.beat(POOL, [{"incarnation": "w", "stopped": False}], now.mono)
            [number] = take(state, worker, 2, now)
            state.report(worker, [(ACK, number, state.tasks[number].run, b"r", 0.1)], now)
    assert take(state, worker, 2, after(10)) == [ids[20]]
    limit, position = causes(state, ids[28], after(10))
    assert (limit["code"], limit["limit"], limit["running"]) == ("queue_limit", 1, 1)
    assert (position["before"], position["start_s"]) == (7, pytest.approx(4.0, rel=0.15))
    assert position["text"].startswith('7 tasks go before it in queue "default"; at the recent rate of 2.0 a second')


def test_held_after_a_restart() -> None:
    before = QueueState(QueueSettings())
    accepted = before.submit(1, [new_task("x", b"")], {}, START)
    state = QueueState(QueueSettings(), epoch=2, next_id=before.next_id)
    state.leases.expect("old", "pool", "old", "h", 2, START.mono)
    state.load(map(to_row, accepted.changes.written), START)
    join(state)
    first, _ = causes(state, accepted.ids[0], after(2.0))
    assert (first["code"], first["for_s"], first["workers"]) == ("held_after_restart", 3.0, ["old"])


def test_what_runs_and_what_is_over() -> None:
    clock, store = FakeClock(), MemoryStore()
    queue = JobQueue(store, clock, QueueSettings())
    queue.open()
    session = queue.attach(info(), ())["session"]
    queue.submit(1, 1, [new_task("x", b"", max_retries=0), new_task("x", b""), new_task("x", b"", delay=5.0)])
    first, second = queue.reserve("w", session, 2, 0, (), 0.0).tasks
    clock.advance(25.0)
    queue.cancel([1, 3])
    told = queue.explain(1)
    assert (told["id"], told["type"], told["queue"], told["state"]) == (1, "x", "default", "running")
    found = {cause["code"]: cause for cause in told["causes"]}
    assert list(found) == ["running", "cancel_requested", "worker_silent"]
    assert (found["running"]["for_s"], found["worker_silent"]["lease_s"]) == (25.0, 5.0)
    queue.report("w", session, [(NACK, 1, first.run, ERROR, -1, 0.5), (ACK, 2, second.run, b"r", 0.5)])
    clock.advance(60.0)
    [failed], [completed], [cancelled] = (queue.explain(number)["causes"] for number in (1, 2, 3))
    assert failed["text"] == "it failed for good 1m00s ago after 1 attempt on w: ValueError: no"
    assert completed["text"] == "it completed 1m00s ago on w"
    assert (cancelled["code"], cancelled["for_s"]) == ("cancelled", 60.0)
    with pytest.raises(TaskNotFound):
        queue.explain(4)


def test_a_position_is_exact_where_little_goes_before_and_about_right_where_much_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ready, "COUNTED", 100)
    state = QueueState(QueueSettings())
    join(state)
    back = put(state, *[new_task("x", b"", delay=1.0)] * 1_000)  # they will stand beside the line
    ids = put(state, *[new_task("x", b"")] * 1_000)
    urgent = put(state, *[new_task("y", b"", priority=5)] * 10)
    for number in (ids[0], ids[7], urgent[0]):
        state.cancel(number, START)
    assert causes(state, ids[50])[-1]["before"] == 48 + 9
    assert causes(state, ids[-1])[-1]["before"] == pytest.approx(997 + 9, abs=2), "cancelled ones may be counted"
    assert sum(len(changes.written) for changes in state.tick(after(1.0))) == 1_000
    now = after(1.0)
    assert causes(state, ids[50], now)[-1]["before"] == pytest.approx(1_000 + 48 + 9, rel=0.1)
    assert causes(state, back[50], now)[-1]["before"] == pytest.approx(50 + 9, abs=30)
