"""Files around a store that are not the database: the lock file, their names, and how much room is left.

Nothing here knows what is stored.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from taskq.errors import ConfigError, StoreLocked


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
