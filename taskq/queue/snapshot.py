"""The monitor's figures as plain data, schema ``taskq.snapshot/1``. PURE.

Fields are only ever added. Nothing is counted here: the cost grows with queues, types and workers, never with tasks.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from taskq.queue.figures import QueueFigures
from taskq.queue.leases import Moment, Worker
from taskq.queue.state import QueueState
from taskq.queue.task import PENDING, RUNNING, SCHEDULED, State, Task
from taskq.queue.timeouts import timeout_of

SCHEMA = "taskq.snapshot/1"


def iso(wall: float | None) -> str | None:
    """Wall-clock seconds as ISO 8601 in UTC.

    >>> iso(0.5)
    '1970-01-01T00:00:00.500Z'
    """
    if wall is None:
        return None
    moment = datetime.fromtimestamp(wall, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def snapshot(state: QueueState, now: Moment, manager: dict[str, Any], warnings: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that the monitor shows; ``manager`` and ``warnings`` are what only the shell knows."""
    figures = state.figures
    oldest = state.places.oldest_pending(now)
    queues = {**dict.fromkeys(state.rules.rows, QueueFigures()), **figures.queues}  # what is paused may be empty
    return {
        "schema": SCHEMA,
        "taken_at": iso(now.wall),
        "manager": manager,
        "totals": dict(figures.totals),
        "kept": {kind.label: count for kind, count in sorted(figures.final.items())},
        "queues": [
            {
                "name": name,
                **_rules(state, name),
                **queue.describe(now.mono),
                "oldest_pending_s": oldest.get(name),
            }
            for name, queue in sorted(queues.items())
        ],
        "types": [
            {
                "name": name,
                "workers": state.leases.offers.get(name, 0),
                "completed": kind.completed,
                "failed": kind.failed,
                "run_s": kind.run_s.percentiles(now.mono),
            }
            for name, kind in sorted(figures.types.items())
        ],
        "workers": [_worker(state, worker, now) for worker in state.leases.workers.values()],
        "recent": [_recent(task) for task in reversed(figures.recent)],
        "recent_failures": [_recent(task) for task in reversed(figures.recent_failures)],
        "warnings": _unserved(state) + warnings,
    }


def _rules(state: QueueState, name: str) -> dict[str, Any]:
    rules = state.rules.of(name)
    return {
        "paused": rules.paused_at is not None,
        "paused_by": rules.paused_by,
        "paused_at": iso(rules.paused_at),
        "limit": rules.max_running,
    }


def _worker(state: QueueState, worker: Worker, now: Moment) -> dict[str, Any]:
    report = worker.report
    seen = {entry[0]: entry[3] for entry in report.get("running", ())}
    busy = [task for number, task in worker.running.items() if number in seen]
    room = worker.threads if worker.attached else len(worker.running)  # how many one has that is not back is not known
    return {
        "id": worker.name,
        "incarnation": worker.incarnation,
        "pool": worker.pool,
        "host": worker.host,
        "pid": worker.pid,
        "state": _state(worker, now, state.leases.heartbeat),
        "threads": worker.threads,
        "queues": list(worker.queues_named),
        "queue_order": worker.queue_order or None,
        "busy": min(len(worker.running), room),
        "reserved": len(worker.running),
        "last_heartbeat_s": max(0.0, now.mono - worker.beat_at),
        "cpu_percent": report.get("cpu_percent"),
        "rss_bytes": report.get("rss_bytes"),
        "completed": worker.completed,
        "failed": worker.failed,
        "running": [_running(state, worker, task, now) for task in (busy or list(worker.running.values()))[:room]],
    }


def _state(worker: Worker, now: Moment, heartbeat: float) -> str:
    if not worker.attached:
        return "expected"
    if worker.stopped:
        return "stopped"
    if worker.draining:
        return "draining"
    return "running" if now.mono - worker.beat_at <= 2 * heartbeat else "silent"


def _running(state: QueueState, worker: Worker, task: Task, now: Moment) -> dict[str, Any]:
    fraction, note = worker.progress.get(task.id, (None, None))
    return {
        "id": task.id,
        "type": task.type,
        "for_s": max(0.0, now.wall - (task.started_at or now.wall)),
        "attempt": task.failures + task.deaths + 1,
        "progress": fraction,
        "note": note,
        "timeout_s": timeout_of(task.terms, state.settings),
        "cancel_requested": task.cancel_requested,
    }


def _recent(task: Task) -> dict[str, Any]:
    took = None if task.started_at is None or task.finished_at is None else task.finished_at - task.started_at
    return {
        "id": task.id,
        "type": task.type,
        "queue": task.queue,
        "state": task.state.label,
        "finished_at": iso(task.finished_at),
        "run_s": took,
        "worker": task.worker_name,
        "failures": task.failures,
        "deaths": task.deaths,
        "error": None if task.error is None else {"kind": task.error.kind, "type": task.error.type},
    }


def _unserved(state: QueueState) -> list[dict[str, Any]]:
    pending: dict[str, int] = {}
    for shelf in (*state.places.ready.shelves.values(), *state.places.suspects.shelves.values()):
        if shelf.pending and not state.leases.offers.get(shelf.type):
            pending[shelf.type] = pending.get(shelf.type, 0) + shelf.pending
    return [
        {
            "code": "type_unserved",
            "type": kind,
            "pending": count,
            "message": f'no worker serves "{kind}" ({count:,} pending)',
        }
        for kind, count in sorted(pending.items())
    ]


def counts_by_state(state: QueueState) -> dict[State, int]:
    """How many live tasks are in each state, over all queues."""
    return {
        kind: sum(queue.counts[kind] for queue in state.figures.queues.values())
        for kind in (PENDING, SCHEDULED, RUNNING)
    }
