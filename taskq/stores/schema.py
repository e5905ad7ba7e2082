"""The tables of a SQLite store, and the statements on them, as text; how rows are made for them: `taskq.stores.rows`.

One row of ``task`` holds the whole record, so that a state change rewrites one place; payloads and results over
`INLINE` bytes have tables of their own, and the record holds their length (an integer) instead. A task that was never
handed out has NULL in all columns of its runs, which makes it a short row to write and to load. Two partial indexes:
``live`` finds what is not final at start and never changes while a task is handed out or retried; ``final`` serves
purging and counting. Times and sizes are as in `TaskRow`.

Why so many rows go into one statement: Python's ``sqlite3`` lets go of the GIL at every step of a statement, and in a
busy process each step then waits up to a switch interval to have it back. ``executemany`` steps once a row (measured
beside one busy thread: 12,000 rows a second instead of 140,000), a statement of many rows steps once.

Columns have no types, so that a number comes back as the very one that was written, and checksums (see `sums`) hold.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from taskq.errors import ConfigError
from taskq.queue.task_row import TaskChange, TaskRow
from taskq.stores.base import KEEP_ATTEMPTS, KEEP_CALLS, AttemptRow

APPLICATION_ID = 0x7461736B
"""``task``, in the file's header: tells our files from other SQLite databases."""
VERSION = 3
"""Goes up with every change of the tables; each step up gets an entry in `taskq.stores.upgrades`."""

INLINE = 1024
"""Bytes: longest payload or result that lies in the row of its task."""

FIRST_FINAL = 4
"""States from here on are final (`State.COMPLETED` and the two after it)."""

PRAGMAS = (
    "PRAGMA locking_mode = EXCLUSIVE",  # first: from the first access on there is no file of shared memory
    "PRAGMA auto_vacuum = INCREMENTAL",  # only a new file takes it
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA wal_autocheckpoint = 4000",  # pages: 16 MiB of log, and 20 ms for copying it
    "PRAGMA journal_size_limit = 67108864",  # what one huge transaction may leave behind
    "PRAGMA cache_size = -32768",  # KiB
    "PRAGMA secure_delete = OFF",
    "PRAGMA temp_store = MEMORY",
    *(("PRAGMA fullfsync = ON", "PRAGMA checkpoint_fullfsync = ON") if sys.platform == "darwin" else ()),
)
"""Settings of the connection, in this order."""

_FIELDS, _CHANGING = TaskRow._fields, TaskChange._fields[1:]
PAYLOAD_AT = _FIELDS.index("payload")
RUN = _FIELDS.index("run")  # from here on there is nothing before the first run
SUMS = ("sum", "payload_sum", "state_sum")
_TASK = ", ".join((*_FIELDS[1:RUN], *SUMS, *_FIELDS[RUN:]))

TABLES = (
    "CREATE TABLE store (id INTEGER PRIMARY KEY, store_id, epoch, next_id, totals, commits, sum)",
    f"CREATE TABLE task (id INTEGER PRIMARY KEY, {_TASK})",
    f"CREATE INDEX live ON task (id) WHERE state < {FIRST_FINAL}",
    f"CREATE INDEX final ON task (state, finished_at) WHERE state >= {FIRST_FINAL}",
    "CREATE TABLE payload (id INTEGER PRIMARY KEY, data, sum)",
    "CREATE TABLE result (id INTEGER PRIMARY KEY, data, sum)",
    "CREATE TABLE call (client, seq, first_id, size, digest, at, sum, PRIMARY KEY (client, seq)) WITHOUT ROWID",
    "CREATE INDEX call_at ON call (at)",
    "CREATE TABLE key (key PRIMARY KEY, id, digest, expires, sum) WITHOUT ROWID",
    "CREATE INDEX key_expires ON key (expires) WHERE expires IS NOT NULL",
    "CREATE TABLE worker (incarnation PRIMARY KEY, pool, name, host, pid, sum)",
    "CREATE TABLE type (name, info, sum, PRIMARY KEY (name, info))",
    "CREATE TABLE queue (name PRIMARY KEY, paused_by, paused_at, max_running, sum)",
    "CREATE TABLE uniqueness (id INTEGER PRIMARY KEY, value, at, until, twin, expires, sum)",
    "CREATE INDEX uniqueness_until ON uniqueness (until) WHERE until IS NOT NULL AND twin IS NULL",
    "CREATE INDEX uniqueness_expires ON uniqueness (expires) WHERE expires IS NOT NULL",
    "CREATE TABLE attempt (id, run, worker, started_at, ended_at, outcome, type, message, traceback, death, sum,"
    " PRIMARY KEY (id, run)) WITHOUT ROWID",
    "CREATE TABLE result_end (id INTEGER PRIMARY KEY, at, sum)",
    "CREATE INDEX result_end_at ON result_end (at)",
)


