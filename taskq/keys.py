"""The files with the manager's key: the one that is used, and beside it, with ``.old`` after its name, the one before.

Both are accepted, so that everybody who has the former one goes on working until it is changed again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from taskq.config import KEY_BYTES, read_key, read_or_make_key, write_private
from taskq.errors import ConfigError


class Keys(NamedTuple):
    """The admin key, and the one before it if there was one."""

    current: bytes
    former: bytes | None


class KeyFiles:
    """The two files at ``path``; see the module's text."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._former = path.with_name(f"{path.name}.old")
        self._seen: object = None

    def read(self, *, make: bool = False) -> Keys:
        """What is in them; with ``make`` the first key is made when there is none. Raises `AuthenticationFailed`."""
        if make:
            read_or_make_key(self._path)
        self._seen = self._look()
        return Keys(read_key(self._path), read_key(self._former) if self._former.exists() else None)

    def changed(self) -> bool:
        """Whether they are other files than at the last `read`, whether that could read them or not."""
        return self._look() != self._seen

    def rotate(self) -> Keys:
        """Make a new key; the one until now becomes the former one. Raises `ConfigError`, `AuthenticationFailed`."""
        if not self._path.exists():
            raise ConfigError(
                f"there is no key at {self._path} to change",
                hint='the first start of "taskq-manager" makes one; or point elsewhere with --state-dir or --key-file',
            )
        former = read_key(self._path)
        write_private(self._former, former.hex() + "\n")  # first: at no moment is the former key in neither file
        current = os.urandom(KEY_BYTES)
        write_private(self._path, current.hex() + "\n")
        return Keys(current, former)

    def _look(self) -> list[tuple[int, int] | None]:
        """What tells one version of the files from another."""
        return [_mark(path) for path in (self._path, self._former)]


def _mark(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns  # that of the mode too: it may have kept us from reading
