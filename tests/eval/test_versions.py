"""A manager and workers under different versions of Python, and one store under both after each other.

Uses the interpreters that it finds. Each needs taskq's dependencies, two of which have parts in C; they are installed
once, into a folder of pytest's cache.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import shutil
import signal
import subprocess
from datetime import datetime, timedelta, timezone
from math import factorial
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, wait_until
from waiting_task import WAITING_TASK

from taskq import TaskFailed

ROOT = Path(__file__).resolve().parent.parent.parent
OLDEST, NEWEST = "3.10", "3.13"
VALUES: list[Any] = [
    None,
    -(2**200),
    2**63,
    0.1,
    b"\x00\xff",
    "zwölf ✓",
    datetime(2026, 2, 28, 23, 59, 59, 123_456, timezone(timedelta(hours=5, minutes=45))),
    datetime(1999, 1, 1),
    {"nested": [[], {}, [True, {"deep": 2**64}]]},
]
TASKS = (
    WAITING_TASK
    + """\
import sys

@task(name="echo")
def echo(*values, **named):
    return [list(values), named, list(sys.version_info[:2])]

@task(name="broken", max_retries=0)
def broken() -> None:
    raise ValueError("on purpose")

@task(name="slow", timeout=0.2, max_retries=0)
def slow() -> None:
    while True:
        time.sleep(0.01)
"""
)


def interpreter(version: str) -> str:
    """The path of this version of Python. Skips the test when there is none."""
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)  # the tests have a HOME of their own
    pyenv = Path(os.environ.get("PYENV_ROOT", home / ".pyenv"))
    candidates = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"versions/{version}.*/bin/python"))]
    for candidate in filter(None, candidates):
        told = subprocess.run(
            [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        if told.stdout.strip() == version:
            return str(candidate)
    pytest.skip(f"there is no Python {version} here")


def prepared(version: str, cache: pytest.Cache) -> str:
    """An interpreter of this version that has taskq's dependencies. Skips the test when they cannot be had."""
    python = interpreter(version)
    found = re.search(r"^dependencies = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    requirements = re.findall(r'"([^"]+)"', found[1])
    digest = hashlib.sha256(repr((python, requirements)).encode()).hexdigest()[:12]
    folder = cache.mkdir(f"taskq-python-{version}-{digest}")
    ready = folder / "ready"
    inside = folder / "venv" / "bin" / "python"
    if not ready.exists():
        made = subprocess.run(
            [python, "-m", "venv", "--clear", str(folder / "venv")], capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, made.stderr
        installed = subprocess.run(
            [str(inside), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements],
            capture_output=True,
            text=True,
            check=False,
        )
        if installed.returncode != 0:
            pytest.skip(f"cannot install the dependencies for Python {version}: {installed.stderr.strip()[-200:]}")
        ready.touch()
    return str(inside)


@pytest.mark.timeout(240)  # the first run installs packages
@pytest.mark.parametrize(
    ("of_manager", "of_workers"), [(NEWEST, OLDEST), (OLDEST, NEWEST)], ids="manager {0[0]}, workers {0[1]}".format
)
def test_manager_and_workers_may_differ_in_version(
    cluster: Cluster, pytestconfig: pytest.Config, of_manager: str, of_workers: str
) -> None:
    assert pytestconfig.cache is not None
    for_manager, for_workers = prepared(of_manager, pytestconfig.cache), prepared(of_workers, pytestconfig.cache)
    (cluster.folder / "tried.py").write_text(TASKS)
    version = [int(part) for part in of_workers.split(".")]

    cluster.python = for_manager
    manager = cluster.manager("--tasks", "tried", workers=0)
    cluster.python = for_workers
    cluster.pool("--tasks", "tried", workers=1, threads=2)
    client = cluster.client()
    arrived, named, worker_version = client.submit("echo", *VALUES, more=VALUES).result(10.0)
    assert arrived == VALUES and named == {"more": VALUES} and worker_version == version

    with pytest.raises(TaskFailed, match="ValueError: on purpose"):
        client.submit("broken").result(10.0)
    with pytest.raises(TaskFailed, match="timeout"):
        client.submit("slow").result(10.0)

    # A worker process dies under a task, and the task runs again.
    gate = cluster.folder / "gate"
    task = client.submit("wait_for_file", str(gate))
    wait_until(lambda: task.state() == "running", what="the task to run")
    [worker] = cluster.worker_processes()
    worker.send_signal(signal.SIGKILL)
    wait_until(lambda: task.state() in ("scheduled", "pending"), what="the death to be noticed")
    wait_until(lambda: task.state() == "running", what="the task to run again")

    # The manager is replaced by one under the workers' version: store and workers go on.
    manager.kill()
    manager = cluster.manager("--tasks", "tried", workers=0)
    gate.touch()
    assert task.result(20.0) == 2
    manager.stop()
    cluster.python = for_manager
    cluster.manager("--tasks", "tried", workers=0)
    assert client.submit("echo", 1).result(20.0) == [[1], {}, version]
    for python in (for_manager, for_workers):
        cluster.python = python
        assert cluster.result_of({"type": "compute", "operation": "factorial", "value": 30}) == factorial(30)
        assert "completed" in cluster.run("monitor", "--once").stdout
