"""The checker over histories written by hand: each promise kept, and each broken in the smallest way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checker import STORM, Step, Stored, check, read_sqlite, read_store, told
from history import HistoryFile, HistoryList, digest, read_history
from observed import RUNS_PER_EPOCH as EPOCH

from taskq.clock import FakeClock
from taskq.config import QueueSettings
from taskq.queue.job_queue import JobQueue
from taskq.queue.task import State
from taskq.queue.task import Task as Record
from taskq.queue.task_row import TaskRow, to_row
from taskq.queue.terms import Terms, new_task
from taskq.stores.memory import MemoryStore
from taskq.stores.sqlite import SqliteStore

FIRST, SECOND = EPOCH + 1, EPOCH + 2


class Small:
    """A history of a few tasks and the record that belongs to it; `at` sets the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.history = HistoryList("test", lambda: self.now)
        self.tasks: dict[int, TaskRow] = {}
        self.keys: dict[str, int] = {}

    def at(self, seconds: float) -> HistoryList:
        """Go on to this time."""
        self.now = seconds
        return self.history

    def submitted(self, *ids: int, key: str | None = None, seq: int = 1, kept: bool = True) -> None:
        """Submit these tasks and hear of it."""
        call = self.history.submit(7, seq, [("x", b"%d" % id, key) for id in ids])
        self.history.ok(call, ids=list(ids), existing=[])
        if kept:
            for id in ids:
                self.row(id, key=key)

    def row(self, id: int, payload: bytes | None = None, key: str | None = None, **fields: Any) -> None:
        """The record of a task: pending, unless more is said."""
        task = Record(id, Terms("x"), payload or b"%d" % id, key, "", 7, 0.0, 0.0, State.PENDING)
        self.tasks[id] = to_row(task)._replace(**fields)
        if key is not None:
            self.keys[key] = id

    def ran(self, id: int, run: int, at: float, worker: str = "w", result: bytes = b"r") -> None:
        """A worker gets a task and runs it to its end, within 0.2 s."""
        self.at(at).lease(id, run, worker)
        self.at(at + 0.1).start(id, run, worker)
        self.at(at + 0.2).end(id, run, worker, result)

    def acked(self, id: int, run: int, at: float, worker: str = "w", result: bytes = b"r") -> None:
        """It also reports, and the record says so."""
        self.ran(id, run, at, worker, result)
        since, self.now = self.now, at + 0.3
        self.history.report("ack", id, run, worker, since=since, outcome="accepted")
        self.completed(id, run, result)

    def completed(self, id: int, run: int, result: bytes = b"r", **fields: Any) -> None:
        """What the record says then."""
        self.row(id, state=int(State.COMPLETED), run=run, result=result, **fields)

    def nacked(self, id: int, run: int, at: float, **more: Any) -> None:
        """A run that fails."""
        self.at(at).lease(id, run, "w")
        self.history.start(id, run, "w")
        self.history.fail(id, run, "w")
        self.history.report("nack", id, run, "w", since=at, outcome="accepted", **more)

    def broken(self, *promises: str, asked: dict[str, Any] | None = None, **more: Any) -> set[str]:
        """The promises that the checker finds broken; ``asked``: more that the store was asked."""
        stored = Stored(self.tasks, self.keys, **(asked or {}))
        return {found.promise for found in check(self.history.records, stored, promises or (*STORM, "I10"), **more)}


@pytest.fixture
def small() -> Small:
    """Two tasks that were submitted and have completed."""
    small = Small()
    small.submitted(1, 2)
    small.acked(1, FIRST, 1.0)
    small.acked(2, SECOND, 2.0)
    return small


def lost_submit(small: Small) -> None:
    del small.tasks[2]


def another_task(small: Small) -> None:
    small.tasks[1] = small.tasks[1]._replace(payload=b"something else")


def lost_outcome(small: Small) -> None:
    small.row(1, state=int(State.CANCELLED))


def lost_cancel(small: Small) -> None:
    small.history.ok(small.history.call("cancel", ids=[1]), labels=["cancelled"])


def unexpected(small: Small) -> None:
    small.row(3, b"1", state=int(State.CANCELLED))


def two_records_a_key(small: Small) -> None:
    small.submitted(3, 4, key="k", seq=2)


def key_answered_twice(small: Small) -> None:
    small.submitted(3, key="k", seq=2)
    small.at(3).ok(small.history.submit(8, 1, [("x", b"3", "k")]), ids=[4], existing=[0])
    small.row(4, b"3")


def key_with_other_content(small: Small) -> None:
    small.submitted(3, key="k", seq=2)
    small.at(3).ok(small.history.submit(8, 1, [("x", b"other", "k")]), ids=[3], existing=[0])


def completed_twice(small: Small) -> None:
    small.at(3).fault("kill", workers=["w"], deaths=[(1, FIRST)])
    small.acked(1, SECOND + 1, 4.0, worker="v")
    small.completed(1, SECOND + 1, deaths=1)


def result_of_another(small: Small) -> None:
    small.completed(1, FIRST, b"of another run")


