"""Pools of real worker processes: deaths, stops, orphans, managers that go away and come back."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster import Cluster, Process, wait_until

from taskq import Client

JOBS = '''
import ctypes, os, pathlib, signal, subprocess, sys, time
from taskq import Client, task

HERE = pathlib.Path(__file__).parent

def mark(name, word):
    with open(HERE / f"{name}.marks", "a") as file:
        file.write(f"{word} {os.getpid()}\\n")

@task(name="hold")
def hold(name):
    """Runs until a file called after it appears."""
    mark(name, "begin")
    while not (HERE / f"{name}.go").exists():
        time.sleep(0.01)
    mark(name, "end")
    return name

@task(name="nap")
def nap(name, seconds):
    mark(name, "begin")
    time.sleep(seconds)
    return name

@task(name="segfault", max_retries=0)
def segfault(name):
    mark(name, "begin")
    time.sleep(0.1)
    ctypes.string_at(0)

@task(name="vanish", max_retries=0)
def vanish(name):
    mark(name, "begin")
    os._exit(0)

@task(name="close_everything", max_retries=0)
def close_everything(name):
    mark(name, "begin")
    os.closerange(0, 200)

@task(name="forks", max_retries=0)
def forks(how):
    """A child by fork: ended by SIGTERM, or by a crash of its own; must be like any other process."""
    pid = os.fork()
    if pid == 0:
        try:
            if how == "crash":
                ctypes.string_at(0)
            mark(how, "begin")
            time.sleep(60)
        finally:
            os._exit(3)
    if how == "terminate":
        while not (HERE / f"{how}.marks").exists():
            time.sleep(0.01)
        os.kill(pid, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

@task(name="forks_and_holds", max_retries=0)
def forks_and_holds(name):
    pid = os.fork()
    if pid == 0:
        return "never heard"
    os.waitpid(pid, 0)
    return hold(name)

@task(name="forked_code", max_retries=0)
def forked_code(how):
    """A child by fork that just comes to the end of this function; gives its exit code."""
    pid = os.fork()
    if pid == 0:
        if how == "exit":
            sys.exit(7)
        if how == "error":
            raise ValueError("said by the fork")
        return "never heard"
    give_up = time.monotonic() + 5
    while time.monotonic() < give_up:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            time.sleep(0.1)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    raise TimeoutError("the fork did not end")

@task(name="submits", max_retries=0)
def submits(value):
    with Client() as q:
        return q.submit("compute", "double", value).result(timeout=10)

@task(name="hold_gil")
def hold_gil(name, seconds):
    """No Python code runs in the whole process meanwhile."""
    mark(name, "begin")
    ctypes.PyDLL(None).sleep(seconds)
    return name

@task(name="talk")
def talk(name):
    print("printed by a task")
    child = subprocess.run([sys.executable, "-c", "import sys; print('heard', repr(sys.stdin.read()))"],
                           capture_output=True, text=True)
    return child.stdout.strip()
'''


class Pools:
    """A cluster with a manager without workers, user tasks in a module, and pools attached to it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.folder = cluster.folder
        (cluster.folder / "jobs.py").write_text(JOBS)

    def begin(self, *options: object) -> Process:
        return self.cluster.manager(*options, workers=0)

    def pool(self, *options: object, workers: int = 1, threads: int = 4, **environment: str) -> Process:
        return self.cluster.pool("--tasks", "jobs", *options, workers=workers, threads=threads, **environment)

    def client(self) -> Client:
        return self.cluster.client()  # type: ignore[no-any-return]

    def submit(self, type: str, *args: Any) -> int:
        return self.client().submit(type, *args).id

    def marks(self, name: str) -> list[str]:
        """The first word of each mark that a task left."""
        file = self.folder / f"{name}.marks"
        return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []

    def until_running(self, *names: str) -> None:
        wait_until(lambda: all("begin" in self.marks(name) for name in names), 15, f"{names} to run")

    def let_go(self, *names: str) -> None:
        for name in names:
            (self.folder / f"{name}.go").touch()

    def records(self, *ids: int) -> Sequence[dict[str, Any]]:
        return list(self.cluster.service().get(ids))

    def states(self, *ids: int) -> Counter[str]:
        return Counter(record["state"] for record in self.records(*ids))

    def until(self, state: str, *ids: int, timeout: float = 20.0) -> Sequence[dict[str, Any]]:
        wait_until(lambda: self.states(*ids) == {state: len(ids)}, timeout, f"{ids} to be {state}")
        return self.records(*ids)

    def until_draining(self) -> None:
        """What is submitted from here on is for others: the manager has heard it from every worker process."""
        told = {"draining"}
        wait_until(lambda: {one["state"] for one in self.cluster.snapshot()["workers"]} == told, what="all to drain")

    def children(self, pool: Process) -> list[psutil.Process]:
        return psutil.Process(pool.pid).children()


