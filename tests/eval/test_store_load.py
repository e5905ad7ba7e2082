"""A store of a million pending tasks: it is looked through and loaded in seconds, without a second copy in memory.

Measured in seconds of processor time, so that other work on the machine does not count.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from yardstick import least

from taskq.queue.task import FINAL, State
from taskq.queue.task_row import TaskRow
from taskq.stores.base import Batch, Opened
from taskq.stores.sqlite import SqliteStore

pytestmark = pytest.mark.speed

COUNT = 1_000_000
OVER = COUNT // 4
"""Tasks that came after those and are completed."""
MIB = 2**20
LOAD = 0.9
"""Processor time for each record that is looked at and loaded, beside what a task costs at least from end to end."""


def pending(id: int) -> TaskRow:
    """A record as a submit leaves it."""
    fields = (id, "compute", "default", 0, 3, 1.0, None, b"x" * 40, None, f"c{id:012}", 7, 1.7e9, 1.7e9, State.PENDING)
    return TaskRow(*fields, 0, 0, 0, False, *[None] * 7)  # type: ignore[arg-type]


def completed(id: int) -> TaskRow:
    """The same at its end."""
    return pending(id)._replace(
        payload=None, state=int(State.COMPLETED), run=id, worker="w" * 16, worker_name="host/1", finished_at=1.7e9
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a million pending tasks, and some that are over; closed."""
    path = tmp_path_factory.mktemp("million") / "store.sqlite"
    store = SqliteStore(path)
    store.open()
    for start in range(1, COUNT + 1, 10_000):
        store.write(Batch(new=[pending(id) for id in range(start, start + 10_000)], next_id=start + 10_000))
    for start in range(COUNT + 1, COUNT + OVER + 1, 10_000):
        store.write(Batch(new=[completed(id) for id in range(start, start + 10_000)], next_id=start + 10_000))
    store.close()
    return path


def test_a_million_pending_tasks_are_loaded_in_seconds(path: Path) -> None:
    process = psutil.Process(os.getpid())
    base = process.memory_info().rss
    peak, last = base, 0

    def take(opened: Opened, rows: Iterator[TaskRow]) -> None:
        nonlocal peak, last
        for row in rows:
            assert row.id == last + 1
            last = row.id
            if last % 100_000 == 0:
                peak = max(peak, process.memory_info().rss)

    store = SqliteStore(path)
    began = time.process_time()
    opened = store.open(take)
    took = time.process_time() - began
    store.close()
    unit = least().cpu / 1e6
    print(f"unit {unit * 1e6:.2f} us, open and load {took:.2f} s, {(peak - base) / MIB:.0f} MiB more")
    assert (opened.live, opened.next_id, last) == (COUNT, COUNT + OVER + 1, COUNT)
    assert peak - base < 100 * MIB
    assert took / COUNT < LOAD * unit


def test_purging_costs_the_same_in_a_large_store(path: Path) -> None:
    """Nothing old enough: no reading through a million records; a thousand of them: milliseconds."""
    store = SqliteStore(path)
    store.open()
    began = time.process_time()
    for _ in range(100):
        assert store.purge(FINAL, 1.6e9, 1000, 2e9) == {}
    nothing_took = (time.process_time() - began) / 100
    began = time.process_time()
    for _ in range(10):
        assert store.purge(FINAL, 1.8e9, 1000, 2e9) == {State.COMPLETED: 1000}
    thousand_took = (time.process_time() - began) / 10
    store.close()
    print(f"nothing {nothing_took * 1e3:.2f} ms, a thousand {thousand_took * 1e3:.2f} ms")
    assert nothing_took < 0.02
    assert thousand_took < 0.2
