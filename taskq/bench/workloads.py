"""The table of workloads: what `taskq bench` can measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from taskq.bench import throughput
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
        Workload("P10", "P1 beside 500 waiting workers", "80 % of P1", throughput.beside_many, quick=False),
    )
}
