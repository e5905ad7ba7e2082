"""What many tasks cost: P9 while they wait, P14 after they have been there."""

from __future__ import annotations

import threading
import time
from typing import Any, NamedTuple

import psutil

from taskq.bench.figures import Row
from taskq.bench.latency import Probe, completed
from taskq.bench.settings import Settings
from taskq.bench.stage import Stage, cpu
from taskq.bench.tasks import noop
from taskq.client import Client
from taskq.errors import ManagerUnavailable
from taskq.wire.client import RemoteQueue

MIB = 1024 * 1024

# -- P9

SIZES = (1_000, 100_000, 1_000_000)
LARGE_SIZES = (1_000, 5_000_000)
MORE = 50_000
"""Tasks that are submitted on top of a backlog, and drained from it again."""
LEAST_MORE = 10_000
TICK = 0.01
"""Seconds: the step in which systems count processor time. Fewer tasks would be lost in it."""
AT_SPEED = 2_000
"""Tasks after which a pool that was just attached counts as running at full speed."""
GROWTH = 1.3
"""How many times the processor time at the smallest backlog it may be at the largest."""
EMPTY = 40 * MIB
"""Bytes that a manager without tasks may have."""
BYTES_PER_TASK = 600
RESTART = 6.0
"""Seconds for each million tasks."""


class Costs(NamedTuple):
    """Of the manager, at one size of the backlog: microseconds of processor time a task, resident bytes."""

    submit: float
    drain: float
    resident: int


def backlog(settings: Settings) -> list[Row]:
    """P9."""
    return _backlog(settings, "P9", SIZES)


def large_backlog(settings: Settings) -> list[Row]:
    """P9 at 5,000,000 tasks; it takes minutes and some 3 GiB of memory."""
    return _backlog(settings, "P9-5M", LARGE_SIZES)


def _backlog(settings: Settings, id: str, sizes: tuple[int, ...]) -> list[Row]:
    found: dict[int, list[Costs]] = {size: [] for size in sizes}
    restarts = []
    for run in range(settings.runs):
        with settings.stage(workers=0, options=("--max-pending", str(2 * max(sizes)))) as stage:
            for size in sizes:
                settings.say(f"{id}: run {run + 1} of {settings.runs}, {settings.count(size):,} tasks")
                found[size].append(_costs(settings, stage, settings.count(size)))
            settings.say(f"{id}: run {run + 1} of {settings.runs}, restart")
            pending = sum(queue["pending"] for queue in stage.snapshot()["queues"])
            restarts.append(stage.restart() * 1e6 / pending)
    rows = [row for size in sizes for row in _cost_rows(id, size, settings.count(size), found[size])]
    growth = [max(last.submit / first.submit, last.drain / first.drain) for first, last in _ends(found)]
    rows.append(Row(id, "CPU a task, largest to smallest", "x", tuple(growth), f"<= {GROWTH}", GROWTH, at_most=True))
    return [
        *rows,
        Row(id, "restart, per million tasks", "s", tuple(restarts), f"<= {RESTART:g}", RESTART, at_most=True),
    ]


def _ends(found: dict[int, list[Costs]]) -> list[tuple[Costs, Costs]]:
    """The costs at the smallest and at the largest size, of each run."""
    return list(zip(found[min(found)], found[max(found)], strict=True))


def _cost_rows(id: str, size: int, pending: int, costs: list[Costs]) -> list[Row]:
    name = f"{pending:,} pending"
    rows = [
        Row(id, f"{name}, manager, a submit", "us CPU", tuple(cost.submit for cost in costs)),
        Row(id, f"{name}, manager, a drained task", "us CPU", tuple(cost.drain for cost in costs)),
    ]
    if size > SIZES[0]:  # of few tasks one cannot tell
        each = tuple((cost.resident - EMPTY) / pending for cost in costs)
        limit = float(BYTES_PER_TASK)
        rows.append(Row(id, f"{name}, memory beyond 40 MiB", "B/task", each, f"<= {limit:g}", limit, at_most=True))
    return rows


def _costs(settings: Settings, stage: Stage, size: int) -> Costs:
    """Fill the backlog up to ``size``, submit more on top of it, drain as many from it."""
    client, queue = stage.client(), stage.service()
    [manager] = stage.processes()["manager"]
    more = max(LEAST_MORE, settings.count(MORE))
    there = sum(found["pending"] for found in queue.snapshot()["queues"])
    client.map(noop, range(max(0, size - there)))
    resident = manager.memory_info().rss
    before = cpu(manager)
    client.map(noop, range(more))
    submit = max(TICK, cpu(manager) - before) / more
    return Costs(submit * 1e6, _drain(stage, queue, manager, more) * 1e6, resident)


