"""A whole queue inside the test's own process: the real core and the real wire, and a worker of one thread."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Mapping
from typing import Any

from taskq import registry
from taskq.client import Client
from taskq.clock import SystemClock
from taskq.config import Join, QueueSettings
from taskq.errors import ManagerUnavailable, ShuttingDown, StaleRun, TaskqError
from taskq.queue.job_queue import JobQueue
from taskq.shapes import ACK, NACK, Handout, WorkerInfo
from taskq.stores.base import Store
from taskq.stores.memory import MemoryStore
from taskq.wire.client import RemoteQueue
from taskq.wire.codec import decode_arguments, encode
from taskq.wire.server import WireServer


class Here:
    """A manager without its process: queue, store and server; `begin` and `end` are its start and stop."""

    def __init__(self, **settings: Any) -> None:
        self.key = secrets.token_bytes(32)
        self.settings = QueueSettings(**settings)
        self.port = 0
        self.store: Store = MemoryStore()
        self._closing: list[Callable[[], None]] = []
        self.begin()

    def begin(self) -> None:
        """Start, on the port of the last time."""
        self.queue = JobQueue(self.store, SystemClock(), self.settings)
        self.queue.open()
        self.queue.start()
        self.server = WireServer(self.queue, "127.0.0.1", self.port, self.key)
        self.port = self.server.address.port
        self.server.start()

    def end(self) -> None:
        """Stop; what was accepted stays in the store."""
        self.queue.shut()
        self.server.stop()
        self.queue.close()

    @property
    def join(self) -> Join:
        """How to reach it."""
        return Join((self.server.address,), self.key)

    def client(self, **options: Any) -> Client:
        """A client, closed at the end of the test."""
        client = Client(self.join, **options)
        self._closing.append(client.close)
        return client

    def service(self) -> RemoteQueue:
        """The bare verbs, closed at the end of the test."""
        queue = RemoteQueue(self.join)
        self._closing.append(queue.close)
        return queue

    def worker(self, *types: str) -> Worker:
        """A worker of these types (built-in ones without more said), stopped at the end of the test."""
        worker = Worker(self.join, types or ("compute", "sleep", "http_request", "fail"))
        self._closing.append(worker.stop)
        return worker

    def close(self) -> None:
        """Stop everything."""
        for close in reversed(self._closing):
            close()
        self.end()


class Worker:
    """Runs tasks one after the other in one thread, and comes back after its manager."""

    def __init__(self, join: Join, types: tuple[str, ...]) -> None:
        self._remote = RemoteQueue(join)
        self._stopping = threading.Event()
        found = map(registry.lookup, types)
        self._types = {one.name: one for one in found if one is not None}
        incarnation = secrets.token_hex(8)
        self.pool = secrets.token_hex(8)
        pool = {"id": self.pool, "name": "here", "host": "localhost", "pid": os.getpid(), "local": None}
        self._info = WorkerInfo(
            incarnation=incarnation,
            pool=pool,  # type: ignore[typeddict-item]  # its text is shorter than the class's
            name="here/0",
            host="localhost",
            pid=os.getpid(),
            threads=1,
            queues=(),
            queue_order="",
            types=[one.describe() for one in self._types.values()],
        )
        self._session = self._remote.attach(self._info, ())["session"]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after the task that it runs; a reserve that waits is cut off."""
        self._stopping.set()
        self._remote.close()
        self._thread.join()

    def _run(self) -> None:
        report: tuple[Any, ...] | None = None
        while not self._stopping.is_set():
            try:
                if report is not None:
                    self._remote.report(self._info["incarnation"], self._session, [report])
                    report = None
                got = self._remote.reserve(self._info["incarnation"], self._session, 1, 0, (), 0.1)
                report = run(got.tasks[0], self._types) if got.tasks else None
                if got.closed:  # a manager that was started since knows nothing of the session
                    self._attach_again(None)
            except (ManagerUnavailable, ShuttingDown, StaleRun):
                self._stopping.wait(0.05)
                self._attach_again(report)

    def _attach_again(self, report: tuple[Any, ...] | None) -> None:
        held = [] if report is None else [(report[1], report[2])]
        try:
            self._session = self._remote.attach(self._info, held)["session"]
        except TaskqError:
            self._stopping.wait(0.05)


def run(task: Handout, types: Mapping[str, registry.TaskType[..., Any]]) -> tuple[Any, ...]:
    """Run one task here and now; gives its report."""
    args, kwargs = decode_arguments(task.payload)
    context = registry.TaskContext(task.id, task.run, task.attempt, task.type, task.queue, task.correlation_id)
    token = registry.CURRENT.set(lambda: context)
    try:
        return ACK, task.id, task.run, encode(types[task.type](*args, **kwargs)), 0.001
    except Exception as error:  # whatever the task's code does
        return (
            NACK,
            task.id,
            task.run,
            ("error", type(error).__name__, str(error), "Traceback of the worker"),
            -1,
            0.001,
        )
    finally:
        registry.CURRENT.reset(token)
