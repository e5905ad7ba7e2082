"""The processes: a manager with the real queue and wire verbs, pools with the real parent, worker and executor."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from taskq.config import Address, Join, PoolSettings
from taskq.errors import OutcomeUnknown, Permanent, Snooze, TaskqError
from taskq.pauses import Pauses
from taskq.queue.check import check
from taskq.queue.job_queue import JobQueue
from taskq.reconnecting import PASSING
from taskq.registry import CURRENT, TaskType
from taskq.shapes import ACK, GIVE_BACK, NACK, ChildInfo, Evidence, WorkerInfo
from taskq.wire.client import RemoteQueue
from taskq.wire.codec import encode
from taskq.wire.frames import ConnectionLost
from taskq.wire.server import _Verbs
from taskq.workers.attachment import Attachment, ReportedDead
from taskq.workers.overtime import Overtime
from taskq.workers.slots import SlotTable
from taskq.workers.worker import TICK, Worker
from taskq.workers.worker_pool import WorkerPool

from .leases import Ledger
from .network import SimChannel, SimDialer
from .scheduler import Process

KINDS = {ACK: "ack", NACK: "nack", GIVE_BACK: "give_back", 3: "snooze"}
LEAST_PAUSE = 0.45
"""Seconds between two attempts at least: the default, half of it left to chance, by a clock that drifts."""
JOIN = Join((Address("manager", 1),), b"k" * 32)


class SimQueue(JobQueue):
    """The real queue; the ledger hears what comes to it and what it decides."""

    world: Any
    ledger: Ledger

    def _record(self, changes: Any) -> int:
        self.world.changed = self.world.changed or bool(changes.written or changes.moved)
        self.ledger.changed(changes.written)
        return super()._record(changes)

    def _record_handouts(self, tasks: Any) -> None:
        self.world.changed = True
        for task in tasks:  # here, since a worker that was paused may learn of it long after
            self.ledger.handed_out(task)
        super()._record_handouts(tasks)

    def beat(self, pool: Any, children: Any) -> Any:
        """See `JobQueue`."""
        self.ledger.beat(children)
        return super().beat(pool, children)

    def child_died(self, pool: Any, incarnation: str, how: str, started: Any, counts: bool, *more: Any) -> None:
        """See `JobQueue`."""
        self.ledger.died(incarnation, more[1] if len(more) > 1 else ())
        super().child_died(pool, incarnation, how, started, counts, *more)
        if counts:
            self.ledger.counted(incarnation, started)

    def leave(self, pool: str) -> None:
        """See `JobQueue`."""
        self.ledger.left(pool)
        super().leave(pool)

    def attach(self, worker: Any, held: Any) -> Any:
        """See `JobQueue`."""
        self.ledger.attaching(worker, held)
        reply = super().attach(worker, held)
        self.ledger.attached(held, reply["lost"])
        return reply

    def report(self, incarnation: str, session: int, reports: Any) -> Any:
        """See `JobQueue`."""
        self.ledger.told(incarnation, reports)
        return super().report(incarnation, session, reports)

    def detach(self, incarnation: str, session: int) -> None:
        """See `JobQueue`."""
        self.ledger.died(incarnation)
        super().detach(incarnation, session)


class Manager:
    """A manager process, from its boot to its end."""

    def __init__(self, system: Any, number: int) -> None:
        self.system, self.number = system, number
        self.process = Process(system.world, "manager", system.clocks["manager"])
        self.queue: SimQueue | None = None
        self.ready = False
        system.world.spawn(self.process, "boot", self._boot)

    def _boot(self) -> None:
        system = self.system
        queue = SimQueue(system.disk.mount(), self.process.clock, system.settings, self._failed)
        queue.world, queue.ledger = system.world, system.ledger
        queue.local_pool = f"run-{self.number}"
        queue.open()
        system.ledger.started(queue._opened.epoch, system.disk.store)
        queue.start()
        self.queue, self._verbs = queue, _Verbs(queue, self._say)
        system.network.listener = self
        self.ready = True

    def _say(self, text: str, peer: str, error: Exception | None) -> None:
        if error is not None:
            self.system.world.failures.append(f"in the manager: {text}: {error!r}")

    def _failed(self, error: BaseException) -> None:
        self.system.world.at(0.05, self.kill)

    def serve(self, channel: SimChannel) -> None:
        """One connection's thread."""
        try:
            while True:
                reply, understood = self._verbs.answer(channel.receive(None), "admin", "")
                channel.send(reply)
                if not understood:
                    return
        except ConnectionLost:
            pass
        finally:
            channel.close()

    def kill(self) -> None:
        """Crash, and come back later."""
        if self.process.alive:
            self.system.network.listener = None
            self.process.kill()
            self.system.disk.crash()
            self.system.manager_died()

    def check(self) -> None:
        """Derive all bookkeeping anew."""
        if self.queue is not None and self.process.alive and not self.queue._lock._held:
            check(self.queue._state)


