"""How much processor time a process uses, measured over long enough to mean something."""

from __future__ import annotations

import psutil

MEASURE = 0.5
"""Seconds over which it is measured, at least: the system counts processor time in steps of 10 ms."""


class Usage:
    """The processor time of one process. It has no lock: a figure that two threads ask for at once may be a bit off."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._percent = 0.0
        self._measured_at = float("-inf")

    def percent(self, now: float) -> float:
        """Percent of one processor; ``now``: monotonic seconds. Soon after the last time the same again, 0 at first.

        Raises `psutil.Error` when the process is gone.
        """
        if now - self._measured_at >= MEASURE:
            self._percent = self._process.cpu_percent()
            self._measured_at = now
        return self._percent
