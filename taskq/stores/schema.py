"""The tables of a SQLite store as text, and how a `TaskRow` becomes a stored row and back.

One row of ``task`` holds the whole record, so that a state change rewrites one place; payloads and results over
`INLINE` bytes have tables of their own, and the record holds their length (an integer) instead. Two partial indexes:
``live`` finds what is not final at start and never changes while a task is handed out or retried; ``final`` serves
purging and counting. Times and sizes are as in `TaskRow`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from sys import intern
from typing import Any

from taskq.queue.task import TaskRow
from taskq.stores.base import INLINE_PAYLOAD

APPLICATION_ID = 0x7461736B
"""``task``, in the file's header: tells our files from other SQLite databases."""
VERSION = 1
"""Goes up with every change of the tables; each step up gets an entry in `UPGRADES`."""
UPGRADES: dict[int, tuple[str, ...]] = {}
"""version -> statements that lead from it to the next one."""

INLINE = 1024
"""Bytes: longest payload or result that lies in the row of its task."""

FIRST_FINAL = 4
"""States from here on are final (`State.COMPLETED` and the two after it)."""

TABLES = (
    "CREATE TABLE store (id INTEGER PRIMARY KEY, store_id INT, epoch INT, next_id INT, totals TEXT)",
    "CREATE TABLE task (id INTEGER PRIMARY KEY, type TEXT, queue TEXT, payload BLOB, priority INT, max_retries INT,"
    " backoff REAL, timeout REAL, key TEXT, correlation_id TEXT, client INT, submitted_at REAL, due_at REAL, state INT,"
    " run INT, failures INT, deaths INT, cancel_requested INT, worker TEXT, worker_name TEXT, started_at REAL,"
    " finished_at REAL, result BLOB, error TEXT)",
    f"CREATE INDEX live ON task (id) WHERE state < {FIRST_FINAL}",
    f"CREATE INDEX final ON task (state, finished_at) WHERE state >= {FIRST_FINAL}",
    "CREATE TABLE payload (id INTEGER PRIMARY KEY, data BLOB)",
    "CREATE TABLE result (id INTEGER PRIMARY KEY, data BLOB)",
    "CREATE TABLE call (client INT, seq INT, first_id INT, size INT, digest BLOB, at REAL,"
    " PRIMARY KEY (client, seq)) WITHOUT ROWID",
    "CREATE INDEX call_at ON call (at)",
    "CREATE TABLE key (key TEXT PRIMARY KEY, id INT, digest BLOB, expires REAL) WITHOUT ROWID",
    "CREATE INDEX key_expires ON key (expires) WHERE expires IS NOT NULL",
    "CREATE TABLE worker (incarnation TEXT PRIMARY KEY, pool TEXT, name TEXT, host TEXT, pid INT)",
    "CREATE TABLE type (name TEXT, info TEXT, PRIMARY KEY (name, info))",
)

_PAYLOAD = TaskRow._fields.index("payload")
_DUE_AT = TaskRow._fields.index("due_at")
_RESULT = TaskRow._fields.index("result")
_CHANGING = TaskRow._fields[_DUE_AT:]

INSERT = f"INSERT INTO task VALUES ({', '.join('?' * len(TaskRow._fields))})"
UPDATE = f"UPDATE task SET {', '.join(f'{name} = ?' for name in _CHANGING)} WHERE id = ?"
_COLUMNS = ", ".join(f"t.{name}" for name in TaskRow._fields)
WHOLE = _COLUMNS.replace("t.payload", "coalesce((SELECT p.data FROM payload p WHERE p.id = t.id), t.payload)").replace(
    "t.result",
    "CASE WHEN typeof(t.result) = 'integer' THEN (SELECT r.data FROM result r WHERE r.id = t.id) ELSE t.result END",
)
"""The columns of a whole record, as `TaskRow` orders them."""
LIVE = (
    "SELECT "
    + _COLUMNS.replace(
        "t.payload",
        f"CASE WHEN typeof(t.payload) = 'blob' AND length(t.payload) <= {INLINE_PAYLOAD} THEN t.payload END",
    )
    + f" FROM task t INDEXED BY live WHERE t.state < {FIRST_FINAL} AND t.id > ? ORDER BY t.id LIMIT ?"
)
PAYLOADS = (
    "SELECT t.id, coalesce((SELECT p.data FROM payload p WHERE p.id = t.id), t.payload)"
    " FROM task t WHERE t.id IN (SELECT value FROM json_each(?))"
)

GET = f"SELECT {WHOLE} FROM task t WHERE t.id IN (SELECT value FROM json_each(?))"
OLDEST = (
    f"SELECT id, key FROM task WHERE state >= {FIRST_FINAL} AND state = ? AND finished_at < ?"
    " ORDER BY finished_at LIMIT ?"
)
OLD_CALLS = "DELETE FROM call WHERE (client, seq) IN (SELECT client, seq FROM call WHERE at < ? ORDER BY at LIMIT ?)"
OLD_KEYS = (
    "DELETE FROM key WHERE key IN"
    " (SELECT key FROM key WHERE expires IS NOT NULL AND expires <= ? ORDER BY expires LIMIT ?)"
)

Large = list[tuple[int, bytes]]


def new_rows(rows: Iterable[TaskRow]) -> tuple[list[tuple[Any, ...]], Large, Large]:
    """What to insert into ``task``, ``payload`` and ``result``."""
    inserts: list[tuple[Any, ...]] = []
    payloads: Large = []
    results: Large = []
    for row in rows:
        payload: bytes | int | None = row.payload
        if row.payload is not None and len(row.payload) > INLINE:
            payloads.append((row.id, row.payload))
            payload = len(row.payload)
        inserts.append((*row[:_PAYLOAD], payload, *row[_PAYLOAD + 1 : _RESULT], *_outcome(row, results)))
    return inserts, payloads, results


def changed_rows(rows: Iterable[TaskRow]) -> tuple[list[tuple[Any, ...]], Large]:
    """What to update in ``task`` and to put into ``result``."""
    results: Large = []
    return [(*row[_DUE_AT:_RESULT], *_outcome(row, results), row.id) for row in rows], results


def _outcome(row: TaskRow, results: Large) -> tuple[bytes | int | None, str | None]:
    result: bytes | int | None = row.result
    if row.result is not None and len(row.result) > INLINE:
        results.append((row.id, row.result))
        result = len(row.result)
    error = None if row.error is None else json.dumps(row.error, ensure_ascii=False, separators=(",", ":"))
    return result, error


def task_row(stored: tuple[Any, ...]) -> TaskRow:
    """The `TaskRow` of a stored row; words that many rows share are kept once."""
    id, type, queue = stored[:3]
    row = TaskRow._make((id, intern(type), intern(queue), *stored[3:]))
    if stored[-1] is None:
        return row
    return row._replace(error=tuple(json.loads(stored[-1])))
