"""Threads that take turns, and the virtual clock that ends their waits. Which one goes next, the seed says."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from queue import Empty
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

SPIN = 200_000
"""Turns without any time passing after which the system hangs in a loop."""
LEAST = 1e-6
"""Seconds: no timer ends sooner. A remainder too small to move a float clock would else be waited for without end."""


class Process:
    """What crashes and pauses as one: its threads, with the clock of its machine."""

    def __init__(self, world: World, name: str, clock: SimClock) -> None:
        self.world = world
        self.name = name
        self.clock = clock
        self.alive = True
        self.paused = False
        self.threads: dict[SimThread, None] = {}
        self.parked: list[SimThread] = []
        self.channels: dict[Any, None] = {}
        self.at_end: list[Callable[[], None]] = []

    def kill(self) -> None:
        """End it now, wherever its threads are; called by the scheduler only (`World.at`)."""
        if not self.alive:
            return
        self.alive = False
        for thread in list(self.threads):
            self.world.end(thread)
        for channel in list(self.channels):
            channel.shut()
        for call in self.at_end:
            call()

    def pause(self) -> None:
        """None of its threads goes on until `resume`."""
        self.paused = True

    def resume(self) -> None:
        """Go on."""
        self.paused = False
        parked, self.parked = self.parked, []
        for thread in parked:
            self.world.make_ready(thread)


class SimClock:
    """The clocks of one machine: they drift, and the wall clock may be set."""

    def __init__(self, world: World, rate: float, base: float) -> None:
        self._world = world
        self.rate = rate
        self._base = base
        self._apart = self._furthest = 1_700_000_000.0

    def monotonic(self) -> float:
        """Seconds that only rise."""
        return self._base + self._world.now * self.rate

    def wall(self) -> float:
        """Seconds since 1970."""
        return self.monotonic() + self._apart

    def jump(self, seconds: float) -> None:
        """Set the wall clock."""
        self._apart += seconds
        self._furthest = max(self._furthest, self._apart)

    def catch_up(self) -> None:
        """Set the wall clock so far ahead that whatever waits for a date is due."""
        self._apart = self._furthest


class SimThread:
    """A thread of a process."""

    def __init__(self, world: World, process: Process, name: str, target: Callable[..., object], args: Any) -> None:
        self.world, self.process, self.name = world, process, name
        self.ident = world.number()
        self.waits = 0
        self.waiting = self.woken = self.ended = self.interruptible = False
        self.interrupt: type[BaseException] | None = None
        self._joins: list[SimThread] = []
        self.greenlet = greenlet(lambda: self._run(target, args), parent=world.hub)

    def _run(self, target: Callable[..., object], args: Any) -> None:
        try:
            target(*args)
        except GreenletExit:
            pass
        except BaseException as error:
            if self.process.alive:
                self.world.failures.append(f"thread {self.name} of {self.process.name} ended by {error!r}")
        finally:
            self.ended = True
            self.process.threads.pop(self, None)
            for other in self._joins:
                self.world.wake(other)

    def start(self) -> None:
        """Let it run."""
        self.process.threads[self] = None
        self.world.make_ready(self)

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        if not self.ended:
            self._joins.append(self.world.thread())
            self.world.wait(timeout)

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return not self.ended


class World:
    """The scheduler. A *step* is one delivered event; it goes into the trace, whose hash two runs of a seed share."""

    def __init__(self, seed: int, show: bool = False) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.hub = getcurrent()
        self.steps = self.changed_steps = self.turns = 0
        self.failures: list[str] = []
        self.changed = False
        self.yielding = 0.0
        self._show = show
        self._hash = blake2b(digest_size=16)
        self._numbers = 0
        self._heap: list[tuple[float, int, Callable[..., object], Any]] = []
        self._ready: list[SimThread] = []
        self._current: SimThread | None = None

    def number(self) -> int:
        """Another number."""
        self._numbers += 1
        return self._numbers

    def trace(self) -> str:
        """What happened, as a hash."""
        return self._hash.hexdigest()

    def step(self, what: str) -> None:
        """An event is delivered; what changes from here on is of its doing."""
        self.settle()
        self.steps += 1
        line = f"{self.now:.9f} {what}\n"
        self._hash.update(line.encode())
        if self._show:
            print(line, end="")

    def settle(self) -> None:
        """Count whether the last step changed a record."""
        self.changed_steps += self.changed
        self.changed = False

    def at(self, seconds: float, call: Callable[..., object], *args: object) -> None:
        """Call this so many seconds from now, outside of all threads."""
        heapq.heappush(self._heap, (self.now + seconds, self.number(), call, args))

    def spawn(self, process: Process, name: str, target: Callable[..., object], *args: object) -> SimThread:
        """Start a thread of a process."""
        thread = SimThread(self, process, name, target, args)
        thread.start()
        return thread

    def thread(self) -> SimThread:
        """The one whose turn it is."""
        assert self._current is not None
        return self._current

    # -- turns

    def run(self, over: Callable[[], bool]) -> None:
        """Go on until that holds; it is asked before each move of the clock."""
        spins = 0
        while True:
            while self._ready:
                spot = int(self.rng.random() * len(self._ready))
                thread, self._ready[spot] = self._ready[spot], self._ready[-1]
                self._ready.pop()
                if thread.process.paused:
                    thread.process.parked.append(thread)
                elif not thread.ended:
                    self._switch(thread)
                    spins += 1
                    if spins > SPIN:
                        raise AssertionError(f"no time passes: {thread.name} of {thread.process.name}")
            if over():
                return
            at, _, call, args = heapq.heappop(self._heap)
            if at > self.now:
                self.now, spins = at, 0
            call(*args)

    def _switch(self, thread: SimThread) -> None:
        self.turns += 1
        self._current = thread
        thread.greenlet.switch()
        self._current = None

    def end(self, thread: SimThread) -> None:
        """Break a thread off."""
        before, self._current = self._current, thread
        thread.greenlet.throw(GreenletExit)
        thread.ended = True
        self._current = before

    def make_ready(self, thread: SimThread) -> None:
        """It may go on."""
        self._ready.append(thread)

    def alive(self) -> None:
        """Break the calling thread off if its process is gone."""
        if self._current is not None and not self._current.process.alive:
            raise GreenletExit

    def maybe_yield(self) -> None:
        """Now and then another thread is faster."""
        thread = self._current
        if thread is not None and self.yielding and self.rng.random() < self.yielding:
            self.alive()
            self._ready.append(thread)
            self.hub.switch()
            self.alive()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for `wake`, at most ``timeout`` seconds of the caller's clock; gives whether it came."""
        self.alive()
        thread = self.thread()
        thread.waits += 1
        thread.waiting, thread.woken = True, False
        if timeout is not None:
            least = LEAST if timeout > 0 else 0.0
            self.at(max(least, timeout / thread.process.clock.rate), self._time_is_up, thread, thread.waits)
        self.hub.switch()
        self.alive()
        return thread.woken

    def _time_is_up(self, thread: SimThread, waits: int) -> None:
        if thread.waiting and thread.waits == waits:
            thread.waiting = False
            self.make_ready(thread)

    def wake(self, thread: SimThread) -> bool:
        """End its wait; False: it did not wait."""
        if not thread.waiting:
            return False
        thread.waiting, thread.woken = False, True
        self.make_ready(thread)
        return True

    def sleep(self, seconds: float) -> None:
        """Let time pass in a task's code, which may be interrupted."""
        thread = self.thread()
        thread.interruptible = True
        try:
            if thread.interrupt is None:
                self.wait(seconds)
        finally:
            thread.interruptible = False
        if thread.interrupt is not None:
            error, thread.interrupt = thread.interrupt, None
            raise error


