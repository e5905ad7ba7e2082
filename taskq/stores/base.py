"""What a store is: the place where records are kept, at the level of records.

The manager's memory is the authority while it runs; the store is the record that the next start believes. A store
knows nothing of states' meaning, leases or limits: it writes what it is given in one transaction, and gives it back.

Rules that every store keeps (one contract suite holds them):

* `Store.write` is all or nothing, and durable when it returns (as far as the store is durable at all).
* Every method may be called from any thread; the store serialises them itself. A read never sees half a batch.
* Rows are immutable once handed over; a store may keep them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from taskq.queue.task import State
from taskq.queue.task_row import TaskChange, TaskRow

INLINE_PAYLOAD = 64
"""Bytes: payloads up to this size are loaded with their task at start; larger ones rest until it is handed out."""

KEEP_ATTEMPTS = 10
"""Attempts of a task that are kept, the newest ones."""

KEEP_CALLS = 24 * 3600.0
"""Seconds that a submit call, and the key of a purged task, stay known."""


class CallRow(NamedTuple):
    """One submit call: what makes its repetition give the same ids. ``size``: number of tasks; ``at``: wall seconds of
    the clock that deletions go by.
    """

    client: int
    seq: int
    first_id: int
    size: int
    digest: bytes
    at: float


class KeyRow(NamedTuple):
    """A caller's own key, and the task it stands for. ``digest``: content of that submit."""

    key: str
    id: int
    digest: bytes


class UniqueRow(NamedTuple):
    """What stands for a task whose submit was unique, or (``twin``) a repetition that got that task instead.

    ``value``: as the submitter made it. ``at``: wall seconds of the submit. ``until``: end of the window in which the
    task counts whatever became of it, None without one; of a repetition, whose ``id`` is not used, how long it is kept.
    """

    id: int
    value: bytes
    at: float
    until: float | None
    twin: int | None


class ResultEnd(NamedTuple):
    """Until when the result of a task is kept, where that is less long than its record; ``at``: wall seconds."""

    id: int
    at: float


class WorkerRow(NamedTuple):
    """A worker process that has joined and not left: what a restarted manager waits for."""

    incarnation: str
    pool: str
    name: str
    host: str
    pid: int


class TypeRow(NamedTuple):
    """A task type as workers announced it. ``info``: JSON text (see ``taskq.shapes.TypeInfo``)."""

    name: str
    info: str


class QueueRow(NamedTuple):
    """What people have laid down for a queue. ``paused_at``: wall seconds; ``max_running``: its limit; None: not so."""

    name: str
    paused_by: str | None = None
    paused_at: float | None = None
    max_running: int | None = None


class AttemptRow(NamedTuple):
    """An attempt at a task that did not complete it; see `taskq.queue.history`.

    Times are wall seconds. ``death``: JSON text, what is known of the end of the worker process, if that was the end.
    """

    id: int
    run: int
    worker: str | None
    started_at: float | None
    ended_at: float
    outcome: str
    type: str
    message: str
    traceback: str
    death: str | None


@dataclass
class Batch:
    """Everything that one transaction writes.

    A task is in ``new`` when the store does not have it yet, else in ``changed``, never in both.
    ``next_id`` and ``totals`` are written with each batch.
    """

    new: list[TaskRow] = field(default_factory=list)
    changed: list[TaskChange] = field(default_factory=list)
    calls: list[CallRow] = field(default_factory=list)
    keys: list[KeyRow] = field(default_factory=list)
    types: list[TypeRow] = field(default_factory=list)
    joined: list[WorkerRow] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    queues: list[QueueRow] = field(default_factory=list)
    attempts: list[AttemptRow] = field(default_factory=list)
    result_ends: list[ResultEnd] = field(default_factory=list)
    next_id: int = 1
    totals: dict[str, int] = field(default_factory=dict)
    uniques: list[UniqueRow] = field(default_factory=list)


@dataclass(frozen=True)
class Opened:
    """What a store knows when it is opened.

    ``epoch`` was raised by one; that is on disk when `Store.open` returns. ``live`` counts the records that are not
    final; ``final`` counts the others by state. ``last_record_at``, ``last_call_at``: times of the
    newest record there is and, by the calls' own clock, of the newest submit call or purge of a key.
    """

    store_id: int
    epoch: int
    next_id: int
    totals: dict[str, int]
    live: int
    final: dict[State, int]
    types: list[TypeRow]
    workers: list[WorkerRow]
    queues: list[QueueRow] = field(default_factory=list)
    last_record_at: float | None = None
    last_call_at: float | None = None
    notes: list[str] = field(default_factory=list)
    """What people should know of how it was found."""


Take = Callable[[Opened, Iterator[TaskRow]], None]
"""Is given all records that are not final, by rising id, with payloads of up to `INLINE_PAYLOAD` bytes (else None).

They are read while it takes them, so that a million rows cost no second copy in memory. It must not call the store.
"""


