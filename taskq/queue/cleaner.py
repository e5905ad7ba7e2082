"""The thread that deletes from the store what is too old, and gives its room back to the disk.

It works a piece at a time, and between two of them goes whoever waits for the store: a commit waits for one piece, of
some milliseconds, however much there is to delete.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from taskq import threads
from taskq.errors import TaskqError
from taskq.logs import event

log = logging.getLogger("taskq.queue")

PERIOD = 2.0
"""Seconds between two looks for records whose time is over; so short that they are deleted as they come."""


class Cleaner:
    """A thread that calls ``clean``, which does one piece and gives whether there may be more."""

    def __init__(self, clean: Callable[[], bool]) -> None:
        self._clean = clean
        self._wake = threads.event()
        self._stopping = False
        self._thread: threads.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threads.new_thread(self._run, "cleaner")
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the piece that is under way, and wait for it."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def call(self) -> None:
        """There is something to clean up now."""
        self._wake.set()

    def _run(self) -> None:
        more = False
        while not self._stopping:
            if not more:
                self._wake.wait(PERIOD)
                self._wake.clear()
            more = not self._stopping and self._piece()

    def _piece(self) -> bool:
        try:
            return self._clean()
        except TaskqError as error:  # the store is broken: whoever waits for it is told, and the manager ends
            event(log, logging.ERROR, "failed", f"cleaning up: {error.message}")
        except Exception:  # a bug in one piece must not be the end of all further ones
            log.exception("cleaning up", extra={"taskq_event": "internal_error", "taskq_fields": {}})
        return False