_LARGEST = 1_000
"""Rows of one statement: as many as a submit call brings. With 28 columns it is within SQLite's limit of parameters."""


_SMALL = 16
"""Rows of which there is a statement for each number."""


class Insert:
    """``INSERT`` of any number of rows, as few statements: of `_LARGEST` halved, so that each is prepared once."""

    def __init__(self, table: str, columns: Sequence[str], ending: str = "") -> None:
        self.columns = tuple(columns)
        self._beginning = f"INSERT INTO {table} ({', '.join(columns)}) VALUES "
        self._row = f"({', '.join('?' * len(columns))})"
        self._ending = ending
        self._sql = lru_cache(maxsize=None)(self._text)

    def _text(self, rows: int) -> str:
        return self._beginning + ", ".join([self._row] * rows) + self._ending

    def statements(self, rows: Sequence[Sequence[Any]]) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Each statement with its parameters."""
        start, size = 0, _LARGEST
        while start < len(rows):
            left = len(rows) - start
            while size > left:
                size = left if left <= _SMALL else size // 2
            yield self._sql(size), tuple(chain.from_iterable(rows[start : start + size]))
            start += size


_SIZES = (100, 125, 160, 200, 250, 320, 400, 500, 630, 800, _LARGEST)
"""Rows of which there is a statement for many that share values; between them it is filled up."""


class InsertAlike:
    """The same for many rows that share the values of some columns, which are bound once.

    All rows go into one statement (of `_LARGEST`): it is filled up to one of `_SIZES` with rows of NULL, which it
    passes over.
    """

    def __init__(self, table: str, shared: Sequence[str], own: Sequence[str], ending: str = "") -> None:
        """``own``: the other columns, first one that is never NULL."""
        self._beginning = (
            f"INSERT INTO {table} ({', '.join((*shared, *own))})"
            f" SELECT {', '.join('?' * len(shared))}, own.* FROM (VALUES "
        )
        self._row = f"({', '.join('?' * len(own))})"
        self._filling = (None,) * len(own)
        self._ending = f") AS own WHERE own.column1 IS NOT NULL{ending}"
        self._sql = lru_cache(maxsize=None)(self._text)

    def _text(self, rows: int) -> str:
        return self._beginning + ", ".join([self._row] * rows) + self._ending

    def statements(self, shared: Sequence[Any], rows: Sequence[Sequence[Any]]) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Each statement with its parameters."""
        for start in range(0, len(rows), _LARGEST):
            part = rows[start : start + _LARGEST]
            size = next(size for size in _SIZES if size >= len(part))
            filling = self._filling * (size - len(part))
            yield self._sql(size), (*shared, *chain.from_iterable(part), *filling)


def _replacing(columns: Sequence[str], key: str) -> str:
    return f" ON CONFLICT ({key}) DO UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in columns)


def _own(insert: Insert, shared: Sequence[str]) -> list[str]:
    return [name for name in insert.columns if name not in shared]


