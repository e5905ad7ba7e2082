"""News of a client's own tasks: one background thread with a connection of its own, started when first needed.

Theory of operation. The manager keeps a bounded feed of outcomes for each client that asks for one. The thread takes
them by long poll and settles the slots (handles) that wait for them. Three things must not get lost:

* A task may finish before the reply to its own submit has been read. Such news, of an id higher than all that were
  known when the oldest submit under way began (its *floor*), is kept unclaimed until that submit registers its slots.
* The feed knows nothing of what finished before it existed, and drops news when the client is slow: then its reply says
  ``lagged``, and the thread asks by id for all slots that are open. A submit under way at that moment is told to ask
  for its own (`Feed.register` gives True).
* After a lost connection the next manager's feed is a new one, hence lagged: a restart needs no further care.

Slots are held weakly: who drops a handle is not told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakValueDictionary

from taskq import threads
from taskq.callbacks import Callback, Callbacks
from taskq.clock import Clock, SystemClock
from taskq.errors import StoreChanged, TaskqError
from taskq.pauses import Pauses
from taskq.queue.task import FINAL
from taskq.reconnecting import PASSING, Reconnecting, closed
from taskq.service import MAX_BATCH, MAX_WAIT, Connection
from taskq.shapes import Hello, Outcome

SETTLED = frozenset(state.label for state in FINAL) | {"unknown"}
"""States of an outcome after which there is no further news."""


class Slot:
    """A place for the outcome of one task. ``store``: the store that gave the id.

    ``own``: the task is this client's, so that the feed tells of it. Until it is submitted it has no id and no store.
    """

    __slots__ = ("__weakref__", "_id", "outcome", "own", "store")

    def __init__(self, id: int | None, store: int, own: bool) -> None:
        self._id = id
        self.store = store
        self.own = own
        self.outcome: Outcome | None = None

    @property
    def id(self) -> int:
        """The task's id. Raises `TaskqError` for one of a `Pipeline` that is not known to be on disk."""
        if self._id is None:
            raise TaskqError(
                "this task has no id: it is not known to be accepted",
                hint="leave the block of its pipeline first; if that raises an error, the task was not confirmed",
            )
        return self._id

    def accepted(self, id: int, store: int, own: bool) -> None:
        """The manager gave the task its id. Not ``own``: another submit with its key, or of its like, came before."""
        self._id = id
        self.store = store
        self.own = own


class Ticket:
    """A submit call under way. ``floor``: the highest id that was known when it began."""

    __slots__ = ("floor", "lags")

    def __init__(self, floor: int, lags: int) -> None:
        self.floor = floor
        self.lags = lags


