"""Runs the tests that draw their faults from a seed, over fresh seeds: ``python -m tests.campaign --hours N``.

Each run appends one line of figures to ``tests/eval/CAMPAIGNS.md``, whatever came out. ``--only T4`` (or ``T1,T4``)
leaves the others out. A run that broke a promise prints the command that plays it again, and the campaign goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "eval")]
LINES = ROOT / "tests" / "eval" / "CAMPAIGNS.md"
HEAD = """# Campaigns

One line for each run of `python -m tests.campaign`, as it was written by it.

| ended (UTC) | test | version | machine | seeds | figures | violations | took |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""
PIECE = 500
"""Seeds of the simulation in one line."""
STEPS = 2_000


def simulation(seed: int) -> dict[str, Any]:
    """T4: some hundred seeds from this one on, in this process."""
    from tests.sim.run import replay, run

    total: Counter[str] = Counter()
    wrong = []
    for number in range(seed, seed + PIECE):
        found = run(number, STEPS)
        for name in ("steps", "changed", "acknowledged", "faults"):
            total[name] += found[name]
        if found["violations"]:
            wrong.append(f"{replay(number, STEPS)}: {found['violations'][0][:200]}")
    return {"seeds": f"{seed} to {seed + PIECE - 1}", **total, "violations": wrong}


def storm(seed: int) -> dict[str, Any]:
    """T1: one crash storm of real processes, whose own output is only shown when a promise was broken."""
    from test_crash_storm import run

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            found = run(seed, 8_000, 40, 120)
    except BaseException:
        print(said.getvalue())
        raise
    if found["violations"]:
        print(said.getvalue())
    return {"seeds": str(seed), **found}


def power(seed: int) -> dict[str, Any]:
    """T3: one load, the power cut at each of its writes."""
    from power_loss import campaign

    return {"seeds": str(seed), **campaign(seed)}


def frames(seed: int) -> dict[str, Any]:
    """T15: malformed frames for half a minute."""
    from malformed import run

    return {"seeds": str(seed), **run(seed, 30.0)}


TESTS: dict[str, Callable[[int], dict[str, Any]]] = {"T1": storm, "T3": power, "T4": simulation, "T15": frames}


def version() -> str:
    """The commit that runs, with a plus if the product or a test was changed since."""

    def git(*words: str) -> str:
        told = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return told.stdout.strip()

    changed = git("status", "--porcelain", "--", "taskq", "tests", f":!{LINES.relative_to(ROOT)}")
    return (git("rev-parse", "--short", "HEAD") or "?") + ("+" if changed else "")


def write(test: str, found: dict[str, Any], took: float) -> str:
    """Append a line; gives it. One write, so that several campaigns may run at once."""
    seeds, wrong = found.pop("seeds"), found.pop("violations", [])
    figures = ", ".join(
        f"{value:,} {name}" for name, value in found.items() if isinstance(value, int) and name != "seed"
    )
    machine = f"{platform.machine()} x {os.cpu_count()}, Python {platform.python_version()}"
    ended = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
    text = "0" if not wrong else "; ".join(map(str, wrong)).replace("|", "/").replace("\n", " ")
    line = f"| {ended} | {test} | {version()} | {machine} | {seeds} | {figures} | {text} | {took:.0f} s |\n"
    if not LINES.exists():
        LINES.write_text(HEAD, encoding="utf-8")
    with LINES.open("a", encoding="utf-8") as file:
        file.write(line)
    return line


def main() -> int:
    """Run until the time is over; gives 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--only", default=",".join(TESTS))
    parser.add_argument("--seed", type=int, default=None, help="the first one; fresh ones by default")
    given = parser.parse_args()
    chosen = [name for name in given.only.split(",") if name]
    end = time.monotonic() + given.hours * 3600
    seed = int(time.time()) * 1_000 if given.seed is None else given.seed
    bad = 0
    while time.monotonic() < end:
        for name in chosen:
            if time.monotonic() >= end:
                break
            began = time.monotonic()
            try:
                found = TESTS[name](seed)
            except (Exception, pytest.fail.Exception) as error:  # a campaign goes on, and its line says so
                found = {"seeds": str(seed), "violations": [f"{type(error).__name__}: {error}"]}
            bad += bool(found.get("violations"))
            print(write(name, found, time.monotonic() - began), end="", flush=True)
            seed += PIECE
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
