"""The manager: store -> queue -> wire server -> local pool, started in that order and stopped in a written one.

Everything that happens to a running manager (a signal, the end of its pool, a failed write) arrives as one event in
one queue; signal handlers and threads only put it there, the main thread acts on it.
"""

from __future__ import annotations

import gc
import logging
import os
import queue
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

import psutil

from taskq import addresses, config, logs
from taskq.clock import SystemClock
from taskq.config import Address, Join, ManagerSettings
from taskq.errors import ConfigError, OutcomeUnknown, StoreDamaged, StoreFailed, TaskqError
from taskq.keys import KeyFiles, Keys
from taskq.layout import counted
from taskq.local_pool import LocalPool
from taskq.queue.job_queue import JobQueue
from taskq.stores.base import Store
from taskq.stores.memory import MemoryStore
from taskq.stores.sqlite import SqliteStore
from taskq.wire.door import ask_for_descriptors
from taskq.wire.server import WireServer, bound_kept_memory
from taskq.workers.usage import Usage

log = logging.getLogger(__name__)

SWITCH_INTERVAL = 0.0005
"""Seconds: how long a waking thread may wait for the interpreter. With Python's 5 ms each call would wait that long."""
COLLECT_YOUNGEST_AFTER = 5_000
"""Objects: one submit call makes some thousands that live as long as the call."""
COLLECT_OLDEST_AFTER = 1_000_000
"""Collections of the middle generation before the oldest one is collected: a pass over a million tasks takes 0.3 s."""
BOOT_TIMEOUT = 10.0
"""Seconds that the start waits for the local pool to join before it says that it is ready."""
AFTER_DRAIN = 10.0
"""Seconds that a drained pool has, over its own drain timeout, before it is killed."""
HARD_STOP = 3.0
"""Seconds that it has when it was told to stop at once."""
SIGNAL_WAIT = 1.0
"""Seconds for which the main thread waits at most without a look at signals: the system may give a signal to another
thread (it does after SIGSTOP and SIGCONT), and then it does not end the wait of this one."""
SAY_WHAT_RUNS = 5.0
"""Seconds between two words on what a drain waits for."""
EXIT_DAMAGED = 65
"""What a manager ends with whose store is damaged, also when it sees that only while it runs."""
CANNOT_BOOT = (2, 4)
"""Exit codes of a pool that would only fail again: bad usage or modules, bad key."""


class Event(NamedTuple):
    """Something that the main thread must act on; ``value``: signal number, exit code of the pool, or the error."""

    kind: Literal["signal", "pool", "failure"]
    value: Any


class _StopAsked(Exception):
    """A signal came while the manager was still loading its store; ``args[0]`` is its number."""


