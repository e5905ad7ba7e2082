"""Backups on request: one at a time, in a thread of its own, so that nobody's call takes as long as the copy."""

from __future__ import annotations

import logging
from pathlib import Path

from taskq import threads
from taskq.errors import BadArguments, Busy, ShuttingDown, TaskqError
from taskq.logs import event
from taskq.shapes import BackedUp
from taskq.stores.base import Store

log = logging.getLogger("taskq.queue")

PATIENCE = 1.0
"""Seconds that one call waits for the end of the copy."""


class Backups:
    """Copies of a store. A copy is known by the token of who asked for it, so that a repeated call finds it again."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threads.lock()
        self._over = threads.event()
        self._thread: threads.Thread | None = None
        self._token = 0
        self._stopping = False
        self._progress = (0, 0)
        self._error: TaskqError | None = None

    def ask(self, path: str, token: int) -> BackedUp:
        """Begin the copy if it has not begun, and wait a little for its end. Raises what ended it."""
        target = Path(path)
        if not target.is_absolute():
            raise BadArguments("a backup needs the whole path of its file")
        with self._lock:
            if token != self._token:
                self._begin(target, token)
        over = self._over.wait(PATIENCE)
        if over and self._error is not None:
            raise self._error
        return BackedUp(over, *self._progress)

    def stop(self) -> None:
        """End a copy that is under way, and wait for it."""
        self._stopping = True
        if self._thread is not None:
            self._thread.join()

    def _begin(self, target: Path, token: int) -> None:
        if self._stopping:
            raise ShuttingDown("the manager is stopping", hint="try again when it is back")
        if self._thread is not None and self._thread.is_alive():
            raise Busy("another backup is being written", hint="try again when it is done")
        self._over.clear()
        self._progress, self._error, self._token = (0, 0), None, token
        self._thread = threads.new_thread(self._run, "backup", target)
        self._thread.start()

    def _run(self, target: Path) -> None:
        try:
            self._store.backup(target, self._between)
            event(log, logging.INFO, "backup_written", f"a backup of the store is in {target}")
        except TaskqError as error:
            self._error = error
        except Exception as error:  # whoever asked must hear of it
            log.exception("backup", extra={"taskq_event": "internal_error", "taskq_fields": {}})
            self._error = TaskqError(f"the backup failed: {error}")
        self._over.set()

    def _between(self, done: int, size: int) -> None:
        self._progress = (done, size)
        if self._stopping:
            raise ShuttingDown("the manager is stopping; there is no backup", hint="try again when it is back")
