"""The manager's life, as processes: ready, second managers, stops of both kinds, crashes and restarts."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from cluster import Cluster, wait_until

from taskq.clock import SystemClock
from taskq.config import QueueSettings
from taskq.errors import ManagerUnavailable
from taskq.queue.job_queue import JobQueue
from taskq.queue.terms import new_task
from taskq.stores.sqlite import SqliteStore


def sleep_task(cluster: Cluster, seconds: float, count: int = 1) -> list[int]:
    """Submit tasks that sleep."""
    payloads = [{"type": "sleep", "duration": seconds}] * count
    done = cluster.run("submit", "--payload-file", "-", stdin=json.dumps(payloads))
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def running(cluster: Cluster) -> int:
    """How many tasks run now."""
    return sum(worker["busy"] for worker in cluster.snapshot()["workers"])


def record(cluster: Cluster, id: int) -> dict[str, object]:
    """A whole record."""
    [found] = cluster.service().get([id])
    assert found is not None
    return dict(found)


def refused(cluster: Cluster) -> bool:
    """Whether the port takes no new connections."""
    try:
        cluster.service().hello()
    except ManagerUnavailable as error:
        return "connection refused" in error.message
    return False


def works(cluster: Cluster) -> bool:
    """Whether a task that is submitted now comes back."""
    return bool(cluster.result_of({"type": "compute", "operation": "double", "value": 21}) == 42)


# -- start


def test_it_says_when_it_is_ready_and_its_workers_have_joined(cluster: Cluster) -> None:
    manager = cluster.manager("--log-format", "text", workers=3, threads=2)
    address = cluster.join.addresses[0]
    line = (
        f"taskq-manager default ready on {address} (store sqlite:{cluster.state}/store.sqlite, 3 workers x 2 threads)"
    )
    assert line in manager.output.splitlines()
    assert len(cluster.worker_processes()) == len(cluster.snapshot()["workers"]) == 3
    assert address.port != 8275


def test_ready_means_its_own_workers_and_not_those_of_the_last_run(cluster: Cluster) -> None:
    """Everything is killed at once, so nobody tells the next manager of a death: it expects the workers back."""
    first = cluster.manager(workers=2, threads=1)
    ids = [*cluster.submit({"type": "sleep", "duration": 60}), *cluster.submit({"type": "sleep", "duration": 60})]
    wait_until(lambda: sum(worker["busy"] for worker in cluster.snapshot()["workers"]) == 2)
    time.sleep(0.2)  # hand-outs are on disk after 50 ms
    first.asked = True
    for found in cluster.alive():
        found.kill()
    first.popen.wait(10)
    cluster.manager(workers=2, threads=1)
    workers = cluster.snapshot()["workers"]
    assert sum(worker["state"] == "running" for worker in workers) == 2
    expected = [worker for worker in workers if worker["state"] == "expected"]
    assert sorted(task["id"] for worker in expected for task in worker["running"]) == ids
    assert [worker["busy"] for worker in expected] == [1, 1]
    for task in ids:
        cluster.run("monitor", "task", "cancel", task)


def test_the_snapshot_tells_of_the_process(cluster: Cluster) -> None:
    manager = cluster.manager(workers=0)
    found = cluster.snapshot()["manager"]
    assert found["pid"] == manager.pid
    assert found["address"] == str(cluster.join.addresses[0])
    assert found["host"] == socket.gethostname()
    assert found["rss_bytes"] > 1_000_000 and found["cpu_percent"] >= 0


def test_what_it_writes_is_for_its_owner_only(cluster: Cluster) -> None:
    cluster.manager(workers=0)
    assert cluster.state.stat().st_mode & 0o777 == 0o700
    for name in ("key", "join.json"):
        assert (cluster.state / name).stat().st_mode & 0o777 == 0o600


def test_the_key_is_nowhere_to_be_seen(cluster: Cluster) -> None:
    """Neither in arguments nor in the environment nor in any log, and arguments of tasks are in no log either."""
    manager = cluster.manager("--log-level", "debug")
    secret = "arguments-of-the-users"
    cluster.submit({"type": "fail", "error_message": "x"}, "--max-retries", 0)
    cluster.result_of({"type": "http_request", "url": f"https://{secret}.example"})
    key = (cluster.state / "key").read_text().strip()
    for process in cluster.alive():
        assert key not in " ".join(process.cmdline())
        assert key not in str(process.environ())
    logs = manager.output + (cluster.state / "log" / "manager.log").read_text()
    assert "http_request" in logs
    assert key not in logs and secret not in logs


def test_port_0_is_the_last_port_again(cluster: Cluster) -> None:
    first = cluster.manager(workers=0)
    port = cluster.join.addresses[0].port
    first.stop()
    cluster.manager(workers=0)
    assert cluster.join.addresses[0].port == port


def test_port_0_is_another_one_when_the_last_is_taken(cluster: Cluster) -> None:
    cluster.manager(workers=0).stop()
    port = cluster.join.addresses[0].port
    with socket.create_server(("127.0.0.1", port)):
        cluster.manager(workers=0)
        assert cluster.join.addresses[0].port not in (port, 8275)


def test_options_come_from_the_environment_too_and_flags_win(cluster: Cluster) -> None:
    cluster.manager(workers=1, threads=3, TASKQ_WORKERS="7", TASKQ_NAME="night", TASKQ_LEASE="45s")
    found = cluster.snapshot()
    assert [worker["threads"] for worker in found["workers"]] == [3]
    assert cluster.join.name == "night"


def test_settings_for_clients_do_not_lead_its_own_pool_astray(cluster: Cluster) -> None:
    cluster.manager(workers=1, TASKQ_HOST="192.0.2.1", TASKQ_KEY_FILE=str(cluster.folder / "key"))
    assert len(cluster.snapshot()["workers"]) == 1


def test_a_memory_store_says_so(cluster: Cluster) -> None:
    manager = cluster.manager("--store", "memory:", workers=0)
    assert "(store memory:, no local workers)" in manager.output
    assert cluster.snapshot()["manager"]["durable"] is False


def fill(cluster: Cluster, count: int) -> None:
    """Put many pending tasks into the store."""
    cluster.state.mkdir(mode=0o700)
    queue = JobQueue(SqliteStore(cluster.state / "store.sqlite"), SystemClock(), QueueSettings())
    queue.open()
    for seq in range(count // 1_000):
        queue.submit(1, seq + 1, [new_task("noop", b"payload")] * 1_000)
    queue.close()


def processor_time(pid: int) -> float:
    """Seconds that a process has used; unlike those on the wall, they do not pass while others have the processor."""
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def test_a_signal_while_it_loads_its_store_is_answered_at_once(cluster: Cluster) -> None:
    fill(cluster, 150_000)
    manager = cluster.start("manager", "--port", 0, "--workers", 1)
    cluster.until_output(manager, "starting")
    before = processor_time(manager.pid)
    manager.send(signal.SIGINT)
    os.waitid(os.P_PID, manager.pid, os.WEXITED | os.WNOWAIT)  # its figures stay until it is asked for its exit code
    took = processor_time(manager.pid) - before
    assert manager.popen.wait(10) == 130
    assert took < 0.5, "it went on loading"
    assert " ready on " not in manager.output

    cluster.manager(workers=0)
    assert cluster.snapshot()["queues"][0]["pending"] == 150_000


# -- two of them


def test_a_second_manager_on_one_store_is_refused_at_once_and_names_the_first(cluster: Cluster) -> None:
    first = cluster.manager(workers=0)
    began = time.monotonic()
    second = cluster.run("manager", "--port", 0)
    assert time.monotonic() - began < 5.0
    assert second.returncode == 1
    assert f"error: the store is locked by pid {first.pid}" in second.stderr
    assert cluster.snapshot()["manager"]["pid"] == first.pid


def test_a_taken_port_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    first = cluster.manager(workers=0)
    address = cluster.join.addresses[0]
    second = cluster.run("manager", "--port", address.port, "--state-dir", tmp_path / "other")
    assert second.returncode == 1
    assert f"error: {address} is in use" in second.stderr
    assert cluster.snapshot()["manager"]["pid"] == first.pid


def test_it_takes_more_descriptors_than_it_is_given_if_it_may(cluster: Cluster) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        manager = cluster.manager(workers=0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert psutil.Process(manager.pid).rlimit(psutil.RLIMIT_NOFILE) == (min(4160, hard), hard)


# -- the stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_running_tasks_finish(cluster: Cluster, number: signal.Signals) -> None:
    manager = cluster.manager(workers=1, threads=2)
    ids = sleep_task(cluster, 1.0, count=4)
    wait_until(lambda: running(cluster) == 2)
    manager.send(number)
    assert manager.popen.wait(10) == 0
    assert "draining" in manager.output
    assert cluster.alive() == []

    cluster.manager(workers=0)
    states = [record(cluster, id)["state"] for id in ids]
    assert states == ["completed", "completed", "pending", "pending"]


def test_while_it_drains_nobody_new_comes_in(cluster: Cluster) -> None:
    manager = cluster.manager(workers=1)
    before = cluster.service()
    before.hello()
    [id] = sleep_task(cluster, 2.0)
    wait_until(lambda: running(cluster) == 1)
    manager.send(signal.SIGTERM)
    cluster.until_output(manager, "draining")
    wait_until(lambda: refused(cluster))
    assert before.get([id])[0]["state"] == "running", "who was there is still answered"
    assert manager.popen.wait(10) == 0

    cluster.manager(workers=0)
    assert record(cluster, id)["state"] == "completed"


def test_a_second_signal_stops_at_once_and_the_tasks_go_back(cluster: Cluster) -> None:
    manager = cluster.manager(workers=2, threads=1)
    ids = sleep_task(cluster, 60.0, count=2)
    wait_until(lambda: running(cluster) == 2)
    manager.send(signal.SIGINT)
    began = time.monotonic()
    manager.send(signal.SIGTERM)
    assert manager.popen.wait(10) == 143
    assert time.monotonic() - began < 2.5
    assert "draining" in manager.output
    assert cluster.alive() == []

    cluster.manager(workers=0)
    for id in ids:
        found = record(cluster, id)
        assert (found["state"], found["deaths"], found["failures"]) == ("pending", 0, 0)


def test_what_does_not_finish_in_time_goes_back(cluster: Cluster) -> None:
    manager = cluster.manager("--drain-timeout", "1s", workers=1)
    [id] = sleep_task(cluster, 60.0)
    wait_until(lambda: running(cluster) == 1)
    began = time.monotonic()
    assert manager.stop() == 0
    assert 0.9 < time.monotonic() - began < 8.0
    assert cluster.alive() == []

    cluster.manager(workers=0)
    found = record(cluster, id)
    assert (found["state"], found["deaths"]) == ("pending", 0)


def test_an_idle_manager_stops_quickly(cluster: Cluster) -> None:
    manager = cluster.manager(workers=2)
    began = time.monotonic()
    assert manager.stop() == 0
    assert time.monotonic() - began < 2.0


def test_an_ignored_hangup_stays_ignored(cluster: Cluster) -> None:
    """As with ``nohup``."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        manager = cluster.manager(workers=1)
    finally:
        signal.signal(signal.SIGHUP, before)
    manager.popen.send_signal(signal.SIGHUP)
    assert works(cluster)
    assert manager.popen.poll() is None


