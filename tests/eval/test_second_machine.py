"""A worker pool on a second machine: it joins, works, and outlasts a link that is cut.

The machines are two network namespaces joined by a veth pair; each has a state folder of its own. A thread is on one
of them for as long as it is inside `Machine.here`: processes and connections that it makes meanwhile belong there.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import secrets
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster import Cluster, wait_until

from taskq import Client, TaskHandle
from taskq.config import Join

CLONE_NEWNET = 0x40000000
ADDRESSES = ("10.213.77.1", "10.213.77.2")
NORMAL_WITHIN = 15.0
"""Seconds from the link's return until everything submitted before it is done."""
TASKS = """\
import os, time
from taskq import current_task, task

@task(name="mark")
def mark(path: str, seconds: float) -> int:
    id = current_task().id
    write(path, f"began {id} {time.time()}")
    time.sleep(seconds)
    write(path, f"ended {id} {time.time()}")
    return id

def write(path, line):
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line.encode() + b"\\n")
    os.close(file)
"""


def ip(*words: str) -> None:
    """Run ``ip WORDS…``. Raises `subprocess.CalledProcessError`."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def enter(descriptor: int) -> None:
    """Put this thread into a network namespace."""
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@dataclass
class Machine:
    """A network namespace and what runs there."""

    namespace: str
    address: str
    cluster: Cluster

    @contextmanager
    def here(self) -> Iterator[None]:
        """Be on this machine, in this thread."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
        try:
            enter(there)
            try:
                yield
            finally:
                enter(before)
        finally:
            os.close(there)
            os.close(before)

    def link(self, state: str) -> None:
        """Set its end of the cable ``up`` or ``down``."""
        ip("-n", self.namespace, "link", "set", "eth0", state)


