"""Raise an exception in a task's thread: `TaskTimeout` when it has run for too long, `TaskCancelled` when asked to.

Theory of operation. One thread waits until the next deadline and then asks the interpreter to raise the exception in
the late thread (`PyThreadState_SetAsyncExc`). That takes effect at the thread's next step of Python code, not inside a
call that blocks in C. The danger is an exception that arrives late, in the *next* task. Therefore a run has one owner,
decided by who takes it out of a dictionary (one atomic step): the task thread, then nothing will ever be raised; or the
watchdog, then the task thread waits until the exception was asked for, and withdraws it if it is still under way. It
may also arrive during that wait: who disarms must expect it. So a run is interrupted once at most.

A thread that may be interrupted takes no lock of ours, which an exception at the wrong moment would leave locked for
ever: what it does is one step of C each, also the wait for the watchdog (a lock that is its own) and the waking of it
(a `SimpleQueue`). Every task has a deadline, most of them an hour away, so the watchdog is woken only for one that
comes before its next look. It says that it looks *at any moment* before it reads the deadlines; thus either it sees a
run that is armed meanwhile, or that thread wakes it.

What does not end by the exception is ended from outside, by the pool's parent (`taskq.workers.overtime`).
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from contextlib import suppress
from math import inf

from taskq import threads
from taskq.errors import TaskCancelled, TaskqError, TaskTimeout


class _Shot:
    """An exception that is being raised. ``done`` is free when the interpreter was asked to."""

    __slots__ = ("done", "exception")

    def __init__(self, exception: type[TaskqError]) -> None:
        self.exception = exception
        self.done = threads.lock()
        self.done.acquire()


class Watchdog:
    """Interrupts threads whose time has come; its own thread starts with the first task."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._armed: dict[int, tuple[float, int]] = {}
        self._cancels: dict[int, float] = {}
        self._shots: dict[int, _Shot] = {}
        self._next = inf
        self._closed = False
        self._wake: queue.SimpleQueue[None] = threads.simple_queue()
        self._starting = threads.lock()
        self._thread: threads.Thread | None = None

    # -- for the thread that runs a task

    def arm(self, run: int, deadline: float) -> None:
        """From now on this run may be interrupted; at ``deadline`` (monotonic seconds) it will be."""
        if self._thread is None:
            self._start()
        self._armed[run] = (deadline, threads.ident())
        if deadline < self._next:
            self._wake.put(None)

    def disarm(self, run: int) -> type[TaskqError] | None:
        """To be called by the thread that armed it; gives the exception that was raised in it, if one was.

        When this has returned, nothing will be raised any more; until then the exception may arrive in here.
        """
        if self._armed.pop(run, None) is not None:
            return None
        shot = self._shots[run]
        shot.done.acquire()
        threads.interrupt(threads.ident(), None)
        return shot.exception

    def forget(self, run: int) -> None:
        """A run that was interrupted is over."""
        self._shots.pop(run, None)

    # -- for anybody else

    def cancel(self, run: int, at: float) -> None:
        """Raise `TaskCancelled` in this run ``at`` this time (monotonic seconds), if it is armed by then and not over.

        It may never be, so whoever arms a run looks himself afterwards whether it is cancelled."""
        if self._thread is None:  # nothing was armed yet, and nobody would ever take this out again
            return
        self._cancels[run] = at
        if at < self._next:
            self._wake.put(None)

    def close(self) -> None:
        """End the thread; nothing is interrupted any more."""
        self._closed = True
        self._wake.put(None)
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threads.start_thread(self._watch, "taskq-watchdog")

    # -- the watchdog's thread

    def _watch(self) -> None:
        while not self._closed:
            self._next = inf
            self._next = coming = self._look(self._monotonic())
            with suppress(queue.Empty):
                self._wake.get(timeout=None if coming == inf else max(0.0, coming - self._monotonic()))

    def _look(self, now: float) -> float:
        """Interrupt what is to be interrupted by ``now``; gives when to look again."""
        armed, cancels = self._armed.copy(), self._cancels.copy()
        coming = inf
        for run, (deadline, thread) in armed.items():
            if deadline <= now:
                self._raise(run, thread, TaskTimeout)
            else:
                coming = min(coming, deadline)
        for run, at in cancels.items():
            if run in armed and at > now:
                coming = min(coming, at)
                continue
            del self._cancels[run]
            if run in armed:
                self._raise(run, armed[run][1], TaskCancelled)
        return coming

    def _raise(self, run: int, thread: int, exception: type[TaskqError]) -> None:
        if run not in self._armed:  # over, or interrupted before
            return
        self._shots[run] = shot = _Shot(exception)  # before the run is taken: its thread will look for it then
        if self._armed.pop(run, None) is None:
            del self._shots[run]
            return
        threads.interrupt(thread, exception)
        shot.done.release()