INSERT_PLAIN = Insert("task", (*_FIELDS[:RUN], "sum"))
"""Of tasks that are as most are when they are submitted: due at once, with a small payload."""
PLAIN_ALIKE = ("type", "queue", "priority", "max_retries", "key", "client", "submitted_at", "due_at", "state")
"""Columns that such tasks of one submit share. Seconds are not among them: 1 equals 1.0, and is kept as 1."""
INSERT_PLAIN_ALIKE = InsertAlike("task", PLAIN_ALIKE, _own(INSERT_PLAIN, PLAIN_ALIKE))
INSERT_YOUNG = Insert("task", (*_FIELDS[:RUN], *SUMS))
INSERT_WHOLE = Insert("task", (*_FIELDS, *SUMS))
UPDATE = Insert("task", (*TaskChange._fields, "state_sum"), _replacing((*_CHANGING, "state_sum"), "id"))
"""Of rows that are there: an upsert, since it takes many rows in one statement (and is faster than UPDATE FROM)."""
CHANGES_ALIKE = ("state", "failures", "deaths", "cancel_requested", "worker", "worker_name", "finished_at", "error")
"""Columns that the outcomes of one report share, when all went well."""
UPDATE_ALIKE = InsertAlike("task", CHANGES_ALIKE, _own(UPDATE, CHANGES_ALIKE), _replacing(UPDATE.columns[1:], "id"))
INSERT_PAYLOAD = Insert("payload", ("id", "data", "sum"))
INSERT_RESULT = Insert("result", ("id", "data", "sum"), _replacing(("data", "sum"), "id"))
_CALL = ("client", "seq", "first_id", "size", "digest", "at", "sum")
INSERT_CALL = Insert("call", _CALL, _replacing(_CALL[2:], "client, seq"))
INSERT_RESULT_END = Insert("result_end", ("id", "at", "sum"), _replacing(("at", "sum"), "id"))
_KEY = ("key", "id", "digest", "sum")
INSERT_KEY = Insert("key", _KEY, _replacing(_KEY[1:], "key") + ", expires = NULL")
INSERT_UNIQUE = Insert("uniqueness", ("id", "value", "at", "until", "twin", "sum", "expires"))

_ATTEMPT_COLUMNS = (*AttemptRow._fields, "sum")
INSERT_ATTEMPT = Insert("attempt", _ATTEMPT_COLUMNS, _replacing(_ATTEMPT_COLUMNS[2:], "id, run"))

HEAD = "SELECT store_id, epoch, next_id, totals, commits, sum FROM store"
WRITE_HEAD = "UPDATE store SET store_id = ?, epoch = ?, next_id = ?, totals = ?, commits = ?, sum = ?"
TYPES = "SELECT name, info, sum FROM type ORDER BY rowid"
WORKERS = "SELECT incarnation, pool, name, host, pid, sum FROM worker"
QUEUES = "SELECT name, paused_by, paused_at, max_running, sum FROM queue"
CHECKED_TABLES = {
    "type": TYPES,
    "worker": WORKERS,
    "queue": QUEUES,
    "key": "SELECT key, id, digest, sum FROM key",
    "uniqueness": "SELECT id, value, at, until, twin, sum FROM uniqueness",
    "result_end": "SELECT id, at, sum FROM result_end",
}
CALL = f"SELECT {', '.join(_CALL)} FROM call WHERE client = ? AND seq = ?"
KEY = "SELECT key, id, digest, sum FROM key WHERE key = ?"

_IDS = "(SELECT value FROM json_each(?))"
_COLUMNS = [f"t.{name}" for name in _FIELDS]
_sealed = [*_COLUMNS, "t.sum", "t.payload_sum", "t.state_sum"]
_whole = list(_sealed)
for _column in ("payload", "result"):
    for _part in ("data", "sum"):
        _whole.append(
            f"CASE typeof(t.{_column}) WHEN 'integer' THEN (SELECT {_part} FROM {_column} l WHERE l.id = t.id) END"
        )

