"""Disks of a few MiB, and how to fill them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(folder: Path, mib: int) -> Iterator[Path]:
    """A disk of so many MiB, in memory, at ``folder``, which is made. Skips the test where none can be mounted."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("only root on Linux can mount a small disk")
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "taskq-test", str(folder)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"cannot mount a small disk: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Let only so many bytes of the disk be free; gives the file that takes the rest."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        while (more := shutil.disk_usage(folder).free - leave) > 0:
            with contextlib.suppress(OSError):  # somebody else may have taken it
                os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END) + more)
    return filler
