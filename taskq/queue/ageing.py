"""The wall clock as deletions see it. PURE.

A clock that is set a year ahead by mistake, and back some minutes later, must not have deleted everything that is kept
for a day or a month; nor must a manager that starts while it is wrong. So deletions go by clocks of their own, which
begin at each start where the last submit was:

* `Ageing.records`, for what carries times of the wall clock, is never ahead of it, and catches up with it at a limited
  pace: set back it follows at once, set ahead it takes its time.
* `Ageing.calls`, for submit calls and keys, which carry its own times, counts how long managers ran and knows of no
  wall clock: what is known of a call must outlast each repetition of it, whatever that did in between.
"""

from __future__ import annotations

from taskq.queue.leases import Moment

PACE = 25.0
"""How much faster than time the records' may go: what is kept for a day is kept for an hour whatever happens."""


class Ageing:
    """Tells the times by which records and calls are old, in seconds.

    ``record``, ``call``: when the newest of each that is known was made, by its clock.
    """

    def __init__(self, now: Moment, record: float | None = None, call: float | None = None) -> None:
        self._records = now.wall if record is None else record
        self._calls = now.wall if call is None else call
        self._mono = now.mono

    def records(self, now: Moment) -> float:
        """The time for records; it may be behind."""
        self._go_on(now)
        return self._records

    def calls(self, now: Moment) -> float:
        """The time for calls and keys."""
        self._go_on(now)
        return self._calls

    def _go_on(self, now: Moment) -> None:
        passed = now.mono - self._mono
        self._mono = now.mono
        self._records = min(now.wall, self._records + PACE * passed)
        self._calls += passed
