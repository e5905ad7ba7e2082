"""One seed: a phase with faults, a phase without in which everything comes to its end, and the verdict."""

from __future__ import annotations

import gc
import logging
import random
import time
from typing import Any

from checker import STORM, TRANSIENT, read_store, told
from checker import check as verdict
from history import HistoryList

from taskq import threads
from taskq.config import PoolSettings, QueueSettings
from taskq.queue.retry import unit_hash
from taskq.reconnecting import PASSING
from taskq.stores.base import KEEP_ATTEMPTS

from .clients import Program
from .disk import Disk, Trouble
from .leases import Ledger
from .nemesis import Nemesis, draw
from .network import Network, Weather
from .processes import Manager, make_types, start_pool
from .scheduler import SimClock, SimThreads, World

CHECK_EVERY = 200
"""Steps between two looks whether all bookkeeping of the queue can be derived from its records."""
PATIENCE = 1_800.0
"""Virtual seconds after the faults in which everything must be over: enough for some hundred tasks that were timed out
one by one, and less than the clocks are set by, so that no pause may have become as long as that."""


class System:
    """Everything that there is in one run."""

    def __init__(self, seed: int, steps: int, show: bool = False) -> None:
        self.seed, self.steps = seed, steps
        self.world = World(seed, show)
        rng = self.world.rng
        self.plan = draw(random.Random(seed ^ 0x5EED))
        self.world.yielding = self.plan.yielding
        self.history = HistoryList("sim", lambda: self.world.now)
        self.network = Network(self.world, self.plan.weather)
        self.disk = Disk(self.world, self.plan.trouble, self.history, self.plan.real_store)
        self.settings = QueueSettings(lease=self.plan.lease, keep_completed=1e9, keep_failed=1e9)
        self.journal: dict[tuple[int, int], Any] = {}
        self.children: dict[str, Any] = {}
        self.pools: dict[str, Any] = {}
        self.programs: list[Program] = []
        self.clients: list[Any] = []
        self.tables: list[Any] = []
        self.late: list[int] = []
        self.acknowledged = self.refusals = self.managers = self.checks = 0
        self.calm = False
        names = ["manager", *(f"pool{n}" for n in range(self.plan.pools)), *(f"c{n}" for n in range(self.plan.clients))]
        self.clocks = {
            name: SimClock(self.world, 1 + self.plan.drift * (rng.random() - 0.5), 1000 + 1000 * rng.random())
            for name in names
        }

        self.ledger = Ledger(self.world, self.history, self.plan.lease, self.clocks["manager"].rate)

    def types(self, child: Any) -> Any:
        """The task types of a worker process."""
        return make_types(self, child)

    def rng_of(self, run: int) -> float:
        """A number of a run's own."""
        return unit_hash(self.seed, run)

    def is_live(self, id: int) -> bool:
        """Whether a task is not over yet."""
        queue = self.manager.queue
        return queue is None or id in queue._state.tasks

    def start(self) -> None:
        """Start all processes."""
        self._new_manager()
        plan = self.plan
        for number in range(plan.pools):
            settings = PoolSettings(workers=plan.workers, threads=plan.threads, name=f"pool{number}")
            self._new_pool(f"pool{number}", settings)
        for number in range(plan.clients):
            self.programs.append(Program(self, f"c{number}", 1 + self.world.rng.getrandbits(60)))

    def _new_manager(self) -> None:
        self.managers += 1
        self.manager = Manager(self, self.managers)

    def _new_pool(self, name: str, settings: PoolSettings) -> None:
        self.pools[name] = start_pool(self, name, settings)

    # -- called when a process is gone

    def manager_died(self) -> None:
        """Another one starts."""
        self.world.at(self.world.rng.random() * 3, self._new_manager)

    def pool_died(self, name: str, settings: PoolSettings) -> None:
        """Another one starts."""
        self.world.at(self.world.rng.random() * 3, self._new_pool, name, settings)

    def client_died(self, program: Program) -> None:
        """Another program takes its place."""
        self.programs.remove(program)
        self.programs.append(Program(self, program.name, 1 + self.world.rng.getrandbits(60)))
        self.programs[-1].stopping = self.calm

    # -- phases

    def _in_faults(self) -> bool:
        self._look()
        return self.world.steps >= self.steps

    def _look(self) -> None:
        if self.world.steps >= self.checks * CHECK_EVERY:
            self.checks += 1
            self.manager.check()

    def _all_over(self) -> bool:
        self._look()
        assert self.world.now < self._give_up, f"not everything is over after {PATIENCE:g} s: {self._what_is_left()}"
        return all(one.done for one in self.programs) and self._idle()

    def _idle(self) -> bool:
        queue = self.manager.queue
        return queue is not None and self.manager.process.alive and not queue._state.tasks and self.resolved

    def _what_is_left(self) -> str:
        queue = self.manager.queue
        tasks = [] if queue is None else list(queue._state.tasks.values())[:5]
        waiting = [one.name for one in self.programs if not one.done]
        return f"tasks {tasks}, clients {waiting}, resolved {self.resolved}"

    def calm_down(self) -> None:
        """No more faults; programs come to their end."""
        self.calm = True
        self.plan.weather = self.network.weather = Weather(latency=self.plan.weather.latency)
        self.disk.trouble = Trouble(latency=0.001)
        self.disk.full = False
        self.network.cut.clear()
        self.clocks["manager"].catch_up()
        for process in [self.manager.process, *self.pools.values(), *(c.process for c in self.children.values())]:
            process.resume()
        for program in self.programs:
            program.stopping = True
        self.resolved = False
        self.resolver = Program(self, self.programs[0].name, 1)
        self.resolver.process.at_end.clear()
        self.resolver.stopping = True
        self.world.spawn(self.resolver.process, "resolve", self._resolve)
        self._give_up = self.world.now + PATIENCE

    def _resolve(self) -> None:
        """Let all queues go; then repeat every call whose outcome nobody knows: it has one."""
        queue = self.resolver.connect()
        for name in self.plan.queues:
            self._until_answered(lambda n=name: queue.resume_queue(n))
            self._until_answered(lambda n=name: queue.limit_queue(n, None))
        while not all(one.done for one in self.programs):
            self.world.wait(1.0)
        answered = {
            (call["client"], call["seq"])
            for call, answer in self._answers()
            if answer["outcome"] == "ok" or answer["error"] not in TRANSIENT
        }
        for client, seq in [one for one in self.journal if one not in answered]:
            self._until_answered(lambda c=client, s=seq: queue.submit(c, s, self.journal[c, s]))
        self.resolved = True

    def _until_answered(self, call: Any) -> None:
        while True:
            try:
                call()
                return
            except PASSING:
                self.world.wait(0.5)
            except Exception as error:  # an answer too
                if getattr(error, "code", "") not in ("queue_full", "storage_full"):
                    return
                self.world.wait(0.5)

    def _answers(self) -> list[tuple[Any, Any]]:
        calls = {one["call"]: one for one in self.history.records if one["event"] == "call"}
        answers = [one for one in self.history.records if one["event"] == "answer"]
        return [(calls[one["call"]], one) for one in answers if calls[one["call"]]["verb"] == "submit"]

    def play(self) -> None:
        """Both phases. Raises `AssertionError` when it does not come to its end."""
        self.start()
        nemesis = self.nemesis = Nemesis(self, every=8.0)
        self.world.run(self._in_faults)
        nemesis.over = True
        self.calm_down()
        self.world.run(self._all_over)
        self.world.settle()
        self.manager.check()

    def judge(self) -> list[str]:
        """Everything that is wrong."""
        found = list(self.world.failures)
        if self.late:
            found.append(f"clients never heard of the tasks {self.late[:10]}")
        promises = (*STORM, "I10") if self.plan.calm else STORM
        violations = verdict(self.history.records, read_store(self.disk.store), promises)
        if violations:
            found.append(told(violations))
        return found + self._forgotten()

    def _forgotten(self) -> list[str]:
        """Each failure that a worker knows to be taken is in the history of its task, or ten later ones are."""
        taken = [
            (one["task"], one["run"])
            for one in self.history.records
            if one["event"] == "report" and one["kind"] == "nack" and one["outcome"] == "accepted"
        ]
        store = self.disk.store
        there = store.slim(sorted({task for task, _ in taken}))
        kept = {task: {attempt.run for attempt in store.attempts(task)} for task in there}
        return [
            f"the failure of run {run} is not in the history of task {task}"
            for task, run in taken
            if task in kept and run not in kept[task] and len(kept[task]) < KEEP_ATTEMPTS
        ]

    def close(self) -> None:
        """Break everything off, and give back what the system gave."""
        for process in [self.resolver.process] if hasattr(self, "resolver") else []:
            process.kill()
        for one in [*self.programs, self.manager]:
            one.process.at_end.clear()
            one.process.kill()
        for pool in list(self.pools.values()):
            pool.at_end.clear()
            pool.kill()
        for child in list(self.children.values()):
            child.process.kill()
        for client in self.clients:
            client._results.disown()
        for table in self.tables:
            table.close()
        self.disk.close()


