"""A steady load for long: what the manager uses does not grow. ``TASKQ_SOAK_MINUTES`` (20) says for how long."""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from cluster import Cluster

from taskq.queue.idempotency import KEPT
from taskq.queue.terms import new_task
from taskq.wire.client import RemoteQueue
from taskq.wire.codec import encode_arguments

MINUTES = float(os.environ.get("TASKQ_SOAK_MINUTES", "20"))
RATE = 2000
"""Tasks a second."""
BATCH = 100
CALLERS = 8
DOUBLE = encode_arguments((), {"operation": "double", "value": 1})
REMEMBERED = 2 * KEPT
"""Submit calls that a manager remembers, at most; until there were so many, its memory grows with them."""


def slope(points: list[tuple[float, float]]) -> float:
    """Growth an hour, by least squares."""
    return statistics.linear_regression(*zip(*points, strict=True)).slope * 3600


def fill_what_is_remembered(cluster: Cluster) -> None:
    """So many calls that nothing more is remembered from then on."""

    def call(client: int) -> None:
        queue = RemoteQueue(cluster.join)
        for seq in range(1, REMEMBERED // CALLERS + 1):
            queue.submit(client, seq, [new_task("compute", DOUBLE)])
        queue.close()

    with ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(call, range(1, CALLERS + 1)))


def fill_the_page_cache(cluster: Cluster) -> None:
    """So much in the store that SQLite's cache of its pages (32 MiB) is full.

    Until then it grows with each submit call that is kept, for a day.
    """
    queue = RemoteQueue(cluster.join)
    later = new_task("compute", bytes(64 * 1024), delay=365 * 86400.0)
    for seq in range(1, 101):
        queue.submit(CALLERS + 1, seq, [later] * 8)
    queue.close()


@pytest.mark.full
@pytest.mark.timeout(int(MINUTES * 60) + 300)
def test_what_a_manager_uses_does_not_grow_under_a_steady_load(cluster: Cluster) -> None:
    manager = cluster.manager("--keep-completed", "30s", workers=2, threads=4)
    process = psutil.Process(manager.pid)
    client = cluster.client()
    store = cluster.state / "store.sqlite"
    memory: list[tuple[float, float]] = []
    descriptors: list[int] = []
    sizes: list[int] = []
    answers: list[tuple[float, float]] = []
    fill_the_page_cache(cluster)
    fill_what_is_remembered(cluster)
    began = next_sample = time.monotonic()
    done = 0
    while (now := time.monotonic()) < began + MINUTES * 60:
        asked = time.perf_counter()
        client.submit("compute", operation="double", value=done).result(timeout=30)
        answers.append((now - began, time.perf_counter() - asked))
        with client.pipeline() as pipeline:
            for number in range(BATCH - 1):
                pipeline.submit("compute", operation="double", value=number)
        done += BATCH
        if now >= next_sample:
            next_sample += 1.0
            if now - began > MINUTES * 60 / 4:  # after warming up
                memory.append((now, process.memory_info().rss / 2**20))
                descriptors.append(process.num_fds())
                sizes.append(store.stat().st_size)
        time.sleep(max(0.0, began + done / RATE - time.monotonic()))
    parts = [[took for at, took in answers if low <= at / (MINUTES * 60) < low + 0.25] for low in (0.25, 0.75)]
    early, late = (sorted(part)[len(part) * 99 // 100] for part in parts)
    grows = slope(memory)
    print(
        f"T19: {done:,} tasks in {MINUTES:g} min: memory {memory[-1][1]:.0f} MiB, {grows:+.1f} MiB/h, descriptors"
        f" {min(descriptors)} to {max(descriptors)}, database {sizes[0] >> 20} to {max(sizes) >> 20} MiB,"
        f" p99 {early * 1e3:.1f} ms, then {late * 1e3:.1f} ms"
    )
    assert done > 0.9 * RATE * MINUTES * 60, "the load was not what it should be"
    assert grows < 1.0 + 60 / MINUTES, "in a short run a mebibyte more is a large slope"
    assert max(descriptors) - min(descriptors) <= 2
    assert max(sizes) <= 1.5 * min(sizes)
    assert late <= 1.2 * early + 0.005
