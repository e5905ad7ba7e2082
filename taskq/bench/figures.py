"""What was measured, and how it compares with its bar. PURE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SCHEMA = "taskq.bench/1"


def median(values: Sequence[float]) -> float:
    """The middle value; between the two middle ones of an even number.

    >>> median([3, 1, 2]), median([4, 1])
    (2, 2.5)
    """
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` % of the values do not exceed.

    >>> percentile(range(1, 101), 99), percentile([5], 50)
    (99, 5)
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True)
class Row:
    """One figure of a workload: a value for each run, and the bar that their median is held against.

    ``limit``: the bar as a number, where it is known or was measured in the same run; None: ``bar`` is for the reader.
    ``at_most``: the bar is the largest value that is good, else the smallest.
    """

    workload: str
    name: str
    unit: str
    values: tuple[float, ...]
    bar: str = ""
    limit: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def median(self) -> float:
        """The figure."""
        return median(self.values)

    @property
    def passed(self) -> bool | None:
        """Whether the median is as good as the bar; None without a number to compare with."""
        if self.limit is None:
            return None
        return self.median <= self.limit if self.at_most else self.median >= self.limit

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data; ``lowest`` and ``highest`` are the noise."""
        return {
            "workload": self.workload,
            "name": self.name,
            "unit": self.unit,
            "values": list(self.values),
            "median": self.median,
            "lowest": min(self.values),
            "highest": max(self.values),
            "bar": self.bar,
            "limit": self.limit,
            "at_most": self.at_most,
            "passed": self.passed,
            "note": self.note,
        }
