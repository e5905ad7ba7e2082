"""Handles: the outcome of a task as its submitter sees it, in the manner of `concurrent.futures`."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Generic, NamedTuple, TypeVar, cast

from taskq import threads
from taskq.callbacks import Others, call
from taskq.clock import Clock, SystemClock
from taskq.errors import BadArguments, ResultExpired, TaskCancelled, TaskFailed, TaskNotFound, TaskqError
from taskq.feed import SETTLED, Feed, Slot
from taskq.reconnecting import PASSING, Reconnecting, closed
from taskq.service import MAX_BATCH, MAX_WAIT, Connection
from taskq.shapes import Outcome
from taskq.wire.codec import decode

R = TypeVar("R")

FOREVER = float("inf")
RETURN_WHEN = ("ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION")
"""When `Client.wait` returns: the constants of `concurrent.futures`, which are slow to import."""


class RemoteTraceback(Exception):
    """The traceback of a failed task, as text from its worker: the cause of a `TaskFailed`."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


class TaskHandle(Slot, Generic[R]):
    """A submitted task. Forgetting a handle changes nothing for the task."""

    __slots__ = ("_results",)

    def __init__(self, results: Results, id: int | None, store: int, own: bool) -> None:
        super().__init__(id, store, own)
        self._results = results

    def __repr__(self) -> str:
        return f"<TaskHandle {self._id or 'without id'}{' ' + self.outcome.state if self.outcome else ''}>"

    def is_of(self, results: Results) -> bool:
        """Whether the feed behind these results tells of the task."""
        return self.own and self._results is results

    @property
    def existing(self) -> bool:
        """Whether the task was there before: the submit found it by its key or as its twin (see `Unique`), or the
        handle was made from an id."""
        return not self.own

    def state(self) -> str:
        """The task's state now: ``pending``, ``scheduled``, ``running``, ``completed``, ``failed``, ``cancelled``.

        Raises `TaskNotFound`, and as all methods here `StoreChanged` and the errors of the way to the manager.
        """
        return self._results.state(self)

    def done(self) -> bool:
        """Whether the task is completed, failed or cancelled. Raises `TaskNotFound`."""
        return self.state() in SETTLED

    def cancel(self) -> bool:
        """Cancel the task; True when it is cancelled.

        False: it is final already; or it runs, and is stopped within seconds (`state` and `result` tell whether it was
        done before that). Raises `TaskNotFound`.
        """
        return self._results.cancel(self)

    def result(self, timeout: float | None = None) -> R:
        """What the task's function returned; waits for it up to ``timeout`` seconds, None = without limit.

        Raises `TaskFailed` (its cause shows the traceback of the worker), `TaskCancelled`, `TimeoutError`,
        `TaskNotFound`, `ResultExpired`. Reading a result does not consume it.
        """
        outcome = self._results.outcome(self, timeout)
        if outcome.state == "failed":
            raise failure(outcome) from cause(outcome)
        return cast(R, decode(self._results.value(self)))

    def exception(self, timeout: float | None = None) -> TaskFailed | None:
        """The error of a failed task, None for a completed one; waits and raises as `result` does."""
        outcome = self._results.outcome(self, timeout)
        if outcome.state != "failed":
            return None
        error = failure(outcome)
        error.__cause__ = cause(outcome)
        return error

    def add_done_callback(self, callback: Callable[[TaskHandle[R]], object]) -> None:
        """Call ``callback(handle)`` when the task is completed, failed or cancelled; at once, here, if it is already.

        Otherwise in a thread of the client's, one after the other; an exception is logged and ends nothing. When the
        manager turns out to have another store, it is called too, and `result` says so; never after the client is
        closed. Raises as `result` does.
        """
        self._results.call_back(self, callback)


class Waited(NamedTuple):
    """What `Client.wait` gives: the tasks that have finished, and the others."""

    done: set[TaskHandle[Any]]
    not_done: set[TaskHandle[Any]]


def failure(outcome: Outcome) -> TaskFailed:
    """The error that a failed task's outcome stands for."""
    kind, type_name, message, text = outcome.error or ("error", "", "unknown", "")
    attempts = outcome.failures + outcome.deaths
    said = f"task {outcome.id} failed"
    if attempts:
        said += f" after {attempts} attempt{'s' if attempts > 1 else ''}"
    if outcome.worker:
        said += f" on {outcome.worker}"
    what = ": ".join(part for part in (type_name, message) if part) or kind
    return TaskFailed(
        f"{said}: {what}",
        details={
            "id": outcome.id,
            "kind": kind,
            "type": type_name,
            "message": message,
            "traceback": text,
            "failures": outcome.failures,
            "deaths": outcome.deaths,
            "worker": outcome.worker,
        },
    )