class SimLock:
    """As `taskq.threads.Lock`; who waits for it has no claim before those who come later."""

    __slots__ = ("_held", "_waiting", "_world")

    def __init__(self, world: World) -> None:
        self._world = world
        self._held = False
        self._waiting: deque[SimThread] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """See `threading.Lock`."""
        self._world.maybe_yield()
        while self._held:
            if not blocking:
                return False
            self._waiting.append(self._world.thread())
            if not self._world.wait(None if timeout < 0 else timeout) and timeout >= 0:
                return False
        self._world.alive()
        self._held = True
        return True

    def release(self) -> None:
        """See `threading.Lock`."""
        self._held = False
        while self._waiting and not self._world.wake(self._waiting.popleft()):
            pass

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


class SimCondition:
    """As `taskq.threads.Condition`."""

    def __init__(self, world: World, lock: SimLock) -> None:
        self._world = world
        self._lock = lock
        self._waiting: deque[tuple[SimThread, int]] = deque()
        self.acquire, self.release = lock.acquire, lock.release

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """See `threading.Condition`."""
        thread = self._world.thread()
        self._waiting.append((thread, thread.waits + 1))
        self._lock.release()
        try:
            return self._world.wait(timeout)
        finally:
            self._lock.acquire()

    def notify(self, n: int = 1) -> None:
        """See `threading.Condition`."""
        while n > 0 and self._waiting:
            thread, waits = self._waiting.popleft()
            n -= thread.waits == waits and self._world.wake(thread)

    def notify_all(self) -> None:
        """See `threading.Condition`."""
        self.notify(len(self._waiting))


