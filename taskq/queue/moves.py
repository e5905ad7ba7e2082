"""The doors between the states of tasks: nothing else changes a task's state. PURE.

Each keeps the records and all that is derived from them together: places, leases, figures, and what is to be stored.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from taskq.queue.changes import Changes
from taskq.queue.figures import Figures
from taskq.queue.history import ended
from taskq.queue.leases import Leases, Moment, Worker
from taskq.queue.lifecycle import Event, next_state
from taskq.queue.places import Places
from taskq.queue.task import FINAL, PENDING, RUNNING, Task
from taskq.shapes import Report
from taskq.stores.base import ResultEnd

RUNS_PER_EPOCH = 2**40
UNKNOWN = "?"


class Moves:
    """The records of tasks, where they stand, and the ways from one state to another.

    ``epoch``: how often a manager has begun with this store; runs are numbered within it.
    """

    def __init__(self, lease: float, epoch: int) -> None:
        self.epoch = epoch
        self.tasks: dict[int, Task] = {}
        self.places = Places()
        self.leases = Leases(lease)
        self.figures = Figures()
        self._next_run = epoch * RUNS_PER_EPOCH + 1

    def _move(self, task: Task, event: Event, changes: Changes) -> None:
        before = task.state
        after = next_state(before, event)
        task.state = after
        self.places.left(task, before, event)
        self.figures.moved(task, before, after)
        changes.written.append(task)
        self.places.settle(task, changes)

    def _hand_out(self, worker: Worker, taken: list[Task], now: Moment, changes: Changes) -> tuple[list[Task], Changes]:
        """Tasks that were just taken from the shelves are this worker's."""
        running = next_state(PENDING, Event.RESERVE)
        for run, task in enumerate(taken, self._next_run):
            task.state = running
            task.run = run
            task.worker = worker.incarnation
            task.worker_name = worker.name
            task.started_at = now.wall
            worker.running[task.id] = task
        self._next_run += len(taken)
        self.figures.handed_out(taken, now.mono, now.wall)
        changes.written += taken
        return taken, changes

    def _complete(self, worker: Worker, acked: Sequence[tuple[Task, Report]], now: Moment, changes: Changes) -> None:
        """Runs have come to a good end; the worker does not hold them any more."""
        done = next_state(RUNNING, Event.ACK)
        wall = now.wall
        for task, report in acked:
            task.state = done
            task.result, task.error = report[3], None
            task.finished_at = wall
            task.started_at = wall - report[4]
            if task.terms.result_ttl is not None:
                changes.result_ends.append(ResultEnd(task.id, wall + task.terms.result_ttl))
        if worker.progress:
            for task, _ in acked:
                worker.progress.pop(task.id, None)
        worker.completed += len(acked)
        tasks = [task for task, _ in acked]
        self.figures.completed(tasks, [report[4] for _, report in acked], now.mono)
        changes.written += tasks
        changes.final += tasks

    def _take_from(
        self, worker: Worker, task: Task, event: Event, now: Moment, changes: Changes, death: Any = None
    ) -> None:
        """A run is over: whatever would lead to another attempt ends a task that is to be cancelled."""
        del worker.running[task.id]
        if worker.progress:
            worker.progress.pop(task.id, None)
        began, error = event is not Event.GIVE_BACK, None if event is Event.SNOOZE else task.error
        if task.cancel_requested and next_state(task.state, event) not in FINAL:
            event = Event.CANCELLED
            task.finished_at = now.wall
        if began:
            changes.attempts.append(ended(task, event, error, now.wall, death))
        self._move(task, event, changes)

    def _readopt(self, worker: Worker, task_id: int, run: int, changes: Changes) -> bool:
        """Accept a run that the last manager handed out and could not store any more.

        Only from the epoch before this one: a manager in between might have given the task to somebody else.
        """
        task = self.tasks.get(task_id)
        if task is None or task.state in FINAL:
            return False
        if run <= task.run or run // RUNS_PER_EPOCH != self.epoch - 1:
            return False
        if task.state is RUNNING:  # the stored run was given up, and this one handed out, just before the crash
            holder = self.leases.workers[task.worker or UNKNOWN]
            del holder.running[task_id]
            holder.progress.pop(task_id, None)
        else:
            twin = copy.copy(task)
            self._move(task, Event.READOPT, Changes())
            twin.state = task.state
            self.tasks[task_id] = task = twin
        task.run, task.worker, task.worker_name = run, worker.incarnation, worker.name
        worker.running[task_id] = task
        worker.alone = worker.alone or task.deaths > 0
        changes.written.append(task)
        return True
