"""Tasks that run for too long or are cancelled while they run, in real worker processes: how they end, and who else."""

from __future__ import annotations

import itertools
import signal
import sys
import threading
import time
from collections import Counter
from typing import Any

import psutil
import pytest
from cluster import Cluster, Process, wait_until

from taskq import Client, Retry, TaskCancelled, named
from taskq.registry import STOPPING, TaskType
from taskq.shapes import ACK, Handout
from taskq.wire.codec import encode_arguments
from taskq.workers import executor
from taskq.workers.slots import SlotTable

JOBS = '''
import ctypes, pathlib, time
from taskq import TaskTimeout, current_task, task

HERE = pathlib.Path(__file__).parent

def mark(name):
    with open(HERE / f"{name}.marks", "a") as file:
        file.write("x")

@task(name="spin", max_retries=0)
def spin(name):
    mark(name)
    while True:
        pass

@task(name="stubborn", max_retries=0)
def stubborn(name):
    """Code that takes the exception for one of the errors that it expects."""
    mark(name)
    while True:
        try:
            while True:
                time.sleep(0.01)
        except Exception:
            pass

@task(name="sleep_in_c", max_retries=0)
def sleep_in_c(name):
    mark(name)
    time.sleep(1000)

@task(name="hold_gil", max_retries=0)
def hold_gil(name):
    """No Python code runs in the whole process meanwhile."""
    mark(name)
    ctypes.PyDLL(None).sleep(1000)

@task(name="clean_up", max_retries=0)
def clean_up(name):
    mark(name)
    try:
        while True:
            time.sleep(0.01)
    finally:
        time.sleep(0.5)
        mark(f"{name}.cleaned")

@task(name="finish_early", max_retries=0)
def finish_early(name):
    mark(name)
    try:
        while True:
            time.sleep(0.01)
    except TaskTimeout:
        return "the first half"

@task(name="cooperate", max_retries=0)
def cooperate(name):
    mark(name)
    while not current_task().cancelled:
        time.sleep(0.01)
    mark(f"{name}.saw")
    return "stopped by itself"

@task(name="nap", max_retries=0)
def nap(name, seconds):
    mark(name)
    time.sleep(seconds)
    return name

@task(name="hold", max_retries=0)
def hold(name):
    mark(name)
    while not (HERE / f"{name}.go").exists():
        time.sleep(0.01)
    return name
'''


