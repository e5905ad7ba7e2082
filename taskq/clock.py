"""The only place that reads a clock. Everything else is given ``now``.

Two clocks, never mixed: *monotonic* seconds for leases, heartbeats, timeouts and measured durations; *wall* seconds
(since 1970, UTC) for due times and the timestamps that people read.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def monotonic(self) -> float:
        """Seconds that only ever rise, suspend included where the system can tell."""
        ...

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC; may jump."""
        ...


class SystemClock:
    """The machine's clocks: boot time where there is one (it goes on during suspend), else monotonic."""

    def __init__(self) -> None:
        self._id = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def monotonic(self) -> float:
        """Seconds since boot."""
        return time.clock_gettime(self._id)

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        return time.time()


class FakeClock:
    """A clock that stands still until it is told to move: for tests and simulations."""

    def __init__(self, monotonic: float = 1_000.0, wall: float = 1_700_000_000.0) -> None:
        self._monotonic = monotonic
        self._wall = wall

    def monotonic(self) -> float:
        """The fake monotonic seconds."""
        return self._monotonic

    def wall(self) -> float:
        """The fake wall seconds."""
        return self._wall

    def advance(self, seconds: float) -> None:
        """Let both clocks go on by ``seconds``."""
        self._monotonic += seconds
        self._wall += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back; monotonic time knows nothing of it."""
        self._wall += seconds