class Watched(RemoteQueue):
    """The real connection of a worker; it writes down what was reported."""

    system: Any
    process: Process

    def report(self, incarnation: str, session: int, reports: Any) -> Any:
        """See `RemoteQueue`."""
        since = self.system.world.now
        refused: Any = None
        try:
            refused = super().report(incarnation, session, reports)
        finally:
            for position, one in enumerate(reports):
                if one[0] in KINDS:
                    outcome = "unknown" if refused is None else "refused" if position in refused else "accepted"
                    more = self._least_pause(one) if one[0] == NACK else {}
                    self.system.history.report(
                        KINDS[one[0]], one[1], one[2], incarnation, since=since, outcome=outcome, **more
                    )
        return refused

    def _least_pause(self, nack: Any) -> dict[str, Any]:
        """What the checker may expect; a clock that is set while no manager runs may shorten a pause."""
        return {"last": nack[4] == -1, "pause": 0.0 if self.system.plan.faults["jump"] else LEAST_PAUSE}


class Slots(SlotTable):
    """The real slot table; what a thread does while it is broken off leaves no trace."""

    world: Any

    def end(self, slot: int) -> None:
        """See `SlotTable`."""
        self.world.alive()
        super().end(slot)


class SimChild:
    """A worker process as its parent sees it (`taskq.workers.child.Child`), and what goes on inside."""

    def __init__(self, pool: SimPool, number: int, now: float, on_ready: Any, on_exit: Any) -> None:
        self.system, self.pool = pool.system, pool
        self.number, self.started_at = number, now
        self.incarnation = f"w{self.system.world.number():08d}"
        self.ready = self.leaving = False
        self.overtime = Overtime()
        self.last_words: list[Any] = []
        self._on_ready, self._on_exit = on_ready, on_exit
        self._closed = False
        self.code = -9
        self.worker: Worker | None = None

    def start(self, join: Any, pool: Any, settings: PoolSettings) -> None:
        """Start it."""
        self._slots = Slots.create(settings.threads)
        self._slots.world = self.system.world
        self.system.tables.append(self._slots)
        self.process = Process(self.system.world, self.incarnation, self.pool.process.clock)
        self.process.at_end.append(self._ended)
        self.system.children[self.incarnation] = self
        self.system.world.spawn(self.process, "main", self._main, pool, settings)

    def _ended(self) -> None:
        self.system.children.pop(self.incarnation, None)
        if self.pool.process.alive:
            self.system.world.at(0.005, self._on_exit, self, self.code)

    def _main(self, pool: Any, settings: PoolSettings) -> None:
        system, process = self.system, self.process
        types = {kind.name: kind for kind in system.types(self)}

        def connect() -> Watched:
            queue = Watched(JOIN, dialer=SimDialer(system.network, process))
            queue.system, queue.process = system, process
            return queue

        described = [kind.describe() for kind in types.values()]
        info = WorkerInfo(
            incarnation=self.incarnation,
            pool=pool,
            name=f"{pool['name']}/{self.number}",
            host="host",
            pid=1,
            threads=settings.threads,
            queues=settings.queues,
            queue_order=settings.queue_order,
            types=described,
        )
        attachment = Attachment(connect, info, lambda: self.worker and self.worker.wake())
        self.worker = worker = Worker(attachment, types.get, self._slots, settings.threads, process.clock)
        pauses = Pauses(attachment.salt)
        while not self.leaving and self.pool.process.alive:
            try:
                attachment.attach()
                break
            except ReportedDead:
                return self._leave()
            except TaskqError:
                system.world.wait(pauses.next())
        self._on_ready(self, None)
        worker.start()
        if self.leaving or not self.pool.process.alive:
            worker.drain(orphan=not self.pool.process.alive)
        while not worker.over.wait(TICK):
            pass
        self._leave()

    def _leave(self) -> None:
        self.code = 0
        self.system.world.at(0.0, self.process.kill)

    def orphan(self) -> None:
        """Its parent is gone."""
        if self.worker is not None:
            self.worker.drain(orphan=True)

    # -- for the parent

    pid = 1

    def send(self, line: str) -> None:
        """Nothing; commands are calls here."""

    def drain(self) -> None:
        """See `Child`."""
        self.leaving = True
        if self.process.alive and self.worker is not None:
            self.worker.drain()

    def cancel(self, runs: Any, now: float) -> None:
        """See `Child`."""
        for run in self.overtime.cancel(runs, now):
            if self.worker is not None and self.process.alive:
                self.system.world.spawn(self.process, "obey", self.worker.cancel, run)

    def move(self, join: Any) -> None:
        """See `Child`."""

    def kill(self) -> None:
        """See `Child`."""
        self.system.world.at(0.0, self.process.kill)

    def wait(self) -> int:
        """See `Child`."""
        while self.process.alive:
            self.system.world.wait(0.01)
        return self.code

    def stacks(self) -> str:
        """See `Child`."""
        return ""

    def sample(self, now: float) -> None:
        """See `Child`."""

    def info(self, now: float) -> ChildInfo:
        """See `Child`."""
        return ChildInfo(
            incarnation=self.incarnation,
            pid=1,
            stopped=self.process.paused,
            leaving=self.leaving,
            cpu_percent=0.0,
            rss_bytes=0,
            running=[(one.id, one.run, one.type, max(0.0, now - one.started)) for one in self.running()],
        )

    def running(self) -> list[Any]:
        """See `Child`."""
        return [] if self._closed else self._slots.running()

    @property
    def left(self) -> bool:
        """See `Child`."""
        return self._slots.left

    def autopsy(self) -> tuple[list[Any], str]:
        """See `Child`."""
        return self._slots.running(), ""

    def evidence(self, now: float, crash: str) -> Evidence:
        """See `Child`."""
        return Evidence()

    def close(self) -> None:
        """See `Child`."""
        self._closed = True


