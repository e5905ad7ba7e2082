"""How the news that a task is finished reaches its client: one bounded feed for each client that listens.

A feed begins with the client's first question and ends when it has not asked for a minute. Who falls behind is told so
(``lagged``) and asks by id. News is published only after the commit that holds it. All methods are called with the
queue's lock held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from taskq import threads
from taskq.queue.task import FAILED, State, Task
from taskq.queue.task_row import TaskRow
from taskq.service import INLINE_RESULT, MAX_BATCH, MAX_BATCH_BYTES
from taskq.shapes import Finished, Outcome

KEPT = 10_000
"""Outcomes that a feed holds for a client that is slow to ask."""
KEPT_BYTES = 8 * 1024 * 1024
MAX_REPLY = 1024 * 1024
"""Bytes of results and tracebacks in one reply about many tasks."""
QUIET = 60.0
"""Seconds without a question after which a feed ends."""


def outcome(task: Task | TaskRow, *, whole: bool = False) -> Outcome:
    """What is to be told of a task; a large result, and one whose time will be over, only with ``whole``."""
    result = task.result
    if result is not None and not whole and (len(result) > INLINE_RESULT or task.terms.result_ttl is not None):
        result = None
    state = State(task.state)
    error = task.error if state is FAILED else None
    return Outcome(task.id, state.label, result, error, task.failures, task.deaths, task.worker_name)


def size_of(item: Outcome) -> int:
    """About how many bytes an outcome takes in a reply."""
    return 64 + len(item.result or b"") + sum(map(len, item.error or ()))


def fitting(items: Sequence[Outcome]) -> list[Outcome]:
    """The same outcomes, those beyond `MAX_REPLY` bytes without result and traceback, so that a reply stays small."""
    total = 0
    fit = []
    for item in items:
        total += size_of(item)
        if total > MAX_REPLY:
            item = item._replace(result=None, error=item.error and (*item.error[:3], ""))
        fit.append(item)
    return fit


def unknown(task_id: int) -> Outcome:
    """What is told of a task that is not there."""
    return Outcome(task_id, "unknown", None, None, 0, 0, None)


class _Feed:
    def __init__(self, lock: threads.Lock, cursor: int) -> None:
        self.condition = threads.condition(lock)
        self.items: deque[Outcome] = deque()
        self.size = 0
        self.head = cursor
        self.asked_at = 0.0
        self.waiting = 0

    def add(self, item: Outcome) -> None:
        self.items.append(item)
        self.size += size_of(item)
        self.head += 1
        while len(self.items) > KEPT or self.size > KEPT_BYTES:
            self.size -= size_of(self.items.popleft())

    def after(self, cursor: int) -> Finished | None:
        """The next news after ``cursor``; what came before it was received and is dropped. None: nothing new."""
        base = self.head - len(self.items)
        if not base <= cursor <= self.head:
            return Finished(self.head, True, ())
        for _ in range(cursor - base):
            self.size -= size_of(self.items.popleft())
        if not self.items:
            return None
        news: list[Outcome] = []
        size = 0
        for item in self.items:
            news.append(item)
            size += size_of(item)
            if len(news) >= MAX_BATCH or size >= MAX_BATCH_BYTES:
                break
        return Finished(cursor + len(news), False, news)


class Feeds:
    """All feeds, and those who wait for single tasks."""

    def __init__(self, lock: threads.Lock, first_cursor: int) -> None:
        self._lock = lock
        self._first = first_cursor
        self._feeds: dict[int, _Feed] = {}
        self._watched: dict[int, list[threads.Condition]] = {}
        self._closed = False

    def publish(self, tasks: Iterable[Task]) -> None:
        """These tasks are final, and on disk."""
        if not self._feeds and not self._watched:
            return
        news: dict[_Feed, None] = {}  # in this order, so that a simulation may be repeated
        for task in tasks:
            feed = self._feeds.get(task.client)
            if feed is not None:
                feed.add(outcome(task))
                news[feed] = None
            if self._watched:
                for condition in self._watched.get(task.id, ()):
                    condition.notify()
        for feed in news:
            feed.condition.notify_all()

    def next(self, client: int, cursor: int, timeout: float, now: float) -> Finished:
        """The next news of this client's tasks; waits up to ``timeout`` seconds for some."""
        feed = self._feeds.get(client)
        if feed is None:
            feed = self._feeds[client] = _Feed(self._lock, self._first)
            self._first += KEPT * 2**10  # a later feed of the same client never takes an old cursor for one of its own
        feed.asked_at = now
        found = feed.after(cursor)
        if found is None:
            feed.waiting += 1
            try:
                feed.condition.wait(timeout)
            finally:
                feed.waiting -= 1
            feed.asked_at = now + timeout
            found = feed.after(cursor)
        return found or Finished(cursor, False, ())

    def watch(self, ids: Sequence[int], timeout: float) -> None:
        """Wait until one of these tasks is final, at most ``timeout`` seconds."""
        if self._closed:
            return
        condition = threads.condition(self._lock)
        for task_id in ids:
            self._watched.setdefault(task_id, []).append(condition)
        try:
            condition.wait(timeout)
        finally:
            for task_id in ids:
                watchers = self._watched[task_id]
                watchers.remove(condition)
                if not watchers:
                    del self._watched[task_id]

    def forget_quiet(self, now: float) -> None:
        """End the feeds of clients that no longer ask."""
        for client, feed in list(self._feeds.items()):
            if not feed.waiting and now - feed.asked_at > QUIET:
                del self._feeds[client]

    def close(self) -> None:
        """Wake everybody who waits."""
        self._closed = True
        for feed in self._feeds.values():
            feed.condition.notify_all()
        for conditions in self._watched.values():
            for condition in conditions:
                condition.notify()
