"""Failed tasks through real processes: what is told of them, after crashes and restarts, and how they begin anew."""

from __future__ import annotations

import json
from typing import Any

import psutil
from cluster import Cluster, wait_until

from taskq.client import Client
from taskq.queue.task import FINAL
from taskq.registry import named

TASKS = """
import ctypes, os, signal, sys, time
from pathlib import Path
from taskq import task

@task(max_retries=0)
def fall(how: str) -> None:
    if how == "killed":
        time.sleep(0.3)  # its neighbours have begun
        print("about to be killed", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    os.write(2, b"about to read nothing\\n")
    ctypes.string_at(0)

@task
def work(seconds: float) -> str:
    time.sleep(seconds)
    return "done"

@task(max_retries=0)
def chat(seconds: float) -> int:
    lines, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        lines += 1
        print("line", lines, "." * 500)
        time.sleep(0.005)
    print("the last line")
    return lines

@task(max_retries=1, backoff=0.1)
def needs(path: str, message: str) -> int:
    if not Path(path).exists():
        raise FileNotFoundError(message)
    return 1
"""
LABELS = {state.label for state in FINAL}


def start(cluster: Cluster, *options: object, **size: int) -> None:
    (cluster.folder / "falls.py").write_text(TASKS)
    cluster.manager("--tasks", "falls", *options, **size)


def restart(cluster: Cluster, **size: int) -> None:
    """Kill the manager and start it anew; wait until the pool that outlived it has been told to leave."""
    before = psutil.Process(cluster.processes[-1].pid).children()
    cluster.processes[-1].kill()
    cluster.manager("--tasks", "falls", **size)
    assert psutil.wait_procs(before, 30)[1] == []


def over(client: Client, *ids: int, timeout: float = 30.0) -> list[str]:
    wait_until(lambda: {client.state(id) for id in ids} <= LABELS, timeout, f"the end of {ids}")
    return [client.state(id) for id in ids]