class SimPool(WorkerPool):
    """The real parent, with children that are played."""

    def __init__(self, system: Any, process: Process, settings: PoolSettings) -> None:
        self.system, self.process = system, process
        super().__init__(lambda: JOIN, settings, process.clock, pool_id=f"p{system.world.number():08d}")

    def _connect(self, join: Any) -> RemoteQueue:
        return RemoteQueue(JOIN, dialer=SimDialer(self.system.network, self.process))  # type: ignore[arg-type]

    def _new_child(self, place: Any, now: float) -> Any:
        def post(handler: Callable[..., None]) -> Callable[..., None]:
            return lambda *args: self._post(handler, *args)

        return SimChild(
            self, place.number, now, post(self._on_ready), post(lambda child, code: self._on_exit(place, child, code))
        )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        yield


def start_pool(system: Any, name: str, settings: PoolSettings) -> Process:
    """A pool's parent process."""
    process = Process(system.world, name, system.clocks[name])

    def main() -> None:
        while True:
            try:
                SimPool(system, process, settings).run()
                break
            except (*PASSING, OutcomeUnknown):
                system.world.wait(0.5)
        system.world.at(0.0, process.kill)

    def ended() -> None:
        for child in [one for one in list(system.children.values()) if one.pool.process is process]:
            system.world.spawn(child.process, "orphan", child.orphan)
        system.pool_died(name, settings)

    process.at_end.append(ended)
    system.world.spawn(process, "main", main)
    return process


def make_types(system: Any, child: SimChild) -> list[TaskType[..., Any]]:
    """The tasks: work for a while, then return, raise, put off, or bring the process down."""

    def job(number: int, seconds: float, how: str) -> int:
        context = CURRENT.get()()
        history, world = system.history, system.world
        history.start(context.id, context.run, child.incarnation)
        world.step(f"start {context.id} {context.run}")
        world.sleep(seconds)
        if how == "crash" and context.attempt == 1:
            world.at(0.0, child.process.kill)
            world.wait()
        if how == "snooze" and system.rng_of(context.run) < 0.5:
            raise Snooze(1.0)
        if how == "permanent" or (how == "flaky" and context.attempt < 3):
            history.fail(context.id, context.run, child.incarnation)
            raise Permanent("no") if how == "permanent" else ValueError("again")
        world.step(f"end {context.id} {context.run}")
        history.end(context.id, context.run, child.incarnation, encode(number))
        return number

    return [TaskType(job, name="job"), TaskType(job, name="other")]
