"""What watches over the files of a running store: that they are the ones it opened, and that there is room for them.

Nothing here knows what is stored.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from taskq.stores.disk import free_space

_CHUNK = 1024 * 1024
_ROOM_TO_START = 2**20  # bytes: with less on the disk, the reserve is given up at once


class Guard:
    """Of the store at ``path`` with its log.

    ``free_mark``: bytes that must be free for new tasks; ``reserve``: bytes that are kept back, in a file.
    """

    def __init__(self, path: Path, log: Path, *, free_mark: int, reserve_file: Path, reserve: int) -> None:
        self._folder = path.parent
        self._free_mark = free_mark
        self._size = reserve
        self.reserve = Reserve(reserve_file, reserve)
        self.watch = FileWatch(log, path)

    def make_room(self) -> None:
        """Take up the reserve that an earlier process left; give it up when a start needs it."""
        self.reserve.find()
        if free_space(self._folder) < _ROOM_TO_START:
            self.reserve.free()

    def has_space(self) -> bool:
        """Whether there is room for new tasks; has the reserve back once there is room for that, too."""
        try:
            free = free_space(self._folder)
        except OSError:
            return False
        if not self.reserve.held and free >= self._free_mark + self._size:
            self.reserve.take()
        return free >= self._free_mark and self.reserve.held


class Reserve:
    """A file of ``size`` bytes whose blocks are given up when the disk is full, so that accepted tasks can finish.

    It stays where it is when the store is closed: the next start may find the disk full.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self.held = False

    def find(self) -> None:
        """Take up the blocks that an earlier process left."""
        with contextlib.suppress(OSError):
            self.held = self._path.stat().st_blocks * 512 >= self._size

    def take(self) -> bool:
        """Have the blocks (once more); False when there is no room for them."""
        try:
            with self._path.open("wb") as file:
                _allocate(file.fileno(), self._size)
                os.fsync(file.fileno())
        except OSError:
            self.free()
            return False
        self.held = True
        return True

    def free(self) -> bool:
        """Give the blocks back to the disk; False when there were none."""
        had = self.held
        self.held = False
        with contextlib.suppress(OSError):
            self._path.unlink()
        return had


class FileWatch:
    """Tells when files are no longer those that this process has open: removed, or replaced by others of their names.

    Whoever writes into such a file writes for nobody: the next start opens the name.
    """

    def __init__(self, *paths: Path) -> None:
        self._paths = [str(path) for path in paths]
        self._known: list[tuple[int, int] | None] = []

    def begin(self) -> None:
        """The files as they are now are the right ones."""
        self._known = [_identity(path) for path in self._paths]

    def end(self) -> None:
        """Watch no longer."""
        self._known = []

    def changed(self, first: int | None = None) -> str:
        """The first file that is another one now, empty when there is none. ``first``: look only at so many."""
        for path, known in zip(self._paths[:first], self._known, strict=False):
            if _identity(path) != known:
                return path
        return ""


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116  # once a commit: a `Path` costs more than the call
    except FileNotFoundError:
        return None
    except OSError:
        return 0, 0  # it cannot be seen any more: not the one it was
    return found.st_dev, found.st_ino


def _allocate(descriptor: int, size: int) -> None:
    """Real blocks for a file, also where the system or the file system cannot promise them without writing."""
    if hasattr(os, "posix_fallocate"):
        with contextlib.suppress(OSError):
            os.posix_fallocate(descriptor, 0, size)
            return
    chunk = os.urandom(_CHUNK)  # not zeros: a file system that compresses would keep none of them
    for start in range(0, size, _CHUNK):
        os.pwrite(descriptor, chunk[: size - start], start)
