"""A process's system calls as ``strace`` saw them, in their order, from outside."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cluster import Process


@cache
def obstacle() -> str:
    """Why strace cannot be used here; empty when it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-f", "-e", "trace=none", "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"strace does not work here: {tried.stderr.strip()[:100]}"


@contextlib.contextmanager
def strace(process: Process, output: Path, *options: str) -> Iterator[None]:
    """Watch a process, all its threads included, while the block runs."""
    command = ["strace", "-f", "-y", "-s", "20000", "-o", output, *options, "-p", str(process.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as watcher:
        assert watcher.stderr is not None
        try:
            line = watcher.stderr.readline()
            assert "attached" in line, line
            yield
        finally:
            watcher.terminate()


@dataclass
class Call:
    """One system call. ``start``, ``end``: places in the order of all that strace saw; ``thread``: who made it."""

    thread: int
    name: str
    text: str
    start: int
    end: int

    @property
    def descriptor(self) -> str:
        """Its first argument: a number and, in angle brackets, the file or socket."""
        return self.text.partition(",")[0].partition(")")[0]

    @property
    def result(self) -> int | None:
        """What it gave; None when the process died in it."""
        found = re.match(r" *(-?\d+)", self.text.rpartition(") ")[2].lstrip().removeprefix("="))
        return int(found[1]) if found else None

    @property
    def worked(self) -> bool:
        """Whether it gave no error."""
        return not re.search(r"\) += -1", self.text)


LINE = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)")


def calls(output: Path) -> list[Call]:
    """What strace wrote, with calls put together that it had to break in two."""
    found: list[Call] = []
    begun: dict[int, Call] = {}
    with output.open(errors="replace") as lines:
        for place, line in enumerate(lines):
            match = LINE.match(line)
            if match is None:
                continue  # a thread ended, a signal
            thread, resumed, name, text = int(match[1]), match[2], match[3], match[4]
            if resumed:
                call = begun.pop(thread, None)
                if call is not None:  # else it had begun before strace came
                    call.text += text
                    call.end = place
                    found.append(call)
            elif text.endswith("<unfinished ...>"):
                begun[thread] = Call(thread, name, text.removesuffix("<unfinished ...>"), place, place)
            else:
                found.append(Call(thread, name, text, place, place))
    return found