SELECT = f"SELECT {', '.join(_whole)} FROM task t"
"""Whole records, for `taskq.stores.rows.whole_row`."""
GET = f"{SELECT} WHERE t.id IN {_IDS}"
_SELECT_SLIM = f"SELECT {', '.join(_sealed)} FROM task t"
GET_SLIM = f"{_SELECT_SLIM} WHERE t.id IN {_IDS}"
_UNRUN = ", ".join(_COLUMNS[RUN:])
_NOT_PLAIN = f"coalesce(t.payload_sum, t.state_sum, {_UNRUN}, CASE typeof(t.payload) WHEN 'integer' THEN 1 END)"
LIVE = (
    f"SELECT {', '.join(_COLUMNS[:RUN])}, t.sum, {_NOT_PLAIN} FROM task t INDEXED BY live"
    f" WHERE t.state < {FIRST_FINAL} ORDER BY t.id"
)
"""The beginning of all records that are not final; whose last value is not NULL is looked up in `LIVE_OTHERS`."""
LIVE_OTHERS = (
    f"SELECT {', '.join(_sealed)} FROM task t INDEXED BY live"
    f" WHERE t.state < {FIRST_FINAL} AND t.id BETWEEN ? AND ? AND {_NOT_PLAIN} IS NOT NULL"
)
LIVE_PAYLOADS = (
    "SELECT t.id, p.data, p.sum FROM task t INDEXED BY live LEFT JOIN payload p ON p.id = t.id"
    f" WHERE t.state < {FIRST_FINAL} AND t.id BETWEEN ? AND ? AND typeof(t.payload) = 'integer'"
)
PAYLOADS = (
    "SELECT group_concat(id || ' ' || hex(payload) || ' ' || coalesce(payload_sum, ''))"
    f" FROM task WHERE id IN {_IDS} AND typeof(payload) = 'blob'"
)
"""All small payloads as one value, for the reason given at the top: ``id hex sum,id hex sum,…``."""
ATTEMPTS = f"SELECT {', '.join(_ATTEMPT_COLUMNS)} FROM attempt WHERE id = ? ORDER BY run"
OLD_ATTEMPTS = (
    "DELETE FROM attempt WHERE (id, run) IN (SELECT id, run FROM (SELECT id, run, row_number() OVER"
    f" (PARTITION BY id ORDER BY run DESC) AS nth FROM attempt WHERE id IN {_IDS}) WHERE nth > {KEEP_ATTEMPTS})"
)
"""Deletes what is too much of these tasks' attempts."""
LARGE_PAYLOADS = f"SELECT id, data, sum FROM payload WHERE id IN {_IDS}"

OLDEST = (
    "SELECT json_group_array(id), json_group_array(large), coalesce(max(keyed), 0) FROM"
    " (SELECT id, key IS NOT NULL AS keyed, CASE typeof(payload) WHEN 'integer' THEN payload ELSE 0 END"
    " + CASE typeof(result) WHEN 'integer' THEN result ELSE 0 END AS large FROM task"
    f" WHERE state >= {FIRST_FINAL} AND state = ? AND finished_at < ? ORDER BY finished_at LIMIT ?)"
)
"""Final records by age: their ids, the bytes that each has in tables of their own, and whether any has a key."""
AMONG = (
    f"SELECT json_group_array(id) FROM task WHERE id IN {_IDS} AND state >= {FIRST_FINAL}"
    " AND state IN (SELECT value FROM json_each(?))"
)
"""Which of these records are in one of these final states."""
EXPIRE_KEYS = (
    "UPDATE key SET expires = ? WHERE key IN"
    f" (SELECT t.key FROM task t WHERE t.id IN {_IDS} AND t.key IS NOT NULL) AND id IN {_IDS}"
)
DELETES = tuple(f"DELETE FROM {table} WHERE id IN {_IDS}" for table in ("task", "attempt"))
DELETE_LARGE = tuple(f"DELETE FROM {table} WHERE id IN {_IDS}" for table in ("payload", "result"))
OLD_RESULTS = (
    "SELECT json_group_array(id), json_group_array(large) FROM"
    " (SELECT e.id, CASE typeof(t.result) WHEN 'integer' THEN t.result ELSE 0 END AS large"
    " FROM result_end e LEFT JOIN task t ON t.id = e.id WHERE e.at <= ? ORDER BY e.at LIMIT ?)"
)
"""Results whose time is over: ids, and their bytes as in `OLDEST`."""
ENDED = f"SELECT {', '.join(TaskChange._fields)}, state_sum FROM task WHERE id IN {_IDS}"
FORGET_RESULTS = tuple(f"DELETE FROM {table} WHERE id IN {_IDS}" for table in ("result", "result_end"))
NEWEST_RECORD = "SELECT (SELECT submitted_at FROM task ORDER BY id DESC LIMIT 1)"
NEWEST_CALL = (
    "SELECT max(at) FROM (SELECT max(at) AS at FROM call"
    f" UNION ALL SELECT max(expires) - {KEEP_CALLS!r} FROM key WHERE expires IS NOT NULL)"
)
"""What carries the time of calls: they themselves, and keys that outlast them."""
OLD_CALLS = "DELETE FROM call WHERE (client, seq) IN (SELECT client, seq FROM call WHERE at < ? ORDER BY at LIMIT ?)"
OLD_KEYS = (
    "DELETE FROM key WHERE key IN"
    " (SELECT key FROM key WHERE expires IS NOT NULL AND expires <= ? ORDER BY expires LIMIT ?)"
)

