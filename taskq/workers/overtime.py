"""When a worker process must end because a task in it does not: decided by its parent, from the slot table. PURE.

Theory of operation. The process itself raises an exception in the thread of a task that is over its timeout, or that is
to be cancelled (`watchdog`). Code that blocks in C never sees it, code that catches it may go on, and a process whose
interpreter is held by a call in C can do nothing at all. So the parent counts from the moment of the exception:

* after `PATIENCE` the process gets no more tasks, while the others in it may finish;
* after `GRACE` it is killed and replaced. The outcome of what was over its time goes to the manager together with the
  death; whatever else ran there goes back as if it had never begun.

A parent that was suspended itself counts from when it looks again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import NamedTuple

from taskq.workers.slots import Running

NOTICE = 1.0
"""Seconds between the moment when a task can see that it is cancelled, and the exception."""
PATIENCE = 1.0
"""Seconds after the exception for which the process still takes tasks."""
GRACE = 5.0
"""Seconds from the exception to the end of the process."""
ASLEEP = 3.0
"""Seconds without a look that mean that the parent could not look."""


class Verdict(NamedTuple):
    """What is to be done: ``leave``: no more tasks for it; ``kill`` it, if there is anything in there, which is what
    was over its time. ``next``: monotonic seconds when to look again."""

    leave: bool
    kill: Sequence[Running]
    next: float


class Overtime:
    """The tasks of one worker process that are over their time."""

    def __init__(self) -> None:
        self._cancelled: dict[int, float] = {}
        self._since: dict[int, float] = {}

    def cancel(self, runs: Iterable[int], now: float) -> list[int]:
        """These, and no others, are the runs to be cancelled; gives those that are new."""
        wanted = {run: self._cancelled.get(run) for run in runs}
        new = [run for run, at in wanted.items() if at is None]
        self._cancelled = {run: now + NOTICE if at is None else at for run, at in wanted.items()}
        return new

    def is_cancelled(self, run: int) -> bool:
        """Whether this run is to be cancelled."""
        return run in self._cancelled

    def look(self, running: Iterable[Running], now: float) -> Verdict:
        """What is to be done at ``now`` (monotonic seconds) with a process that runs these."""
        since: dict[int, float] = {}
        over: list[Running] = []
        coming = inf
        for one in running:
            end = min(one.deadline, self._cancelled.get(one.run, inf))
            if end > now:
                coming = min(coming, end)
                continue
            since[one.run] = self._since.get(one.run, end if now - end < ASLEEP else now)
            over.append(one)
        self._since = since
        if not since:
            return Verdict(False, (), coming)
        oldest = min(since.values())
        if now >= oldest + GRACE:
            return Verdict(True, over, now)
        is_late = now >= oldest + PATIENCE
        return Verdict(is_late, (), min(coming, oldest + (GRACE if is_late else PATIENCE)))
