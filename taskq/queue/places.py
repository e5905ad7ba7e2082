"""Where tasks stand that do not run: on shelves while they are pending, in the schedule, by the time they expire. PURE.

After a restart, tasks from before it stand on shelves of their own (`kept_back`) until the workers that may hold some
of them are back, so that none runs twice; and none of them expires before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf

from taskq.queue.changes import Changes
from taskq.queue.expiry import Expiry
from taskq.queue.leases import Moment
from taskq.queue.lifecycle import Event
from taskq.queue.ready import Ready, oldest
from taskq.queue.schedule import Schedule
from taskq.queue.suspects import Suspects
from taskq.queue.task import FINAL, PENDING, SCHEDULED, State, Task

CLOCK_SET = 1.0
"""Seconds by which the wall clock leaves the other one behind, between two ticks, only when somebody sets it."""
HOLD = 5.0
"""Seconds for which tasks from before a restart are kept back while workers that may hold them come back."""


class Places:
    """The shelves, the schedule and the heaps of those that expire."""

    def __init__(self) -> None:
        self.ready = Ready()
        self.suspects = Suspects()
        self.schedule = Schedule()
        self.expiry = Expiry()
        self.kept_back: Ready | None = None
        self.kept_expiry = Expiry()
        self.kept_below = 0
        self.kept_until = 0.0
        self._apart: float | None = None

    def settle(self, task: Task, changes: Changes) -> None:
        """Put a task where its state belongs."""
        if task.state is PENDING:
            shelves = self._shelves(task)
            shelves.push(task)
            if shelves is self.ready:
                shelf = (task.queue, task.type)
                changes.ready[shelf] = changes.ready.get(shelf, 0) + 1
        elif task.state is SCHEDULED:
            self.schedule.push(task)
        elif task.state in FINAL:
            changes.final.append(task)
        if task.terms.expiring and task.state not in FINAL:
            (self.kept_expiry if self._is_kept(task) else self.expiry).push(task)

    def left(self, task: Task, before: State, event: Event) -> None:
        """A task has just left the state ``before``."""
        if before is PENDING:
            self._shelves(task).gone(task)
        elif before is SCHEDULED and event is not Event.DUE:
            self.schedule.gone()

    def shelves(self) -> list[Ready]:
        """All on which pending tasks stand."""
        return [self.ready, self.suspects, *([self.kept_back] if self.kept_back is not None else [])]

    def oldest_pending(self, now: Moment) -> dict[str, float]:
        """For each queue with pending tasks: how many seconds the one that came first has waited."""
        return oldest(self.shelves(), now.wall)

    def _shelves(self, task: Task) -> Ready:
        if task.deaths:
            return self.suspects
        return self.kept_back if self.kept_back is not None and self._is_kept(task) else self.ready

    # -- after a restart

    def keep_back(self, below: int, now: Moment) -> None:
        """Tasks with ids below this are from before a restart."""
        if self.kept_back is None:
            self.kept_back = Ready()
            self.kept_below = below
            self.hold_from(now)

    def hold_from(self, now: Moment) -> None:
        """The time in which workers may come back begins now."""
        self.kept_until = now.mono + HOLD

    def _is_kept(self, task: Task) -> bool:
        return self.kept_back is not None and task.id < self.kept_below

    def kept_back_for(self, task: Task, now: Moment) -> float | None:
        """How many seconds a task is kept back at most after a restart, None when it is not."""
        if self.kept_back is None or not (task.deaths or self._is_kept(task)):
            return None
        return max(0.0, self.kept_until - now.mono)

    def release(self, tasks: Mapping[int, Task]) -> Changes:
        """What was kept back may be handed out; ``tasks``: all that are alive."""
        assert self.kept_back is not None
        changes = Changes(ready={place: shelf.pending for place, shelf in self.kept_back.shelves.items()})
        self.kept_back.absorb(self.ready)
        self.ready, self.kept_back = self.kept_back, None
        self.expiry.absorb(self.kept_expiry, tasks)
        return changes

    # -- time

    def follow_wall_clock(self, now: Moment, running: Iterable[Task]) -> Changes:
        """When the wall clock is set, the pauses of tasks that ran before stay as long as they were.

        What is ``running`` began by the new time: it has run for as long as before.
        """
        apart = now.wall - now.mono
        jump = 0.0 if self._apart is None else apart - self._apart
        self._apart = apart
        if abs(jump) <= CLOCK_SET:
            return Changes()
        for task in running:
            if task.started_at is not None:
                task.started_at += jump
        return Changes(moved=self.schedule.shift(jump))

    def load(self, task: Task, now: Moment, changes: Changes) -> None:
        """Put a stored task that does not run where its state belongs.

        The clock may have been set while no manager saw it. That a task began in the future shows that it was set back;
        then its pause lasts no longer than from that beginning to its end.
        """
        if task.state is SCHEDULED and task.run:
            began = task.submitted_at if task.started_at is None else task.started_at
            task.due_at -= max(0.0, began - now.wall)
        self.settle(task, changes)

    def load_pending(self, tasks: Sequence[Task]) -> dict[tuple[str, str], int]:
        """The same for pending ones without deaths with rising ids, higher than all before; how many, by shelf."""
        for task in tasks:
            if task.terms.expiring:
                (self.kept_expiry if self._is_kept(task) else self.expiry).push(task)
        return self._shelves(tasks[-1]).extend(tasks) if tasks else {}

    def next_date(self) -> float:
        """The wall-clock seconds at which the next task is due or expires, infinity when there is none."""
        return min(self.schedule.first(), self.expiry.first())

    def wait(self, now: Moment) -> float:
        """Seconds until something is due here, infinity when nothing is."""
        kept = inf if self.kept_back is None else self.kept_until - now.mono
        return min(self.next_date() - now.wall, kept)

    def forget(self, ids: Iterable[int]) -> None:
        """These tasks are final, and stored."""
        if self.expiry:
            self.expiry.forget(ids)
