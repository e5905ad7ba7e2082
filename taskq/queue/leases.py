"""Pools, worker processes and their leases. PURE.

A lease is the right of a worker process to run a task. All leases of one worker process end at the same time, because
one heartbeat of its pool extends them all; so the time is kept once, with the worker. A worker process is known by its
*incarnation*, a random text that is never used again; its *session* rises each time it attaches, so that whatever comes
in late through an older connection is recognised.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

from taskq.errors import StaleRun
from taskq.queue.task import Task

DEAD_KEPT = 10_000
"""How many incarnations that were reported dead are remembered, so that none of them attaches again."""

SILENT_KEPT = 3600.0
"""Seconds that a worker without heartbeats stays in view."""


class Moment(NamedTuple):
    """One instant on both clocks: monotonic seconds for leases, wall-clock seconds for due times."""

    mono: float
    wall: float


@dataclass
class Pool:
    """The parent of worker processes, known by its heartbeats."""

    id: str
    name: str
    host: str
    pid: int
    local: str | None
    beat_at: float


THREADS_UNTOLD = 8
"""Threads of a worker process that an earlier run of the manager knew and that did not come back to say so."""


@dataclass
class Worker:
    """One worker process.

    ``expires``: when its leases end. ``attached``: False for one that an earlier run of the manager knew and that has
    not come back yet. ``stopped``: suspended, as its pool sees it. ``alone``: it is kept for a suspect, or runs one,
    and gets nothing else (`taskq.queue.suspects`). ``spared``: it was given more time since its last heartbeat.
    ``report``: what its pool said of it in the last heartbeat. ``queues_named``: its queues in its order; ``turn``:
    the one that came last, where they take turns. ``announced``: (name, description) of its types.
    ``progress``: (fraction, note) by task, as the task itself said.
    """

    incarnation: str
    pool: str
    name: str
    host: str
    pid: int
    expires: float
    beat_at: float
    session: int = 0
    attached: bool = False
    draining: bool = False
    stopped: bool = False
    alone: bool = False
    spared: bool = False
    threads: int = 0
    queues: frozenset[str] = frozenset()
    queues_named: tuple[str, ...] = ()
    queue_order: str = ""
    turn: str = ""
    types: frozenset[str] = frozenset()
    announced: Sequence[tuple[str, str]] = ()
    running: dict[int, Task] = field(default_factory=dict)
    completed: int = 0
    failed: int = 0
    report: dict[str, Any] = field(default_factory=dict)
    progress: dict[int, tuple[float, str]] = field(default_factory=dict)

    def may_reserve(self, now: float, heartbeat: float) -> bool:
        """Whether tasks may be handed to it: no, when it is leaving, suspended or silent for two heartbeats."""
        return not self.draining and not self.stopped and now - self.beat_at <= 2 * heartbeat

    def under_way(self) -> dict[int, int]:
        """The runs that may have begun, as far as the manager can tell (task: run): those that its pool saw last.

        A pool that is silent itself cannot say what came next. So the oldest others count too, up to the number of
        threads: a task that brings its machine down within a heartbeat must not be taken for one that never began.
        """
        seen = {one[0]: one[1] for one in self.report.get("running", ())}
        began = {task.id: task.run for task in self.running.values() if seen.get(task.id) == task.run}
        if not self.stopped:
            for task in sorted(self.running.values(), key=lambda task: task.run):
                if len(began) >= (self.threads or THREADS_UNTOLD):
                    break
                began[task.id] = task.run
        return began


class Leases:
    """Who is there, and until when each may hold what it has."""

    def __init__(self, lease: float) -> None:
        self.lease = lease
        self.pools: dict[str, Pool] = {}
        self.workers: dict[str, Worker] = {}
        self.offers: dict[str, int] = {}
        self._dead: dict[str, None] = {}

    @property
    def heartbeat(self) -> float:
        """Seconds between two heartbeats."""
        return self.lease / 3

    def expect(self, incarnation: str, pool: str, name: str, host: str, pid: int, now: float) -> Worker:
        """A worker of which only the store knows: it gets a fresh lease to come back in."""
        worker = Worker(incarnation, pool, name, host, pid, now + self.lease, now)
        self.workers[incarnation] = worker
        return worker

    def renew(self, now: float) -> None:
        """All that are known get fresh leases."""
        for worker in self.workers.values():
            worker.expires = now + self.lease
            worker.beat_at = now

    def expected(self) -> bool:
        """Whether some worker of the manager's last run has not come back and was not reported dead."""
        return any(not worker.attached for worker in self.workers.values())

    def attach(self, info: dict[str, Any], now: float) -> Worker:
        """A worker joins, for the first time or again. Raises `StaleRun` when it was reported dead."""
        incarnation = info["incarnation"]
        if incarnation in self._dead:
            raise StaleRun("this worker process was reported dead")
        worker = self.workers.get(incarnation)
        if worker is None:
            pool = info["pool"]["id"]
            worker = self.expect(incarnation, pool, info["name"], info["host"], info["pid"], now)
        self._offer(worker, -1)
        worker.session += 1
        worker.attached = True
        worker.draining = False
        worker.threads = info["threads"]
        worker.queues_named = tuple(info["queues"])
        worker.queues = frozenset(worker.queues_named)
        worker.queue_order = info.get("queue_order") or ""
        worker.types = frozenset(described["name"] for described in info["types"])
        worker.expires = now + self.lease
        worker.beat_at = now
        worker.spared = False
        self._offer(worker, +1)
        return worker

    def _offer(self, worker: Worker, change: int) -> None:
        for name in worker.types:
            self.offers[name] = self.offers.get(name, 0) + change

    def beat(self, info: dict[str, Any], children: Sequence[dict[str, Any]], now: float) -> None:
        """A pool is alive, and so are those of its children that are listed and not stopped."""
        self.pools[info["id"]] = Pool(info["id"], info["name"], info["host"], info["pid"], info["local"], now)
        for child in children:
            worker = self.workers.get(child["incarnation"])
            if worker is None:
                continue
            worker.stopped = child["stopped"]
            worker.draining = worker.draining or child.get("leaving", False)
            worker.report = dict(child)
            if not worker.stopped:
                worker.beat_at = now
                worker.expires = now + self.lease
                worker.spared = False

    def spare(self, now: float) -> None:
        """Nobody could be heard for a while up to now: each lease gets time for one more heartbeat, but only once."""
        for worker in self.workers.values():
            if not worker.spared and worker.expires < now + self.heartbeat:
                worker.spared = True
                worker.expires = now + self.heartbeat

    def session(self, incarnation: str, session: int) -> Worker | None:
        """The worker, if this is its current session."""
        worker = self.workers.get(incarnation)
        return worker if worker is not None and worker.session == session else None

    def remove(self, incarnation: str, *, dead: bool) -> Worker | None:
        """Forget a worker process; a dead one can never attach again."""
        if dead:
            self._dead[incarnation] = None
            while len(self._dead) > DEAD_KEPT:
                del self._dead[next(iter(self._dead))]
        worker = self.workers.pop(incarnation, None)
        if worker is not None:
            self._offer(worker, -1)
        return worker

    def running(self) -> Iterator[Task]:
        """All that is handed out."""
        return (task for worker in self.workers.values() for task in worker.running.values())

    def of_pool(self, pool: str) -> list[Worker]:
        """The worker processes of a pool."""
        return [worker for worker in self.workers.values() if worker.pool == pool]

    def expired(self, now: float) -> Iterator[Worker]:
        """Workers whose leases are over and that still hold something, or have not been heard of for long."""
        for worker in self.workers.values():
            over = worker.expires <= now and (worker.running or not worker.attached)
            if over or worker.expires + SILENT_KEPT <= now:
                yield worker

    def next_expiry(self) -> float:
        """When the next lease ends (monotonic), infinity when nothing is leased."""
        return min((w.expires for w in self.workers.values() if w.running or not w.attached), default=inf)

    def forget_silent_pools(self, now: float) -> None:
        """Drop pools that have no workers and have not been heard of for long."""
        with_workers = {worker.pool for worker in self.workers.values()}
        for pool in list(self.pools.values()):
            if pool.id not in with_workers and now - pool.beat_at > self.lease:
                del self.pools[pool.id]


def owned(tasks: Iterable[tuple[int, int]]) -> dict[int, int]:
    """(task, run) pairs as a mapping."""
    return {int(task): int(run) for task, run in tasks}
