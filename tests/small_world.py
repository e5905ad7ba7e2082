"""A small world around the real queue with a real SQLite file: clients, pools and workers in one thread under a clock
that stands still until it is told to move, and a nemesis. Cheap, so that a test can afford many of them.

Seeded: the same seed does the same again. What happens is written into a history (`history`), and when the world ends,
everything mended, `World.violations` holds it against the store. The simulation (``tests/sim``) has the real client and
worker too, and a network; this has only the queue's own verbs, each of which may be lost on its way or on its way back.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from checker import STORM, Violation, check, read_sqlite
from history import HistoryList
from observed import RUNS_PER_EPOCH

from taskq.clock import FakeClock
from taskq.config import QueueSettings
from taskq.errors import StaleRun, TaskqError
from taskq.queue.job_queue import JobQueue
from taskq.queue.terms import NewTask, new_task
from taskq.shapes import ACK, GIVE_BACK, NACK, Report
from taskq.stores.sqlite import SqliteStore

LEASE = 15.0
DEADLY = b" kills its worker"
"""At the end of a payload: the task does so, whenever it runs."""
SILENCE = LEASE - 2 * LEASE / 3
"""Seconds that a lease lasts at least when its pool falls silent: the last heartbeat is not older than two beats."""
SLOTS = 2
BACKOFF = 8.0
LIMIT = LEASE + 5 * BACKOFF + 60.0
"""Seconds within which everything is at its end after the last fault: also a task that then uses all its attempts."""

T = TypeVar("T")


class Lost(Exception):
    """A request or its reply got lost, nobody knows which."""


@dataclass
class Held:
    """A run at a worker: got, then started, then over with a report that the manager has not taken yet."""

    task: int
    run: int
    at: float
    deadly: bool
    started: bool = False
    report: Report | None = None


@dataclass
class Worker:
    """A worker process. ``silent``: until when its manager may have heard nothing of it."""

    name: str
    session: int = 0
    attached: bool = False
    paused_until: float = 0.0
    silent: float = -1.0
    held: dict[int, Held] = field(default_factory=dict)


@dataclass
class Pool:
    """The parent of worker processes. ``deaths``: those that it has not yet told of."""

    name: str
    workers: list[Worker] = field(default_factory=list)
    cut_until: float = 0.0
    beat_at: float = -1.0
    deaths: list[Worker] = field(default_factory=list)


@dataclass
class Call:
    """A submit call that has no answer yet."""

    client: int
    seq: int
    items: list[NewTask]


class World:
    """Everything; `live` lets it go on. ``calm``: one worker with one slot, and nothing goes wrong."""

    def __init__(self, folder: Path, seed: int, *, calm: bool = False) -> None:
        self.rng = random.Random(seed)
        self.calm = calm
        self.clock = FakeClock()
        self.history = HistoryList("world", self.clock.monotonic)
        self.path = folder / "store.sqlite"
        self.made = 0
        self.seqs = dict.fromkeys((101, 102), 0)
        self.open_calls: list[Call] = []
        self.ids: list[int] = []
        self.keys: dict[str, NewTask] = {}
        self.pools: list[Pool] = []
        self.faulty = not calm
        self.jumped = self.latest = 0.0
        self.start_manager()
        for size in (1,) if calm else (2, 2):
            self.add_pool(size)

    # -- the manager

    def start_manager(self) -> None:
        """On what the last one has left."""
        self.store = SqliteStore(self.path, reserve=0, free_mark=0)
        self.queue = JobQueue(self.store, self.clock, QueueSettings(lease=LEASE, keep_completed=1e9))
        self.queue.open()

    def crash(self) -> None:
        """The manager is killed, and started again soon."""
        self.history.fault("manager killed")
        self.store.close()  # what it was told to write is written; what the queue still had in mind is not
        self.clock.advance(self.rng.choice([0.0, 0.5, 2.0]))
        self.start_manager()
        for worker in self.workers():
            worker.attached = False

    def send(self, call: Callable[[], T]) -> T:
        """A call over a network that may lose it. Raises `Lost` and what the call raises."""
        fate = self.rng.random() if self.faulty else 1.0
        if fate < 0.03:
            raise Lost
        reply = call()
        if fate < 0.06:
            self.lost(reply)
            raise Lost
        return reply

    def lost(self, reply: object) -> None:
        """Who makes histories of real processes cannot know it: what a lost reply handed out may count as a death."""
        handed = [(task.id, task.run) for task in getattr(reply, "tasks", ())]
        if handed:
            self.history.fault("lost reply", deaths=handed)

    # -- clients

    def submit(self) -> None:
        """Something new, or something that has a key already, perhaps with other content."""
        client = self.rng.choice(sorted(self.seqs))
        self.seqs[client] += 1
        items = [self.item() for _ in range(self.rng.choice([1, 1, 2, 4]))]
        self.call(Call(client, self.seqs[client], items))

    def item(self) -> NewTask:
        """A task whose payload is unlike all others."""
        self.made += 1
        payload = b"%d" % self.made + bytes(self.rng.choice([0, 0, 100, 2_000]))
        if self.calm:
            return new_task("x", payload, priority=self.rng.choice([0, 0, 1]))
        if self.rng.random() < 0.04:
            payload += DEADLY
        roll = self.rng.random()
        if roll < 0.1 and self.keys:
            known = self.keys[self.rng.choice(sorted(self.keys))]
            return known if self.rng.random() < 0.8 else known._replace(payload=payload)
        delay = self.rng.choice([0.0, 0.0, 0.0, 3.0])
        item = new_task("x", payload, delay=delay, max_retries=self.rng.choice([0, 2, 4]), backoff=BACKOFF, factor=1.0)
        if roll < 0.3:
            item = item._replace(key=f"k{self.made}")
            self.keys[f"k{self.made}"] = item
        return item

    def call(self, call: Call) -> None:
        """One try of a submit call."""
        number = self.history.submit(call.client, call.seq, [(i.terms.type, i.payload, i.key) for i in call.items])
        try:
            reply = self.send(lambda: self.queue.submit(call.client, call.seq, call.items))
        except Lost:
            self.history.unknown(number)
            self.open_calls.append(call)
        except TaskqError as error:
            self.history.refused(number, error.code)
        else:
            self.history.ok(number, ids=list(reply.ids), existing=list(reply.existing))
            self.ids += reply.ids
            if self.faulty and self.rng.random() < 0.1:  # a client that died right then, and asks again
                self.open_calls.append(call)

    def try_again(self) -> None:
        """A call without an answer is made once more."""
        if self.open_calls:
            self.call(self.open_calls.pop(self.rng.randrange(len(self.open_calls))))

    def ask(self, verb: str, ids: list[int], call: Callable[[], Iterable[str]]) -> None:
        """A call about records."""
        number = self.history.call(verb, ids=ids)
        try:
            self.history.ok(number, labels=list(self.send(call)))
        except Lost:
            self.history.unknown(number)

    def cancel(self) -> None:
        """A task that is under way, or over."""
        if self.ids:
            ids = [self.rng.choice(self.ids[-12:])]
            self.ask("cancel", ids, lambda: self.queue.cancel(ids))

    def requeue_or_drop(self) -> None:
        """A task that has failed."""
        failed = [int(row["id"]) for row in self.queue.list_tasks("failed", None, None, 5)]
        if failed:
            ids = [self.rng.choice(failed)]
            verb = self.rng.choice(["requeue", "drop"])
            self.ask(verb, ids, lambda: getattr(self.queue, verb)(ids))

    def purge(self) -> None:
        """All that is completed for some time, and the pieces that the cleaner deletes."""
        before = self.clock.wall() - 5.0
        rows = self.queue.list_tasks("completed", None, None, 1_000)
        ids = [int(row["id"]) for row in rows if row["finished_at"] < before]

        def purge() -> list[str]:
            self.queue.purge(["completed"], 5.0)
            return ["purged"] * len(ids)

        self.ask("purge", ids, purge)
        self.queue.clean()

    # -- pools and workers

    def workers(self) -> list[Worker]:
        """All that run."""
        return [worker for pool in self.pools for worker in pool.workers]

    def add_pool(self, size: int) -> None:
        """Another pool."""
        self.made += 1
        self.pools.append(Pool(f"pool{self.made}"))
        for _ in range(size):
            self.spawn(self.pools[-1])

    def spawn(self, pool: Pool) -> None:
        """Another worker process of a pool."""
        self.made += 1
        pool.workers.append(Worker(f"worker{self.made}"))

    def info(self, pool: Pool) -> Any:
        """What a pool says of itself."""
        return {"id": pool.name, "name": pool.name, "host": "h", "pid": 1, "local": None}

    def beat(self, pool: Pool) -> None:
        """A heartbeat; with it come deaths, and what is to be cancelled."""
        now = self.clock.monotonic()
        report = {"pid": 2, "leaving": False, "cpu_percent": 0.0, "rss_bytes": 0, "running": ()}
        children: list[Any] = [
            {**report, "incarnation": worker.name, "stopped": worker.paused_until > now} for worker in pool.workers
        ]
        try:
            self.send(lambda: self.queue.beat(self.info(pool), children))
            pool.beat_at = now
            while pool.deaths:
                self.tell_death(pool, pool.deaths[0])
                del pool.deaths[0]
            stopping = {run for _, run in self.send(lambda: self.queue.to_cancel(pool.name))}
        except Lost:
            pool.beat_at = -1.0  # with the next step again
            return
        for worker in pool.workers:
            for held in worker.held.values():
                if held.run in stopping and held.started and held.report is None:
                    self.history.fail(held.task, held.run, worker.name)
                    held.report = (NACK, held.task, held.run, ("cancelled", "", "", ""), None, 0.1)

    def tell_death(self, pool: Pool, worker: Worker) -> None:
        """What had started when a worker process died."""
        started = [held for held in worker.held.values() if held.started and held.report is None]
        epoch = self.queue.hello()["epoch"]
        for held in started:  # the manager can but count it, unless it may have taken the run for over before
            sure = worker.attached and held.run // RUNS_PER_EPOCH == epoch and worker.silent < held.at
            self.history.fault("death told", deaths=[(held.task, held.run)], sure=sure)
        runs = [(held.task, held.run) for held in started]
        self.send(lambda: self.queue.child_died(pool.name, worker.name, "signal 9", runs, True, {}))
        self.spawn(pool)

    def reachable(self) -> list[tuple[Pool, Worker]]:
        """Workers that can talk to the manager now."""
        now = self.clock.monotonic()
        found = [(pool, worker) for pool in self.pools if pool.cut_until <= now for worker in pool.workers]
        return [(pool, worker) for pool, worker in found if worker.paused_until <= now]

    def work(self, pool: Pool, worker: Worker) -> None:
        """One step of a worker process: attach, report, start or end something, or ask for more."""
        try:
            if not worker.attached:
                self.attach(pool, worker)
            elif any(held.report for held in worker.held.values()) and self.rng.random() < 0.5:
                self.report(worker)
            elif worker.held and self.rng.random() < 0.7:
                self.run(pool, worker)
            else:
                self.reserve(worker)
        except (Lost, StaleRun):
            worker.attached = False

    def attach(self, pool: Pool, worker: Worker) -> None:
        """Join, first or again, with what it holds."""
        described = {"name": worker.name, "host": "h", "pid": 2, "threads": SLOTS, "queues": (), "queue_order": ""}
        info: Any = {**described, "incarnation": worker.name, "pool": self.info(pool), "types": [TYPE]}
        reply = self.send(lambda: self.queue.attach(info, [(held.task, held.run) for held in worker.held.values()]))
        worker.session, worker.attached = reply["session"], True
        for _, run in reply["lost"]:
            del worker.held[run]

    def reserve(self, worker: Worker) -> None:
        """Ask for as many tasks as there are free slots."""
        free = (1 if self.calm else SLOTS) - len(worker.held)
        if free <= 0:
            return
        reply = self.send(lambda: self.queue.reserve(worker.name, worker.session, free, 0, (), 0.0))
        if reply.closed:
            worker.attached = False
        for task in reply.tasks:
            deadly = task.payload.endswith(DEADLY)
            worker.held[task.run] = Held(task.id, task.run, self.clock.monotonic(), deadly)
            self.history.lease(task.id, task.run, worker.name)

    def run(self, pool: Pool, worker: Worker) -> None:
        """Start a task, or bring one to its end."""
        held = worker.held[self.rng.choice(sorted(worker.held))]
        if held.report is not None:
            return
        if not held.started:
            if not self.calm and self.rng.random() < 0.05:
                held.report = (GIVE_BACK, held.task, held.run)
                return
            held.started = True
            self.history.start(held.task, held.run, worker.name)
            return
        if held.deadly:
            self.die(pool, worker)
            return
        roll = 1.0 if self.calm else self.rng.random()
        if roll < 0.3:
            self.history.fail(held.task, held.run, worker.name)
            delay = -1 if roll < 0.04 else 2.0 if roll < 0.1 else None
            held.report = (NACK, held.task, held.run, ("error", "E", "m", "t"), delay, 0.1)
        else:
            result = b"%d of run %d" % (held.task, held.run)
            self.history.end(held.task, held.run, worker.name, result)
            held.report = (ACK, held.task, held.run, result, 0.1)

    def report(self, worker: Worker) -> None:
        """Tell what is over; in real workers, too, several at once."""
        over = [held for held in worker.held.values() if held.report is not None]
        reports = [held.report for held in over if held.report is not None]
        since = self.clock.monotonic()
        try:
            refused = set(self.send(lambda: self.queue.report(worker.name, worker.session, reports)))
        except Lost:
            for held in over:
                self.reported(worker, held, since, "unknown")
            raise
        for position, held in enumerate(over):
            self.reported(worker, held, since, "refused" if position in refused else "accepted")
            del worker.held[held.run]

    def reported(self, worker: Worker, held: Held, since: float, outcome: str) -> None:
        """Note what became of a report."""
        assert held.report is not None
        kind = {ACK: "ack", NACK: "nack", GIVE_BACK: "give_back"}[held.report[0]]
        more: dict[str, Any] = {}
        if kind == "nack":
            delay = held.report[4]
            more = {"last": delay == -1, "pause": BACKOFF / 2 if delay is None else max(delay, 0.0)}
        self.history.report(kind, held.task, held.run, worker.name, since=since, outcome=outcome, **more)

    # -- nemesis

    def kill(self) -> None:
        """kill -9 of a worker process; its pool tells of it with the next heartbeat."""
        found = [(pool, worker) for pool in self.pools for worker in pool.workers]
        if not found:
            return
        self.die(*self.rng.choice(found))

    def die(self, pool: Pool, worker: Worker) -> None:
        """A worker process is gone."""
        pool.workers.remove(worker)
        pool.deaths.append(worker)
        self.history.fault("kill", workers=[worker.name])
        if pool.cut_until > self.clock.monotonic():
            self.silence("kill of a cut off pool's", [worker], pool.cut_until)

    def silence(self, kind: str, workers: list[Worker], until: float) -> None:
        """Note that these are not heard of for a while: what they hold may be counted as dead, but not at once."""
        deaths = [(held.task, held.run) for worker in workers for held in worker.held.values()]
        names = [worker.name for worker in workers]
        self.history.fault(kind, workers=names, deaths=deaths, until=until, grace=SILENCE)
        for worker in workers:
            worker.silent = max(worker.silent, until + LEASE)

    def pause(self) -> None:
        """SIGSTOP, SIGCONT."""
        if not self.workers():
            return
        worker = self.rng.choice(self.workers())
        worker.paused_until = self.clock.monotonic() + self.rng.choice([3.0, 20.0, 40.0])
        self.silence("pause", [worker], worker.paused_until)

    def cut(self) -> None:
        """The cable of a pool is pulled."""
        pool = self.rng.choice(self.pools)
        pool.cut_until = self.clock.monotonic() + self.rng.choice([2.0, 20.0, 40.0])
        self.silence("cut", [*pool.workers, *pool.deaths], pool.cut_until)

    def vanish(self) -> None:
        """A whole machine is gone, and another one comes."""
        pool = self.rng.choice(self.pools)
        self.silence("vanished", [*pool.workers, *pool.deaths], 1e9)
        self.pools.remove(pool)
        self.add_pool(2)

    def jump(self) -> None:
        """Somebody sets the wall clock."""
        self.set_clock(self.rng.choice([3600.0, -3600.0]))

    def set_clock(self, seconds: float) -> None:
        """Set the wall clock forward or back; the housekeeper notices at once, and has it written with its next round.

        (A manager that dies between the two is like one that was away when the clock was set: it cannot know of it.)
        """
        self.queue.tick()
        self.clock.jump(seconds)
        self.jumped += seconds
        self.latest = max(self.latest, self.jumped)
        self.history.fault("clock set")
        self.queue.tick()
        self.queue.tick()

    # -- time

    def pass_time(self, seconds: float) -> None:
        """Time goes on for everybody; who has lost its manager does not wait for longer to come back."""
        for pool, worker in self.reachable():
            if not worker.attached:
                self.work(pool, worker)
        self.clock.advance(seconds)
        now = self.clock.monotonic()
        for pool in self.pools:
            if pool.cut_until <= now and now - pool.beat_at >= LEASE / 3:
                self.beat(pool)
        self.queue.tick()

    def live(self, steps: int) -> None:
        """So many steps, then peace until everything is at its end, or for as long as that may take."""
        steps_of = [self.submit, self.try_again, self.cancel, self.requeue_or_drop, self.purge]
        weights = [14.0, 3.0, 2.0, 0.7, 0.7]
        if self.calm:
            steps_of, weights = [self.submit], [14.0]
        else:
            steps_of += [self.kill, self.crash, self.pause, self.cut, self.vanish, self.jump]
            weights += [2.5, 1.5, 1.0, 0.7, 0.3, 0.4]
        for _ in range(steps):
            roll = self.rng.random()
            if roll < 0.15:
                self.pass_time(self.rng.choice([0.1, 0.5, 2.0]))
            elif roll < 0.80 and self.reachable():
                self.work(*self.rng.choice(self.reachable()))
            else:
                self.rng.choices(steps_of, weights)[0]()
        self.settle()

    def settle(self) -> None:
        """Everything is mended; what is there comes to its end."""
        self.history.phase("faults over")
        self.faulty = False
        self.set_clock(self.latest - self.jumped)  # tasks with a due time of their own wait for it by the wall clock
        for pool in self.pools:
            pool.cut_until = 0.0
            for worker in pool.workers:
                worker.paused_until = 0.0
        while self.open_calls:
            self.try_again()
        end = self.clock.monotonic() + 2 * LIMIT
        while self.clock.monotonic() < end:
            for pool, worker in self.reachable():
                for _ in range(4):
                    if worker in pool.workers:
                        self.work(pool, worker)
            self.pass_time(0.5)
            if not self.busy():
                break
        self.history.phase("idle")
        self.queue.close()

    def busy(self) -> bool:
        """Whether something is not at its end, in the queue's own words or those of workers."""
        queues = self.queue.snapshot()["queues"]
        live = any(queue["pending"] + queue["running"] + queue["scheduled"] for queue in queues)
        return live or any(worker.held for worker in self.workers())

    def violations(self) -> list[Violation]:
        """Which promises were broken."""
        promises = (*STORM, "I10") if self.calm else STORM
        return check(self.history.records, read_sqlite(self.path), promises, limit=inf if self.calm else LIMIT)


TYPE = {"name": "x", "parameters": ()}
