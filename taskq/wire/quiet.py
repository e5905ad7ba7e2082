"""Log lines about peers: few, however many peers there are and whatever they do."""

from __future__ import annotations

import logging
import threading
import time
import traceback

from taskq.logs import event

QUIET = 10.0
"""Seconds until the same is said again of the same address."""
LINES = 20
"""Most lines in that time, over all addresses."""
_REMEMBERED = 1_000

_log = logging.getLogger(__name__)


class QuietLog:
    """Says the same of the same address once in `QUIET` seconds, and no more than `LINES` in all in that time; then
    with the number of those that were left out. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said: dict[tuple[str, str], tuple[float, int]] = {}
        self._since = 0.0
        self._lines = 0

    def say(self, what: str, peer: str, error: Exception | None = None) -> None:
        """A line in the log, unless it is too much. ``peer``: an address, or empty; ``error`` is shown in full."""
        with self._lock:
            missed = self._missed((what, peer), time.monotonic())
        if missed is None:
            return
        text = what + (f" (from {peer})" if peer else "")
        text += f" ({missed} more since the last such line)" if missed else ""
        if error is None:
            event(_log, logging.WARNING, "peer_refused", text)
        else:
            event(_log, logging.ERROR, "internal_error", text, error="".join(traceback.format_exception(error)))

    def _missed(self, line: tuple[str, str], now: float) -> int | None:
        """How often this line was left out since it was last said; None: it is left out now."""
        if now - self._since >= QUIET:
            self._since, self._lines = now, 0
        said, missed = self._said.pop(line, (now - QUIET, 0))
        if len(self._said) >= _REMEMBERED:  # the one that was looked at longest ago
            del self._said[next(iter(self._said))]
        if now - said < QUIET or self._lines >= LINES:
            self._said[line] = said, missed + 1
            return None
        self._lines += 1
        self._said[line] = now, 0
        return missed
