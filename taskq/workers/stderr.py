"""What worker processes write to stderr: passed on to the pool's own as it comes, and the last of it kept.

Theory of operation. A worker process has a pipe for its stderr. A thread of the parent reads it, remembers the end and
passes everything on, so that people see it as if there were no pipe. A parent that is killed must not take its
children's stderr along: each child has the pipe's reading end too, so that writing never fails, and a copy of the
parent's stderr, to which it turns when it sees that the parent is gone (`rescue`).
"""

from __future__ import annotations

import contextlib
import os
import select
import threading

KEPT = 4 * 1024
"""Bytes of it that are remembered."""
PATIENCE = 0.3
"""Seconds for the last words of a process that has ended: a program that it started may keep the pipe open."""

_CHUNK = 64 * 1024
_passing_on = threading.Lock()


class Tail:
    """The reader of one worker process's pipe; ``descriptor``: its reading end, closed by the thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._last = b""
        self._thread = threading.Thread(target=self._run, name="taskq-stderr", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._descriptor, _CHUNK):
                self._last = (self._last + data)[-KEPT:]
                with _passing_on:
                    write(2, data)
        os.close(self._descriptor)

    def finish(self) -> None:
        """Wait for what a process that has ended wrote last."""
        self._thread.join(PATIENCE)

    def lines(self) -> str:
        """The last lines that a process has written which has ended."""
        self.finish()
        text = self._last.decode("utf-8", "replace")
        return text.partition("\n")[2] if len(self._last) == KEPT and "\n" in text else text


def write(descriptor: int, data: bytes) -> None:
    """Write it all; where nobody reads any more it is lost."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # a terminal that somebody has set so
            select.select([], [descriptor], [], 1.0)
        except OSError:
            return


class Spare:
    """In the worker process: a copy of the parent's stderr, and the reading end of the own one."""

    def __init__(self, copy: int, pipe: int) -> None:
        self._copy = copy
        self._pipe = pipe
        self._known = (os.fstat(copy), os.fstat(pipe))

    def rescue(self) -> None:
        """The parent is gone: write to where it wrote, and bring there what it has not read any more."""
        try:
            now = (os.fstat(self._copy), os.fstat(self._pipe))
            if not all(map(os.path.samestat, self._known, now)):
                return  # a task has closed them, and the numbers are somebody else's
            for number in (1, 2):
                os.dup2(self._copy, number)
            os.set_blocking(self._pipe, False)
            while data := os.read(self._pipe, _CHUNK):
                write(2, data)
        except OSError:  # nothing is left to read, or a task has closed them
            return
