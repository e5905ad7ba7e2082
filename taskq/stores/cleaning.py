"""How a SQLite store gets rid of what is over: records, results, calls, keys, and idle pages of its file.

All of it in pieces that take some milliseconds each, since commits wait meanwhile: as many rows as the caller says, of
large payloads and results no more than `PIECE` bytes, and as many pages as `SHRINKING` seconds allow (a page costs the
more the more of them are free, and more yet while other threads want the GIL: each is a step of a statement). Functions
here run inside the transaction of their caller.
"""

from __future__ import annotations

import json
import sqlite3
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

from taskq.queue.task import FINAL, State
from taskq.stores import schema
from taskq.stores.base import KEEP_CALLS
from taskq.stores.rows import is_change_sealed, without_result

PIECE = 16 * 2**20
"""Bytes of large payloads and results that one transaction deletes, if they are not all of one task."""
PRUNED = 1_000
"""Calls, keys and unique values that one transaction deletes, of each."""
UNUSED = 3_000
"""Pages that may always lie idle in the file; in a larger one a quarter of it, for what comes next."""
SHRINKING = 0.005
"""Seconds that one transaction gives pages back for."""


def purge(
    db: sqlite3.Connection, states: Iterable[State], finished_before: float, limit: int, now: float
) -> dict[State, int]:
    """Delete up to ``limit`` final records of these states, oldest first; gives how many of each."""
    gone: Counter[State] = Counter()
    room = PIECE
    for state in sorted(FINAL.intersection(states)):
        found = db.execute(schema.OLDEST, (state, finished_before, limit - gone.total())).fetchone()
        piece = _piece(found[0], found[1], room)
        if piece.number:
            _delete(db, piece.ids, now, has_keys=bool(found[2]), is_large=piece.size > 0)
            gone[state] = piece.number
            room -= piece.size
        if piece.is_cut or room <= 0:
            break
    return dict(gone)


def delete(db: sqlite3.Connection, ids: Iterable[int], states: Iterable[State], now: float) -> list[int]:
    """Delete those of these records that are in one of these (final) states; gives their ids."""
    asked = json.dumps(list(ids)), json.dumps([int(state) for state in states])
    (gone,) = db.execute(schema.AMONG, asked).fetchone()
    _delete(db, gone, now)
    return list(json.loads(gone))


def forget_results(db: sqlite3.Connection, now: float, limit: int) -> int:
    """Delete up to ``limit`` results whose time is over, not their records; gives how many it looked at."""
    ids, sizes = db.execute(schema.OLD_RESULTS, (now, limit)).fetchone()
    piece = _piece(ids, sizes, PIECE)
    if piece.number:
        ended = [row for row in db.execute(schema.ENDED, (piece.ids,)) if is_change_sealed(row)]
        for sql, parameters in schema.UPDATE.statements([without_result(row) for row in ended]):
            db.execute(sql, parameters)
        for forget in schema.FORGET_RESULTS:
            db.execute(forget, (piece.ids,))
    return piece.number


class _Piece(NamedTuple):
    """What one transaction deletes: a JSON list of ids, their number and bytes. ``is_cut``: it is not all there is."""

    ids: str
    number: int
    size: int
    is_cut: bool


def _piece(ids: str, sizes: str, room: int) -> _Piece:
    """The first ones that have room together, or one that is larger than it alone."""
    sums = list(accumulate(json.loads(sizes)))
    count = bisect_right(sums, room) or min(1, len(sums))
    is_cut = count < len(sums)
    return _Piece(
        json.dumps(json.loads(ids)[:count]) if is_cut else ids, count, sums[count - 1] if count else 0, is_cut
    )


def _delete(db: sqlite3.Connection, ids: str, now: float, *, has_keys: bool = True, is_large: bool = True) -> None:
    """Delete these records (a JSON list of ids) and what belongs to them."""
    if has_keys:
        db.execute(schema.EXPIRE_KEYS, (now + KEEP_CALLS, ids, ids))
    db.execute(schema.EXPIRE_UNIQUES, (ids,))
    for delete in (*schema.DELETES, *(schema.DELETE_LARGE if is_large else ())):
        db.execute(delete, (ids,))


def prune(db: sqlite3.Connection, now: float, calls: float) -> bool:
    """Forget calls older than 24 h, and keys and unique values whose time is over, some of each; gives whether there
    may be more.
    """
    ends = (
        (schema.OLD_CALLS, calls - KEEP_CALLS),
        (schema.OLD_KEYS, calls),
        (schema.OLD_UNIQUES, min(now, calls)),  # repetitions go by the calls, windows by the wall clock
    )
    return PRUNED in [db.execute(statement, (end, PRUNED)).rowcount for statement, end in ends]


def shrink(db: sqlite3.Connection) -> int:
    """Free some pages when more of them lie idle than may; gives how many. The file gets shorter by them when this is
    copied from the log.
    """
    unused, pages = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_count"))
    freed, excess = 0, unused - max(UNUSED, pages // 4)
    end = time.monotonic() + SHRINKING
    while freed < excess and time.monotonic() < end:
        db.execute("PRAGMA incremental_vacuum(1)")  # Python makes only one step of it, and a step frees one page
        freed += 1
    return freed