class Manager:
    """One manager process: `run` starts it, waits for a signal, drains, and gives the exit code."""

    def __init__(self, settings: ManagerSettings) -> None:
        self.settings = settings
        self.run_id = secrets.token_hex(8)
        self._clock = SystemClock()
        self._key_files = KeyFiles(Path(settings.key_file) if settings.key_file else settings.state.key)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._signals = 0
        self._ready = False
        self._failed = False
        self._queue: JobQueue | None = None
        self._server: WireServer | None = None
        self._pool: LocalPool | None = None
        self._said_at = 0.0
        self._process = psutil.Process()
        self._usage = Usage(self._process)

    # -- start

    def start(self) -> None:
        """Open everything. Raises `ConfigError` (a port, folder or store cannot be had) and what the store raises."""
        settings = self.settings
        settings.state.make()
        keys = self._keys = self._key_files.read(make=True)
        store = settings.store or settings.state.store
        logs.event(log, logging.INFO, "starting", f"taskq {config.VERSION} opens {store}")
        sys.setswitchinterval(SWITCH_INTERVAL)
        ask_for_descriptors()
        bound_kept_memory()
        self._queue = self._open_queue()
        self._queue.start()  # a queue that cannot is closed by `_stop`
        self._server = self._listen(self._queue, keys)
        self._server.start()
        join = self._write_join(self._server, keys)
        if settings.pool.workers:
            self._pool = LocalPool(join, settings.state.join, settings.pool, self.run_id, self._on_pool_exit)
            self._start_pool()
            self._await_pool(self._queue)
        self._ready = self._events.empty()
        if self._ready:
            self._announce_ready()

    def _write_join(self, server: WireServer, keys: Keys) -> Join:
        """Write the join file; gives what is in it."""
        settings = self.settings
        found = addresses.reachable(settings.bind, server.address.port, settings.advertise)
        join = Join(found, keys.current, settings.queue.name)
        config.write_private(settings.state.join, join.to_json() + "\n")
        return join

    def _look_for_another_key(self) -> None:
        """Take a key over that was changed while this manager runs."""
        if self._server is None or not self._key_files.changed():
            return
        try:
            keys = self._key_files.read()
            if keys == self._keys:
                return
            self._keys = keys
            self._server.accept_keys(*keys)
            join = self._write_join(self._server, keys)
        except (TaskqError, OSError) as error:
            logs.event(
                log, logging.ERROR, "key_changed", f"the key was changed, and this manager keeps its own: {error}"
            )
            return
        if self._pool is not None:
            self._pool.move(join)
        logs.event(log, logging.INFO, "key_changed", "the key was changed; the one before it is accepted too")

    def _make_store(self) -> Store:
        kind, _, place = self.settings.store.partition(":")
        if kind == "memory":
            return MemoryStore()
        path = Path(place) if place else self.settings.state.store
        return SqliteStore(path, accept_lost_tail=self.settings.accept_lost_tail)

    def _open_queue(self) -> JobQueue:
        """Bring the stored tasks back. They live long and make no cycles: the collector need not look at them again."""
        store = self._make_store()
        job_queue = JobQueue(store, self._clock, self.settings.queue, self._on_failure)
        job_queue.self_report = self._report
        job_queue.local_pool = self.run_id
        gc.disable()
        try:
            job_queue.open(self._say_progress)
        except BaseException:
            store.close()
            raise
        finally:
            gc.enable()
        gc.freeze()
        gc.set_threshold(COLLECT_YOUNGEST_AFTER, gc.get_threshold()[1], COLLECT_OLDEST_AFTER)
        return job_queue

    def _say_progress(self, done: int, total: int) -> None:
        if self._signals:
            raise _StopAsked(self._events.get().value)
        now = self._clock.monotonic()
        if now - self._said_at >= 1.0:
            if self._said_at:
                logs.announce(log, "recovering", f"recovering: {done:,} of {total:,} tasks")
            self._said_at = now

    def _listen(self, job_queue: JobQueue, keys: Keys) -> WireServer:
        """A server on the port that was asked for; for 0 on the last one if it is free, so that workers find it."""
        if self.settings.port == 0 and (last := self._last_port()):
            try:
                return WireServer(job_queue, self.settings.bind, last, *keys)
            except ConfigError:
                log.debug("port %d, used last time, is taken", last)
        return WireServer(job_queue, self.settings.bind, self.settings.port, *keys)

    def _last_port(self) -> int | None:
        try:
            return config.read_join(self.settings.state.join).addresses[0].port
        except TaskqError:  # none, or none that can be used: it is written anew
            return None

    def _start_pool(self) -> None:
        assert self._pool is not None
        self._pool.start(self._clock.monotonic())

    def _await_pool(self, job_queue: JobQueue) -> None:
        """Wait until the local workers have joined, so that "ready" is true; but not for ever."""
        give_up = self._clock.monotonic() + BOOT_TIMEOUT
        while self._clock.monotonic() < give_up:
            joined = [found for found in job_queue.snapshot()["workers"] if found["state"] != "expected"]
            if len(joined) >= self.settings.pool.workers:
                return
            try:
                event = self._events.get(timeout=0.02)
            except queue.Empty:
                continue
            self._events.put(event)  # the loop in `_wait` acts on it
            return

    def _announce_ready(self) -> None:
        pool = self.settings.pool
        each = f"{counted(pool.workers, 'worker')} x {counted(pool.threads, 'thread')}"
        workers = each if pool.workers else "no local workers"
        store = self.settings.store or f"sqlite:{self.settings.state.store}"
        name = self.settings.queue.name
        logs.announce(log, "ready", f"taskq-manager {name} ready on {self.address} (store {store}, {workers})")

    @property
    def address(self) -> Address:
        """Where it listens."""
        assert self._server is not None
        return self._server.address

    def _report(self) -> dict[str, Any]:
        """What the queue cannot know of its process, for the snapshot."""
        return {
            "version": config.VERSION,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "address": str(self.address) if self._server else None,
            "cpu_percent": self._usage.percent(self._clock.monotonic()),
            "rss_bytes": self._process.memory_info().rss,
        }

    # -- run

    def run(self) -> int:
        """Start, serve until a signal or a failure, stop; gives the exit code. Raises as `start` does."""
        with self._signals_caught():
            try:
                self.start()
                code = self._wait()
            except _StopAsked as stop:
                code = 128 + int(stop.args[0])
            except BaseException:
                self._failed = True
                self._stop(1, drain=False)
                if self._pool is not None:
                    self._pool.kill()
                raise
            return self._stop(code, drain=not self._failed)

    def _wait(self) -> int:
        """Serve until there is a reason to stop; gives the exit code."""
        restart_at: float | None = None
        while True:
            self._look_for_another_key()
            try:
                left = SIGNAL_WAIT if restart_at is None else restart_at - self._clock.monotonic()
                event = self._events.get(timeout=min(max(0.0, left), SIGNAL_WAIT))
            except queue.Empty:
                if restart_at is not None and self._clock.monotonic() >= restart_at:
                    restart_at = None
                    self._start_pool()
                continue
            if event.kind == "signal":
                return 0
            if event.kind == "failure":
                return self._say_failure(event.value)
            if event.value in CANNOT_BOOT and not self._ready:
                return int(event.value)  # the pool has said why
            restart_at = self._after_pool_died(event.value)

    def _after_pool_died(self, code: int) -> float | None:
        assert self._pool is not None
        now = self._clock.monotonic()
        restart_at = self._pool.next_start(now)
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        text = f"the local pool ended ({how}); it is started again in {restart_at - now:.0f} s"
        logs.event(log, logging.ERROR, "local_pool_died", text)
        return restart_at

    def _say_failure(self, error: BaseException) -> int:
        """Gives the exit code."""
        self._failed = True
        if isinstance(error, StoreDamaged):
            logs.event(log, logging.CRITICAL, "failed", f"{error}; the manager ends: {error.hint}")
            return EXIT_DAMAGED
        text = f"a write did not reach the disk: {error}; the manager ends, and the next start believes the disk"
        logs.event(log, logging.CRITICAL, "failed", text)
        return 1

    # -- stop

    def _stop(self, code: int, *, drain: bool) -> int:
        """Stop in this order; gives the exit code.

        1. No new connections.
        2. No new submits, hand-outs or waiting calls; reports of what runs are still taken.
        3. The local pool finishes what it runs and leaves. (After a failed write it is left alone, as after a crash:
           it delivers to the next manager, or leaves after a minute.)
        4. All connections.
        5. The last commit, the store, its lock.
        """
        if self._server is not None:
            self._server.close_listener()
        if self._queue is not None:
            self._queue.shut()
        if self._pool is not None and self._pool.alive and drain:
            code = self._drain_pool(self._pool) or code
        if self._server is not None:
            self._server.stop()
        if self._queue is not None:
            try:
                self._queue.close()
            except (StoreFailed, OutcomeUnknown) as error:
                code = self._say_failure(error)
        logs.event(log, logging.INFO, "stopped", "everything is on disk" if not self._failed else "ended")
        return code

    def _drain_pool(self, pool: LocalPool) -> int:
        """Let the pool finish; gives 0, or the exit code of a stop that was asked for again meanwhile."""
        timeout = self.settings.pool.drain_timeout
        logs.announce(
            log, "stopping", f"draining: running tasks may finish (up to {timeout:.0f} s); again to stop at once"
        )
        pool.drain()
        give_up = self._clock.monotonic() + timeout + AFTER_DRAIN
        code = 0
        self._said_at = self._clock.monotonic()
        while pool.alive:
            self._say_what_runs()
            try:
                left = give_up - self._clock.monotonic()
                event = self._events.get(timeout=min(max(0.0, left), SIGNAL_WAIT))
            except queue.Empty:
                if left <= 0:
                    break
                continue
            if event.kind == "signal":
                logs.announce(log, "stopping_hard", "stopping at once: running tasks are broken off and go back")
                code = 128 + int(event.value)
                pool.hurry()
                give_up = min(give_up, self._clock.monotonic() + HARD_STOP)
            elif event.kind == "failure":
                return self._say_failure(event.value)
            else:
                break
        pool.kill()
        return code

    def _say_what_runs(self) -> None:
        """Say every few seconds what a drain waits for."""
        now = self._clock.monotonic()
        if self._queue is not None and now - self._said_at >= SAY_WHAT_RUNS:
            running = sum(found["running"] for found in self._queue.snapshot()["queues"])
            logs.announce(log, "stopping", f"draining: still running {counted(running, 'task')}")
            self._said_at = now

    # -- what happens, from threads and signal handlers

    def _on_failure(self, error: BaseException) -> None:
        self._events.put(Event("failure", error))

    def _on_pool_exit(self, code: int) -> None:
        self._events.put(Event("pool", code))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 2:  # asked three times: whatever hangs, go
            os._exit(128 + number)
        self._events.put(Event("signal", number))

    @contextmanager
    def _signals_caught(self) -> Iterator[None]:
        """Turn signals into events. One that is ignored on purpose (``nohup``, background jobs of a shell) stays so."""
        wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.getsignal(number) for number in wanted}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