def monitor(cluster: Cluster, *words: object, code: int = 0) -> Any:
    done = cluster.run("monitor", *words, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_a_poisoned_task_says_how_it_ended_and_its_neighbours_complete(cluster: Cluster) -> None:
    """SIGKILL leaves no stack, so all four count the first death; then each runs alone, and only one dies again."""
    start(cluster, workers=1, threads=4)
    with cluster.client() as client:
        good = [client.submit("falls.work", 1.0).id for _ in range(3)]
        bad = client.submit("falls.fall", "killed").id
        wait_until(lambda: len(client.history(bad)) >= 1 and client.history(bad)[0]["outcome"] == "died", 20.0)
        assert [len(client.history(id)) for id in good] == [1, 1, 1], "each counts this death"
        restart(cluster, workers=1, threads=4)
        assert over(client, *good, bad, timeout=60.0) == ["completed"] * 3 + ["failed"]
    shown = monitor(cluster, "task", "show", bad)
    assert (shown["deaths"], shown["error"]["kind"]) == (3, "poisoned") and "SIGKILL" in shown["error"]["message"]
    assert [attempt["outcome"] for attempt in shown["history"]] == ["died"] * 3
    for attempt in shown["history"]:
        assert "SIGKILL" in attempt["death"]["how"] and "about to be killed" in attempt["death"]["stderr"]
        assert all(
            0 <= sample["before_end_s"] <= 60 and sample["rss_bytes"] > 2**20 for sample in attempt["death"]["rss"]
        )
    assert shown["history"][0]["death"]["rss"]
    for id in good:
        one = monitor(cluster, "task", "show", id)
        assert (one["deaths"], [attempt["outcome"] for attempt in one["history"]]) == (1, ["died", "completed"])
    words = cluster.run("monitor", "failed", "show", bad).stdout
    assert "history: 3 attempts" in words and "last lines on stderr" in words and "rss " in words


def test_what_a_task_writes_is_seen_at_once_and_a_segfault_leaves_its_stack(cluster: Cluster) -> None:
    start(cluster, workers=1, threads=1)
    with cluster.client() as client:
        bad = client.submit("falls.fall", "segfault").id
        cluster.until_output(cluster.processes[0], "about to read nothing", 20.0)
        assert over(client, bad) == ["failed"]
        first, *_ = client.history(bad)
        assert "SIGSEGV" in first["death"]["how"] and "in fall" in first["traceback"]
        assert "about to read nothing" in first["death"]["stderr"]


def test_failed_tasks_are_grouped_chosen_begin_anew_and_are_dropped(cluster: Cluster) -> None:
    start(cluster, workers=2, threads=2)
    there = cluster.folder / "there"
    with cluster.client() as client:
        ids = [client.submit("falls.needs", str(there), f"no route to {n % 2}").id for n in range(6)]
        other = client.submit("fail", error_message="just so")
        assert over(client, *ids) == ["failed"] * 6 and over(client, other.id) == ["failed"]
        largest, second = monitor(cluster, "failed", "list")
        assert (largest["error"], largest["type"], largest["count"]) == ("FileNotFoundError", "falls.needs", 6)
        assert largest["ids"] == ids[::-1] and second["count"] == 1
        table = cluster.run("monitor", "failed", "list", "--where", "message~='to 1$'").stdout
        assert "FileNotFoundError" in table and "    3  " in table and "just so" not in table
        restart(cluster, workers=2, threads=2)
        there.touch()
        asks = cluster.run("monitor", "failed", "requeue", "--where", "type=falls.needs")
        assert asks.returncode == 2 and "--yes" in asks.stderr, "nobody can answer there"
        wrong = cluster.run("monitor", "failed", "drop", "--where", "speed>3", "--yes")
        assert wrong.returncode == 2 and "at character 1 of: speed>3" in wrong.stderr
        done = monitor(cluster, "failed", "requeue", "--where", "type=falls.needs message~='to 1$'", "--yes")
        assert done == {"requeued": 3}
        assert over(client, *ids[1::2]) == ["completed"] * 3
        assert [one["outcome"] for one in client.history(ids[1])] == ["failed", "failed", "completed"]
        assert monitor(cluster, "task", "requeue", ids[0])[0]["state"] == "requeued"
        assert over(client, ids[0]) == ["completed"]
        monitor(cluster, "task", "requeue", ids[0], code=1)
        assert [one["id"] for one in client.failed("type=falls.needs")] == [ids[4], ids[2]]
        assert client.requeue(where=f"id={ids[2]}") == [ids[2]] and over(client, ids[2]) == ["completed"]
        assert client.drop(ids[4], 10**6) == [ids[4]] and client.drop(where="") == [other.id]
        assert client.failed() == [] and monitor(cluster, "failed", "list") == []


def test_a_suspect_gets_its_turn_while_there_is_more_than_enough_to_do(cluster: Cluster) -> None:
    """One process, whose threads are never all idle by themselves."""
    start(cluster, workers=1, threads=3)
    with cluster.client() as client:
        good = client.map("falls.work", [0.2] * 240)
        bad = client.submit(named("falls.fall", priority=9), "segfault")
        error = bad.exception(timeout=60)
        assert error is not None and error.details["kind"] == "poisoned"
        waiting = sum(handle.state() == "pending" for handle in good)
        assert waiting > 50, "it waited for the others to be through"
        client.purge("default")


def test_worker_processes_go_on_when_the_parent_that_reads_their_stderr_is_killed(cluster: Cluster) -> None:
    start(cluster, workers=0)
    pool = cluster.pool("--tasks", "falls", workers=1, threads=1)
    with cluster.client() as client:
        chatty = client.submit("falls.chat", 3.0)
        cluster.until_output(pool, "line 10 ", 20.0)
        pool.kill()
        assert chatty.result(timeout=30) > 300
    wait_until(lambda: "the last line" in pool.output, 20.0, "what was written after the parent's end")
    wait_until(lambda: not cluster.worker_processes(), 20.0)
