"""A disk that fails, at every place where it can: nothing that was acknowledged is lost, nothing hangs."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, wait_until
from preloading import library
from small_disks import fill, mounted
from traces import MODULE, traces, write_module

from taskq.clock import FakeClock
from taskq.config import QueueSettings
from taskq.errors import OutcomeUnknown, StorageFull
from taskq.queue.job_queue import JobQueue
from taskq.queue.task import State
from taskq.queue.terms import new_task
from taskq.shapes import ACK
from taskq.stores.sqlite import SqliteStore

DRIVER = Path(__file__).resolve().parents[1] / "fault_driver.py"
MIB = 2**20
SEED = int(os.environ.get("TASKQ_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
QUICK = {("write", "EIO", False): 20, ("sync", "EIO", False): 1, ("sync", "EIO", True): 8, ("write", "EIO", True): 48}
QUICK |= {("write", "ENOSPC", False): 24, ("write", "ENOSPC", True): 36, ("sync", "ENOSPC", False): 8}
QUICK |= {(call, "EIO", False): 1 for call in ("truncate", "open", "allocate", "unlink")} | {("read", "EIO", False): 4}
"""Fault -> how many positions one of them stands for; the first of these is drawn with the seed."""
FULL = {(call, number, for_good): 1 for call in ("write", "sync", "truncate", "open", "read", "allocate", "unlink")
        for number in ("EIO", "ENOSPC") for for_good in (False, True)}  # fmt: skip


@pytest.fixture
def fast_disk() -> Iterator[Path]:
    """A folder in memory where there is one: the faults are made in the calls, and nobody pulls a plug here."""
    folder = Path(tempfile.mkdtemp(prefix="taskq-test-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    yield folder
    shutil.rmtree(folder)


def ask(folder: Path, jobs: Iterator[tuple[str, str, bool, int, int]], done: Callable[[Any, Any], None]) -> None:
    """One driver, and all positions of each of these faults until a run has no failure."""
    folder.mkdir()
    environment = {**os.environ, "LD_PRELOAD": library()}
    command = [sys.executable, str(DRIVER), str(folder)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdin is not None and driver.stdout is not None
        for call, number, for_good, at, step in jobs:
            hit = True
            while hit:
                asked = {"call": call, "errno": getattr(errno, number), "for_good": for_good, "at": at}
                driver.stdin.write(json.dumps(asked) + "\n")
                driver.stdin.flush()
                line = driver.stdout.readline()
                assert line, f"the driver died over {asked}"
                found = json.loads(line)
                done({**asked, "errno": number}, found)
                hit = found["hit"]
                at += step
        driver.stdin.close()


def every_position(folder: Path, faults: dict[tuple[str, str, bool], int], record: Callable[..., None]) -> None:
    """All these faults; each driver has a processor to itself."""
    draw = random.Random(SEED)
    jobs = [(*fault, draw.randint(1, step), step) for fault, step in faults.items()]
    figures: Counter[str] = Counter()
    wrong: list[str] = []
    lock = threading.Lock()

    def take() -> Iterator[tuple[str, str, bool, int, int]]:
        while True:
            with lock:
                if not jobs:
                    return
                job = jobs.pop(0)
            yield job

    def done(asked: Any, found: Any) -> None:
        with lock:
            figures["faults"] += found["hit"]
            figures[asked["call"]] += found["hit"]
            figures["calls"] += found["calls"]
            figures["acknowledged"] += found["acknowledged"]
            figures["stopped"] += found["stopped"]
            wrong.extend(f"{asked}: {text}" for text in found["wrong"])

    drivers = [threading.Thread(target=ask, args=(folder / str(n), take(), done)) for n in range(os.cpu_count() or 1)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    by_call = {call: figures[call] for call, _, _ in faults}
    for name in ("faults", "calls", "acknowledged", "stopped"):
        record(name, figures[name])
    lost = sum("lost" in text for text in wrong)
    told = f"{figures['calls']:,} calls, {figures['acknowledged']:,} acknowledged, {lost} lost"
    print(f"T9: {figures['faults']:,} faults {by_call}, {told}; repeat: TASKQ_TEST_SEED={SEED} pytest {__file__}")
    assert not wrong, "\n".join(wrong[:20])
    assert figures["stopped"] > figures["sync"] / 4, "failures do not reach the commits"
    assert min(by_call.values()) > 0, by_call


@pytest.mark.timeout(300)  # a busy machine
def test_every_call_to_the_disk_fails_once(fast_disk: Path, record_property: Callable[..., None]) -> None:
    every_position(fast_disk, QUICK, record_property)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_every_call_to_the_disk_fails_in_every_way(fast_disk: Path, record_property: Callable[..., None]) -> None:
    every_position(fast_disk, FULL, record_property)


# -- a full disk


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of so many MiB."""
    with mounted(tmp_path / "disk", request.param) as folder:
        yield folder


