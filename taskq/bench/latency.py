"""How long one has to wait: P4 for a task while nothing else goes on, P7 for a small call while much does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from taskq.bench import floors
from taskq.bench.figures import Row, percentile
from taskq.bench.settings import Settings
from taskq.bench.stage import Stage
from taskq.bench.tasks import noop
from taskq.client import Client
from taskq.wire.client import RemoteQueue

CALLS = 1_000
WARM_UP = 200
DRAINED = 200_000
PAUSE = 0.002
"""Seconds between two small calls, so that they are no load themselves."""

IN_MEMORY = 0.35
"""Milliseconds: the bar where nothing is on disk."""
P99 = 2.0
"""Milliseconds."""


# -- P4


def idle(settings: Settings) -> list[Row]:
    """P4: submit to result of a task that does nothing, one after the other."""
    return _idle(settings, "sqlite", "sqlite") + _idle(settings, "memory", "memory:")


def _idle(settings: Settings, name: str, store: str) -> list[Row]:
    halves, nearly_all, trips, commits = [], [], [], []
    with settings.stage(store=store) as stage:
        client, queue = stage.client(), stage.service()
        results(client, settings.count(WARM_UP))
        for run in range(settings.runs):
            settings.say(f"P4 {name}: run {run + 1} of {settings.runs}")
            trips.append(floors.wire(queue, settings.count(CALLS)))
            commits.append(floors.commits(settings.count(CALLS)).median)
            times = [seconds * 1e3 for seconds in results(client, settings.count(CALLS))]
            halves.append(percentile(times, 50))
            nearly_all.append(percentile(times, 99))
    if store == "memory:":
        return [
            Row("P4", "idle, memory, p50", "ms", tuple(halves), f"<= {IN_MEMORY}", IN_MEMORY, at_most=True),
            Row("P4", "idle, memory, p99", "ms", tuple(nearly_all)),
        ]
    limit = idle_limit(percentile(trips, 50), percentile(commits, 50))
    return [
        Row("P4", "idle, p50", "ms", tuple(halves), f"<= {limit:.2f} (floor)", limit, at_most=True),
        Row("P4", "idle, p99", "ms", tuple(nearly_all), f"<= {P99:g}", P99, at_most=True),
    ]


def idle_limit(trip: float, commit: float) -> float:
    """Milliseconds: four calls to the manager and two commits are needed; both in seconds.

    >>> round(idle_limit(50e-6, 150e-6), 3)
    0.7
    """
    return (4 * trip + 2 * commit) * 1e3 + 0.2


def results(client: Client, count: int) -> list[float]:
    """Seconds from submit to result, for so many tasks in a row."""
    times = []
    for number in range(count):
        started = time.perf_counter()
        client.submit(noop, number).result()
        times.append(time.perf_counter() - started)
    return times


# -- P7


@dataclass
class Probe:
    """A client that makes small calls, now and then one and then the other, and notes how long they take (seconds)."""

    client: Client
    queue: RemoteQueue
    snapshots: list[float] = field(default_factory=list)
    submits: list[float] = field(default_factory=list)

    def until(self, over: Callable[[dict[str, Any]], bool]) -> None:
        """Go on until a snapshot says that it is over."""
        while True:
            started = time.perf_counter()
            found = self.queue.snapshot()
            self.snapshots.append(time.perf_counter() - started)
            if over(found):
                return
            started = time.perf_counter()
            self.client.submit(noop)
            self.submits.append(time.perf_counter() - started)
            time.sleep(PAUSE)


def completed(at_least: int) -> Callable[[dict[str, Any]], bool]:
    """A condition on snapshots: so many tasks are completed, since the store was made."""
    return lambda snapshot: int(snapshot["totals"]["completed"]) >= at_least


def beside_a_drain(settings: Settings) -> list[Row]:
    """P7: small calls of a client while workers drain a backlog."""
    snapshots, submits = [], []
    count = settings.count(DRAINED)
    with settings.stage(workers=0) as stage:
        for run in range(settings.runs):
            settings.say(f"P7: run {run + 1} of {settings.runs}")
            probe = _probe_a_drain(stage, count)
            snapshots.append(percentile(probe.snapshots, 99) * 1e3)
            submits.append(percentile(probe.submits, 99) * 1e3)
    limit = 10.0 + settings.commits.worst * 1e3
    bar = f"<= {limit:.1f} (10 + worst commit)"
    return [
        Row("P7", "stats beside a drain, p99", "ms", tuple(snapshots), bar, limit, at_most=True),
        Row("P7", "one submit beside a drain, p99", "ms", tuple(submits), bar, limit, at_most=True),
    ]


def _probe_a_drain(stage: Stage, count: int) -> Probe:
    queue = stage.service()
    before = int(queue.snapshot()["totals"]["completed"])
    stage.client().map(noop, range(count))
    probe = Probe(stage.client(), queue)
    probe.client.submit(noop)  # connects
    pool = stage.pool(wait=False)
    stage.until_completed(queue, before + count // 100)
    probe.until(completed(before + count))
    stage.end(pool)
    return probe
