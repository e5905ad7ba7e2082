"""Soft timeouts: raise `TaskTimeout` inside a task thread that has run for too long.

Theory of operation. One thread waits until the next deadline and then asks the interpreter to raise the exception in
the late thread (`PyThreadState_SetAsyncExc`). That takes effect at the thread's next step of Python code, not inside a
call that blocks in C. The danger is an exception that arrives late, in the *next* task. Therefore an alarm has one
owner, decided by who takes it out of a dictionary (one atomic step): the task thread, then nothing will ever be
raised; or the watchdog, then the task thread waits until the exception was asked for, and withdraws it if it is still
under way. It may also arrive during that wait: who disarms must expect it.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable

from taskq.errors import TaskTimeout


class Alarm:
    """One deadline of one thread. ``deadline``: monotonic seconds. ``fired``: the exception was asked for."""

    __slots__ = ("deadline", "fired", "thread")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.thread = threading.get_ident()
        self.fired = threading.Event()


class Watchdog:
    """Interrupts threads that are over their deadline; its own thread starts with the first alarm."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._armed: dict[Alarm, bool] = {}
        self._next = math.inf
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def arm(self, seconds: float) -> Alarm:
        """Raise `TaskTimeout` in the calling thread after ``seconds``, unless it is disarmed before."""
        alarm = Alarm(self._monotonic() + seconds)
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="taskq-watchdog", daemon=True)
                self._thread.start()
            self._armed[alarm] = True
            if alarm.deadline < self._next:
                self._next = alarm.deadline
                self._changed.notify()
        return alarm

    def disarm(self, alarm: Alarm) -> None:
        """To be called by the thread that armed it; when this has returned, nothing will be raised any more.

        Raises `TaskTimeout` itself if the exception arrives just now.
        """
        if not self._armed.pop(alarm, False):
            alarm.fired.wait()
            _set_exception(alarm.thread, None)

    def close(self) -> None:
        """End the thread; what is armed does not fire any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                now = self._monotonic()
                armed = list(self._armed)
                late = [alarm for alarm in armed if alarm.deadline <= now]
                if not late:
                    self._next = min((alarm.deadline for alarm in armed), default=math.inf)
                    self._changed.wait(None if self._next == math.inf else self._next - now)
                    continue
            for alarm in late:
                if self._armed.pop(alarm, False):
                    _set_exception(alarm.thread, TaskTimeout)
                    alarm.fired.set()


def _set_exception(thread: int, exception: type[BaseException] | None) -> None:
    """Ask for ``exception`` in ``thread`` at its next step of Python code; None withdraws what is under way."""
    asked = None if exception is None else ctypes.py_object(exception)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), asked)
