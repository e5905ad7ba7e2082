"""A manager dies at every step of what it does, and the next one keeps all promises; there is never a second one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kill_points
import pytest
from cluster import Cluster

from taskq.errors import StoreLocked
from taskq.stores.sqlite import SqliteStore

SCRIPT = Path(kill_points.__file__)


def die(seed: int, *arguments: int | str) -> Any:
    """Run one process; what it kills needs no disk, since a killed process loses nothing that it has written."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="taskq-kill-", dir=place) as folder:
        command = [sys.executable, SCRIPT, folder, str(seed), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def die_everywhere(seed: int, times: int, *, parts: int = 2, mistake: str = "") -> Any:
    """Run two processes beside each other, each with its half of the points; gives their figures together."""
    with ThreadPoolExecutor(2) as pool:
        halves = [pool.submit(die, seed, part, parts, times, mistake) for part in range(2)]
        found = [half.result() for half in halves]
    return {
        "names": found[0]["names"],
        "points": sum(one["points"] for one in found),
        "missed": [point for one in found for point in one["missed"]],
        "broken": [text for one in found for text in one["broken"]],
    }


def check(found: Any, seed: int, record_property: Callable[[str, object], None]) -> None:
    for name, value in found.items():
        record_property(name, value if isinstance(value, int) else len(value))
    print(
        f"T2: seed {seed}, {found['names']} places, died {found['points']:,} times, {len(found['missed'])} not reached,"
        f" {len(found['broken'])} violations"
    )
    again = f"python tests/kill_points.py EMPTY_FOLDER {seed} 0 1 TIMES"
    assert not found["missed"], found["missed"]
    assert not found["broken"], "\n".join([*found["broken"][:20], f"to see it again: {again}"])


def test_it_may_die_at_any_step(record_property: Callable[[str, object], None]) -> None:
    found = die_everywhere(1, times=2)
    assert found["names"] > 150 and found["points"] > found["names"]
    check(found, 1, record_property)


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(101, 121))
def test_it_may_die_at_any_step_of_other_loads(seed: int, record_property: Callable[[str, object], None]) -> None:
    check(die_everywhere(seed, times=20), seed, record_property)


@pytest.mark.parametrize("mistake", [name for name in kill_points.MISTAKES if name])
def test_a_mistake_is_caught(mistake: str) -> None:
    """Answers before the commit; a batch that is not one transaction. A fraction of the points is enough."""
    assert die_everywhere(1, times=1, parts=6, mistake=mistake)["broken"]


def test_a_second_manager_is_refused_with_the_pid_of_the_first(
    cluster: Cluster, record_property: Callable[[str, object], None]
) -> None:
    first = cluster.manager(workers=0)
    store = cluster.state / "store.sqlite"
    for _ in range(95):  # another process than the manager's: this one
        begun = time.monotonic()
        with pytest.raises(StoreLocked, match=rf"locked by pid {first.pid}\b"):
            SqliteStore(store).open()
        assert time.monotonic() - begun < 1.0
    for _ in range(5):
        done = cluster.run("manager", "--port", 0, "--workers", 0)
        assert done.returncode != 0 and f"pid {first.pid}" in done.stderr, done
    assert cluster.service().hello()["pid"] == first.pid != os.getpid()
    record_property("refused", 100)
    print("T2: a second manager was refused 100 of 100 times")
