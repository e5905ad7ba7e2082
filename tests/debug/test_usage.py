"""Processor time of a process, as the monitor shows it."""

from __future__ import annotations

import time

import psutil

from taskq.workers.usage import MEASURE, Usage


def burn(seconds: float) -> None:
    """Use this much processor time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_a_second_look_too_soon_after_the_first_sees_no_chance_figure() -> None:
    usage = Usage(psutil.Process())
    now = time.monotonic()
    assert usage.percent(now) == 0.0
    burn(0.05)  # all of the time so far: up to 199 percent by the system's clock ticks
    assert usage.percent(now + MEASURE / 2) == 0.0
    assert usage.percent(now + MEASURE) > 0.0
