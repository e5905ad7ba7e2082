"""Asks the manager that runs here for a copy of its store: ``taskq-manager --backup FILE``."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from pathlib import Path

from taskq import config
from taskq.config import StateDir
from taskq.errors import ManagerUnavailable
from taskq.wire.client import RemoteQueue


def write_backup(target: Path, state: StateDir, progress: Callable[[int, int], None]) -> int:
    """Have a whole copy written to ``target`` (a whole path); gives its bytes. ``progress(done, all)``: bytes.

    Raises `ManagerUnavailable`, and what `taskq.service.QueueService.backup` raises.
    """
    if not state.join.exists():
        raise ManagerUnavailable(
            "no manager has run here yet", hint="while none runs, copy store.sqlite and store.sqlite-wal themselves"
        )
    token = secrets.randbits(62)
    with contextlib.closing(RemoteQueue(config.read_join(state.join))) as manager:
        while not (found := manager.backup(str(target), token)).done:
            progress(found.copied, found.size)
    return target.stat().st_size if target.exists() else found.size
