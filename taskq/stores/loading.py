"""Gives a start what is in a SQLite store, and looks at every record as it does.

A record is read once, from a connection that changes nothing: who loads a damaged store gets an error in the middle,
and the files are as they were.
"""

from __future__ import annotations

import json
import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from taskq.errors import StoreDamaged
from taskq.queue.task import State
from taskq.queue.task_row import TaskRow
from taskq.stores import rows, schema
from taskq.stores.base import Opened, QueueRow, Take, TypeRow, WorkerRow
from taskq.stores.rows import RECOVER, Head, unsealed
from taskq.stores.sums import PAYLOAD

_PIECE = 1_000  # rows that are taken at a time; more would only leave the processor's cache


def load(db: sqlite3.Connection, head: Head, note: str, take: Take) -> Opened:
    """Hand everything to ``take``; what it leaves of the records is looked at nevertheless.

    ``head``: what the store will say of itself from now on. Raises `StoreDamaged`.
    """
    opened = Opened(
        head.store_id,
        head.epoch,
        head.next_id,
        json.loads(head.totals),
        _number(db, schema.COUNT_LIVE),
        {State(state): count for state, count in db.execute(schema.COUNT_FINAL)},
        [TypeRow(*unsealed("type", row)) for row in db.execute(schema.TYPES)],
        [WorkerRow(*unsealed("worker", row)) for row in db.execute(schema.WORKERS)],
        [QueueRow(*unsealed("queue", row)) for row in db.execute(schema.QUEUES)],
        db.execute(schema.NEWEST_RECORD).fetchone()[0],
        db.execute(schema.NEWEST_CALL).fetchone()[0],
        [note] if note else [],
    )
    left = _live(db)
    take(opened, left)
    deque(left, maxlen=0)
    return opened


def _live(db: sqlite3.Connection) -> Iterator[TaskRow]:
    """The records that are not final, by rising id, as `Take` gets them. Raises `StoreDamaged`."""
    seen = 0
    found = db.execute(schema.LIVE)
    while piece := found.fetchmany(_PIECE):
        if any([row[-1] is not None for row in piece]):
            yield from _mixed(db, piece)
        else:
            yield from rows.plain_rows(piece)
        seen += len(piece)
    if _number(db, schema.COUNT_LIVE_ROWS) != seen:
        raise StoreDamaged("the store is damaged: its list of tasks that are not final", hint=RECOVER)


def _mixed(db: sqlite3.Connection, piece: Sequence[tuple[Any, ...]]) -> Iterator[TaskRow]:
    """The same of some rows of `schema.LIVE`, when not all of them are plain."""
    between = piece[0][0], piece[-1][0]
    others = {row[0]: rows.light_row(row) for row in db.execute(schema.LIVE_OTHERS, between)}
    for id, data, sum in db.execute(schema.LIVE_PAYLOADS, between):
        rows.blob(PAYLOAD, id, data, sum)
    plain = {row.id: row for row in rows.plain_rows([row for row in piece if row[-1] is None])}
    for id, *_ in piece:
        if id not in others and id not in plain:
            raise rows.damaged(id)
        yield others.get(id) or plain[id]


def _number(db: sqlite3.Connection, sql: str) -> int:
    return int(db.execute(sql).fetchone()[0])
