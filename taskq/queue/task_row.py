"""A task as stores write and read it, and as clients see it: copies of a record that change no more. PURE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

from taskq.queue.task import State, Task, TaskError
from taskq.queue.terms import USUAL, Terms, expiry_of, terms_of

_STATES = {int(state): state for state in State}


class TaskRow(NamedTuple):
    """A task as stores write and read it: the record's fields in one fixed order, immutable once copied.

    ``payload`` is None in a row that updates a stored record (the payload never changes) and in rows that were read
    without it. ``terms_more``: see `Terms.more`. ``error`` is a plain tuple (kind, type, message, traceback).
    """

    id: int
    type: str
    queue: str
    priority: int
    max_retries: int
    backoff: float
    timeout: float | None
    payload: bytes | None
    key: str | None
    correlation_id: str
    client: int
    submitted_at: float
    due_at: float
    state: int
    run: int
    failures: int
    deaths: int
    cancel_requested: bool
    worker: str | None
    worker_name: str | None
    started_at: float | None
    finished_at: float | None
    result: bytes | None
    error: tuple[str, str, str, str] | None
    terms_more: str | None

    @property
    def terms(self) -> Terms:
        """What it has in common with others."""
        return terms_of(*self[1 : 1 + USUAL], self.terms_more)

    def result_end(self) -> float | None:
        """Wall-clock seconds until which the result is kept; None: as long as the record."""
        if self.terms_more is None or self.finished_at is None or self.terms.result_ttl is None:
            return None
        return self.finished_at + self.terms.result_ttl

    def at(self, wall: float) -> TaskRow:
        """The row as it is to be shown at this time: without a result whose time is over."""
        end = self.result_end()
        return self if end is None or wall < end else self._replace(result=None)

    def change(self) -> TaskChange:
        """The part of it that may change."""
        return TaskChange._make((self.id, *self[-len(TaskChange._fields) : -1]))


class TaskChange(NamedTuple):
    """What may have changed of a stored task: the row's fields from `due_at` to `error`, copied."""

    id: int
    due_at: float
    state: int
    run: int
    failures: int
    deaths: int
    cancel_requested: bool
    worker: str | None
    worker_name: str | None
    started_at: float | None
    finished_at: float | None
    result: bytes | None
    error: tuple[str, str, str, str] | None


def _reader(fields: Sequence[str]) -> Callable[[Task], tuple[Any, ...]]:
    """Reads these fields of a row from a record, all at once: each task that passes is read twice."""
    places = {"state": "state._value_", "terms_more": "terms.more"}
    return attrgetter(*(places.get(name, name) for name in fields))


_own_fields, _change_fields = _reader(TaskRow._fields[1 + USUAL :]), _reader(TaskChange._fields)
_row_of: Callable[[Sequence[Any]], TaskRow] = partial(tuple.__new__, TaskRow)
_change_of: Callable[[Sequence[Any]], TaskChange] = partial(tuple.__new__, TaskChange)


def to_row(task: Task) -> TaskRow:
    """Copy a record; call it under the lock that guards the record."""
    return to_rows((task,))[0]


def to_rows(tasks: Iterable[Task]) -> list[TaskRow]:
    """Copy records for a store; call it under the lock that guards them."""
    return [_row_of((task.id, *task.terms.usual, *_own_fields(task))) for task in tasks]


def to_changes(tasks: Iterable[Task]) -> list[TaskChange]:
    """Copy what may have changed of records since they were stored; call it under the lock that guards them."""
    return [_change_of(_change_fields(task)) for task in tasks]


def from_row(row: TaskRow) -> Task:
    """The record that a store gave back."""
    task = Task(row.id, row.terms, *row[1 + USUAL : -1])  # type: ignore[arg-type]  # see the next lines
    task.state = _STATES[row.state]
    task.cancel_requested = bool(row.cancel_requested)
    if row.error is not None:
        task.error = TaskError(*row.error)
    return task


def describe(row: TaskRow) -> dict[str, Any]:
    """A row as plain data for clients (``payload`` and ``result`` stay encoded, states become words)."""
    record: dict[str, Any] = {**row._asdict(), **row.terms._asdict()}
    del record["terms_more"]
    record["state"] = State(row.state).label
    record["cancel_requested"] = bool(row.cancel_requested)
    record["error"] = None if row.error is None else TaskError(*row.error)._asdict()
    record["cut"] = False
    record["expires_at"] = expiry_of(row.terms, row.submitted_at)
    return record


def slim(row: TaskRow) -> dict[str, Any]:
    """What `describe` gives, without payload, result and traceback; the message is whole."""
    error = None if row.error is None else (*row.error[:3], "")
    return {**describe(row._replace(payload=None, result=None, error=error)), "cut": True}


SHORT_MESSAGE = 200
"""Characters of an error's message that are left in a record that is `cut`."""


def cut(row: TaskRow) -> dict[str, Any]:
    """What `describe` gives, without what may be large: payload, result, traceback, the end of a long message."""
    error = None if row.error is None else (*row.error[:2], row.error[2][:SHORT_MESSAGE], "")
    return {**describe(row._replace(payload=None, result=None, error=error)), "cut": True}
