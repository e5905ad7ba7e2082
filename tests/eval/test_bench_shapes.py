"""The workloads of ``taskq bench``, scaled down: the figures are real ones, and in sane relations with wide margins."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from taskq.bench import backlog, idle, latency, mixed
from taskq.bench.figures import Row
from taskq.bench.settings import Settings


def measured(workload: Callable[[Settings], list[Row]], scale: float = 0.02) -> dict[str, Row]:
    """The figures of one run, by name."""
    rows = workload(Settings(runs=1, scale=scale))
    assert all(row.values and row.workload.startswith("P") for row in rows)
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: row for row in rows}


def test_an_idle_queue_answers_at_once() -> None:
    found = measured(latency.idle, 0.2)
    for store in ("idle", "idle, memory"):
        assert 0.05 < found[f"{store}, p50"].median <= found[f"{store}, p99"].median
        assert found[f"{store}, p50"].median < 10.0
    limit = found["idle, p50"].limit
    assert limit is not None and found["idle, p50"].median < 5 * limit


def test_small_calls_do_not_wait_for_a_drain() -> None:
    found = measured(latency.beside_a_drain, 0.1)
    for row in found.values():
        assert row.limit is not None and row.limit > 10.0
        assert 0.05 < row.median < 10 * row.limit


def test_slots_are_as_busy_as_with_a_plain_manager() -> None:
    rows = mixed.efficiency(Settings(runs=1, scale=0.2))
    assert [row.name for row in rows[::2]] == [load.name for load in mixed.LOADS]
    for reached, plain in zip(rows[::2], rows[1::2], strict=True):
        assert 0.2 < plain.median <= 1.0 and 0.0 < reached.median <= 1.0
        assert reached.median > 0.7 * plain.median


def test_short_tasks_do_not_wait_behind_long_ones() -> None:
    """A long one takes 200 ms, and hardly ever are all four slots taken by them."""
    for row in measured(mixed.mixed).values():
        assert 0.0 < row.median < 4 * mixed.WAITING


def test_a_task_costs_the_same_on_top_of_many() -> None:
    found = measured(backlog.backlog, 0.1)
    growth = found["CPU a task, largest to smallest"].median
    assert 0.2 < growth < 2.5
    memory = found["100,000 pending, memory beyond 40 MiB"].median
    assert 50 < memory < 2 * backlog.BYTES_PER_TASK
    assert 0.0 < found["restart, per million tasks"].median < 5 * backlog.RESTART


def test_a_file_shrinks_when_its_tasks_are_purged() -> None:
    found = measured(backlog.purged, 0.05)
    assert 0.0 < found["file after the purge"].median < 64
    for name in ("worst pause while purging", "worst pause while draining"):
        assert 0.05 < found[name].median < 1_000


def test_an_idle_queue_rests() -> None:
    found = measured(idle.footprint, 0.3)
    assert 30 < found["idle, memory in sum"].median < 2 * idle.MEMORY
    assert found["idle, CPU in sum"].median < 10 * idle.PERCENT
    for role in ("manager", "parent", "worker"):
        if f"{role}, busiest thread" in found:  # not on every system
            assert found[f"{role}, busiest thread"].median < 3 * idle.WAKE_UPS


@pytest.mark.parametrize("workload", [idle.commands, idle.start], ids=["commands", "start"])
def test_nobody_waits_long_for_a_start(workload: Callable[[Settings], list[Row]]) -> None:
    for row in measured(workload).values():
        assert row.limit is not None and 0.02 < row.median < 4 * row.limit
