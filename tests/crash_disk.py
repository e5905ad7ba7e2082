"""What a power cut leaves on a disk: the writes of a traced process, and any part of those that were not synced.

`operations` reads a trace; a `Disk` is fed with them one by one, and `Disk.crash` gives the files as they may be found
if the power fails now. Of what was not synced each sector of 512 bytes (a disk writes one whole or not at all), each
change of a file's length and each change of a name is there or not, independently of all others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import NamedTuple

from systrace import Call

SECTOR = 512

TRACED = (
    *("open", "openat", "creat", "close", "dup", "dup2", "dup3", "write", "writev", "pwrite64", "pwritev", "pwritev2"),
    *("ftruncate", "truncate", "fallocate", "fsync", "fdatasync", "sync_file_range", "msync", "copy_file_range"),
    *("sendfile", "unlink", "unlinkat", "rename", "renameat", "renameat2", "link", "linkat", "mkdir", "mkdirat"),
)
"""The system calls that strace has to write down."""


class Operation(NamedTuple):
    """One thing that happens to files. ``kind``: ``write`` (data at offset), ``size`` (offset; negative: at
    least that), ``sync``, ``create``, ``open``, ``unlink``, ``names`` (the folder was synced), or ``said`` (a line of
    the traced process's own log)."""

    kind: str
    name: str
    descriptor: int = -1
    offset: int = 0
    data: bytes = b""


_STRING = r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?'
_AT = re.compile(rf"(?:AT_FDCWD|\d+), {_STRING}")
_PATH = re.compile(_STRING)
_DATA = re.compile(rf"(\d+), {_STRING}, \d+(?:, (\d+))?")
_NUMBERS = re.compile(r"(\d+)(?:, (\d+))?(?:, (\d+))?(?:, (\d+))?")


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


@dataclass
class _Reader:
    """Turns calls into operations; knows which descriptor is which file."""

    folder: PurePath
    log: PurePath
    names: set[str] = field(default_factory=set)
    files: dict[int, str] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)

    def read(self, call: Call) -> Iterator[Operation]:
        result = call.result
        if result is None or result < 0:
            return
        match call.name:
            case "openat" | "open" | "creat":
                yield from self._open(call, result)
            case "close":
                self.files.pop(int(_found(_NUMBERS, call)[1]), None)
            case "write" | "pwrite64":
                yield from self._write(call, result)
            case "unlink" | "unlinkat":
                yield from self._unlink(call)
            case "fallocate":
                descriptor, _, start, size = _found(_NUMBERS, call).groups()
                if int(descriptor) in self.files:
                    yield self._operation("size", int(descriptor), offset=-(int(start) + int(size)))  # only longer
            case "ftruncate" | "fsync" | "fdatasync":
                descriptor = int(_found(_NUMBERS, call)[1])
                if descriptor in self.files:
                    size = int(_found(_NUMBERS, call)[2] or 0)
                    yield self._operation("size" if call.name == "ftruncate" else "sync", descriptor, offset=size)
            case _:
                self._refuse(call)

    def _open(self, call: Call, descriptor: int) -> Iterator[Operation]:
        name = self._name(_found(_AT if call.name == "openat" else _PATH, call)[1])
        self.files.pop(descriptor, None)
        if name is None:
            return
        self.files[descriptor] = name
        if name == self.log.name:
            return
        if "O_CREAT" in call.text and name not in self.names:
            self.names.add(name)
            yield Operation("create", name)
        if "O_APPEND" in call.text:
            raise NotImplementedError(call.text)
        self.ends[descriptor] = 0
        yield Operation("open", name, descriptor)
        if "O_TRUNC" in call.text:
            yield self._operation("size", descriptor)

    def _unlink(self, call: Call) -> Iterator[Operation]:
        name = self._name(_found(_PATH if call.name == "unlink" else _AT, call)[1])
        if name is not None:
            self.names.discard(name)
            yield Operation("unlink", name)

    def _write(self, call: Call, size: int) -> Iterator[Operation]:
        match = _found(_DATA, call)
        descriptor = int(match[1])
        if descriptor not in self.files:
            return
        if match[3]:
            raise NotImplementedError("strace has cut a string: give it a larger -s")
        data = _bytes(match[2])[:size]
        if self.files[descriptor] == self.log.name:
            yield Operation("said", self.log.name, data=data)
            return
        offset = int(match[4]) if call.name == "pwrite64" else self.ends[descriptor]
        if call.name == "write":
            self.ends[descriptor] += len(data)
        yield self._operation("write", descriptor, offset=offset, data=data)

    def _operation(self, kind: str, descriptor: int, offset: int = 0, data: bytes = b"") -> Operation:
        name = self.files[descriptor]
        return Operation("names" if name == "." else kind, name, descriptor, offset, data)

    def _name(self, text: str) -> str | None:
        """The name of a file in the folder, ``.`` for itself, or the log; None for all others."""
        path = PurePath(_bytes(text).decode())
        if path == self.log:
            return path.name
        if path == self.folder:
            return "."
        return path.name if path.parent == self.folder else None

    def _refuse(self, call: Call) -> None:
        """What this reader does not know must not happen to our files."""
        path = _PATH.search(call.text)
        named = path is not None and self._name(path[1]) is not None
        number = _NUMBERS.match(call.text)
        if named or (number is not None and int(number[1]) in self.files):
            raise NotImplementedError(f"{call.name}({call.text[:200]}")


