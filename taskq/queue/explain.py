"""Why a task does not run now, and what must happen first: causes as plain data. PURE.

A cause is a map with ``code``, ``text`` (one line for people) and more fields by code. They come in the order in which
they must go: what keeps the task from becoming pending, then what keeps it from being handed out.

| code | fields | it is |
| --- | --- | --- |
| ``not_due`` | due_at, due_s | scheduled for later by who submitted it, or put off by its own code |
| ``backoff`` | due_at, due_s, failures, max_retries, error | scheduled for its next attempt after one failed |
| ``backoff_after_death`` | due_at, due_s, deaths, error | the same after its worker process died |
| ``held_after_restart`` | for_s, workers | pending; workers of before the restart may come back with it |
| ``queue_paused`` | queue, by, since, for_s | |
| ``queue_limit`` | queue, limit, running | as many tasks of its queue run as may |
| ``type_unserved`` | type, nearest | no worker offers its type |
| ``queue_unserved`` | queue, type, workers | those that offer its type serve other queues |
| ``workers_away`` | workers | those that could take it are silent, suspended, leaving or not back yet |
| ``slots_busy`` | workers, threads | those that could take it run as much as they can |
| ``runs_alone`` | deaths, workers, running | a worker process died under it: it waits for one that holds nothing |
| ``queues_before`` | queues, pending | those that could take it serve other queues first, strictly |
| ``position`` | queue, before, start_s | how many tasks of its queue go before it; start_s may be None |
| ``next`` | | nothing: it is about to be handed out |
| ``expires`` | expires_at, left_s | it fails when none of this has happened by then |
| ``running`` | worker, for_s, attempt | |
| ``cancel_requested`` | | it runs, will be stopped, and gets no further attempt |
| ``worker_silent`` | worker, silent_s, lease_s | it runs with a worker that gives no sign of life |
| ``completed``, ``failed``, ``cancelled`` | finished_at, for_s, worker, error | it is over |
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from taskq.layout import count, counted, duration, plain
from taskq.queue.dispatch import running
from taskq.queue.leases import Moment, Worker
from taskq.queue.ready import rank
from taskq.queue.snapshot import iso
from taskq.queue.state import QueueState
from taskq.queue.task import CANCELLED, COMPLETED, PENDING, RUNNING, SCHEDULED, Task, TaskError
from taskq.service import STRICT

Cause = dict[str, Any]


def explain(state: QueueState, task: Task, now: Moment, known: Sequence[str] = ()) -> list[Cause]:
    """The causes for a task that is alive. ``known``: names of types that were ever announced."""
    if task.state is RUNNING:
        return _of_running(state, task, now)
    causes = [_scheduled(task, now)] if task.state is SCHEDULED else []
    causes += _held(state, task, now) + _of_queue(state, task, now)
    causes += _of_workers(state, task, now, known)
    if task.state is PENDING:
        waits = bool(causes)
        causes += _position(state, task, now, moving=all(cause["code"] in _PASSING for cause in causes))
        if not waits and not causes[-1].get("before"):
            causes = [_cause("next", "nothing keeps it: it is about to be handed out")]
    return causes + _expiring(task, now)


_PASSING = ("slots_busy", "queue_limit", "queues_before", "runs_alone")
"""Causes that go by themselves as tasks finish, so that the recent rate says when."""


def explain_final(task: Task, now: Moment) -> list[Cause]:
    """The cause for a task that is over: its outcome."""
    ago = max(0.0, now.wall - (task.finished_at or now.wall))
    fields = {"finished_at": iso(task.finished_at), "for_s": ago, "worker": task.worker_name}
    where = f" on {plain(task.worker_name)}" if task.worker_name else ""
    if task.state is COMPLETED:
        return [_cause("completed", f"it completed {duration(ago)} ago{where}", **fields, error=None)]
    if task.state is CANCELLED:
        return [_cause("cancelled", f"it was cancelled {duration(ago)} ago", **fields, error=None)]
    tried = counted(task.failures + task.deaths, "attempt")
    text = f"it failed for good {duration(ago)} ago after {tried}{where}: {_said(task.error)}"
    return [_cause("failed", text, **fields, error=_described(task.error))]


def _cause(code: str, text: str, **fields: Any) -> Cause:
    return {"code": code, "text": text, **fields}


def _said(error: TaskError | None) -> str:
    """An error in one line."""
    if error is None:
        return "no error is known"
    first = error.message.splitlines()[0][:200] if error.message else ""
    return plain(": ".join(part for part in (error.type or error.kind, first) if part))


def _described(error: TaskError | None) -> dict[str, str] | None:
    return None if error is None else {"kind": error.kind, "type": error.type, "message": error.message[:200]}


# -- what keeps it from becoming pending


def _scheduled(task: Task, now: Moment) -> Cause:
    left = max(0.0, task.due_at - now.wall)
    due = {"due_at": iso(task.due_at), "due_s": left}
    when = f"{_time(task.due_at)} (in {duration(left)})"
    if task.error is not None and task.error.kind == "died":
        text = (
            f"not again until {when}, after {counted(task.deaths, 'death')} of its worker process: {_said(task.error)}"
        )
        return _cause("backoff_after_death", text, **due, deaths=task.deaths, error=_described(task.error))
    if task.error is not None:
        most = task.terms.max_retries + 1
        text = f"not again until {when}, after attempt {task.failures} of {most} failed: {_said(task.error)}"
        fields = {"failures": task.failures, "max_retries": task.terms.max_retries}
        return _cause("backoff", text, **due, **fields, error=_described(task.error))
    how = "its own code put it off" if task.run else "it was submitted for then"
    return _cause("not_due", f"not due until {when}: {how}", **due)


def _expiring(task: Task, now: Moment) -> list[Cause]:
    at = task.expires_at
    if at is None:
        return []
    left = max(0.0, at - now.wall)
    text = f"it expires if it has not begun by {_time(at)} (in {duration(left)})"
    return [_cause("expires", text, expires_at=iso(at), left_s=left)]


def _time(wall: float) -> str:
    """A time of day as people write it, in UTC."""
    text = iso(wall) or ""
    return f"{text[:10]} {text[11:19]} UTC"


# -- what keeps it from being handed out


def _held(state: QueueState, task: Task, now: Moment) -> list[Cause]:
    left = state.places.kept_back_for(task, now)
    if left is None:
        return []
    away = [worker.name for worker in state.leases.workers.values() if not worker.attached]
    text = f"held after a restart of the manager, at most {duration(left)} more: {_who(away)} may come back with it"
    return [_cause("held_after_restart", text, for_s=left, workers=away)]


def _of_queue(state: QueueState, task: Task, now: Moment) -> list[Cause]:
    rules, causes = state.rules.of(task.queue), []
    name = plain(task.queue)
    if rules.paused_at is not None:
        ago = max(0.0, now.wall - rules.paused_at)
        by = plain(rules.paused_by or "somebody")
        text = f'queue "{name}" is paused by {by} since {_time(rules.paused_at)} ({duration(ago)})'
        fields = {"queue": task.queue, "by": rules.paused_by, "since": iso(rules.paused_at), "for_s": ago}
        causes.append(_cause("queue_paused", text, **fields))
    now_running = running(task.queue, state.figures)
    if rules.max_running is not None and now_running >= rules.max_running:
        text = f'queue "{name}" is at its limit: {count(now_running)} of at most {count(rules.max_running)} tasks run'
        fields = {"queue": task.queue, "limit": rules.max_running, "running": now_running}
        causes.append(_cause("queue_limit", text, **fields))
    return causes


def _of_workers(state: QueueState, task: Task, now: Moment, known: Sequence[str]) -> list[Cause]:
    workers = state.leases.workers.values()
    kind, queue = plain(task.type), plain(task.queue)
    offering = [worker for worker in workers if task.type in worker.types]
    if not offering and task.type in known and not any(worker.attached for worker in workers):
        return [_cause("type_unserved", f'no worker is there to run "{kind}"', type=task.type, nearest=None)]
    if not offering:
        offered = {name for worker in workers for name in worker.types}
        nearest = next(iter(difflib.get_close_matches(task.type, sorted(offered), 1)), None)
        text = f'no worker offers "{kind}"' + (f' (nearest: "{plain(nearest)}")' if nearest else "")
        return [_cause("type_unserved", text, type=task.type, nearest=nearest)]
    serving = [worker for worker in offering if not worker.queues or task.queue in worker.queues]
    if not serving:
        text = f'no worker that offers "{kind}" serves queue "{queue}" ({_who(_names(offering))}: other queues)'
        return [_cause("queue_unserved", text, queue=task.queue, type=task.type, workers=_names(offering))]
    able = [worker for worker in serving if worker.may_reserve(now.mono, state.leases.heartbeat)]
    if not able:
        text = f"{_who(_names(serving))} could take it, but is silent, suspended or leaving"
        return [_cause("workers_away", text, workers=_names(serving))]
    return _of_able(state, task, able)


def _of_able(state: QueueState, task: Task, able: Sequence[Worker]) -> list[Cause]:
    """Of workers that could take it: whether they are busy, or have something else to do first."""
    if task.deaths:
        return _of_suspect(task, able)
    free = [worker for worker in able if len(worker.running) < worker.threads and not worker.alone]
    threads = sum(worker.threads for worker in able)
    if not free:
        text = f"all {counted(threads, 'thread')} that could take it are busy ({_who(_names(able))})"
        return [_cause("slots_busy", text, workers=_names(able), threads=threads)]
    before = [_served_before(state, task, worker) for worker in free]
    if not all(before):
        return []
    queues = sorted({name for names in before for name in names})
    pending = sum(state.figures.queues[name].counts[PENDING] for name in queues)
    text = f"its workers serve {', '.join(map(plain, queues))} first ({count(pending)} pending there)"
    return [_cause("queues_before", text, queues=queues, pending=pending)]


def _of_suspect(task: Task, able: Sequence[Worker]) -> list[Cause]:
    """A task under which a worker process died waits for one that holds nothing."""
    if not all(worker.running for worker in able):
        return []
    kept = [worker for worker in able if worker.alone] or list(able)
    held = min(len(worker.running) for worker in kept)
    text = (
        f"it runs next alone in a worker process, since {counted(task.deaths, 'such process')} died under it:"
        f" {_who(_names(kept))} must finish {counted(held, 'other task')} first"
    )
    return [_cause("runs_alone", text, deaths=task.deaths, workers=_names(kept), running=held)]


def _served_before(state: QueueState, task: Task, worker: Worker) -> list[str]:
    """The queues from which this worker takes something first, because it serves them in strict order."""
    if worker.queue_order != STRICT:
        return []
    earlier = worker.queues_named[: worker.queues_named.index(task.queue)]
    return [shelf.queue for shelf in state.open_to(worker) if shelf.queue in earlier]


def _position(state: QueueState, task: Task, now: Moment, *, moving: bool) -> list[Cause]:
    mine = (rank(task.terms.priority, task.due_at, now.wall), task.id)
    places = [place for place in state.places.shelves() if (place is state.places.suspects) == (task.deaths > 0)]
    before = sum(shelf.before(mine, now.wall) for place in places for shelf in place.of_queue(task.queue))
    figures = state.figures.queues[task.queue]
    rate = figures.done.per_second(now.mono) + figures.failed.per_second(now.mono)
    start = (before + 1) / rate if moving and rate > 0 else None
    queue = plain(task.queue)
    text = f'{_tasks_go(before)} before it in queue "{queue}"' if before else f'it is the next in queue "{queue}"'
    if start is not None:
        text += f"; at the recent rate of {rate:,.1f} a second it starts in about {duration(start)}"
    return [_cause("position", text, queue=task.queue, before=before, start_s=start)]


def _tasks_go(number: int) -> str:
    return f"{count(number)} tasks go" if number != 1 else "1 task goes"


def _names(workers: Sequence[Worker]) -> list[str]:
    return [worker.name for worker in workers]


SHOWN = 3
"""Workers that a text names; the fields have all."""


def _who(names: Sequence[str]) -> str:
    shown = ", ".join(map(plain, names[:SHOWN])) or "no worker"
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


# -- what runs


def _of_running(state: QueueState, task: Task, now: Moment) -> list[Cause]:
    worker = state.leases.workers.get(task.worker or "")
    name = task.worker_name or "a worker that is not known"
    ran = max(0.0, now.wall - (task.started_at or now.wall))
    attempt = task.failures + task.deaths + 1
    text = f"it runs on {plain(name)} for {duration(ran)} (attempt {attempt})"
    causes = [_cause("running", text, worker=task.worker_name, for_s=ran, attempt=attempt)]
    if task.cancel_requested:
        causes.append(
            _cause("cancel_requested", "it is to be cancelled: it will be stopped, and gets no further attempt")
        )
    if worker is not None and not worker.may_reserve(now.mono, state.leases.heartbeat) and not worker.draining:
        silent, left = max(0.0, now.mono - worker.beat_at), max(0.0, worker.expires - now.mono)
        text = f"{plain(name)} has given no sign of life for {duration(silent)}: it runs elsewhere in {duration(left)}"
        causes.append(_cause("worker_silent", text, worker=task.worker_name, silent_s=silent, lease_s=left))
    return causes