# -- crashes


def test_five_crashes_leave_exactly_the_workers_that_there_should_be(cluster: Cluster) -> None:
    """kill -9 and a new start, five times, with tasks under way: the old pools leave, nothing is lost or run twice."""
    manager = cluster.manager(workers=3, threads=2)
    ids: list[int] = []
    for _ in range(5):
        ids += sleep_task(cluster, 0.2, count=20)
        manager.kill()
        manager = cluster.manager(workers=3, threads=2)
    wait_until(lambda: len(cluster.worker_processes()) == 3, 30.0, "the old pools to leave")
    client = cluster.service()

    def states() -> list[str]:
        return [outcome.state for outcome in client.wait(ids, 0)]

    wait_until(lambda: set(states()) == {"completed"}, 60.0, "all tasks")
    deaths = [outcome.deaths for outcome in client.wait(ids, 0)]
    assert deaths == [0] * len(ids), "a worker that was there all the time was taken for dead"
    assert len(cluster.snapshot()["workers"]) == 3
    assert manager.stop() == 0
    wait_until(lambda: cluster.alive() == [], 10.0, "all processes to end")


def test_an_old_pool_finds_the_next_manager_at_another_port(cluster: Cluster) -> None:
    """The port of the dead manager is taken before the next one starts."""
    manager = cluster.manager(workers=2)
    old, address = {found.pid for found in cluster.pools()}, cluster.join.addresses[0]
    manager.kill()
    with socket.create_server((address.host, address.port)):
        cluster.manager(workers=2)
        assert cluster.join.addresses[0].port != address.port
        wait_until(lambda: not old & {found.pid for found in cluster.pools()}, 10.0, "the old pool to leave")