@pytest.mark.parametrize("small_disk", [8], indirect=True)
def test_a_disk_of_8_mib_is_filled_and_freed(small_disk: Path, record_property: Callable[..., None]) -> None:
    """Again and again: submits are refused, outcomes are not, and a look at the disk brings all back."""
    clock = FakeClock()
    failures: list[BaseException] = []
    store = SqliteStore(small_disk / "store.sqlite", free_mark=2 * MIB, reserve=MIB)
    queue = JobQueue(store, clock, QueueSettings(), failures.append)
    queue.open()
    session = queue.attach(worker_info(), ())["session"]
    expected: dict[int, str] = {}
    refused = 0
    for cycle in range(20):
        queue.look_after_disk()
        ids = [queue.submit(1, 100 * cycle + n, [new_task("t", b"x" * 1000)] * 5).ids for n in range(1, 5)]
        expected.update(dict.fromkeys((id for some in ids for id in some), "pending"))
        filler = fill(small_disk, leave=cycle * 4096)
        queue.look_after_disk()
        for seq in range(5, 8):
            with pytest.raises(StorageFull, match="nearly full"):
                queue.submit(1, 100 * cycle + seq, [new_task("t", b"")])
            refused += 1
        tasks = queue.reserve("i", session, 20, 0, (), 0.0).tasks
        for task in tasks:
            assert queue.report("i", session, [(ACK, task.id, task.run, b"r" * 800, 0.1)]) == []
            expected[task.id] = "completed"
        assert len(tasks) == 20
        warning = queue.snapshot()["warnings"][-1]
        assert warning["code"] == "storage_full", warning
        assert queue.clean() in (True, False)
        filler.unlink()
    queue.look_after_disk()
    assert not [found for found in queue.snapshot()["warnings"] if found["code"] == "storage_full"]
    queue.submit(1, 9999, [new_task("t", b"")])
    found = {id: queue.wait([id], 0)[0].state for id in expected}
    queue.close()
    assert found == expected
    assert not failures
    store.open()
    assert {id: State(row.state).label for id, row in store.get(list(expected)).items()} == expected
    store.close()
    record_property("accepted", len(expected))
    print(f"T9: 20 times full and free again: {len(expected)} accepted and completed, 0 lost, {refused} refused")


@pytest.mark.parametrize("small_disk", [128], indirect=True)
def test_a_manager_on_a_full_disk_goes_on_and_comes_back(small_disk: Path, cluster: Cluster) -> None:
    write_module(cluster.folder)
    cluster.manager("--store", f"sqlite:{small_disk}/store.sqlite", "--tasks", MODULE, workers=1, threads=4)
    client = cluster.client()
    waiting = [client.submit("hold", "full") for _ in range(4)]
    waiting += client.map("quick", range(200))
    wait_until(lambda: len(traces(cluster.folder, "begin")) == 4, 15.0, "four to begin")
    filler = fill(small_disk, leave=0)
    wait_until(lambda: "storage_full" in [one["code"] for one in cluster.snapshot()["warnings"]], 5.0, "the warning")
    done = cluster.run("submit", "quick", "number=1")
    assert done.returncode == 5 and "nearly full" in done.stderr, done.stderr
    assert "! the disk is nearly full" in cluster.run("monitor", "--once").stdout
    assert cluster.run("monitor", "--check").returncode == 7
    with pytest.raises(StorageFull):
        client.submit("quick", 1)
    (cluster.folder / "full.go").touch()
    for handle in waiting:
        handle.result(timeout=30)
    filler.unlink()
    began = time.monotonic()

    def accepted() -> bool:
        try:
            return bool(client.submit("quick", 7).result(timeout=10) == 7)
        except StorageFull:
            return False

    wait_until(accepted, 5.0, "new tasks to be accepted")
    print(
        f"T9: accepted again {time.monotonic() - began:.1f} s after there was room, {len(waiting)} completed meanwhile"
    )
    assert cluster.run("monitor", "--check").returncode == 0


