"""Files around a store that are not the database: the lock file, the reserve, and how much room is left.

Nothing here knows what is stored.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

from taskq.errors import ConfigError, StoreLocked

_CHUNK = 1024 * 1024


class LockFile:
    """A lock on a file of its own that holds the pid of its owner.

    It is not the database that is locked: closing any descriptor of a file drops all POSIX locks that the process has
    on it, so a lock must be on a file that nobody else opens. ``flock`` ends with the process, however it ends; the
    file stays, since removing it would let two processes lock two different files of one name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def take(self) -> None:
        """Lock. Raises `StoreLocked` when somebody has it, `ConfigError` when the file cannot be made."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)  # not inheritable, so no child keeps it
        except OSError as error:
            raise cannot_write(self._path.parent, error) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise StoreLocked(
                f"the store is locked by pid {holder}",
                hint="stop that manager first, or give this one a store of its own with --name or --store",
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise cannot_write(self._path.parent, error) from None
        self._descriptor = descriptor

    def release(self) -> None:
        """Unlock; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


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


def make_file(path: Path) -> bool:
    """Make an empty file, for this user only, where there is none; whether it is empty. Raises `ConfigError`."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return path.stat().st_size == 0
    except OSError as error:
        raise cannot_write(path.parent, error) from None
    sync_folder(path.parent)
    return True


def free_space(folder: Path) -> int:
    """Bytes that this user can still write there."""
    return shutil.disk_usage(folder).free


def sync_folder(folder: Path) -> None:
    """Make the names of files that were just created durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(folder: Path, error: OSError) -> ConfigError:
    """The error for a folder that cannot be used."""
    return ConfigError(
        f"cannot write to {folder}: {(error.strerror or 'error').lower()}",
        hint="choose another folder with --state-dir (TASKQ_STATE_DIR) or --store",
    )
