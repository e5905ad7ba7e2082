"""A thread of the queue's own: its start, its end, what wakes it, and what becomes of errors in its rounds."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from taskq import threads
from taskq.errors import TaskqError
from taskq.logs import event

log = logging.getLogger("taskq.queue")

T = TypeVar("T")


class Background(ABC):
    """A thread that does its rounds in `_run` until `_stopping`. ``work``: what logs call it."""

    def __init__(self, name: str, work: str) -> None:
        self._name = name
        self._work = work
        self._wake = threads.event()
        self._stopping = False
        self._thread: threads.Thread | None = None

    def start(self) -> None:
        """Start the thread if it has not been started. Raises `RuntimeError`: there is no room for it."""
        if self._thread is None:
            self._thread = threads.start_thread(self._run, self._name)

    def stop(self) -> None:
        """End the thread after what it does just now, and wait for it."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    @abstractmethod
    def _run(self) -> None:
        """Do one round after the other until `_stopping`."""

    def _attempt(self, round: Callable[[], T], otherwise: T) -> T:
        """What a round gives, ``otherwise`` after an error: it must not be the end of all further ones."""
        try:
            return round()
        except TaskqError as error:  # the store is broken: whoever waits for it is told, and the manager ends
            event(log, logging.ERROR, "failed", f"{self._work}: {error.message}")
        except Exception:  # a bug
            log.exception(self._work, extra={"taskq_event": "internal_error", "taskq_fields": {}})
        return otherwise
