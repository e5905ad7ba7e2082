"""What this machine can do at best, without a queue: a round trip, a commit, some bytes packed, rows on disk.

With these beside them, figures of one machine can be compared with those of another.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from taskq.bench.figures import Row, median, percentile
from taskq.queue.lots import lots
from taskq.queue.terms import new_task
from taskq.service import MAX_BATCH, MAX_BATCH_BYTES
from taskq.wire import codec
from taskq.wire.client import RemoteQueue

FRAME = b"x" * 64
"""About what a small call is."""


class Commits(NamedTuple):
    """How long a durable transaction of one row takes, in seconds."""

    median: float
    p99: float
    worst: float


# -- round trips


def loopback(count: int = 5_000) -> float:
    """Seconds for a small frame to another thread of this process and back, over TCP: the median."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    echo = threading.Thread(target=_echo, args=(far,), name="bench-echo")
    echo.start()
    try:
        times = []
        for _ in range(count):
            started = time.perf_counter()
            near.sendall(FRAME)
            near.recv(len(FRAME), socket.MSG_WAITALL)
            times.append(time.perf_counter() - started)
        return median(times)
    finally:
        near.close()
        echo.join()


def _echo(far: socket.socket) -> None:
    with far:
        while data := far.recv(len(FRAME), socket.MSG_WAITALL):
            far.sendall(data)


def wire(queue: RemoteQueue, count: int = 2_000) -> float:
    """Seconds for the smallest call to a manager and its answer: the median."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        queue.hello()
        times.append(time.perf_counter() - started)
    return median(times)


# -- the disk


@contextmanager
def _database() -> Iterator[sqlite3.Connection]:
    """A table in a scratch file that is as safe as the store's: a commit is on disk."""
    with (
        tempfile.TemporaryDirectory(prefix="taskq-bench-") as folder,
        closing(sqlite3.connect(Path(folder) / "floor.sqlite", isolation_level=None)) as database,
    ):
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("PRAGMA fullfsync=ON")
        database.execute("CREATE TABLE task (id INTEGER PRIMARY KEY, payload BLOB)")
        yield database


def commits(count: int = 1_000) -> Commits:
    """Transactions of one small row each."""
    times = []
    with _database() as database:
        for _ in range(count):
            started = time.perf_counter()
            database.execute("INSERT INTO task (payload) VALUES (?)", (FRAME,))
            times.append(time.perf_counter() - started)
    return Commits(median(times), percentile(times, 99), max(times))


def insert_rate(size: int, count: int) -> float:
    """Rows a second with a payload of ``size`` bytes, in transactions as large as a client's calls."""
    each = max(1, min(MAX_BATCH, MAX_BATCH_BYTES // size))
    row = (os.urandom(size),)
    with _database() as database:
        started = time.perf_counter()
        for done in range(0, count, each):
            database.execute("BEGIN IMMEDIATE")
            database.executemany("INSERT INTO task (payload) VALUES (?)", [row] * min(each, count - done))
            database.execute("COMMIT")
        return count / (time.perf_counter() - started)


# -- bytes


def msgpack(count: int = 20_000) -> float:
    """Seconds to pack and unpack what a small task is on its way from the client to the worker."""
    started = time.perf_counter()
    for number in range(count):
        task = new_task("bench.noop", codec.encode_arguments((number,), {}), correlation_id="c" * 12)
        codec.decode_arguments(codec.unpack(codec.pack(lots([task])))[0][1][0])
    return (time.perf_counter() - started) / count


def rows(runs: int, queue: RemoteQueue) -> list[Row]:
    """All of them as figures; ``queue``: a manager's."""
    durable = [commits() for _ in range(runs)]

    def row(name: str, unit: str, values: list[float], factor: float) -> Row:
        return Row("floor", name, unit, tuple(value * factor for value in values))

    return [
        row("loopback round trip, p50", "us", [loopback() for _ in range(runs)], 1e6),
        row("smallest call to a manager, p50", "us", [wire(queue) for _ in range(runs)], 1e6),
        row("commit of one row, p50", "ms", [found.median for found in durable], 1e3),
        row("commit of one row, p99", "ms", [found.p99 for found in durable], 1e3),
        row("commit of one row, worst", "ms", [found.worst for found in durable], 1e3),
        row("msgpack, a small task", "us", [msgpack() for _ in range(runs)], 1e6),
        row("rows of 10 KiB, durable", "/s", [insert_rate(10 * 1024, 4_000) for _ in range(runs)], 1.0),
        row("rows of 1 MiB, durable", "/s", [insert_rate(1024 * 1024, 60) for _ in range(runs)], 1.0),
    ]
