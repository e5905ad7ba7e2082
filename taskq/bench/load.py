"""Load that comes from processes of its own: ``python -m taskq.bench.load KIND JOIN …``.

Each says ``ready`` on its standard output when it is, and goes on, or begins, when it is told on its standard input.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from taskq.bench.stage import READY, client_of
from taskq.bench.tasks import noop
from taskq.config import read_join
from taskq.errors import TaskqError
from taskq.shapes import ChildInfo, PoolInfo, WorkerInfo
from taskq.wire.client import RemoteQueue

ELSEWHERE = "bench-elsewhere"
"""A queue into which nothing is submitted."""
WAIT = 20.0
"""Seconds for which a worker asks the manager to hold its call."""
STACK = 256 * 1024
"""Bytes for each of many threads."""


# -- workers that wait


class Waiters:
    """So many worker processes, as the manager sees them, in one: each has a connection and waits for a task on it."""

    def __init__(self, join: Path, count: int) -> None:
        self._join = read_join(join)
        self._ending = threading.Event()
        self._pool = PoolInfo(
            id=secrets.token_hex(8), name="waiters", host=socket.gethostname(), pid=os.getpid(), local=None
        )
        self._queues = [RemoteQueue(self._join, connect_timeout=30.0) for _ in range(count)]
        self._workers = [self._worker(number) for number in range(count)]

    def _worker(self, number: int) -> WorkerInfo:
        return WorkerInfo(
            incarnation=secrets.token_hex(8),
            pool=self._pool,
            name=f"waiters/{number}",
            host=self._pool["host"],
            pid=os.getpid(),
            threads=1,
            queues=(ELSEWHERE,),
            queue_order="",
            types=[noop.describe()],
        )

    def run(self, until: Callable[[], object], ready: Callable[[], None]) -> None:
        """Attach, wait for tasks until ``until`` returns, and leave."""
        sessions = [
            queue.attach(worker, ())["session"] for queue, worker in zip(self._queues, self._workers, strict=True)
        ]
        threading.stack_size(STACK)
        waiting = zip(self._queues, self._workers, sessions, strict=True)
        threads = [threading.Thread(target=self._wait, args=each) for each in waiting]
        threads.append(threading.Thread(target=self._beat))
        for thread in threads:
            thread.start()
        ready()
        until()
        self._ending.set()
        for queue in self._queues:
            queue.close()
        for thread in threads:
            thread.join()

    def _wait(self, queue: RemoteQueue, worker: WorkerInfo, session: int) -> None:
        while not self._ending.is_set():
            try:
                queue.reserve(worker["incarnation"], session, 1, 0, (), WAIT)
            except TaskqError:
                if self._ending.wait(1.0):
                    return

    def _beat(self) -> None:
        children = [
            ChildInfo(
                incarnation=worker["incarnation"],
                pid=worker["pid"],
                stopped=False,
                leaving=False,
                cpu_percent=0.0,
                rss_bytes=0,
                running=(),
            )
            for worker in self._workers
        ]
        queue = RemoteQueue(self._join)
        pause = 0.0
        while not self._ending.wait(pause):
            pause = queue.beat(self._pool, children)["interval"]
        queue.leave(self._pool["id"])
        queue.close()


# -- clients that submit


def submit(join: Path, threads: int, seconds: float, until: Callable[[], object], ready: Callable[[], None]) -> int:
    """Submit tasks one a call from several threads, each with a client, for so many seconds; gives their number."""
    clients = [client_of(join) for _ in range(threads)]
    for client in clients:
        client.submit(noop)
    ready()
    until()
    counts = [0] * threads
    end = time.perf_counter() + seconds

    def work(number: int) -> None:
        while time.perf_counter() < end:
            clients[number].submit(noop, counts[number])
            counts[number] += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for client in clients:
        client.close()
    return sum(counts)


def map_as_told(join: Path, ready: Callable[[], None]) -> None:
    """For each number on standard input, submit so many tasks."""
    with client_of(join) as client:
        client.hello()
        ready()
        for line in sys.stdin:
            client.map(noop, range(int(line)))


def main(kind: str, join: str, *numbers: str) -> None:
    """Run one kind of load: ``waiters``, ``submitters`` or ``mapper``."""

    def ready() -> None:
        sys.stdout.write(f"{READY.decode()}\n")
        sys.stdout.flush()

    if kind == "waiters":
        Waiters(Path(join), int(numbers[0])).run(sys.stdin.readline, ready)
    elif kind == "mapper":
        map_as_told(Path(join), ready)
    else:
        done = submit(Path(join), int(numbers[0]), float(numbers[1]), sys.stdin.readline, ready)
        sys.stdout.write(f"{done}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
