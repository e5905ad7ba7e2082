"""The durable store: one SQLite file, written through one connection. The only module that knows ``sqlite3``.

Theory of operation
-------------------
* A write is on disk when `SqliteStore.write` returns: write-ahead log, ``synchronous=FULL``, one fsync a transaction.
* One connection, guarded by the store's mutex: with ``locking_mode=EXCLUSIVE`` a second one could not even read.
  Reads therefore wait for the transaction that is under way, and never see half of it. The mutex goes round (`Turns`),
  so that a commit waits for one piece of a long work, and not for all of it.
* The log is copied into the database by the commit that fills it; with no other reader all of it, and it begins again.
* One process: ``<path>.lock`` is locked and names its holder. No other code of this process may open the database
  file: closing any descriptor of it drops the locks that SQLite holds.
* A file that cannot be used (damaged, foreign, made by a newer taskq) is looked at through a read-only connection
  first, and left as it is.
* Every row carries its checksums (`rows`), which are looked at when it is read; `inspection` says what a start looks
  at. Every commit counts, here and in a file beside the store (`commits`), so that the loss of the newest ones is seen.
* Disk full: the transaction has been rolled back by SQLite. The reserve file is freed and the same rows are tried once
  more. Any other failed write, or a second full disk, ends the store's writing life: after a failed fsync nobody knows
  what is on disk, and trying again would call it good. (To copy the log may fail: what is in it stays on disk.)
* After each commit, before anybody hears of it, the log is looked for under its name (`FileWatch`).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from taskq.errors import ConfigError, StoreDamaged, StoreFailed, StoreLocked
from taskq.queue.task import State, TaskRow
from taskq.stores import backup, cleaning, rows, schema
from taskq.stores.base import (
    AttemptRow,
    Batch,
    CallRow,
    KeyRow,
    Opened,
    QueueRow,
    TypeRow,
    UniqueRow,
    WorkerRow,
)
from taskq.stores.commits import CommitCounter, Counted
from taskq.stores.disk import FileWatch, LockFile, Reserve, free_space, make_file
from taskq.stores.inspection import first_numbers, inspect, read_head, recover_hint
from taskq.stores.rows import Head, unsealed
from taskq.stores.sums import PAYLOAD, blob_sum, sealed
from taskq.stores.upgrades import bring_up_to_date
from taskq.turns import Turns

FREE_MARK = 64 * 2**20
"""Bytes: with less free space on the disk, no new tasks are accepted."""
RESERVE = 16 * 2**20
"""Bytes that are kept back for the outcomes of accepted tasks."""

_OLDEST_SQLITE = (3, 32)  # from there on a statement has room for `Insert`'s parameters
_PATIENCE = 0.5  # seconds that the start waits for another program's lock
_ROOM_TO_START = 2**20  # bytes: with less on the disk, the reserve is given up at once
_PIECE = 1_000  # rows that one read at start takes; more would only leave the processor's cache
_SCAN = 50_000  # ids that one piece of a search takes while commits wait
_BOUNDS = "SELECT (SELECT min(id) FROM task), (SELECT max(id) FROM task)"
_PAGE = 4096  # bytes, SQLite's own choice for new files
_CUT_OFF = 2_000  # pages by which the file gets shorter at a time

# Python's sqlite3 asks for an adapter of each value that is not exactly an int, a float or a text, and to find none
# takes longest: before Python 3.12, longer than the rest of what a value costs. These leave a value as it is.
for _kind, _unchanged in ((type(None), {}.get), (bytes, bytes), (bool, int)):
    sqlite3.register_adapter(_kind, _unchanged)  # type: ignore[arg-type]  # {}.get gives None for None

_Result = TypeVar("_Result")


class SqliteStore:
    """Records in a SQLite file, behind the interface of `taskq.stores.base.Store`.

    Beside ``path`` lie ``-wal`` (part of the database), ``.commits``, ``.lock`` and ``.reserve``. ``free_mark`` and
    ``reserve`` are in bytes. ``accept_lost_tail``: open it also when its newest commits are lost.
    """

    kind = "sqlite"
    durable = True

    def __init__(
        self, path: Path, *, free_mark: int = FREE_MARK, reserve: int = RESERVE, accept_lost_tail: bool = False
    ) -> None:
        self._path = path
        self._free_mark = free_mark
        self._reserve_size = reserve
        self._mutex = Turns()
        self._lock = LockFile(self._beside(".lock"))
        self._reserve = Reserve(self._beside(".reserve"), reserve)
        self._watch = FileWatch(self._beside("-wal"), path)
        self._counter = CommitCounter(self._beside(".commits"))
        self._accept_lost_tail = accept_lost_tail
        self._head = Head(0, 0, 1, "{}", 0)
        self._db: sqlite3.Connection | None = None
        self._failure: StoreFailed | None = None
        self._freed = 0  # pages that are freed and still in the file

    def _beside(self, ending: str) -> Path:
        return self._path.with_name(self._path.name + ending)

    # -- opening and closing -------------------------------------------------------------------------------------

    def open(self) -> Opened:
        """See `Store.open`."""
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            raise ConfigError(f"SQLite {sqlite3.sqlite_version} is too old", hint="use a Python with 3.32 or newer")
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
        self._failure = None
        self._reserve.find()
        if free_space(self._path.parent) < _ROOM_TO_START:
            self._reserve.free()
        counted = self._counter.read()
        found = None if make_file(self._path) else self._inspect()
        self._refuse_lost(found, counted)
        db = self._db = self._connect()
        self._with_reserve(bring_up_to_date)
        self._head = read_head(db)
        note = ""
        if found is not None or counted is not None:
            self._head, note = first_numbers(self._head, counted, self._counter.path, accept=True)
        self._counter.open()
        self._transact(lambda db: None, epoch=self._head.epoch + 1)
        self._fill_reserve(free_space(self._path.parent))
        self._watch.begin()
        return _read_opened(db, self._head, [note] if note else [])

    def _inspect(self) -> Head | None:
        """Look at a file without changing it, as a connection that may write would at its end."""
        log = self._beside("-wal")
        if self._beside("-journal").exists():  # the process died while it made the file
            return None
        how = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"
        try:
            uri = f"{self._path.absolute().as_uri()}?{how}"
            with contextlib.closing(sqlite3.connect(uri, timeout=_PATIENCE, uri=True, isolation_level=None)) as db:
                return inspect(db, self._path)
        except StoreDamaged as error:
            raise StoreDamaged(error.message, hint=recover_hint(self._path), details=error.details) from error
        finally:
            self._beside("-shm").unlink(missing_ok=True)

    def _refuse_lost(self, found: Head | None, counted: Counted | None) -> None:
        """Raises `StoreDamaged` when the newest commits are lost, or all of them, and that is not accepted."""
        if self._accept_lost_tail or counted is None or counted.next_id == 1:
            return
        if found is not None:
            first_numbers(found, counted, self._counter.path, accept=False)
        else:
            raise StoreDamaged(
                f"the store {self._path} is empty or an older one, but {self._counter.path.name} has seen"
                f" {counted.commits:,} commits",
                hint="put the newest copy of its files back, or go on without with --accept-lost-tail",
            )

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            for pragma in schema.PRAGMAS:
                db.execute(pragma).fetchall()
            if _single(db, "PRAGMA journal_mode") != "wal":
                raise ConfigError(f"the file system of {self._path} cannot hold a SQLite write-ahead log")
        except BaseException:
            db.close()
            raise
        return db

    def close(self) -> None:
        """See `Store.close`; SQLite copies its log into the database and removes it."""
        with self._mutex:
            try:
                if self._db is not None:
                    self._check_files()
            finally:
                self._watch.end()
                self._disconnect()
                self._lock.release()

    def _disconnect(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None
        self._counter.close()

    # -- writing -------------------------------------------------------------------------------------------------

    def write(self, batch: Batch) -> None:
        """See `Store.write`."""
        to = rows.stored(batch.new, batch.changed)

        def statements(db: sqlite3.Connection) -> None:
            _insert(db, schema.INSERT_PLAIN, to.plain)
            _insert(db, schema.INSERT_YOUNG, to.young)
            _insert(db, schema.INSERT_WHOLE, to.whole)
            _insert(db, schema.UPDATE, to.changed)
            _insert(db, schema.INSERT_PAYLOAD, to.payloads)
            _insert(db, schema.INSERT_RESULT, to.results)
            _insert(db, schema.INSERT_RESULT_END, sealed("result_end", batch.result_ends))
            _insert(db, schema.INSERT_CALL, sealed("call", batch.calls))
            _insert(db, schema.INSERT_KEY, sealed("key", batch.keys))
            _insert(db, schema.INSERT_UNIQUE, rows.stored_uniques(batch.uniques))
            _write_rare(db, batch)

        with self._mutex:
            self._commit(statements, next_id=batch.next_id, totals=json.dumps(batch.totals))

    def _commit(self, statements: Callable[[sqlite3.Connection], _Result], **numbers: Any) -> _Result:
        """Run statements in one transaction. Raises `StoreFailed`, and from then on always."""
        if self._failure is not None:
            raise StoreFailed(f"the store takes no more writes: {self._failure.message}")
        if self._db is None:
            raise StoreFailed("the store is closed")
        try:
            result = self._transact(statements, **numbers)
        except (sqlite3.Error, ValueError, OverflowError, OSError) as error:
            self._failure = StoreFailed(f"cannot write to {self._path}: {error}")
            raise self._failure from error
        self._check_files(1)
        return result

    def _check_files(self, first: int | None = None) -> None:
        """Raise `StoreFailed`, and from then on always, when what was written is not in the files that a start opens.

        Another program can get at them when it was not kept out by SQLite's locks: by moving, restoring or deleting
        files, or on a file system without locks.
        """
        if (path := self._watch.changed(first)) and self._failure is None:
            self._failure = StoreFailed(f"another program has removed or replaced {path}: nothing more is accepted")
            _abandon(self._db)
            self._db = None
            raise self._failure

    def _transact(self, statements: Callable[[sqlite3.Connection], _Result], **numbers: Any) -> _Result:
        """The same with the errors of SQLite and of the system. ``numbers``: what changes in the store's head."""
        head = self._head._replace(commits=self._head.commits + 1, **numbers)

        def all_statements(db: sqlite3.Connection) -> tuple[_Result, bool]:
            changes = db.total_changes
            result = statements(db)
            counts = bool(numbers) or db.total_changes != changes
            if counts:
                db.execute(schema.WRITE_HEAD, head.stored())
            return result, counts

        result, counts = self._with_reserve(all_statements)
        if counts:
            self._head = head
            self._counter.write(Counted(head.store_id, head.commits, head.epoch, head.next_id))
        return result

    def _with_reserve(self, statements: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Run statements in one transaction, once more when the disk was full and the reserve could be freed."""
        assert self._db is not None
        try:
            return _transaction(self._db, statements)
        except sqlite3.OperationalError as error:
            if not (_is_full(error) and self._reserve.free()):
                raise
            self._db.execute("PRAGMA wal_checkpoint").fetchall()  # so that the log begins again in the room it has
            return _transaction(self._db, statements)

    def has_space(self) -> bool:
        """See `Store.has_space`; has the reserve back once there is room for it. Looks after the files, too."""
        with self._mutex:
            if self._db is not None:
                self._check_files()
        try:
            free = free_space(self._path.parent)
        except OSError:
            return False
        if not self._reserve.held:
            with self._mutex:
                self._fill_reserve(free)
        return free >= self._free_mark and self._reserve.held

    @property
    def strained(self) -> bool:
        """See `Store.strained`."""
        return not self._reserve.held

    def _fill_reserve(self, free: int) -> None:
        if not self._reserve.held and free >= self._free_mark + self._reserve_size:
            self._reserve.take()

    def purge(self, states: Iterable[State], finished_before: float, limit: int, now: float) -> dict[State, int]:
        """See `Store.purge`."""
        with self._mutex:
            return self._commit(lambda db: cleaning.purge(db, states, finished_before, limit, now))

    def delete(self, ids: Sequence[int], states: Iterable[State], now: float) -> list[int]:
        """See `Store.delete`."""
        with self._mutex:
            return self._commit(lambda db: cleaning.delete(db, ids, states, now))

    def forget_results(self, now: float, limit: int) -> int:
        """See `Store.forget_results`."""
        with self._mutex:
            return self._commit(lambda db: cleaning.forget_results(db, now, limit))

    def prune(self, now: float) -> bool:
        """See `Store.prune`."""
        with self._mutex:
            return self._commit(lambda db: cleaning.prune(db, now))

    def shrink(self) -> bool:
        """See `Store.shrink`. The file gets shorter when the log is copied: never by much, which takes long."""
        with self._mutex:
            freed = self._commit(cleaning.shrink)
            self._freed += freed
            if self._freed >= (_CUT_OFF if freed else 1):
                self._checkpoint()
        return freed > 0

    def _checkpoint(self) -> None:
        """Copy the log into the database; a failure is left to SQLite's own one to come, as it does it itself."""
        assert self._db is not None
        self._freed = 0
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint").fetchall()

    def backup(self, target: Path, progress: Callable[[int, int], None]) -> None:
        """See `Store.backup`."""
        growing = backup.begin(target)

        def between(done: int, pages: int) -> None:
            progress(done * _PAGE, pages * _PAGE)
            self._mutex.give_way()
            if self._db is None:
                raise StoreFailed("the store was closed: there is no backup")

        try:
            with self._mutex:
                if self._db is None:
                    raise StoreFailed("the store is closed")
                backup.copy(self._db, growing, between)
            backup.finish(growing, target)
        except BaseException:
            growing.unlink(missing_ok=True)
            raise

    # -- reading -------------------------------------------------------------------------------------------------

    def live(self) -> Iterator[TaskRow]:
        """See `Store.live`."""
        last = -1
        while found := self._read(schema.LIVE, (last, _PIECE)):
            last = found[-1][0]
            if any(row[-1] is not None for row in found):
                runs = {row[0]: row for row in self._read(schema.LIVE_RUNS, (found[0][0], last))}
                found = [runs.get(row[0], row) for row in found]
            yield from map(rows.task_row, found)

    def payloads(self, ids: Sequence[int]) -> dict[int, bytes]:
        """See `Store.payloads`."""
        asked = json.dumps(list(ids))
        large = self._read(schema.LARGE_PAYLOADS, (asked,))
        found = {id: rows.blob(PAYLOAD, id, payload, sum) for id, payload, sum in large}
        ((small,),) = self._read(schema.PAYLOADS, (asked,))
        for item in small.split(",") if small else ():
            id, payload, sum = item.split(" ")
            found[int(id)] = bytes.fromhex(payload)
            if sum and int(sum) != blob_sum(PAYLOAD, int(id), found[int(id)]):
                raise rows.damaged(id)
        return found

    def get(self, ids: Sequence[int]) -> dict[int, TaskRow]:
        """See `Store.get`."""
        return {row[0]: rows.whole_row(row) for row in self._read(schema.GET, (json.dumps(list(ids)),))}

    def slim(self, ids: Sequence[int]) -> dict[int, TaskRow]:
        """See `Store.slim`."""
        return {row[0]: rows.slim_row(row) for row in self._read(schema.GET_SLIM, (json.dumps(list(ids)),))}

    def select(
        self, *, states: Iterable[State] = (), type: str | None = None, queue: str | None = None, limit: int = 50
    ) -> list[TaskRow]:
        """See `Store.select`."""
        sql, parameters = schema.selection(states, type, queue)
        ((first, last),) = self._read(_BOUNDS)
        found: list[TaskRow] = []
        # In pieces, since a rare thing may be far back and commits are waiting.
        while first is not None and last >= first and len(found) < limit:
            piece = self._read(sql, (*parameters, last - _SCAN + 1, last, limit - len(found)))
            found.extend(map(rows.whole_row, piece))
            last -= _SCAN
        return found

    def scan(self, states: Iterable[State], below: int, limit: int) -> tuple[list[TaskRow], int]:
        """See `Store.scan`."""
        ((first, last),) = self._read(_BOUNDS)
        if first is None:
            return [], 0
        top = min(last, below - 1) if below else last
        found = self._read(schema.scan(states), (top - _SCAN + 1, top, limit))
        done = found[-1][0] if len(found) == limit else top - _SCAN + 1
        return list(map(rows.slim_row, found)), done if done > first else 0

    def attempts(self, id: int) -> list[AttemptRow]:
        """See `Store.attempts`."""
        return [AttemptRow(*unsealed("attempt", row)) for row in self._read(schema.ATTEMPTS, (id,))]

    def last_seq(self, client: int) -> int:
        """See `Store.last_seq`."""
        ((last,),) = self._read("SELECT max(seq) FROM call WHERE client = ?", (client,))
        return int(last or 0)

    def find_call(self, client: int, seq: int) -> CallRow | None:
        """See `Store.find_call`."""
        found = self._read(schema.CALL, (client, seq))
        return CallRow(*unsealed("call", found[0])) if found else None

    def find_keys(self, keys: Sequence[str]) -> dict[str, KeyRow]:
        """See `Store.find_keys`."""
        found = {}
        for key in keys:
            for row in self._read(schema.KEY, (key,)):
                found[key] = KeyRow(*unsealed("key", row))
        return found

    def uniques_of(self, ids: Sequence[int]) -> list[UniqueRow]:
        """See `Store.uniques_of`."""
        return [_unique(row) for row in self._read(schema.UNIQUES_OF, (json.dumps(list(ids)),))]

    def uniques(self, now: float) -> list[UniqueRow]:
        """See `Store.uniques`."""
        if not self._read(schema.ANY_UNIQUES)[0][0]:
            return []
        return [_unique(row) for row in self._read(schema.UNIQUES, (now,))]

    def twins(self, ids: Sequence[int]) -> dict[int, int]:
        """See `Store.twins`."""
        found = [_unique(row) for row in self._read(schema.TWINS, (json.dumps(list(ids)),))]
        return {row.id: row.twin for row in found if row.twin is not None}

    def _read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        with self._mutex, self._translated("read"):
            if self._db is None:
                raise StoreFailed("the store is closed")
            return self._db.execute(sql, parameters).fetchall()

    @contextlib.contextmanager
    def _translated(self, verb: str) -> Iterator[None]:
        """SQLite's errors as ours. A plain `sqlite3.DatabaseError` is damage: all others have classes of their own, but
        for text that is none.
        """
        try:
            yield
        except sqlite3.Error as error:
            if type(error) is sqlite3.DatabaseError or "Could not decode" in str(error):
                raise StoreDamaged(
                    f"the store {self._path} is damaged: {error}", hint=recover_hint(self._path)
                ) from error
            if "locked" in str(error):
                raise StoreLocked(f"the store {self._path} is locked by another program") from error
            raise StoreFailed(f"cannot {verb} {self._path}: {error}") from error
        except OSError as error:  # of the files beside the database
            raise StoreFailed(f"cannot {verb} {self._path}: {error.strerror or error}") from error


def _transaction(db: sqlite3.Connection, statements: Callable[[sqlite3.Connection], _Result]) -> _Result:
    db.execute("BEGIN IMMEDIATE")
    try:
        result = statements(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk has ended it already
            db.execute("ROLLBACK")
        raise
    return result


def _read_opened(db: sqlite3.Connection, head: Head, notes: list[str]) -> Opened:
    return Opened(
        head.store_id,
        head.epoch,
        head.next_id,
        json.loads(head.totals),
        _single(db, schema.COUNT_LIVE),
        {State(state): count for state, count in db.execute(schema.COUNT_FINAL)},
        [TypeRow(*unsealed("type", row)) for row in db.execute(schema.TYPES)],
        [WorkerRow(*unsealed("worker", row)) for row in db.execute(schema.WORKERS)],
        [QueueRow(*unsealed("queue", row)) for row in db.execute(schema.QUEUES)],
        notes,
    )


def _unique(row: Sequence[Any]) -> UniqueRow:
    return UniqueRow(*unsealed("uniqueness", row))


def _insert(db: sqlite3.Connection, insert: schema.Insert, rows: Sequence[Sequence[Any]]) -> None:
    for sql, parameters in insert.statements(rows):
        db.execute(sql, parameters)


def _write_rare(db: sqlite3.Connection, batch: Batch) -> None:
    if batch.types:
        db.executemany("INSERT OR REPLACE INTO type VALUES (?, ?, ?)", sealed("type", batch.types))
    if batch.joined:
        db.executemany("INSERT OR REPLACE INTO worker VALUES (?, ?, ?, ?, ?, ?)", sealed("worker", batch.joined))
    if batch.left:
        db.executemany("DELETE FROM worker WHERE incarnation = ?", [(incarnation,) for incarnation in batch.left])
    if batch.attempts:
        _insert(db, schema.INSERT_ATTEMPT, sealed("attempt", batch.attempts))
        db.execute(schema.OLD_ATTEMPTS, (json.dumps(sorted({attempt.id for attempt in batch.attempts})),))
    if batch.queues:
        db.executemany("INSERT OR REPLACE INTO queue VALUES (?, ?, ?, ?, ?)", sealed("queue", batch.queues))


def _abandon(db: sqlite3.Connection | None) -> None:
    """Never close a connection: at its end SQLite would copy its log over a file that is somebody else's by now, and
    remove a log that is not its own.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(db))


def _single(db: sqlite3.Connection, sql: str, parameters: Sequence[Any] = ()) -> Any:
    return db.execute(sql, parameters).fetchone()[0]


def _is_full(error: sqlite3.Error) -> bool:
    return "database or disk is full" in str(error)  # Python 3.10 has no error codes
