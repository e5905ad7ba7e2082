"""A whole copy of a SQLite store while it is in use: SQLite's own backup, in pieces, between which commits go on.

What commits meanwhile is in the copy too, since it goes through the connection that is copied from. The copy grows
under another name, is read through, synced, and has its name only when it is whole.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from taskq.errors import ConfigError, StoreDamaged, StoreFailed
from taskq.stores.disk import cannot_write, make_file, sync_folder

PIECE = 256
"""Pages, 1 MiB, that are copied while commits wait."""


def begin(target: Path) -> Path:
    """Make the file that grows; gives its path. Raises `ConfigError` where the copy or that file is there already."""
    growing = target.with_name(target.name + ".part")
    for path in (target, growing):
        if path.exists():
            raise ConfigError(f"{path} is there already", hint="a backup overwrites nothing: name another file")
    make_file(growing)
    return growing


def copy(db: sqlite3.Connection, growing: Path, between: Callable[[int, int], None]) -> None:
    """Copy all pages. After each piece ``between(done, all)`` is called, and others may use ``db``; what it raises ends
    the copy. Raises `StoreFailed`.
    """
    try:
        with contextlib.closing(sqlite3.connect(growing, isolation_level=None)) as made:
            made.execute("PRAGMA journal_mode = OFF").fetchall()  # half a copy is of no use to anybody
            made.execute("PRAGMA synchronous = OFF")
            db.backup(made, pages=PIECE, progress=lambda _, left, pages: between(pages - left, pages), sleep=0.01)
    except sqlite3.Error as error:
        raise StoreFailed(f"cannot write the backup {growing}: {error}") from error


def finish(growing: Path, target: Path) -> None:
    """Check and sync the copy and give it its name. Raises `StoreDamaged`, `ConfigError`."""
    uri = f"{growing.absolute().as_uri()}?immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as made:
        found = made.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise StoreDamaged(f"the backup of the store is damaged: {found}")
    try:
        with growing.open("rb+") as file:
            os.fsync(file.fileno())
        os.link(growing, target)  # never in the place of another file
        growing.unlink()
        sync_folder(target.parent)
    except FileExistsError:
        raise ConfigError(f"{target} is there already", hint="name another file") from None
    except OSError as error:
        raise cannot_write(target.parent, error) from None
