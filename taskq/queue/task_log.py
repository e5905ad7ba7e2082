"""Log lines of the queue: one for each transition at debug, retries at warning, final failures at error."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from taskq.logs import event
from taskq.queue.leases import Worker
from taskq.queue.task import CANCELLED, COMPLETED, FAILED, PENDING, RUNNING, SCHEDULED, Task
from taskq.shapes import Report

log = logging.getLogger("taskq.queue")

_QUIET = {
    PENDING: ("task_submitted", "task {id} ({type}) is pending"),
    SCHEDULED: ("task_submitted", "task {id} ({type}) is scheduled"),
    RUNNING: ("task_started", "task {id} ({type}) was handed to {worker}"),
    COMPLETED: ("task_completed", "task {id} ({type}) completed on {worker}"),
    CANCELLED: ("task_cancelled", "task {id} ({type}) was cancelled"),
}


class Line(NamedTuple):
    """One line that is to be logged, as things were when it was made."""

    level: int
    name: str
    text: str
    fields: dict[str, Any]


def transitions(tasks: Sequence[Task]) -> Iterator[Line]:
    """What has become of these tasks. Making a line is cheap, writing one is not: see `say`."""
    verbose = log.isEnabledFor(logging.DEBUG)
    for task in tasks:
        if task.state is FAILED and _expired(task):
            yield _line(task, logging.ERROR, "task_failed", "task {id} ({type}) failed for good: it has expired")
        elif task.state is FAILED:
            yield _line(task, logging.ERROR, "task_failed", "task {id} ({type}) failed for good on {worker}: {error}")
        elif task.state is SCHEDULED and task.error is not None:
            text = "task {id} ({type}) failed on {worker} and runs again: {error}"
            yield _line(task, logging.WARNING, "task_retried", text)
        elif verbose:
            name, text = _QUIET[task.state]
            if task.state is PENDING and task.run:
                name, text = "task_returned", "task {id} ({type}) is back in its queue"
            yield _line(task, logging.DEBUG, name, text)


def _expired(task: Task) -> bool:
    """Whether it failed without an attempt of its own: what it says of one is about the last before."""
    return task.error is not None and task.error.kind == "expired"


def _line(task: Task, level: int, name: str, text: str) -> Line:
    error = None
    if task.error is not None and task.state in (FAILED, SCHEDULED):  # else it is that of an earlier attempt
        error = task.error.type or task.error.kind
    fields = {
        "task_id": task.id,
        "task_type": task.type,
        "queue": task.queue,
        "worker": None if task.state is PENDING else task.worker_name,
        "attempt": task.failures + task.deaths + (task.state in (RUNNING, COMPLETED)) or None,
        "correlation_id": task.correlation_id,
        "outcome": task.state.label,
        "error": error,
    }
    if task.started_at is not None and task.state in (RUNNING, COMPLETED, FAILED) and not _expired(task):
        fields["wait_s"] = round(max(0.0, task.started_at - task.due_at), 6)
        if task.finished_at is not None:
            fields["run_s"] = round(task.finished_at - task.started_at, 6)
    return Line(level, name, text.format(id=task.id, type=task.type, worker=task.worker_name, error=error), fields)


def say(lines: deque[Line]) -> None:
    """Log these lines and drop them; without the queue's lock, since a terminal or a disk may be slow."""
    while lines:
        try:
            level, name, text, fields = lines.popleft()
        except IndexError:  # another thread was faster
            return
        event(log, level, name, text, **fields)


def worker_joined(worker: Worker) -> None:
    """Say that a worker process attached."""
    again = "again" if worker.session > 1 else "with " + (", ".join(sorted(worker.types)[:20]) or "no task types")
    event(log, logging.INFO, "worker_joined", f"{worker.name} joined {again}", worker=worker.name)


def worker_left(worker: Worker, how: str) -> None:
    """Say that a worker process is gone."""
    event(log, logging.INFO, "worker_left", f"{worker.name} is gone: {how}", worker=worker.name)


def refused(worker: Worker, reports: Sequence[Report]) -> None:
    """Say that outcomes came too late."""
    for report in reports:
        text = f"an outcome of task {report[1]} from {worker.name} came too late: that run is over"
        event(log, logging.WARNING, "outcome_refused", text, worker=worker.name, task_id=report[1])
