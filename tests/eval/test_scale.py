"""A million pending tasks: the manager starts in seconds and says how far it is, and nothing gets slower by them."""

from __future__ import annotations

import re
import shutil
import statistics
import time
from pathlib import Path

import psutil
import pytest
from cluster import Cluster
from yardstick import least

from taskq.queue.task import PENDING
from taskq.queue.task_row import TaskRow
from taskq.stores.base import Batch
from taskq.stores.sqlite import SqliteStore
from taskq.wire.codec import encode_arguments

pytestmark = pytest.mark.speed

MANY, FEW = 1_000_000, 100
START = 1.2
"""Processor time for each task, beside what a task costs at least from end to end; 0.7 on a quiet machine."""
BYTES_PER_TASK = 600
ROUNDS = 7


def pending(id: int) -> TaskRow:
    """A record as a submit of ``compute(operation="double", value=id)`` leaves it."""
    payload = encode_arguments((), {"operation": "double", "value": id})
    fields = (id, "compute", "default", 0, 3, 1.0, None, payload, None, f"c{id // 1000:011}", 7, 1.7e9, 1.7e9)
    return TaskRow(*fields, int(PENDING), 0, 0, 0, False, *[None] * 7)  # type: ignore[arg-type]


def fill(path: Path, count: int) -> None:
    """Make a store with so many pending tasks."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    store = SqliteStore(path)
    store.open()
    for start in range(1, count + 1, 10_000):
        end = min(start + 10_000, count + 1)
        store.write(Batch(new=[pending(id) for id in range(start, end)], next_id=end))
    store.close()


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a million pending tasks; to be copied."""
    path = tmp_path_factory.mktemp("million") / "store.sqlite"
    fill(path, MANY)
    return path


def memory_of(pid: int) -> int:
    """Resident bytes of a process."""
    return int(psutil.Process(pid).memory_info().rss)


def test_a_million_pending_tasks(cluster: Cluster, million: Path) -> None:
    """The start, its words, the answers after it, the order of hand-outs, and the memory."""
    empty = cluster.manager(workers=0)
    base = memory_of(empty.pid)
    empty.stop()
    shutil.copy(million, cluster.state / "store.sqlite")

    began = time.monotonic()
    manager = cluster.manager(workers=0)
    took = time.monotonic() - began
    spent = sum(psutil.Process(manager.pid).cpu_times()[:2])
    per_task = (memory_of(manager.pid) - base) / MANY
    print(f"ready after {took:.2f} s ({spent:.2f} s of processor time), {per_task:.0f} bytes a task")
    said = re.findall(r"recovering: ([\d,]+) of 1,000,000 tasks", manager.output)
    done = [int(number.replace(",", "")) for number in said]
    assert done and done == sorted(set(done)) and 0 < done[0] < MANY
    assert spent / MANY * 1e6 < START * least().cpu
    assert took < 2 * spent + 1.0
    assert per_task < BYTES_PER_TASK

    [queue] = cluster.snapshot()["queues"]
    assert (queue["name"], queue["pending"], queue["running"]) == ("default", MANY, 0)
    cluster.pool(workers=1, threads=1)
    client = cluster.client()
    results = [client.result(id, timeout=30.0) for id in range(1, 301)]
    assert results == [2 * id for id in range(1, 301)]
    rows = [row for row in cluster.service().get(list(range(1, 301))) if row is not None]
    runs = [row["run"] for row in rows]  # numbered as they are handed out
    assert len(rows) == 300 and runs == sorted(runs), "not handed out in the order in which they were submitted"


def test_the_monitor_costs_the_same_with_a_million_tasks(cluster: Cluster, million: Path, tmp_path: Path) -> None:
    """``taskq-monitor --once``, and the manager's own time for a snapshot, beside a manager with a hundred."""
    (tmp_path / "few").mkdir()
    few = Cluster(tmp_path / "few", tmp_path / "few" / "state")
    fill(few.state / "store.sqlite", FEW)
    cluster.state.mkdir(mode=0o700)
    shutil.copy(million, cluster.state / "store.sqlite")
    try:
        clusters = {FEW: few, MANY: cluster}
        managers = {count: one.manager(workers=0) for count, one in clusters.items()}
        walls: dict[int, list[float]] = {FEW: [], MANY: []}
        for _ in range(ROUNDS):
            for count, one in clusters.items():
                began = time.perf_counter()
                done = one.run("monitor", "--once")
                walls[count].append(time.perf_counter() - began)
                assert f"{count:,}" in done.stdout, done.stdout + done.stderr
        served: dict[int, float] = {}
        for count, one in clusters.items():
            queue = one.service()
            process = psutil.Process(managers[count].pid)
            before = sum(process.cpu_times()[:2])
            for _ in range(500):
                queue.snapshot()
            served[count] = sum(process.cpu_times()[:2]) - before
    finally:
        few.close()
    once = {count: statistics.median(found) for count, found in walls.items()}
    print(f"monitor --once: {once[FEW]:.3f} s with {FEW}, {once[MANY]:.3f} s with {MANY:,} tasks")
    print(f"500 snapshots: {served[FEW]:.2f} s and {served[MANY]:.2f} s of the manager's processor time")
    assert once[MANY] < 2 * once[FEW]
    assert served[MANY] < 3 * served[FEW] + 0.05