def _found(pattern: re.Pattern[str], call: Call) -> re.Match[str]:
    match = pattern.match(call.text)
    assert match is not None, f"{call.name}({call.text[:200]}"
    return match


def operations(found: list[Call], folder: PurePath, log: PurePath) -> list[Operation]:
    """What happened to the files of ``folder``, and what the process said in its ``log``, in their order.

    A sync has happened when it returns, everything else when it begins: so nothing is taken for safe too early.
    """
    reader = _Reader(folder, log)
    at_end = ("fsync", "fdatasync", "openat", "open", "creat")
    ordered = sorted(found, key=lambda call: call.end if call.name in at_end else call.start)
    return [operation for call in ordered for operation in reader.read(call)]


class _Inode:
    """A file: what is on disk for certain, and what was asked for since."""

    def __init__(self) -> None:
        self.durable = bytearray()
        self.pending: list[Operation] = []

    def sync(self) -> None:
        for operation in self.pending:
            apply(self.durable, operation, lambda: True)
        self.pending.clear()


def apply(content: bytearray, operation: Operation, kept: Callable[[], bool]) -> None:
    """Let a write or a change of length happen to a file's content, those parts of it that are ``kept``."""
    if operation.kind == "size":
        if kept():
            size = operation.offset if operation.offset >= 0 else max(-operation.offset, len(content))
            del content[size:]
            content.extend(bytes(size - len(content)))
        return
    start, end = operation.offset, operation.offset + len(operation.data)
    while start < end:
        stop = min(end, start - start % SECTOR + SECTOR)
        if kept():
            if len(content) < start:
                content.extend(bytes(start - len(content)))
            content[start:stop] = operation.data[start - operation.offset : stop - operation.offset]
        start = stop


class Disk:
    """A folder on a disk that may lose what was not synced."""

    def __init__(self) -> None:
        self._names: dict[str, _Inode] = {}
        self._safe_names: dict[str, _Inode] = {}
        self._renamed: list[tuple[str, _Inode | None]] = []
        self._open: dict[int, _Inode] = {}

    def do(self, operation: Operation) -> None:
        """The next thing that happens."""
        match operation.kind:
            case "create":
                self._name(operation.name, _Inode())
            case "unlink":
                self._name(operation.name, None)
            case "names":
                self._safe_names = dict(self._names)
                self._renamed.clear()
            case "open":
                if operation.name in self._names:
                    self._open[operation.descriptor] = self._names[operation.name]
            case "sync":
                self._open[operation.descriptor].sync()
            case "write" | "size":
                self._open[operation.descriptor].pending.append(operation)

    def _name(self, name: str, inode: _Inode | None) -> None:
        if inode is None:
            del self._names[name]
        else:
            self._names[name] = inode
        self._renamed.append((name, inode))

    def crash(self, kept: Callable[[], bool]) -> dict[str, bytearray]:
        """The files as they are found after a power cut now; ``kept`` is asked about each part that was not synced."""
        names = dict(self._safe_names)
        for name, inode in self._renamed:
            if kept():
                if inode is None:
                    names.pop(name, None)
                else:
                    names[name] = inode
        found = {}
        for name, inode in names.items():
            content = found[name] = bytearray(inode.durable)
            for operation in inode.pending:
                apply(content, operation, kept)
        return found
