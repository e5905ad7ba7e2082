"""The verbs of the queue: everything that a client or a worker may call, and nothing else.

`taskq.queue.job_queue.JobQueue` is the implementation; the wire exposes exactly these methods. All arguments and
results are plain data (None, bool, int, float, str, bytes, tuples, dicts with text keys), so that a call means the same
in process and over the wire; lists may arrive as tuples. Times are seconds; "wall" times are seconds since 1970 UTC.
Errors are `taskq.errors`. Whoever adds a verb writes it into ``wire/PROTOCOL.md`` too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from taskq.queue.terms import NewTask
from taskq.shapes import (
    Attached,
    BackedUp,
    BeatReply,
    ChildInfo,
    Evidence,
    Explained,
    Finished,
    Found,
    Hello,
    Outcome,
    PoolInfo,
    PurgedQueue,
    QueueInfo,
    Report,
    Reserved,
    Submitted,
    Types,
    WorkerInfo,
)

PROTOCOL = 3
"""Version of the verbs and of the frames; both sides must have the same."""

MAX_BATCH = 1_000
"""Most items in one call."""
MAX_BATCH_BYTES = 256 * 1024
"""Senders cut their batches at about this size; one larger item travels alone."""
INLINE_RESULT = 4 * 1024
"""Results up to this size travel with the news that the task is finished; larger ones are asked for by id."""
MAX_RESULT = 1024 * 1024
"""Bytes: largest encoded result."""
STRICT, FAIR = "strict", "fair"
"""Orders in which a worker may ask to be served from its queues; without one, priority and age decide over all."""
MAX_WAIT = 20.0
"""Seconds: longest time that a waiting call (`reserve`, `finished`, `wait`) is held by the manager."""


class QueueService(Protocol):
    """What the manager offers. See the module's text for what travels."""

    # -- everybody

    def hello(self) -> Hello:
        """Who the manager is and which store it has."""
        ...

    def types(self) -> Types:
        """The task types that workers announced, with their signatures."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """Figures for the monitor, schema ``taskq.snapshot/1``; its cost does not grow with the number of tasks."""
        ...

    # -- clients

    def submit(self, client: int, seq: int, items: Sequence[NewTask]) -> Submitted:
        """Accept all of these tasks, or none; they are on disk when this returns.

        ``client`` is a random 63-bit number of the caller's, ``seq`` its counter of submit calls: the same call again
        gives the same ids. Raises `QueueFull`, `StorageFull`, `KeyConflict`, `NotUnique`, `PayloadTooLarge`,
        `OutcomeUnknown`, `ShuttingDown`, `BadArguments` (a value out of range).
        """
        ...

    def finished(self, client: int, cursor: int, timeout: float) -> Finished:
        """The next outcomes of this client's tasks after ``cursor`` (0 at first); waits up to ``timeout`` seconds."""
        ...

    def wait(self, ids: Sequence[int], timeout: float) -> Sequence[Outcome]:
        """The outcomes of those of these tasks that are final or unknown; waits until there is at least one.

        With ``timeout`` 0: one outcome for *each* id, also for those that are not final. In a reply of more than 1 MiB
        the later ones come without result and traceback.
        """
        ...

    def result(self, id: int) -> Outcome:
        """The whole outcome of one task, its result at any size. Raises `TaskNotFound`."""
        ...

    def get(self, ids: Sequence[int]) -> Sequence[dict[str, Any] | None]:
        """Records (`taskq.queue.task_row.describe`), None where there is no such task.

        Those that would make the reply longer than about `MAX_BATCH_BYTES` are ``cut``: payload, result and traceback
        are left out. The first one is always whole.
        """
        ...

    def list_tasks(
        self, state: str | None, type: str | None, queue: str | None, limit: int
    ) -> Sequence[dict[str, Any]]:
        """Records, newest first; as in `get` they may be ``cut``."""
        ...

    def find(self, where: str, states: Sequence[str], below: int) -> Found:
        """Some of the records in these states (none = all) for which the conditions hold, newest first, ids under
        ``below`` (0: from the newest on). Payload, result and traceback are left out.

        ``where``: see `taskq.where`; patterns in it are checked, but left for the caller to match. Raises
        `BadArguments`.
        """
        ...

    def cancel(self, ids: Sequence[int]) -> Sequence[str]:
        """Cancel; for each id what it is now: ``cancelled``, ``running`` (asked to stop; it gets no further attempt),
        ``completed`` or ``failed`` (too late), ``unknown``."""
        ...

    def history(self, id: int) -> Sequence[dict[str, Any]]:
        """The last attempts at a task, oldest first: ``run``, ``worker``, ``started_at``, ``ended_at`` (wall; None
        while it is under way), ``outcome``, ``type``, ``message``, ``traceback``, ``death`` (``how``, ``rss``,
        ``stderr``; None if its worker process did not die).

        ``outcome``: see `taskq.queue.history.OUTCOMES`. Raises `TaskNotFound`.
        """
        ...

    def requeue(self, ids: Sequence[int]) -> Sequence[str]:
        """Let failed and cancelled tasks begin anew, with a new budget; their history stays. For each id ``requeued``,
        or, where it was not (also one that would expire at once), its state or ``unknown``. Raises `QueueFull`.
        """
        ...

    def drop(self, ids: Sequence[int]) -> Sequence[str]:
        """Delete records of failed tasks; for each id ``dropped``, or, where it was not, its state or ``unknown``."""
        ...

    def purge(self, states: Sequence[str], older_s: float) -> int:
        """Delete final records that finished at least ``older_s`` seconds ago; gives their number."""
        ...

    # -- queues

    def pause_queue(self, queue: str, by: str) -> QueueInfo:
        """Hand out nothing of this queue until `resume_queue`; what runs goes on. ``by``: who asks (user@host).

        It stays paused when the manager starts again. Of a queue that is paused already nothing changes.
        """
        ...

    def resume_queue(self, queue: str) -> QueueInfo:
        """Hand out again; gives what was in force until now. Raises `QueueNotFound`."""
        ...

    def limit_queue(self, queue: str, running: int | None) -> QueueInfo:
        """At most so many tasks of this queue run at once, over all workers; None: as many as there are threads."""
        ...

    def purge_queue(self, queue: str, below: int) -> PurgedQueue:
        """Cancel tasks of this queue that wait, for about a second; repeat it with the ``below`` of the reply.

        0 at first: all that were submitted until now. Raises `QueueNotFound`.
        """
        ...

    def backup(self, path: str, token: int) -> BackedUp:
        """Write a whole copy of the store into a new file of the manager's machine, for about a second; repeat it with
        the same ``token`` (random) until it is done. Raises `ConfigError` (the file is there already, or cannot be
        made; the store is in memory) and `Busy` (another one is under way).
        """
        ...

    def explain(self, id: int) -> Explained:
        """Why a task does not run now, and what must happen first. Raises `TaskNotFound`."""
        ...

    # -- pools (the parent of worker processes)

    def beat(self, pool: PoolInfo, children: Sequence[ChildInfo]) -> BeatReply:
        """A heartbeat: the listed, not stopped children are alive; their leases go on."""
        ...

    def child_died(
        self,
        pool: str,
        incarnation: str,
        how: str,
        started: Sequence[tuple[int, int]],
        counts: bool,
        evidence: Evidence,
        outcomes: Sequence[Report] = (),
    ) -> None:
        """A worker process is gone for certain. ``how``: for people (``signal 11``, ``exit code 1``).

        ``started``: (task, run) of what it had begun; with ``counts`` these count a death, else they just go back. The
        ``evidence`` is kept in the history of those that count. ``outcomes``: of runs for whose sake it was killed.
        """
        ...

    def to_cancel(self, pool: str) -> Sequence[tuple[str, int]]:
        """(incarnation, run) of all that this pool's worker processes hold and that is to be cancelled."""
        ...

    def leave(self, pool: str) -> None:
        """The pool is over; all its children have left or were reported."""
        ...

    # -- worker processes

    def attach(self, worker: WorkerInfo, held: Sequence[tuple[int, int]]) -> Attached:
        """Join, first or again: ends the incarnation's former session. ``held``: exactly the (task, run) it has now,
        finished but unreported ones included; leases of it that are not in there go back.

        Raises `StaleRun` when the incarnation was reported dead.
        """
        ...

    def reserve(
        self, incarnation: str, session: int, slots: int, extra: int, fast: Sequence[str], timeout: float
    ) -> Reserved:
        """Up to ``slots`` tasks of any type that this worker offers, and up to ``extra`` more of the ``fast`` types.

        Waits up to ``timeout`` seconds for the first one. Their payloads are at most `MAX_BATCH_BYTES` in all (a larger
        one travels alone).
        """
        ...

    def report(self, incarnation: str, session: int, reports: Sequence[Report]) -> Sequence[int]:
        """Outcomes of runs; on disk when this returns. Gives the positions of those that were refused as stale.

        Raises `StaleRun` when the session is over.
        """
        ...

    def drain(self, incarnation: str, session: int) -> None:
        """Hand out nothing more to this worker; its waiting `reserve` returns at once."""
        ...

    def detach(self, incarnation: str, session: int) -> None:
        """An orderly goodbye: the worker holds nothing any more."""
        ...


class Connection(QueueService, Protocol):
    """A queue behind a connection, such as `taskq.wire.client.RemoteQueue`."""

    def close(self) -> None:
        """End it for good, from any thread; a call under way raises `ManagerUnavailable`."""
        ...


VERBS = tuple(name for name in vars(QueueService) if not name.startswith("_"))
"""The names of all verbs: what the wire exposes."""
