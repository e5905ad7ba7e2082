"""Runs workloads one after the other. One that cannot be measured does not keep the others from it."""

from __future__ import annotations

import os
import platform
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from taskq.bench import floors
from taskq.bench.figures import SCHEMA, Row
from taskq.bench.profile import Profile, profile
from taskq.bench.settings import Settings
from taskq.bench.workloads import Workload
from taskq.config import VERSION
from taskq.errors import TaskqError

NEEDS_ITS_OWN = "it needs a manager of its own"


@dataclass
class Report:
    """All that came out. ``left_out``: workload and why it was not measured; ``failed``: workload and error."""

    settings: Settings
    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    profile: Profile | None = None

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "machine": self.machine,
            "runs": self.settings.runs,
            "scale": self.settings.scale,
            "joined": str(self.settings.join) if self.settings.join else None,
            "rows": [row.as_json() for row in self.rows],
            "left_out": [{"workload": id, "why": why} for id, why in self.left_out],
            "failed": [{"workload": id, "error": error} for id, error in self.failed],
            "profile": self.profile.as_json() if self.profile else None,
        }


def run(
    workloads: Sequence[Workload], settings: Settings, *, floor: bool = False, with_profile: bool = False
) -> Report:
    """Measure them; before them the machine's own floors, after them where the time goes, if that is wanted."""
    report = Report(settings, machine())
    with _orderly_end():
        if floor:
            with _noted(report, "floor"):
                settings.say("floor")
                report.rows += _floor(settings)
        for workload in workloads:
            if settings.join is not None and not workload.joinable:
                report.left_out.append((workload.id, NEEDS_ITS_OWN))
                continue
            with _noted(report, workload.id):
                report.rows += workload.run(settings)
        if with_profile and settings.join is not None:
            report.left_out.append(("profile", NEEDS_ITS_OWN))
        elif with_profile:
            with _noted(report, "profile"):
                report.profile = profile(settings)
    return report


@contextmanager
def _noted(report: Report, what: str) -> Iterator[None]:
    """Write down that something could not be measured, and go on."""
    try:
        yield
    except TaskqError as error:
        report.failed.append((what, f"{error.message} ({error.hint})" if error.hint else error.message))


def _floor(settings: Settings) -> list[Row]:
    with settings.stage(workers=0, store="memory:") as stage:
        return floors.rows(settings.runs, stage.service())


def machine() -> dict[str, Any]:
    """What it was measured on. ``disk``: the file system of the scratch folder, where the stores are."""
    scratch = Path(tempfile.gettempdir()).resolve()
    mounts = {Path(one.mountpoint): one.fstype for one in psutil.disk_partitions(all=True)}
    disk = next((mounts[place] for place in (scratch, *scratch.parents) if place in mounts), "unknown")
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "scratch": str(scratch),
        "disk": disk,
    }


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Let a signal that ends us stop what we have started first."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    wanted = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, leave) for number in wanted if signal.getsignal(number) == signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