@pytest.fixture
def pools(cluster: Cluster) -> Pools:
    return Pools(cluster)


# -- deaths


def test_a_killed_child_is_replaced_and_its_task_runs_again_after_a_second(pools: Pools) -> None:
    pools.begin()
    pool = pools.pool()
    id = pools.submit("hold", "a")
    pools.until_running("a")
    (child,) = pools.children(pool)
    child.kill()
    killed = time.monotonic()
    wait_until(lambda: [other for other in pools.children(pool) if other.pid != child.pid], 5, "another child")
    wait_until(lambda: len(pools.marks("a")) == 2, 10, "the second attempt")
    assert 0.9 < time.monotonic() - killed < 4.0
    pools.let_go("a")
    (record,) = pools.until("completed", id)
    assert (record["deaths"], record["failures"]) == (1, 0)
    assert f"running hold {id}" in pool.output
    assert "signal 9" in pool.output


def test_a_child_that_dies_idle_costs_nothing_and_the_number_stays(pools: Pools) -> None:
    pools.begin()
    pool = pools.pool(workers=3)
    joined = lambda: {worker["pid"] for worker in pools.cluster.snapshot()["workers"]}  # noqa: E731
    dead: set[int] = set()
    for _ in range(3):
        for child in pools.children(pool):
            child.kill()
            dead.add(child.pid)
        wait_until(lambda: len(joined()) == 3 and not joined() & dead, 15, "three new workers")
    assert {child.pid for child in pools.cluster.worker_processes()} == joined()


def test_a_segfault_is_blamed_on_the_task_that_caused_it(pools: Pools) -> None:
    """Three good tasks beside it die with it each time, and are not poisoned with it."""
    pools.begin()
    pool = pools.pool(workers=1)
    good = [pools.submit("nap", f"good{n}", 0.5) for n in range(3)]
    bad = pools.submit("segfault", "bad")
    (record,) = pools.until("failed", bad, timeout=30)
    assert record["error"]["kind"] == "poisoned"
    assert record["deaths"] == 3
    assert pools.marks("bad") == ["begin"] * 3
    assert [(one["deaths"], one["failures"]) for one in pools.until("completed", *good)] == [(0, 0)] * 3
    assert "signal 11 (SIGSEGV)" in pool.output
    assert "in segfault" in pool.output, "the stack of the crash is in the log"


def test_a_task_that_ends_its_process_quietly_is_poisoned_too(pools: Pools) -> None:
    pools.begin()
    pools.pool(workers=1)
    (record,) = pools.until("failed", pools.submit("vanish", "v"), timeout=30)
    assert (record["error"]["kind"], record["deaths"]) == ("poisoned", 3)
    assert pools.marks("v") == ["begin"] * 3