ANY_UNIQUES = "SELECT EXISTS (SELECT 1 FROM uniqueness)"
UNIQUES = (
    "SELECT u.id, u.value, u.at, u.until, u.twin, u.sum FROM task t INDEXED BY live"
    f" CROSS JOIN uniqueness u ON u.id = t.id WHERE t.state < {FIRST_FINAL} AND u.twin IS NULL"
    " UNION SELECT id, value, at, until, twin, sum FROM uniqueness WHERE until > ? AND twin IS NULL ORDER BY 1"
)
UNIQUES_OF = f"SELECT id, value, at, until, twin, sum FROM uniqueness WHERE id IN {_IDS} AND twin IS NULL"
TWINS = f"SELECT id, value, at, until, twin, sum FROM uniqueness WHERE id IN {_IDS} AND twin IS NOT NULL"
EXPIRE_UNIQUES = f"UPDATE uniqueness SET expires = coalesce(until, 0) WHERE id IN {_IDS}"
OLD_UNIQUES = (
    "DELETE FROM uniqueness WHERE id IN"
    " (SELECT id FROM uniqueness WHERE expires IS NOT NULL AND expires <= ? ORDER BY expires LIMIT ?)"
)

HEADER = ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
"""What `check` wants to know."""
COUNT_LIVE = f"SELECT count(*) FROM task WHERE state < {FIRST_FINAL}"
COUNT_LIVE_ROWS = f"SELECT count(*) FROM task NOT INDEXED WHERE state < {FIRST_FINAL}"
COUNT_FINAL = f"SELECT state, count(*) FROM task WHERE state >= {FIRST_FINAL} GROUP BY state"


def check(path: Path, application: int, version: int, objects: int) -> None:
    """Whether a file of so many tables and indexes is ours, and not made by a newer taskq. Raises `ConfigError`."""
    if application != APPLICATION_ID and (application or objects):
        raise ConfigError(f"{path} is a database of another program", hint="choose another file with --store")
    if version > VERSION:
        raise ConfigError(
            f"{path} was made by a newer taskq (its tables have version {version}, this taskq knows {VERSION})",
            hint="install that taskq again, or choose another file with --store",
        )


def selection(states: Iterable[int], type: str | None, queue: str | None) -> tuple[str, list[str]]:
    """The statement, and its first parameters, that looks for records among ids (from, to), newest first, limited."""
    conditions = []
    parameters = []
    wanted = sorted(set(states))
    if wanted:
        conditions.append(f"t.state IN ({', '.join(str(int(state)) for state in wanted)})")
    for column, value in (("type", type), ("queue", queue)):
        if value is not None:
            conditions.append(f"t.{column} = ?")
            parameters.append(value)
    conditions.append("t.id BETWEEN ? AND ?")
    return f"{SELECT} WHERE {' AND '.join(conditions)} ORDER BY t.id DESC LIMIT ?", parameters


def scan(states: Iterable[int]) -> str:
    """The statement that gives the records among ids (from, to) without what may be large, newest first, limited."""
    wanted = ", ".join(str(int(state)) for state in sorted(set(states)))
    among = f" AND t.state IN ({wanted})" if wanted else ""
    return f"{_SELECT_SLIM} WHERE t.id BETWEEN ? AND ?{among} ORDER BY t.id DESC LIMIT ?"
