"""The slot table: what each task thread of a worker process is doing, readable by the pool's parent at any moment.

Theory of operation. The table is a small file in memory that parent and child both map. Each task thread owns one
slot and is its only writer; the parent only reads, also after the child's death, when it must know which tasks had
begun. So there is no lock, and two rules instead:

* A slot's run number stands at its beginning and at its end. A writer that is killed half way leaves two different
  numbers, and such a slot counts as free: the task's function had not been called yet.
* A reader copies a slot until two copies in a row are equal, so it never sees half of one task and half of the next.

Behind the table, in the same file, the child's `faulthandler` writes when the process dies of a fatal signal. The
thread that it names as the current one tells which of several running tasks brought the process down.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
import tempfile
from math import inf
from typing import NamedTuple

from taskq import threads

_HEADER = struct.Struct("@Q")
_SLOT = struct.Struct("@QQdd?64sQ")
_RUN = struct.Struct("@Q")
_IDENT = struct.Struct("@Q")
_SLOT_BYTES = _SLOT.size + _IDENT.size
NAME_BYTES = 64
"""Type names are cut to this length in the table."""

_CURRENT_THREAD = re.compile(r"^Current thread 0x([0-9a-f]+)", re.MULTILINE)
_CRASH_BYTES = 64 * 1024


class Running(NamedTuple):
    """What one slot holds. ``started``, ``deadline`` (infinite: none): monotonic seconds. ``thread``: its
    `threading.get_ident`. ``again``: whether it is to be tried again when it runs longer than that."""

    id: int
    run: int
    started: float
    type: str
    thread: int
    deadline: float = inf
    again: bool = True


class SlotTable:
    """One slot for each task thread, numbered from 0. See the module's text."""

    def __init__(self, descriptor: int, threads: int) -> None:
        self._descriptor = descriptor
        self._threads = threads
        self._bytes = _HEADER.size + threads * _SLOT_BYTES
        self._map = mmap.mmap(descriptor, self._bytes)

    @classmethod
    def create(cls, threads: int) -> SlotTable:
        """A table of free slots, in a file that has no name and is gone with its last user."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("taskq-slots")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, _HEADER.size + threads * _SLOT_BYTES)
        return cls(descriptor, threads)

    @property
    def descriptor(self) -> int:
        """The file descriptor to hand on to the child."""
        return self._descriptor

    def close(self) -> None:
        """Let go of the map and of the file."""
        self._map.close()
        os.close(self._descriptor)

    def disown(self) -> None:
        """In a fork of the child: whatever is written from now on, nobody sees."""
        self._map = mmap.mmap(-1, self._bytes)

    # -- written by the child

    def own(self, slot: int) -> None:
        """The calling thread is the one that uses ``slot`` from now on."""
        _IDENT.pack_into(self._map, self._offset(slot) + _SLOT.size, threads.ident())

    def begin(
        self, slot: int, id: int, run: int, started: float, type: bytes, deadline: float = inf, again: bool = True
    ) -> None:
        """A task is about to run in ``slot``; see `Running`."""
        _SLOT.pack_into(self._map, self._offset(slot), run, id, started, deadline, again, type, run)

    def end(self, slot: int) -> None:
        """``slot`` is free again."""
        _RUN.pack_into(self._map, self._offset(slot), 0)

    def set_left(self) -> None:
        """This process has taken leave of the manager: its exit needs no report."""
        _HEADER.pack_into(self._map, 0, 1)

    def crash_descriptor(self) -> int:
        """A descriptor for `faulthandler.enable`, placed behind the table."""
        os.lseek(self._descriptor, self._bytes, os.SEEK_SET)
        return self._descriptor

    # -- read by the parent

    @property
    def left(self) -> bool:
        """Whether the child took leave of the manager."""
        return bool(_HEADER.unpack_from(self._map, 0)[0])

    def running(self) -> list[Running]:
        """What the busy slots hold."""
        found = (self._read(slot) for slot in range(self._threads))
        return [running for running in found if running is not None]

    def _read(self, slot: int) -> Running | None:
        offset = self._offset(slot)
        before = b""
        while (copy := self._map[offset : offset + _SLOT_BYTES]) != before:
            before = copy
        run, id, started, deadline, again, name, run_again = _SLOT.unpack_from(copy)
        if run == 0 or run != run_again:
            return None
        (thread,) = _IDENT.unpack_from(copy, _SLOT.size)
        return Running(id, run, started, name.rstrip(b"\0").decode("utf-8", "ignore"), thread, deadline, again)

    def written(self) -> str:
        """What `faulthandler` wrote: when the process was asked to (`control.show_stacks`), or when it died."""
        return os.pread(self._descriptor, _CRASH_BYTES, self._bytes).decode("utf-8", "replace")

    def crash(self) -> str:
        """What `faulthandler` wrote about the thread that died, empty if it had no time to."""
        text = self.written()
        found = _CURRENT_THREAD.search(text)
        return "" if found is None else text[found.start() :].split("\n\n")[0]

    def guilty(self) -> list[Running]:
        """The running tasks that may have brought the process down: the one whose thread crashed if that is known,
        else all."""
        running = self.running()
        found = _CURRENT_THREAD.search(self.crash())
        blamed = [one for one in running if found is not None and one.thread == int(found[1], 16)]
        return blamed or running

    def _offset(self, slot: int) -> int:
        return _HEADER.size + slot * _SLOT_BYTES