def test_what_was_accepted_is_there_after_a_crash(cluster: Cluster) -> None:
    manager = cluster.manager(workers=0)
    ids = sleep_task(cluster, 0.0, count=500)
    manager.kill()
    cluster.manager(workers=2)
    client = cluster.service()
    wait_until(lambda: {one.state for one in client.wait(ids, 0)} == {"completed"}, 30.0, "all tasks")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the files of a running process")
def test_a_failed_write_ends_the_manager_and_the_next_one_believes_the_disk(cluster: Cluster) -> None:
    manager = cluster.manager(workers=1)
    ids = sleep_task(cluster, 0.0, count=3)
    wait_until(lambda: cluster.snapshot()["totals"]["completed"] == 3)
    psutil.Process(manager.pid).rlimit(psutil.RLIMIT_FSIZE, (4096, 4096))
    manager.asked = True
    done = cluster.run("submit", "compute", "operation=double", "value=21")
    assert done.returncode == 3, done.stderr  # it was repeated until there was nobody to ask
    assert done.stdout == "" and done.stderr.startswith("error: no manager at")
    assert manager.popen.wait(10) == 1
    assert "a write did not reach the disk" in manager.output

    cluster.manager(workers=1)
    assert [record(cluster, id)["state"] for id in ids] == ["completed"] * 3
    assert works(cluster)
    wait_until(lambda: len(cluster.worker_processes()) == 1, 20.0, "the pool of the failed manager to leave")