class Watch:
    """Slots whose settling somebody wants to hear of, in the order in which it happens."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.open = {slot.id: slot for slot in slots}
        self.ready: deque[Slot] = deque()


class Feed:
    """The results feed of one client (``client``: its number), over connections that ``connect`` makes."""

    def __init__(self, client: int, connect: Callable[[], Connection], clock: Clock | None = None) -> None:
        self.client = client
        self._clock = clock or SystemClock()
        self._manager = Reconnecting(connect, self.meet, client, self._clock)
        self._changed = threads.condition()
        self._open: WeakValueDictionary[int, Slot] = WeakValueDictionary()
        self._unclaimed: dict[int, Outcome] = {}
        self._tickets: set[Ticket] = set()
        self._top = 0
        self._lags = 0
        self._watches: list[Watch] = []
        self.callbacks = Callbacks()
        self._thread: threads.Thread | None = None
        self._error: TaskqError | None = None
        self._closed = threads.event()
        self.store = 0

    # -- submitting

    @contextmanager
    def submitting(self) -> Iterator[Ticket]:
        """Around a submit call, and the registering of what it gave."""
        with self._changed:
            ticket = Ticket(self._top, self._lags)
            self._tickets.add(ticket)
        try:
            yield ticket
        finally:
            with self._changed:
                self._tickets.discard(ticket)
                if self._unclaimed:
                    floor = min((other.floor for other in self._tickets), default=self._top)
                    self._unclaimed = {id: news for id, news in self._unclaimed.items() if id > floor}

    def register(self, ticket: Ticket, slots: Sequence[Slot]) -> bool:
        """Take in the slots of one submit; True: news of them may be lost, ask for them by id."""
        with self._changed:
            if slots and slots[0].store != self.store:
                return False  # the manager got another store meanwhile; `check` tells whoever waits
            self._open.update((slot.id, slot) for slot in slots)
            self._top = max(self._top, max((slot.id for slot in slots), default=0))
            if self._unclaimed:
                news = [self._unclaimed.pop(slot.id) for slot in slots if slot.id in self._unclaimed]
                self._settle(news)
            return ticket.lags != self._lags

    def known(self, id: int) -> Slot | None:
        """The open slot of this task, if it is this client's own and somebody still holds it."""
        return self._open.get(id)

    # -- hearing

    def wait(self, slot: Slot, timeout: float | None) -> Outcome | None:
        """The outcome of an own task; None when ``timeout`` seconds have passed."""
        self._start()
        end = None if timeout is None else self._clock.monotonic() + timeout
        with self._changed:
            while slot.outcome is None:
                self.check(slot)
                left = None if end is None else end - self._clock.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)
            return slot.outcome

    def call_back(self, slot: Slot, callback: Callback) -> bool:
        """Call this when the own slot settles; False: it has already, and nothing is called."""
        self._start()
        with self._changed:
            if slot.outcome is not None:
                return False
            self.check(slot)
            self.callbacks.add(slot, callback)
            return True

    def watch(self, slots: Sequence[Slot]) -> Watch:
        """Begin to collect these own slots as they settle; give it to `unwatch` in the end."""
        self._start()
        watch = Watch(slots)
        with self._changed:
            for slot in slots:
                if slot.outcome is not None:
                    watch.ready.append(watch.open.pop(slot.id))
            self._watches.append(watch)
        return watch

    def unwatch(self, watch: Watch) -> None:
        """End a watch."""
        with self._changed:
            self._watches.remove(watch)

    def next(self, watch: Watch, timeout: float | None) -> list[Slot]:
        """The slots that have settled since the last time, at least one; empty when ``timeout`` seconds have passed."""
        end = None if timeout is None else self._clock.monotonic() + timeout
        with self._changed:
            while not watch.ready:
                for slot in watch.open.values():
                    self.check(slot)
                    break  # all of them are of one client: what is wrong with one is wrong with all
                left = None if end is None else end - self._clock.monotonic()
                if left is not None and left <= 0:
                    return []
                self._changed.wait(left)
            ready = list(watch.ready)
            watch.ready.clear()
            return ready

    def check(self, slot: Slot) -> None:
        """Raise what makes waiting for this slot useless."""
        if slot.store != self.store:
            raise StoreChanged(f"the manager has another store now: it does not know task {slot.id}")
        if self._error is not None:
            raise self._error
        if self._closed.is_set():
            raise closed()

    def settle(self, news: Sequence[Outcome]) -> None:
        """Take in outcomes, from wherever they come; those that are not final are ignored."""
        with self._changed:
            self._settle(news)

    def meet(self, hello: Hello) -> None:
        """A connection was made to a manager that says this of itself."""
        store = hello["store_id"]
        with self._changed:
            if store != self.store:
                self.store = store
                self._top = 0
                self._open.clear()
                self._unclaimed.clear()
                for ticket in self._tickets:
                    ticket.floor = 0
                for slot in self.callbacks.waiting():
                    self.callbacks.settled(slot)  # there will be no news: whoever reads the result hears why
                self._changed.notify_all()

    def end(self) -> None:
        """Let the thread end soon, and everybody who waits; does not wait itself."""
        self._closed.set()
        self.callbacks.end()
        self._manager.close()
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread and everybody who waits."""
        self.end()
        if self._thread is not None and self._thread is not threads.current():
            self._thread.join()

    # -- the thread

    def _start(self) -> None:
        with self._changed:
            if self._thread is None and not self._closed.is_set():
                self._thread = threads.start_thread(self._run, "taskq-results")

    def _run(self) -> None:
        cursor, pauses = 0, Pauses(self.client)
        timeout = 0.0  # the first poll of a manager begins its feed; what was before is asked for by id
        while not self._closed.is_set():
            try:
                cursor = self._take(cursor, timeout)
                timeout = MAX_WAIT
                pauses.reset()
            except PASSING:
                timeout = 0.0
                self._closed.wait(pauses.next())
            except TaskqError as error:
                self._fail(error)
            except Exception as error:  # the loop's body: nobody may wait for a thread that has died
                self._fail(TaskqError(f"the results feed ended: {type(error).__name__}: {error}"))

    def _take(self, cursor: int, timeout: float) -> int:
        """One poll; gives the next cursor."""
        reply = self._manager.call(lambda queue: queue.finished(self.client, cursor, timeout), 0.0)
        if reply.lagged or timeout == 0:
            with self._changed:
                self._lags += 1
                ids = sorted(self._open.keys())
            for start in range(0, len(ids), MAX_BATCH):
                self.settle(self._ask(ids[start : start + MAX_BATCH]))
        self.settle(reply.outcomes)
        return reply.cursor

    def _ask(self, ids: Sequence[int]) -> Sequence[Outcome]:
        return self._manager.call(lambda queue: queue.wait(ids, 0.0), 0.0)

    def _fail(self, error: TaskqError) -> None:
        with self._changed:
            if not self._closed.is_set():
                self._error = error
            self._closed.set()
            for slot in self.callbacks.waiting():
                self.callbacks.settled(slot)
            self._changed.notify_all()

    def _settle(self, news: Sequence[Outcome]) -> None:
        floor = min((ticket.floor for ticket in self._tickets), default=None)
        for outcome in news:
            if outcome.state not in SETTLED:
                continue
            slot = self._open.pop(outcome.id, None)
            if slot is None:
                if floor is not None and outcome.id > floor:
                    self._unclaimed[outcome.id] = outcome
                continue
            slot.outcome = outcome
            if self.callbacks:
                self.callbacks.settled(slot)
            for watch in self._watches:
                if watch.open.pop(outcome.id, None) is not None:
                    watch.ready.append(slot)
        if news:
            self._changed.notify_all()
