"""Queues as people look after them, through real processes: pause, limit, purge, orders, and why a task waits."""

from __future__ import annotations

import getpass
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from cluster import Cluster, wait_until

from taskq import TaskCancelled, named
from taskq.clock import FakeClock
from taskq.config import QueueSettings
from taskq.errors import QueueNotFound, TaskNotFound
from taskq.queue.job_queue import JobQueue
from taskq.queue.terms import new_task
from taskq.stores.sqlite import SqliteStore
from taskq.wire.codec import encode_arguments

ME = f"{getpass.getuser()}@{socket.gethostname()}"

TASKS = '''
import time
from pathlib import Path
from taskq import task

@task(queue="mail")
def note(name: str, seconds: float = 0.0) -> str:
    """Leaves a line when it begins and one when it ends."""
    for mark in ("+", "-"):
        with open("notes", "a") as file:
            file.write(f"{mark}{name}\\n")
        if mark == "+":
            time.sleep(seconds)
    return name

@task(queue="mail")
def held(name: str, way: str) -> str:
    """The same; it ends when there is a file of this name."""
    with open("notes", "a") as file:
        file.write(f"+{name}\\n")
    while not Path(way).exists():
        time.sleep(0.005)
    with open("notes", "a") as file:
        file.write(f"-{name}\\n")
    return name
'''


def write_tasks(cluster: Cluster) -> None:
    (cluster.folder / "notes_tasks.py").write_text(TASKS, encoding="utf-8")


def notes(cluster: Cluster) -> list[str]:
    path = cluster.folder / "notes"
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def begun(cluster: Cluster) -> list[str]:
    return [line[1:] for line in notes(cluster) if line.startswith("+")]


def queue_of(cluster: Cluster, name: str) -> dict[str, Any]:
    return next(found for found in cluster.snapshot()["queues"] if found["name"] == name)


def monitor(cluster: Cluster, *words: object, code: int = 0) -> str:
    done = cluster.run("monitor", *words)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def until_the_first_pool_has_left(cluster: Cluster, others: int = 1) -> None:
    """The pool of the manager that was killed delivers to the next one, and leaves."""
    wait_until(lambda: len(cluster.pools()) == others, 20.0)


def codes(explained: dict[str, Any]) -> list[str]:
    return [cause["code"] for cause in explained["causes"]]


# -- pause


def test_a_paused_queue_stays_paused_over_a_kill_of_the_manager_and_resume_wakes_its_workers(cluster: Cluster) -> None:
    write_tasks(cluster)
    manager = cluster.manager("--tasks", "notes_tasks", "--lease", "3s", workers=1)
    client = cluster.client()
    slow = client.submit("notes_tasks.note", "slow", 1.0)
    wait_until(lambda: begun(cluster) == ["slow"])
    text = monitor(cluster, "queue", "pause", "mail")
    assert text.startswith(f'queue "mail" is paused by {ME} since 20')
    waiting = client.submit("notes_tasks.note", "waiting")
    assert client.submit("compute", operation="double", value=4).result(10) == 8, "other queues go on"
    assert slow.result(10) == "slow", "what runs goes on"
    manager.kill()
    cluster.manager("--tasks", "notes_tasks", "--lease", "3s", workers=1)
    client = cluster.client()
    assert client.submit("compute", operation="double", value=5).result(10) == 10
    found = queue_of(cluster, "mail")
    assert (found["paused"], found["paused_by"], found["pending"]) == (True, ME, 1)
    [line] = [line for line in monitor(cluster, "--once").splitlines() if line.startswith("mail")]
    assert line.endswith("PAUSED") and len(line) <= 80
    time.sleep(0.3)
    assert begun(cluster) == ["slow"]
    began = time.monotonic()
    assert monitor(cluster, "queue", "resume", "mail") == 'queue "mail" goes on\n'
    assert client.result(waiting.id, 10) == "waiting"
    assert time.monotonic() - began < 5.0, "the worker was woken, and did not wait for its next call"
    assert not queue_of(cluster, "mail")["paused"]
    assert monitor(cluster, "queue", "resume", "mail") == 'queue "mail" was not paused\n'
    until_the_first_pool_has_left(cluster)


