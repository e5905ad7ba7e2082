"""Rates and distributions that cost the same however much has happened. PURE."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

WINDOW = 10
"""Seconds over which rates are taken."""
SPAN = 60.0
"""Seconds after which a distribution starts to forget."""

_STEPS = 4
"""Buckets for each doubling: a percentile is exact to about 10 %."""


class Rate:
    """Events a second over the last `WINDOW` full seconds."""

    __slots__ = ("_counts", "_second")

    def __init__(self) -> None:
        self._counts = [0] * (WINDOW + 1)
        self._second = 0

    def _roll(self, now: float) -> int:
        second = int(now)
        for passed in range(max(self._second + 1, second - WINDOW), second + 1):
            self._counts[passed % (WINDOW + 1)] = 0
        self._second = max(second, self._second)
        return self._second % (WINDOW + 1)

    def add(self, count: int, now: float) -> None:
        """Count events at ``now`` (monotonic seconds)."""
        second = int(now)
        self._counts[second % (WINDOW + 1) if second == self._second else self._roll(now)] += count

    def per_second(self, now: float) -> float:
        """Mean over the last full seconds.

        >>> rate = Rate()
        >>> rate.add(50, 100.5)
        >>> rate.per_second(101.0), rate.per_second(200.0)
        (5.0, 0.0)
        """
        current = self._roll(now)
        return (sum(self._counts) - self._counts[current]) / WINDOW


def bucket_of(seconds: float) -> int:
    """Where a `Distribution` counts a duration (0 or more)."""
    return int(math.log2(seconds * 1e6 + 1.0) * _STEPS)


def buckets_of(durations: Iterable[float]) -> Counter[int]:
    """How many of these durations belong to each bucket."""
    return Counter([int(math.log2(seconds * 1e6 + 1.0) * _STEPS) for seconds in durations])


class Distribution:
    """Durations in logarithmic buckets; percentiles over the last one to two `SPAN`."""

    __slots__ = ("_before", "_now", "_since")

    def __init__(self) -> None:
        self._now: dict[int, int] = {}
        self._before: dict[int, int] = {}
        self._since = 0.0

    def add(self, buckets: Mapping[int, int], now: float) -> None:
        """Count so many durations of each bucket, see `buckets_of`, at ``now`` (monotonic seconds)."""
        if now - self._since > SPAN:
            self._before = self._now if now - self._since < 2 * SPAN else {}
            self._now = {}
            self._since = now
        counts = self._now
        for bucket, count in buckets.items():
            counts[bucket] = counts.get(bucket, 0) + count

    def percentiles(self, now: float) -> dict[str, float | None]:
        """``p50``, ``p95`` and ``p99`` in seconds, None when nothing was counted lately.

        >>> spread = Distribution()
        >>> for _ in range(100): spread.add(buckets_of([0.010]), 1.0)
        >>> 0.009 < spread.percentiles(2.0)["p95"] < 0.012
        True
        """
        counts: dict[int, int] = {}
        recent = (self._before, self._now) if now - self._since <= SPAN else (self._now,)
        if now - self._since <= 2 * SPAN:
            for part in recent:
                for bucket, count in part.items():
                    counts[bucket] = counts.get(bucket, 0) + count
        return {f"p{share}": _percentile(counts, share / 100) for share in (50, 95, 99)}


def _percentile(counts: dict[int, int], share: float) -> float | None:
    rank = math.ceil(sum(counts.values()) * share)
    for bucket in sorted(counts):
        rank -= counts[bucket]
        if rank <= 0:
            return float((2.0 ** ((bucket + 0.5) / _STEPS) - 1.0) / 1e6)
    return None
