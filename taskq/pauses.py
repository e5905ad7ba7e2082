"""Pauses between attempts to reach a manager that is away, or has no room. No clock: it only says how long."""

from __future__ import annotations

from taskq.queue.retry import unit_hash

LONGEST = 3.0
"""Seconds between two attempts, at most."""
SHORTEST = 0.05


class Pauses:
    """Short pauses at first, then longer ones, with equal jitter so that not all processes come back at once.

    ``seed`` sets the jitter: a number of the process's own. ``shortest``: half of the first pause, about, in seconds.
    """

    def __init__(self, seed: int, shortest: float = SHORTEST) -> None:
        self._seed = seed
        self._shortest = shortest
        self._attempts = 0

    def reset(self) -> None:
        """An attempt was successful."""
        self._attempts = 0

    def next(self) -> float:
        """Seconds to wait after an attempt that failed.

        >>> pauses = Pauses(7)
        >>> all(pauses.next() <= 3.0 for _ in range(50))
        True
        """
        self._attempts += 1
        longest = min(LONGEST, self._shortest * 2.0 ** min(self._attempts, 10))
        return longest * (0.5 + unit_hash(self._seed, self._attempts) / 2)
