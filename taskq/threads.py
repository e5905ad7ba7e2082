"""The only place where locks, conditions, events, queues and threads come from.

Theory of operation. What waits is made here and nowhere else, as the time comes from `taskq.clock` only. By default it
is just what `threading` and `queue` have: a thing made here costs one call more than before, its use nothing. A
simulation puts others in their place with `use`, before anything is made: threads that take turns in one, waits that a
virtual clock ends, in an order that a seed draws. So it plays through the very code that runs in earnest.
"""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, cast


class Lock(Protocol):
    """As `threading.Lock`."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it; gives whether that was possible in time."""

    def release(self) -> None:
        """Give it back."""

    def __enter__(self) -> bool: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Condition(Lock, Protocol):
    """As `threading.Condition`."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for `notify`, at most ``timeout`` seconds."""

    def notify(self, n: int = 1) -> None:
        """Wake one who waits, or ``n``."""

    def notify_all(self) -> None:
        """Wake all who wait."""


class Event(Protocol):
    """As `threading.Event`."""

    def is_set(self) -> bool:
        """Whether it has happened."""

    def set(self) -> None:
        """It happens."""

    def clear(self) -> None:
        """It has not happened."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it happens, at most ``timeout`` seconds."""


class Thread(Protocol):
    """As `threading.Thread`."""

    def start(self) -> None:
        """Let it run. Raises `RuntimeError` when the system has no room for it."""

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, at most ``timeout`` seconds."""

    def is_alive(self) -> bool:
        """Whether it runs."""


class Threads(Protocol):
    """What makes all of these."""

    def lock(self) -> Lock:
        """A lock that is free."""

    def condition(self, lock: Lock | None) -> Condition:
        """A condition with this lock, or one of its own."""

    def event(self) -> Event:
        """An event that has not happened."""

    def queue(self) -> queue.SimpleQueue[Any]:
        """An empty queue."""

    def thread(self, target: Callable[..., object], name: str, *args: object) -> Thread:
        """A thread that is not started and keeps no process alive."""

    def current(self) -> object:
        """The thread that calls."""

    def ident(self) -> int:
        """A number of the thread that calls."""

    def interrupt(self, ident: int, exception: type[BaseException] | None) -> None:
        """Ask for ``exception`` in that thread at its next step of Python code; None withdraws what is under way."""


class SystemThreads:
    """Those of the system."""

    lock = staticmethod(threading.Lock)
    event = staticmethod(threading.Event)
    queue: Callable[[], queue.SimpleQueue[Any]] = staticmethod(queue.SimpleQueue)
    current = staticmethod(threading.current_thread)
    ident = staticmethod(threading.get_ident)

    def condition(self, lock: Lock | None) -> Condition:
        """See `Threads.condition`."""
        return threading.Condition(cast("threading.Lock | None", lock))

    def thread(self, target: Callable[..., object], name: str, *args: object) -> Thread:
        """See `Threads.thread`."""
        return threading.Thread(target=target, args=args, name=name, daemon=True)

    def interrupt(self, ident: int, exception: type[BaseException] | None) -> None:
        """See `Threads.interrupt`."""
        asked = None if exception is None else ctypes.py_object(exception)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), asked)


SYSTEM: Threads = SystemThreads()
_now: Threads = SYSTEM


def use(threads: Threads) -> Threads:
    """From now on these make everything; gives those that did before. What was made before stays as it is."""
    global _now
    before, _now = _now, threads
    return before


def lock() -> Lock:
    """A lock that is free."""
    return _now.lock()


def condition(lock: Lock | None = None) -> Condition:
    """A condition with this lock, or one of its own."""
    return _now.condition(lock)


def event() -> Event:
    """An event that has not happened."""
    return _now.event()


def simple_queue() -> queue.SimpleQueue[Any]:
    """An empty queue."""
    return _now.queue()


def new_thread(target: Callable[..., object], name: str, *args: object) -> Thread:
    """A thread that is not started and keeps no process alive."""
    return _now.thread(target, name, *args)


def start_thread(target: Callable[..., object], name: str, *args: object) -> Thread:
    """A thread that runs. Raises `RuntimeError` when the system has no room for it.

    Who keeps what this gives, and only that, never waits for a thread that was not started, and may try again.
    """
    thread = new_thread(target, name, *args)
    thread.start()
    return thread


def current() -> object:
    """The thread that calls."""
    return _now.current()


def ident() -> int:
    """A number of the thread that calls."""
    return _now.ident()


def interrupt(ident: int, exception: type[BaseException] | None) -> None:
    """Ask for ``exception`` in that thread at its next step of Python code; None withdraws what is under way."""
    _now.interrupt(ident, exception)
