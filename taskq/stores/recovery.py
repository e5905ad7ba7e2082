"""Saves what is readable of a damaged SQLite store into a new one; the files that it reads stay as they are.

Every page is looked at, whether the trees lead to it or not, and every record whose checksums hold is taken. Which
tasks there were, the indexes say, too: one that is named there and has no whole record is lost. A task of which only
the submit is readable, or only an older record, comes back as a failed one, for people to look at: it may have run.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskq.errors import ConfigError, StoreDamaged
from taskq.queue.task import FAILED, FINAL
from taskq.stores import pages, schema, sums
from taskq.stores.commits import CommitCounter, Counted
from taskq.stores.disk import LockFile, make_file, sync_folder
from taskq.stores.inspection import SPARE_EPOCHS, SPARE_IDS
from taskq.stores.rows import Head, change_sum, changing, fixed_sum, is_sealed
from taskq.stores.upgrades import bring_up_to_date

_FIELDS = len(schema.INSERT_WHOLE.columns) - len(schema.SUMS)
_STATE = schema.INSERT_WHOLE.columns.index("state")
_RESULT = schema.INSERT_WHOLE.columns.index("result")
_UNKNOWN = "the store was damaged: how far this task was is not known; requeue it if it has not been done"
_BY_ROWID = {"result_end": 3, "uniqueness": 7, "store": 7, "type": 3, "worker": 6, "queue": 5}
_BY_KEY = {"call": 7, "key": 5, "attempt": 11}
_COLUMNS = {
    "call": ("client", "seq", "first_id", "size", "digest", "at", "sum"),
    "key": ("key", "id", "digest", "expires", "sum"),
    "attempt": schema.INSERT_ATTEMPT.columns,
    "result_end": ("id", "at", "sum"),
    "uniqueness": ("id", "value", "at", "until", "twin", "expires", "sum"),
    "type": ("name", "info", "sum"),
    "worker": ("incarnation", "pool", "name", "host", "pid", "sum"),
    "queue": ("name", "paused_by", "paused_at", "max_running", "sum"),
}


@dataclass
class Recovered:
    """What became of the tasks. ``lost``: no whole record is left; ``doubtful``: back, but not as they were."""

    whole: int = 0
    lost: list[int] = field(default_factory=list)
    doubtful: list[int] = field(default_factory=list)


@dataclass
class _Found:
    tasks: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    halves: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    payloads: dict[int, tuple[bytes, int]] = field(default_factory=dict)
    results: dict[int, tuple[bytes, int]] = field(default_factory=dict)
    others: dict[str, dict[tuple[Any, ...], tuple[Any, ...]]] = field(default_factory=dict)
    named: set[int] = field(default_factory=set)


def recover(source: Path, target: Path) -> Recovered:
    """Write what is readable of ``source`` to the new file ``target``.

    Raises `StoreLocked` when a manager has it, `ConfigError` when a file is there already or cannot be written,
    `StoreDamaged` when nothing of a store can be read.
    """
    if not source.is_file():
        raise ConfigError(f"there is no store {source}")
    if target.exists():
        raise ConfigError(f"{target} is there already", hint="nothing is overwritten: name another file")
    lock = LockFile(source.with_name(source.name + ".lock"))
    lock.take()
    try:
        log = source.with_name(source.name + "-wal")
        now, before = pages.current(source.read_bytes(), log.read_bytes() if log.exists() else b"")
        counted = CommitCounter(source.with_name(source.name + ".commits")).read()
    finally:
        lock.release()
    found, older = _Found(), _Found()
    idle = pages.unused(now)
    for number, page in now.items():
        if not pages.is_map(number):
            _take(older if number in idle else found, page, now, first=number == 1)
    for page in before:
        _take(older, page, now)
    if not found.tasks and not found.others.get("store"):
        raise StoreDamaged(f"nothing of a store of version {schema.VERSION} can be read in {source}")
    report, rows = _settle(found, older)
    head = _head(found, rows, counted)
    _write(target, found, rows, head)
    _note(target, head)
    return report


def _take(to: _Found, page: bytes, now: dict[int, bytes], *, first: bool = False) -> None:
    for rowid, values in pages.cells(page, now, first=first):
        if rowid is None:
            if values is not None:
                _take_keyed(to, values)
        elif values is not None and len(values) == _FIELDS + len(schema.SUMS):
            _take_task(to, rowid, values)
        elif values is not None:
            _take_other(to, rowid, values)


def _take_task(to: _Found, id: int, values: tuple[Any, ...]) -> None:
    run = schema.RUN + len(schema.SUMS)
    row = (id, *values[1 : schema.RUN], *values[run:])
    row = (*row, *values[schema.RUN : run])
    if is_sealed(row):
        to.tasks[id] = row
    elif row[_FIELDS] == fixed_sum(row, row[_FIELDS - 1], row[_FIELDS + 1]):
        to.halves[id] = row
    else:
        to.named.add(id)


def _take_other(to: _Found, rowid: int, values: tuple[Any, ...]) -> None:
    if len(values) == 3 and type(values[1]) is bytes:
        for seed, place in ((sums.PAYLOAD, to.payloads), (sums.RESULT, to.results)):
            if values[2] == sums.blob_sum(seed, rowid, values[1]):
                place[rowid] = values[1], values[2]
    for table, size in _BY_ROWID.items():
        row = (rowid, *values[1:]) if values and values[0] is None and table != "store" else values
        row = row[1:] if table == "store" else row
        if len(values) == size and _holds(table, row):
            to.others.setdefault(table, {})[row[:2] if table == "type" else row[:1]] = row


def _take_keyed(to: _Found, values: tuple[Any, ...]) -> None:
    if len(values) == 2 and type(values[0]) is int and values[0] == values[1]:
        to.named.add(values[1])  # of the index of tasks that are not final
    elif len(values) == 3 and values[0] in FINAL and type(values[2]) is int:
        to.named.add(values[2])  # of the index of those that are
    for table, size in _BY_KEY.items():
        if len(values) == size and _holds(table, values):
            to.others.setdefault(table, {})[values[:1] if table == "key" else values[:2]] = values


def _holds(table: str, row: tuple[Any, ...]) -> bool:
    columns = _COLUMNS.get(table)
    if columns is not None:
        row = tuple(value for name, value in zip(columns, row, strict=True) if name not in sums.LOOSE)
    return sums.is_whole(table, row)


def _settle(found: _Found, older: _Found) -> tuple[Recovered, list[tuple[Any, ...]]]:
    """Which records the new store gets."""
    report, rows = Recovered(), []
    for id in sorted({*found.tasks, *found.halves, *found.named}):
        row, is_sure = found.tasks.get(id), True
        if row is None:
            row, is_sure = found.halves.get(id) or older.tasks.get(id) or older.halves.get(id), False
        if row is None or (type(row[schema.PAYLOAD_AT]) is int and id not in found.payloads):
            if id > 0:
                report.lost.append(id)
            continue
        if is_sure and type(row[_RESULT]) is int and id not in found.results:
            row, is_sure = _changed(row, result=None), False
        elif not is_sure:
            row = _failed(row)
        if is_sure:
            report.whole += 1
        else:
            report.doubtful.append(id)
        rows.append(row)
    return report, rows


def _changed(row: tuple[Any, ...], **values: Any) -> tuple[Any, ...]:
    names = schema.INSERT_WHOLE.columns
    plain = tuple(values.get(name, value) for name, value in zip(names, row, strict=True))
    return (*plain[:-1], change_sum(changing(plain[:_FIELDS])))


def _failed(row: tuple[Any, ...]) -> tuple[Any, ...]:
    error = json.dumps(["error", "StoreDamaged", _UNKNOWN, ""])
    fresh: dict[str, Any] = {"run": 0, "failures": 0, "deaths": 0, "cancel_requested": 0, "worker": None}
    times = {"due_at": row[_STATE - 2], "started_at": None, "finished_at": time.time()}
    return _changed(row, **fresh, **times, worker_name=None, state=int(FAILED), result=None, error=error)


def _head(found: _Found, rows: list[tuple[Any, ...]], counted: Counted | None) -> Head:
    """Numbers that go on behind all that were ever given; the counter of the damaged store fits them, too."""
    seen = counted or Counted(int(time.time() * 1e6), 0, 0, 1)
    kept = list(found.others.get("store", {}).values())
    head = Head(*kept[0][:-1]) if kept else Head(seen.store_id, 0, 1, "{}", 0)
    runs = max((row[schema.RUN] or 0 for row in rows), default=0)
    ids = max((row[0] + 1 for row in rows), default=1)
    return head._replace(
        epoch=max(head.epoch, seen.epoch, runs >> 40) + SPARE_EPOCHS,
        next_id=max(head.next_id, seen.next_id, ids) + SPARE_IDS,
        commits=max(head.commits, seen.commits) + 1,
    )


def _note(target: Path, head: Head) -> None:
    """Give the new store a counter of its own, so that its first start knows it for whole."""
    path = target.with_name(target.name + ".commits")
    path.unlink(missing_ok=True)
    counter = CommitCounter(path)
    counter.open()
    counter.write(Counted(head.store_id, head.commits, head.epoch, head.next_id))
    counter.close()


def _write(target: Path, found: _Found, rows: list[tuple[Any, ...]], head: Head) -> None:
    make_file(target)
    ids = {row[0] for row in rows}
    with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as db:
        for pragma in schema.PRAGMAS:
            db.execute(pragma).fetchall()
        db.execute("BEGIN")
        bring_up_to_date(db)
        db.execute(schema.WRITE_HEAD, head.stored())
        _insert(db, "task", schema.INSERT_WHOLE.columns, rows)
        for table, blobs in (("payload", found.payloads), ("result", found.results)):
            _insert(db, table, ("id", "data", "sum"), [(id, *blob) for id, blob in blobs.items() if id in ids])
        for table, columns in _COLUMNS.items():
            _insert(db, table, columns, list(found.others.get(table, {}).values()))
        db.execute("COMMIT")
    sync_folder(target.parent)


def _insert(db: sqlite3.Connection, table: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    places = ", ".join("?" * len(columns))
    db.executemany(f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({places})", rows)
