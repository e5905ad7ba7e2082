"""What became of a task's attempts. PURE.

An attempt that did not complete its task becomes a row of its own when it ends; the one that did, and the one that is
under way, can be read off the record. So a task that completes at once writes nothing here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from taskq.queue.lifecycle import Event
from taskq.queue.task import COMPLETED, FAILED, RUNNING, Task, TaskError
from taskq.queue.task_row import TaskRow
from taskq.stores.base import KEEP_ATTEMPTS, AttemptRow

MAX_TEXT = 8 * 1024
"""Characters of a message or traceback that are kept."""

OUTCOMES = {
    "completed": "it returned",
    "failed": "it raised an exception, or its arguments or its result were no good",
    "timeout": "it ran longer than its timeout",
    "died": "its worker process ended under it, or was silent for longer than the lease",
    "snoozed": "it asked to be run later",
    "cancelled": "it was over, however, when the task was to be cancelled",
    "running": "it is under way",
}
"""How an attempt may have ended, and what that means."""

_BY_EVENT = {
    Event.RETRY: "failed",
    Event.FAIL: "failed",
    Event.DEATH: "died",
    Event.POISON: "died",
    Event.SNOOZE: "snoozed",
    Event.CANCELLED: "cancelled",
}
_BY_KIND = {"timeout": "timeout", "poisoned": "died", "died": "died"}


def ended(
    task: Task, event: Event, error: TaskError | None, wall: float, death: Mapping[str, Any] | None
) -> AttemptRow:
    """The attempt at a task that is over by this event, with this error, at ``wall`` seconds.

    ``death``: what is known of the end of its worker process.
    """
    outcome = _BY_EVENT[event]
    if outcome == "failed" and error is not None:
        outcome = _BY_KIND.get(error.kind, outcome)
    _, name, message, traceback = error or ("", "", "", "")
    return AttemptRow(
        task.id,
        task.run,
        task.worker_name,
        task.started_at,
        wall,
        outcome,
        name,
        message[:MAX_TEXT],
        traceback[-MAX_TEXT:],
        None if death is None else json.dumps({name: value for name, value in death.items() if name != "crash"}),
    )


def attempts(row: TaskRow, stored: Sequence[AttemptRow]) -> list[dict[str, Any]]:
    """The last attempts of a task for clients, oldest first: what was stored of them and what its record says."""
    told = [_described(attempt) for attempt in stored]
    outcome = _of_record(row)
    if outcome and row.run and row.run not in {attempt.run for attempt in stored}:
        _, name, message, traceback = (outcome in ("failed", "died", "timeout") and row.error) or ("", "", "", "")
        latest = (row.id, row.run, row.worker_name, row.started_at, row.finished_at or 0.0, outcome)
        told.append(_described(AttemptRow(*latest, name, message, traceback, None)))
        told[-1]["ended_at"] = row.finished_at
    return told[-KEEP_ATTEMPTS:]


def _of_record(row: TaskRow) -> str | None:
    """How the last attempt stands that a record tells of, None where it tells of none."""
    if row.state == RUNNING:
        return "running"
    if row.state == COMPLETED:
        return "completed"
    if row.state == FAILED and row.error is not None and row.error[0] != "expired":
        return _BY_KIND.get(row.error[0], "failed")
    return None


def _described(attempt: AttemptRow) -> dict[str, Any]:
    death = None if attempt.death is None else json.loads(attempt.death)
    return {**attempt._asdict(), "death": death}