class Place:
    """A manager without workers of its own, and one pool with the tasks above."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        (cluster.folder / "jobs.py").write_text(JOBS)

    def begin(self, *options: object, workers: int = 1, threads: int = 4) -> Process:
        """Start both; gives the pool."""
        self.manager = self.cluster.manager(*options, workers=0)
        return self.cluster.pool("--tasks", "jobs", workers=workers, threads=threads)

    def client(self) -> Client:
        return self.cluster.client()  # type: ignore[no-any-return]

    def marks(self, name: str) -> int:
        """How often a task has left this mark."""
        file = self.cluster.folder / f"{name}.marks"
        return len(file.read_text()) if file.exists() else 0

    def until_running(self, *names: str) -> None:
        wait_until(lambda: all(map(self.marks, names)), 15, f"{names} to run")

    def let_go(self, name: str) -> None:
        (self.cluster.folder / f"{name}.go").touch()

    def record(self, id: int) -> dict[str, Any]:
        (found,) = self.cluster.service().get([id])
        return found  # type: ignore[no-any-return]

    def until(self, state: str, id: int, timeout: float = 15.0) -> dict[str, Any]:
        wait_until(lambda: self.record(id)["state"] == state, timeout, f"task {id} to be {state}")
        return self.record(id)

    def child(self, pool: Process) -> psutil.Process:
        (child,) = psutil.Process(pool.pid).children()
        return child


@pytest.fixture
def place(cluster: Cluster) -> Place:
    return Place(cluster)


# -- timeouts


def test_a_loop_without_end_is_gone_in_time_and_its_neighbours_complete(place: Place) -> None:
    child = place.child(place.begin())
    with place.client() as q:
        neighbours = [q.submit("nap", f"n{n}", seconds) for n, seconds in enumerate((0.5, 2.0, 3.0))]
        place.until_running("n0", "n1", "n2")
        began = time.monotonic()
        stuck = q.submit(named("spin", timeout=1), "a")
        record = place.until("failed", stuck.id)
        assert 1.0 <= time.monotonic() - began < 7
        assert [handle.result(10) for handle in neighbours] == ["n0", "n1", "n2"]
    assert record["error"]["kind"] == "timeout"
    assert record["error"]["message"] == "ran longer than its timeout of 1 s"
    assert "in spin" in record["error"]["traceback"]
    assert child.is_running(), "the exception was enough"


@pytest.mark.parametrize("name", ["stubborn", "sleep_in_c"])
def test_what_does_not_stop_is_killed_and_its_neighbours_complete(place: Place, name: str) -> None:
    pool = place.begin()
    child = place.child(pool)
    with place.client() as q:
        neighbours = [q.submit("nap", f"n{n}", seconds) for n, seconds in enumerate((0.5, 3.0))]
        place.until_running("n0", "n1")
        began = time.monotonic()
        stuck = q.submit(named(name, timeout=1), "a")
        record = place.until("failed", stuck.id)
        assert 6.0 <= time.monotonic() - began < 7
        wait_until(lambda: not child.is_running(), 1, "the process to be gone")
        assert [handle.result(1) for handle in neighbours] == ["n0", "n1"]
        assert q.submit("nap", "after", 0).result(3) == "after"
    assert (record["error"]["kind"], record["failures"], record["deaths"]) == ("timeout", 1, 0)
    assert record["error"]["message"].startswith("ran longer than its timeout of 1 s and did not stop")
    assert f"in {name}\n" in record["error"]["traceback"]
    assert "executor.py" not in record["error"]["traceback"]
    assert 5.9 < record["finished_at"] - record["started_at"] < 7
    assert f"no other way to stop {name} {stuck.id}" in pool.output


def test_what_holds_the_interpreter_is_killed_and_its_neighbours_go_back_uncounted(place: Place) -> None:
    place.begin()
    with place.client() as q:
        neighbours = [q.submit("hold", f"h{n}").id for n in range(2)]
        place.until_running("h0", "h1")
        began = time.monotonic()
        stuck = q.submit(named("hold_gil", timeout=1), "a")
        place.until_running("a")
        late = q.submit("nap", "late", 0)
        record = place.until("failed", stuck.id)
        assert time.monotonic() - began < 7
        assert "in hold_gil\n" in record["error"]["traceback"]
        wait_until(lambda: (place.marks("h0"), place.marks("h1")) == (2, 2), 5, "the neighbours to run again")
        assert late.result(5) == "late"
        for name in ("h0", "h1"):
            place.let_go(name)
        for id in neighbours:
            again = place.until("completed", id)
            assert (again["failures"], again["deaths"]) == (0, 0)


def test_a_neighbour_that_takes_longer_goes_back_uncounted(place: Place) -> None:
    place.begin()
    with place.client() as q:
        neighbour = q.submit("hold", "h").id
        place.until_running("h")
        stuck = q.submit(named("sleep_in_c", timeout=0.2), "a")
        place.until("failed", stuck.id)
        wait_until(lambda: place.marks("h") == 2, 5, "it to run again")
        place.let_go("h")
        again = place.until("completed", neighbour)
        assert (again["failures"], again["deaths"]) == (0, 0)


def test_a_process_with_a_stuck_task_takes_no_more(place: Place) -> None:
    pool = place.begin(workers=2, threads=2)
    with place.client() as q:
        stuck = q.submit(named("sleep_in_c", timeout=0.2), "a")
        place.until_running("a")
        wait_until(lambda: any(found["state"] == "draining" for found in place.cluster.snapshot()["workers"]), 4)
        assert q.submit("nap", "other", 0).result(1) == "other"
        assert place.record(stuck.id)["state"] == "running"
        place.until("failed", stuck.id)
    wait_until(lambda: len(psutil.Process(pool.pid).children()) == 2, 5, "another process")


def test_a_task_may_clean_up(place: Place) -> None:
    child = place.child(place.begin())
    with place.client() as q:
        cleaned = q.submit(named("clean_up", timeout=0.2), "a")
        early = q.submit(named("finish_early", timeout=0.2), "b")
        record = place.until("failed", cleaned.id)
        assert early.result(5) == "the first half"
    assert (record["error"]["kind"], place.marks("a.cleaned")) == ("timeout", 1)
    assert child.is_running()


def test_a_task_that_was_killed_for_its_timeout_is_tried_again_as_after_any_failure(place: Place) -> None:
    place.begin(workers=2)
    with place.client() as q:
        id = q.submit(named("sleep_in_c", timeout=0.2, max_retries=1, backoff=0.1), "a").id
        record = place.until("failed", id, 20)
        other = q.submit(named("sleep_in_c", timeout=0.2, retry=Retry(max_retries=1, retry_on=(OSError,))), "b").id
        assert place.until("failed", other)["failures"] == 1, "a TaskTimeout is no OSError"
    assert (record["failures"], record["deaths"], place.marks("a")) == (2, 0, 2)


def test_the_manager_sets_timeouts_for_all_queues_and_for_one(place: Place) -> None:
    place.begin("--timeout", "300ms", "--queue-timeout", "slow=10s", "--queue-timeout", "free=0", workers=2)
    with place.client() as q:
        short = q.submit("nap", "a", 1.0)
        slow = q.submit(named("nap", queue="slow"), "b", 1.0)
        free = q.submit(named("nap", queue="free"), "c", 1.0)
        own = q.submit(named("nap", timeout=0), "d", 1.0)
        assert (slow.result(5), free.result(5), own.result(5)) == ("b", "c", "d")
        assert place.until("failed", short.id)["error"]["message"] == "ran longer than its timeout of 0.3 s"


def test_a_timeout_holds_while_the_manager_is_away(place: Place) -> None:
    place.begin()
    with place.client() as q:
        stuck = q.submit(named("sleep_in_c", timeout=0.5), "a")
        place.until_running("a")
        place.manager.kill()
        wait_until(lambda: "no other way to stop" in place.cluster.processes[1].output, 8, "the kill")
        place.manager = place.cluster.manager(workers=0)
        record = place.until("failed", stuck.id)
    assert (record["error"]["kind"], record["deaths"]) == ("timeout", 0)
    assert "in sleep_in_c" in record["error"]["traceback"]


def test_a_process_without_parent_ends_itself(place: Place) -> None:
    pool = place.begin()
    child = place.child(pool)
    with place.client() as q:
        neighbour = q.submit("nap", "n", 2.0)
        q.submit(named("sleep_in_c", timeout=1), "a")
        place.until_running("a", "n")
        pool.kill()
        assert neighbour.result(5) == "n"
        wait_until(lambda: not child.is_running(), 8, "the process to be gone")


# -- cancel


def cancel(place: Place, *words: object) -> str:
    """Cancel with the command; gives what it says."""
    done = place.cluster.run("monitor", "task", "cancel", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_task_sees_that_it_is_cancelled_and_may_finish_first(place: Place) -> None:
    place.begin()
    with place.client() as q:
        handle = q.submit("cooperate", "a")
        place.until_running("a")
        asked = time.monotonic()
        assert cancel(place, handle.id) == f"task {handle.id} is running: it is asked to stop\n"
        assert handle.result(5) == "stopped by itself"
        assert time.monotonic() - asked < 3.5
        assert not handle.cancel(), "the completion was first"


@pytest.mark.parametrize(
    ("name", "within"), [("spin", 5.0), ("clean_up", 5.0), ("sleep_in_c", 10.0), ("hold_gil", 10.0)]
)
def test_a_running_task_is_stopped(place: Place, name: str, within: float) -> None:
    place.begin()
    with place.client() as q:
        neighbour = q.submit("nap", "n", 3.0)
        place.until_running("n")  # beside one that holds the interpreter lock it could not begin
        handle = q.submit(named(name, max_retries=5), "a")
        place.until_running("a")
        asked = time.monotonic()
        assert not handle.cancel(), "it is asked, not gone"
        with pytest.raises(TaskCancelled):
            handle.result(15)
        assert time.monotonic() - asked < within
        record = place.record(handle.id)
        assert (record["state"], record["failures"], record["deaths"]) == ("cancelled", 0, 0)
        assert record["error"]["kind"] == "cancelled"
        assert f"in {name}" in record["error"]["traceback"]
        assert neighbour.result(15) == "n"
        assert place.marks("a") == 1
    assert place.record(neighbour.id)["deaths"] == 0
    assert place.marks("a.cleaned") == (name == "clean_up")


def test_a_request_to_cancel_outlives_the_manager(place: Place) -> None:
    pool = place.begin()
    with place.client() as q:
        handle = q.submit("spin", "a")
        place.until_running("a")
        pool.popen.send_signal(signal.SIGSTOP)  # so that the pool cannot hear of it before the manager is gone
        assert not handle.cancel()
        place.manager.kill()
        place.manager = place.cluster.manager(workers=0)
        pool.popen.send_signal(signal.SIGCONT)
        assert place.until("cancelled", handle.id)["error"]["kind"] == "cancelled"


def test_tasks_are_cancelled_by_what_they_are(place: Place) -> None:
    place.begin(threads=2)
    with place.client() as q:
        running = q.submit("spin", "a")
        place.until_running("a")
        waiting = [q.submit(named("hold", delay=60), f"h{n}") for n in range(3)]
        kept = q.submit(named("nap", delay=60), "n", 0)
        assert cancel(place, "--where", "type=hold") == "3 tasks cancelled\n"
        said = cancel(place, "--where", "type~=^sp age<1h")
        assert said == "0 tasks cancelled, 1 running task asked to stop\n"
        place.until("cancelled", running.id)
        assert {handle.state() for handle in waiting} == {"cancelled"}
        assert kept.state() == "scheduled"
        both = place.cluster.run("monitor", "task", "cancel", kept.id, "--where", "type=nap")
        assert both.returncode == 2 and "or --where" in both.stderr


# -- one process, very many interruptions


def test_interruptions_at_any_moment_hit_their_own_task_and_block_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "NOTICE", 0.0003)
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    types = {"spin": TaskType(spin, "spin"), "noop": TaskType(lambda: None, "noop")}
    slots = SlotTable.create(4)
    runner = executor.Executor(types.get, slots, lambda *_: None, time.monotonic)
    ends: Counter[str] = Counter()
    runs, current = itertools.count(1), [0] * 4
    over = time.monotonic() + 5.0

    def work(slot: int) -> None:
        plans = itertools.cycle(itertools.product((None, 3600.0, 0.0005, 0.001, 0.002), (0.0003, 0.001, 0.0015)))
        while time.monotonic() < over:
            timeout, seconds = next(plans)
            current[slot] = run = next(runs)
            report = runner.run(slot, handout(run, "spin", timeout, seconds))
            ends["done" if report[0] == ACK else report[3][0]] += 1
            report = runner.run(slot, handout(next(runs), "noop", 3600.0))
            ends["other"] += report[0] != ACK

    def cancel() -> None:
        for slot in itertools.cycle(range(4)):
            if time.monotonic() > over:
                return
            runner.cancel(current[slot])
            time.sleep(0.002)

    threads = [threading.Thread(target=work, args=(slot,), daemon=True) for slot in range(4)]
    threads.append(threading.Thread(target=cancel, daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    sys.setswitchinterval(before)
    STOPPING.clear()
    assert not any(thread.is_alive() for thread in threads)
    assert ends.keys() == {"done", "timeout", "cancelled", "other"} and not ends["other"]
    runner.close()
    slots.close()


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def handout(run: int, type: str, timeout: float | None, *args: float) -> Handout:
    return Handout(run, run, type, encode_arguments(args, {}), "q", 1, timeout, "", 0.0)
