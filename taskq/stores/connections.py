"""Connections to a SQLite file: the one that writes, one that only looks, and one that must never be closed."""

from __future__ import annotations

import contextlib
import ctypes
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from taskq.errors import ConfigError
from taskq.stores import schema

_PATIENCE = 0.5  # seconds that the start waits for another program's lock

# Python's sqlite3 asks for an adapter of each value that is not exactly an int, a float or a text, and to find none
# takes longest: before Python 3.12, longer than the rest of what a value costs. These leave a value as it is.
for _kind, _unchanged in ((type(None), {}.get), (bytes, bytes), (bool, int)):
    sqlite3.register_adapter(_kind, _unchanged)  # type: ignore[arg-type]  # {}.get gives None for None

_Result = TypeVar("_Result")


def connect(path: Path) -> sqlite3.Connection:
    """The connection of a running store. Raises `ConfigError` where there can be no write-ahead log."""
    db = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        for pragma in schema.PRAGMAS:
            db.execute(pragma).fetchall()
        if db.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            raise ConfigError(f"the file system of {path} cannot hold a SQLite write-ahead log")
    except BaseException:
        db.close()
        raise
    return db


@contextlib.contextmanager
def looking(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that leaves the file and its log as they are, as one that may write would not at its end."""
    log = path.with_name(f"{path.name}-wal")
    how = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"
    uri = f"{path.absolute().as_uri()}?{how}"
    try:
        with contextlib.closing(sqlite3.connect(uri, timeout=_PATIENCE, uri=True, isolation_level=None)) as db:
            yield db
    finally:
        path.with_name(f"{path.name}-shm").unlink(missing_ok=True)


def transaction(db: sqlite3.Connection, statements: Callable[[sqlite3.Connection], _Result]) -> _Result:
    """Run statements in one transaction: all or none."""
    db.execute("BEGIN IMMEDIATE")
    try:
        result = statements(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk has ended it already
            db.execute("ROLLBACK")
        raise
    return result


def abandon(db: sqlite3.Connection | None) -> None:
    """Never close a connection: at its end SQLite would copy its log over a file that is somebody else's by now, and
    remove a log that is not its own.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(db))
