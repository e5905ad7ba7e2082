"""What it costs to have it: P11 while nothing goes on, P12 for a single command, P13 at the start."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from taskq.bench.backlog import MIB
from taskq.bench.figures import Row, median
from taskq.bench.settings import Settings
from taskq.bench.stage import Stage, cpu
from taskq.bench.tasks import noop
from taskq.errors import TaskqError

# -- P11

SETTLE = 5.0
"""Seconds after the start in which it need not be quiet yet."""
WATCHED = 20.0
"""Seconds."""
MEMORY = 110.0
"""MiB."""
PERCENT = 0.5
"""Of one core."""
WAKE_UPS = 1.0
"""A second."""


class Wakes(NamedTuple):
    """How often a process, and the busiest of its threads, gave up the processor to wait, by a second."""

    process: float
    thread: float


def footprint(settings: Settings) -> list[Row]:
    """P11: memory, processor time and wake-ups of manager, pool parent and two worker processes, idle."""
    memory, percents = [], []
    wakes: dict[str, list[Wakes]] = {}
    with settings.stage() as stage:
        stage.client().submit(noop).result()
        time.sleep(settings.seconds(SETTLE))
        processes = [(role, one) for role, found in stage.processes().items() for one in found]
        for run in range(settings.runs):
            settings.say(f"P11: run {run + 1} of {settings.runs}")
            used, switches = _used(processes), [_switches(one.pid) for _, one in processes]
            started = time.perf_counter()
            time.sleep(settings.seconds(WATCHED))
            seconds = time.perf_counter() - started
            percents.append((_used(processes) - used) / seconds * 100)
            memory.append(sum(one.memory_info().rss for _, one in processes) / MIB)
            for (role, one), before in zip(processes, switches, strict=True):
                wakes.setdefault(f"{role}", []).append(rates(before, _switches(one.pid), seconds))
    return [
        Row("P11", "idle, memory in sum", "MiB", tuple(memory), f"<= {MEMORY:g}", MEMORY, at_most=True),
        Row("P11", "idle, CPU in sum", "% core", tuple(percents), f"<= {PERCENT:g}", PERCENT, at_most=True),
        *_wake_rows(wakes),
    ]


def _wake_rows(wakes: dict[str, list[Wakes]]) -> list[Row]:
    """None on systems that do not count them by thread."""
    rows = []
    for role, found in wakes.items():
        if any(found):
            threads, processes = tuple(one.thread for one in found), tuple(one.process for one in found)
            bar = f"<= {WAKE_UPS:g}"
            rows.append(Row("P11", f"{role}, busiest thread", "wakes/s", threads, bar, WAKE_UPS, at_most=True))
            rows.append(Row("P11", f"{role}, all its threads", "wakes/s", processes))
    return rows


def _used(processes: list[tuple[str, psutil.Process]]) -> float:
    return sum(cpu(process) for _, process in processes)


def _switches(pid: int) -> dict[str, int]:
    """Thread id -> how often it has waited so far; nothing where the system does not say."""
    found = {}
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                found[status.parent.name] = int(line.split()[1])
    return found


def rates(before: dict[str, int], after: dict[str, int], seconds: float) -> Wakes:
    """What two counts, by thread, say.

    >>> rates({"1": 10, "2": 0}, {"1": 20, "2": 5, "3": 5}, 10.0)
    Wakes(process=2.0, thread=1.0)
    """
    each = [(count - before.get(thread, 0)) / seconds for thread, count in after.items()]
    return Wakes(sum(each), max(each, default=0.0))


# -- P12

COMMANDS = 9
"""How often each command is started in a run."""
ARGUMENTS = {"submit": ("--payload", '{"type": "bench.noop"}'), "monitor": ("--once",)}
SUBMIT, MONITOR = 0.15, 0.35
"""Seconds."""


def commands(settings: Settings) -> list[Row]:
    """P12: commands as a shell starts them, each a process of its own."""
    submits, monitors = [], []
    count = max(1, round(COMMANDS * min(1.0, settings.scale)))
    with settings.stage() as stage:
        for command in ("submit", "monitor"):
            run_command(stage, command)  # which compiles
        for run in range(settings.runs):
            settings.say(f"P12: run {run + 1} of {settings.runs}")
            submits.append(median([run_command(stage, "submit") for _ in range(count)]))
            monitors.append(median([run_command(stage, "monitor") for _ in range(count)]))
    return [
        Row("P12", "taskq-submit, one task", "s", tuple(submits), f"<= {SUBMIT}", SUBMIT, at_most=True),
        Row("P12", "taskq-monitor --once", "s", tuple(monitors), f"<= {MONITOR}", MONITOR, at_most=True),
    ]


def run_command(stage: Stage, name: str) -> float:
    """Seconds from the start to the end of ``taskq-submit`` or ``taskq-monitor``. Raises `TaskqError` if it fails."""
    code = f"from taskq.cli.{name} import main; main()"  # as the installed command has it
    command = [sys.executable, "-c", code, *ARGUMENTS[name], "--join", str(stage.join)]
    started = time.perf_counter()
    done = subprocess.run(
        command, env=stage.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    took = time.perf_counter() - started
    if done.returncode:
        raise TaskqError(f"taskq-{name} ended with exit code {done.returncode}", hint=done.stderr.strip())
    return took


# -- P13

START, LONGEST_START = 1.0, 60.0
"""Seconds."""


def start(settings: Settings) -> list[Row]:
    """P13: from the start of ``taskq-manager`` until the result of a first task is there."""
    times = []
    for run in range(settings.runs):
        settings.say(f"P13: run {run + 1} of {settings.runs}")
        started = time.perf_counter()
        with settings.stage() as stage:
            stage.client().submit(noop).result(LONGEST_START)
            times.append(time.perf_counter() - started)
    return [Row("P13", "manager start to first result", "s", tuple(times), f"<= {START:g}", START, at_most=True)]
