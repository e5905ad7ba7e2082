"""The thread that does whatever is due without anybody calling.

It lets scheduled tasks and ended leases take their course (`tick` says what is next and when), writes hand-outs that no
other commit took along, asks the disk for room, and forgets what nobody asks for any more. What takes longer is done by
the `taskq.queue.cleaner`, so that nothing that is due in memory waits for deletions on the disk. Each `tick`
hears when it was meant to be: one that comes much later, wherever the time went, tells that the process (or the
machine) was suspended.
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import Protocol

from taskq.queue.background import Background

LINGER = 0.025
"""Seconds that a change for which nobody waits may wait for somebody else's commit; a hand-out: twice that."""
ROUND = 1.0
"""Seconds: longest sleep."""
TIDY = 60.0
"""Seconds between two looks for what nobody asks for any more."""
OVERSLEPT = 2.0
"""Seconds: a round so much later than meant is no accident of scheduling."""


class Chores(Protocol):
    """What there is to do; `taskq.queue.job_queue.JobQueue` has it."""

    def tick(self, meant_at: float) -> float:
        """Do what is due; gives the seconds until there is more to do. ``meant_at``: when it was to happen."""
        ...

    def look_after_disk(self) -> None:
        """Find out whether there is room for new tasks."""
        ...

    def tidy(self) -> None:
        """Forget what nobody asks for any more."""
        ...

    def monotonic(self) -> float:
        """Seconds of the queue's clock."""
        ...


class Housekeeper(Background):
    """A thread that does `Chores` when they are due."""

    def __init__(self, chores: Chores) -> None:
        super().__init__("housekeeper", "housekeeping")
        self._chores = chores
        self._wakes_at = 0.0
        self._expected_at = inf
        self._looked = self._tidied = 0.0

    def expect(self, seconds: float) -> None:
        """Something will be due in so many seconds. Called with the queue's lock held."""
        due_at = self._chores.monotonic() + seconds
        self._expected_at = min(self._expected_at, due_at)
        if self._wakes_at > due_at:
            self._wake.set()

    def _round(self, meant_at: float) -> float:
        """Do what is due; gives the seconds until there is more to do."""
        wait = self._chores.tick(meant_at)
        now = self._chores.monotonic()
        if now - self._looked >= ROUND:
            self._looked = now
            self._chores.look_after_disk()
        if now - self._tidied >= TIDY:
            self._tidied = now
            self._chores.tidy()
        return wait

    def _run(self) -> None:
        meant_at = self._looked = self._tidied = self._chores.monotonic()
        while not self._stopping:
            self._expected_at = inf
            began = self._chores.monotonic()  # before all else: a suspension may fall on any line of the loop
            wait = self._attempt(partial(self._round, meant_at), otherwise=ROUND)
            wait = min(wait, ROUND)
            meant_at = began + wait
            now = self._chores.monotonic()
            self._wakes_at = now + wait  # before looking at what came meanwhile: `expect` writes, then looks at this
            wait = min(wait, self._expected_at - now)
            if wait > 0:
                self._wake.wait(wait)
            self._wakes_at = 0.0
            self._wake.clear()
