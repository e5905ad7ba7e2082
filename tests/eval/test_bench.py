"""``taskq bench`` as people run it: real figures, machine-readable, and nothing left behind however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster import Cluster

BARS = {"P1": 2, "P3": 3, "P12": 2, "P13": 1}
"""Workload -> number of its figures."""


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where it keeps its stores."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def started(scratch: Path) -> list[psutil.Process]:
    """The processes that came out of a run: it gives them no variable of ours, but where temporary files go."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("TMPDIR") == str(scratch):
                found.append(process)
    return found


def measured(cluster: Cluster, scratch: Path, *arguments: object) -> dict[str, Any]:
    """What a run says as JSON."""
    done = cluster.run("bench", *arguments, "--scale", 0.02, "--runs", 1, "--json", TMPDIR=str(scratch))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema"] == "taskq.bench/1"
    assert (found["runs"], found["scale"], found["failed"]) == (1, 0.02, [])
    assert found["machine"]["scratch"] == str(scratch)
    assert list(scratch.iterdir()) == started(scratch) == []
    for row in found["rows"]:
        assert row["lowest"] == row["median"] == row["highest"] == row["values"][0] > 0, row
        assert row["passed"] in ((None,) if row["limit"] is None else (True, False)), row
    return found


def test_figures_are_real_and_nothing_is_left(cluster: Cluster, scratch: Path) -> None:
    found = measured(cluster, scratch, *BARS)
    rows = found["rows"]
    assert {id: sum(row["workload"] == id for row in rows) for id in BARS} == BARS and len(rows) == sum(BARS.values())
    assert all(row["unit"] == ("s" if row["workload"] in ("P12", "P13") else "tasks/s") for row in rows)
    one_by_one, many, pipeline = (row["median"] for row in rows if row["workload"] == "P3")
    assert pipeline > 2 * max(one_by_one, many)  # batches are what makes it fast


def test_a_running_manager_can_be_measured(cluster: Cluster, scratch: Path) -> None:
    cluster.manager("--tasks", "taskq.bench.tasks")
    found = measured(cluster, scratch, "P1", "P2", "--join", cluster.state / "join.json")
    assert [row["workload"] for row in found["rows"]] == ["P1"]
    assert [one["workload"] for one in found["left_out"]] == ["P2"]
    assert cluster.snapshot()["totals"]["completed"] == 2_000 + 40  # all of them here, the warm-up too


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_that_is_stopped_cleans_up(cluster: Cluster, scratch: Path, number: int, code: int) -> None:
    bench = cluster.start("bench", "P1", "--runs", 1_000, TMPDIR=str(scratch))
    cluster.until_output(bench, "run 2 of 1000", timeout=30.0)
    assert len(started(scratch)) == 5  # itself, the manager, its pool, two worker processes
    os.kill(bench.pid, number)
    bench.asked = True
    assert bench.popen.wait(30) == code, bench.output
    assert list(scratch.iterdir()) == started(scratch) == []


def test_the_profile_says_where_the_time_goes(cluster: Cluster, scratch: Path) -> None:
    found = measured(cluster, scratch, "--profile")
    assert found["rows"] == []
    profile = found["profile"]
    assert set(profile["cpu_us"]) == {"client", "manager", "parent", "worker"}
    assert profile["rate"] > 0 and profile["cpu_us"]["manager"] > 0
    assert bool(profile["note"]) != bool(profile["stacks"])  # stacks, or why there are none
