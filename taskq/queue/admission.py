"""Whether what is submitted may come in, and as which task. PURE."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter

from taskq.errors import KeyConflict, QueueFull
from taskq.layout import duration
from taskq.queue.idempotency import content_digest
from taskq.queue.lifecycle import Event, next_state
from taskq.queue.task import CANCELLED, FAILED, Task
from taskq.queue.task_row import TaskRow, from_row
from taskq.queue.terms import NewTask, Terms
from taskq.stores.base import KeyRow

_terms = itemgetter(0)
_AT_ONCE, _LATER = next_state(None, Event.SUBMIT), next_state(None, Event.SUBMIT_LATER)


def kinds(items: Sequence[NewTask]) -> list[Terms]:
    """The terms of these items; those of neighbours that share them once."""
    return [terms for terms, _ in groupby(items, _terms)]


def resolve_keys(
    items: Sequence[NewTask], known: Mapping[str, KeyRow], first: int
) -> tuple[list[int], list[int], list[KeyRow]]:
    """Ids for these items, counted from ``first``; the positions of those that a key has already; the keys to store.

    ``known``: what is known of the keys among them. Raises `KeyConflict`.
    """
    ids = list(range(first, first + len(items)))
    existing: list[int] = []
    keys: dict[str, KeyRow] = {}
    for position, item in enumerate(items):
        if item.key is None:
            continue
        digest = content_digest(item)
        twin = known.get(item.key) or keys.get(item.key)
        if twin is None:
            keys[item.key] = KeyRow(item.key, ids[position], digest)
            continue
        if twin.digest != digest:
            raise KeyConflict(
                f'the key "{item.key}" belongs to task {twin.id}, which has other content; nothing was accepted',
                hint="use another key, or submit exactly the same task",
                details={"key": item.key, "id": twin.id},
            )
        ids[position] = twin.id
        existing.append(position)
    return ids, existing, list(keys.values())


def without(existing: Sequence[int], ids: Sequence[int], items: Sequence[NewTask]) -> list[tuple[int, NewTask]]:
    """Ids and items, but for those at the positions ``existing``."""
    pairs = list(zip(ids, items, strict=True))
    if not existing:
        return pairs
    taken = set(existing)
    return [pair for position, pair in enumerate(pairs) if position not in taken]


def by_queue(fresh: Sequence[tuple[int, NewTask]], terms: Sequence[Terms]) -> Mapping[str, int]:
    """How many of these tasks go to each queue; ``terms``: theirs, see `kinds`."""
    if len(terms) == 1 and fresh:
        return {terms[0].queue: len(fresh)}
    return Counter(item.terms.queue for _, item in fresh)


def full(queue: str, waiting: int, oldest: float | None) -> QueueFull:
    """The error of a queue that may not hold more; ``oldest``: seconds that its first task has waited."""
    age = "" if oldest is None else f", oldest {duration(oldest)}"
    return QueueFull(
        f'queue "{queue}" is full ({waiting:,} pending{age}); not accepted',
        hint="retry later, add workers, or raise --max-pending",
        details={"queue": queue, "pending": waiting},
    )


def record(id: int, item: NewTask, client: int, wall: float) -> Task:
    """The record of a task that was submitted at ``wall`` seconds."""
    terms, payload, delay, key, correlation_id, at, _ = item
    due_at, state = (wall + delay, _LATER) if delay else (wall, _AT_ONCE)
    if at is not None and at > wall:
        due_at, state = at, _LATER
    return Task(id, terms, payload, key, correlation_id, client, wall, due_at, state)


def may_begin_anew(row: TaskRow, wall: float) -> bool:
    """Whether a task may be requeued: it failed or was cancelled, and would not expire at once."""
    expires_at = from_row(row).expires_at
    return row.state in (FAILED, CANCELLED) and (expires_at is None or expires_at > wall)


def afresh(row: TaskRow, run: int, wall: float) -> Task:
    """The record of a task that is over and is to begin anew: with a new budget, as if it had never run."""
    task = from_row(row)
    task.run = run
    task.due_at = wall
    task.failures = task.deaths = 0
    task.cancel_requested = False
    task.worker = task.worker_name = None
    task.started_at = task.finished_at = None
    task.result = task.error = None
    return task
