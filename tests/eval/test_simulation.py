"""The deterministic simulation: hundreds of seeds, each with its own faults; and it is shown to catch planted bugs.

``SIM_SEEDS=25000 SIM_STEPS=2000`` in the environment plays more. A failure prints the command that plays it again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEEDS = int(os.environ.get("SIM_SEEDS", "500"))
STEPS = int(os.environ.get("SIM_STEPS", "1000"))
FULL_SEEDS, FULL_STEPS = 25_000, 2_000
PLAY = (sys.executable, "-m", "tests.sim")
SIDE_BY_SIDE = 2


def play(seeds: int, steps: int, *, timeout: float) -> dict[str, Any]:
    """Play so many seeds in some processes side by side; gives the sum of their figures."""
    share = -(-seeds // SIDE_BY_SIDE)
    started = [
        subprocess.Popen(
            [*PLAY, str(1 + part * share), "--count", str(share), "--steps", str(steps), "--json"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": str(part)},
        )
        for part in range(SIDE_BY_SIDE)
    ]
    total: Counter[str] = Counter()
    wrong: list[str] = []
    try:
        for process in started:
            output, _ = process.communicate(timeout=timeout)
            found = json.loads(output.splitlines()[-1])
            wrong += found.pop("violations")
            total.update(found)
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert not wrong, "\n".join(wrong)
    return dict(total)


def tell(total: dict[str, Any], record_property: Callable[[str, object], None]) -> None:
    """Print and keep the figures; hold them against the bars."""
    rate, share = total["steps"] / total["real_s"], total["changed"] / total["steps"]
    speed = total["virtual_s"] / total["real_s"]
    text = (
        f"T4: {total['seeds']:,} seeds, {total['steps']:,} steps ({rate:,.0f}/s a core, {share:.0%} change a record), "
    )
    text += f"{total['faults']:,} faults, {total['acknowledged']:,} acknowledged, 0 lost, 0 completed twice, "
    text += f"virtual:real {speed:,.0f}:1"
    print(text)
    record_property("figures", text)
    assert total["faults"] > total["seeds"] and total["acknowledged"] > 10 * total["seeds"]
    assert share >= 0.3, "too few steps change a record"


@pytest.mark.timeout(400)
def test_no_promise_is_broken_in_any_seed(record_property: Callable[[str, object], None]) -> None:
    tell(play(SEEDS, STEPS, timeout=380), record_property)


@pytest.mark.full
@pytest.mark.timeout(6 * 3600)
def test_no_promise_is_broken_in_very_many_seeds(record_property: Callable[[str, object], None]) -> None:
    tell(play(FULL_SEEDS, FULL_STEPS, timeout=6 * 3600), record_property)


def traces(hash_seed: int) -> list[str]:
    """What some seeds leave, played under this hash seed."""
    command = [*PLAY, "1", "--count", "20", "--steps", "500", "--hashes"]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    return done.stdout.splitlines()


def test_a_seed_plays_the_same_each_time_under_any_hash_seed() -> None:
    first = traces(1)
    assert len(set(first)) == 20
    assert traces(2) == first


BUGS = [
    *("reply_before_commit", "forgets_calls", "runs_begin_anew", "no_run_check", "uniques_are_forgotten"),
    *("purge_leaves_one", "history_is_lost", "lease_without_heartbeats"),
]


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: str) -> None:
    """The switch is in the simulation; the product has none."""
    command = [*PLAY, "1", "--count", "60", "--steps", "600", "--bug", bug, "--first"]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=100, check=False
    )
    print(f"T4: {bug} caught: {done.stdout.strip()[-300:]}")
    assert done.returncode == 1 and "--trace" in done.stdout