@pytest.mark.parametrize("small_disk", [128], indirect=True)
def test_a_flood_of_large_payloads_stops_before_the_reserve(small_disk: Path, cluster: Cluster) -> None:
    """64 MiB are soon written: the disk is looked at as often as the flood asks for."""
    manager = cluster.manager("--store", f"sqlite:{small_disk}/store.sqlite", workers=0)
    service = cluster.service()
    accepted: list[int] = []
    with pytest.raises(StorageFull):
        while len(accepted) < 200:
            accepted += service.submit(1, len(accepted) + 1, [new_task("noop", b"x" * (MIB - 100))]).ids
    assert manager.popen.poll() is None
    assert (small_disk / "store.sqlite.reserve").stat().st_blocks * 512 >= 16 * MIB, "the reserve was for outcomes"
    assert shutil.disk_usage(small_disk).free > 40 * MIB
    assert set(service.cancel(accepted)) == {"cancelled"}


# -- files that somebody else takes away

INTRUDER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
print(db.execute("SELECT count(*) FROM task").fetchone()[0])
db.close()
"""


def test_another_program_that_opens_and_closes_the_database_is_noticed(tmp_path: Path) -> None:
    """Locks are gone once any descriptor of the file was closed; the other program then takes the log along."""
    path = tmp_path / "store.sqlite"
    failures: list[BaseException] = []
    queue = JobQueue(SqliteStore(path), FakeClock(), QueueSettings(), failures.append)
    queue.open()
    before = [queue.submit(1, seq, [new_task("t", b"")]).ids[0] for seq in range(1, 11)]
    path.open("rb").close()
    done = subprocess.run([sys.executable, "-c", INTRUDER, str(path)], capture_output=True, text=True, check=False)
    assert done.stdout == "10\n", done.stderr
    assert not path.with_name("store.sqlite-wal").exists()
    with pytest.raises(OutcomeUnknown):
        queue.submit(1, 11, [new_task("t", b"")])
    assert len(failures) == 1 and "another program has removed or replaced" in str(failures[0])
    with pytest.raises(OutcomeUnknown):
        queue.submit(1, 12, [new_task("t", b"")])
    queue.close()
    again = SqliteStore(Path(shutil.copy(path, tmp_path / "copy.sqlite")))  # this process still has the first one open
    again.open()
    assert sorted(again.get(range(1, 99))) == before
    again.close()


@pytest.mark.parametrize("taken", ["store.sqlite-wal", "store.sqlite"])
def test_a_manager_whose_files_are_taken_away_ends(cluster: Cluster, taken: str) -> None:
    """On a timer, so that it is noticed although nothing is written."""
    manager = cluster.manager(workers=0)
    ids = cluster.service().submit(1, 1, [new_task("noop", b"\x92\x90\x80")] * 3).ids
    manager.asked = True
    (cluster.state / taken).rename(cluster.state / "elsewhere")
    assert manager.popen.wait(10) == 1
    assert f"another program has removed or replaced {cluster.state / taken}" in manager.output
    (cluster.state / "elsewhere").rename(cluster.state / taken)
    cluster.manager(workers=0)
    assert [one["state"] for one in cluster.service().get(ids)] == ["pending"] * 3


def worker_info() -> Any:
    """A worker process that takes tasks of type ``t``."""
    pool = {"id": "p", "name": "p", "host": "h", "pid": 1, "local": None}
    kind = {"name": "t", "parameters": (), "queue": "default", "max_retries": 0, "backoff": 1.0, "timeout": None}
    return {"incarnation": "i", "pool": pool, "name": "p/0", "host": "h", "pid": 2, "threads": 50, "queues": (),
            "types": [{**kind, "workers": 0}]}  # fmt: skip