@pytest.mark.parametrize("threads", [1, 4])
def test_a_task_that_closes_all_descriptors_does_not_stop_the_pool(pools: Pools, threads: int) -> None:
    pools.begin()
    pools.pool(workers=1, threads=threads)
    pools.submit("close_everything", "c")
    pools.until_running("c")
    pools.until("completed", *[pools.submit("nap", f"after{n}", 0.0) for n in range(3)], timeout=30)
    if threads == 1 and sys.platform == "linux":  # what is written to stderr must not end up in a connection
        [worker] = pools.cluster.worker_processes()
        standard = [Path(f"/proc/{worker.pid}/fd/{number}") for number in range(3)]
        assert {str(stream.readlink()) for stream in standard} == {"/dev/null"}


def test_what_a_task_prints_goes_to_stderr_and_its_programs_do_not_read_from_the_pool(pools: Pools) -> None:
    pools.begin()
    pool = pools.pool()
    assert pools.client().submit("talk", "t").result(timeout=20) == "heard ''"
    assert "printed by a task" in pool.output


def test_a_task_that_holds_the_interpreter_keeps_its_lease(pools: Pools) -> None:
    pools.begin("--lease", "1s")
    pools.pool(workers=2)
    id = pools.submit("hold_gil", "g", 4)
    (record,) = pools.until("completed", id)
    assert (record["deaths"], pools.marks("g")) == (0, ["begin"])


def test_the_manager_knows_what_each_thread_does(pools: Pools) -> None:
    pools.begin("--lease", "1s")
    pool = pools.pool(workers=1, threads=2)
    ids = {pools.submit("hold", name) for name in ("a", "b")}

    def running() -> list[dict[str, Any]]:
        (worker,) = pools.cluster.snapshot()["workers"]
        return list(worker["running"])

    wait_until(lambda: {one["id"] for one in running()} == ids and all(one["for_s"] > 0 for one in running()), 10)
    assert {one["type"] for one in running()} == {"hold"}
    (worker,) = pools.cluster.snapshot()["workers"]
    assert worker["pid"] == pools.children(pool)[0].pid
    assert worker["rss_bytes"] > 2**20
    pools.let_go("a", "b")
    pools.until("completed", *ids)


def test_processes_that_a_task_forks_are_ordinary_ones(pools: Pools) -> None:
    pools.begin()
    pool = pools.pool()
    client = pools.client()
    assert client.submit("forks", "terminate").result(timeout=20) == -signal.SIGTERM
    assert client.submit("forks", "crash").result(timeout=20) == -signal.SIGSEGV
    held = pools.submit("hold", "a")
    pools.until_running("a")
    (child,) = pools.children(pool)
    child.kill()
    wait_until(lambda: len(pools.marks("a")) == 2, 10)
    assert "forks" not in pool.output.split("signal 9")[-1], "the fork's crash is not taken for the worker's"
    pools.let_go("a")
    assert pools.until("completed", held)[0]["deaths"] == 1


@pytest.mark.parametrize(("how", "code"), [("return", 0), ("exit", 7), ("error", 1)])
def test_a_fork_ends_with_the_tasks_function_and_reports_nothing(pools: Pools, how: str, code: int) -> None:
    pools.begin()
    pool = pools.pool()
    assert pools.client().submit("forked_code", how).result(timeout=20) == code
    (child,) = pools.children(pool)
    assert child.children() == []
    assert ("said by the fork" in pool.output) == (how == "error")


def test_a_fork_leaves_the_slot_of_its_task_alone(pools: Pools) -> None:
    pools.begin()
    pool = pools.pool(threads=1)
    (child,) = pools.children(pool)
    id = pools.submit("forks_and_holds", "a")
    pools.until_running("a")
    wait_until(lambda: child.children() == [])
    child.kill()
    wait_until(lambda: len(pools.marks("a")) == 2, 10)
    pools.let_go("a")
    assert pools.until("completed", id)[0]["deaths"] == 1, "the death was not counted: the slot was taken for free"


def test_a_client_in_a_task_is_one_of_the_tasks_manager(pools: Pools, tmp_path: Path) -> None:
    pools.begin()
    join = pools.cluster.state / "join.json"
    pools.pool("--join", join, TASKQ_STATE_DIR=str(tmp_path / "nothing"))
    assert pools.client().submit("submits", 21).result(timeout=20) == 42


