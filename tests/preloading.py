"""The library `faulty_libc.c`, made by the C compiler that is there, and how a process gets it."""

from __future__ import annotations

import functools
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("faulty_libc.c")


@functools.lru_cache(maxsize=1)
def library() -> str:
    """Path of the library, made once. Skips the test where it cannot be made."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("faults and clocks are made by a preloaded library: it needs Linux and a C compiler")
    made = Path(tempfile.mkdtemp(prefix="taskq-test-")) / "faulty_libc.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(made), str(SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"the C compiler makes no library here: {done.stderr.strip()[:200]}")
    return str(made)


class Clocks:
    """The clocks of the processes that are started with `environment`: moved for all at once, while they run."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clocks"
        self.wall = self.boot = 0.0
        self._file.write_bytes(struct.pack("dd", 0.0, 0.0))
        self.environment = {"LD_PRELOAD": library(), "CLOCK_FILE": str(self._file)}

    def set(self, *, wall: float | None = None, boot: float | None = None) -> None:
        """Seconds by which these clocks are ahead of the machine's own."""
        self.wall = self.wall if wall is None else wall
        self.boot = self.boot if boot is None else boot
        descriptor = os.open(self._file, os.O_WRONLY)  # in its place: the processes have it mapped
        os.pwrite(descriptor, struct.pack("dd", self.wall, self.boot), 0)
        os.close(descriptor)
