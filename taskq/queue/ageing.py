"""The wall clock as deletions see it. PURE.

A clock that is set a year ahead by mistake, and back some minutes later, must not have deleted everything that is kept
for a day or a month. So what is deleted by its age follows a leap ahead only when the clock has kept to it for a while;
a clock that is set back is followed at once, since that deletes less.
"""

from __future__ import annotations

from taskq.queue.leases import Moment

BELIEVED_AFTER = 3600.0
"""Seconds after which a leap ahead is believed."""
SLACK = 60.0
"""Seconds: a smaller leap is none; clocks are put right all the time."""


class Ageing:
    """Tells the wall time by which records are old."""

    def __init__(self, now: Moment) -> None:
        self._apart = now.wall - now.mono
        self._leapt_at: float | None = None

    def wall(self, now: Moment) -> float:
        """Wall seconds, without a leap ahead of less than an hour ago."""
        apart = now.wall - now.mono
        if apart <= self._apart + SLACK:
            self._apart, self._leapt_at = apart, None
        elif self._leapt_at is None:
            self._leapt_at = now.mono
        elif now.mono - self._leapt_at >= BELIEVED_AFTER:
            self._apart, self._leapt_at = apart, None
        return now.mono + self._apart
