"""Clocks that jump and machines that sleep: leases know nothing of it, dates follow, and nothing is deleted for it.

The processes see clocks of their own through a preloaded library (`preloading.Clocks`).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, wait_until
from preloading import Clocks
from traces import MODULE, traces, write_module

from taskq import named
from taskq.clock import FakeClock
from taskq.config import QueueSettings
from taskq.queue.ageing import PACE
from taskq.queue.job_queue import JobQueue
from taskq.queue.terms import new_task
from taskq.shapes import ACK, NACK, SNOOZE, Submitted
from taskq.stores.memory import MemoryStore

HOUR, YEAR = 3600.0, 366 * 86400.0
LEASE = 3.0
DUE = 300.0
"""Seconds after their submit at which tasks are due, or expire."""
SEED = int(os.environ.get("TASKQ_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)

CASES = {
    "an hour ahead, where the clocks go on": (HOUR, 0.0, "Europe/Berlin"),
    "an hour back": (-HOUR, 0.0, "UTC"),
    "a year ahead": (YEAR, 0.0, "UTC"),
    "a year back": (-YEAR, 0.0, "UTC"),
    "a leap second": (-1.0, 0.0, "UTC"),
    "ten minutes of sleep": (600.0, 600.0, "UTC"),
}
"""Name -> (seconds of the wall clock, seconds of boot time, time zone)."""


@dataclass
class Scene:
    """A manager with a pool of its own and clocks of its own; the ids of tasks that were there before the jump."""

    name: str
    cluster: Cluster
    clocks: Clocks
    client: Any
    held: list[int]
    dated: int
    expiring: int
    done: int

    def record(self, id: int) -> Any:
        """A whole record; None where it is gone."""
        return self.cluster.service().get([id])[0]


@pytest.fixture
def clusters(tmp_path: Path) -> Iterator[dict[str, Cluster]]:
    """One for each case, all at once: they mostly wait."""
    with ExitStack() as closing:
        made = {}
        for number, name in enumerate(CASES):
            folder = tmp_path / str(number)
            folder.mkdir()
            made[name] = Cluster(folder, folder / "state")
            closing.callback(made[name].close)
        yield made


def begin(name: str, cluster: Cluster) -> Scene:
    write_module(cluster.folder)
    clocks = Clocks(cluster.folder)
    options = ("--tasks", MODULE, "--lease", f"{LEASE:g}s")
    cluster.manager(*options, workers=1, threads=4, TZ=CASES[name][2], **clocks.environment)
    cluster.service().pause_queue("idle", "test")
    client = cluster.client()
    done = client.submit("quick", 1)
    done.result(timeout=20)
    held = [client.submit("hold", "a").id for _ in range(2)]
    due = datetime.now(timezone.utc) + timedelta(seconds=DUE)
    dated = client.submit(named("quick", at=due), 2).id
    expiring = client.submit(named("quick", queue="idle", expires=DUE), 3).id
    return Scene(name, cluster, clocks, client, held, dated, expiring, done.id)


def test_leases_know_nothing_of_the_wall_clock_and_dates_follow_it(
    clusters: dict[str, Cluster], record_property: Callable[..., None]
) -> None:
    scenes = [begin(name, cluster) for name, cluster in clusters.items()]
    for scene in scenes:
        wait_until(lambda: len(traces(scene.cluster.folder, "begin")) == 3, 20.0, "the tasks to begin")  # noqa: B023
    retried = {}
    for scene in scenes:
        wall, boot, _ = CASES[scene.name]
        scene.clocks.set(wall=wall, boot=boot)
        retried[scene.name] = scene.client.submit("flaky", 9)
    began = time.monotonic()
    for scene in scenes:
        assert retried[scene.name].result(timeout=15) == 9, "a pause between attempts changed"
    wait_until(lambda: time.monotonic() - began > 2 * LEASE, 20.0, "leases that are wrong to end")
    for scene in scenes:
        wall = CASES[scene.name][0]
        states = [scene.record(id)["state"] for id in scene.held]
        assert states == ["running"] * 2, f"{scene.name}: {states}"
        assert scene.record(scene.done) is not None, f"{scene.name}: deleted before its time"
        dated, expiring = scene.record(scene.dated)["state"], scene.record(scene.expiring)
        assert dated == ("completed" if wall > DUE else "scheduled"), f"{scene.name}: {dated}"
        assert expiring["state"] == ("failed" if wall > DUE else "pending"), f"{scene.name}: {expiring}"
        assert 0 <= scene.cluster.snapshot()["manager"]["uptime_s"] < 1000
        (scene.cluster.folder / "a.go").touch()
    for scene in scenes:
        for id in scene.held:
            scene.client.result(id, timeout=20)
            assert scene.record(id)["deaths"] == 0
            assert len([one for one in traces(scene.cluster.folder, "begin") if one.id == id]) == 1, scene.name
    record_property("cases", len(scenes))
    print(f"T10: {len(scenes)} clocks that jumped, {2 * len(scenes)} leases over it, 0 ended or were run again")


UNIQUE: dict[str, Any] = {"unique": b"u", "unique_in": ("pending", "running"), "unique_within": 60.0}


class Desk:
    """A queue under a clock that stands still, and a worker that holds a task."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.queue = self.open()
        pool: Any = {"id": "p", "name": "p", "host": "h", "pid": 1, "local": None}
        kind = {"name": "t", "parameters": (), "queue": "default", "max_retries": 3, "backoff": 1.0, "timeout": None}
        info: Any = {"incarnation": "i", "pool": pool, "name": "w", "host": "h", "pid": 2, "threads": 9, "queues": ()}
        self.session = self.queue.attach({**info, "types": [{**kind, "workers": 0}]}, ())["session"]
        self.submit()
        self.queue.tick()
        [self.task] = self.queue.reserve("i", self.session, 1, 0, (), 0.0).tasks

    def open(self) -> JobQueue:
        """A manager of this store."""
        queue = JobQueue(self.store, self.clock, QueueSettings(lease=30.0))
        queue.open()
        return queue

    def restart(self) -> None:
        """The next manager takes over."""
        self.queue.close()
        self.queue = self.open()

    def submit(self, seq: int = 1, **options: Any) -> Submitted:
        """Submit a task; with the same number it is the same call."""
        return self.queue.submit(1, seq, [new_task("t", b"", jitter=False, **options)])

    def record(self, id: int) -> dict[str, Any]:
        """What the manager says of a task."""
        [record] = self.queue.get([id])
        assert record is not None
        return record

    def state(self) -> str:
        """What the task is now."""
        return str(self.queue.wait([1], 0)[0].state)


