"""The record of a task, with all that changes in its life. PURE.

Heaps, lanes, counters and indexes are bookkeeping and live elsewhere (`ready`, `state`); they are rebuilt from records.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from taskq.errors import BadArguments
from taskq.queue.terms import Terms, expiry_of


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