def cause(outcome: Outcome) -> RemoteTraceback | None:
    """The worker's traceback as the cause of the error, if there is one."""
    return RemoteTraceback(outcome.error[3]) if outcome.error and outcome.error[3] else None


class Results:
    """Where handles get their news: the feed for a client's own tasks, questions by id for all others.

    ``manager`` is the connection for short calls, repeated for ``patience`` seconds; threads that wait by id have
    further ones, which ``connect`` makes. To forget the client and all of its handles closes them all.
    """

    def __init__(
        self,
        feed: Feed,
        manager: Reconnecting,
        connect: Callable[[], Connection],
        patience: float,
        clock: Clock | None = None,
    ) -> None:
        self._feed = feed
        self._manager = manager
        self._connect = connect
        self._patience = patience
        self._clock = clock or SystemClock()
        self._lock = threads.lock()
        self._idle: list[Reconnecting] = []
        self._used: set[Reconnecting] = set()
        self._closed = False
        self._disowned = False
        self._others = Others(feed.callbacks)
        self._forgotten = weakref.finalize(self, _forget, feed, manager, self._idle)
        self._forgotten.atexit = False

    # -- one task

    def state(self, slot: Slot) -> str:
        """The label of the task's state now. Raises `TaskNotFound`."""
        if slot.outcome is None:
            self._refuse_unusable(slot)
            (outcome,) = self.ask([slot])
            if outcome.state not in SETTLED:
                return outcome.state
            self._settle(slot, outcome)
        return _found(slot).state

    def cancel(self, slot: Slot) -> bool:
        """Cancel the task; True when it will not run. Raises `TaskNotFound`."""
        self._refuse_unusable(slot)
        (state,) = self._manager.call(lambda queue: queue.cancel([slot.id]), self._patience)
        self._check(slot)
        if state == "unknown":
            raise TaskNotFound(f"there is no task {slot.id}")
        return state == "cancelled"

    def outcome(self, slot: Slot, timeout: float | None) -> Outcome:
        """The outcome of a completed or failed task; waits for it. Raises what `TaskHandle.result` says."""
        if slot.outcome is None:
            self._refuse_unusable(slot)
            settled = self._feed.wait(slot, timeout) if slot.own else self.wait_any([slot], timeout)
            if not settled:
                raise TimeoutError(f"task {slot.id} has not finished within {timeout:g} s")
        outcome = _found(slot)
        if outcome.state == "cancelled":
            raise TaskCancelled(f"task {slot.id} was cancelled")
        return outcome

    def value(self, slot: Slot) -> bytes:
        """The encoded result of a completed task, fetched if it was too large for the news. Raises `ResultExpired`."""
        outcome = _found(slot)
        if outcome.result is None:
            self._refuse_unusable(slot)
            with suppress(TaskNotFound):  # it was purged since: the same as a result that is gone
                outcome = self._manager.call(lambda queue: queue.result(slot.id), self._patience)
            self._check(slot)
            if outcome.result is None:
                raise ResultExpired(f"the result of task {slot.id} is no longer kept")
            slot.outcome = outcome
        return outcome.result

    # -- many

    def ask(self, slots: Sequence[Slot]) -> list[Outcome]:
        """What each of these tasks is now, final or not."""
        outcomes: list[Outcome] = []
        for part in _parts(slots):
            outcomes += _wait(self._manager, part, 0.0, self._patience)
        for slot in slots:
            self._check(slot)
        return outcomes

    def wait_any(self, slots: Sequence[Slot], timeout: float | None) -> list[Slot]:
        """Wait by id until some of these have settled, and give them; empty when ``timeout`` seconds have passed."""
        end = FOREVER if timeout is None else self._clock.monotonic() + timeout
        parts = _parts(slots)
        longest = MAX_WAIT if len(parts) == 1 else 0.2
        with self._borrowed() as manager:
            while True:
                settled: list[Slot] = []
                for part in parts:
                    left = max(0.0, end - self._clock.monotonic())
                    try:
                        outcomes = _wait(manager, part, 0.0 if settled else min(left, longest), left)
                    except PASSING:
                        if self._closed:
                            raise closed() from None
                        continue  # the time is over, which the caller hears in its own words
                    news = {outcome.id: outcome for outcome in outcomes if outcome.state in SETTLED}
                    for slot in part:
                        self._check(slot)
                        if slot.id in news:
                            self._settle(slot, news[slot.id])
                            settled.append(slot)
                if settled or self._clock.monotonic() >= end:
                    return settled

    def as_completed(self, handles: Iterable[TaskHandle[R]], timeout: float | None) -> Iterator[TaskHandle[R]]:
        """Yield handles as they settle. Raises `TimeoutError` when ``timeout`` seconds have passed in all."""
        end = FOREVER if timeout is None else self._clock.monotonic() + timeout
        wanted = {handle: None for handle in handles}
        waiting: dict[Slot, TaskHandle[R]] = {handle: handle for handle in wanted if handle.outcome is None}
        yield from [handle for handle in wanted if handle.outcome is not None]
        by_feed = bool(waiting) and all(handle.is_of(self) for handle in waiting.values())
        watch = self._feed.watch(list(waiting)) if by_feed else None
        try:
            while waiting:
                left = None if timeout is None else max(0.0, end - self._clock.monotonic())
                ready: Sequence[Slot] = self._feed.next(watch, left) if watch else self.wait_any(list(waiting), left)
                if not ready:
                    raise TimeoutError(f"{len(waiting)} of {len(wanted)} tasks have not finished in {timeout:g} s")
                for slot in ready:
                    yield waiting.pop(slot)
        finally:
            if watch is not None:
                self._feed.unwatch(watch)

    def wait(self, handles: Iterable[TaskHandle[Any]], timeout: float | None, return_when: str) -> Waited:
        """See `Client.wait`."""
        if return_when not in RETURN_WHEN:
            raise BadArguments(f"return_when is one of {', '.join(RETURN_WHEN)}, not {return_when!r}")
        wanted = set(handles)
        waiting = [handle for handle in wanted if handle.outcome is None]
        if waiting and timeout is not None and timeout <= 0:
            for handle, outcome in zip(waiting, self.ask(waiting), strict=True):
                if outcome.state in SETTLED:
                    self._settle(handle, outcome)
        with suppress(TimeoutError):
            for handle in self.as_completed(wanted, timeout):
                if return_when == "FIRST_COMPLETED" or (return_when == "FIRST_EXCEPTION" and _is_error(handle)):
                    break
        done = {handle for handle in wanted if handle.outcome is not None}
        return Waited(done, wanted - done)

    def call_back(self, handle: TaskHandle[R], callback: Callable[[TaskHandle[R]], object]) -> None:
        """See `TaskHandle.add_done_callback`."""
        self._refuse_unusable(handle)
        if handle.outcome is None and not handle.own:
            if self._closed:
                raise closed()
            self._others.add(handle, callback, self.wait_any)
        elif handle.outcome is not None or not self._feed.call_back(handle, callback):
            call(handle, callback)

    def close(self) -> None:
        """Close the connections that were opened to wait by id."""
        self._feed.callbacks.end()
        with self._lock:
            self._closed = True
            opened = [*self._idle, *self._used]
            self._idle.clear()
        for manager in opened:
            manager.close()

    def disown(self) -> None:
        """This process was forked from the one that made the handles: their news go there."""
        self._disowned = True
        self._forgotten.detach()  # it would end the parent's connections

    def _refuse_unusable(self, slot: Slot) -> None:
        """Raise for the handle of a task that is not accepted yet, or of the process that this one was forked from."""
        if self._disowned:
            raise TaskqError(
                "this handle was made before this process was forked", hint="Client.handle(id) makes one of its own"
            )
        slot.id  # noqa: B018  (raises where there is none)

    @contextmanager
    def _borrowed(self) -> Iterator[Reconnecting]:
        with self._lock:
            if self._closed:
                raise closed()
            manager = self._idle.pop() if self._idle else self._open()
            self._used.add(manager)
        try:
            yield manager
        finally:
            with self._lock:
                self._used.discard(manager)
                if not self._closed:
                    self._idle.append(manager)

    def _open(self) -> Reconnecting:
        return Reconnecting(self._connect, self._feed.meet, self._feed.client, self._clock)

    def _check(self, slot: Slot) -> None:
        if not slot.store:
            slot.store = self._feed.store
        self._feed.check(slot)

    def _settle(self, slot: Slot, outcome: Outcome) -> None:
        slot.outcome = outcome
        if slot.own:
            self._feed.settle([outcome])


def _forget(feed: Feed, manager: Reconnecting, idle: list[Reconnecting]) -> None:
    """There is neither a client nor a handle any more. None of these refers to them, so that this comes at once."""
    feed.end()
    for connection in (manager, *idle):
        connection.close()


def _parts(slots: Sequence[Slot]) -> list[Sequence[Slot]]:
    return [slots[start : start + MAX_BATCH] for start in range(0, len(slots), MAX_BATCH)]


def _wait(manager: Reconnecting, slots: Sequence[Slot], timeout: float, patience: float) -> Sequence[Outcome]:
    ids = [slot.id for slot in slots]
    return manager.call(lambda queue: queue.wait(ids, timeout), patience, first_too=True)


def _is_error(slot: Slot) -> bool:
    return slot.outcome is not None and slot.outcome.state in ("failed", "unknown")


def _found(slot: Slot) -> Outcome:
    """The outcome of a slot that has one. Raises `TaskNotFound`."""
    assert slot.outcome is not None
    if slot.outcome.state == "unknown":
        raise TaskNotFound(f"there is no task {slot.id}")
    return slot.outcome