def run(seed: int, steps: int = 1_000, show: bool = False) -> dict[str, Any]:
    """Play one seed; gives its figures. ``violations`` is empty when all promises were kept."""
    began = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()
    logging.disable(logging.CRITICAL)
    before = threads.use(threads.SYSTEM)
    system = System(seed, steps, show)
    threads.use(SimThreads(system.world))  # type: ignore[arg-type]
    violations = []
    try:
        system.play()
        violations = system.judge()
    except AssertionError as error:
        violations = [*system.world.failures, f"{error}"]
    finally:
        world = system.world
        trace = world.trace()
        system.close()
        threads.use(before)
        logging.disable(logging.NOTSET)
        if collecting:
            gc.enable()
    real = time.perf_counter() - began
    faults = {**system.nemesis.count, **system.network.faults, **system.disk.faults}
    return {
        "seed": seed,
        "steps": world.steps,
        "changed": world.changed_steps,
        "virtual_s": world.now,
        "real_s": real,
        "acknowledged": system.acknowledged,
        "managers": system.managers,
        "faults": sum(faults.values()),
        "real_stores": int(system.plan.real_store),
        "by_kind": faults,
        "trace": trace,
        "violations": violations,
    }


def replay(seed: int, steps: int) -> str:
    """The command that plays it again."""
    return f"python -m tests.sim {seed} --steps {steps} --trace"