def nothing(opened: Opened, rows: Iterator[TaskRow]) -> None:
    """A `Take` that leaves all records where they are."""


class Store(Protocol):
    """Where records are kept."""

    kind: str
    """``memory`` or ``sqlite``."""
    durable: bool
    """Whether what was written outlives the process."""

    @property
    def strained(self) -> bool:
        """Whether the disk was full, so that what was kept back for the outcomes of accepted tasks is in use."""
        ...

    def open(self, take: Take = nothing) -> Opened:
        """Take the store for this process and raise its epoch.

        Before anything is changed, ``take`` is called with what is returned later and with the records. Raises what it
        raises, `StoreLocked` when another process has the store, `StoreDamaged` when it is damaged or its newest
        commits are lost (its files are left as they are), `ConfigError` when its folder cannot be written or it was
        made by a newer taskq.
        """
        ...

    def write(self, batch: Batch) -> None:
        """Write a batch in one transaction; it is on disk when this returns.

        Raises `StoreFailed` when that is not certain; then the store takes no further writes.
        """
        ...

    def has_space(self) -> bool:
        """Whether there is room for new tasks (cheap: asked about once a second).

        Raises `StoreFailed` when the files are not this store's any more.
        """
        ...

    def payloads(self, ids: Sequence[int]) -> dict[int, bytes]:
        """The payloads of these tasks, by id; unknown ids are left out."""
        ...

    def get(self, ids: Sequence[int]) -> dict[int, TaskRow]:
        """The whole records, payload and result included, by id; unknown ids are left out."""
        ...

    def slim(self, ids: Sequence[int]) -> dict[int, TaskRow]:
        """The records without payload and result, by id; unknown ids are left out."""
        ...

    def select(
        self, *, states: Iterable[State] = (), type: str | None = None, queue: str | None = None, limit: int = 50
    ) -> list[TaskRow]:
        """Whole records, newest (highest id) first; no states = all."""
        ...

    def scan(self, states: Iterable[State], below: int, limit: int) -> tuple[list[TaskRow], int]:
        """Up to ``limit`` records without payload and result, newest first, of ids under ``below`` (0: from the newest
        on); and where to go on, 0 at the end. No states = all. Looks at a bounded part, so that nobody waits long.
        """
        ...

    def attempts(self, id: int) -> list[AttemptRow]:
        """The last `KEEP_ATTEMPTS` attempts that were written of this task, oldest first."""
        ...

    def last_seq(self, client: int) -> int:
        """The highest sequence number of this client's stored calls, 0 if there is none."""
        ...

    def find_call(self, client: int, seq: int) -> CallRow | None:
        """The call that was stored under these numbers."""
        ...

    def find_keys(self, keys: Sequence[str]) -> dict[str, KeyRow]:
        """Which of these keys are known, and for which task."""
        ...

    def uniques_of(self, ids: Sequence[int]) -> list[UniqueRow]:
        """What stands for these tasks, whatever their state; repetitions are left out."""
        ...

    def uniques(self, now: float) -> list[UniqueRow]:
        """By rising id, what stands for tasks that are not final, or whose window goes on; no repetitions."""
        ...

    def twins(self, ids: Sequence[int]) -> dict[int, int]:
        """Which of these unused ids belong to repetitions, and the tasks that they got instead."""
        ...

    def purge(self, states: Iterable[State], finished_before: float, limit: int, now: float) -> dict[State, int]:
        """Delete up to ``limit`` final records of these states that finished before then; their keys expire 24 h later,
        their unique values with their windows.

        Gives the number deleted by state, which may be less than there is; empty when nothing is left to delete.
        Final states only.
        """
        ...

    def delete(self, ids: Sequence[int], states: Iterable[State], now: float) -> list[int]:
        """Delete those of these records that are in one of these (final) states; gives their ids. As in `purge` their
        keys expire 24 h later.
        """
        ...

    def forget_results(self, now: float, limit: int) -> int:
        """Delete up to ``limit`` results whose `ResultEnd` has come, not their records; gives how many it looked at."""
        ...

    def prune(self, now: float, calls: float) -> bool:
        """Forget calls older than 24 h, and keys and unique values whose time is over, a piece; gives whether there may
        be more. ``calls``: the time that calls and keys go by.
        """
        ...

    def shrink(self) -> bool:
        """Give room that deleted records had back to the disk, a piece; gives whether there may be more."""
        ...

    def backup(self, target: Path, progress: Callable[[int, int], None]) -> None:
        """Write a whole copy of the store, as it is at the end, into a new file; other verbs go on meanwhile.

        ``progress(done, all)`` is told the bytes; what it raises ends the copy. Raises `ConfigError` where the file
        cannot be made or is there already, or the store cannot be copied.
        """
        ...

    def close(self) -> None:
        """Let go of files and locks; safe to call twice.

        Raises `StoreFailed`, when it has done so, where the files are not this store's any more.
        """
        ...
