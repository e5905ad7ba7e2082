"""How long a command takes from its first instruction to its end, as a user meets it: cold process, compiled modules.

Each figure is held against the start of an interpreter that does nothing, the two in turn: a slow machine, or one that
has other things to do, slows both. A limit is about one and a half times what was measured on a quiet machine.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from yardstick import hold

RUNS = 5
PAYLOAD = json.dumps({"type": "compute", "operation": "factorial", "value": 10})
SUBMIT = ("submit", "--payload", PAYLOAD)

HEAVY = {"multiprocessing", "sqlite3", "psutil", "rich", "asyncio", "http", "ssl", "email", "tempfile", "random"}
"""Modules, of others, that a small command has no use for."""
NOT_FOR_CLIENTS = {"taskq.manager", "taskq.queue.state", "taskq.queue.job_queue", "taskq.stores", "taskq.wire.server"}


@pytest.fixture
def compiled(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster whose processes find their modules compiled, in a folder of the test's own."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "")
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path / "compiled"))
    yield cluster


def timed(cluster: Cluster, *words: str) -> float:
    """Seconds that Python takes with these words, from start to end of its process."""
    environment = cluster.environment()
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words], env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    took = time.perf_counter() - began
    assert done.returncode == 0, done.stderr
    return took


def times_a_bare_start(cluster: Cluster, once: Callable[[], float]) -> dict[str, float]:
    """How many times longer than an interpreter that does nothing: medians, taken in turn."""
    pairs = [(once(), timed(cluster, "-c", "pass")) for _ in range(RUNS)]
    took, bare = (statistics.median(found) for found in zip(*pairs, strict=True))
    print(f"{took:.3f} s, a bare start {bare:.3f} s")
    return {"times a bare start": took / bare}


@pytest.mark.speed
@pytest.mark.parametrize(("command", "limit"), [(SUBMIT, 6.5), (("monitor", "--once"), 5.0)])
def test_a_command_is_over_at_once(compiled: Cluster, command: tuple[str, ...], limit: float) -> None:
    """The first call included: each run is a process, a connection and its handshake."""
    compiled.manager(workers=1)
    once = lambda: timed(compiled, "-m", "taskq", *command)  # noqa: E731
    once()  # compiles
    hold(lambda: times_a_bare_start(compiled, once), {"times a bare start": limit})


@pytest.mark.speed
def test_the_first_task_is_done_soon_after_the_manager_was_started(compiled: Cluster) -> None:
    """Start, boot of the pool and ready, submit, result: what somebody who tries it out waits for."""

    def once() -> float:
        began = time.perf_counter()
        manager = compiled.start("manager", "--port", 0, "--workers", 1, "--threads", 1)
        compiled.until_output(manager, " ready on ")
        queue = compiled.client()
        assert queue.submit("compute", operation="double", value=21).result(10.0) == 42
        took = time.perf_counter() - began
        manager.stop()
        return took

    once()  # compiles
    hold(lambda: times_a_bare_start(compiled, once), {"times a bare start": 18.0})


@pytest.mark.parametrize("command", [SUBMIT, ("monitor", "--once"), ("submit", "--help")], ids=" ".join)
def test_a_small_command_imports_nothing_that_it_has_no_use_for(cluster: Cluster, command: tuple[str, ...]) -> None:
    cluster.manager(workers=0)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "taskq", *command],
        env=cluster.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    imported = re.findall(r"^import time: +\d+ \| +\d+ \| *(\S+)$", done.stderr, re.MULTILINE)
    assert "click" in imported and "taskq.cli.options" in imported
    assert {name for name in imported if name.partition(".")[0] in HEAVY or name in HEAVY} == set()
    assert NOT_FOR_CLIENTS.intersection(imported) == set()
