"""The history of a test: what clients asked and heard, what ran where, and which faults there were, one record a line.

Every process of a test writes a file of its own (`HistoryFile`), opened for appending, one `write` a line: a kill -9
loses nothing of what had happened before it, and at most cuts off the last line, which then had not happened yet. A
simulation keeps the same records in a list (`HistoryList`). `taskq` knows nothing of them; `observed` puts them
together, and `checker` holds them against the store.

A record is a JSON object with ``event``, ``by`` (who wrote it), ``at`` (seconds: boot time, or the simulation's), and:

``call``    ``call`` (number), ``verb``, and its arguments. Of ``submit``: ``client``, ``seq``, ``items`` (``[content,
            key]`` each); of ``cancel``, ``requeue``, ``drop``, ``purge``: ``ids``.
``answer``  ``call``, ``outcome`` (``ok``, ``fail``: nothing was changed, ``unknown``: no reply came), ``error`` (the
            code); of a submit ``ids``, ``existing``; of the others ``labels``, as the reply has them.
``lease``   a worker has got ``task`` with ``run``; ``worker``: its process, by any name that is not used twice.
``start``   the task's code begins: its side effect. As in ``lease``.
``end``     it has come to its end; ``result``: `digest` of the encoded value.
``fail``    it has raised.
``report``  ``kind`` (``ack``, ``nack``, ``give_back``, ``snooze``), ``task``, ``run``, ``worker``, ``since`` (when the
            call began), ``outcome`` (``accepted``, ``refused``, ``unknown``); of a nack ``pause``: the least seconds
            before the next attempt, and ``last``: whether there must be none.
``fault``   ``kind``; whom it hit: ``workers``, ``tasks``; ``until`` (default: ``at``); ``grace``: least seconds from
            ``at`` on for which what the workers held stays theirs (silence proves no death); ``deaths``:
            ``[task, run]`` of what the manager may count as a death, with ``sure`` it must.
``phase``   ``name``: ``faults over``, then ``idle`` (everything is at its end).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

Record = dict[str, Any]
ENDING = ".history"


def boot_time() -> float:
    """Seconds since boot: the same clock in all processes of a machine, whatever is done to the wall clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def digest(data: bytes) -> str:
    """A short name for these bytes."""
    return blake2b(data, digest_size=8).hexdigest()


def content(type: str, payload: bytes) -> str:
    """A short name for what is to be done: tests make it different for each task."""
    return digest(type.encode() + b"\0" + payload)


class History:
    """Makes records; `HistoryFile` and `HistoryList` keep them. ``clock`` gives seconds."""

    def __init__(self, by: str, clock: Callable[[], float] = boot_time) -> None:
        self.by = by
        self.clock = clock
        self._calls = 0

    def keep(self, record: Record) -> None:
        """Where the record goes."""
        raise NotImplementedError

    def add(self, event: str, **fields: Any) -> None:
        """Something happens now."""
        self.keep({"event": event, "by": self.by, "at": self.clock(), **fields})

    # -- clients

    def call(self, verb: str, **arguments: Any) -> int:
        """A call begins; gives its number for `answer`. Write it before the first byte is sent."""
        self._calls += 1
        self.add("call", call=self._calls, verb=verb, **arguments)
        return self._calls

    def submit(self, client: int, seq: int, items: Iterable[tuple[str, bytes, str | None]]) -> int:
        """A submit of these (type, payload, key) begins; gives its number for `answer`."""
        named = [[content(type, payload), key] for type, payload, key in items]
        return self.call("submit", client=client, seq=seq, items=named)

    def ok(self, call: int, **reply: Any) -> None:
        """The call was answered."""
        self.add("answer", call=call, outcome="ok", **reply)

    def refused(self, call: int, error: str) -> None:
        """The call was answered with an error that says: nothing was changed."""
        self.add("answer", call=call, outcome="fail", error=error)

    def unknown(self, call: int, error: str = "") -> None:
        """Nobody knows what became of the call."""
        self.add("answer", call=call, outcome="unknown", error=error)

    # -- workers

    def lease(self, task: int, run: int, worker: str) -> None:
        """A worker has got a task."""
        self.add("lease", task=task, run=run, worker=worker)

    def start(self, task: int, run: int, worker: str) -> None:
        """The side effect."""
        self.add("start", task=task, run=run, worker=worker)

    def end(self, task: int, run: int, worker: str, result: bytes) -> None:
        """The task's code has returned this (encoded) value."""
        self.add("end", task=task, run=run, worker=worker, result=digest(result))

    def fail(self, task: int, run: int, worker: str) -> None:
        """The task's code has raised."""
        self.add("fail", task=task, run=run, worker=worker)

    def report(self, kind: str, task: int, run: int, worker: str, *, since: float, outcome: str, **more: Any) -> None:
        """A worker has reported, and knows what became of that."""
        self.add("report", kind=kind, task=task, run=run, worker=worker, since=since, outcome=outcome, **more)

    # -- nemesis

    def fault(
        self,
        kind: str,
        *,
        workers: Sequence[str] = (),
        tasks: Sequence[int] = (),
        deaths: Sequence[tuple[int, int]] = (),
        **more: Any,
    ) -> None:
        """Something was broken on purpose."""
        self.add("fault", kind=kind, workers=list(workers), tasks=list(tasks), deaths=list(map(list, deaths)), **more)

    def phase(self, name: str) -> None:
        """The test goes on to another part."""
        self.add("phase", name=name)


class HistoryList(History):
    """Keeps records in a list."""

    def __init__(self, by: str = "", clock: Callable[[], float] = boot_time) -> None:
        super().__init__(by, clock)
        self.records: list[Record] = []
        self.keep = self.records.append  # type: ignore[method-assign]


class HistoryFile(History):
    """Keeps records in a file of this process's own in ``folder``."""

    def __init__(self, folder: Path, by: str) -> None:
        super().__init__(f"{by}-{os.getpid()}")
        self._file = os.open(folder / f"{self.by}{ENDING}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def keep(self, record: Record) -> None:
        """One line, one write."""
        os.write(self._file, json.dumps(record, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def read_history(where: Path) -> list[Record]:
    """The records of a file, or of all files in a folder, in the order of their times."""
    files = sorted(where.glob(f"*{ENDING}")) if where.is_dir() else [where]
    found = [record for file in files for record in _read(file)]
    found.sort(key=lambda record: record["at"])
    return found


def _read(file: Path) -> Iterator[Record]:
    for line in file.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):  # else its writer was killed while it wrote it
            yield json.loads(line)
