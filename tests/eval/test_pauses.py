"""Processes that are suspended past their lease and woken again: what they say late is refused, and they work on.

A worker process, the parent of a pool, a whole pool, and the manager itself. The lease is 2 s. Two tasks run in the
suspended pool: of one the late outcome arrives while the second attempt runs, of the other after that one is over.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from cluster import Cluster, Process, wait_until
from traces import MODULE, Trace, traces, write_module

from taskq import Client
from taskq.wire.codec import decode

LEASE = 2.0


@dataclass
class Scene:
    """A manager with a short lease and without workers of its own."""

    cluster: Cluster
    manager: Process

    def pool(self, name: str, threads: int = 2, workers: int = 1) -> Process:
        """Attach a pool, of one worker process where nothing else is said."""
        return self.cluster.pool("--tasks", MODULE, "--worker-name", name, workers=workers, threads=threads)

    def client(self) -> Client:
        """A client of the manager."""
        return self.cluster.client()  # type: ignore[no-any-return]

    def record(self, id: int) -> dict[str, Any]:
        """A whole record."""
        [found] = self.cluster.service().get([id])
        return dict(found)

    def until_state(self, state: str, *ids: int, timeout: float = 20.0) -> list[dict[str, Any]]:
        """Wait until tasks are in this state; gives their records."""
        wait_until(lambda: {self.record(id)["state"] for id in ids} == {state}, timeout, f"{ids} to be {state}")
        return [self.record(id) for id in ids]

    def lines(self, word: str, id: int) -> list[Trace]:
        """What a task left of this kind."""
        return [trace for trace in traces(self.cluster.folder, word) if trace.id == id]

    def until_begun(self, id: int, times: int = 1, timeout: float = 20.0) -> None:
        """Wait until a task has begun so often."""
        wait_until(lambda: len(self.lines("begin", id)) == times, timeout, f"task {id} to begin {times} times")

    def let_go(self, name: str, attempt: int) -> None:
        """End one attempt of a ``hold`` task."""
        (self.cluster.folder / f"{name}.{attempt}.go").touch()

    def workers(self) -> dict[int, dict[str, Any]]:
        """What the manager says of each worker process, by pid."""
        return {worker["pid"]: worker for worker in self.cluster.snapshot()["workers"]}


def begin(cluster: Cluster, lease: float) -> Scene:
    """A manager that knows the traced tasks' folder, and a lease of so many seconds."""
    write_module(cluster.folder)
    return Scene(cluster, cluster.manager("--lease", f"{lease:g}s", workers=0))


@pytest.fixture
def scene(cluster: Cluster) -> Scene:
    """See `Scene`."""
    return begin(cluster, LEASE)