def test_a_lease_is_as_long_as_it_was_under_any_jumps() -> None:
    draw = random.Random(SEED)
    for number in range(200):
        desk = Desk()
        left = 30.0
        while left > 0.5:
            step = min(draw.uniform(0.01, 1.9), left - 0.25)
            desk.clock.advance(step)
            left -= step
            desk.clock.jump(draw.choice([0.0, 0.0, 1.0, HOUR, YEAR]) * draw.choice([-1, 1]))
            desk.queue.tick()
            assert desk.state() == "running", f"seed {SEED}, case {number}: {left} s were left"
        desk.clock.advance(left + 0.01)
        desk.queue.tick()
        assert desk.state() == "scheduled", f"seed {SEED}, case {number}: it should have ended"
    print(f"T10: 200 leases of exactly 30 s; repeat: TASKQ_TEST_SEED={SEED} pytest {__file__}")


@pytest.mark.parametrize("jump", [-YEAR, -HOUR, HOUR, YEAR])
def test_an_attempt_that_fails_just_after_a_jump_is_followed_in_time(jump: float) -> None:
    desk = Desk()
    desk.clock.jump(jump)
    error = ("error", "OSError", "no", "trace")
    desk.queue.report("i", desk.session, [(NACK, desk.task.id, desk.task.run, error, None, 0.1)])
    desk.queue.tick()
    assert desk.state() == "scheduled"
    desk.clock.advance(0.9)
    desk.queue.tick()
    assert desk.state() == "scheduled"
    desk.clock.advance(0.2)
    desk.queue.tick()
    assert desk.state() == "pending"


@pytest.mark.parametrize("jump", [-YEAR, YEAR])
def test_a_hand_out_just_after_a_jump_begins_by_the_new_time(jump: float) -> None:
    """And a pause that the jump has moved is written, although a hand-out was the first to see it."""
    desk = Desk()
    desk.queue.report("i", desk.session, [(SNOOZE, desk.task.id, desk.task.run, 60.0)])
    [other] = desk.submit(2).ids
    before = desk.record(1)["due_at"]
    desk.clock.jump(jump)
    [handed] = desk.queue.reserve("i", desk.session, 1, 0, (), 0.0).tasks
    assert handed.id == other
    desk.clock.advance(1.0)
    desk.queue.tick()
    assert desk.record(other)["started_at"] == desk.clock.wall() - 1.0
    assert desk.record(1)["due_at"] == before + jump
    desk.restart()
    assert desk.record(1)["due_at"] == before + jump


