"""Test processes side by side (``-n`` of pytest-xdist) and what is to run alone: who may run now.

A lock that many hold at once, or one alone. Who waits for it alone is not overtaken: it holds the gate, which everybody
passes on the way in.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """Run with others, or ``alone``, among all processes that name this folder."""
    with (folder / "gate.lock").open("a") as gate, (folder / "run.lock").open("a") as run:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(run, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if not alone:
            fcntl.flock(gate, fcntl.LOCK_UN)
        yield
