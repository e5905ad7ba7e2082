"""How well the workers' slots are used: P5 by tasks that take a while, P6 by short ones among a few long ones."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from taskq.bench.figures import Row, median, percentile
from taskq.bench.plain import Plain
from taskq.bench.settings import Settings
from taskq.bench.stage import Stage
from taskq.bench.tasks import nap, noop, spin
from taskq.client import Client
from taskq.registry import TaskType
from taskq.service import MAX_BATCH

# -- P5


class Load(NamedTuple):
    """Tasks of ``seconds`` each on ``workers`` x ``threads`` slots; ``kind`` names them for `Plain`."""

    name: str
    kind: str
    task: TaskType[[float], None]
    seconds: float
    tasks: int
    workers: int
    threads: int

    def ideal(self, count: int) -> float:
        """Seconds that so many tasks take if no slot is ever idle."""
        return count * self.seconds / (self.workers * self.threads)


LOADS = (
    Load("10 ms sleeps on 16 threads", "nap", nap, 0.010, 4_800, 4, 4),
    Load("5 ms of CPU on 2 processes", "spin", spin, 0.005, 1_200, 2, 1),
)
ALLOWANCE = 0.02
"""How much less of the ideal than the plain manager it may reach."""


def efficiency(settings: Settings) -> list[Row]:
    """P5: ideal time divided by real time, beside the same with a plain manager; the two take turns."""
    return [row for load in LOADS for row in _efficiency(settings, load)]


def _efficiency(settings: Settings, load: Load) -> list[Row]:
    count = max(load.workers * load.threads, settings.count(load.tasks))
    reached, plain_reached = [], []
    with settings.stage(workers=load.workers, threads=load.threads) as stage:
        plain = Plain(stage, load.workers, load.threads)
        client = stage.client()
        _run(stage, client, load, count // 10)
        for run in range(settings.runs):
            settings.say(f"P5 {load.name}: run {run + 1} of {settings.runs}")
            ideal = load.ideal(count)
            plain_reached.append(ideal / plain.run(load.kind, load.seconds, count, ideal))
            reached.append(ideal / _run(stage, client, load, count))
        plain.stop()
    limit = median(plain_reached) - ALLOWANCE
    return [
        Row("P5", load.name, "of ideal", tuple(reached), f">= {limit:.3f} (plain - {ALLOWANCE})", limit),
        Row("P5", "the same, plain BaseManager", "of ideal", tuple(plain_reached)),
    ]


def _run(stage: Stage, client: Client, load: Load, count: int) -> float:
    """Seconds from the first submit to the last ack."""
    queue = stage.service()
    before = int(queue.snapshot()["totals"]["completed"])
    started = time.perf_counter()
    client.map(load.task, [load.seconds] * count)
    time.sleep(max(0.0, started + load.ideal(count) - time.perf_counter()))
    stage.until_completed(queue, before + count, pause=0.002)
    return time.perf_counter() - started


# -- P6

RATE = 200.0
"""Tasks that arrive in a second."""
SECONDS = 20.0
LONG = 0.2
"""Seconds that a long one takes."""
LONG_SHARE = 0.01
WAITING = 25.0
"""Milliseconds."""


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds from the beginning at which tasks arrive: at random, ``rate`` a second on the average (Poisson).

    >>> times = arrivals(200.0, 10.0, 1)
    >>> 1_800 < len(times) < 2_200 and times == sorted(times) and times[-1] < 10.0
    True
    """
    chance = random.Random(seed)
    times, now = [], chance.expovariate(rate)
    while now < seconds:
        times.append(now)
        now += chance.expovariate(rate)
    return times


def mixed(settings: Settings) -> list[Row]:
    """P6: how long tasks wait for a slot when few of many are long.

    The long ones are of another type than the rest, or all are of one type, which then is sometimes a quick one.
    """
    names = {"long ones of another type": False, "all of one type": True}
    waits: dict[str, list[float]] = {name: [] for name in names}
    with settings.stage() as stage:
        client = stage.client()
        for run in range(settings.runs):
            for name, one_type in names.items():
                settings.say(f"P6 {name}: run {run + 1} of {settings.runs}")
                ids = _arrive(client, settings.seconds(SECONDS), run, one_type=one_type)
                waits[name].append(percentile(_waits(stage, ids), 99) * 1e3)
    return [
        Row("P6", f"waiting, {name}, p99", "ms", tuple(found), f"<= {WAITING:g}", WAITING, at_most=True)
        for name, found in waits.items()
    ]


def _arrive(client: Client, seconds: float, seed: int, *, one_type: bool) -> list[int]:
    """Submit as tasks arrive, and wait for the last one; gives their ids."""
    handles = []
    chance = random.Random(seed)
    started = time.perf_counter()
    for due in arrivals(RATE, seconds, seed):
        time.sleep(max(0.0, started + due - time.perf_counter()))
        if chance.random() < LONG_SHARE:
            handles.append(client.submit(nap, LONG))
        else:
            handles.append(client.submit(nap, 0.0) if one_type else client.submit(noop))
    for handle in handles:
        handle.result(60.0)
    return [handle.id for handle in handles]


def _waits(stage: Stage, ids: Sequence[int]) -> list[float]:
    """Seconds from when the manager accepted each task until it ran, as its record has it.

    The record's start is the time when the outcome arrived less the time that the function took: the way of the
    outcome to the manager counts as waiting.
    """
    queue = stage.service()
    records: list[dict[str, Any] | None] = []
    for start in range(0, len(ids), MAX_BATCH):
        records += queue.get(ids[start : start + MAX_BATCH])
    return [record["started_at"] - record["submitted_at"] for record in records if record is not None]