@pytest.fixture
def machines(tmp_path: Path, _nothing_left: None) -> Iterator[tuple[Machine, Machine]]:
    """Two machines with a cable between them."""
    if os.geteuid() != 0:
        pytest.skip("only root can make network namespaces")
    if shutil.which("ip") is None:
        pytest.skip('there is no command "ip" here')
    prefix = f"taskq-test-{secrets.token_hex(4)}"
    made = []
    with ExitStack() as ending:
        for address, name in zip(ADDRESSES, ("mgr", "node"), strict=True):
            folder = tmp_path / name
            folder.mkdir()
            machine = Machine(f"{prefix}-{name}", address, Cluster(folder, folder / "state"))
            try:
                ip("netns", "add", machine.namespace)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
            ending.callback(ip, "netns", "delete", machine.namespace)
            made.append(machine)
        mgr, node = made
        ip("-n", mgr.namespace, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", node.namespace)
        for machine in made:
            ending.callback(machine.cluster.close)
            ip("-n", machine.namespace, "address", "add", f"{machine.address}/24", "dev", "eth0")
            ip("-n", machine.namespace, "link", "set", "lo", "up")
            machine.link("up")
        ending.enter_context(mgr.here())
        yield mgr, node


def start(machines: tuple[Machine, Machine], *options: object) -> Join:
    """A manager without workers on the first machine, and a pool of 2 x 2 threads on the second that has joined it."""
    mgr, node = machines
    mgr.cluster.manager("--bind", "0.0.0.0", "--advertise", mgr.address, workers=0)
    printed = mgr.cluster.run("manager", "--print-join")
    assert printed.returncode == 0, printed.stderr
    (node.cluster.folder / "marks.py").write_text(TASKS)
    with node.here():
        node.cluster.start(
            "worker", "--join", "-", "--tasks", "marks", "--workers", 2, "--threads", 2, stdin=printed.stdout
        )
    wait_until(lambda: len(mgr.cluster.snapshot()["workers"]) == 2, 20.0, "the pool to join")
    return Join.from_json(printed.stdout, "what was printed")


def marks(path: Path) -> dict[str, list[tuple[int, float]]]:
    """What tasks have written: (task, wall-clock seconds) of each beginning and each end."""
    found: dict[str, list[tuple[int, float]]] = {"began": [], "ended": []}
    for line in path.read_text().splitlines() if path.exists() else ():
        event, id, at = line.split()
        found[event].append((int(id), float(at)))
    return found


class Submitter:
    """Submits a short task at a time from one machine, in a thread, until told to stop."""

    def __init__(self, machine: Machine, client: Client, path: Path) -> None:
        self.handles: list[TaskHandle[int]] = []
        self.error: BaseException | None = None
        self._machine, self._client, self._path = machine, client, path
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._machine.here():
                while not self._over.wait(0.04):
                    self.handles.append(self._client.submit("mark", str(self._path), 0.03))
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        """Let it end after the call that is under way."""
        self._over.set()
        self._thread.join()
        if self.error is not None:
            raise self.error


def test_tasks_run_on_the_second_machine(machines: tuple[Machine, Machine]) -> None:
    mgr, node = machines
    join = start(machines)
    assert join.addresses[0].host == mgr.address
    assert not any(address.host.startswith("127.") for address in join.addresses)
    assert mgr.cluster.result_of({"type": "compute", "operation": "factorial", "value": 20}) == 2432902008176640000
    assert mgr.cluster.worker_processes() == [] and len(node.cluster.worker_processes()) == 2
    with node.here():  # a client there, with the same join file from standard input
        done = node.cluster.run(
            "submit", "--join", "-", "--payload", '{"type": "compute", "operation": "double", "value": 4}', "--wait",
            stdin=join.to_json(),
        )  # fmt: skip
    assert (done.returncode, json.loads(done.stdout or "0")) == (0, 8), done.stderr


@pytest.mark.parametrize("seconds", [5.0, 14.0], ids=["connections_survive", "connections_break"])
def test_a_cut_link_loses_nothing_and_repeats_nothing(
    machines: tuple[Machine, Machine], tmp_path: Path, seconds: float
) -> None:
    """After 5 s the connections go on where they were; after 14 s both ends have given them up."""
    mgr, node = machines
    join = start(machines)
    path = tmp_path / "marks"
    with ExitStack() as ending:
        near = ending.enter_context(Client(mgr.cluster.join, connect_timeout=60.0))
        with node.here():
            far = ending.enter_context(Client(join, connect_timeout=60.0))
            far.hello()
        submitters = [Submitter(mgr, near, path), Submitter(node, far, path)]
        for submitter in submitters:
            ending.callback(submitter.stop)
        wait_until(lambda: len(marks(path)["ended"]) >= 30, 10.0, "tasks to run")
        # Two run when the link goes, end while it is gone, and have to wait with their outcome.
        long = [near.submit("mark", str(path), 1.0) for _ in range(2)]
        wait_until(lambda: {task.id for task in long} <= {id for id, _ in marks(path)["began"]}, 5.0, "the long ones")

        node.link("down")
        cut = time.time()
        time.sleep(seconds)  # the cut itself
        node.link("up")
        back = time.time()
        began = time.monotonic()
        for submitter in submitters:
            submitter.stop()
        handles = [*long, *(handle for submitter in submitters for handle in submitter.handles)]
        with node.here():
            assert [handle.result(30.0) for handle in handles] == [handle.id for handle in handles]
        took = time.monotonic() - began

    found = marks(path)
    during = [id for id, at in found["ended"] if cut < at < back]
    counts = [len(submitter.handles) for submitter in submitters]
    print(f"cut for {seconds:g} s: normal again after {took:.2f} s; {counts} submitted, {len(during)} ended in it")
    assert {task.id for task in long} <= set(during)
    expected = Counter(handle.id for handle in handles)
    assert set(expected.values()) == {1}
    assert Counter(id for id, _ in found["began"]) == Counter(id for id, _ in found["ended"]) == expected
    snapshot = mgr.cluster.snapshot()
    totals = snapshot["totals"]
    assert (totals["submitted"], totals["completed"]) == (len(handles), len(handles))
    assert (totals["failed"], totals["retried"]) == (0, 0)
    assert len(snapshot["workers"]) == 2
    assert took < NORMAL_WITHIN


def test_a_manager_on_loopback_prints_no_join_file_and_says_what_to_do(cluster: Cluster) -> None:
    cluster.manager(workers=0)
    done = cluster.run("manager", "--print-join")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: the manager listens on 127.0.0.1 only, where no other machine can reach it" in done.stderr
    assert 'hint: start it with "taskq-manager --bind 0.0.0.0"' in done.stderr


@pytest.mark.parametrize("command", [("worker",), ("submit", "--random"), ("monitor", "--once")])
def test_a_join_file_that_others_can_read_is_refused(cluster: Cluster, command: tuple[str, ...]) -> None:
    cluster.manager(workers=0)
    copy = cluster.folder / "join.json"
    copy.write_text(cluster.join.to_json())
    copy.chmod(0o644)
    done = cluster.run(*command, "--join", copy)
    assert done.returncode == 4
    assert f"error: join file {copy} has mode 0644; run: chmod 600 {copy}" in done.stderr


@pytest.mark.parametrize("command", [("worker",), ("submit", "--random"), ("monitor", "--once")])
def test_a_wrong_key_from_standard_input_is_rejected(cluster: Cluster, command: tuple[str, ...]) -> None:
    cluster.manager(workers=0)
    wrong = Join(cluster.join.addresses, secrets.token_bytes(32))
    done = cluster.run(*command, "--join", "-", stdin=wrong.to_json())
    assert done.returncode == 4
    address = wrong.addresses[0]
    told = (
        rf"error: the manager at {address} rejected the key from what came from standard input \(fingerprint \w{{4}}\)"
    )
    assert re.search(told, done.stderr), done.stderr
    assert "hint: was the key changed? start this program again with what this prints: taskq-manager" in done.stderr
