"""The record of a task: what stores see. PURE.

Heaps, lanes, counters and indexes are bookkeeping and live elsewhere (`ready`, `state`); they are rebuilt from records.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache, partial
from operator import attrgetter
from typing import Any, NamedTuple

from taskq.errors import BadArguments
from taskq.queue.retry import DEFAULT_BACKOFF, DEFAULT_FACTOR, DEFAULT_MAX_DELAY, DEFAULT_MAX_RETRIES


class State(enum.IntEnum):
    """Where a task is in its life. The numbers are stored: never renumber."""

    PENDING = 1
    SCHEDULED = 2
    RUNNING = 3
    COMPLETED = 4
    FAILED = 5
    CANCELLED = 6

    @property
    def label(self) -> str:
        """The word that people see: ``pending``, ``running``, …"""
        return self.name.lower()


PENDING, SCHEDULED, RUNNING, COMPLETED, FAILED, CANCELLED = State
"""The members under names of their own: before Python 3.12 it takes as long as a call to find one in its class."""

FINAL = frozenset({COMPLETED, FAILED, CANCELLED})
STATE_BY_LABEL = {state.label: state for state in State}


def state_named(label: str) -> State:
    """The state that people call so. Raises `BadArguments`."""
    try:
        return STATE_BY_LABEL[label]
    except KeyError:
        raise BadArguments(f'there is no state "{label}"', hint="one of " + ", ".join(STATE_BY_LABEL)) from None


_STATES = {int(state): state for state in State}


class TaskError(NamedTuple):
    """Why an attempt, or the task, failed.

    ``kind`` is one of ``error`` (the code raised), ``timeout``, ``cancelled`` (it was stopped), ``died`` (its worker
    process did, and it will run again), ``poisoned`` (that happened too often), ``expired``, ``arguments`` (they do not
    fit the function). ``type`` is the exception's name, ``traceback`` text.
    """

    kind: str
    type: str = ""
    message: str = ""
    traceback: str = ""


class _Terms(NamedTuple):
    type: str
    queue: str = "default"
    priority: int = 0
    max_retries: int = DEFAULT_MAX_RETRIES
    backoff: float = DEFAULT_BACKOFF
    timeout: float | None = None
    # What follows is rarely given: see `Terms.short`, `Terms.more`.
    factor: float = DEFAULT_FACTOR
    max_delay: float = DEFAULT_MAX_DELAY
    jitter: bool = True
    retry_on: tuple[str, ...] | None = None
    never_on: tuple[str, ...] | None = None
    ignore_result: bool = False
    result_ttl: float | None = None
    expires: float | None = None
    expires_by: float | None = None
    unique_in: tuple[str, ...] | None = None
    unique_within: float = 0.0
    unique_raises: bool = False


_USUAL = 6
"""Fields of `Terms` that always travel: the first ones."""
_HANDED = ("retry_on", "never_on", "ignore_result")
"""Fields of `Terms` that the worker heeds."""


class Terms(_Terms):
    """What tasks that are submitted alike have in common; they share one object of it.

    ``priority``: higher first. ``backoff``, ``factor``, ``max_delay``, ``jitter``: see `taskq.queue.retry.retry_delay`.
    ``retry_on``, ``never_on``: names of exception classes, None = as the type's own code says. ``ignore_result``: what
    the task returns is dropped. ``timeout`` (0: no limit, None: that of its queue), ``result_ttl`` (how long the result
    is kept; None: as long as the record): seconds.
    ``expires``, ``expires_by``: the task fails if it has not begun so many seconds after its submit, or by this wall
    time. ``unique_in`` (labels of states; None = not unique), ``unique_within`` (seconds), ``unique_raises``: which
    other tasks were twins of this one when it was submitted, see `taskq.queue.uniqueness`.
    """

    @classmethod
    def of(cls, fields: Sequence[Any]) -> Terms:
        """The terms that these are the `short` form of, unchecked. Raises `TypeError`."""
        if len(fields) < _USUAL:
            raise TypeError(f"terms have at least {_USUAL} fields")
        return cls(*fields)

    @cached_property
    def usual(self) -> tuple[Any, ...]:
        """The fields that have columns of their own in stores."""
        return self[:_USUAL]

    @cached_property
    def expiring(self) -> bool:
        """Whether tasks with these terms expire."""
        return self.expires is not None or self.expires_by is not None

    @cached_property
    def short(self) -> tuple[Any, ...]:
        """The fields but for the rare ones at the end that are as usual: what travels, and what digests are made of."""
        size = len(self)
        while size > _USUAL and self[size - 1] == self._field_defaults[self._fields[size - 1]]:
            size -= 1
        return self[:size]

    @cached_property
    def more(self) -> str | None:
        """The rare fields that are not as usual, as JSON; None when all are."""
        changed = {name: value for name, value in self._unusual.items() if value != self._field_defaults[name]}
        return json.dumps(changed, separators=(",", ":")) if changed else None

    @cached_property
    def rules(self) -> dict[str, Any] | None:
        """What the worker has to heed beyond the usual: see `taskq.service.Handout`."""
        return {
            name: self._unusual[name] for name in _HANDED if self._unusual[name] != self._field_defaults[name]
        } or None

    @property
    def _unusual(self) -> dict[str, Any]:
        return dict(zip(self._fields[_USUAL:], self[_USUAL:], strict=True))


class NewTask(NamedTuple):
    """One task in a submit call: only plain data.

    ``payload``: the encoded arguments, opaque to the manager. ``delay``: seconds from now. ``key``: the caller's own
    idempotency key. ``correlation_id``: copied into logs; made by the submitter. ``at``: instead of a delay, the wall
    time before which it does not run. ``unique``: the value by which twins are known, made by the submitter.
    """

    terms: Terms
    payload: bytes
    delay: float = 0.0
    key: str | None = None
    correlation_id: str = ""
    at: float | None = None
    unique: bytes | None = None


def new_task(
    type: str,
    payload: bytes,
    *,
    delay: float = 0.0,
    key: str | None = None,
    correlation_id: str = "",
    at: float | None = None,
    unique: bytes | None = None,
    **terms: Any,
) -> NewTask:
    """A task on its own: ``terms`` are the fields of `Terms`."""
    return NewTask(Terms(type, **terms), payload, delay, key, correlation_id, at, unique)


def expiry_of(terms: Terms, submitted_at: float) -> float | None:
    """The wall time by which a task with these terms must have begun, None = whenever."""
    return terms.expires_by if terms.expires is None else submitted_at + terms.expires


as_new_task: Callable[[Sequence[Any]], NewTask] = partial(tuple.__new__, NewTask)
"""`NewTask` of its fields in their order, without a look at them: each task that passes is made twice."""


class Task:
    """One accepted task. Times are wall-clock seconds; ids and runs are integers given by the manager.

    ``terms``: what it has in common with others. ``payload`` is None while it rests in the store only. ``client`` is
    the random number of the submitting client (its results feed). ``worker`` is the incarnation that runs it, or ran it
    last; ``worker_name`` is that worker's name for people.
    """

    __slots__ = (
        "cancel_requested",
        "client",
        "correlation_id",
        "deaths",
        "due_at",
        "error",
        "failures",
        "finished_at",
        "id",
        "key",
        "payload",
        "result",
        "run",
        "started_at",
        "state",
        "submitted_at",
        "terms",
        "worker",
        "worker_name",
    )

    def __init__(  # noqa: PLR0913  (a record has as many fields as it has)
        self,
        id: int,
        terms: Terms,
        payload: bytes | None,
        key: str | None,
        correlation_id: str,
        client: int,
        submitted_at: float,
        due_at: float,
        state: State,
        run: int = 0,
        failures: int = 0,
        deaths: int = 0,
        cancel_requested: bool = False,
        worker: str | None = None,
        worker_name: str | None = None,
        started_at: float | None = None,
        finished_at: float | None = None,
        result: bytes | None = None,
        error: TaskError | None = None,
    ) -> None:
        self.id = id
        self.terms = terms
        self.payload = payload
        self.key = key
        self.correlation_id = correlation_id
        self.client = client
        self.submitted_at = submitted_at
        self.due_at = due_at
        self.state = state
        self.run = run
        self.failures = failures
        self.deaths = deaths
        self.cancel_requested = cancel_requested
        self.worker = worker
        self.worker_name = worker_name
        self.started_at = started_at
        self.finished_at = finished_at
        self.result = result
        self.error = error

    @property
    def type(self) -> str:
        """The name of its type."""
        return self.terms.type

    @property
    def queue(self) -> str:
        """The name of its queue."""
        return self.terms.queue

    @property
    def expires_at(self) -> float | None:
        """The wall time by which it must have begun, None = whenever."""
        return expiry_of(self.terms, self.submitted_at)

    def __repr__(self) -> str:
        return f"<Task {self.id} {self.type} {self.state.label} run={self.run}>"


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
        return terms_of(*self[1 : 1 + _USUAL], self.terms_more)

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


_own_fields, _change_fields = _reader(TaskRow._fields[1 + _USUAL :]), _reader(TaskChange._fields)
_row_of: Callable[[Sequence[Any]], TaskRow] = partial(tuple.__new__, TaskRow)
_change_of: Callable[[Sequence[Any]], TaskChange] = partial(tuple.__new__, TaskChange)


@lru_cache(maxsize=4096)
def terms_of(*fields: Any) -> Terms:
    """The terms of these usual fields, and the rare ones as `Terms.more`; one object for all that are equal."""
    *usual, more = fields
    found: dict[str, Any] = {} if more is None else json.loads(more)
    rare: dict[str, Any] = {name: tuple(value) if type(value) is list else value for name, value in found.items()}
    return Terms(*usual, **rare)


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
    task = Task(row.id, row.terms, *row[1 + _USUAL : -1])  # type: ignore[arg-type]  # see the next lines
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
