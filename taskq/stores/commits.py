"""The commit counter: a small file beside a store that says how many commits the store must have.

A store that lost its newest commits (its log was damaged or removed, an old copy was put in its place) looks whole. So
the number of each commit is also written here, after the commit and before anybody hears of it, without fsync: what
is read here at the next start never exceeds the commits that reached the disk, unless commits were lost. With it go
the highest epoch and task id, so that none is given twice after such a loss.

The file has two places, written in turn, each with a checksum and in a sector of its own: a torn write spoils one, and
the other is one commit behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

_LAYOUT = struct.Struct("<8sQQQQ")
_SUM = struct.Struct("<I")
_MARK = b"taskqcc1"
_SECTOR = 512
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Counted(NamedTuple):
    """What the file says of a store: the number of its last commit, and what it said of epoch and next task id."""

    store_id: int
    commits: int
    epoch: int
    next_id: int


class CommitCounter:
    """The file at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def read(self) -> Counted | None:
        """The newer one of its two places that are whole; None without any, or without the file."""
        try:
            data = self.path.read_bytes()
        except OSError:
            return None
        found = [_unpack(data[start : start + _LAYOUT.size + _SUM.size]) for start in (0, _SECTOR)]
        return max((place for place in found if place is not None), key=lambda place: place.commits, default=None)

    def open(self) -> None:
        """Open or make it. Raises `OSError`."""
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)

    def write(self, counted: Counted) -> None:
        """Note a commit that is on disk. Raises `OSError`; a full disk is none, it costs only this note."""
        data = _LAYOUT.pack(_MARK, *counted)
        try:
            os.pwrite(self._descriptor, data + _SUM.pack(crc32(data)), counted.commits % 2 * _SECTOR)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise

    def close(self) -> None:
        """Close it; safe to call twice."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1


def _unpack(place: bytes) -> Counted | None:
    if len(place) < _LAYOUT.size + _SUM.size:
        return None
    mark, *numbers = _LAYOUT.unpack_from(place)
    if mark != _MARK or _SUM.unpack_from(place, _LAYOUT.size)[0] != crc32(place[: _LAYOUT.size]):
        return None
    return Counted(*numbers)