def completed_without_end(small: Small) -> None:
    small.completed(1, FIRST + 9)


def run_given_twice(small: Small) -> None:
    small.submitted(3, seq=2)
    small.acked(3, SECOND, 3.0)


def runs_fall(small: Small) -> None:
    small.nacked(1, SECOND + 5, 0.5, pause=0.1)
    small.completed(1, FIRST, failures=1)


def stale_outcome(small: Small) -> None:
    small.submitted(3, seq=2)
    small.ran(3, SECOND + 1, 3.0)
    small.history.fault("pause", workers=["w"], deaths=[(3, SECOND + 1)])
    small.ran(3, SECOND + 2, 4.0, worker="v")
    small.at(5.0).report("ack", 3, SECOND + 1, "w", since=5.0, outcome="accepted")
    small.completed(3, SECOND + 1, deaths=1)


def overlapping(small: Small) -> None:
    small.submitted(3, seq=2)
    small.at(3.0).lease(3, SECOND + 1, "w")
    small.acked(3, SECOND + 2, 3.1, worker="v")


def too_soon_after_silence(small: Small) -> None:
    small.submitted(3, seq=2)
    small.at(3.0).start(3, SECOND + 1, "w")
    small.history.fault("pause", workers=["w"], deaths=[(3, SECOND + 1)], grace=20.0)
    small.acked(3, SECOND + 2, 10.0, worker="v")
    small.completed(3, SECOND + 2, deaths=1)


def after_cancel(small: Small) -> None:
    small.submitted(3, seq=2)
    small.at(3.0).ok(small.history.call("cancel", ids=[3]), labels=["cancelled"])
    small.at(4.0).lease(3, SECOND + 1, "w")
    small.row(3, state=int(State.CANCELLED))


def two_effects_a_run(small: Small) -> None:
    small.history.start(1, FIRST, "w")


def second_run_without_need(small: Small) -> None:
    small.submitted(3, seq=2)
    small.at(3.0).fault("kill", workers=["another"])
    small.ran(3, SECOND + 1, 3.0)
    small.acked(3, SECOND + 2, 4.0)


def no_effect(small: Small) -> None:
    small.submitted(3, seq=2)
    small.completed(3, SECOND + 1)


def failure_not_counted(small: Small) -> None:
    small.submitted(3, seq=2)
    small.nacked(3, SECOND + 1, 3.0)
    small.acked(3, SECOND + 2, 4.0)


def death_not_counted(small: Small) -> None:
    small.submitted(3, seq=2)
    small.at(3.0).start(3, SECOND + 1, "v")
    small.history.fault("kill", workers=["v"], deaths=[(3, SECOND + 1)], sure=True)
    small.acked(3, SECOND + 2, 4.0)


def poisoned_too_soon(small: Small) -> None:
    small.submitted(3, seq=2)
    for nth in (1, 2):
        small.at(2.0 + nth).start(3, SECOND + nth, f"v{nth}")
        small.history.fault("kill", workers=[f"v{nth}"], deaths=[(3, SECOND + nth)], sure=True)
    small.row(3, state=int(State.FAILED), run=SECOND + 2, deaths=2, error=("poisoned", "", "", ""))


def given_up_too_soon(small: Small) -> None:
    small.submitted(3, seq=2)
    small.nacked(3, SECOND + 1, 3.0)
    small.row(3, state=int(State.FAILED), run=SECOND + 1, failures=1, error=("error", "", "", ""))


def pause_too_short(small: Small) -> None:
    small.submitted(3, seq=2)
    small.nacked(3, SECOND + 1, 3.0, pause=2.0)
    small.acked(3, SECOND + 2, 4.0)
    small.completed(3, SECOND + 2, failures=1)


def never_ends(small: Small) -> None:
    small.submitted(3, seq=2)


def ends_late(small: Small) -> None:
    small.at(10.0).phase("faults over")
    small.at(99.0).phase("idle")


def out_of_order(small: Small) -> None:
    small.submitted(3, 4, seq=2)
    small.acked(4, SECOND + 1, 3.0)
    small.acked(3, SECOND + 2, 4.0)


def two_answers(small: Small) -> None:
    small.submitted(3, seq=1)
    small.completed(3, SECOND + 1)
    small.ran(3, SECOND + 1, 3.0)


def never_answered(small: Small) -> None:
    small.history.unknown(small.history.submit(7, 5, [("x", b"9", None)]))


BROKEN: list[tuple[str, Callable[[Small], None]]] = [
    ("I1", lost_submit),
    ("I1", another_task),
    ("I1", lost_outcome),
    ("I1", lost_cancel),
    ("I2", unexpected),
    ("I3", two_records_a_key),
    ("I3", key_answered_twice),
    ("I3", key_with_other_content),
    ("I4", completed_twice),
    ("I4", result_of_another),
    ("I4", completed_without_end),
    ("I5", run_given_twice),
    ("I5", runs_fall),
    ("I5", stale_outcome),
    ("I6", overlapping),
    ("I6", too_soon_after_silence),
    ("I6", after_cancel),
    ("I7", two_effects_a_run),
    ("I7", second_run_without_need),
    ("I7", no_effect),
    ("I8", failure_not_counted),
    ("I8", death_not_counted),
    ("I8", poisoned_too_soon),
    ("I8", given_up_too_soon),
    ("I8", pause_too_short),
    ("I9", never_ends),
    ("I9", ends_late),
    ("I10", out_of_order),
    ("I12", two_answers),
    ("I12", never_answered),
]