# -- pools that cannot start


def test_an_import_error_is_shown_once_and_ends_the_pool(pools: Pools) -> None:
    pools.begin()
    done = pools.cluster.run("worker", "--workers", 4, "--tasks", "no_such_module")
    assert done.returncode == 2
    assert done.stderr.count('cannot import "no_such_module": No module named') == 1
    assert "Traceback" not in done.stderr


def test_a_rejected_key_ends_the_pool(pools: Pools) -> None:
    pools.begin()
    (pools.folder / "other-key").write_text("ab" * 32)
    (pools.folder / "other-key").chmod(0o600)
    done = pools.cluster.run("worker", "--key-file", "other-key")
    assert done.returncode == 4
    assert "rejected the key" in done.stderr


def test_no_manager_at_the_start_is_an_error(pools: Pools) -> None:
    pools.begin().stop()
    done = pools.cluster.run("worker")
    assert (done.returncode, "no manager at" in done.stderr) == (3, True)


def test_a_module_that_breaks_later_lets_the_others_finish(pools: Pools) -> None:
    pools.begin()
    pool = pools.pool(workers=2, threads=1)
    id = pools.submit("hold", "a")
    pools.until_running("a")
    (pools.folder / "jobs.py").write_text("this is no Python")
    busy = int((pools.folder / "a.marks").read_text().split()[1])
    pool.asked = True
    next(child for child in pools.children(pool) if child.pid != busy).kill()
    pools.cluster.until_output(pool, "cannot start any more", 10)
    pools.let_go("a")
    assert pool.popen.wait(15) == 2
    pools.until("completed", id)
    assert pools.marks("a") == ["begin", "end"]


# -- stops


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_running_tasks_finish(pools: Pools, number: int) -> None:
    pools.begin()
    pool = pools.pool()
    running = pools.submit("hold", "a")
    pools.until_running("a")
    pool.send(number)
    pools.until_draining()
    later = pools.submit("hold", "b")
    pools.let_go("a", "b")
    assert pool.popen.wait(15) == 0
    pools.until("completed", running)
    assert pools.states(later) == {"pending": 1}
    assert pools.marks("a") == ["begin", "end"]
    assert not pools.cluster.snapshot()["workers"]


def test_a_second_signal_stops_at_once_and_the_tasks_go_back_uncounted(pools: Pools) -> None:
    pools.begin()
    pool = pools.pool()
    id = pools.submit("hold", "a")
    pools.until_running("a")
    pool.send(signal.SIGTERM)
    pools.cluster.until_output(pool, "ask again to stop at once")
    asked = time.monotonic()
    pool.send(signal.SIGTERM)
    assert pool.popen.wait(10) == 143
    assert time.monotonic() - asked < 3.0
    (record,) = pools.until("pending", id)
    assert (record["deaths"], record["failures"]) == (0, 0)
    assert pools.cluster.worker_processes() == []


def test_what_is_not_done_within_the_drain_timeout_goes_back_uncounted(pools: Pools) -> None:
    pools.begin()
    pool = pools.pool("--drain-timeout", "0.5s")
    id = pools.submit("hold", "a")
    pools.until_running("a")
    assert pool.stop(10) == 0
    (record,) = pools.until("pending", id)
    assert (record["deaths"], record["failures"]) == (0, 0)


def test_an_idle_pool_stops_quickly(pools: Pools) -> None:
    pools.begin()
    pool = pools.pool(workers=2)
    asked = time.monotonic()
    assert pool.stop() == 0
    assert time.monotonic() - asked < 2.0


def test_a_pool_that_is_stopped_while_its_children_start_stops_quickly(pools: Pools) -> None:
    pools.begin()
    for _ in range(5):
        pool = pools.cluster.start("worker", "--tasks", "jobs", "--workers", 2)
        wait_until(lambda: pools.children(pool), 10)  # noqa: B023  (used at once)
        asked = time.monotonic()
        assert pool.stop() == 0
        assert time.monotonic() - asked < 4.0