@pytest.mark.parametrize("restart", [False, True])
def test_a_window_that_began_while_the_clock_was_ahead_is_no_longer_than_others(restart: bool) -> None:
    desk = Desk()
    desk.clock.jump(YEAR)
    [first] = desk.submit(2, **UNIQUE).ids
    [handed] = desk.queue.reserve("i", desk.session, 1, 0, (), 0.0).tasks
    desk.queue.report("i", desk.session, [(ACK, handed.id, handed.run, b"r", 0.1)])
    desk.clock.jump(-YEAR)
    desk.clock.advance(HOUR)
    if restart:
        desk.restart()
    [second] = desk.submit(3, **UNIQUE).ids
    assert second != first == handed.id
    assert desk.submit(4, **UNIQUE).ids == [second]


@pytest.mark.parametrize("how", ["jump", "stop"])
def test_the_same_call_meets_the_same_twin_whatever_the_clock_does(how: str) -> None:
    desk = Desk()
    [twin] = desk.submit(2, **UNIQUE).ids
    assert desk.submit(3, **UNIQUE).ids == [twin]
    if how == "jump":
        desk.clock.jump(YEAR)
    else:
        desk.queue.close()
        desk.clock.advance(72 * HOUR)
        desk.queue = desk.open()
    for _ in range(65):
        desk.clock.advance(60.0)
        desk.queue.clean()
    desk.restart()
    assert desk.submit(3, **UNIQUE).ids == [twin]


def test_a_key_is_kept_for_a_day_after_its_purge_although_no_call_is_known_any_more() -> None:
    desk = Desk()
    desk.queue.report("i", desk.session, [(ACK, desk.task.id, desk.task.run, b"r", 0.1)])
    [keyed] = desk.submit(2, key="k").ids
    [handed] = desk.queue.reserve("i", desk.session, 1, 0, (), 0.0).tasks
    desk.queue.report("i", desk.session, [(ACK, handed.id, handed.run, b"r", 0.1)])
    desk.queue.close()
    desk.clock.advance(72 * HOUR)
    desk.queue = desk.open()
    desk.clock.advance(26 * HOUR)
    desk.queue.clean()
    desk.queue.purge(["completed"], 0.0)
    assert list(desk.queue.get([keyed])) == [None]
    desk.restart()
    desk.clock.advance(HOUR)
    desk.queue.clean()
    assert desk.submit(1, key="k").ids == [keyed]
    desk.clock.advance(24 * HOUR)
    desk.queue.clean()
    desk.restart()
    assert desk.submit(2, key="k").ids != [keyed]


def test_a_clock_that_is_set_is_no_news_of_tasks(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    error = ("error", "OSError", "no", "trace")
    desk.queue.report("i", desk.session, [(NACK, desk.task.id, desk.task.run, error, 60.0, 0.1)])
    for jump in (YEAR, -YEAR, HOUR):
        desk.clock.jump(jump)
        desk.queue.tick()
    assert [record.getMessage() for record in caplog.records if "runs again" in record.getMessage()] == [
        "task 1 (t) failed on w and runs again: OSError"
    ]


def test_a_clock_that_was_wrong_for_a_while_deletes_nothing() -> None:
    desk = Desk()
    desk.queue.report("i", desk.session, [(ACK, desk.task.id, desk.task.run, b"r", 0.1)])
    desk.clock.jump(YEAR)
    for _ in range(50):
        desk.queue.clean()
        desk.clock.advance(60.0)
    desk.clock.jump(-YEAR)
    desk.queue.clean()
    assert desk.state() == "completed"
    desk.clock.jump(YEAR)
    desk.queue.clean()
    desk.clock.advance(desk.queue.settings.keep_completed / PACE + 1)
    desk.queue.clean()
    assert desk.state() == "unknown", "a leap that lasts is believed"


def test_a_manager_that_starts_while_the_clock_is_wrong_deletes_nothing() -> None:
    desk = Desk()
    desk.queue.report("i", desk.session, [(ACK, desk.task.id, desk.task.run, b"r", 0.1)])
    desk.clock.jump(YEAR)
    desk.restart()
    desk.queue.clean()
    assert desk.state() == "completed"
    assert desk.submit().ids == [desk.task.id], "the submit is still known, so that its repetition adds nothing"
    desk.clock.jump(-YEAR)
    desk.restart()
    desk.queue.clean()
    assert desk.state() == "completed"


def test_a_call_is_known_whatever_the_clock_does_while_managers_come_and_go() -> None:
    desk = Desk()
    known = [[desk.task.id]]
    for leap in (YEAR, -2 * YEAR, YEAR, -YEAR, 2 * YEAR, -HOUR):
        desk.clock.jump(leap)
        desk.clock.advance(1.0)
        desk.restart()
        desk.queue.clean()
        assert [desk.submit(seq + 1).ids for seq in range(len(known))] == known
        known.append(list(desk.submit(len(known) + 1).ids))
