"""History, requeue and drop, in process over both stores, with a clock that the test moves and restarts in between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from test_basic_queue import ERROR, Desk

from taskq.errors import BadArguments, QueueFull, TaskNotFound
from taskq.queue.history import MAX_TEXT, OUTCOMES
from taskq.shapes import ACK, NACK, SNOOZE
from taskq.stores.base import KEEP_ATTEMPTS, Store
from taskq.stores.memory import MemoryStore
from taskq.stores.sqlite import SqliteStore


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "store.sqlite")


@pytest.fixture
def desk(store: Store) -> Iterator[Desk]:
    made = Desk(store)
    yield made
    made.queue.close()


def run(desk: Desk, *report: object) -> None:
    """Hand one task out and report this of it: (kind, what follows the run)."""
    desk.later(3_600.0)
    ((task,), _) = desk.queue.reserve("one", desk.session, 1, 0, (), 0.0)
    kind, *rest = report
    assert desk.queue.report("one", desk.session, [(kind, task.id, task.run, *rest)]) == []


def outcomes(desk: Desk, id: int) -> list[str]:
    found = [attempt["outcome"] for attempt in desk.queue.history(id)]
    assert set(found) <= OUTCOMES.keys()
    return found


def fail(desk: Desk, **options: object) -> int:
    (id,) = desk.submit(b"p" * 100, max_retries=0, **options)  # type: ignore[arg-type]  # it is what the desk takes
    run(desk, NACK, ERROR, None, 0.5)
    return id


def test_a_task_that_completes_at_once_writes_nothing_of_its_own(desk: Desk, store: Store) -> None:
    (id,) = desk.submit(b"p")
    assert desk.queue.history(id) == []
    run(desk, ACK, b"r", 2.0)
    (only,) = desk.queue.history(id)
    assert store.attempts(id) == []
    assert (only["outcome"], only["worker"], only["ended_at"] - only["started_at"]) == ("completed", "pool/one", 2.0)


def test_every_attempt_is_told_in_order_and_over_a_restart(desk: Desk, store: Store) -> None:
    (id,) = desk.submit(b"p", max_retries=5)
    run(desk, NACK, ERROR, None, 0.5)
    run(desk, NACK, ("timeout", "TaskTimeout", "ran longer", "T" * 20_000), None, 0.5)
    run(desk, SNOOZE, 5.0)
    desk.clock.advance(3_600.0)
    desk.queue.tick()
    desk.queue.close()
    desk = Desk(store)
    desk.later(20_000.0)
    ((task,), _) = desk.queue.reserve("one", desk.session, 1, 0, (), 0.0)
    assert outcomes(desk, id) == ["failed", "timeout", "snoozed", "running"]
    evidence = {"rss": [(10.0, 2**20), (0.5, 2**30)], "stderr": "last words", "crash": "Current thread …"}
    desk.queue.child_died("pool-of-one", "one", "signal 11 (SIGSEGV)", [(id, task.run)], True, evidence)  # type: ignore[arg-type]
    first, timeout, snoozed, died = desk.queue.history(id)
    assert (first["type"], first["message"], first["traceback"]) == ERROR[1:]
    assert first["ended_at"] - first["started_at"] == 0.5 and first["death"] is None
    assert len(timeout["traceback"]) == MAX_TEXT and snoozed["message"] == ""
    assert died["outcome"] == "died" and died["traceback"] == "Current thread …" and "SIGSEGV" in died["message"]
    assert died["death"] == {"how": "signal 11 (SIGSEGV)", "rss": [[10.0, 2**20], [0.5, 2**30]], "stderr": "last words"}
    desk.queue.cancel([id])
    assert outcomes(desk, id)[-1] == "died"
    desk.queue.close()


def test_the_last_ten_attempts_are_kept_and_go_with_the_record(desk: Desk, store: Store) -> None:
    (id,) = desk.submit(b"p", max_retries=50)
    (other,) = desk.submit(b"p", max_retries=50, type="other", delay=1e6)
    for number in range(KEEP_ATTEMPTS + 3):
        run(desk, NACK, ("error", "E", str(number), ""), 0.0, 0.5)
    assert [one["message"] for one in desk.queue.history(id)] == [str(n) for n in range(3, KEEP_ATTEMPTS + 3)]
    run(desk, ACK, b"r", 0.5)
    assert outcomes(desk, id) == ["failed"] * (KEEP_ATTEMPTS - 1) + ["completed"]
    desk.clock.advance(1.0)
    assert desk.queue.purge(["completed"], 0.0) == 1 and store.attempts(id) == []
    with pytest.raises(TaskNotFound):
        desk.queue.history(id)
    assert desk.queue.history(other) == []


def test_requeue_gives_a_new_budget_and_keeps_the_history(desk: Desk, store: Store) -> None:
    id = fail(desk)
    (cancelled,) = desk.submit(b"q", delay=1e6)
    desk.queue.cancel([cancelled])
    (done,) = desk.submit(b"r")
    run(desk, ACK, b"r", 0.5)
    assert desk.queue.requeue([id, cancelled, done, 99, id]) == [
        "requeued",
        "requeued",
        "completed",
        "unknown",
        "requeued",
    ]
    assert desk.queue.requeue([id]) == ["pending"]
    kept = desk.queue.snapshot()["kept"]
    assert (kept["failed"], kept["cancelled"], kept["completed"]) == (0, 0, 1)
    desk.queue.close()
    desk = Desk(store)
    desk.later(20_000.0)
    (record,) = desk.queue.get([id])
    assert record is not None
    assert (record["state"], record["failures"], record["error"], record["payload"]) == ("pending", 0, None, b"p" * 100)
    tasks, _ = desk.queue.reserve("one", desk.session, 2, 0, (), 0.0)
    assert [(task.id, task.payload, task.attempt) for task in tasks] == [(id, b"p" * 100, 1), (cancelled, b"q", 1)]
    desk.queue.report("one", desk.session, [(ACK, id, tasks[0].run, b"r", 0.5)])
    assert outcomes(desk, id) == ["failed", "completed"] and outcomes(desk, cancelled) == ["running"]
    desk.queue.close()


def test_a_requeued_task_is_called_for_at_once_and_fails_anew(desk: Desk) -> None:
    id = fail(desk)
    desk.queue.requeue([id])
    run(desk, NACK, ERROR, None, 0.5)
    assert outcomes(desk, id) == ["failed", "failed"] and desk.queue.result(id).failures == 1
    assert desk.queue.drop([id, 99]) == ["dropped", "unknown"]
    assert desk.queue.snapshot()["kept"]["failed"] == 0 and desk.queue.get([id]) == [None]


def test_only_failed_tasks_are_dropped(desk: Desk) -> None:
    (pending, scheduled) = (*desk.submit(b"p"), *desk.submit(b"p", delay=9e5))
    desk.queue.cancel([scheduled])
    assert desk.queue.drop([pending, scheduled]) == ["pending", "cancelled"]
    assert len([record for record in desk.queue.get([pending, scheduled]) if record]) == 2


def test_a_full_queue_takes_nothing_back(store: Store) -> None:
    desk = Desk(store, max_pending=2)
    id = fail(desk)
    desk.submit(b"p", b"p")
    with pytest.raises(QueueFull):
        desk.queue.requeue([id])
    assert desk.queue.result(id).state == "failed"
    with pytest.raises(BadArguments):
        desk.queue.requeue(range(1_001))
    desk.queue.close()


def test_a_key_of_a_dropped_task_stays_known_for_a_day(desk: Desk) -> None:
    id = fail(desk, key="k")
    desk.queue.drop([id])
    assert desk.submit(b"p" * 100, max_retries=0, key="k") == [id]
