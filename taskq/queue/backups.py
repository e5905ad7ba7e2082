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


class _Copy:
    """One copy: the token of who asked for it, how far it is, and what ended it."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.over = threads.event()
        self.progress = (0, 0)
        self.error: TaskqError | None = None


class Backups:
    """Copies of a store. A copy is known by the token of who asked for it, so that a repeated call finds it again."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threads.lock()
        self._thread: threads.Thread | None = None
        self._last: _Copy | None = None
        self._stopping = False

    def ask(self, path: str, token: int) -> BackedUp:
        """Begin the copy if it has not begun, and wait a little for its end. Raises what ended it."""
        target = Path(path)
        if not target.is_absolute():
            raise BadArguments("a backup needs the whole path of its file")
        with self._lock:
            copy = self._last
            if copy is None or copy.token != token:
                copy = self._begin(target, token)
        over = copy.over.wait(PATIENCE)
        if over and copy.error is not None:
            raise copy.error
        return BackedUp(over, *copy.progress)

    def stop(self) -> None:
        """End a copy that is under way, and wait for it."""
        self._stopping = True
        if self._thread is not None:
            self._thread.join()

    def _begin(self, target: Path, token: int) -> _Copy:
        if self._stopping:
            raise ShuttingDown("the manager is stopping", hint="try again when it is back")
        if self._thread is not None and self._thread.is_alive():
            raise Busy("another backup is being written", hint="try again when it is done")
        copy = _Copy(token)
        try:
            self._thread = threads.start_thread(self._run, "backup", target, copy)
        except RuntimeError as error:
            raise Busy(f"the manager has no thread for a backup: {error}", hint="try again a little later") from None
        self._last = copy  # only now: whoever asks again for one that has not begun begins it
        return copy

    def _run(self, target: Path, copy: _Copy) -> None:
        try:
            self._store.backup(target, lambda done, size: self._between(copy, done, size))
            event(log, logging.INFO, "backup_written", f"a backup of the store is in {target}")
        except TaskqError as error:
            copy.error = error
        except Exception as error:  # whoever asked must hear of it
            log.exception("backup", extra={"taskq_event": "internal_error", "taskq_fields": {}})
            copy.error = TaskqError(f"the backup failed: {error}")
        copy.over.set()

    def _between(self, copy: _Copy, done: int, size: int) -> None:
        copy.progress = (done, size)
        if self._stopping:
            raise ShuttingDown("the manager is stopping; there is no backup", hint="try again when it is back")
