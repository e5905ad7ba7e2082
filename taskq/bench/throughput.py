"""How many tasks a second go through: P1 live, P2 from a backlog, P10 beside many waiting workers."""

from __future__ import annotations

import time

from taskq.bench.figures import Row
from taskq.bench.settings import Settings
from taskq.bench.stage import Stage
from taskq.bench.tasks import noop
from taskq.client import Client
from taskq.wire.client import RemoteQueue

LIVE = 100_000
DRAINED = 200_000
WARM_UP = 2_000
AT_SPEED = 1_000
"""Tasks after which a pool that was just attached counts as running at full speed."""
BYSTANDERS = 500


class Live:
    """A stage and its client: a run is tasks submitted while workers run them, until the last one is completed."""

    def __init__(self, stage: Stage, settings: Settings) -> None:
        self.stage = stage
        self.client: Client = stage.client()
        self.queue: RemoteQueue = stage.service()
        self.run(settings.count(WARM_UP))  # workers learn which tasks are short

    def run(self, count: int) -> float:
        """Tasks a second, from the first submit to the last ack."""
        before = int(self.queue.snapshot()["totals"]["completed"])
        started = time.perf_counter()
        handles = self.client.map(noop, range(count))
        self.stage.until_completed(self.queue, before + count, last=handles[-1])
        return count / (time.perf_counter() - started)


def live(settings: Settings) -> list[Row]:
    """P1."""
    if settings.join is not None:
        return [_live(settings, "joined manager", "sqlite")]
    return [_live(settings, "sqlite", "sqlite"), _live(settings, "memory", "memory:")]


def _live(settings: Settings, name: str, store: str) -> Row:
    rates = []
    with settings.stage(store=store) as stage:
        bench = Live(stage, settings)
        for run in range(settings.runs):
            settings.say(f"P1 {name}: run {run + 1} of {settings.runs}")
            rates.append(bench.run(settings.count(LIVE)))
    return Row("P1", f"live, {name}", "tasks/s", tuple(rates), bar="see README")


def drain(settings: Settings) -> list[Row]:
    """P2."""
    rates = []
    count = settings.count(DRAINED)
    with settings.stage(workers=0) as stage:
        client, queue = stage.client(), stage.service()
        for run in range(settings.runs):
            settings.say(f"P2: run {run + 1} of {settings.runs}")
            before = int(queue.snapshot()["totals"]["completed"])
            last = client.map(noop, range(count))[-1]
            pool = stage.pool(wait=False)
            first = stage.until_completed(queue, before + min(AT_SPEED, count // 10), pause=0.001)
            started = time.perf_counter()
            stage.until_completed(queue, before + count, last=last)
            rates.append((before + count - first) / (time.perf_counter() - started))
            stage.end(pool)
    return [Row("P2", "drain of a backlog, sqlite", "tasks/s", tuple(rates), bar="see README")]


def beside_many(settings: Settings) -> list[Row]:
    """P10: two managers take turns, one of them with many workers that wait on a queue where nothing comes."""
    ratios, rates = [], []
    with settings.stage() as alone, settings.stage() as crowded:
        crowded.load("waiters", BYSTANDERS)
        without, beside = Live(alone, settings), Live(crowded, settings)
        for run in range(settings.runs):
            settings.say(f"P10: run {run + 1} of {settings.runs}")
            reference = without.run(settings.count(LIVE))
            rates.append(beside.run(settings.count(LIVE)))
            ratios.append(rates[-1] / reference)
    return [
        Row("P10", f"live, {BYSTANDERS} more workers wait", "tasks/s", tuple(rates)),
        Row("P10", "of the rate without them", "x", tuple(ratios), bar=">= 0.80", limit=0.8),
    ]
