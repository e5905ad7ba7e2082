"""The records in the pages of a SQLite file, read without SQLite and without its trees. PURE.

For a damaged store: a page that can be reached no more still holds whole records, and those know by their checksums
what they are. Only what the file format says of pages, cells and records is used (sqlite.org/fileformat2.html).
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

PAGE = 4096
"""Bytes: what SQLite makes by default; a store never asks for another size."""
_TABLE_LEAF, _INDEX_LEAF, _INDEX_INNER = 13, 10, 2
_POINTERS = PAGE // 5 + 1  # pages from one map of pointers to the next; the first is page 2
_LOG_HEADER, _FRAME_HEADER = 32, 24
_SMALLEST = (PAGE - 12) * 32 // 255 - 23  # of a record that goes on elsewhere, so much at least is on its page
_LARGEST = {
    _TABLE_LEAF: PAGE - 35,
    _INDEX_LEAF: (PAGE - 12) * 64 // 255 - 23,
    _INDEX_INNER: (PAGE - 12) * 64 // 255 - 23,
}


class Cell(NamedTuple):
    """One record. ``rowid``: of a table's, else None; ``values``: None when it cannot be read."""

    rowid: int | None
    values: tuple[Any, ...] | None


def current(database: bytes, log: bytes) -> tuple[dict[int, bytes], list[bytes]]:
    """Number -> newest page, from the file and its log; and the pages that these replace, oldest first.

    The checksums of the log are not looked at: records have their own.
    """
    pages = {start // PAGE + 1: database[start : start + PAGE] for start in range(0, len(database), PAGE)}
    replaced = []
    frames = []
    for start in range(_LOG_HEADER, len(log) - _FRAME_HEADER - PAGE + 1, _FRAME_HEADER + PAGE):
        number, commit, *salt = struct.unpack_from(">IIII", log, start)
        frames.append((number, commit, tuple(salt), log[start + _FRAME_HEADER : start + _FRAME_HEADER + PAGE]))
    salts = Counter(salt for _, _, salt, _ in frames[:64])  # the first ones are never left from before
    newest = salts.most_common(1)[0][0] if salts else None
    frames = [frame for frame in frames if frame[2] == newest]
    while frames and not frames[-1][1]:
        frames.pop()  # of a transaction that never ended
    for number, _, _, page in frames:
        if number in pages:
            replaced.append(pages[number])
        pages[number] = page
    return pages, replaced


def unused(pages: dict[int, bytes]) -> set[int]:
    """The pages that the file's list of unused ones names, as far as it can be read."""
    found: set[int] = set()
    trunk = struct.unpack_from(">I", pages.get(1, bytes(PAGE)), 32)[0]
    while trunk in pages and trunk not in found:
        found.add(trunk)
        trunk_page = pages[trunk]
        trunk, count = struct.unpack_from(">II", trunk_page)
        found.update(struct.unpack_from(f">{min(count, PAGE // 4 - 2)}I", trunk_page, 8))
    return found


def is_map(number: int) -> bool:
    """Whether this page is a map of pointers: no records."""
    return number >= 2 and (number - 2) % _POINTERS == 0


def cells(page: bytes, pages: dict[int, bytes], *, first: bool = False) -> Iterator[Cell]:
    """The records of a page; nothing of one that holds none."""
    start = 100 if first else 0
    kind = page[start] if len(page) == PAGE else 0
    if kind not in _LARGEST:
        return
    count = struct.unpack_from(">H", page, start + 3)[0]
    pointers = start + (12 if kind == _INDEX_INNER else 8)
    for place in struct.unpack_from(f">{min(count, (PAGE - pointers) // 2)}H", page, pointers):
        rowid = None
        try:
            at = place + (4 if kind == _INDEX_INNER else 0)
            size, at = _number(page, at)
            if kind == _TABLE_LEAF:
                rowid, at = _number(page, at)
            yield Cell(rowid, _values(_whole(page, at, size, _LARGEST[kind], pages)))
        except (IndexError, struct.error, ValueError, KeyError):
            yield Cell(rowid, None)


def _whole(page: bytes, at: int, size: int, largest: int, pages: dict[int, bytes]) -> bytes:
    """The bytes of a record, together with what lies on pages of its own."""
    if size <= largest:
        return page[at : at + size]
    local = _SMALLEST + (size - _SMALLEST) % (PAGE - 4)
    if local > largest:
        local = _SMALLEST
    parts, left = [page[at : at + local]], size - local
    following = struct.unpack_from(">I", page, at + local)[0]
    while left > 0:
        more = pages[following]
        following = struct.unpack_from(">I", more)[0]
        parts.append(more[4 : 4 + left])
        left -= PAGE - 4
    return b"".join(parts)


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length number, and where it ends."""
    value = 0
    for size in range(8):
        byte = data[at + size]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + size + 1
    value = value << 8 | data[at + 8]
    return value - (1 << 64) if value >> 63 else value, at + 9


_SIZES: Sequence[int] = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)


def _values(record: bytes) -> tuple[Any, ...]:
    end, at = _number(record, 0)
    place = end
    found: list[Any] = []
    while at < end:
        kind, at = _number(record, at)
        if kind >= 12:
            data = record[place : place + (kind - 12) // 2]
            if len(data) < (kind - 12) // 2:
                raise ValueError("cut off")
            found.append(data.decode() if kind % 2 else data)
            place += len(data)
            continue
        size = _SIZES[kind]
        data = record[place : place + size]
        if len(data) < size:
            raise ValueError("cut off")
        place += size
        if kind == 0:
            found.append(None)
        elif kind == 7:
            found.append(struct.unpack(">d", data)[0])
        else:
            found.append(kind - 8 if kind in (8, 9) else int.from_bytes(data, "big", signed=True))
    return tuple(found)
