"""Calling what somebody wants called when tasks have settled: one thread for a client, started when first needed.

It is not the thread that takes the news: what is called may itself wait for news, or take its time. Tasks of other
clients, of which the feed has no news, are waited for by id (`Others`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from taskq import threads
from taskq.errors import TaskqError

_log = logging.getLogger("taskq.client")

ROUND = 1.0
"""Seconds after which `Others` looks whether there are more handles to wait for."""

Callback = Callable[[Any], object]
"""Takes the handle of the task."""


class Callbacks:
    """What waits to be called, by handle; a handle that something waits for is held until then.

    The methods never wait, so that they may be called with a lock held that the callbacks take too.
    """

    def __init__(self) -> None:
        self._lock = threads.lock()
        self._wanted: dict[Any, list[Callback]] = {}
        self._due: SimpleQueue[tuple[Any, list[Callback]] | None] = SimpleQueue()
        self._thread: threads.Thread | None = None
        self._ended = False

    def __bool__(self) -> bool:
        return bool(self._wanted)

    def waiting(self) -> list[Any]:
        """The handles for which something waits to be called."""
        with self._lock:
            return list(self._wanted)

    def add(self, handle: Any, callback: Callback) -> None:
        """Call this when `settled` tells of the handle. Raises `RuntimeError`: there is no room for a thread."""
        with self._lock:
            if self._ended:
                return
            if self._thread is None:  # here, where somebody hears that it failed: who settles cannot do without
                self._thread = threads.start_thread(_run, "taskq-callbacks", self._due)
            self._wanted.setdefault(handle, []).append(callback)

    def settled(self, handle: Any) -> None:
        """There is no further news of this handle: call what waits for it, in the order in which it was added."""
        with self._lock:
            callbacks = self._wanted.pop(handle, None)
            if callbacks is not None:
                self._due.put((handle, callbacks))

    def end(self) -> None:
        """End the thread after what is due; what still waits, or comes later, is never called."""
        with self._lock:
            self._ended = True
            self._wanted.clear()
            if self._thread is not None:
                self._due.put(None)


class Others:
    """Waits in one thread, by id, for tasks that are not this client's own, as long as there are any."""

    def __init__(self, callbacks: Callbacks) -> None:
        self._callbacks = callbacks
        self._lock = threads.lock()
        self._open: dict[Any, None] = {}
        self._running = False

    def add(self, handle: Any, callback: Callback, wait_any: Callable[[Sequence[Any], float], Sequence[Any]]) -> None:
        """Call this when the handle settles. ``wait_any(handles, seconds)`` gives those that have.

        This object never holds ``wait_any`` while nothing is waited for. Raises `RuntimeError`: there is no room for a
        thread, and nothing will be called.
        """
        with self._lock:
            if not self._running:
                threads.start_thread(self._run, "taskq-others", wait_any)  # its first step waits for our lock
                self._running = True
            self._callbacks.add(handle, callback)
            self._open[handle] = None

    def _run(self, wait_any: Callable[[Sequence[Any], float], Sequence[Any]]) -> None:
        while handles := self._left():
            try:
                settled = wait_any(handles, ROUND)
            except TaskqError:
                settled = handles  # there will be no news: whoever reads the result hears why
            with self._lock:  # first: what is added from here on is asked for once more
                for handle in settled:
                    self._open.pop(handle, None)
            for handle in settled:
                self._callbacks.settled(handle)

    def _left(self) -> list[Any]:
        with self._lock:
            self._running = bool(self._open)
            return list(self._open)


def call(handle: Any, callback: Callback) -> None:
    """Call it here and now; an exception is logged and ends nothing."""
    try:
        callback(handle)
    except Exception:
        _log.exception("a callback of %r failed", handle)


def _run(due: SimpleQueue[tuple[Any, list[Callback]] | None]) -> None:
    while (item := due.get()) is not None:
        handle, callbacks = item
        for callback in callbacks:
            call(handle, callback)
        del item, handle  # until the next one comes, this thread holds no handle
