"""The durable store: one SQLite file, written through one connection. The only module that knows ``sqlite3``.

Theory of operation
-------------------
* A write is on disk when `SqliteStore.write` returns: write-ahead log, ``synchronous=FULL``, one fsync a transaction.
* One connection, guarded by the store's mutex: with ``locking_mode=EXCLUSIVE`` a second one could not even read.
  Reads therefore wait for the transaction that is under way, and never see half of it.
* One process: ``<path>.lock`` is locked and names its holder. No other code of this process may open the database
  file: closing any descriptor of it drops the locks that SQLite holds.
* A file that cannot be used (damaged, foreign, made by a newer taskq) is looked at through a read-only connection
  first, and left as it is.
* Disk full: the transaction has been rolled back by SQLite. The reserve file is freed and the same rows are tried once
  more. Any other failed write, or a second full disk, ends the store's writing life: after a failed fsync nobody knows
  what is on disk, and trying again would call it good.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from taskq.errors import ConfigError, StoreDamaged, StoreFailed
from taskq.queue.task import FINAL, State, TaskRow
from taskq.stores import schema
from taskq.stores.base import KEEP_CALLS, Batch, CallRow, KeyRow, Opened, TypeRow, WorkerRow
from taskq.stores.disk import LockFile, Reserve, cannot_write, free_space, sync_folder

FREE_MARK = 64 * 2**20
"""Bytes: with less free space on the disk, no new tasks are accepted."""
RESERVE = 16 * 2**20
"""Bytes that are kept back for the outcomes of accepted tasks."""

_PIECE = 10_000  # rows that one read, or one pruning transaction, takes while others wait
_CHECKPOINT = 4_000  # pages in the log before they are copied into the database
_PRAGMAS = (
    "PRAGMA auto_vacuum = INCREMENTAL",  # only a new file takes it
    "PRAGMA locking_mode = EXCLUSIVE",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    f"PRAGMA wal_autocheckpoint = {_CHECKPOINT}",
    "PRAGMA cache_size = -65536",
    "PRAGMA secure_delete = OFF",
    "PRAGMA temp_store = MEMORY",
    *(("PRAGMA fullfsync = ON", "PRAGMA checkpoint_fullfsync = ON") if sys.platform == "darwin" else ()),
)

_Result = TypeVar("_Result")


class SqliteStore:
    """Records in a SQLite file, behind the interface of `taskq.stores.base.Store`.

    Beside ``path`` lie ``-wal`` (part of the database), ``.lock`` and ``.reserve``. ``free_mark`` and ``reserve`` are
    in bytes.
    """

    kind = "sqlite"
    durable = True

    def __init__(self, path: Path, *, free_mark: int = FREE_MARK, reserve: int = RESERVE) -> None:
        self._path = path
        self._free_mark = free_mark
        self._reserve_size = reserve
        self._mutex = threading.Lock()
        self._lock = LockFile(self._beside(".lock"))
        self._reserve = Reserve(self._beside(".reserve"), reserve)
        self._db: sqlite3.Connection | None = None
        self._failure: StoreFailed | None = None

    def _beside(self, ending: str) -> Path:
        return self._path.with_name(self._path.name + ending)

    # -- opening and closing -------------------------------------------------------------------------------------

    def open(self) -> Opened:
        """See `Store.open`."""
        with self._mutex:
            self._lock.take()
            try:
                with self._translated("open"):
                    return self._open()
            except BaseException:
                self._disconnect()
                self._lock.release()
                raise

    def _open(self) -> Opened:
        if self._create_file():
            self._db = self._connect()
            self._create_tables()
        else:
            self._inspect()
            self._db = self._connect()
            self._upgrade()
        with self._transaction(self._db) as db:
            db.execute("UPDATE store SET epoch = epoch + 1")
        self._failure = None
        if free_space(self._path.parent) >= self._reserve_size:
            self._reserve.take()
        return self._read_opened(self._db)

    def _create_file(self) -> bool:
        """Make an empty file, for this user only, where there is none; whether tables must be made in it."""
        try:
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return self._path.stat().st_size == 0
        except OSError as error:
            raise cannot_write(self._path.parent, error) from None
        sync_folder(self._path.parent)
        return True

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            for pragma in _PRAGMAS:
                db.execute(pragma).fetchall()
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _inspect(self) -> None:
        """Look at a file without changing it (a writing connection would, at its end): is it ours and not too new?"""
        log = self._beside("-wal")
        if self._beside("-journal").exists():  # the process died while it made the file
            return
        how = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"
        try:
            uri = f"{self._path.absolute().as_uri()}?{how}"
            with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
                application = _single(db, "PRAGMA application_id")
                version = _single(db, "PRAGMA user_version")
                tables = _single(db, "SELECT count(*) FROM sqlite_master")
        finally:
            self._beside("-shm").unlink(missing_ok=True)
        if application != schema.APPLICATION_ID and (tables or application):
            raise ConfigError(f"{self._path} is a database of another program", hint="choose another file with --store")
        if version > schema.VERSION:
            raise ConfigError(
                f"{self._path} was made by a newer taskq (version {version} of its tables, this one knows "
                f"{schema.VERSION})",
                hint="install that version of taskq, or choose another file with --store",
            )

    def _create_tables(self) -> None:
        assert self._db is not None
        with self._transaction(self._db) as db:
            for statement in schema.TABLES:
                db.execute(statement)
            db.execute("INSERT INTO store VALUES (1, ?, 0, 1, '{}')", (secrets.randbits(63),))
            db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {schema.VERSION}")

    def _upgrade(self) -> None:
        """Bring older tables up to date, all steps in one transaction."""
        assert self._db is not None
        version = _single(self._db, "PRAGMA user_version")
        if version == 0:  # the process died between making the file and its tables
            self._create_tables()
        elif version < schema.VERSION:
            with self._transaction(self._db) as db:
                for step in range(version, schema.VERSION):
                    for statement in schema.UPGRADES[step]:
                        db.execute(statement)
                db.execute(f"PRAGMA user_version = {schema.VERSION}")

    def _read_opened(self, db: sqlite3.Connection) -> Opened:
        store_id, epoch, next_id, totals = db.execute("SELECT store_id, epoch, next_id, totals FROM store").fetchone()
        live = _single(db, f"SELECT count(*) FROM task WHERE state < {schema.FIRST_FINAL}")
        final = db.execute(f"SELECT state, count(*) FROM task WHERE state >= {schema.FIRST_FINAL} GROUP BY state")
        return Opened(
            store_id,
            epoch,
            next_id,
            json.loads(totals),
            live,
            {State(state): count for state, count in final},
            [TypeRow(*row) for row in db.execute("SELECT name, info FROM type ORDER BY rowid")],
            [WorkerRow(*row) for row in db.execute("SELECT incarnation, pool, name, host, pid FROM worker")],
        )

    def close(self) -> None:
        """See `Store.close`; copies the log into the database unless a write has failed."""
        with self._mutex:
            if self._db is not None and self._failure is None:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._disconnect()
            self._lock.release()

    def _disconnect(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    # -- writing -------------------------------------------------------------------------------------------------

    def write(self, batch: Batch) -> None:
        """See `Store.write`."""
        rows = schema.stored(batch.new, batch.changed)
        totals = json.dumps(batch.totals)

        def statements(db: sqlite3.Connection) -> None:
            _insert(db, schema.INSERT_FRESH, rows.fresh)
            _insert(db, schema.INSERT_WHOLE, rows.whole)
            _insert(db, schema.UPDATE, rows.changed)
            _insert(db, schema.INSERT_PAYLOAD, rows.payloads)
            _insert(db, schema.INSERT_RESULT, rows.results)
            _insert(db, schema.INSERT_CALL, batch.calls)
            _insert(db, schema.INSERT_KEY, [(*key, None) for key in batch.keys])
            _write_workers(db, batch)
            db.execute("UPDATE store SET next_id = ?, totals = ?", (batch.next_id, totals))

        with self._mutex:
            self._commit(statements)

    def _commit(self, statements: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Run statements in one transaction, once more when the disk was full and the reserve could be freed."""
        if self._failure is not None:
            raise StoreFailed(f"the store takes no more writes: {self._failure.message}")
        if self._db is None:
            raise StoreFailed("the store is closed")
        try:
            try:
                return self._attempt(self._db, statements)
            except sqlite3.OperationalError as error:
                if not (_is_full(error) and self._reserve.free()):
                    raise
                return self._attempt(self._db, statements)
        except (sqlite3.Error, ValueError, OverflowError) as error:
            self._failure = StoreFailed(f"cannot write to {self._path}: {error}")
            raise self._failure from error

    def _attempt(self, database: sqlite3.Connection, statements: Callable[[sqlite3.Connection], _Result]) -> _Result:
        with self._transaction(database) as db:
            return statements(db)

    @contextlib.contextmanager
    def _transaction(self, db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:  # a full disk has ended it already
                db.execute("ROLLBACK")
            raise

    def has_space(self) -> bool:
        """See `Store.has_space`; has the reserve back once there is room for it."""
        try:
            free = free_space(self._path.parent)
            if not self._reserve.held and free >= self._free_mark + self._reserve_size:
                with self._mutex:
                    self._reserve.take()
        except OSError:
            return False
        return free >= self._free_mark

    def purge(self, states: Iterable[State], finished_before: float, limit: int, now: float) -> dict[State, int]:
        """See `Store.purge`."""
        gone: Counter[State] = Counter()

        def statements(db: sqlite3.Connection) -> None:
            gone.clear()
            for state in sorted(FINAL.intersection(states)):
                ids = _single(db, schema.OLDEST, (state, finished_before, limit - gone.total()))
                db.execute(schema.EXPIRE_KEYS, (now + KEEP_CALLS, ids, ids))
                for delete in schema.DELETES:
                    deleted = db.execute(delete, (ids,)).rowcount
                    if delete is schema.DELETES[0]:
                        gone[state] += deleted

        with self._mutex:
            self._commit(statements)
        return {state: count for state, count in gone.items() if count}

    def prune(self, now: float) -> None:
        """See `Store.prune`."""
        for statement, before in ((schema.OLD_CALLS, now - KEEP_CALLS), (schema.OLD_KEYS, now)):
            deleted = _PIECE
            while deleted == _PIECE:
                with self._mutex:
                    deleted = self._commit(lambda db: db.execute(statement, (before, _PIECE)).rowcount)  # noqa: B023

    # -- reading -------------------------------------------------------------------------------------------------

    def live(self) -> Iterator[TaskRow]:
        """See `Store.live`."""
        last = -1
        while rows := self._read(schema.LIVE, (last, _PIECE)):
            runs: dict[int, tuple[Any, ...]] = {}
            if any(row[-1] is not None for row in rows):
                runs = {row[0]: row for row in self._read(schema.LIVE_RUNS, (rows[0][0], rows[-1][0]))}
            for row in rows:
                yield schema.task_row(row if row[-1] is None else runs[row[0]])
            last = rows[-1][0]

    def payloads(self, ids: Sequence[int]) -> dict[int, bytes]:
        """See `Store.payloads`."""
        asked = json.dumps(list(ids))
        found = dict(self._read(schema.LARGE_PAYLOADS, (asked,)))
        ((small,),) = self._read(schema.PAYLOADS, (asked,))
        for item in small.split(",") if small else ():
            id, _, payload = item.partition(" ")
            found[int(id)] = bytes.fromhex(payload)
        return found

    def get(self, ids: Sequence[int]) -> dict[int, TaskRow]:
        """See `Store.get`."""
        return {row[0]: schema.task_row(row) for row in self._read(schema.GET, (json.dumps(list(ids)),))}

    def select(
        self, *, states: Iterable[State] = (), type: str | None = None, queue: str | None = None, limit: int = 50
    ) -> list[TaskRow]:
        """See `Store.select`."""
        wanted = sorted(set(states))
        conditions = [f"t.state IN ({', '.join(str(int(state)) for state in wanted)})"] if wanted else []
        parameters: list[str | int] = []
        for column, value in (("type", type), ("queue", queue)):
            if value is not None:
                conditions.append(f"t.{column} = ?")
                parameters.append(value)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        sql = f"{schema.SELECT} {where} ORDER BY t.id DESC LIMIT ?"
        return [schema.task_row(row) for row in self._read(sql, (*parameters, limit))]

    def last_seq(self, client: int) -> int:
        """See `Store.last_seq`."""
        rows = self._read("SELECT max(seq) FROM call WHERE client = ?", (client,))
        return int(rows[0][0] or 0)

    def find_call(self, client: int, seq: int) -> CallRow | None:
        """See `Store.find_call`."""
        rows = self._read(
            "SELECT client, seq, first_id, size, digest, at FROM call WHERE client = ? AND seq = ?", (client, seq)
        )
        return CallRow(*rows[0]) if rows else None

    def find_keys(self, keys: Sequence[str]) -> dict[str, KeyRow]:
        """See `Store.find_keys`."""
        found = {}
        for key in keys:
            for row in self._read("SELECT key, id, digest FROM key WHERE key = ?", (key,)):
                found[key] = KeyRow(*row)
        return found

    def _read(self, sql: str, parameters: Sequence[Any]) -> list[Any]:
        with self._mutex, self._translated("read"):
            if self._db is None:
                raise StoreFailed("the store is closed")
            return self._db.execute(sql, parameters).fetchall()

    @contextlib.contextmanager
    def _translated(self, verb: str) -> Iterator[None]:
        """SQLite's errors as ours. A plain `sqlite3.DatabaseError` is damage: all others have classes of their own."""
        try:
            yield
        except sqlite3.Error as error:
            if type(error) is sqlite3.DatabaseError:
                raise StoreDamaged(f"the store {self._path} is damaged: {error}") from error
            raise StoreFailed(f"cannot {verb} {self._path}: {error}") from error


def _insert(db: sqlite3.Connection, insert: schema.Insert, rows: Sequence[Sequence[Any]]) -> None:
    for sql, parameters in insert.statements(rows):
        db.execute(sql, parameters)


def _write_workers(db: sqlite3.Connection, batch: Batch) -> None:
    if batch.types:
        db.executemany("INSERT OR REPLACE INTO type VALUES (?, ?)", batch.types)
    if batch.joined:
        db.executemany("INSERT OR REPLACE INTO worker VALUES (?, ?, ?, ?, ?)", batch.joined)
    if batch.left:
        db.executemany("DELETE FROM worker WHERE incarnation = ?", [(incarnation,) for incarnation in batch.left])


def _single(db: sqlite3.Connection, sql: str, parameters: Sequence[Any] = ()) -> Any:
    return db.execute(sql, parameters).fetchone()[0]


def _is_full(error: sqlite3.Error) -> bool:
    return "database or disk is full" in str(error)  # Python 3.10 has no error codes