def test_from_python(cluster: Cluster) -> None:
    cluster.manager(workers=1)
    with cluster.client() as q:
        first = q.pause("later")
        assert (first["paused_by"], first["limit"]) == (ME, None)
        handle = q.submit(named("compute", queue="later"), operation="double", value=2)
        assert codes(q.explain(handle.id)) == ["queue_paused", "position"]
        assert {found["name"]: found["paused"] for found in q.queues()} == {"later": True}
        assert q.limit("later", 1)["limit"] == 1
        assert q.resume("later") is True and q.resume("later") is False
        assert handle.result(10) == 4
        q.pause("later")
        handle = q.submit(named("compute", queue="later", delay=60), operation="double", value=2)
        assert q.purge("later") == 1
        with pytest.raises(TaskCancelled):
            handle.result(10)
        with pytest.raises(QueueNotFound):
            q.purge("nowhere")
        with pytest.raises(TaskNotFound):
            q.explain(999)


# -- limit


def test_a_limit_is_exact_over_two_pools_and_a_restart(cluster: Cluster) -> None:
    write_tasks(cluster)
    manager = cluster.manager("--tasks", "notes_tasks", "--lease", "3s", workers=2, threads=4)
    cluster.pool("--tasks", "notes_tasks", workers=2, threads=4)
    assert "at most 3 tasks run at once" in monitor(cluster, "queue", "limit", "mail", 3)
    client = cluster.client()
    handles = [client.submit("notes_tasks.held", f"h{number}", "go") for number in range(3)]
    handles += [client.submit("notes_tasks.note", f"n{number}", 0.05) for number in range(27)]
    wait_until(lambda: len(begun(cluster)) == 3, 30.0, "as many as there may be")
    assert queue_of(cluster, "mail")["running"] == 3
    (cluster.folder / "go").touch()
    wait_until(lambda: all(handle.done() for handle in handles[:15]), 30.0, "half of them")
    manager.kill()
    cluster.manager("--tasks", "notes_tasks", "--lease", "3s", workers=2, threads=4)
    assert queue_of(cluster, "mail")["limit"] == 3
    client = cluster.client()
    for handle in handles:
        assert client.result(handle.id, 30)[0] in "hn"
    assert at_once(notes(cluster)) == 3, "never more"
    assert "has no limit" in monitor(cluster, "queue", "limit", "mail", "none")
    handles = [client.submit("notes_tasks.held", f"k{number}", "on") for number in range(12)]
    wait_until(lambda: queue_of(cluster, "mail")["running"] > 3)
    (cluster.folder / "on").touch()
    for handle in handles:
        handle.result(30)
    until_the_first_pool_has_left(cluster, others=2)


def at_once(lines: list[str]) -> int:
    """The most tasks that had begun and not ended at any time."""
    running, most = 0, 0
    for line in lines:
        running += 1 if line.startswith("+") else -1
        most = max(most, running)
    return most


# -- purge


def test_a_purge_cancels_what_waits_and_asks_before(cluster: Cluster) -> None:
    manager = cluster.manager("--lease", "3s", workers=1)
    client = cluster.client()
    client.pause("bulk")
    handles = client.map(named("compute", queue="bulk"), *zip(*[("double", 1)] * 2_500, strict=True))
    client.submit(named("compute", queue="bulk", delay=3600), operation="double", value=1)
    kept = client.submit(named("compute", queue="other", delay=3600), operation="double", value=1)
    assert "nobody is there to ask" in monitor(cluster, "queue", "purge", "bulk", code=2)
    assert queue_of(cluster, "bulk")["pending"] == 2_500
    assert monitor(cluster, "queue", "purge", "bulk", "--yes") == "2,501 tasks cancelled\n"
    manager.kill()
    cluster.manager(workers=1)
    assert cluster.snapshot()["kept"]["cancelled"] == 2_501
    client = cluster.client()
    assert {client.state(handle.id) for handle in handles[::500]} == {"cancelled"}
    assert client.state(kept.id) == "scheduled"
    until_the_first_pool_has_left(cluster)
    assert 'no queue "nowhere"' in monitor(cluster, "queue", "purge", "nowhere", "--yes", code=6)


