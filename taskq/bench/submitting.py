"""How fast tasks are accepted: P3 small ones, one call each; P8 large payloads. On disk before a call returns."""

from __future__ import annotations

import os
import subprocess
import time

from taskq.bench import floors
from taskq.bench.figures import Row, median
from taskq.bench.settings import Settings
from taskq.bench.tasks import noop, swallow
from taskq.client import Client

SECONDS = 1.5
"""How long a run submits."""
PROCESSES, THREADS = 4, 4
PIPELINED = 50_000
SIZES = (("10 KiB", 10 * 1024, 5_000, 4_000.0), ("1 MiB", 1024 * 1024, 100, 150.0))
"""Name and bytes of a payload; tasks a run; the bar for tasks a second, live and in memory."""
OPTIONS = ("--max-payload", "2MiB")
"""The arguments of a task are a little larger than the payload in them."""


# -- P3


def submit(settings: Settings) -> list[Row]:
    """P3."""
    return [_one_client(settings), _many_clients(settings), _pipeline(settings)]


def _one_client(settings: Settings) -> Row:
    """The bar is what a bare round trip and a bare commit leave room for; all three are measured in turn."""
    rates, floor = [], []
    with settings.stage(workers=0) as stage:
        client, queue = stage.client(), stage.service()
        client.submit(noop)
        for run in range(settings.runs):
            settings.say(f"P3 (a) one client: run {run + 1} of {settings.runs}")
            floor.append(1 / (floors.wire(queue, 1_000) + floors.commits(300).median))
            rates.append(_for_a_while(client, settings.seconds(SECONDS)))
    limit = 0.7 * median(floor)
    bar = f">= {limit:,.0f} = 70 % of floor"
    return Row("P3", "(a) submit, one client", "tasks/s", tuple(rates), bar=bar, limit=limit)


def _for_a_while(client: Client, seconds: float) -> float:
    count = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        client.submit(noop, count)
        count += 1
    return count / (time.perf_counter() - started)


def _many_clients(settings: Settings) -> Row:
    rates = []
    seconds = settings.seconds(SECONDS)
    with settings.stage(workers=0) as stage:
        for run in range(settings.runs):
            settings.say(f"P3 (b) {PROCESSES * THREADS} threads: run {run + 1} of {settings.runs}")
            loads = [stage.load("submitters", THREADS, seconds) for _ in range(PROCESSES)]
            started = time.perf_counter()
            for load in loads:
                _tell_to_go(load)
            done = sum(map(_number_from, loads))
            rates.append(done / (time.perf_counter() - started))
            for load in loads:
                stage.end(load)
    name = f"(b) {THREADS} threads in {PROCESSES} processes"
    return Row("P3", name, "tasks/s", tuple(rates), bar=">= 12,000", limit=12_000.0)


def _tell_to_go(load: subprocess.Popen[bytes]) -> None:
    assert load.stdin is not None
    load.stdin.write(b"go\n")
    load.stdin.flush()


def _number_from(load: subprocess.Popen[bytes]) -> int:
    assert load.stdout is not None
    return int(load.stdout.readline())


def _pipeline(settings: Settings) -> Row:
    rates = []
    count = settings.count(PIPELINED)
    with settings.stage(workers=0) as stage:
        client = stage.client()
        client.submit(noop)
        for run in range(settings.runs):
            settings.say(f"P3 (c) pipeline: run {run + 1} of {settings.runs}")
            started = time.perf_counter()
            with client.pipeline() as pipeline:
                for number in range(count):
                    pipeline.submit(noop, number)
            rates.append(count / (time.perf_counter() - started))
    return Row("P3", "(c) one client, pipeline", "tasks/s", tuple(rates), bar=">= 40,000", limit=40_000.0)


# -- P8


def payloads(settings: Settings) -> list[Row]:
    """P8."""
    rows = []
    for name, size, tasks, bar in SIZES:
        rows.append(_durable(settings, name, os.urandom(size), settings.count(tasks)))
        rows.append(_live(settings, name, os.urandom(size), settings.count(tasks), bar))
    return rows


def _durable(settings: Settings, name: str, payload: bytes, count: int) -> Row:
    """A fresh store for each run, as the floor has one: large files grow slower."""
    rates, floor = [], []
    for run in range(settings.runs):
        settings.say(f"P8 {name}, sqlite: run {run + 1} of {settings.runs}")
        floor.append(floors.insert_rate(len(payload), count))
        with settings.stage(workers=0, options=OPTIONS) as stage:
            client = stage.client()
            client.submit(noop)
            started = time.perf_counter()
            client.map(swallow, [payload] * count)
            rates.append(count / (time.perf_counter() - started))
    limit = 0.6 * median(floor)
    bar = f">= {limit:,.0f} = 60 % of floor"
    return Row("P8", f"submit {name}, sqlite", "tasks/s", tuple(rates), bar=bar, limit=limit)


def _live(settings: Settings, name: str, payload: bytes, count: int, bar: float) -> Row:
    rates = []
    with settings.stage(store="memory:", options=OPTIONS) as stage:
        client, queue = stage.client(), stage.service()
        for run in range(settings.runs):
            settings.say(f"P8 {name}, memory: run {run + 1} of {settings.runs}")
            before = int(queue.snapshot()["totals"]["completed"])
            started = time.perf_counter()
            last = client.map(swallow, [payload] * count)[-1]
            stage.until_completed(queue, before + count, last=last)
            rates.append(count / (time.perf_counter() - started))
    return Row("P8", f"live {name}, memory", "tasks/s", tuple(rates), bar=f">= {bar:,.0f}", limit=bar)
