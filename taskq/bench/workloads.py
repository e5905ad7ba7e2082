"""The table of workloads: what `taskq bench` can measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from taskq.bench import backlog, idle, latency, mixed, submitting, throughput
from taskq.bench.figures import Row
from taskq.bench.settings import Settings


class Workload(NamedTuple):
    """One line of the table. ``quick``: measured when nobody names what to measure.

    ``joinable``: it can measure a manager that runs already; the others need one of their own.
    """

    id: str
    name: str
    bar: str
    run: Callable[[Settings], list[Row]]
    quick: bool = True
    joinable: bool = False


WORKLOADS = {
    found.id: found
    for found in (
        Workload("P1", "noop, live", "60 % of the prototype, memory 50 %", throughput.live, joinable=True),
        Workload("P2", "noop, drain of 200,000", "60 % of the prototype", throughput.drain),
        Workload("P3", "submit, one call a task, workers off", "see --floor", submitting.submit),
        Workload("P4", "idle, submit to result", "4 round trips + 2 commits + 0.2 ms; p99 2 ms", latency.idle),
        Workload("P5", "sleeps and CPU, efficiency", "plain BaseManager - .02", mixed.efficiency, quick=False),
        Workload("P6", "200 a second at random, 1 % long", "p99 of waiting 25 ms", mixed.mixed, quick=False),
        Workload("P7", "small calls beside P2", "p99 10 ms + worst commit", latency.beside_a_drain),
        Workload("P8", "payloads of 10 KiB and 1 MiB", "60 % of the floor", submitting.payloads, quick=False),
        Workload("P9", "backlog up to 1,000,000", "CPU x 1.3, 600 B a task, restart 6 s", backlog.backlog, quick=False),
        Workload("P9-5M", "the same with 5,000,000", "as P9; needs 4 GiB", backlog.large_backlog, quick=False),
        Workload("P10", "P1 beside 500 waiting workers", "80 % of P1", throughput.beside_many, quick=False),
        Workload("P11", "footprint, idle", "110 MiB, 0.5 % CPU, 1 wake-up a second", idle.footprint, quick=False),
        Workload("P12", "cold commands", "submit 0.15 s, monitor --once 0.35 s", idle.commands),
        Workload("P13", "start to first result", "1 s", idle.start),
        Workload("P14", "1,000,000 came and were purged", "2 x live + 16 MiB; 100 ms", backlog.purged, quick=False),
    )
}
