"""What is broken, and how much of everything there is: each seed draws its own."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from .disk import Trouble
from .network import Weather

YEAR = 366 * 86_400.0


@dataclass
class Plan:
    """The shape of one run."""

    clients: int
    pools: int
    workers: int
    threads: int
    pause: float
    run_s: float
    keys: float
    uniques: float
    delays: float
    expiries: float
    timeouts: float
    queues: tuple[str, ...]
    types: tuple[str, ...]
    priorities: tuple[int, ...]
    actions: tuple[float, ...]
    hows: tuple[float, ...]
    yielding: float
    drift: float
    lease: float
    real_store: bool
    calm: bool
    weather: Weather = field(default_factory=Weather)
    trouble: Trouble = field(default_factory=Trouble)
    faults: dict[str, float] = field(default_factory=dict)


def some(rng: random.Random, most: float) -> float:
    """In half of all runs nothing, else up to ``most``."""
    return rng.random() * most if rng.random() < 0.5 else 0.0


def draw(rng: random.Random) -> Plan:
    """A plan; now and then one without faults and with one worker thread, in which the order of hand-outs is judged."""
    plan = _any(rng)
    if rng.random() < 0.06:
        plan = replace(plan, calm=True, pools=1, workers=1, threads=1, delays=0.0)
        plan = replace(plan, types=("job",))  # of types that are known to be fast a worker takes some ahead of others
        plan = replace(
            plan,
            faults=dict.fromkeys(plan.faults, 0.0),
            weather=Weather(plan.weather.latency),
            trouble=Trouble(plan.trouble.latency),
        )
        plan.hows = (*plan.hows[:3], 0.0, plan.hows[4])
    return plan


def _any(rng: random.Random) -> Plan:
    weather = Weather(
        latency=rng.choice((0.0005, 0.005, 0.05)),
        slow=some(rng, 0.02),
        drop=some(rng, 0.005),
        double=some(rng, 0.01),
        reorder=some(rng, 0.05),
        reset=some(rng, 0.01),
        silent=some(rng, 0.003),
    )
    names = (
        "manager",
        "worker",
        "pool",
        "client",
        "pause_manager",
        "pause_worker",
        "pause_pool",
        "cut",
        "jump",
        "full",
    )
    return Plan(
        clients=rng.randint(1, 3),
        pools=rng.randint(1, 2),
        workers=rng.randint(1, 2),
        threads=rng.randint(1, 3),
        pause=rng.choice((0.3, 2.0, 5.0)),
        run_s=rng.choice((0.001, 0.1, 1.0)),
        keys=some(rng, 0.3),
        uniques=some(rng, 0.3),
        delays=some(rng, 0.4),
        expiries=some(rng, 0.2),
        timeouts=some(rng, 0.3),
        queues=("q", "r")[: rng.randint(1, 2)],
        types=("job", "other"),
        priorities=(0, 5, -5)[: rng.randint(1, 3)],
        actions=(10, rng.choice((0, 3)), *(some(rng, most) for most in (3, 2, 2, 1, 1, 1, 0.5))),
        hows=(10, some(rng, 3), some(rng, 1), some(rng, 1), some(rng, 1)),
        yielding=some(rng, 0.1),
        drift=some(rng, 0.02),
        lease=rng.choice((6.0, 30.0)),
        real_store=rng.random() < 0.25,
        calm=False,
        weather=weather,
        trouble=Trouble(latency=rng.choice((0.0005, 0.003, 0.05)), error=some(rng, 0.004)),
        faults={name: some(rng, 1.0) for name in names},
    )


class Nemesis:
    """Breaks one thing after the other until it is told to stop."""

    def __init__(self, system: Any, every: float) -> None:
        self.system, self.every = system, every
        self.over = False
        self.count: dict[str, int] = {}
        self._next()

    def _next(self) -> None:
        self.system.world.at(self.system.world.rng.expovariate(1.0) * self.every, self._strike)

    def _strike(self) -> None:
        faults = self.system.plan.faults
        if self.over:
            return
        if sum(faults.values()):
            name = self.system.world.rng.choices(list(faults), list(faults.values()))[0]
            self.system.world.step(f"fault {name}")
            self.count[name] = self.count.get(name, 0) + 1
            getattr(self, f"_{name}")()
        self._next()

    def _child(self) -> Any:
        children = list(self.system.children.values())
        return self.system.world.rng.choice(children) if children else None

    def _pool(self) -> None:
        self.system.world.rng.choice(list(self.system.pools.values())).kill()

    def _manager(self) -> None:
        self.system.manager.kill()

    def _worker(self) -> None:
        if child := self._child():
            child.process.kill()

    def _client(self) -> None:
        self.system.world.rng.choice(self.system.programs).process.kill()

    def _stop(self, process: Any, longest: float) -> None:
        process.pause()
        self.system.world.at(self.system.world.rng.random() * longest, process.resume)

    def _pause_manager(self) -> None:
        self._stop(self.system.manager.process, 20.0)

    def _pause_worker(self) -> None:
        if child := self._child():
            self._stop(child.process, 60.0)

    def _pause_pool(self) -> None:
        self._stop(self.system.world.rng.choice(list(self.system.pools.values())), 60.0)

    def _cut(self) -> None:
        rng = self.system.world.rng
        processes = [self.system.manager.process, *self.system.pools.values()]
        processes += [child.process for child in self.system.children.values()]
        self.system.network.part(rng.choice(processes), rng.choice((0.5, 8.0, 40.0)))

    def _jump(self) -> None:
        rng = self.system.world.rng
        rng.choice(list(self.system.clocks.values())).jump(rng.choice((-3600.0, 3600.0, -1.0, 60.0, YEAR, -YEAR)))

    def _full(self) -> None:
        self.system.disk.full = True
        self.system.disk.faults["full"] += 1
        self.system.world.at(5.0, self._free)

    def _free(self) -> None:
        self.system.disk.full = False
