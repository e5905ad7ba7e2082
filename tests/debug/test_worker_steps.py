"""The steps of a worker process's threads one by one, by hand: what reaches the manager in an order that is rare in
life."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from taskq.clock import SystemClock
from taskq.errors import ManagerUnavailable
from taskq.registry import STOPPING, TaskType
from taskq.service import MAX_BATCH
from taskq.shapes import ACK, NACK, PROGRESS, Attached, Handout, Report, Reserved
from taskq.wire.codec import encode_arguments
from taskq.workers import worker as worker_module
from taskq.workers.attachment import Attachment, Outcome
from taskq.workers.slots import SlotTable
from taskq.workers.worker import Worker


class Manager:
    """What a worker process sees of a manager, over each of its connections. ``coming`` is what the next reserve
    brings, ``reports`` are the calls of `report`; while it is ``away``, all calls fail."""

    def __init__(self) -> None:
        self.coming: list[Handout] = []
        self.reports: list[list[Report]] = []
        self.store_id = 1
        self.away = False

    def hello(self) -> dict[str, int]:
        if self.away:
            raise ManagerUnavailable("away")
        return {"store_id": self.store_id}

    def attach(self, worker: object, held: object) -> Attached:
        return Attached(session=1, store_id=self.store_id, epoch=1, lost=())

    def reserve(self, *wanted: object) -> Reserved:
        tasks, self.coming = self.coming, []
        return Reserved(tasks, False)

    def report(self, incarnation: str, session: int, reports: Sequence[Report]) -> Sequence[int]:
        self.hello()
        self.reports.append(list(reports))
        return ()

    def close(self) -> None:
        pass


class Bench:
    """A worker whose threads are not started: a test takes their steps. Its tasks note that they ran in ``ran``.

    It takes as many tasks as it may hold, for a task thread each; the test is the first of these."""

    def __init__(self) -> None:
        self.manager = Manager()
        self.ran: list[int] = []
        self.slots = SlotTable.create(1)
        info: Any = {"incarnation": "w"}
        self.attachment = Attachment(lambda: self.manager, info, lambda: None)  # type: ignore[arg-type,return-value]
        types = {"note": TaskType(self.ran.append, "note")}
        self.worker = Worker(self.attachment, types.get, self.slots, MAX_BATCH, SystemClock())
        self.attachment.attach()

    def hand_out(self, *runs: int) -> list[Handout]:
        """Let these come in by one reserve."""
        fields = ("q", 1, None, "", 0.0)
        tasks = [Handout(run, run, "note", encode_arguments((run,), {}), *fields) for run in runs]
        self.manager.coming = tasks
        self.worker._reserve_step()
        return tasks

    def work(self) -> None:
        """Be the task thread for all that has come in."""
        self.worker._backlog.close()
        self.worker._work(0)

    def attach_again(self) -> None:
        self.attachment.close()
        self.worker._reserve_step()

    def reported(self) -> list[Report]:
        """What the next call of `report` brings."""
        self.worker._report_step()
        return self.manager.reports[-1]

    def close(self) -> None:
        self.worker._executor.close()
        self.slots.close()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(worker_module, "TICK", 0.0)
    made = Bench()
    yield made
    made.close()
    STOPPING.clear()


# -- a cancel that is here before the task


def test_a_task_that_is_cancelled_while_it_is_on_its_way_never_begins(bench: Bench) -> None:
    bench.worker.cancel(7)
    bench.hand_out(7, 8)
    bench.work()
    cancelled, done = bench.reported()
    assert (*cancelled[:3], cancelled[3][0]) == (NACK, 7, 7, "cancelled")
    assert done[:3] == (ACK, 8, 8)
    assert bench.ran == [8]
    assert not STOPPING


def test_cancels_of_others_do_not_put_out_one_whose_task_is_on_its_way(bench: Bench) -> None:
    bench.hand_out(1)
    for run in (7, 1, 9):
        bench.worker.cancel(run)
    bench.hand_out(7)
    bench.work()
    assert [(report[1], report[3][0]) for report in bench.reported()] == [(1, "cancelled"), (7, "cancelled")]
    assert bench.ran == []


def test_cancels_of_what_never_comes_take_little_room(bench: Bench) -> None:
    count = MAX_BATCH + 500
    for run in range(count):
        bench.worker.cancel(run)
    assert len(STOPPING) <= MAX_BATCH
    assert not bench.worker._executor._watchdog._cancels
    assert count - 1 in STOPPING


def test_what_was_on_its_way_is_lost_with_the_session_and_so_is_its_cancel(bench: Bench) -> None:
    """Another store may give the same number to a task that nobody cancelled."""
    (running,) = bench.hand_out(1)
    bench.worker.cancel(running.run)
    bench.worker.cancel(7)
    bench.attach_again()
    assert {running.run} == STOPPING
    bench.manager.store_id = 2
    bench.attach_again()
    bench.hand_out(7)
    bench.work()
    assert bench.ran == [7]


# -- progress


def test_progress_takes_no_more_room_while_the_manager_is_away(bench: Bench) -> None:
    (task,) = bench.hand_out(1)
    bench.manager.away = True
    for step in range(100):
        bench.worker._on_progress(task, step / 100, "")
        bench.worker._report_step()
    assert len(bench.worker._unsent) == 1
    bench.manager.away = False
    bench.attach_again()
    assert bench.reported() == [(PROGRESS, 1, 1, 0.99, "")]


def test_an_outcome_takes_the_place_of_its_tasks_progress_and_keeps_its_own(bench: Bench) -> None:
    first, second, third = bench.hand_out(1, 2, 3)
    bench.manager.away = True
    for task in (third, second, first):
        bench.worker._on_progress(task, 0.5, "")
    bench.worker._report_step()
    finished = bench.worker._finished
    finished += [Outcome(task, (ACK, task.id, task.run, b"", 0.1)) for task in (first, second)]
    bench.worker._report_step()
    for task in (first, third):
        bench.worker._on_progress(task, 0.75, "of a thread that the task left behind, for one")
    bench.manager.away = False
    bench.attach_again()
    told = [(report[0], report[1]) for report in bench.reported()]
    assert [word for word in told if word[0] == ACK] == [(ACK, 1), (ACK, 2)]
    assert [word for word in told if word[0] == PROGRESS] == [(PROGRESS, 3)]


def test_what_has_gathered_while_the_manager_was_away_goes_in_one_call(bench: Bench) -> None:
    tasks = bench.hand_out(*range(1, MAX_BATCH))
    bench.manager.away = True
    for task in tasks:
        bench.worker._on_progress(task, 0.5, "")
        bench.worker._report_step()
        bench.worker._finished.append(Outcome(task, (ACK, task.id, task.run, b"", 0.1)))
    bench.manager.away = False
    bench.attach_again()
    assert [report[:2] for report in bench.reported()] == [(ACK, task.id) for task in tasks]
