"""The wall clock as deletions see it. PURE.

A clock that is set a year ahead by mistake, and back some minutes later, must not have deleted everything that is kept
for a day or a month; nor must a manager that starts while it is wrong. So deletions go by clocks of their own, which
catch up with the wall clock at a limited pace, from where they were when the manager last heard of a submit:

* `Ageing.records`, for what carries times of the wall clock, is never ahead of it: set back, it follows at once.
* `Ageing.calls`, for submit calls and keys, which carry its own times, never goes back: what is known of a call must
  outlast each repetition of it, whatever the wall clock did in between.
"""

from __future__ import annotations

from taskq.queue.leases import Moment

PACE = 25.0
"""How much faster than time they may go to catch up: what is kept for a day is kept for an hour whatever happens."""


class Ageing:
    """Tells the times by which records and calls are old, in wall seconds. ``seen``: of the newest call that is known,
    None without one.
    """

    def __init__(self, now: Moment, seen: float | None = None) -> None:
        self._records = self._calls = now.wall if seen is None else seen
        self._mono = now.mono

    def records(self, now: Moment) -> float:
        """The time for records; it may be behind."""
        self._go_on(now)
        return self._records

    def calls(self, now: Moment) -> float:
        """The time for calls and keys; it may be behind, and stays ahead of a clock that was set back."""
        self._go_on(now)
        return self._calls

    def _go_on(self, now: Moment) -> None:
        passed = now.mono - self._mono
        self._mono = now.mono
        self._records = min(now.wall, self._records + PACE * passed)
        self._calls = min(max(now.wall, self._calls + passed), self._calls + PACE * passed)
