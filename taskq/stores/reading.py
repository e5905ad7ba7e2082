"""What is asked of a SQLite store while it is open: the reading half of `taskq.stores.sqlite.SqliteStore`."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from taskq.queue.task import State
from taskq.queue.task_row import TaskRow
from taskq.stores import rows, schema
from taskq.stores.base import AttemptRow, CallRow, KeyRow, UniqueRow
from taskq.stores.rows import unsealed
from taskq.stores.sums import PAYLOAD, blob_sum

_SCAN = 50_000  # ids that one piece of a search takes while commits wait
_BOUNDS = "SELECT (SELECT min(id) FROM task), (SELECT max(id) FROM task)"

_Made = TypeVar("_Made")


class Reading(ABC):
    """The verbs that only read. `_read` is the store's own; `_rows` makes something of each row that it gives."""

    @abstractmethod
    def _read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]: ...

    @abstractmethod
    def _rows(self, make: Callable[[Any], _Made], sql: str, parameters: Sequence[Any]) -> list[_Made]: ...

    def payloads(self, ids: Sequence[int]) -> dict[int, bytes]:
        """See `Store.payloads`."""
        asked = json.dumps(list(ids))
        found = dict(self._rows(_large_payload, schema.LARGE_PAYLOADS, (asked,)))
        for small in self._rows(_small_payloads, schema.PAYLOADS, (asked,)):
            found.update(small)
        return found

    def get(self, ids: Sequence[int]) -> dict[int, TaskRow]:
        """See `Store.get`."""
        return {row.id: row for row in self._rows(rows.whole_row, schema.GET, (json.dumps(list(ids)),))}

    def slim(self, ids: Sequence[int]) -> dict[int, TaskRow]:
        """See `Store.slim`."""
        return {row.id: row for row in self._rows(rows.slim_row, schema.GET_SLIM, (json.dumps(list(ids)),))}

    def select(
        self, *, states: Iterable[State] = (), type: str | None = None, queue: str | None = None, limit: int = 50
    ) -> list[TaskRow]:
        """See `Store.select`."""
        sql, parameters = schema.selection(states, type, queue)
        ((first, last),) = self._read(_BOUNDS)
        found: list[TaskRow] = []
        # In pieces, since a rare thing may be far back and commits are waiting.
        while first is not None and last >= first and len(found) < limit:
            piece = last - _SCAN + 1, last, limit - len(found)
            found.extend(self._rows(rows.whole_row, sql, (*parameters, *piece)))
            last -= _SCAN
        return found

    def scan(self, states: Iterable[State], below: int, limit: int) -> tuple[list[TaskRow], int]:
        """See `Store.scan`."""
        ((first, last),) = self._read(_BOUNDS)
        if first is None:
            return [], 0
        top = min(last, below - 1) if below else last
        found = self._rows(rows.slim_row, schema.scan(states), (top - _SCAN + 1, top, limit))
        done = found[-1].id if len(found) == limit else top - _SCAN + 1
        return found, done if done > first else 0

    def attempts(self, id: int) -> list[AttemptRow]:
        """See `Store.attempts`."""
        return self._rows(_attempt, schema.ATTEMPTS, (id,))

    def last_seq(self, client: int) -> int:
        """See `Store.last_seq`."""
        ((last,),) = self._read("SELECT max(seq) FROM call WHERE client = ?", (client,))
        return int(last or 0)

    def find_call(self, client: int, seq: int) -> CallRow | None:
        """See `Store.find_call`."""
        found = self._rows(_call, schema.CALL, (client, seq))
        return found[0] if found else None

    def find_keys(self, keys: Sequence[str]) -> dict[str, KeyRow]:
        """See `Store.find_keys`."""
        return {row.key: row for key in keys for row in self._rows(_key, schema.KEY, (key,))}

    def uniques_of(self, ids: Sequence[int]) -> list[UniqueRow]:
        """See `Store.uniques_of`."""
        return self._rows(_unique, schema.UNIQUES_OF, (json.dumps(list(ids)),))

    def uniques(self, now: float) -> list[UniqueRow]:
        """See `Store.uniques`."""
        if not self._read(schema.ANY_UNIQUES)[0][0]:
            return []
        return self._rows(_unique, schema.UNIQUES, (now,))

    def twins(self, ids: Sequence[int]) -> dict[int, int]:
        """See `Store.twins`."""
        found = self._rows(_unique, schema.TWINS, (json.dumps(list(ids)),))
        return {row.id: row.twin for row in found if row.twin is not None}


def _unique(row: Sequence[Any]) -> UniqueRow:
    return UniqueRow(*unsealed("uniqueness", row))


def _attempt(row: Sequence[Any]) -> AttemptRow:
    return AttemptRow(*unsealed("attempt", row))


def _call(row: Sequence[Any]) -> CallRow:
    return CallRow(*unsealed("call", row))


def _key(row: Sequence[Any]) -> KeyRow:
    return KeyRow(*unsealed("key", row))


def _large_payload(row: Sequence[Any]) -> tuple[int, bytes]:
    id, payload, sum = row
    return id, rows.blob(PAYLOAD, id, payload, sum)


def _small_payloads(row: Sequence[str | None]) -> dict[int, bytes]:
    found = {}
    for item in row[0].split(",") if row[0] else ():
        id, payload, sum = item.split(" ")
        found[int(id)] = bytes.fromhex(payload)
        if sum and int(sum) != blob_sum(PAYLOAD, int(id), found[int(id)]):
            raise rows.damaged(id)
    return found
