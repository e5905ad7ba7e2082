"""The shapes of what verbs take and give: plain data, the same in process and over the wire (see `taskq.service`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict


class Hello(TypedDict):
    """What a manager says of itself."""

    name: str
    version: str
    store_id: int
    epoch: int
    durable: bool
    pid: int
    started_at: float
    max_payload: int


class TypeInfo(TypedDict):
    """A task type as its worker announced it.

    ``parameters``: one ``(name, kind, required)`` each; kind is the number of `inspect.Parameter.kind`. The other
    fields are the defaults of the decorator; ``more``: as `taskq.queue.terms.Terms.more`; ``retry_on``, ``never_on``:
    names of exception classes, None = not said. ``workers``: how many live worker processes offer it now (set by the
    manager).
    """

    name: str
    parameters: Sequence[tuple[str, int, bool]]
    queue: str
    max_retries: int
    backoff: float
    timeout: float | None
    more: str | None
    retry_on: Sequence[str] | None
    never_on: Sequence[str] | None
    workers: int


class Types(TypedDict):
    """All types ever announced to this store. ``ever_joined``: whether any worker ever was."""

    types: Sequence[TypeInfo]
    ever_joined: bool


class Submitted(NamedTuple):
    """Reply to `submit`: one id for each item, in order; ``existing``: positions of those that were there already, by
    their keys or as unique twins."""

    ids: Sequence[int]
    existing: Sequence[int]


class Outcome(NamedTuple):
    """News of a task. ``state``: its label, or ``unknown`` where there is no such task.

    ``result``: encoded; None when it is larger than `taskq.service.INLINE_RESULT` or has a time of its own (ask
    `result`), or there is none (any more). ``error``: (kind, type, message, traceback) of a failed task. ``failures``,
    ``deaths``, ``worker``: as in the record.
    """

    id: int
    state: str
    result: bytes | None
    error: tuple[str, str, str, str] | None
    failures: int
    deaths: int
    worker: str | None


class Found(NamedTuple):
    """Reply to `find`. ``below``: the next call goes on with it; 0: that was all."""

    records: Sequence[dict[str, Any]]
    below: int


class Finished(NamedTuple):
    """Reply to `finished`. ``lagged``: some news was dropped, or the feed is new; ask by id for what is outstanding."""

    cursor: int
    lagged: bool
    outcomes: Sequence[Outcome]


class Handout(NamedTuple):
    """One task for a worker. ``attempt`` counts from 1 (failures + deaths + 1). ``timeout``: seconds, None = none.

    ``rules``: what it is to be run by beyond the usual, None = nothing: ``retry_on`` and ``never_on`` (names of
    exception classes, which hold instead of those in the type's code), ``ignore_result`` (true: report nil as result).
    """

    id: int
    run: int
    type: str
    payload: bytes
    queue: str
    attempt: int
    timeout: float | None
    correlation_id: str
    submitted_at: float
    rules: Mapping[str, Any] | None = None


class Reserved(NamedTuple):
    """Reply to `reserve`. ``closed``: the session is over (re-attached elsewhere, drained, reported dead)."""

    tasks: Sequence[Handout]
    closed: bool


class QueueInfo(TypedDict):
    """What people have laid down for a queue. ``paused_at``: wall seconds, None: it is not paused; ``paused_by``: who
    did that (user@host). ``limit``: most of its tasks that run at once, None: no limit."""

    name: str
    paused_at: float | None
    paused_by: str | None
    limit: int | None


class PurgedQueue(NamedTuple):
    """Reply to `purge_queue`: how many tasks were cancelled. Those with ids under ``below`` were meant; there may be
    ``more`` of them."""

    cancelled: int
    below: int
    more: bool


class BackedUp(NamedTuple):
    """Reply to `backup`: whether the copy is whole and in its place; else ``copied`` of ``size`` bytes are."""

    done: bool
    copied: int
    size: int


class Explained(TypedDict):
    """Reply to `explain`. ``causes``: maps with ``code``, ``text`` (for people) and more by code, the first to be cured
    first; see `taskq.queue.explain` for all codes."""

    id: int
    type: str
    queue: str
    state: str
    causes: Sequence[dict[str, Any]]


class PoolInfo(TypedDict):
    """Who a pool is. ``id`` is random and made by the pool; ``local``: the id of the manager run that started it."""

    id: str
    name: str
    host: str
    pid: int
    local: str | None


class ChildInfo(TypedDict):
    """One live worker process in a heartbeat. ``stopped``: it is suspended, so that its leases are not extended.
    ``leaving``: it is to get no more tasks.

    ``running``: (task id, run, type, seconds since it started) of each busy slot.
    """

    incarnation: str
    pid: int
    stopped: bool
    leaving: bool
    cpu_percent: float
    rss_bytes: int
    running: Sequence[tuple[int, int, str, float]]


class Evidence(TypedDict, total=False):
    """What a pool knows of the end of a worker process.

    ``rss``: (seconds before its end, resident bytes) in its last minute, oldest first. ``stderr``: the last lines that
    it wrote there. ``crash``: the stack of the thread that a fatal signal hit.
    """

    rss: Sequence[tuple[float, int]]
    stderr: str
    crash: str


class BeatReply(TypedDict):
    """``drain``: deliver and leave. ``interval``: seconds until the next heartbeat. ``store_id``: as in `Hello`."""

    drain: bool
    interval: float
    store_id: int
    epoch: int


class WorkerInfo(TypedDict):
    """What a worker process says when it attaches. ``queues``: those it serves, empty = all.

    ``queue_order``: `taskq.service.STRICT` (the order of ``queues``), `FAIR` or empty; it may be missing.
    """

    incarnation: str
    pool: PoolInfo
    name: str
    host: str
    pid: int
    threads: int
    queues: Sequence[str]
    queue_order: str
    types: Sequence[TypeInfo]


class Attached(TypedDict):
    """Reply to `attach`. ``session`` goes along with `reserve` and `report`. ``lost``: those of the runs that were sent
    along and are no longer this worker's: their outcomes will be refused."""

    session: int
    store_id: int
    epoch: int
    lost: Sequence[tuple[int, int]]


# What a worker reports, positional; the first element says what it is.
ACK, NACK, GIVE_BACK, SNOOZE, PROGRESS = 0, 1, 2, 3, 4
Report = Sequence[Any]
"""One of:

``(ACK, id, run, result, run_s)``: done; ``result`` encoded.
``(NACK, id, run, error, delay, run_s)``: failed; ``error`` = (kind, type, message, traceback), of the kind
``cancelled`` when it was interrupted because it was asked to stop; ``delay`` = None for the task's own backoff, a
number of seconds for a given one, -1 for no further attempt.
``(GIVE_BACK, id, run)``: never started here.
``(SNOOZE, id, run, delay)``: again in ``delay`` seconds, no attempt used.
``(PROGRESS, id, run, fraction, note)``: how far it is.
"""