def test_a_purge_asks_the_person_at_the_terminal(cluster: Cluster) -> None:
    cluster.manager(workers=0)
    client = cluster.client()
    client.submit(named("compute", queue="bulk"), operation="double", value=1)
    for answer, code, left in ((b"n\n", 1, 1), (b"y\n", 0, 0)):
        master, slave = os.openpty()
        os.write(master, answer)
        done = subprocess.run(
            [sys.executable, "-m", "taskq", "monitor", "queue", "purge", "bulk"],
            env=cluster.environment(),
            stdin=slave,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        os.close(master)
        os.close(slave)
        assert 'cancel 1 task of queue "bulk"?' in done.stderr
        assert (done.returncode, done.stdout) == (code, "" if left else "1 task cancelled\n"), done.stderr
        assert queue_of(cluster, "bulk")["pending"] == left


def test_a_large_purge_holds_nobody_up(cluster: Cluster) -> None:
    cluster.manager(workers=0)
    client = cluster.client()
    with client.pipeline() as p:
        for number in range(40_000):
            p.submit(named("compute", queue="bulk", delay=3600 * (number % 2)), operation="double", value=1)
    done = threading.Event()
    waits: list[float] = []

    def submit_meanwhile() -> None:
        with cluster.client() as other:
            while not done.is_set():
                began = time.monotonic()
                other.submit(named("compute", queue="other"), operation="double", value=1)
                waits.append(time.monotonic() - began)

    thread = threading.Thread(target=submit_meanwhile)
    thread.start()
    assert client.purge("bulk") == 40_000
    done.set()
    thread.join()
    found = queue_of(cluster, "bulk")
    assert (found["pending"], found["scheduled"]) == (0, 0)
    assert len(waits) > 5 and max(waits) < 1.0, (len(waits), max(waits))


# -- orders


def test_strict_and_fair_through_a_pool(cluster: Cluster) -> None:
    write_tasks(cluster)
    cluster.manager(workers=0)
    client = cluster.client()

    def fill(round: str) -> list[Any]:
        return [
            client.submit(named("notes_tasks.note", queue=queue, priority=5 * (queue == "b")), f"{round}{queue}")
            for queue in ("b", "b", "b", "a", "a", "a")
        ]

    client_all = fill("s")
    options = ("--tasks", "notes_tasks", "--queues", "a,b")
    pool = cluster.pool(*options, "--queue-order", "strict", workers=1, threads=1)
    for handle in client_all:
        handle.result(20)
    [worker] = cluster.snapshot()["workers"]
    assert (list(worker["queues"]), worker["queue_order"]) == (["a", "b"], "strict")
    assert "a,b (strict)" in monitor(cluster, "worker", "list")
    assert begun(cluster) == ["sa"] * 3 + ["sb"] * 3
    assert pool.stop() == 0
    client_all = fill("f")
    cluster.pool(*options, "--queue-order", "fair", workers=1, threads=1)
    for handle in client_all:
        handle.result(20)
    assert sorted(begun(cluster)[6:8]) == sorted(begun(cluster)[8:10]) == ["fa", "fb"], "in turn"


def test_the_local_pool_takes_an_order_too(cluster: Cluster) -> None:
    cluster.manager("--queues", "a,b", "--queue-order", "fair", workers=1)
    [worker] = cluster.snapshot()["workers"]
    assert (list(worker["queues"]), worker["queue_order"]) == (["a", "b"], "fair")
    for command in ("manager", "worker"):
        done = cluster.run(command, "--queue-order", "strict")
        assert (done.returncode, "--queues" in done.stderr) == (2, True)


def test_a_task_that_has_waited_long_goes_before_higher_priorities(cluster: Cluster) -> None:
    """Ages are kept over a restart: what is submitted first here is 700 seconds old when the manager starts."""
    write_tasks(cluster)
    cluster.state.mkdir(mode=0o700)
    clock = FakeClock(wall=time.time() - 700)
    queue = JobQueue(SqliteStore(cluster.state / "store.sqlite"), clock, QueueSettings())
    queue.open()
    items = [new_task("notes_tasks.note", encode_arguments((name,), {}), queue="mail", priority=2 * (name != "old"))
             for name in ("old", "new0", "new1", "new2")]  # fmt: skip
    ids = list(queue.submit(1, 1, items[:1]).ids)
    clock.advance(700)
    ids += queue.submit(1, 2, items[1:]).ids
    queue.close()
    cluster.manager("--tasks", "notes_tasks", workers=1, threads=1)
    client = cluster.client()
    for id in ids:
        client.result(id, 20)
    assert begun(cluster) == ["old", "new0", "new1", "new2"]


# -- explain


def test_explain_says_what_must_happen_first(cluster: Cluster) -> None:
    write_tasks(cluster)
    manager = cluster.manager("--lease", "10s", "--tasks", "notes_tasks", workers=1, threads=1)
    client = cluster.client()
    running = client.submit("notes_tasks.note", "long", 60.0)
    wait_until(lambda: begun(cluster) == ["long"])
    busy = client.submit("notes_tasks.note", "behind")
    [later] = cluster.submit({"type": "compute", "operation": "double", "value": 1}, "--delay", "1h")
    [unknown] = cluster.submit({"type": "notes_tasks.not"}, "--allow-unknown")
    retried = client.submit(named("fail", max_retries=5, queue="urgent", priority=9), error_message="no")
    assert codes(client.explain(running.id)) == ["running"]
    assert codes(client.explain(busy.id)) == ["slots_busy", "position"]
    text = monitor(cluster, "explain", unknown).splitlines()
    assert text[0] == f"task {unknown} (notes_tasks.not, queue default) is pending"
    assert text[1] == '- no worker offers "notes_tasks.not" (nearest: "notes_tasks.note")'
    assert monitor(cluster, "explain", later).splitlines()[1].endswith("it was submitted for then")
    told = json.loads(monitor(cluster, "task", "explain", later, "--json"))
    assert (told["id"], told["state"], told["causes"][0]["code"]) == (later, "scheduled", "not_due")
    assert 3500 < told["causes"][0]["due_s"] <= 3600
    client.cancel(retried.id)
    assert codes(client.explain(retried.id)) == ["cancelled"]
    assert "no task 999" in monitor(cluster, "explain", 999, code=6)

    [pool] = cluster.pools()
    os.killpg(
        pool.pid, signal.SIGSTOP
    )  # nobody of it comes back by itself, nor does anybody say that its workers are dead
    manager.kill()
    cluster.manager("--lease", "10s", workers=0)
    client = cluster.client()
    try:
        told = client.explain(busy.id)
        assert codes(told)[0] == "held_after_restart", told
    finally:
        os.killpg(pool.pid, signal.SIGKILL)
    assert codes(wait_until(lambda: (t := client.explain(busy.id)) and codes(t)[0] != "held_after_restart" and t))
    client.cancel(running.id)


def test_explain_of_a_backoff_and_of_an_outcome(cluster: Cluster) -> None:
    manager = cluster.manager("--lease", "3s", workers=1)
    client = cluster.client()
    retried = client.submit(named("fail", max_retries=3), error_message="out of paper")
    failed = client.submit(named("fail", max_retries=0), error_message="on fire")
    done = client.submit("compute", operation="double", value=1)
    done.result(10)
    wait_until(lambda: failed.state() == "failed")
    wait_until(lambda: client.state(retried.id) == "scheduled" and codes(client.explain(retried.id)) == ["backoff"])
    told = client.explain(retried.id)["causes"][0]
    assert told["failures"] >= 1 and told["error"]["message"] == "out of paper", told
    assert "out of paper" in told["text"]
    manager.kill()
    cluster.manager(workers=1)
    client = cluster.client()
    [cause] = client.explain(failed.id)["causes"]
    assert cause["code"] == "failed" and "on fire" in cause["text"]
    assert codes(client.explain(done.id)) == ["completed"]
    until_the_first_pool_has_left(cluster)
