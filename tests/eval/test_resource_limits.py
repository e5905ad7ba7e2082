"""A manager that the system denies something: it starves quietly, and serves again as soon as it has it."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from cluster import Cluster, Process, wait_until

from taskq.errors import TaskqError
from taskq.queue.terms import new_task
from taskq.wire.client import RemoteQueue

MIB = 2**20
RELIEF = 2.0
"""Seconds after which it must serve again."""
WATCHED = 2.0
BUSY = 0.05
"""Part of a processor that it may use while it starves."""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of running processes are set as on Linux")


def set_limit(process: Process, kind: int, size: int) -> None:
    """Set the soft limit of a running process."""
    resource.prlimit(process.pid, kind, (size, resource.prlimit(process.pid, kind)[1]))


def busy(process: Process) -> float:
    """The part of a processor that it uses while nothing else is done."""
    found = psutil.Process(process.pid)
    before, began = found.cpu_times(), time.monotonic()
    time.sleep(WATCHED)
    after, took = found.cpu_times(), time.monotonic() - began
    return (after.user + after.system - before.user - before.system) / took


def served(cluster: Cluster) -> bool:
    """Whether a new client can submit."""
    queue = RemoteQueue(cluster.join, connect_timeout=0.5)
    try:
        return len(queue.submit(int(time.time_ns()), 1, [new_task("noop", b"")]).ids) == 1
    except TaskqError:
        return False
    finally:
        queue.close()


def check(cluster: Cluster, manager: Process, what: str, relieve: Callable[[], object], note: str = "") -> None:
    """It starves: it hardly computes; relieved, it serves."""
    used = busy(manager)
    relieve()
    began = time.monotonic()
    wait_until(lambda: served(cluster), RELIEF, f"a client to be served after there was {what} again")
    print(f"T18: no {what}{note}: {used:.1%} of a processor, served {time.monotonic() - began:.2f} s after relief")
    assert used < BUSY, f"no {what}: {used:.1%} of a processor"
    assert manager.popen.poll() is None


def test_descriptors(cluster: Cluster) -> None:
    """The limit falls while it runs, so that what the door reckoned with at the start holds no longer."""
    manager = cluster.manager(workers=0)
    set_limit(manager, resource.RLIMIT_NOFILE, 64)
    address = cluster.join.addresses[0]
    with ExitStack() as strangers:
        for _ in range(150):
            with contextlib.suppress(OSError):
                strangers.enter_context(socket.create_connection((address.host, address.port), 1.0))
        check(cluster, manager, "descriptors", strangers.close)


def test_threads(cluster: Cluster) -> None:
    manager = cluster.manager(workers=0)
    found = psutil.Process(manager.pid)
    set_limit(manager, resource.RLIMIT_AS, found.memory_info().vms + 80 * MIB)
    clients: list[RemoteQueue] = []
    refused = 0
    while refused < 3 and len(clients) < 100:
        queue = RemoteQueue(cluster.join, connect_timeout=0.5)
        clients.append(queue)
        try:
            queue.hello()
        except TaskqError:
            refused += 1
    assert refused, "nothing was denied"
    check(
        cluster,
        manager,
        "threads",
        lambda: [queue.close() for queue in clients],
        f" after {len(clients) - refused} clients",
    )


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A group of processes that have 256 MiB together, and stand still when they want more."""
    group = Path(f"/sys/fs/cgroup/memory/taskq-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(256 * MIB))
        (group / "memory.oom_control").write_text("1")
    except OSError as error:
        pytest.skip(f"no memory group (version 1) can be made here: {error}")
    yield group
    wait_until(lambda: not (group / "cgroup.procs").read_text().split(), 10.0, "the group to be empty")
    group.rmdir()


HOG = """
import sys
sys.stdin.readline()
held = []
while True:
    held.append(bytearray(b"x" * 2**20))
"""


def test_memory(memory_group: Path, cluster: Cluster) -> None:
    manager = cluster.manager(workers=0)
    (memory_group / "cgroup.procs").write_text(str(manager.pid))
    hog = subprocess.Popen([sys.executable, "-c", HOG], stdin=subprocess.PIPE, text=True)
    try:
        (memory_group / "cgroup.procs").write_text(str(hog.pid))
        assert hog.stdin is not None
        hog.stdin.write("go\n")
        hog.stdin.close()
        starved = lambda: "under_oom 1" in (memory_group / "memory.oom_control").read_text()  # noqa: E731
        wait_until(starved, 10.0, "the memory to be used up")
        check(cluster, manager, "memory", lambda: (hog.kill(), hog.wait(10)))
    finally:
        hog.kill()
        hog.wait(10)
    assert served(cluster)


def test_logs_that_cannot_be_written(cluster: Cluster) -> None:
    """Neither the file nor stderr; tasks are done all the same."""
    wrapper = cluster.folder / "python"
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@" 2>/dev/full\n')
    wrapper.chmod(0o700)
    log = cluster.state / "log"
    log.mkdir(parents=True, mode=0o700)
    (log / "manager.log").symlink_to("/dev/full")
    usual, cluster.python = cluster.python, str(wrapper)
    manager = cluster.start("manager", "--port", 0, "--workers", 1, "--threads", 2)
    cluster.python = usual
    wait_until(lambda: manager.popen.poll() is not None or (cluster.state / "join.json").exists(), 15.0, "the start")
    assert manager.popen.poll() is None
    client = cluster.client()
    handles = [client.submit("compute", operation="double", value=number) for number in range(100)]
    assert [handle.result(timeout=20) for handle in handles] == [2 * number for number in range(100)]
    check(cluster, manager, "room for logs", lambda: None)
