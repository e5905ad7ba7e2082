"""The manager's handle of its own pool: the very program that ``taskq-worker`` is, started as a child process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from taskq.config import Join, PoolSettings, read_join
from taskq.errors import TaskqError
from taskq.workers import control

QUICK_DEATH = 60.0
"""Seconds: a pool that lived longer is started again at once, as if it were the first time."""
LONGEST_PAUSE = 30.0

# These would send the pool somewhere else than to the manager that starts it.
_NOT_INHERITED = ("TASKQ_JOIN", "TASKQ_HOST", "TASKQ_PORT", "TASKQ_KEY_FILE")


class LocalPool:
    """One pool of worker processes on this machine, restarted by its owner when it ends unasked.

    ``file`` is where this manager, and the next one, write how to reach them. ``on_exit`` gets the exit code, from a
    thread, each time the pool ends. The pool is a session of its own: Ctrl-C in the terminal reaches the manager alone,
    which then drains the pool. Nothing kills the pool with the manager: it waits a while for the next one, delivers
    what it has and leaves.
    """

    def __init__(
        self, join: Join, file: Path, settings: PoolSettings, run_id: str, on_exit: Callable[[int], None]
    ) -> None:
        self._join = join
        self._file = file
        self._settings = settings
        self._run_id = run_id
        self._on_exit = on_exit
        self._process: subprocess.Popen[str] | None = None
        self._watcher: threading.Thread | None = None
        self._started_at = 0.0
        self._pause = 0.5

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.returncode is None

    def start(self, now: float) -> None:
        """Start the pool. The key goes through its standard input, never through its arguments."""
        self._started_at = now
        self._process = subprocess.Popen(
            self._command(),
            stdin=subprocess.PIPE,
            stdout=sys.stderr if sys.stderr is not None else subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name not in _NOT_INHERITED},
        )
        watcher = threading.Thread(target=self._watch, args=(self._process,), name="pool-watcher", daemon=True)
        watcher.start()
        self._watcher = watcher  # only now: `kill` waits for it
        self._tell()

    def move(self, join: Join) -> None:
        """The manager has another key now: for the pool that runs, and those that follow it."""
        self._join = join
        if self.alive:
            self._tell()

    def _tell(self) -> None:
        """Write the join file, as one line, to the pool's standard input, which stays open."""
        assert self._process is not None and self._process.stdin is not None
        with suppress(BrokenPipeError, ValueError):  # a pool that has died is seen by its watcher
            self._process.stdin.write(self._join.to_json() + "\n")
            self._process.stdin.flush()

    def _command(self) -> list[str]:
        settings = self._settings
        options = {
            "--join": "-",
            "--local-to": self._run_id,
            "--next-join": self._file.absolute(),
            "--name": self._join.name,
            "--workers": settings.workers,
            "--threads": settings.threads,
            "--drain-timeout": f"{settings.drain_timeout}s",
            "--log-level": settings.log_level,
            "--log-format": settings.log_format,
        }
        command = [sys.executable, "-m", "taskq", "worker"]
        for name, value in options.items():
            command += [name, str(value)]
        if settings.queues:
            command += ["--queues", ",".join(settings.queues)]
        if settings.queue_order:
            command += ["--queue-order", settings.queue_order]
        for module in settings.tasks:
            command += ["--tasks", module]
        return command

    def _watch(self, process: subprocess.Popen[str]) -> None:
        code = process.wait()
        with suppress(BrokenPipeError):
            if process.stdin is not None:
                process.stdin.close()
        self._on_exit(code)

    def next_start(self, now: float) -> float:
        """When to start it again after it ended: at once at first, later with doubled pauses."""
        self._pause = 0.5 if now - self._started_at > QUICK_DEATH else min(LONGEST_PAUSE, self._pause * 2)
        return now + self._pause

    def drain(self) -> None:
        """Ask it to finish what runs and to leave."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def hurry(self) -> None:
        """Ask a pool that drains to break off what runs, report that, and leave."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # another one than before: two equal signals may arrive as one

    def kill(self) -> None:
        """End it and all its worker processes now, and wait for the end."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):  # the pool's own process may be gone while its children are not
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.join()

    def join(self) -> None:
        """Wait for the thread that watches a pool which has ended."""
        if self._watcher is not None:
            self._watcher.join()


def joins_from_manager(file: Path | None) -> Callable[[], Join]:
    """In a manager's own pool: what gives the join file that the manager has written last, see `LocalPool`.

    When that manager is gone, its successor, which may be at another port, is found by the ``file`` that it writes.
    """
    lines = control.lines(0)
    source = "what the manager sent"
    latest = Join.from_json(next(lines, ""), source)
    gone = False

    def listen() -> None:
        nonlocal latest, gone
        for line in lines:
            latest = Join.from_json(line, source)
        gone = True

    def find() -> Join:
        nonlocal latest
        if gone and file is not None:
            with suppress(TaskqError):  # there is none, or it is just being made
                latest = read_join(file)
        return latest

    threading.Thread(target=listen, name="taskq-join", daemon=True).start()
    return find