def test_sigterm_to_one_child_replaces_it_without_loss(pools: Pools) -> None:
    pools.begin()
    pool = pools.pool()
    id = pools.submit("hold", "a")
    pools.until_running("a")
    (child,) = pools.children(pool)
    child.terminate()
    pools.let_go("a")
    (record,) = pools.until("completed", id)
    assert (record["deaths"], pools.marks("a")) == (0, ["begin", "end"])
    wait_until(lambda: [other for other in pools.children(pool) if other.pid != child.pid], 5, "another child")


# -- orphans, and managers that go away


def test_orphans_finish_deliver_and_leave(pools: Pools) -> None:
    pools.begin()
    pool = pools.pool(workers=2, threads=1)
    ids = [pools.submit("hold", name) for name in ("a", "b")]
    pools.until_running("a", "b")
    pool.kill()
    pools.until_draining()
    waiting = pools.submit("hold", "c")
    pools.let_go("a", "b", "c")
    pools.until("completed", *ids)
    wait_until(lambda: not pools.cluster.worker_processes(), 10, "the orphans to leave")
    assert [pools.marks(name) for name in ("a", "b")] == [["begin", "end"]] * 2
    assert pools.states(waiting) == {"pending": 1}
    assert not pools.cluster.snapshot()["workers"]


def test_a_killed_manager_finds_its_running_tasks_again(pools: Pools) -> None:
    manager = pools.begin()
    pool = pools.pool(workers=2, threads=2)
    names = ["a", "b", "c", "d"]
    ids = [pools.submit("hold", name) for name in names]
    pools.until_running(*names)
    manager.kill()
    pools.let_go("a", "b")  # these finish while the manager is away
    wait_until(lambda: [pools.marks(name)[-1] for name in "ab"] == ["end", "end"])
    pools.begin()
    wait_until(lambda: len(pools.cluster.snapshot()["workers"]) == 2, 10, "the workers to be back")
    pools.let_go("c", "d")
    records = pools.until("completed", *ids)
    assert {record["deaths"] for record in records} == {0}
    assert [pools.marks(name) for name in names] == [["begin", "end"]] * 4
    assert pool.popen.poll() is None


def test_an_attached_pool_outlives_an_orderly_restart_of_the_manager(pools: Pools) -> None:
    manager = pools.begin()
    pool = pools.pool()
    manager.stop()
    pools.begin()
    assert pools.client().submit("nap", "n", 0.0).result(timeout=15) == "n"
    assert pool.popen.poll() is None


def test_draining_while_the_manager_is_away_still_delivers(pools: Pools) -> None:
    manager = pools.begin()
    pool = pools.pool()
    id = pools.submit("hold", "a")
    pools.until_running("a")
    manager.kill()
    pool.send(signal.SIGTERM)
    pools.cluster.until_output(pool, "ask again to stop at once")
    pools.let_go("a")
    wait_until(lambda: pools.marks("a")[-1] == "end")
    pools.begin()
    assert pool.popen.wait(15) == 0
    (record,) = pools.until("completed", id)
    assert (record["deaths"], pools.marks("a")) == (0, ["begin", "end"])


@pytest.mark.parametrize("who", ["child", "parent", "all"])
def test_suspended_past_the_lease(pools: Pools, who: str) -> None:
    """The task runs elsewhere meanwhile; the late outcome is refused, nothing hangs, and the pool goes on."""
    pools.begin("--lease", "1s")
    pool = pools.pool(workers=1)
    id = pools.submit("hold", "a")
    pools.until_running("a")
    stopped = {"child": pools.children(pool), "parent": [psutil.Process(pool.pid)]}
    stopped["all"] = [*stopped["parent"], *stopped["child"]]
    for process in stopped[who]:
        process.suspend()
    pools.pool(workers=1)
    wait_until(lambda: len(pools.marks("a")) >= 2, 15, "the task to run elsewhere")
    for process in stopped[who]:
        process.resume()
    pools.let_go("a")
    (record,) = pools.until("completed", id)
    assert record["deaths"] == 1
    assert pools.cluster.snapshot()["totals"]["completed"] == 1
    pools.until("completed", *[pools.submit("nap", f"after{n}", 0.05) for n in range(8)])
    wait_until(lambda: pools.marks("a").count("end") == pools.marks("a").count("begin"), 10, "all attempts to end")


