"""A worker process as such: its boot, the parent's commands, signals. Run as ``python -m taskq.workers.process``."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from taskq import builtin_tasks, config, logs, registry, streams
from taskq.clock import SystemClock
from taskq.config import Join
from taskq.errors import AuthenticationFailed, ProtocolMismatch, TaskqError
from taskq.pauses import Pauses
from taskq.shapes import WorkerInfo
from taskq.wire.client import RemoteQueue
from taskq.workers import control
from taskq.workers.attachment import Attachment, ReportedDead
from taskq.workers.overtime import Overtime
from taskq.workers.slots import SlotTable
from taskq.workers.stderr import Spare
from taskq.workers.worker import TICK, Worker

_log = logging.getLogger("taskq.workers.process")  # not __name__, which is "__main__" here


class Process:
    """What is there once in a worker process: configuration, attachment, worker, the parent's commands, signals."""

    def __init__(self, given: control.ChildConfig, commands: Iterator[str]) -> None:
        self._config = given
        self._commands = commands
        self._join = Join.from_json(given.join, "the parent's join file")
        self._slots = SlotTable(given.slots, given.threads)
        self._spare = Spare(*given.stderr)
        self._parent_gone = False
        self._leaving = False
        self._overtime = Overtime()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # of an Event, `set` may not be called by a handler
        self._worker: Worker | None = None

    def run(self) -> int:
        """Boot, work, leave; gives the exit code."""
        own = self._config
        for descriptor in (own.slots, own.status, *own.stderr):
            os.set_inheritable(descriptor, False)
        control.write_stacks_to(self._slots.crash_descriptor())
        os.register_at_fork(after_in_child=self._after_fork)
        threading.Thread(target=self._obey, name="taskq-commands", daemon=True).start()
        signal.signal(signal.SIGTERM, self._on_term)
        config.own_manager = lambda: self._join
        logs.setup("worker", level=own.log_level, format=own.log_format, worker=own.name)
        try:
            registry.load([builtin_tasks.__name__, *own.tasks])
            worker = self._boot()
        except TaskqError as error:
            control.say_error(own.status, error)
            return 1
        if worker is not None:
            control.say_ready(own.status)
            worker.start()
            if self._leaving:
                worker.drain(orphan=self._parent_gone)
            while not worker.over.wait(TICK):  # now and then Python code must run in this thread: it handles signals
                if self._parent_gone:
                    self._end_if_stuck()
        return 0

    def _end_if_stuck(self) -> None:
        """Do to this process what its parent would do: end it for a task that does not stop."""
        over = self._overtime.look(self._slots.running(), SystemClock().monotonic()).kill
        if over:
            names = ", ".join(f"{one.type} {one.id}" for one in over)
            logs.event(_log, logging.ERROR, "task_stuck", f"this process ends: there is no other way to stop {names}")
            os._exit(1)

    def _boot(self) -> Worker | None:
        """Attach for the first time, however long it takes; None when asked to leave before."""
        attachment = Attachment(self._connect, self._describe(), self._on_lost)
        gc.collect()
        gc.freeze()
        self._worker = Worker(attachment, registry.lookup, self._slots, self._config.threads, SystemClock())
        pauses = Pauses(os.getpid())
        while not self._leaving:
            try:
                attachment.attach()
            except (AuthenticationFailed, ProtocolMismatch):
                raise
            except ReportedDead:
                return None
            except TaskqError as error:
                logs.event(_log, logging.INFO, "connection_lost", error.message)
                with contextlib.suppress(queue.Empty):
                    self._wake.get(timeout=pauses.next())
            else:
                return self._worker
        return None

    def _connect(self) -> RemoteQueue:
        streams.occupy()  # a task may have closed all descriptors, and log lines must not end up in the connection
        return RemoteQueue(self._join, connect_timeout=self._config.connect_timeout)

    def _after_fork(self) -> None:
        """A task forked, and this is the new process."""
        control.become_ordinary()
        if self._worker is not None:
            self._worker.after_fork()

    def _describe(self) -> WorkerInfo:
        own = self._config
        return WorkerInfo(
            incarnation=own.incarnation,
            pool=own.pool,
            name=own.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            threads=own.threads,
            queues=own.queues,
            queue_order=own.queue_order,
            types=[found.describe() for found in registry.all_types()],
        )

    def _on_lost(self) -> None:
        if self._worker is not None:
            self._worker.wake()

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        self._leave()

    def _leave(self) -> None:
        self._leaving = True
        self._wake.put(None)
        if self._worker is not None:
            self._worker.drain(orphan=self._parent_gone)

    def _obey(self) -> None:
        """Follow the parent's commands until it is gone; then leave too."""
        for line in self._commands:
            if line == control.DRAIN:
                self._leave()
            elif line.startswith(control.CANCEL):
                if self._worker is not None:
                    self._worker.cancel(int(line[len(control.CANCEL) :]))
            elif line.startswith(control.JOIN):
                self._join = Join.from_json(line[len(control.JOIN) :], "the parent's join file")
        self._parent_gone = True
        self._spare.rescue()
        self._leave()


def main() -> int:
    """The entry point: ``python -m taskq.workers.process``, started by a pool's parent only."""
    control.leave_signals_to_the_parent()
    sys.setswitchinterval(0.0005)
    lines = control.lines(control.take_over())
    line = next(lines, None)
    if line is None:
        return 0
    return Process(control.ChildConfig.from_line(line), lines).run()


if __name__ == "__main__":
    sys.exit(main())