def test_a_pool_that_dies_is_started_again(cluster: Cluster) -> None:
    manager = cluster.manager(workers=2)
    [pool] = psutil.Process(manager.pid).children()
    before = {worker.pid for worker in cluster.worker_processes()}
    pool.kill()
    wait_until(lambda: not before & {worker.pid for worker in cluster.worker_processes()}, 20.0, "the orphans to leave")
    wait_until(lambda: len(cluster.snapshot()["workers"]) == 2, 20.0, "two new workers")
    assert works(cluster)
    assert "local_pool_died" in manager.output


def test_a_manager_that_cannot_import_the_tasks_does_not_stay(cluster: Cluster) -> None:
    done = cluster.run("manager", "--port", 0, "--tasks", "no_such_module", timeout=30)
    assert done.returncode == 2
    assert done.stderr.count("cannot import") == 1
    assert cluster.alive() == []


def test_tasks_of_the_users_are_found_in_the_current_folder(cluster: Cluster) -> None:
    (cluster.folder / "mine.py").write_text("from taskq import task\n\n@task\ndef add(x, y):\n    return x + y\n")
    cluster.manager("--tasks", "mine", workers=1)
    done = cluster.run("submit", "--wait", "mine.add", "x=2", "y=3")
    assert (done.returncode, done.stdout.strip()) == (0, "5"), done.stderr


# -- the join file


