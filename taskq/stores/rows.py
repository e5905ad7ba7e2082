"""How a `TaskRow` becomes a stored row with its checksums, and back when they hold. PURE.

A row of ``task`` that was never handed out has NULL in all columns of its runs. Of payloads and results over `INLINE`
bytes the row holds the length, and a table of their own the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, repeat
from marshal import dumps
from operator import itemgetter
from sys import intern
from typing import Any, NamedTuple
from zlib import crc32

from taskq.errors import StoreDamaged
from taskq.queue.task import PENDING
from taskq.queue.task_row import TaskChange, TaskRow
from taskq.stores.base import INLINE_PAYLOAD, UniqueRow
from taskq.stores.schema import CHANGES_ALIKE, INLINE, PAYLOAD_AT, PLAIN_ALIKE, RUN
from taskq.stores.sums import FORMAT, PAYLOAD, RESULT, STATE, TASK, blob_sum, is_whole, seal, sealed

_FIELDS = TaskRow._fields
_RESULT, _ERROR = _FIELDS.index("result"), _FIELDS.index("error")
_DUE, _STATE = _FIELDS.index("due_at"), _FIELDS.index("state")  # before them nothing ever changes
_FLAG = TaskChange._fields.index("cancel_requested")
_STORED = len(_FIELDS)
_make: Callable[[Iterable[Any]], TaskRow] = partial(tuple.__new__, TaskRow)  # faster than its own `_make`
_ENOUGH = 100
"""Rows that share values: with as many, a statement of their own costs less than it spares."""
_made_alike = itemgetter(*map(_FIELDS.index, (*PLAIN_ALIKE, "run", "terms_more")))
_changed_alike = itemgetter(*map(TaskChange._fields.index, CHANGES_ALIKE))
_own_of_plain = itemgetter(*(at for at, name in enumerate(_FIELDS[:RUN]) if name not in PLAIN_ALIKE))
_own_of_change = itemgetter(*(at for at, name in enumerate(TaskChange._fields) if name not in CHANGES_ALIKE))
_NEVER_RUN = (0, 0, 0, False, None, None, None, None, None, None, None)
_UNWRITTEN = (None,) * len(_NEVER_RUN)

RECOVER = 'stop the manager, and save what is readable with "taskq recover"'


class Head(NamedTuple):
    """The one row of ``store``. ``commits``: number of transactions that changed something; ``totals``: JSON text."""

    store_id: int
    epoch: int
    next_id: int
    totals: str
    commits: int

    def stored(self) -> tuple[Any, ...]:
        """For `taskq.stores.schema.WRITE_HEAD`."""
        return (*self, seal("store", self))


Alike = list[tuple[Sequence[Any], list[tuple[Any, ...]]]]
"""Groups of rows: the values that all of a group share, and the values that each has for itself."""


@dataclass
class Stored:
    """The tasks of a batch as rows for `INSERT_PLAIN`, `INSERT_YOUNG`, `INSERT_WHOLE`, `UPDATE`, `INSERT_PAYLOAD`,
    `INSERT_RESULT`; and where many share values, for `INSERT_PLAIN_ALIKE` and `UPDATE_ALIKE`.
    """

    plain: list[tuple[Any, ...]] = field(default_factory=list)
    plain_alike: Alike = field(default_factory=list)
    young: list[tuple[Any, ...]] = field(default_factory=list)
    whole: list[tuple[Any, ...]] = field(default_factory=list)
    changed: list[tuple[Any, ...]] = field(default_factory=list)
    changed_alike: Alike = field(default_factory=list)
    payloads: list[tuple[int, bytes, int]] = field(default_factory=list)
    results: list[tuple[int, bytes, int]] = field(default_factory=list)


def stored(new: Iterable[TaskRow], changed: Iterable[TaskChange]) -> Stored:
    """Take rows apart for the tables they go to, each with its checksums.

    Tasks of one submit share most of their values, and so do the outcomes of one report. Each task that passes comes
    through here twice, so what can be looked at once for all of them is.
    """
    to = Stored()
    for shared, rows in groupby(new, _made_alike):
        *_, submitted_at, due_at, state, run, terms_more = shared
        if state == PENDING and due_at == submitted_at and run == 0 and terms_more is None:
            _store_plain(shared[: len(PLAIN_ALIKE)], list(rows), to)
        else:
            for row in rows:
                _store_other(row, to)
    for shared, changes in groupby(changed, _changed_alike):
        _store_changed(shared, changes, to)
    return to


def _store_plain(shared: Sequence[Any], rows: Sequence[TaskRow], to: Stored) -> None:
    small = [row for row in rows if row.payload is None or len(row.payload) <= INLINE_PAYLOAD]
    sums = [(crc32(dumps(row[:_DUE], FORMAT), TASK),) for row in small]
    if len(small) >= _ENOUGH:
        to.plain_alike.append((shared, [_own_of_plain(row) + sum for row, sum in zip(small, sums, strict=True)]))
    else:
        to.plain += [row[:RUN] + sum for row, sum in zip(small, sums, strict=True)]
    if len(small) < len(rows):
        for row in rows:
            if row.payload is not None and len(row.payload) > INLINE_PAYLOAD:
                _store_other(row, to)


def _store_changed(shared: Sequence[Any], made: Iterable[TaskChange], to: Stored) -> None:
    changes = [
        change[:]
        if change.error is None and (change.result is None or len(change.result) <= INLINE)
        else (*change[:-2], *_outcome(change, to.results))
        for change in made
    ]
    sums = [(crc32(dumps(change, FORMAT), STATE),) for change in changes]
    if len(changes) >= _ENOUGH and shared[-1] is None:  # an error is stored as another value than it is here
        to.changed_alike.append((shared, [_own_of_change(row) + sum for row, sum in zip(changes, sums, strict=True)]))
    else:
        to.changed += [row + sum for row, sum in zip(changes, sums, strict=True)]


def _store_other(row: TaskRow, to: Stored) -> None:
    head, payload, payload_sum = row[:RUN], row.payload, None
    if payload is not None and len(payload) > INLINE_PAYLOAD:
        payload_sum = blob_sum(PAYLOAD, row.id, payload)
        if len(payload) > INLINE:
            to.payloads.append((row.id, payload, payload_sum))
            head = (*row[:PAYLOAD_AT], len(payload), *row[PAYLOAD_AT + 1 : RUN])
            payload_sum = None
    sum = fixed_sum(head, row.terms_more, payload_sum)
    if row[RUN:] == _NEVER_RUN:
        to.young.append((*head, sum, payload_sum, young_sum(head)))
    else:
        change = (row.id, *row[_DUE:_RESULT], *_outcome(row, to.results))
        to.whole.append((*head[:_DUE], *change[1:], row.terms_more, sum, payload_sum, change_sum(change)))


def fixed_sum(row: Sequence[Any], terms_more: str | None, payload_sum: int | None) -> int:
    """The checksum of what never changes of a stored row that begins as a `TaskRow`."""
    rare = tuple(value for value in (terms_more, payload_sum) if value is not None)
    return crc32(dumps((*row[:_DUE], *rare), FORMAT), TASK)


def change_sum(change: Sequence[Any]) -> int:
    """The checksum of what may change: the values of a `TaskChange` as they are stored."""
    return crc32(dumps((*change,), FORMAT), STATE)


def young_sum(head: Sequence[Any]) -> int | None:
    """The same of a task that has never run: None when it is just as its submit made it."""
    if head[_STATE] == PENDING and head[_DUE] == head[_DUE - 1]:
        return None
    return change_sum((head[0], *head[_DUE:RUN]))


def stored_uniques(rows: Iterable[UniqueRow]) -> list[tuple[Any, ...]]:
    """Rows for `INSERT_UNIQUE`: only those of repetitions know already when they expire."""
    return [(*row, None if row[4] is None else row[3]) for row in sealed("uniqueness", list(rows))]


def _outcome(row: TaskRow | TaskChange, results: list[tuple[int, bytes, int]]) -> tuple[bytes | int | None, str | None]:
    result: bytes | int | None = row.result
    if row.result is not None and len(row.result) > INLINE:
        results.append((row.id, row.result, blob_sum(RESULT, row.id, row.result)))
        result = len(row.result)
    error = None if row.error is None else json.dumps(row.error, ensure_ascii=False, separators=(",", ":"))
    return result, error


# -- reading ---------------------------------------------------------------------------------------------------------


def task_row(stored: tuple[Any, ...]) -> TaskRow:
    """The `TaskRow` of a stored row (or of its beginning, when it has no run), whose checksums are not looked at; words
    that rows share are kept once.
    """
    if stored[RUN] is None:
        return _make((stored[0], intern(stored[1]), intern(stored[2]), *stored[3:RUN], *_NEVER_RUN))
    error = None if stored[_ERROR] is None else tuple(json.loads(stored[_ERROR]))
    return _make((stored[0], intern(stored[1]), intern(stored[2]), *stored[3:_ERROR], error, stored[_STORED - 1]))


def plain_rows(found: Sequence[tuple[Any, ...]]) -> list[TaskRow]:
    """Rows of `LIVE` that are plain. Raises `StoreDamaged`. A million of them come through here at a start."""
    made = []
    sums = map(crc32, map(dumps, [row[:_DUE] for row in found], repeat(FORMAT)), repeat(TASK))
    for row, sum in zip(found, sums, strict=True):
        if sum != row[RUN] or row[_STATE] != 1 or row[_DUE] != row[_DUE - 1]:
            raise damaged(row[0])
        made.append(_make((row[0], intern(row[1]), intern(row[2]), *row[3:RUN], *_NEVER_RUN)))
    return made


def light_row(stored: tuple[Any, ...]) -> TaskRow:
    """A row of `LIVE_OTHERS`, without a payload that is not small. Raises `StoreDamaged`."""
    if not is_sealed(stored):
        raise damaged(stored[0])
    row = task_row(stored)
    is_small = type(row.payload) is bytes and len(row.payload) <= INLINE_PAYLOAD
    return row if is_small else row._replace(payload=None)


def slim_row(stored: tuple[Any, ...]) -> TaskRow:
    """A row of `GET_SLIM` or `scan`, without payload and result. Raises `StoreDamaged`."""
    if not is_sealed(stored):
        raise damaged(stored[0])
    return task_row(stored)._replace(payload=None, result=None)


def whole_row(stored: tuple[Any, ...]) -> TaskRow:
    """A row of `SELECT`, with payload and result. Raises `StoreDamaged`."""
    if not is_sealed(stored):
        raise damaged(stored[0])
    row = task_row(stored)
    payload, payload_sum, result, result_sum = stored[-4:]
    if type(stored[PAYLOAD_AT]) is int:
        row = row._replace(payload=blob(PAYLOAD, row.id, payload, payload_sum))
    if type(stored[_RESULT]) is int:
        row = row._replace(result=blob(RESULT, row.id, result, result_sum))
    return row


def is_sealed(stored: Sequence[Any]) -> bool:
    """Whether the values of a `TaskRow` as they are stored, and its three checksums after them, fit each other."""
    row, (sum, payload_sum, state_sum) = stored[:_STORED], stored[_STORED : _STORED + 3]
    if sum != fixed_sum(row, row[-1], payload_sum):
        return False
    if row[RUN] is None:
        return bool(state_sum == young_sum(row[:RUN])) and row[RUN:] == _UNWRITTEN
    return bool(state_sum == change_sum(changing(row)))


def changing(row: Sequence[Any]) -> tuple[Any, ...]:
    """The part of a stored row that a `TaskChange` replaces; truth values are numbers in a store."""
    return _plain((row[0], *row[_DUE : _STORED - 1]))


def is_change_sealed(row: Sequence[Any]) -> bool:
    """Whether the stored values of a `TaskChange` and their checksum after them fit each other."""
    return bool(row[-1] == change_sum(_plain(row[:-1])))


def without_result(row: Sequence[Any]) -> tuple[Any, ...]:
    """A row like that for `UPDATE`, so that the result is gone."""
    change = _plain(row[:-1])
    change = (*change[:-2], None, change[-1])
    return (*change, change_sum(change))


def _plain(change: Sequence[Any]) -> tuple[Any, ...]:
    return (*change[:_FLAG], bool(change[_FLAG]), *change[_FLAG + 1 :])


def blob(seed: int, id: int, data: bytes | None, sum: int | None) -> bytes:
    """A payload or result that was read on its own. Raises `StoreDamaged`."""
    if type(data) is not bytes or sum != blob_sum(seed, id, data):
        raise damaged(id)
    return data


def unsealed(table: str, row: Sequence[Any]) -> Sequence[Any]:
    """A row of another table without its checksum. Raises `StoreDamaged`."""
    if not is_whole(table, row):
        raise StoreDamaged(f"the store is damaged: a record of its table {table}", hint=RECOVER)
    return row[:-1]


def damaged(id: Any) -> StoreDamaged:
    """The error for a task whose record is not as it was written."""
    return StoreDamaged(f"the store is damaged: the record of task {id}", hint=RECOVER, details={"id": id})