def _drain(stage: Stage, queue: RemoteQueue, manager: psutil.Process, count: int) -> float:
    """The manager's processor seconds for each task that workers drain."""
    before = int(queue.snapshot()["totals"]["completed"])
    pool = stage.pool(wait=False)
    first = stage.until_completed(queue, before + min(AT_SPEED, count // 5), pause=0.001)
    started = cpu(manager)
    last = stage.until_completed(queue, max(first + 1, before + count), pause=0.02)
    used = max(TICK, cpu(manager) - started)
    stage.end(pool)
    return used / (last - first)


# -- P14

CAME = 1_000_000
STAYING = 100
"""One task in so many is due tomorrow and stays."""
TOMORROW = 86_400.0
TOLERATED = 16 * MIB
PAUSE = 100.0
"""Milliseconds."""
SHRINKS_WITHIN = 10.0
"""Seconds after a purge for the file to become smaller."""
QUIET = 1.0
"""Seconds without a change after which the file has its size."""


class Purged(NamedTuple):
    """One run: the file and its log in the end (MiB), and the longest that a small call took meanwhile (ms)."""

    file: float
    log: float
    draining: float
    purging: float
    shrinking: float


def purged(settings: Settings) -> list[Row]:
    """P14: tasks come, run and are purged; a few among them stay. How large is the file, and who had to wait?"""
    live = _live_bytes(settings)
    runs = []
    for run in range(settings.runs):
        settings.say(f"P14: run {run + 1} of {settings.runs}")
        with settings.stage(workers=0, options=("--max-pending", str(2 * settings.count(CAME)))) as stage:
            runs.append(_come_and_go(stage, settings.count(CAME)))
    limit = (2 * live + TOLERATED) / MIB
    pause = PAUSE + settings.commits.worst * 1e3
    bar = f"<= {pause:.0f} (100 + worst commit)"
    files, logs, *pauses = map(tuple, zip(*runs, strict=True))
    return [
        Row("P14", "file after the purge", "MiB", files, f"<= {limit:.1f} (floor)", limit, at_most=True),
        Row("P14", "its write-ahead log", "MiB", logs),
        *(
            Row("P14", f"worst pause while {name}", "ms", worst, bar, pause, at_most=True)
            for name, worst in zip(("draining", "purging", "the file shrinks"), pauses, strict=True)
        ),
    ]


def _come_and_go(stage: Stage, count: int) -> Purged:
    _come(stage.client(), count)
    draining = Probe(stage.client(), stage.service())
    pool = stage.pool()
    draining.until(completed(count))
    purging = _purge(stage)
    shrinking = Probe(stage.client(), stage.service())
    shrinking.until(_Settled(stage))
    stage.end(pool)
    return Purged(*_sizes(stage), _worst(draining), _worst(purging), _worst(shrinking))


def _come(client: Client, count: int) -> None:
    """Submit so many tasks to run at once, and among them some that stay."""
    piece = 100 * STAYING
    for start in range(0, count, piece):
        now = min(piece, count - start)
        client.map(noop, range(now))
        client.map(noop.options(delay=TOMORROW), range(now // STAYING))


def _live_bytes(settings: Settings) -> int:
    """Bytes of a file in which only those are that stay."""
    with settings.stage(workers=0) as stage:
        stage.client().map(noop.options(delay=TOMORROW), range(settings.count(CAME) // STAYING))
        stage.restart()  # which moves the log into the file
        return int(_sizes(stage)[0] * MIB)


def _purge(stage: Stage) -> Probe:
    """Purge all that is completed, while a client makes small calls."""
    probe = Probe(stage.client(), stage.service())
    ended = threading.Event()

    def purge() -> None:
        queue = stage.service()
        try:
            queue.purge(["completed"], 0.0)
        except ManagerUnavailable:  # it took longer than a call may: the manager goes on with it
            stage.wait_until(lambda: queue.snapshot()["kept"].get("completed", 0) < 1_000, 300.0, "the purge", 0.1)
        finally:
            ended.set()

    thread = threading.Thread(target=purge, name="bench-purge")
    thread.start()
    probe.until(lambda snapshot: ended.is_set())
    thread.join()
    return probe


def _worst(probe: Probe) -> float:
    return max(probe.snapshots + probe.submits) * 1e3


def _sizes(stage: Stage) -> tuple[float, float]:
    """MiB of the store's file and of its log."""
    names = ("store.sqlite", "store.sqlite-wal")
    paths = [stage.join.parent / name for name in names]
    file, log = (path.stat().st_size / MIB if path.exists() else 0.0 for path in paths)
    return file, log


class _Settled:
    """A condition for a probe: the file has not become smaller or larger for a while."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._size, self._since = 0.0, time.monotonic()
        self._give_up = self._since + SHRINKS_WITHIN

    def __call__(self, snapshot: dict[str, Any]) -> bool:
        size, now = _sizes(self._stage)[0], time.monotonic()
        if size != self._size:
            self._size, self._since = size, now
        return now > min(self._give_up, self._since + QUIET)
