"""Log lines of the queue: one for each transition at debug, retries at warning, final failures at error."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from taskq.logs import event
from taskq.queue.leases import Worker
from taskq.queue.task import CANCELLED, COMPLETED, FAILED, PENDING, RUNNING, SCHEDULED, Task
from taskq.service import Report

log = logging.getLogger("taskq.queue")

_QUIET = {
    PENDING: ("task_submitted", "task {id} ({type}) is pending"),
    SCHEDULED: ("task_submitted", "task {id} ({type}) is scheduled"),
    RUNNING: ("task_started", "task {id} ({type}) was handed to {worker}"),
    COMPLETED: ("task_completed", "task {id} ({type}) completed on {worker}"),
    CANCELLED: ("task_cancelled", "task {id} ({type}) was cancelled"),
}


def transitions(tasks: Sequence[Task]) -> None:
    """Say what has become of these tasks."""
    verbose = log.isEnabledFor(logging.DEBUG)
    for task in tasks:
        if task.state is FAILED:
            _say(task, logging.ERROR, "task_failed", "task {id} ({type}) failed for good on {worker}: {error}")
        elif task.state is SCHEDULED and task.error is not None:
            _say(task, logging.WARNING, "task_retried", "task {id} ({type}) failed on {worker} and runs again: {error}")
        elif verbose:
            name, text = _QUIET[task.state]
            if task.state is PENDING and task.run:
                name, text = "task_returned", "task {id} ({type}) is back in its queue"
            _say(task, logging.DEBUG, name, text)


def _say(task: Task, level: int, name: str, text: str) -> None:
    error = "" if task.error is None else f"{task.error.type or task.error.kind}"
    fields = {
        "task_id": task.id,
        "task_type": task.type,
        "queue": task.queue,
        "worker": task.worker_name,
        "attempt": task.failures + task.deaths + (task.state is RUNNING),
        "correlation_id": task.correlation_id,
        "outcome": task.state.label,
    }
    if task.finished_at is not None and task.started_at is not None:
        fields["run_s"] = round(task.finished_at - task.started_at, 6)
    if error:
        fields["error"] = error
    event(log, level, name, text.format(id=task.id, type=task.type, worker=task.worker_name, error=error), **fields)


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
