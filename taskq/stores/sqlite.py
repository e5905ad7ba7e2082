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
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from taskq.errors import ConfigError, StoreDamaged, StoreFailed, StoreLocked
from taskq.queue.task import State
from taskq.stores import backup, cleaning, rows, schema
from taskq.stores.base import Batch, Opened, Take, nothing
from taskq.stores.commits import CommitCounter, Counted
from taskq.stores.connections import abandon, connect, looking, transaction
from taskq.stores.disk import LockFile, make_file
from taskq.stores.guard import Guard
from taskq.stores.inspection import all_lost, first_numbers, inspect, located, read_head, recover_hint
from taskq.stores.loading import load
from taskq.stores.reading import Reading
from taskq.stores.rows import Head
from taskq.stores.sums import sealed
from taskq.stores.upgrades import bring_up_to_date
from taskq.turns import Turns

FREE_MARK = 64 * 2**20
"""Bytes: with less free space on the disk, no new tasks are accepted."""
RESERVE = 16 * 2**20
"""Bytes that are kept back for the outcomes of accepted tasks."""

_OLDEST_SQLITE = (3, 32)  # from there on a statement has room for `Insert`'s parameters
_PAGE = 4096  # bytes, SQLite's own choice for new files
_CUT_OFF = 2_000  # pages by which the file gets shorter at a time

_Result = TypeVar("_Result")


class SqliteStore(Reading):
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
        self._mutex = Turns()
        self._lock = LockFile(self._beside(".lock"))
        self._guard = Guard(
            path, self._beside("-wal"), free_mark=free_mark, reserve_file=self._beside(".reserve"), reserve=reserve
        )
        self._counter = CommitCounter(self._beside(".commits"))
        self._accept_lost_tail = accept_lost_tail
        self._head = Head(0, 0, 1, "{}", 0)
        self._db: sqlite3.Connection | None = None
        self._failure: StoreFailed | None = None
        self._freed = 0  # pages that are freed and still in the file

    def _beside(self, ending: str) -> Path:
        return self._path.with_name(self._path.name + ending)

    # -- opening and closing -------------------------------------------------------------------------------------

    def open(self, take: Take = nothing) -> Opened:
        """See `Store.open`."""
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            raise ConfigError(f"SQLite {sqlite3.sqlite_version} is too old", hint="use a Python with 3.32 or newer")
        with self._mutex:
            self._lock.take()
            try:
                with self._translated("open"):
                    return self._open(take)
            except BaseException:
                self._disconnect()
                self._lock.release()
                raise

    def _open(self, take: Take) -> Opened:
        self._failure = None
        self._guard.make_room()
        counted = self._counter.read()
        opened = None if make_file(self._path) else self._look(counted, take)
        if opened is None and not self._accepts(counted):
            raise all_lost(self._path, self._counter.path, counted)
        db = self._db = connect(self._path)
        self._with_reserve(bring_up_to_date)
        if opened is None:
            head, note = read_head(db), ""
            if counted is not None:
                head, note = first_numbers(head, counted, self._counter.path, accept=True)
            opened = self._load(db, head, note, take)
        self._counter.open()
        self._transact(lambda db: None, epoch=opened.epoch)
        self._guard.has_space()
        self._guard.watch.begin()
        return opened

    def _look(self, counted: Counted | None, take: Take) -> Opened | None:
        """Look at a file and load it without changing it, as a connection that may write would at its end.

        None when there is nothing to be loaded yet: it is empty, or its tables are older ones.
        """
        if self._beside("-journal").exists():  # the process died while it made the file
            return None
        with looking(self._path) as db:
            found = inspect(db, self._path)
            if found is None:
                return None
            head, note = first_numbers(found, counted, self._counter.path, accept=self._accepts(counted))
            return self._load(db, head, note, take)

    def _load(self, db: sqlite3.Connection, head: Head, note: str, take: Take) -> Opened:
        self._head = head._replace(epoch=head.epoch + 1)
        return load(db, self._head, note, take)

    def _accepts(self, counted: Counted | None) -> bool:
        """Whether commits may be lost: when nobody has seen any with a task, or people say so."""
        return self._accept_lost_tail or counted is None or counted.next_id == 1

    def close(self) -> None:
        """See `Store.close`; SQLite copies its log into the database and removes it."""
        with self._mutex:
            try:
                if self._db is not None:
                    self._check_files()
            finally:
                self._guard.watch.end()
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
            _insert_alike(db, schema.INSERT_PLAIN_ALIKE, to.plain_alike)
            _insert(db, schema.INSERT_YOUNG, to.young)
            _insert(db, schema.INSERT_WHOLE, to.whole)
            _insert(db, schema.UPDATE, to.changed)
            _insert_alike(db, schema.UPDATE_ALIKE, to.changed_alike)
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
        if (path := self._guard.watch.changed(first)) and self._failure is None:
            self._failure = StoreFailed(f"another program has removed or replaced {path}: nothing more is accepted")
            abandon(self._db)
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
            return transaction(self._db, statements)
        except sqlite3.OperationalError as error:
            if not (_is_full(error) and self._guard.reserve.free()):
                raise
            self._db.execute("PRAGMA wal_checkpoint").fetchall()  # so that the log begins again in the room it has
            return transaction(self._db, statements)

    def has_space(self) -> bool:
        """See `Store.has_space`. Looks after the files, too."""
        with self._mutex:
            if self._db is not None:
                self._check_files()
            return self._guard.has_space()

    @property
    def strained(self) -> bool:
        """See `Store.strained`."""
        return not self._guard.reserve.held

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

    def prune(self, now: float, calls: float) -> bool:
        """See `Store.prune`."""
        with self._mutex:
            return self._commit(lambda db: cleaning.prune(db, now, calls))

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

    # -- reading (see `Reading`)

    def _read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        with self._mutex, self._translated("read"):
            if self._db is None:
                raise StoreFailed("the store is closed")
            return self._db.execute(sql, parameters).fetchall()

    def _rows(self, make: Callable[[Any], _Result], sql: str, parameters: Sequence[Any]) -> list[_Result]:
        found = self._read(sql, parameters)
        with self._translated("read"):
            return [make(row) for row in found]

    @contextlib.contextmanager
    def _translated(self, verb: str) -> Iterator[None]:
        """SQLite's errors as ours. A plain `sqlite3.DatabaseError` is damage: all others have classes of their own, but
        for text that is none.
        """
        try:
            yield
        except StoreDamaged as error:
            raise located(error, self._path) from error.__cause__
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


def _insert(db: sqlite3.Connection, insert: schema.Insert, rows: Sequence[Sequence[Any]]) -> None:
    for sql, parameters in insert.statements(rows):
        db.execute(sql, parameters)


def _insert_alike(db: sqlite3.Connection, insert: schema.InsertAlike, groups: rows.Alike) -> None:
    for shared, own in groups:
        for sql, parameters in insert.statements(shared, own):
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


def _is_full(error: sqlite3.Error) -> bool:
    return "database or disk is full" in str(error)  # Python 3.10 has no error codes
