"""A manager of one's own to measure: in a scratch folder, on a free port, gone at the end. Or one that runs already."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import psutil

from taskq.client import Client
from taskq.config import read_join
from taskq.errors import TaskqError
from taskq.results import TaskHandle
from taskq.service import MAX_WAIT
from taskq.wire.client import RemoteQueue

TASKS = "taskq.bench.tasks"
READY = b"ready"
"""What a process of load says when it is."""
START_TIMEOUT = 30.0
"""Seconds for a manager or a pool to be ready."""
STOP_TIMEOUT = 40.0
"""Seconds that they have to stop before they are killed."""
LONGEST_WAIT = 600.0
"""Seconds for whatever else is waited for."""

Role = str
"""``manager``, ``parent`` (of worker processes) or ``worker``."""

T = TypeVar("T")


class Stage:
    """A manager and its pool, started by `with` and stopped at its end, however that comes.

    ``store``: ``sqlite`` or ``memory:``. ``options``: more of ``taskq-manager``.
    """

    def __init__(
        self, *, workers: int = 2, threads: int = 2, store: str = "sqlite", options: Iterable[str] = ()
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="taskq-bench-"))
        self.join = self.folder / "state" / "join.json"
        self.owned = True
        self._workers = workers
        self._arguments = ["--port", "0", "--workers", str(workers), "--threads", str(threads), "--tasks", TASKS]
        self._arguments += ["--store", store] if store != "sqlite" else []
        self._arguments += options
        self._running: list[subprocess.Popen[bytes]] = []
        self._closing = ExitStack()

    @classmethod
    def joined(cls, join: Path) -> Stage:
        """The manager of a join file: it is neither started nor stopped, and its workers are as they are."""
        stage = cls()
        stage.join, stage.owned = join, False
        return stage

    def __enter__(self) -> Stage:
        try:
            if self.owned:
                self._start_manager()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- processes

    def environment(self) -> dict[str, str]:
        """That of its processes: without settings of the user's, which would lead them elsewhere."""
        return {name: value for name, value in os.environ.items() if not name.startswith("TASKQ_")}

    def start(self, module: str, *arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
        """Start ``python -m MODULE ARGUMENTS…``, ended with the stage at the latest."""
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=self.environment(),
            start_new_session=True,  # Ctrl-C in the terminal reaches us alone, who then stop them in order
            **{"stdin": subprocess.DEVNULL, **streams},
        )
        self._running.append(process)
        return process

    def _start(self, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        with self._log(command).open("ab") as log:
            return self.start("taskq", command, *arguments, stdout=log, stderr=log)

    def _start_manager(self) -> None:
        self._manager = self._start("manager", *self._arguments, "--state-dir", str(self.join.parent))
        self._until_ready(self._manager)

    def restart(self) -> float:
        """Stop the manager and start it again with the same store; gives the seconds from its start until it is ready.

        Its connections are lost: a `client` finds it again, a `service` does not.
        """
        self.end(self._manager)
        self.join.unlink()  # the next one writes it when it answers
        started = time.perf_counter()
        self._start_manager()
        return time.perf_counter() - started

    def _log(self, command: str) -> Path:
        return self.folder / f"{command}.log"

    def words(self, command: str) -> str:
        """The last words of the manager (``manager``) or of the pools (``worker``)."""
        log = self._log(command)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        return " / ".join(lines[-3:])

    def _until_ready(self, manager: subprocess.Popen[bytes]) -> None:
        """The manager is ready when its port is open and its workers have joined."""
        self.wait_until(lambda: manager.poll() is not None or self.join.exists(), START_TIMEOUT, "the manager")
        if manager.poll() is None:
            self.wait_until(
                lambda: manager.poll() is not None or self._joined() >= self._workers, START_TIMEOUT, "the workers"
            )
        if manager.poll() is not None:
            raise TaskqError(f"the manager ended with exit code {manager.returncode}", hint=self.words("manager"))

    def _joined(self) -> int:
        return sum(worker["state"] != "expected" for worker in self.snapshot()["workers"])

    def pool(self, workers: int = 2, threads: int = 2, *options: str, wait: bool = True) -> subprocess.Popen[bytes]:
        """Attach another pool; with ``wait``, return when its worker processes have joined."""
        before = self._joined()
        arguments = ["--join", str(self.join), "--workers", str(workers), "--threads", str(threads), "--tasks", TASKS]
        process = self._start("worker", *arguments, *options)
        if wait:
            self.wait_until(lambda: self._joined() >= before + workers, START_TIMEOUT, "the pool")
        return process

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Stop one of its processes, a pool for instance, and wait for its end."""
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            _kill(process)
        self._running.remove(process)

    def load(self, kind: str, *numbers: float) -> subprocess.Popen[bytes]:
        """Start a process of `taskq.bench.load` and wait until it is ready; a line on its stdin is its sign to go."""
        arguments = [kind, str(self.join), *map(str, numbers)]
        process = self.start("taskq.bench.load", *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        if process.stdout.readline().strip() != READY:
            raise TaskqError(f"the {kind} did not get ready")
        return process

    def processes(self) -> dict[Role, list[psutil.Process]]:
        """The processes of this manager and its pools."""
        found: dict[Role, list[psutil.Process]] = {"manager": [], "parent": [], "worker": []}
        pids = [popen.pid for popen in self._running if popen.poll() is None]
        for process in map(psutil.Process, pids):
            for each in [process, *process.children(recursive=True)]:
                role = _role(each)
                if role is not None:
                    found[role].append(each)
        return found

    def cpu_seconds(self) -> dict[Role, float]:
        """Processor time that they have used so far, user and system."""
        return {role: sum(map(cpu, each)) for role, each in self.processes().items()}

    # -- the queue

    def client(self) -> Client:
        """A client, closed at the end."""
        return self._closing.enter_context(client_of(self.join))

    def service(self) -> RemoteQueue:
        """A connection with the bare verbs, closed at the end."""
        return self._closing.enter_context(closing(self._connect()))

    def _connect(self) -> RemoteQueue:
        return RemoteQueue(read_join(self.join), connect_timeout=START_TIMEOUT)

    def snapshot(self) -> dict[str, Any]:
        """What the manager says of itself now."""
        with closing(self._connect()) as queue:
            return queue.snapshot()

    def until_completed(
        self, queue: RemoteQueue, count: int, pause: float = 0.005, *, last: TaskHandle[Any] | None = None
    ) -> int:
        """Wait until at least so many tasks are completed, since the manager's start; gives how many are.

        ``last``: a task that is done about then. Waiting for it first saves the manager many a snapshot, which costs
        the more the more workers there are.
        """

        def completed() -> int:
            found = int(queue.snapshot()["totals"]["completed"])
            return found if found >= count else 0

        give_up = time.monotonic() + LONGEST_WAIT
        while last is not None and not queue.wait((last.id,), MAX_WAIT) and time.monotonic() < give_up:
            pass
        return self.wait_until(completed, LONGEST_WAIT, f"{count:,} tasks", pause)

    def wait_until(self, condition: Callable[[], T], timeout: float, what: str, pause: float = 0.01) -> T:
        """Ask again and again until the condition holds; gives what it gave. Raises `TaskqError` after ``timeout``."""
        give_up = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > give_up:
                raise TaskqError(f"waited {timeout:.0f} s for {what} in vain", hint=self.words("manager"))
            time.sleep(pause)
        return value

    # -- the end

    def stop(self) -> None:
        """Stop what was started, the last one first, and delete the folder."""
        try:
            self._closing.close()
            for process in reversed(list(self._running)):
                self.end(process)
        finally:  # asked once more to stop: whatever still runs is killed
            for process in self._running:
                _kill(process)
            shutil.rmtree(self.folder, ignore_errors=True)


def cpu(process: psutil.Process) -> float:
    """Processor seconds that a process has used so far; on Linux exactly, elsewhere in steps of some milliseconds."""
    if sys.platform == "linux":
        with suppress(OSError):
            return time.clock_gettime(~process.pid << 3 | 2)  # the clock that clock_getcpuclockid(3) gives
    times = process.cpu_times()
    return float(times.user + times.system)


def client_of(join: Path) -> Client:
    """A client that does not mind that there are no workers yet, and takes its time to connect."""

    def connect() -> RemoteQueue:
        return RemoteQueue(read_join(join), connect_timeout=START_TIMEOUT)

    return Client.over(connect, patience=START_TIMEOUT, warn=lambda text: None)


def _role(process: psutil.Process) -> Role | None:
    """What a process is for; None for a helper, or one that has just ended."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return None
    if "taskq.workers.process" in words:
        return "worker"
    return {"manager": "manager", "worker": "parent"}.get(words[3]) if words[1:3] == ["-m", "taskq"] else None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process, and its pool too, now."""
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    process.kill()
    process.wait()
