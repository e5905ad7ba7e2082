"""The files of a real `SqliteStore`, in memory of the system: crashed, torn and broken off where a seed says so.

A crash leaves the files as they are between two system calls, and the next manager opens a copy of them, since the
connection of the dead one, in this process, cannot be closed without a checkpoint that no crash would make. A torn
write leaves a part of the frames of its commit at the end of the log.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskq import threads
from taskq.stores.sqlite import SqliteStore

ENDINGS = ("", "-wal", ".commits")
_SHM = Path("/dev/shm")


class Files:
    """Where the store is."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="taskq-sim-", dir=_SHM if os.access(_SHM, os.W_OK) else None))
        self._mounts = 0
        self._torn: int | None = None
        self._store: SqliteStore | None = None

    @property
    def path(self) -> Path:
        """The file of the manager that runs, or ran last."""
        return self._folder / f"{self._mounts}.sqlite"

    def mount(self) -> SqliteStore:
        """A store on what the last one left; it is to be opened."""
        before = threads.use(threads.SYSTEM)  # within a call of the store nobody else has a turn
        try:
            self._store = SqliteStore(self.path, free_mark=0, reserve=0)
        finally:
            threads.use(before)
        return self._store

    def _beside(self, number: int, ending: str) -> Path:
        return self._folder / f"{number}.sqlite{ending}"

    def crash(self) -> None:
        """The manager is gone: the next one finds a copy."""
        old, self._mounts = self._mounts, self._mounts + 1
        for ending in ENDINGS:
            if self._beside(old, ending).exists():
                shutil.copyfile(self._beside(old, ending), self._beside(self._mounts, ending))
        if self._torn is not None:
            os.truncate(self._beside(self._mounts, "-wal"), self._torn)
        self._torn = None
        self._let_go(old)

    def _let_go(self, number: int) -> None:
        if self._store is not None:
            self._store._disconnect()
            self._store._lock.release()
            self._store = None
        for file in self._folder.glob(f"{number}.sqlite*"):
            file.unlink()

    def tear(self, write: Callable[[], None], where: float) -> None:
        """Only a part of what this writes into the log is on disk at the crash; ``where``: how much, 0 to 1."""
        log, counter = self._beside(self._mounts, "-wal"), self._beside(self._mounts, ".commits")
        if not (log.exists() and counter.exists()):
            return
        size, noted, stamp = log.stat().st_size, counter.read_bytes(), self.path.stat().st_mtime_ns
        write()
        grown = log.stat().st_size - size
        if grown > 0 and self.path.stat().st_mtime_ns == stamp:  # else it was copied, and begins anew: all of it landed
            self._torn = size + int(grown * where)
            counter.write_bytes(noted)

    def break_off(self, write: Callable[[], None], operations: int) -> None:
        """Some statement of this fails after so many of SQLite's operations, and with it its transaction."""
        db: Any = self._store and self._store._db
        db.set_progress_handler(lambda: 1, max(1, operations))
        try:
            write()
        finally:
            if self._store is not None and self._store._db is not None:
                db.set_progress_handler(None, 1)

    def close(self) -> None:
        """Delete everything."""
        self._let_go(self._mounts)
        shutil.rmtree(self._folder, ignore_errors=True)
