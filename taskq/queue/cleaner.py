"""The thread that deletes from the store what is too old, and gives its room back to the disk.

It works a piece at a time, and between two of them goes whoever waits for the store: a commit waits for one piece, of
some milliseconds, however much there is to delete.
"""

from __future__ import annotations

from collections.abc import Callable

from taskq.queue.background import Background

PERIOD = 2.0
"""Seconds between two looks for records whose time is over; so short that they are deleted as they come."""


class Cleaner(Background):
    """A thread that calls ``clean``, which does one piece and gives whether there may be more."""

    def __init__(self, clean: Callable[[], bool]) -> None:
        super().__init__("cleaner", "cleaning up")
        self._clean = clean

    def call(self) -> None:
        """There is something to clean up now."""
        self._wake.set()

    def _run(self) -> None:
        more = False
        while not self._stopping:
            if not more:
                self._wake.wait(PERIOD)
                self._wake.clear()
            more = not self._stopping and self._attempt(self._clean, otherwise=False)
