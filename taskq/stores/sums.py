"""The checksums of stored rows. PURE.

Every row of a SQLite store ends with a checksum of what is in its columns, so that damage is seen when a row is read,
wherever on the disk it came from: a flipped bit, a row of another page, a page of zeros. A task has two, since most
of it never changes: ``sum`` of what its submit said, ``state_sum`` of what has become of it (None as long as it is just
what the submit made it: pending, due at once, never run). Payloads that may be read without their task have one too.

A checksum is the CRC-32 of the values as ``marshal`` writes them (format 2, which has neither references nor anything
else that depends on more than the values; a stored file among the tests holds it to that), begun with a number for
each table: a row of one table is no row of another. CRC-32 finds every change of up to 32 neighbouring bits; it is no
defence against people, who could as well write a new checksum.
"""

from __future__ import annotations

from collections.abc import Sequence
from marshal import dumps
from typing import Any, Final
from zlib import crc32

FORMAT: Final = 2

TABLES: Final = ("store", "call", "key", "uniqueness", "attempt", "result_end", "type", "worker", "queue")
"""Tables with one checksum a row, over all its columns but those of `LOOSE`."""
LOOSE: Final = frozenset({"expires"})
"""Columns that are set when the task of their row is deleted; their index repeats them."""

_SEEDS = {name: crc32(name.encode()) for name in (*TABLES, "task", "state", "payload", "result")}
TASK: Final = _SEEDS["task"]
STATE: Final = _SEEDS["state"]
PAYLOAD: Final = _SEEDS["payload"]
RESULT: Final = _SEEDS["result"]


def seal(table: str, values: Sequence[Any]) -> int:
    """The checksum of these values as a row of this table."""
    return crc32(dumps(tuple(values), FORMAT), _SEEDS[table])


def sealed(table: str, rows: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Rows with their checksums at the end."""
    seed = _SEEDS[table]
    return [(*row, crc32(dumps((*row,), FORMAT), seed)) for row in rows]


def is_whole(table: str, row: Sequence[Any]) -> bool:
    """Whether a row that ends with its checksum is as it was written."""
    return bool(row[-1] == seal(table, row[:-1]))


def blob_sum(seed: int, id: int, data: bytes) -> int:
    """The checksum of a payload or result that may be read on its own."""
    return crc32(data, seed ^ (id & 0xFFFFFFFF))
