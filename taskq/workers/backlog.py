"""The tasks that a worker process has taken in and not finished, and how many more it should reserve.

Task threads take no lock of ours. How much is under way is one counter minus the sum of others, each written by one
thread only. The reserving thread, when it wants nothing, raises the flag ``_hungry``, looks once more, and waits; who
makes room takes the flag down and wakes it. A lost race costs one wake-up too many, never one too few.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence, Sized
from typing import NamedTuple

from taskq.service import MAX_BATCH
from taskq.shapes import Handout
from taskq.threads import simple_queue

FAST_SECONDS = 0.0005
"""Types with a mean run time under this are reserved ahead."""
EXTRA = 512
"""How many tasks of fast types may wait here."""
BRISK_SECONDS = 0.020
"""Types with a mean run time under this, where there are no faster ones, are reserved ahead too, one for each thread:
else the way to the manager and back would be a good part of their time."""

_SMOOTHING = 0.2


class Wanted(NamedTuple):
    """How much to reserve: ``slots`` tasks of any type, ``extra`` more of the types ``fast``."""

    slots: int
    extra: int
    fast: Sequence[str]


class Backlog:
    """For one reserving thread and ``threads`` task threads. See the module's text.

    ``held``: all that this process has, outcomes that are not delivered included. One attach must be able to tell the
    manager all of it, so nothing is wanted beyond `MAX_BATCH`.
    """

    def __init__(self, threads: int, held: Sized) -> None:
        self._threads = threads
        self._held = held
        self._tasks: queue.SimpleQueue[Handout | None] = simple_queue()
        self._received = 0
        self._settled = [0] * (threads + 1)  # the last one counts what was given back
        self._run_times: dict[str, float] = {}
        self._ahead = False
        self._low = 0
        self._hungry = False
        self._wake: queue.SimpleQueue[None] = simple_queue()
        self.take = self._tasks.get
        """Called by task threads: the next task, None at the end."""

    @property
    def under_way(self) -> int:
        """How many tasks have come in and are neither finished nor given back."""
        return self._received - sum(self._settled)

    # -- for task threads

    def settle(self, slot: int) -> None:
        """Thread ``slot`` is through with a task."""
        self._settled[slot] += 1
        if self._hungry and self._tasks.qsize() <= self._low:
            self._hungry = False
            self._wake.put(None)

    def note_run_time(self, type: str, seconds: float) -> None:
        """Take a run into the recent mean of its type; that now and then one of two at once is lost does no harm."""
        before = self._run_times.get(type, seconds)
        self._run_times[type] = before + _SMOOTHING * (seconds - before)

    # -- for the reserving thread

    def add(self, handouts: Sequence[Handout], asked: Wanted) -> None:
        """What a reserve of ``asked`` brought. Reserving ahead goes on as long as there is enough of it."""
        self._received += len(handouts)
        for handout in handouts:
            self._tasks.put(handout)
        self._ahead = len(handouts) > asked.slots if asked.slots else len(handouts) >= asked.extra

    def wanted(self) -> Wanted:
        """What to reserve now."""
        slots = max(0, self._threads - self.under_way)
        fast, most = self._to_be_ahead_of()
        waiting = self._tasks.qsize()
        ahead = bool(fast) and self._ahead
        self._low = most // 2 if ahead else 0
        extra = most - waiting if fast and (slots or (ahead and waiting <= self._low)) else 0
        room = MAX_BATCH - len(self._held)
        slots = max(0, min(slots, room))
        return Wanted(slots, max(0, min(extra, room - slots)), fast)

    def _to_be_ahead_of(self) -> tuple[Sequence[str], int]:
        """The types that are reserved ahead, and how many of their tasks may wait here."""
        run_times = list(self._run_times.items())
        fast = [name for name, seconds in run_times if seconds < FAST_SECONDS]
        if fast:
            return fast, EXTRA
        return [name for name, seconds in run_times if seconds < BRISK_SECONDS], self._threads

    def wait(self, timeout: float) -> bool:
        """Wait until there may be something to reserve for. False: nothing changed for ``timeout`` seconds."""
        self._hungry = True
        try:
            wanted = self.wanted()
            if not wanted.slots and not wanted.extra:
                self._wake.get(timeout=timeout)
        except queue.Empty:
            return False
        finally:
            self._hungry = False
        return True

    def take_back(self) -> Iterator[Handout]:
        """Remove what no thread has taken yet; a thread that is through with it need not say so."""
        while True:
            try:
                handout = self._tasks.get_nowait()
            except queue.Empty:
                return
            if handout is not None:
                self._settled[-1] += 1
                yield handout

    def close(self) -> None:
        """Let each task thread end after the task that it runs."""
        for _ in range(self._threads):
            self._tasks.put(None)

    # -- for anybody

    def delivered(self) -> None:
        """Fewer are held now."""
        if self._hungry:
            self._hungry = False
            self._wake.put(None)

    def wake(self) -> None:
        """End `wait`. Safe in a signal handler."""
        self._wake.put(None)

    def sleep(self, timeout: float) -> bool:
        """Wait for `wake`; False after ``timeout`` seconds."""
        try:
            self._wake.get(timeout=timeout)
        except queue.Empty:
            return False
        return True
