"""How a store that an older taskq made is led up to today's tables, a version at a time, in one transaction.

The tables of older versions are written down here as they were: they no longer change.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from taskq.stores import schema, sums
from taskq.stores.base import INLINE_PAYLOAD
from taskq.stores.rows import Head, change_sum, changing, fixed_sum, young_sum

_SECOND = (
    "CREATE TABLE queue (name TEXT PRIMARY KEY, paused_by TEXT, paused_at REAL, max_running INT)",
    "CREATE TABLE uniqueness (id INTEGER PRIMARY KEY, value BLOB, at REAL, until REAL, twin INT, expires REAL)",
    "CREATE INDEX uniqueness_until ON uniqueness (until) WHERE until IS NOT NULL AND twin IS NULL",
    "CREATE INDEX uniqueness_expires ON uniqueness (expires) WHERE expires IS NOT NULL",
    "CREATE TABLE attempt (id INT, run INT, worker TEXT, started_at REAL, ended_at REAL, outcome TEXT, type TEXT,"
    " message TEXT, traceback TEXT, death TEXT, PRIMARY KEY (id, run)) WITHOUT ROWID",
    "ALTER TABLE task ADD COLUMN terms_more TEXT",
    "CREATE TABLE result_end (id INTEGER PRIMARY KEY, at REAL)",
    "CREATE INDEX result_end_at ON result_end (at)",
)
_INDEXES_OF_SECOND = (
    *("live", "final", "call_at", "key_expires", "uniqueness_until", "uniqueness_expires"),
    "result_end_at",
)
_COPIED = {
    "call": "client, seq, first_id, size, digest, at",
    "worker": "incarnation, pool, name, host, pid",
    "type": "name, info",
    "queue": "name, paused_by, paused_at, max_running",
    "attempt": "id, run, worker, started_at, ended_at, outcome, type, message, traceback, death",
    "result_end": "id, at",
    "key": "key, id, digest, expires",
    "uniqueness": "id, value, at, until, twin, expires",
}
_PIECE = 1_000


def bring_up_to_date(db: sqlite3.Connection) -> None:
    """Make the tables in an empty file (again, where a process died before it had), or lead older ones up."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == 0:
        for statement in schema.TABLES:
            db.execute(statement)
        _write_first_head(db, secrets.randbits(63), 0, 1, "{}")
        db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    for step in range(version or schema.VERSION, schema.VERSION):
        UPGRADES[step](db)
    if version != schema.VERSION:
        db.execute(f"PRAGMA user_version = {schema.VERSION}")


def _write_first_head(db: sqlite3.Connection, store_id: int, epoch: int, next_id: int, totals: str) -> None:
    head = Head(store_id, epoch, next_id, totals, 0)
    db.execute("INSERT INTO store VALUES (1, ?, ?, ?, ?, ?, ?)", head.stored())


def _to_second(db: sqlite3.Connection) -> None:
    """Queues, unique submits, attempts, times of results."""
    for statement in _SECOND:
        db.execute(statement)


def _to_third(db: sqlite3.Connection) -> None:
    """Checksums, and columns without types."""
    old = ["store", "task", "payload", "result", *_COPIED]
    for name in _INDEXES_OF_SECOND:
        db.execute(f"DROP INDEX {name}")
    for name in old:
        db.execute(f"ALTER TABLE {name} RENAME TO old_{name}")
    for statement in schema.TABLES:
        db.execute(statement)
    _write_first_head(db, *db.execute("SELECT store_id, epoch, next_id, totals FROM old_store").fetchone())
    _copy_tasks(db)
    for table, seed in (("payload", sums.PAYLOAD), ("result", sums.RESULT)):
        rows = ((id, data, sums.blob_sum(seed, id, data)) for id, data in db.execute(f"SELECT * FROM old_{table}"))
        _insert(db, table, "id, data, sum", rows)
    for table, columns in _COPIED.items():
        sealed = [name not in sums.LOOSE for name in columns.split(", ")]
        rows = (
            (*row, sums.seal(table, [value for value, counts in zip(row, sealed, strict=True) if counts]))
            for row in db.execute(f"SELECT {columns} FROM old_{table} ORDER BY {columns.split(', ')[0]}")
        )
        _insert(db, table, f"{columns}, sum", rows)
    for name in old:
        db.execute(f"DROP TABLE old_{name}")


def _copy_tasks(db: sqlite3.Connection) -> None:
    columns = schema.INSERT_WHOLE.columns
    select = f"SELECT {', '.join(columns[: -len(schema.SUMS)])} FROM old_task ORDER BY id"
    _insert(db, "task", ", ".join(columns), (with_sums(row) for row in db.execute(select)))


def with_sums(row: Sequence[Any]) -> tuple[Any, ...]:
    """A stored row of a task with its three checksums, for `taskq.stores.schema.INSERT_WHOLE`."""
    head, (id, payload) = row[: schema.RUN], (row[0], row[schema.PAYLOAD_AT])
    is_large = type(payload) is bytes and len(payload) > INLINE_PAYLOAD
    payload_sum = sums.blob_sum(sums.PAYLOAD, id, payload) if is_large else None
    if row[schema.RUN] is None and row[-1] is None:
        state_sum = young_sum(head)
    else:
        row = (*head, *(value or 0 for value in row[schema.RUN : schema.RUN + 4]), *row[schema.RUN + 4 :])
        state_sum = change_sum(changing(row))
    return (*row, fixed_sum(row, row[-1], payload_sum), payload_sum, state_sum)


def _insert(db: sqlite3.Connection, table: str, columns: str, rows: Iterable[Sequence[Any]]) -> None:
    places = ", ".join("?" * len(columns.split(", ")))
    db.executemany(f"INSERT INTO {table} ({columns}) VALUES ({places})", rows)


UPGRADES: dict[int, Callable[[sqlite3.Connection], None]] = {1: _to_second, 2: _to_third}
"""version -> what leads from it to the next one."""
