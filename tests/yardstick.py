"""What speed is held against: the least that a queue has to do, in a few lines of plain Python, measured beside it.

Nothing of taskq is used here, so whatever gets slower in taskq shows; and a slower machine, a busy one or another
Python makes both slower. Figures are ratios to these, and `hold` keeps them under their limits.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgpack

ROUNDS = 4
TASKS = 30_000
SUBMITTED, HANDED_OUT = 1_000, 250
"""Tasks in a submit call, and in a hand-out."""
PROCESSES = 2
"""They run at the same time, as a manager and its workers do, so that a machine with other work slows them as much."""


def hold(measure: Callable[[], Mapping[str, float]], limits: Mapping[str, float]) -> None:
    """Measure; fail if a figure is over its limit each time, in up to `ROUNDS` rounds.

    Whatever slows down a single round is the machine: of each figure the best one counts.
    """
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        found = measure()
        print(", ".join(f"{name} {value:.2f} (limit {limits[name]:g})" for name, value in found.items()))
        best = {name: min(value, best.get(name, value)) for name, value in found.items()}
        if all(best[name] < limit for name, limit in limits.items()):
            return
    assert {name: value for name, value in best.items() if value >= limits[name]} == {}, f"of limits {limits}"


def in_turn(turns: int, **measures: Callable[[], list[float]]) -> dict[str, list[list[float]]]:
    """What each measures, by turn, one after the other: whatever else the machine does meets them all."""
    found: dict[str, list[list[float]]] = {name: [] for name in measures}
    for _ in range(turns):
        for name, measure in measures.items():
            found[name].append(measure())
    return found


# -- a task's work


class Cost(NamedTuple):
    """Microseconds for each task: of processor time, and of wall time."""

    cpu: float
    wall: float


def least() -> Cost:
    """What a small task costs at least.

    It is packed and unpacked on its way in, to a worker and back, is kept in a dict, and its row is inserted and
    updated by transactions that are on disk, in batches of the sizes that are usual here.
    """
    command = [sys.executable, __file__, "work"]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(PROCESSES)]
    for process in running:
        _line(process)
    for process in running:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    found = [Cost(*json.loads(process.communicate()[0])) for process in running]
    return Cost(min(cost.cpu for cost in found), max(cost.wall for cost in found))


def _line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def _work(database: sqlite3.Connection) -> None:
    waiting = {}
    for first in range(0, TASKS, SUBMITTED):
        call = [("noop", "default", msgpack.packb(((id,), {})), 0, 3) for id in range(first, first + SUBMITTED)]
        items = msgpack.unpackb(msgpack.packb(call))
        rows = [[id, *item, time.time(), None] for id, item in enumerate(items, first)]
        waiting.update((row[0], row) for row in rows)
        database.execute("BEGIN IMMEDIATE")
        database.executemany("INSERT INTO task VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        database.execute("COMMIT")
    for first in range(0, TASKS, HANDED_OUT):
        taken = [waiting.pop(id) for id in range(first, first + HANDED_OUT)]
        calls = msgpack.unpackb(msgpack.packb(taken))
        done = [(id, repr(msgpack.unpackb(payload)[0])) for id, _, _, payload, *_ in calls]
        results = [(result, id) for id, result in msgpack.unpackb(msgpack.packb(done))]
        database.execute("BEGIN IMMEDIATE")
        database.executemany("UPDATE task SET result = ? WHERE id = ?", results)
        database.execute("COMMIT")


@contextmanager
def _database() -> Iterator[sqlite3.Connection]:
    """A table of tasks whose transactions are on disk."""
    columns = "id INTEGER PRIMARY KEY, type, queue, payload, priority, max_retries, submitted_at, result"
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(sqlite3.connect(Path(folder) / "least.sqlite", isolation_level=None)) as database,
    ):
        for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", f"CREATE TABLE task ({columns})"):
            database.execute(statement)
        yield database


def work() -> None:
    """One process of `least`: runs when it is told, and says its `Cost`."""
    with _database() as database:
        print("ready", flush=True)
        sys.stdin.readline()
        cpu, wall = time.process_time(), time.perf_counter()
        _work(database)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        print(json.dumps([cpu / TASKS * 1e6, wall / TASKS * 1e6]))


# -- a commit, and a way there and back


def commits(count: int) -> list[float]:
    """Seconds for each of so many transactions of one small row that are on disk."""
    times = []
    with _database() as database:
        for _ in range(count):
            began = time.perf_counter()
            database.execute("INSERT INTO task (payload) VALUES (?)", (b"x" * 64,))
            times.append(time.perf_counter() - began)
    return times


class Echo:
    """Another process, on another processor, that sends back whatever it gets, over TCP; to be entered by `with`."""

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._closing = ExitStack()

    def __enter__(self) -> Echo:
        process = subprocess.Popen([sys.executable, __file__, "echo", str(self._size)], stdout=subprocess.PIPE)
        self._closing.callback(process.communicate)
        self._near = self._closing.enter_context(closing(socket.create_connection(("127.0.0.1", int(_line(process))))))
        self._near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    def trips(self, count: int) -> list[float]:
        """Seconds for each of so many frames there and back."""
        frame, times = b"x" * self._size, []
        with _alone_on(0):
            for _ in range(count):
                began = time.perf_counter()
                self._near.sendall(frame)
                self._near.recv(self._size, socket.MSG_WAITALL)
                times.append(time.perf_counter() - began)
        return times


def round_trip(size: int = 64, count: int = 1_000) -> float:
    """Seconds for so many bytes to another process and back: the median."""
    with Echo(size) as far:
        return statistics.median(far.trips(count))


@contextmanager
def _alone_on(position: int) -> Iterator[None]:
    """Stay on one of this machine's processors, if it can be chosen: two that share one are faster than is usual."""
    if sys.platform != "linux":
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [sorted(allowed)[position % len(allowed)]])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def echo(size: int) -> None:
    """The other process of `round_trip`."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        print(listener.getsockname()[1], flush=True)
        far, _ = listener.accept()
    with _alone_on(1), far:
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while frame := far.recv(size, socket.MSG_WAITALL):
            far.sendall(frame)


if __name__ == "__main__":
    if sys.argv[1] == "work":
        work()
    else:
        echo(int(sys.argv[2]))