def test_a_good_run_keeps_every_promise(small: Small) -> None:
    assert small.broken(limit=1.0) == set()


@pytest.mark.parametrize(("promise", "breaks"), BROKEN, ids=lambda value: getattr(value, "__name__", value))
def test_a_broken_promise_is_found(small: Small, promise: str, breaks: Callable[[Small], None]) -> None:
    breaks(small)
    assert small.broken(promise, limit=10.0) == {promise}


def test_runs_that_faults_explain_are_in_order(small: Small) -> None:
    small.submitted(3, 4, 5, 6, seq=2)
    small.nacked(3, SECOND + 1, 3.0, pause=1.0)
    small.acked(3, SECOND + 2, 4.0)
    small.completed(3, SECOND + 2, failures=1)
    small.at(5.0).start(4, SECOND + 3, "v")
    small.history.fault("kill", workers=["v"], deaths=[(4, SECOND + 3)], sure=True)
    small.acked(4, SECOND + 4, 6.0)
    small.completed(4, SECOND + 4, deaths=1)
    small.at(7.0).start(5, SECOND + 5, "p")
    small.at(7.5).fault("pause", workers=["p"], deaths=[(5, SECOND + 5)], grace=2.0, until=20.0)
    small.acked(5, SECOND + 6, 10.0)
    small.at(21.0).report("ack", 5, SECOND + 5, "p", since=20.5, outcome="refused")
    small.completed(5, SECOND + 6, deaths=1)
    small.at(22.0).start(6, SECOND + 7, "w")  # two managers die before it can come back
    small.acked(6, 3 * EPOCH + 1, 30.0)
    assert small.broken(*STORM) == set()


def test_a_call_that_was_tried_again_has_one_answer(small: Small) -> None:
    small.history.unknown(small.history.submit(7, 2, [("x", b"3", None)]))
    small.history.refused(small.history.submit(7, 2, [("x", b"3", None)]), "busy")
    small.submitted(3, seq=2)
    small.acked(3, SECOND + 1, 3.0)
    assert small.broken() == set()


@pytest.mark.parametrize(
    ("promise", "asked"),
    [
        ("I1", {"next_id": 2}),
        ("I5", {"epoch": SECOND // EPOCH}),
        ("I12", {"calls": {(7, 1): (1, 1)}}),
        ("I12", {"calls": {(7, 1): None}}),
    ],
)
def test_nothing_is_given_again_and_calls_stay_known(small: Small, promise: str, asked: dict[str, Any]) -> None:
    assert small.broken(asked=asked) == {promise}
    assert not small.broken(asked={"next_id": 3, "epoch": SECOND // EPOCH + 1, "calls": {(7, 1): (1, 2)}})


def test_replies_leave_after_the_sync_of_their_commit() -> None:
    good = [Step("write", 1), Step("sync"), Step("reply", 1), Step("write", 2), Step("reply", 1), Step("sync")]
    assert check([], Stored({}), (), trace=[*good, Step("reply", 2)]) == []
    assert [found.promise for found in check([], Stored({}), (), trace=[*good[:4], Step("reply", 2)])] == ["I11"]


def test_the_side_counter_is_never_ahead() -> None:
    assert check([], Stored({}), (), crashes=[(4, 4), (3, 4)]) == []
    assert "5" in told(check([], Stored({}), (), crashes=[(5, 4)]))


def test_a_history_outlives_its_writer_and_half_a_line_does_not_count(tmp_path: Path) -> None:
    first, second = HistoryFile(tmp_path, "first"), HistoryFile(tmp_path, "second")
    second.start(1, 2, "w")
    first.end(1, 2, "w", b"r")
    with (tmp_path / f"{first.by}.history").open("a") as file:
        file.write(json.dumps({"event": "fail"})[:-3])
    first.close()
    second.close()
    found = read_history(tmp_path)
    assert [record["event"] for record in found] == ["start", "end"] and found[1]["result"] == digest(b"r")


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_stores_are_read_as_they_are(tmp_path: Path, kind: str) -> None:
    store = MemoryStore() if kind == "memory" else SqliteStore(tmp_path / "store", reserve=0)
    queue = JobQueue(store, FakeClock(), QueueSettings())
    queue.open()
    payloads = [b"small", bytes(5_000)]
    queue.submit(1, 1, [new_task("x", payload, key=f"k{len(payload)}") for payload in payloads])
    read = [read_store(store)] + [read_sqlite(tmp_path / "store") for _ in range(2) if kind == "sqlite"]
    for found in read:
        assert [row.payload for row in found.tasks.values()] == payloads
        assert found.keys == {"k5": 1, "k5000": 2}
    queue.close()