AWAY = """
import sys
from taskq import logs
from taskq.config import PoolSettings, read_join
from taskq.workers import worker_pool
worker_pool.AWAY_LIMIT = 1.0
join = read_join(__import__("pathlib").Path(sys.argv[1]))
logs.setup("pool", level="debug", format="text")
run = "a run of the manager that is gone"
settings = PoolSettings(workers=1, name="local", tasks=("jobs",), local=run, log_level="debug")
sys.exit(worker_pool.WorkerPool(lambda: join, settings).run())
"""


def local_pool(pools: Pools) -> subprocess.Popen[str]:
    join = pools.folder / "old-join.json"
    return subprocess.Popen(
        [sys.executable, "-c", AWAY, str(join)],
        cwd=pools.folder,
        env=pools.cluster.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )


def _keep_join(pools: Pools) -> None:
    join = pools.folder / "old-join.json"
    join.write_text((pools.cluster.state / "join.json").read_text())
    join.chmod(0o600)


def test_a_local_pool_of_a_manager_that_is_gone_ends_itself(pools: Pools) -> None:
    manager = pools.begin()
    _keep_join(pools)
    local = local_pool(pools)
    try:
        _, words = local.communicate(timeout=20)  # this manager did not start it, and tells it to leave
        assert local.returncode == 0
        assert "the manager asked this pool to leave" in words
    finally:
        local.kill()
        local.communicate()
    assert manager.popen.poll() is None


def test_a_local_pool_does_not_wait_for_its_manager_for_ever(pools: Pools) -> None:
    """Its manager is played by a bare server of the queue, which takes the pool for its own and then goes away.

    Before that the pool is suspended: that the manager has not answered meanwhile is not the manager's fault.
    """
    serve = [sys.executable, "-c", SERVE, str(pools.folder / "old-join.json")]
    manager = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, env=pools.cluster.environment())
    assert manager.stdout is not None
    assert manager.stdout.readline() == "ready\n"
    local = local_pool(pools)
    try:
        wait_until(lambda: pools.cluster.worker_processes(), 10)
        assert local.stderr is not None
        assert any("attached" in line for line in local.stderr)
        local.send_signal(signal.SIGSTOP)
        time.sleep(1.5)  # longer than it would wait for its manager
        local.send_signal(signal.SIGCONT)
        with pytest.raises(subprocess.TimeoutExpired):
            local.wait(1.5)
        manager.kill()
        _, words = local.communicate(timeout=20)
        assert local.returncode == 0
        assert "the manager has been away for 1 s" in words
        assert pools.cluster.worker_processes() == []
    finally:
        for process in (local, manager):
            process.kill()
            process.communicate()


SERVE = """
import os, sys, threading
from taskq.clock import SystemClock
from taskq.config import Join, QueueSettings
from taskq.queue.job_queue import JobQueue
from taskq.stores.memory import MemoryStore
from taskq.wire.server import WireServer
queue = JobQueue(MemoryStore(), SystemClock(), QueueSettings())
queue.local_pool = "a run of the manager that is gone"
queue.open()
queue.start()
server = WireServer(queue, "127.0.0.1", 0, b"k" * 32)
server.start()
with open(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
    file.write(Join((server.address,), b"k" * 32).to_json())
print("ready", flush=True)
threading.Event().wait()
"""


def test_nothing_of_the_key_is_in_any_command_line(pools: Pools) -> None:
    pools.begin()
    pools.pool()
    key = pools.cluster.join.key.hex()
    for process in pools.cluster.alive():
        assert key not in " ".join(process.cmdline())