class SimEvent:
    """As `taskq.threads.Event`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._is_set = False
        self._waiting: list[tuple[SimThread, int]] = []

    def is_set(self) -> bool:
        """See `threading.Event`."""
        return self._is_set

    def set(self) -> None:
        """See `threading.Event`."""
        self._is_set = True
        waiting, self._waiting = self._waiting, []
        for thread, waits in waiting:
            if thread.waits == waits:
                self._world.wake(thread)

    def clear(self) -> None:
        """See `threading.Event`."""
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        """See `threading.Event`."""
        if not self._is_set:
            thread = self._world.thread()
            self._waiting = [(one, waits) for one, waits in self._waiting if one.waits == waits and one.waiting]
            self._waiting.append((thread, thread.waits + 1))
            self._world.wait(timeout)
        else:
            self._world.alive()
        return self._is_set


class SimQueue:
    """As `queue.SimpleQueue`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._items: deque[Any] = deque()
        self._waiting: deque[tuple[SimThread, int]] = deque()

    def put(self, item: Any) -> None:
        """See `queue.SimpleQueue`."""
        self._items.append(item)
        while self._waiting:
            thread, waits = self._waiting.popleft()
            if thread.waits == waits and self._world.wake(thread):
                return

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """See `queue.SimpleQueue`."""
        self._world.maybe_yield()
        while not self._items:
            thread = self._world.thread()
            self._waiting.append((thread, thread.waits + 1))
            if not self._world.wait(timeout) and timeout is not None and not self._items:
                raise Empty
        self._world.alive()
        return self._items.popleft()

    def get_nowait(self) -> Any:
        """See `queue.SimpleQueue`."""
        if not self._items:
            raise Empty
        return self._items.popleft()

    def qsize(self) -> int:
        """See `queue.SimpleQueue`."""
        return len(self._items)


class SimThreads:
    """What `taskq.threads.use` gets."""

    def __init__(self, world: World) -> None:
        self._world = world

    def lock(self) -> SimLock:
        """See `taskq.threads.Threads`."""
        return SimLock(self._world)

    def condition(self, lock: SimLock | None) -> SimCondition:
        """See `taskq.threads.Threads`."""
        return SimCondition(self._world, lock or SimLock(self._world))

    def event(self) -> SimEvent:
        """See `taskq.threads.Threads`."""
        return SimEvent(self._world)

    def queue(self) -> SimQueue:
        """See `taskq.threads.Threads`."""
        return SimQueue(self._world)

    def thread(self, target: Callable[..., object], name: str, *args: object) -> SimThread:
        """See `taskq.threads.Threads`."""
        return SimThread(self._world, self._world.thread().process, name, target, args)

    def current(self) -> SimThread:
        """See `taskq.threads.Threads`."""
        return self._world.thread()

    def ident(self) -> int:
        """See `taskq.threads.Threads`."""
        return self._world.thread().ident

    def interrupt(self, ident: int, exception: type[BaseException] | None) -> None:
        """See `taskq.threads.Threads`; it takes effect where a task sleeps."""
        for thread in self._world.thread().process.threads:
            if thread.ident == ident:
                thread.interrupt = exception
                if exception is not None and thread.interruptible:
                    self._world.wake(thread)
