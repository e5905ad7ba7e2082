"""Real managers and pools as processes of their own, for the tests: `Cluster`, and `wait_until`."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from taskq.config import Join, read_join

MARK = "TASKQ_TEST_CLUSTER"
"""Environment variable by which a cluster knows every process that came out of it, grandchildren too."""

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout: float = 10.0, what: str = "") -> T:
    """Ask again and again until the condition holds, and give what it gave; fail after ``timeout`` seconds."""
    give_up = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > give_up:
            pytest.fail(f"waited {timeout:g} s for {what or condition} in vain; last: {value!r}")
        time.sleep(0.01)


@dataclass
class Process:
    """A process of a cluster. ``asked``: its end was asked for, so that ending is no accident."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path
    asked: bool = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.popen.pid

    @property
    def output(self) -> str:
        """What it has written to stderr (and stdout) so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def send(self, number: int) -> None:
        """Send it a signal that ends it, sooner or later."""
        self.asked = True
        self.popen.send_signal(number)

    def kill(self) -> None:
        """``kill -9``, and wait for the end."""
        self.send(signal.SIGKILL)
        self.popen.wait(10)

    def stop(self, timeout: float = 30.0) -> int:
        """Ask it to stop; gives the exit code."""
        if self.popen.poll() is None:
            self.send(signal.SIGTERM)
        return self.popen.wait(timeout)


@dataclass
class Cluster:
    """Managers and pools on this machine, with one state folder, on free ports, a log for each process."""

    folder: Path
    state: Path
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    processes: list[Process] = field(default_factory=list)
    python: str = sys.executable
    """The interpreter of what is started from now on."""
    _closing: list[Callable[[], object]] = field(default_factory=list)

    wait_until = staticmethod(wait_until)

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of its processes."""
        return {**os.environ, MARK: self.mark, "TASKQ_STATE_DIR": str(self.state), **more}

    # -- processes that stay

    def start(self, name: str, *arguments: object, stdin: str | None = None, **environment: str) -> Process:
        """Start ``taskq NAME ARGUMENTS…`` in the cluster's folder; its words go to a log."""
        log = self.folder / f"{len(self.processes):02d}-{name}.log"
        with log.open("wb") as file:
            popen = subprocess.Popen(
                [self.python, "-m", "taskq", name, *map(str, arguments)],
                cwd=self.folder,
                env=self.environment(**environment),
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=file,
                stderr=file,
            )
        if popen.stdin is not None:
            popen.stdin.write((stdin or "").encode())
            popen.stdin.close()
        process = Process(name, popen, log)
        self.processes.append(process)
        return process

    def manager(self, *options: object, workers: int = 2, threads: int = 2, **environment: str) -> Process:
        """Start a manager and wait until it is ready."""
        process = self.start(
            "manager", "--port", 0, "--workers", workers, "--threads", threads, *options, **environment
        )
        self.until_output(process, " ready on ", timeout=30.0)
        return process

    def pool(self, *options: object, workers: int = 2, threads: int = 2, **environment: str) -> Process:
        """Attach another pool and wait until its worker processes have joined."""
        process = self.start("worker", "--workers", workers, "--threads", threads, *options, **environment)
        mine = lambda: [found for found in self.worker_processes() if self._is_below(found, process)]  # noqa: E731
        wait_until(
            lambda: process.popen.poll() is not None or self._joined(mine()) >= workers, 20.0, "the pool to join"
        )
        assert process.popen.poll() is None, process.output
        return process

    def until_output(self, process: Process, text: str, timeout: float = 10.0) -> None:
        """Wait until a process has written this text."""
        wait_until(lambda: text in process.output or process.popen.poll() is not None, timeout, f'"{text.strip()}"')
        assert text in process.output, f"{process.name} ended with {process.popen.poll()}:\n{process.output}"

    def worker_processes(self) -> list[psutil.Process]:
        """The worker processes that run now, whichever pool they belong to."""
        return [found for found in self.alive() if "taskq.workers.process" in _command(found)]

    def pools(self) -> list[psutil.Process]:
        """The parents of worker processes that run now, local pools too."""
        return [found for found in self.alive() if "taskq worker" in _command(found)]

    def alive(self) -> list[psutil.Process]:
        """Every process that came out of this cluster and runs."""
        return [found for found in psutil.process_iter() if _environment(found).get(MARK) == self.mark]

    @staticmethod
    def _is_below(found: psutil.Process, process: Process) -> bool:
        try:
            return any(parent.pid == process.pid for parent in found.parents())
        except psutil.NoSuchProcess:
            return False

    def _joined(self, found: list[psutil.Process]) -> int:
        pids = {process.pid for process in found}
        return sum(worker["pid"] in pids for worker in self.snapshot()["workers"])

    # -- commands and clients

    def run(
        self, name: str, *arguments: object, timeout: float = 60.0, stdin: str | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``taskq NAME ARGUMENTS…`` to its end."""
        return subprocess.run(
            [self.python, "-m", "taskq", name, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment(**environment),
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def submit(self, payload: dict[str, Any], *options: object) -> list[int]:
        """Submit one task with ``taskq-submit``; gives the ids that it printed."""
        done = self.run("submit", "--payload", json.dumps(payload), *options)
        assert done.returncode == 0, done.stderr
        return [int(line) for line in done.stdout.split()]

    def result_of(self, payload: dict[str, Any], *options: object) -> Any:
        """Submit one task with ``taskq-submit --wait``; gives its result."""
        done = self.run("submit", "--payload", json.dumps(payload), "--wait", *options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @property
    def join(self) -> Join:
        """How to reach the manager."""
        return read_join(self.state / "join.json")

    def client(self) -> Any:
        """A `taskq.Client` of the manager, closed at the end of the test."""
        from taskq import Client

        client = Client(join=str(self.state / "join.json"))
        self._closing.append(client.close)
        return client

    def service(self) -> Any:
        """The bare verbs of the manager (`taskq.service.QueueService`), closed at the end of the test."""
        from taskq.wire.client import RemoteQueue

        queue = RemoteQueue(self.join)
        self._closing.append(queue.close)
        return queue

    def snapshot(self) -> dict[str, Any]:
        """What the manager says of itself now."""
        from taskq.wire.client import RemoteQueue

        queue = RemoteQueue(self.join)
        try:
            return queue.snapshot()
        finally:
            queue.close()

    # -- the end

    def close(self) -> None:
        """Stop everything; fail if a process had died unasked, or if one does not stop."""
        for close in reversed(self._closing):
            close()
        died = [process for process in self.processes if process.popen.poll() is not None and not process.asked]
        for process in sorted(self.processes, key=lambda one: one.name, reverse=True):  # pools before their manager
            try:
                process.stop()
            except subprocess.TimeoutExpired:
                died.append(process)
        give_up = time.monotonic() + 5.0
        while self.alive() and time.monotonic() < give_up:
            time.sleep(0.02)
        left = [f"{found.pid} {_command(found)}" for found in self.alive()]
        for found in self.alive():
            found.kill()
        for process in self.processes:
            process.popen.wait(10)
            print(f"---- {process.name}, pid {process.pid}, ended with {process.popen.returncode}")
            print(process.output[-20_000:])
        assert not died, f"died unasked, or did not stop: {[(one.name, one.popen.returncode) for one in died]}"
        assert not left, f"left running: {left}"


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
    except (psutil.Error, OSError):
        return {}


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