@contextlib.contextmanager
def suspended(*processes: psutil.Process) -> Iterator[None]:
    """Processes that stand still while the block runs."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def members(pool: Process, who: str) -> list[psutil.Process]:
    """The processes that are meant."""
    parent = psutil.Process(pool.pid)
    return {"worker": parent.children(), "parent": [parent], "pool": [parent, *parent.children()]}[who]


@pytest.mark.parametrize("who", ["worker", "parent", "pool"])
def test_outcomes_that_come_after_the_lease_are_refused(scene: Scene, who: str) -> None:
    pool = scene.pool("paused")
    (paused,) = psutil.Process(pool.pid).children()
    client = scene.client()
    early, late = client.submit("hold", "early").id, client.submit("hold", "late").id
    for id in (early, late):
        scene.until_begun(id)

    began = time.monotonic()
    with suspended(*members(pool, who)):
        other = scene.pool("other", workers=2)  # since each runs alone after its first death
        for id in (early, late):
            scene.until_begun(id, 2)
        assert time.monotonic() - began > LEASE / 2, "the lease was not waited for"
        scene.let_go("late", 2)  # over before the suspended process says anything of it
        scene.until_state("completed", late)
    for name in ("early", "late"):
        scene.let_go(name, 1)
    wait_until(lambda: len(scene.lines("end", early)) == 1, 20.0, "the first attempt to end")
    wait_until(lambda: pool.output.count("outcome_refused") >= 2 or pool.output.count("too late") >= 2, 20.0)

    (record,) = scene.until_state("running", early)
    second = max(scene.lines("begin", early), key=lambda trace: trace.run)
    assert record["run"] == second.run, "a late outcome counted"
    scene.let_go("early", 2)
    for record in scene.until_state("completed", early, late):
        assert decode(record["result"])[1] == 2, "the result of the attempt that was over"
        assert (record["deaths"], record["failures"]) == (1, 0)
        assert len(scene.lines("begin", record["id"])) == 2
    assert second.pid != paused.pid
    assert scene.cluster.snapshot()["totals"]["completed"] == 2
    until_useful(scene, paused.pid, *(child.pid for child in psutil.Process(other.pid).children()))


def until_useful(scene: Scene, *pids: int) -> None:
    """Submit until each of these worker processes has run something new."""
    before = {trace.id for trace in traces(scene.cluster.folder, "end")}
    ids: list[int] = []

    def all_took_part() -> bool:
        ids.extend(handle.id for handle in scene.client().map("nap", range(6), [0.05] * 6))
        scene.until_state("completed", *ids[-6:])
        return set(pids) <= {trace.pid for trace in traces(scene.cluster.folder, "end") if trace.id not in before}

    wait_until(all_took_part, 20.0, f"{pids} to be useful again")
    assert all(len(scene.lines("begin", id)) == 1 for id in ids)
    assert all(worker["reserved"] == 0 for worker in scene.workers().values())


@pytest.mark.parametrize("who", ["worker", "parent", "pool"])
def test_nothing_is_handed_to_those_who_stand_still(scene: Scene, who: str) -> None:
    """New tasks wait, or go to others, and are not kept by a process that cannot run them."""
    pool = scene.pool("paused")
    (paused,) = psutil.Process(pool.pid).children()
    client = scene.client()
    assert client.submit("quick", 1).result(timeout=20) == 1
    with suspended(*members(pool, who)):
        state = "stopped" if who == "worker" else "silent"
        wait_until(lambda: scene.workers()[paused.pid]["state"] == state, 10.0, f"it to be {state}")
        id = client.submit("quick", 2).id
        assert scene.record(id)["state"] == "pending"
        assert scene.workers()[paused.pid]["reserved"] == 0
        scene.pool("other")
        scene.until_state("completed", id)
    (trace,) = scene.lines("begin", id)
    assert trace.pid != paused.pid
    until_useful(scene, paused.pid)


@pytest.mark.parametrize("who", ["worker", "parent", "pool"])
def test_a_pause_within_the_lease_costs_nothing(scene: Scene, who: str) -> None:
    pool = scene.pool("paused")
    scene.pool("other")
    (paused,) = psutil.Process(pool.pid).children()
    client = scene.client()
    ids = [client.submit("hold", "a").id for _ in range(4)]
    for id in ids:
        scene.until_begun(id)
    with suspended(*members(pool, who)):  # heartbeats come every 0.67 s
        wait_until(lambda: scene.workers()[paused.pid]["last_heartbeat_s"] > LEASE / 2, LEASE)
    for attempt in (1, 2):
        scene.let_go("a", attempt)
    for record in scene.until_state("completed", *ids):
        assert (record["deaths"], len(scene.lines("begin", record["id"]))) == (0, 1)


def test_a_manager_that_stood_still_takes_nobody_for_dead(cluster: Cluster) -> None:
    """All leases end while it is suspended, by the clock; but nobody could have renewed them."""
    lease = 4.0  # so that between two heartbeats pools ask other things: what waits at the end is not always one
    scene = begin(cluster, lease)
    pools = [scene.pool("one"), scene.pool("two")]
    client = scene.client()
    ids = [client.submit("hold", "a").id for _ in range(4)]
    for id in ids:
        scene.until_begun(id)
    for _ in range(3):
        began = time.monotonic()
        with suspended(psutil.Process(scene.manager.pid)):
            wait_until(lambda: time.monotonic() - began > lease + 0.5)  # noqa: B023  (used at once)
        wait_until(lambda: all(worker["state"] == "running" for worker in scene.workers().values()), 10.0, "workers")
    assert {record["state"] for record in map(scene.record, ids)} == {"running"}
    scene.let_go("a", 1)
    for record in scene.until_state("completed", *ids):
        assert (record["deaths"], len(scene.lines("begin", record["id"]))) == (0, 1)
    until_useful(scene, *[psutil.Process(pool.pid).children()[0].pid for pool in pools])
