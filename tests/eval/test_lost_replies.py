"""Messages that are lost with their connection, and workers that die while they wait: no task is lost or doubled.

A proxy between manager and workers (or clients) swallows one chosen request or reply and cuts that connection.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from cluster import Cluster, Process, wait_until
from proxy import Proxy
from traces import MODULE, Trace, traces, write_module

from taskq import Client
from taskq.config import Join, write_private
from taskq.errors import ManagerUnavailable
from taskq.queue.terms import new_task
from taskq.wire.client import RemoteQueue
from taskq.wire.codec import decode, encode_arguments

SOON = 2.0
"""Seconds within which a task runs whose hand-out was lost."""


@dataclass
class Scene:
    """A manager without workers, and a proxy through which pools and clients may reach it."""

    cluster: Cluster
    proxy: Proxy

    @property
    def detour(self) -> Join:
        """How to reach the manager through the proxy."""
        return Join((self.proxy.address,), self.cluster.join.key)

    def far_pool(self, *options: object, workers: int = 1, threads: int = 1) -> Process:
        """A pool whose every word goes through the proxy."""
        file = self.cluster.folder / "detour.json"
        write_private(file, self.detour.to_json())
        return self.cluster.pool("--tasks", MODULE, "--join", file, *options, workers=workers, threads=threads)

    def near_pool(self, *options: object, workers: int = 1, threads: int = 1) -> Process:
        """A pool with connections of its own."""
        return self.cluster.pool("--tasks", MODULE, *options, workers=workers, threads=threads)

    def suspend_waiting_child(self, pool: Process) -> psutil.Process:
        """Suspend the one child of a far pool while it waits in ``reserve``, and its parent has just told that it is
        well: whatever is submitted now may be handed to it."""
        (child,) = psutil.Process(pool.pid).children()
        mine = lambda: [one for one in self.cluster.snapshot()["workers"] if one["pid"] == child.pid]  # noqa: E731
        wait_until(lambda: mine()[0]["rss_bytes"], 10.0, "the first heartbeat")
        wait_until(lambda: self.proxy.unanswered("reserve"), 10.0, "the worker to wait")
        child.suspend()
        return child

    def submit(self, type: str, *arguments: Any) -> int:
        """Submit one task over a direct connection."""
        return int(self.cluster.client().submit(type, *arguments).id)

    def record(self, id: int) -> dict[str, Any]:
        """A whole record."""
        [found] = self.cluster.service().get([id])
        return dict(found)

    def until_done(self, id: int, timeout: float = 20.0) -> dict[str, Any]:
        """Wait until a task is completed; gives its record."""
        wait_until(lambda: self.record(id)["state"] == "completed", timeout, f"task {id} to be completed")
        return self.record(id)

    def runs(self, id: int) -> list[Trace]:
        """What began of a task."""
        return [trace for trace in traces(self.cluster.folder, "begin") if trace.id == id]

    def until_running(self, id: int) -> None:
        """Wait until it has begun."""
        wait_until(lambda: self.runs(id), 15.0, f"task {id} to begin")

    def let_go(self, name: str) -> None:
        """End a ``hold`` task."""
        (self.cluster.folder / f"{name}.go").touch()

    def leases(self) -> int:
        """How many tasks are out with workers."""
        return sum(worker["reserved"] for worker in self.cluster.snapshot()["workers"])

    def total(self) -> int:
        """How many tasks were ever accepted."""
        return int(self.cluster.snapshot()["totals"]["submitted"])


@contextlib.contextmanager
def play(cluster: Cluster, *options: object) -> Iterator[Scene]:
    """A scene whose manager has these options."""
    write_module(cluster.folder)
    cluster.manager(*options, workers=0)
    proxy = Proxy(cluster.join.addresses[0])
    try:
        yield Scene(cluster, proxy)
        cluster.close()  # before the proxy, through which pools take leave
    finally:
        proxy.close()


@pytest.fixture
def scene(cluster: Cluster) -> Iterator[Scene]:
    """A manager with a long lease (30 s), so that nothing here is cured by its end."""
    with play(cluster) as scene:
        yield scene


def brings_tasks(reply: Any) -> bool:
    """Whether a reply to ``reserve`` has tasks in it."""
    return bool(reply[0])


# -- reserve


def test_a_task_whose_hand_out_is_lost_runs_elsewhere_at_once(scene: Scene) -> None:
    """The only free worker gets the task and never hears of it; another one comes free and runs it."""
    scene.near_pool()
    blocker = scene.submit("hold", "blocker")
    scene.until_running(blocker)
    far = scene.far_pool()
    (child,) = psutil.Process(far.pid).children()
    trap = scene.proxy.lose_reply("reserve", brings_tasks)
    id = scene.submit("hold", "lost")
    ((handout, *_), _) = trap.wait()
    lost = time.monotonic()
    scene.let_go("blocker")
    scene.let_go("lost")
    wait_until(lambda: scene.runs(id), SOON, "the task to run")
    assert time.monotonic() - lost < SOON
    record = scene.until_done(id)
    (run,) = scene.runs(id)
    assert handout[:2] == (id, handout[1]) and run.run != handout[1] and record["run"] == run.run
    assert (record["deaths"], record["failures"]) == (0, 0)
    assert child.is_running() and far.popen.poll() is None
    wait_until(lambda: scene.leases() == 0, SOON, "no lease to be left")


def test_no_heartbeat_keeps_a_lost_hand_out_alive(cluster: Cluster) -> None:
    """Worker and pool are alive and send heartbeats all the time: the lease is over all the same."""
    with play(cluster, "--lease", "1s") as scene:
        scene.far_pool()
        for _ in range(5):
            trap = scene.proxy.lose_reply("reserve", brings_tasks)
            id = scene.submit("quick", 1)
            trap.wait()
            record = scene.until_done(id, SOON)
            assert (record["deaths"], len(scene.runs(id))) == (0, 1)
        assert scene.leases() == 0


def test_many_lost_hand_outs_lose_and_double_nothing(scene: Scene) -> None:
    scene.far_pool(workers=2, threads=2)
    traps = [scene.proxy.lose_reply("reserve", brings_tasks) for _ in range(10)]
    ids = [handle.id for handle in scene.cluster.client().map("quick", range(300))]
    for trap in traps:
        trap.wait()
        ids += [scene.submit("quick", number) for number in range(5)]
    service = scene.cluster.service()
    wait_until(lambda: {one.state for one in service.wait(ids, 0)} == {"completed"}, 30.0, "all tasks")
    begun = traces(scene.cluster.folder, "begin")
    assert sorted(trace.id for trace in begun) == sorted(ids)
    assert {one.deaths for one in service.wait(ids, 0)} == {0}


def test_a_pool_that_is_cut_off_with_its_task_loses_it_when_the_lease_ends(cluster: Cluster) -> None:
    """Neither worker nor parent comes through any more: the end of the lease decides, and a late outcome is refused."""
    with play(cluster, "--lease", "2s") as scene:
        far = scene.far_pool()
        id = scene.submit("hold", "cut")
        scene.until_running(id)
        scene.proxy.cut()
        scene.near_pool()
        wait_until(lambda: len(scene.runs(id)) == 2, 8.0, "the second attempt")
        (cluster.folder / "cut.1.go").touch()  # the first one ends while the second one runs
        wait_until(lambda: [trace for trace in traces(cluster.folder, "end") if trace.id == id])
        scene.proxy.mend()
        cluster.until_output(far, "is no longer this worker's", 15.0)
        assert scene.record(id)["state"] == "running"
        (cluster.folder / "cut.2.go").touch()
        record = scene.until_done(id)
        assert (decode(record["result"])[1], record["deaths"]) == (2, 1)
        assert len(scene.runs(id)) == 2


# -- workers that die while they wait


def test_a_task_given_to_a_worker_that_dies_while_it_waits_runs_elsewhere_at_once(scene: Scene) -> None:
    """The worker is suspended in its waiting reserve, so the task is certainly handed to it; then it is killed."""
    scene.near_pool()
    blocker = scene.submit("hold", "blocker")
    scene.until_running(blocker)
    (busy,) = {trace.pid for trace in scene.runs(blocker)}
    child = scene.suspend_waiting_child(scene.far_pool())
    id = scene.submit("quick", 1)
    wait_until(lambda: scene.leases() == 2, 10.0, "the task to be handed out")
    scene.let_go("blocker")
    wait_until(lambda: scene.leases() == 1, 10.0, "the other worker to be free")
    child.kill()
    killed = time.monotonic()
    wait_until(lambda: scene.runs(id), SOON, "the task to run")
    assert time.monotonic() - killed < SOON
    record = scene.until_done(id)
    (run,) = scene.runs(id)
    assert run.pid == busy != child.pid
    assert (record["deaths"], record["failures"]) == (0, 0), "it had not begun there"


def test_workers_that_die_at_the_very_moment_of_a_submit_take_nothing_with_them(scene: Scene) -> None:
    """The race itself, again and again: a kill and a submit at once, before or after one another."""
    pool = scene.near_pool(workers=2)
    client: Client = scene.cluster.client()
    for attempt in range(8):
        wait_until(lambda: len(scene.cluster.snapshot()["workers"]) == 2, 15.0, "two workers")
        victims = psutil.Process(pool.pid).children()
        victim = victims[attempt % len(victims)]
        if attempt % 2:
            handle = client.submit("quick", attempt)
            victim.kill()
        else:
            victim.kill()
            handle = client.submit("quick", attempt)
        # One that had begun, or was over but not reported, starts again after the second that follows a death.
        handle.result(timeout=SOON + 1.0)
    assert scene.leases() == 0
    assert all(run.attempt <= 2 for run in traces(scene.cluster.folder, "begin"))


def test_what_a_killed_worker_had_not_begun_goes_back_at_once(scene: Scene) -> None:
    """Many tasks were handed to a process that is then killed: they do not wait the second that follows a death."""
    pool = scene.far_pool()
    client: Client = scene.cluster.client()
    for number in range(200):  # so that the type is known to be fast, and reserved ahead
        client.submit("quick", number)
    wait_until(lambda: scene.cluster.snapshot()["totals"]["completed"] == 200, 20.0, "the quick ones")
    child = scene.suspend_waiting_child(pool)
    ids = [handle.id for handle in client.map("quick", range(50))]
    wait_until(lambda: scene.leases() > 1, 10.0, "hand-outs")
    out = scene.leases()
    child.kill()
    service = scene.cluster.service()
    wait_until(lambda: {one.state for one in service.wait(ids, 0)} == {"completed"}, 10.0, "all tasks")
    assert out > 1 and {one.deaths for one in service.wait(ids, 0)} == {0}


# -- report


@pytest.mark.parametrize("lose", ["lose_reply", "lose_request"])
def test_a_report_that_is_cut_off_counts_once(scene: Scene, lose: str) -> None:
    pool = scene.far_pool()
    trap = getattr(scene.proxy, lose)("report")
    id = scene.submit("quick", 7)
    trap.wait()
    record = scene.until_done(id, SOON)
    assert (decode(record["result"]), record["deaths"], record["failures"]) == (7, 0, 0)
    wait_until(lambda: scene.leases() == 0, SOON, "no lease to be left")
    assert len(scene.runs(id)) == 1
    found = scene.cluster.snapshot()
    assert found["totals"]["completed"] == 1
    assert sum(worker["completed"] for worker in found["workers"]) == 1
    if lose == "lose_reply":  # it was on record: the worker is told, and forgets it
        scene.cluster.until_output(pool, f"task {id} is no longer this worker's")


@pytest.mark.parametrize("lose", ["lose_reply", "lose_request"])
def test_a_failure_whose_report_is_cut_off_counts_once(scene: Scene, lose: str) -> None:
    scene.far_pool()
    trap = getattr(scene.proxy, lose)("report")
    id = scene.submit("flaky", 7)
    trap.wait()
    record = scene.until_done(id, SOON + 1.0)
    assert (decode(record["result"]), record["deaths"], record["failures"]) == (7, 0, 1)
    assert [run.attempt for run in scene.runs(id)] == [1, 2]


def test_long_tasks_outlive_the_loss_of_either_connection(scene: Scene) -> None:
    """What runs goes on, whichever connection is cut, and however often."""
    scene.far_pool(threads=3)
    ids = [scene.submit("hold", name) for name in ("a", "b")]
    for id in ids:
        scene.until_running(id)
    for verb, lost in [("report", scene.proxy.lose_reply), ("reserve", scene.proxy.lose_reply)] * 2:
        trap = lost(verb)
        other = scene.submit("quick", 1)
        trap.wait()
        scene.until_done(other, SOON)
    for name in ("a", "b"):
        scene.let_go(name)
    for id in ids:
        record = scene.until_done(id)
        assert (record["deaths"], len(scene.runs(id))) == (0, 1)


# -- submit


@pytest.mark.parametrize("lose", ["lose_reply", "lose_request"])
def test_a_submit_that_is_cut_off_is_accepted_once(scene: Scene, lose: str) -> None:
    queue = RemoteQueue(scene.detour)
    trap = getattr(scene.proxy, lose)("submit")
    items = [new_task("quick", encode_arguments((number,), {})) for number in range(3)]
    client = secrets.randbits(63)
    with pytest.raises(ManagerUnavailable):
        queue.submit(client, 1, items)
    reply = queue.submit(client, 1, items)
    assert trap.wait() is not None and scene.total() == 3
    if lose == "lose_reply":
        assert tuple(reply.ids) == tuple(trap.caught[0]), "the repeated call has other ids"
    assert queue.submit(client, 1, items) == reply and scene.total() == 3
    assert queue.submit(client, 2, items).ids != reply.ids and scene.total() == 6
    queue.close()


@pytest.mark.parametrize("lose", ["lose_reply", "lose_request"])
def test_a_client_submits_once_and_hears_the_result(scene: Scene, lose: str) -> None:
    scene.near_pool()
    trap = getattr(scene.proxy, lose)("submit")
    with Client(scene.detour) as client:
        assert [handle.result(timeout=20) for handle in client.map("quick", [1, 2, 3])] == [1, 2, 3]
        assert trap.wait() is not None
    assert scene.total() == 3


@pytest.mark.parametrize("verb", ["types", "submit", "wait", "result", "finished"])
def test_the_command_survives_the_loss_of_a_reply(scene: Scene, verb: str) -> None:
    """Of any but the first, ``hello``: a manager that has never answered is not waited for."""
    scene.near_pool()
    scene.proxy.lose_reply(verb)  # the command may have no use for this verb
    address = scene.proxy.address
    done = scene.cluster.run("submit", "--host", address.host, "--port", address.port, "--wait", "quick", "number=7")
    assert (done.returncode, json.loads(done.stdout)) == (0, 7), done.stderr
    assert scene.total() == 1


# -- all the rest of a worker's life


@pytest.mark.parametrize("verb", ["hello", "attach", "reserve", "report", "beat", "drain", "detach", "leave"])
@pytest.mark.parametrize("lose", ["lose_reply", "lose_request"])
def test_a_pool_survives_the_loss_of_any_message(scene: Scene, verb: str, lose: str) -> None:
    """It joins, works, and leaves in order, although one message of this verb is lost on the way."""
    said = []  # of "hello" the first one is spared: a pool that cannot reach its manager at the start says so and ends
    trap = getattr(scene.proxy, lose)(verb, lambda value: verb != "hello" or said.append(value) or len(said) > 1)
    pool = scene.far_pool(workers=2)
    client: Client = scene.cluster.client()
    assert [handle.result(timeout=20) for handle in client.map("quick", range(20))] == list(range(20))
    if verb not in ("drain", "detach", "leave"):
        trap.wait()
    asked = time.monotonic()
    assert pool.stop() == 0
    assert time.monotonic() - asked < 8.0
    trap.wait(0)
    wait_until(lambda: not scene.cluster.snapshot()["workers"], 5.0, "the manager to know")
    assert scene.leases() == 0
    assert len(traces(scene.cluster.folder, "begin")) == 20


def test_a_death_is_reported_although_the_first_report_of_it_is_lost(scene: Scene) -> None:
    pool = scene.far_pool()
    id = scene.submit("hold", "a")
    scene.until_running(id)
    request = scene.proxy.lose_request("child_died")
    reply = scene.proxy.lose_reply("child_died")
    (child,) = psutil.Process(pool.pid).children()
    child.send_signal(signal.SIGKILL)
    request.wait()
    reply.wait()
    wait_until(lambda: len(scene.runs(id)) == 2, 6.0, "the second attempt")
    scene.let_go("a")
    assert scene.until_done(id)["deaths"] == 1
