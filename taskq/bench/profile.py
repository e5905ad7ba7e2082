"""Where a task's microseconds go, by role: processor time of each, and what py-spy sees there when it is installed.

The tasks are those of P1, twice: once to read processor times, once more with a sampler at each process, which slows
them down. The client is a process of its own, so that it can be sampled as the others are. Sampled is the thread that
holds the interpreter's lock: it is what threads wait for. Work outside it (SQLite, system calls) is in the processor
time alone.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from taskq.bench.settings import Settings
from taskq.bench.stage import Stage, cpu
from taskq.bench.throughput import LIVE, WARM_UP
from taskq.errors import TaskqError

RATE = 200
"""Samples a second."""
TOP = 10
LONGER = 3
"""So many times the tasks of P1 while samples are taken, so that there are enough of them."""
SAMPLED = ("manager", "worker", "client")
SAMPLER_END = 15.0
"""Seconds that a sampler has to write down what it saw."""
HOW_TO_INSTALL = f"no stacks: install the sampler with: {sys.executable} -m pip install py-spy"


@dataclass(frozen=True)
class Profile:
    """``cpu_us``: role -> microseconds of processor time a task. ``stacks``: role -> function and its share, most
    first. ``note``: why there are no stacks."""

    tasks: int
    rate: float
    cpu_us: Mapping[str, float]
    stacks: Mapping[str, list[tuple[str, float]]] = field(default_factory=dict)
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self)


def profile(settings: Settings) -> Profile:
    """Measure. Raises `TaskqError` when tasks do not come to their end."""
    count = settings.count(LIVE)
    with settings.stage() as stage:
        run = _Run(stage)
        run.map(settings.count(WARM_UP))
        settings.say("profile: processor time")
        before = run.cpu_seconds()
        seconds = run.map(count)
        cpu_us = {role: (after - before[role]) / count * 1e6 for role, after in run.cpu_seconds().items()}
        sampler = _sampler()
        if sampler is None:
            return Profile(count, count / seconds, cpu_us, note=HOW_TO_INSTALL)
        settings.say("profile: stacks")
        try:
            stacks = _sampled(sampler, run, count)
        except TaskqError as error:
            return Profile(count, count / seconds, cpu_us, note=f"no stacks: {error.message}")
        return Profile(count, count / seconds, cpu_us, stacks)


class _Run:
    """A stage, and a client in a process of its own."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.queue = stage.service()
        self.client = stage.load("mapper")

    def map(self, count: int) -> float:
        """Let the client submit so many tasks; gives the seconds until all are completed."""
        before = int(self.queue.snapshot()["totals"]["completed"])
        started = time.perf_counter()
        assert self.client.stdin is not None
        self.client.stdin.write(f"{count}\n".encode())
        self.client.stdin.flush()
        self.stage.until_completed(self.queue, before + count, pause=0.02)
        return time.perf_counter() - started

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time so far, by role."""
        return {"client": cpu(psutil.Process(self.client.pid)), **self.stage.cpu_seconds()}

    def pids(self) -> dict[str, int]:
        """One process of each role that is sampled."""
        found = {role: processes[0].pid for role, processes in self.stage.processes().items()}
        return {role: {**found, "client": self.client.pid}[role] for role in SAMPLED}


# -- samples


def _sampler() -> str | None:
    """py-spy's program: where this Python's own programs are, else on the path."""
    return shutil.which("py-spy", path=sysconfig.get_path("scripts")) or shutil.which("py-spy")


def _sampled(sampler: str, run: _Run, count: int) -> dict[str, list[tuple[str, float]]]:
    files = {role: run.stage.folder / f"{role}.stacks" for role in SAMPLED}
    with _sampling(sampler, run.pids(), files):
        run.map(count * LONGER)
    return {role: top(file.read_text(encoding="utf-8", errors="replace")) for role, file in files.items()}


@contextmanager
def _sampling(sampler: str, pids: Mapping[str, int], files: Mapping[str, Path]) -> Iterator[None]:
    """Sample these processes inside the block. Raises `TaskqError` when that is not allowed."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for role, pid in pids.items():
            command = [
                sampler,
                "record",
                "--pid",
                str(pid),
                "--rate",
                str(RATE),
                "--format",
                "raw",
                "--function",
                "--gil",
            ]
            command += ["--full-filenames", "--output", str(files[role])]
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        for process in running:
            _await_start(process)
        yield
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            process.communicate(timeout=SAMPLER_END)
    except subprocess.TimeoutExpired:
        raise TaskqError("py-spy did not come to its end") from None
    finally:
        for process in running:
            process.kill()
            process.communicate()


def _await_start(process: subprocess.Popen[bytes]) -> None:
    """Wait until a sampler says that it samples."""
    assert process.stdout is not None
    words = []
    for line in process.stdout:
        words.append(line.decode(errors="replace").strip())
        if "Sampling process" in words[-1]:
            return
    raise TaskqError(f"py-spy cannot look at other processes here: {' '.join(words)[:300]}")


def top(raw: str, count: int = TOP) -> list[tuple[str, float]]:
    """Function -> share of the samples in which it, itself, was at work; the largest shares first.

    Time in a library counts for the function of taskq that called it, which then shows what it called.

    >>> top("main (/p/taskq/cli/manager.py:9);send (/p/taskq/wire/frames.py:7) 3\\nmain (/p/taskq/cli/manager.py:9) 1")
    [('wire.frames.send', 0.75), ('cli.manager.main', 0.25)]
    >>> top("send (/p/taskq/wire/frames.py:7);wait (/lib/python3.11/threading.py:4) 2")
    [('wire.frames.send > threading.wait', 1.0)]
    """
    found: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, samples = line.rpartition(" ")
        names = [_name(frame) for frame in stack.split(";")]
        own = next((name for name in reversed(names) if name.startswith("taskq.")), None)
        key = names[-1] if own is None or own == names[-1] else f"{own} > {names[-1]}"
        found[key.removeprefix("taskq.")] += int(samples)
    total = sum(found.values())
    return [(name, samples / total) for name, samples in found.most_common(count)]


def _name(frame: str) -> str:
    """``module.function`` of a frame as py-spy writes it: ``function (file:line)``, or without a place.

    >>> _name("<shim>")
    '<shim>'
    """
    function, _, place = frame.partition(" (")
    file = place.rpartition(":")[0]
    if not file:
        return function
    parts = Path(file).with_suffix("").parts
    start = len(parts) - 1 - parts[::-1].index("taskq") if "taskq" in parts[:-1] else len(parts) - 1
    return ".".join([*parts[start:], function])
