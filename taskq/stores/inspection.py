"""What a start looks at before it changes anything in a SQLite store: whether it is ours, whole, and the newest.

* ``integrity_check`` in files of up to `CHECKED` bytes: the trees, and each index against its table. SQLite has no
  checksums: it sees one of ten flipped bits.
* The checksums of every record that is not final, with its payload, and of the tables that are needed at once or by
  keys that only they hold. A record that is final, a call and an attempt are checked when they are read: there may be
  very many, and nobody waits for them at start.
* The commit counter beside the store (see `taskq.stores.commits`).
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from shlex import quote

from taskq.errors import StoreDamaged
from taskq.stores import schema
from taskq.stores.commits import Counted
from taskq.stores.rows import RECOVER, Head, unsealed

CHECKED = 2**30
"""Bytes: larger files are not read through at start."""
SPARE_EPOCHS = 1_000
SPARE_IDS = 1_000_000
"""How far epochs and ids jump over what is known when commits were lost."""
_OLD_FILES = "put the newest copy of its files back, or go on without with --accept-lost-tail"
_SEALED_FROM = 3  # the version of the tables that brought checksums


def inspect(db: sqlite3.Connection, path: Path) -> Head | None:
    """Look through a store; gives its head, None when it is empty or was made by an older taskq.

    Raises `StoreDamaged`, and `ConfigError` when it is not for this taskq.
    """
    application, version, objects = (db.execute(sql).fetchone()[0] for sql in schema.HEADER)
    schema.check(path, application, version, objects)
    if path.stat().st_size <= CHECKED:
        (found,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise _broken(path, found)
    if not objects:
        return None
    tables = {sql for (sql,) in db.execute("SELECT sql FROM sqlite_master")}
    is_sealed = tables.issuperset(schema.TABLES)
    if is_sealed != (version >= _SEALED_FROM):
        raise _broken(path, f"its tables are not those of version {version}")
    if not is_sealed:
        return None
    for table, select in schema.CHECKED_TABLES.items():
        for row in db.execute(select):
            unsealed(table, row)
    return read_head(db)


def read_head(db: sqlite3.Connection) -> Head:
    """The one row of ``store``. Raises `StoreDamaged`."""
    rows = db.execute(schema.HEAD).fetchall()
    if len(rows) != 1:
        raise StoreDamaged("the store is damaged: it has no head", hint=RECOVER)
    return Head(*unsealed("store", rows[0]))


def recover_hint(path: Path) -> str:
    """What to do next about damage in the store at ``path``."""
    return f'stop the manager, and save what is readable with "taskq recover {quote(str(path))}"'


def located(error: StoreDamaged, path: Path) -> StoreDamaged:
    """The error with the path in its hint, where it is from a place that does not know the path."""
    if error.hint != RECOVER:
        return error
    return StoreDamaged(error.message, hint=recover_hint(path), details=error.details)


def all_lost(path: Path, counter: Path, counted: Counted | None) -> StoreDamaged:
    """The error for a store that is empty or older, though its counter has seen commits."""
    seen = 0 if counted is None else counted.commits
    return StoreDamaged(
        f"the store {path} is empty or an older one, but {counter.name} has seen {seen:,} commits",
        hint=_OLD_FILES,
    )


def _broken(path: Path, found: str) -> StoreDamaged:
    return StoreDamaged(f"the store {path} is damaged: {found}", hint=recover_hint(path))


def first_numbers(head: Head, counted: Counted | None, path: Path, *, accept: bool) -> tuple[Head, str]:
    """Where epochs and ids go on from, and what there is to say about it ("" if nothing).

    ``counted``: what the counter at ``path`` says. Raises `StoreDamaged` when commits were lost, unless that is
    accepted.
    """
    if counted is not None and counted.store_id == head.store_id:
        lost = counted.commits - head.commits
        if lost <= 0:
            return head, ""
        last = max(counted.next_id, head.next_id)
        tasks = f"tasks {head.next_id} to {last - 1} are gone" if last > head.next_id else "no task is gone"
        text = (
            f"the newest {lost:,} commits of the store are lost (it has {head.commits:,}, {path.name} has seen"
            f" {counted.commits:,}): {tasks}, others may be in a state of before"
        )
        if not accept:
            raise StoreDamaged(
                text,
                hint=_OLD_FILES,
                details={"lost_commits": lost, "first_lost_id": head.next_id, "last_lost_id": last - 1},
            )
        head = head._replace(epoch=max(head.epoch, counted.epoch), next_id=last, commits=counted.commits)
    elif head.epoch == 0:  # the process that made it died before its first start was over
        return head, ""
    else:
        text = f"{path.name} is missing or damaged: nobody can tell whether the newest commits of the store are there"
    head = head._replace(epoch=head.epoch + SPARE_EPOCHS, next_id=head.next_id + SPARE_IDS)
    return head, f"{text}; ids go on from {head.next_id}"
