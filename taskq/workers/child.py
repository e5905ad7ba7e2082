"""The parent's handle of one worker process: start it, talk to it, look at it, end it. Everything about `subprocess`
and `psutil` ends here.

A child is started with `subprocess`, never by fork: it must inherit neither locks nor sockets.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic, sleep

import psutil

from taskq.config import Join, PoolSettings
from taskq.errors import TaskqError
from taskq.shapes import ChildInfo, Evidence, PoolInfo, Report
from taskq.workers import control
from taskq.workers.overtime import Overtime
from taskq.workers.slots import Running, SlotTable
from taskq.workers.stderr import Tail
from taskq.workers.usage import Usage

SAMPLE = 1.0
"""Seconds between two looks at its memory, at least."""
MEMORY = 60.0
"""Seconds for which they are remembered."""

_COMMAND = (sys.executable, "-m", "taskq.workers.process")
STACKS_WAIT = 0.5
"""Seconds for a process to write the stacks of its threads."""
_SUSPENDED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


class Child:
    """One worker process, from its start on.

    ``number``: its place in the pool, which its successor takes over. ``on_ready(child, error)`` is called once from a
    thread of its own, when the process works or says why it cannot (not when it dies before); then ``on_exit(child,
    code)``, with a negative signal number if it was one.
    """

    def __init__(
        self,
        number: int,
        now: float,
        on_ready: Callable[[Child, TaskqError | None], None],
        on_exit: Callable[[Child, int], None],
    ) -> None:
        self.number = number
        self.started_at = now
        self.incarnation = secrets.token_hex(8)
        self.ready = False
        self.leaving = False
        self.overtime = Overtime()
        self.last_words: list[Report] = []
        """The outcomes of the tasks for whose sake it was killed."""
        self._closing = threading.Lock()
        self._closed = False
        self._on_ready = on_ready
        self._on_exit = on_exit
        self._process: subprocess.Popen[bytes] | None = None
        self._looks: psutil.Process | None = None
        self._usage: Usage | None = None
        self._rss: deque[tuple[float, int]] = deque(maxlen=int(MEMORY / SAMPLE))

    def start(self, join: Join, pool: PoolInfo, settings: PoolSettings) -> None:
        """Start the process. Raises `OSError` when the system has no room for another one."""
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as failed:
            self._slots = SlotTable.create(settings.threads)
            failed.callback(self._slots.close)
            status, writer = _pipe(failed, ours)
            reader, stderr = _pipe(failed, ours)
            copy = os.dup(2)
            ours.callback(os.close, copy)
            self._process = subprocess.Popen(
                _COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=(self._slots.descriptor, writer, copy, reader),
            )
            failed.pop_all()
        self._tail = Tail(reader)
        with contextlib.suppress(psutil.Error):
            self._looks = psutil.Process(self._process.pid)
            self._usage = Usage(self._looks)
        config = control.ChildConfig(
            join=join.to_json(),
            incarnation=self.incarnation,
            name=f"{settings.name}/{self.number}",
            pool=pool,
            threads=settings.threads,
            tasks=settings.tasks,
            queues=settings.queues,
            queue_order=settings.queue_order,
            connect_timeout=settings.connect_timeout,
            log_level=settings.log_level,
            log_format=settings.log_format,
            slots=self._slots.descriptor,
            status=writer,
            stderr=(copy, reader),
        )
        self.send(config.to_line())
        threading.Thread(target=self._watch, args=(self._process, status), name="taskq-child", daemon=True).start()

    def _watch(self, process: subprocess.Popen[bytes], status: int) -> None:
        with os.fdopen(status, "rb") as file:
            line = file.readline()
        if line:
            self._on_ready(self, control.read_status(line))
        self._on_exit(self, process.wait())

    @property
    def pid(self) -> int:
        """The process id; 0 before the start."""
        return 0 if self._process is None else self._process.pid

    # -- talk to it

    def send(self, line: str) -> None:
        """Send one line, see `control`; a process that is gone does not mind."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError, ValueError):
                self._process.stdin.write(line.encode() + b"\n")
                self._process.stdin.flush()

    def drain(self) -> None:
        """Let it finish what it runs, deliver and leave."""
        self.leaving = True
        self.send(control.DRAIN)

    def cancel(self, runs: Iterable[int], now: float) -> None:
        """These runs, among those of others, are to be cancelled. ``now``: monotonic seconds."""
        for run in self.overtime.cancel(runs, now):
            self.send(control.cancel_command(run))

    def move(self, join: Join) -> None:
        """The manager is to be found elsewhere now."""
        self.send(control.join_command(join))

    def kill(self) -> None:
        """End it now."""
        if self._process is not None:
            self._process.kill()

    # -- look at it

    def stacks(self) -> str:
        """What `faulthandler` says of all its threads now; as much as there was time for."""
        if self._process is None or not self.ready:
            return ""
        self._process.send_signal(control.SHOW_STACKS)
        before, text = "", ""
        give_up = monotonic() + STACKS_WAIT
        while monotonic() < give_up and not (text and text == before):
            sleep(0.02)
            before, text = text, self._slots.written()
        return text

    def info(self, now: float) -> ChildInfo:
        """What the heartbeat says of it. ``now``: monotonic seconds."""
        stopped, cpu_percent, rss_bytes = False, 0.0, 0
        if self._looks is not None and self._usage is not None:
            with contextlib.suppress(psutil.Error), self._looks.oneshot():
                stopped = self._looks.status() in _SUSPENDED
                cpu_percent = self._usage.percent(now)
                rss_bytes = self._looks.memory_info().rss
        running = [(one.id, one.run, one.type, max(0.0, now - one.started)) for one in self.running()]
        return ChildInfo(
            incarnation=self.incarnation,
            pid=self.pid,
            stopped=stopped,
            leaving=self.leaving,
            cpu_percent=cpu_percent,
            rss_bytes=rss_bytes,
            running=running,
        )

    def sample(self, now: float) -> None:
        """Note its memory, once a second at most. ``now``: monotonic seconds."""
        if self._looks is None or (self._rss and now - self._rss[-1][0] < SAMPLE):
            return
        with contextlib.suppress(psutil.Error):
            rss = self._looks.memory_info().rss
            if rss:
                self._rss.append((now, rss))

    def running(self) -> list[Running]:
        """What its threads are doing, or were doing when it ended; nothing after `close`."""
        with self._closing:
            return [] if self._closed else self._slots.running()

    # -- after its end

    def wait(self) -> int:
        """Wait for its end; gives the exit code."""
        return 0 if self._process is None else self._process.wait()

    @property
    def left(self) -> bool:
        """Whether it took leave of the manager itself."""
        return self._slots.left

    def autopsy(self) -> tuple[list[Running], str]:
        """(the tasks that may have brought it down, the stack of the thread that crashed if that is known)."""
        return self._slots.guilty(), self._slots.crash()

    def evidence(self, now: float, crash: str) -> Evidence:
        """What is known of its end, which was at ``now`` (monotonic seconds)."""
        rss = [(round(now - at, 1), size) for at, size in self._rss if now - at <= MEMORY]
        return Evidence(rss=rss, stderr=self._tail.lines(), crash=crash)

    def close(self) -> None:
        """Let go of its slot table and pipes; it must have ended."""
        self._tail.finish()
        with self._closing:  # the heartbeat may be looking at it
            self._closed = True
            self._slots.close()
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()


def _pipe(reading: contextlib.ExitStack, writing: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe, whose ends are closed with these."""
    reader, writer = os.pipe()
    reading.callback(os.close, reader)
    writing.callback(os.close, writer)
    return reader, writer


def how(code: int) -> str:
    """An exit code for people.

    >>> how(-9), how(1)
    ('signal 9 (SIGKILL)', 'exit code 1')
    """
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {-code} ({signal.Signals(-code).name})"
    return f"signal {-code}"