def test_a_manager_on_loopback_has_nothing_to_print_for_others(cluster: Cluster) -> None:
    cluster.manager(workers=0)
    done = cluster.run("manager", "--print-join")
    assert done.returncode != 0 and done.stdout == ""
    assert "error: the manager listens on 127.0.0.1 only" in done.stderr
    assert "hint:" in done.stderr and "--bind 0.0.0.0" in done.stderr


def test_a_second_machine_joins_with_what_the_first_prints(cluster: Cluster) -> None:
    cluster.manager(
        "--bind", "0.0.0.0", "--advertise", "127.0.0.2", workers=0
    )  # 127.0.0.2 is advertised in vain: loopback
    done = cluster.run("manager", "--print-join")
    assert done.returncode == 0, done.stderr
    join = json.loads(done.stdout)
    assert join["name"] == "default" and join["key"] == (cluster.state / "key").read_text().strip()
    assert join["addresses"] and not any(address.startswith("127.") for address in join["addresses"])

    other = {**cluster.environment(), "TASKQ_STATE_DIR": str(cluster.folder / "elsewhere")}
    pool = cluster.start("worker", "--join", "-", "--workers", 1, stdin=done.stdout, **other)
    wait_until(lambda: len(cluster.snapshot()["workers"]) == 1, 20.0, "the pool")
    assert works(cluster)
    assert not Path(other["TASKQ_STATE_DIR"]).exists()
    assert pool.stop() == 0


def test_an_attached_pool_outlives_the_manager_and_serves_the_next_one(cluster: Cluster) -> None:
    manager = cluster.manager(workers=0)
    pool = cluster.pool(workers=1)
    assert manager.stop() == 0
    cluster.manager(workers=0)
    wait_until(lambda: len(cluster.snapshot()["workers"]) == 1, 20.0, "the pool to come back")
    assert pool.popen.poll() is None
    assert works(cluster)


def test_an_attached_pool_finds_the_next_manager_at_another_address(cluster: Cluster) -> None:
    manager = cluster.manager(workers=0)
    pool = cluster.pool(workers=1)
    address = cluster.join.addresses[0]
    assert manager.stop() == 0
    with socket.create_server((address.host, address.port)):  # it lets the pool in, and says nothing
        cluster.manager(workers=0)
        assert cluster.join.addresses[0] != address
        wait_until(lambda: len(cluster.snapshot()["workers"]) == 1, 30.0, "the pool to come over")
        assert works(cluster)
    assert pool.popen.poll() is None


def test_an_attached_pool_is_not_sent_away_by_a_manager_that_drains(cluster: Cluster) -> None:
    manager = cluster.manager("--lease", "1s", workers=1, threads=1)
    pool = cluster.pool(workers=1, threads=1)
    sleep_task(cluster, 2.0, count=2)
    wait_until(lambda: running(cluster) == 2)
    assert manager.stop() == 0  # several heartbeats later
    assert pool.popen.poll() is None
    assert "draining" not in pool.output
    cluster.manager(workers=0)
    assert works(cluster)


@pytest.mark.skipif(os.name != "posix" or not hasattr(socket, "AF_INET6"), reason="needs IPv6")
def test_it_listens_on_ipv6(cluster: Cluster) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    cluster.manager("--bind", "::1", workers=1)
    assert cluster.join.addresses[0].host == "::1"
    assert works(cluster)


def test_a_closed_terminal_is_no_reason_to_stop(cluster: Cluster) -> None:
    """stdin, stdout and stderr closed, as some daemons start their children."""
    command = 'exec "$0" -m taskq manager --port 0 --workers 1 <&- >&- 2>&-'
    process = subprocess.Popen(["sh", "-c", command, sys.executable], cwd=cluster.folder, env=cluster.environment())
    try:
        wait_until(lambda: (cluster.state / "join.json").exists(), 15.0, "the manager")
        wait_until(lambda: len(cluster.snapshot()["workers"]) == 1, 15.0, "its worker")
        assert works(cluster)
    finally:
        process.terminate()
        assert process.wait(15) == 0
