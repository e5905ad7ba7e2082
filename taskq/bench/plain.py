"""The same work without a task queue: a plain `BaseManager` with a `queue.Queue`, and threads that take from it.

Nothing is stored, retried or counted there: what it loses of the ideal time, Python and the machine lose.
``python -m taskq.bench.plain serve KEY`` and ``… work PORT KEY THREADS`` are its processes.
"""

from __future__ import annotations

import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.managers import BaseManager
from typing import Any

from taskq.bench import tasks
from taskq.bench.stage import Stage

WORK: dict[str, Callable[[float], None]] = {"nap": tasks.nap.function, "spin": tasks.spin.function}
"""What a message may ask for; it comes with a number of seconds."""
READY = "ready"
LONGEST_WAIT = 60.0
"""Seconds."""


class Queues(BaseManager):
    """A queue of tasks and one of what is done, in a process of their own."""


def _manager(key: str, port: int) -> Any:
    Queues.register("tasks")
    Queues.register("done")
    manager = Queues(("127.0.0.1", port), bytes.fromhex(key))
    manager.connect()
    return manager


def serve(key: str) -> None:
    """Be the manager until killed; says its port on standard output."""
    waiting: queue.Queue[Any] = queue.Queue()
    done: queue.Queue[Any] = queue.Queue()
    Queues.register("tasks", callable=lambda: waiting)
    Queues.register("done", callable=lambda: done)
    server = Queues(("127.0.0.1", 0), bytes.fromhex(key)).get_server()
    assert isinstance(server.address, tuple)
    sys.stdout.write(f"{server.address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


def work(port: int, key: str, threads: int) -> None:
    """Be a worker process until a message for each thread says that it is over."""
    manager = _manager(key, port)

    def run() -> None:
        waiting, done = manager.tasks(), manager.done()
        done.put(READY)
        while (message := waiting.get()) is not None:
            kind, seconds = message
            WORK[kind](seconds)
            done.put(None)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


class Plain:
    """A plain manager with so many worker processes, ended with the stage at the latest."""

    def __init__(self, stage: Stage, workers: int, threads: int) -> None:
        key = secrets.token_hex(16)
        self._server = stage.start(__name__, "serve", key, stdout=subprocess.PIPE)
        assert self._server.stdout is not None
        port = int(self._server.stdout.readline())
        self._stage, self._slots = stage, workers * threads
        arguments = ("work", str(port), key, str(threads))
        self._workers = [stage.start(__name__, *arguments) for _ in range(workers)]
        manager = _manager(key, port)
        self._tasks, self._done = manager.tasks(), manager.done()
        for _ in range(self._slots):
            self._done.get(timeout=LONGEST_WAIT)

    def run(self, kind: str, seconds: float, count: int, ideal: float) -> float:
        """Seconds for so many tasks; ``ideal``: those that they take at least, in which nobody asks how far it is."""
        started = time.perf_counter()
        for _ in range(count):
            self._tasks.put((kind, seconds))
        time.sleep(max(0.0, started + ideal - time.perf_counter()))
        self._stage.wait_until(lambda: self._done.qsize() >= count, LONGEST_WAIT, "the plain workers", 0.002)
        took = time.perf_counter() - started
        for _ in range(count):
            self._done.get()
        return took

    def stop(self) -> None:
        """End its processes."""
        for _ in range(self._slots):
            self._tasks.put(None)
        for process in self._workers:
            process.wait(LONGEST_WAIT)
            self._stage.end(process)
        self._stage.end(self._server)


def main(kind: str, *arguments: str) -> None:
    """Run one of its processes."""
    if kind == "serve":
        serve(*arguments)
    else:
        port, key, threads = arguments
        work(int(port), key, int(threads))


if __name__ == "__main__":
    main(*sys.argv[1:])
