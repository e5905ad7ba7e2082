"""What programs that look after queues have in common: who asks, and a purge in as many calls as it takes."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable

from taskq.shapes import PurgedQueue


def whoami() -> str:
    """Who asks: user@host; a user without a name is its number."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # what it raises depends on the version of Python
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def purge(verb: Callable[[str, int], PurgedQueue], queue: str, said: Callable[[int], None] = lambda more: None) -> int:
    """Cancel what waits in a queue now; gives how many tasks that were. ``verb``: `QueueService.purge_queue`.

    ``said`` is told of each call how many tasks it cancelled. Raises `QueueNotFound`.
    """
    cancelled, below, more = 0, 0, True
    while more:
        piece = verb(queue, below)
        cancelled, below, more = cancelled + piece.cancelled, piece.below, piece.more
        said(piece.cancelled)
    return cancelled
