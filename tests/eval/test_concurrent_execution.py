"""Many submitters and many workers at once, through real processes: each task runs once, and really in parallel."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, wait_until

TASKS = '''
import os
import threading
import time
from pathlib import Path

from taskq import current_task, task

HERE = Path(__file__).parent


@task(max_retries=0)
def mark(number):
    """Leave a trace of each run: one line in a file of this process and thread."""
    with (HERE / f"ran-{os.getpid()}-{threading.get_ident()}").open("a") as file:
        file.write(f"{number}\\n")
    return [number, os.getpid(), threading.get_ident(), current_task().attempt]


@task(max_retries=0)
def meet(name, count):
    """Come back only when ``count`` runs are under way at the same time."""
    (HERE / f"{name}-{current_task().id}").touch()
    for _ in range(1_000):
        if len(list(HERE.glob(f"{name}-*"))) >= count:
            return os.getpid()
        time.sleep(0.01)
    raise RuntimeError("nobody else came")


@task
def flaky(number):
    """Fail the first time."""
    if current_task().attempt == 1:
        raise OSError(number)
    return number
'''


@pytest.fixture
def crowd(cluster: Cluster) -> Cluster:
    """A manager with 4 processes of 4 threads that know the tasks above."""
    (cluster.folder / "crowd.py").write_text(TASKS)
    cluster.manager("--tasks", "crowd", workers=4, threads=4)
    return cluster


def submit_file(cluster: Cluster, entries: list[dict[str, Any]], *options: object) -> list[int]:
    """Submit many tasks with one command; gives their ids."""
    done = cluster.run("submit", "--payload-file", "-", *options, stdin=json.dumps(entries))
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def all_done(cluster: Cluster, count: int) -> bool:
    """Whether so many tasks are completed and nothing is under way."""
    found = cluster.snapshot()
    under_way = sum(queue["pending"] + queue["running"] + queue["scheduled"] for queue in found["queues"])
    return bool(found["totals"]["completed"] == count and under_way == 0)


def traces(folder: Path) -> Counter[int]:
    """How often each number was run, by all processes together."""
    return Counter(int(line) for path in folder.glob("ran-*") for line in path.read_text().split())


def test_every_task_of_many_submitters_runs_exactly_once(crowd: Cluster) -> None:
    submitters, each = 6, 250
    with ThreadPoolExecutor(submitters) as pool:
        batches = [
            [{"type": "crowd.mark", "number": part * each + number} for number in range(each)]
            for part in range(submitters)
        ]
        ids = [id for batch in pool.map(lambda batch: submit_file(crowd, batch), batches) for id in batch]
    assert len(set(ids)) == submitters * each, "an id was given twice"
    wait_until(lambda: all_done(crowd, submitters * each), 60.0, "all tasks")
    assert traces(crowd.folder) == Counter(range(submitters * each))


def test_results_belong_to_their_tasks(crowd: Cluster) -> None:
    """Several clients at once, each gets exactly its own results."""
    failures: list[str] = []

    def one(part: int) -> None:
        client = crowd.client()
        wanted = range(part * 1_000, part * 1_000 + 200)
        for number, handle in zip(wanted, client.map("crowd.mark", wanted), strict=True):
            got, _, _, attempt = handle.result(timeout=30)
            if (got, attempt) != (number, 1):
                failures.append(f"{got} instead of {number}, attempt {attempt}")

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(one, range(5)))
    assert not failures


def test_tasks_really_run_at_the_same_time_in_all_threads_of_all_processes(crowd: Cluster) -> None:
    """16 tasks that come back only when all 16 run: less parallelism than 4 x 4 would hang."""
    count = 16
    submit_file(crowd, [{"type": "crowd.meet", "name": "party", "count": count}] * count)
    wait_until(lambda: all_done(crowd, count), 30.0, "the party")
    rows = crowd.service().list_tasks("completed", "crowd.meet", None, 50)
    assert len({row["worker"] for row in rows}) == 4, "not all processes took part"


def test_work_is_spread_over_all_processes(crowd: Cluster) -> None:
    submit_file(crowd, [{"type": "sleep", "duration": 0.02}] * 200)
    wait_until(lambda: all_done(crowd, 200), 30.0, "all naps")
    shares = [worker["completed"] for worker in crowd.snapshot()["workers"]]
    assert sum(shares) == 200 and min(shares) >= 20, shares


def test_failures_among_many_are_retried_and_complete(crowd: Cluster) -> None:
    submit_file(crowd, [{"type": "crowd.flaky", "number": number} for number in range(100)])
    wait_until(lambda: all_done(crowd, 100), 60.0, "all tasks")
    assert crowd.snapshot()["totals"]["retried"] == 100
    rows = crowd.service().list_tasks("completed", "crowd.flaky", None, 200)
    assert {row["failures"] for row in rows} == {1}


def test_the_same_key_from_many_submitters_is_one_task(crowd: Cluster) -> None:
    def one(_: int) -> str:
        done = crowd.run("submit", "--dedupe-key", "only-once", "crowd.mark", "number=7")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    with ThreadPoolExecutor(6) as pool:
        ids = set(pool.map(one, range(6)))
    assert len(ids) == 1
    wait_until(lambda: all_done(crowd, 1), 20.0, "the task")
    assert traces(crowd.folder) == Counter([7])


def test_pools_on_several_sides_share_the_work(crowd: Cluster) -> None:
    crowd.pool("--tasks", "crowd", "--worker-name", "second", workers=2, threads=4)
    submit_file(crowd, [{"type": "crowd.meet", "name": "all", "count": 24}] * 24)
    wait_until(lambda: all_done(crowd, 24), 30.0, "all pools together")
    names = {worker["id"]: worker["completed"] for worker in crowd.snapshot()["workers"]}
    assert len(names) == 6 and min(names.values()) >= 1, names
    assert sum(count for name, count in names.items() if name.startswith("second")) == 8


def test_submitting_goes_on_while_monitors_watch(crowd: Cluster) -> None:
    watch = [sys.executable, "-m", "taskq", "monitor", "--export", "json"]
    stop = threading.Event()
    seen: list[int] = []

    def look() -> None:
        while not stop.is_set():
            text = subprocess.check_output(watch, env=crowd.environment(), cwd=crowd.folder, text=True)
            seen.append(json.loads(text)["totals"]["submitted"])

    monitor = threading.Thread(target=look)
    monitor.start()
    try:
        for _ in range(5):
            submit_file(crowd, [{"type": "crowd.mark", "number": number} for number in range(100)])
        wait_until(lambda: all_done(crowd, 500), 30.0, "all tasks")
    finally:
        stop.set()
        monitor.join()
    assert seen == sorted(seen) and seen[-1] >= 400
    assert set(traces(crowd.folder).values()) == {5}
