"""Many submits in batches, on their way while the next ones are made: `Client.pipeline`, and `Client.map` on top of it.

The caller's thread checks and encodes tasks and fills a batch. A whole batch goes to a background thread, which sends
one batch after the other and waits for each to be on disk; meanwhile the caller fills the next one. The caller waits
when `AHEAD` batches are waiting, so memory stays bounded. Who submits less than a batch never starts the thread.
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from taskq import threads
from taskq.catalog import Catalog, Template
from taskq.errors import TaskqError
from taskq.queue.terms import NewTask
from taskq.registry import Prepared, TaskType, correlation_id
from taskq.results import TaskHandle
from taskq.service import MAX_BATCH, MAX_BATCH_BYTES

P = ParamSpec("P")
R = TypeVar("R")

AHEAD = 2
"""Most batches that wait while another one is on its way."""
ITEM_BYTES = 64
"""About what a task adds to a message beside its payload."""


class Batch:
    """Tasks of one call, at most `MAX_BATCH` and about `MAX_BATCH_BYTES`; one larger task travels alone.

    ``handles``: one for each, where somebody waits for their ids.
    """

    __slots__ = ("_bytes", "handles", "items")

    def __init__(self) -> None:
        self.items: list[NewTask] = []
        self.handles: list[TaskHandle[Any]] = []
        self._bytes = 0

    def add(self, item: NewTask) -> bool:
        """Take in a task; False: the batch is full without it."""
        size = self._bytes + len(item.payload) + ITEM_BYTES
        if self.items and (size > MAX_BATCH_BYTES or len(self.items) >= MAX_BATCH):
            return False
        self.items.append(item)
        self._bytes = size
        return True


def batches(items: Iterable[NewTask]) -> Iterator[list[NewTask]]:
    """Cut items into batches of what one call may hold."""
    batch = Batch()
    for item in items:
        if not batch.add(item):
            yield batch.items
            batch = Batch()
            batch.add(item)
    if batch.items:
        yield batch.items


class Submitter(Protocol):
    """What a pipeline needs of its client; see `taskq.client.Client` for what each does."""

    catalog: Catalog

    def prepare(self, template: Template, args: Sequence[Any], kwargs: dict[str, Any], correlation_id: str) -> NewTask:
        """A task ready to be sent."""

    def new_handle(self) -> TaskHandle[Any]:
        """A handle of a task that is not sent yet."""

    def confirm(self, items: Sequence[NewTask], handles: Sequence[TaskHandle[Any]]) -> None:
        """Submit prepared tasks in one call, and give these handles their ids."""


class Pipeline:
    """Submits within a ``with`` block, all of them on disk when the block is left; made by `Client.pipeline`.

    For one thread at a time.
    """

    def __init__(self, client: Submitter) -> None:
        self._client = client
        self._pid = os.getpid()
        self._within = False
        self._batch = Batch()
        self._accepted = array("q")
        self._sender = Sender(self._send)

    def __enter__(self) -> Pipeline:
        self._within = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._within = False
        if self._pid != os.getpid():
            if error is None:
                raise _forked()
        elif error is None:
            try:
                self._finish()
            except TaskqError as problem:
                problem.details["ids"] = list(self._accepted)
                raise
        elif not isinstance(error, Exception):
            self._sender.abandon()  # the user is in a hurry
        else:
            self._sender.finish()
            if isinstance(error, TaskqError):
                error.details["ids"] = list(self._accepted)

    @overload
    def submit(
        self, target: TaskType[P, R] | Prepared[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[R]: ...

    @overload
    def submit(self, target: str, /, *args: Any, **kwargs: Any) -> TaskHandle[Any]: ...

    def submit(
        self, target: TaskType[..., Any] | Prepared[..., Any] | str, /, *args: Any, **kwargs: Any
    ) -> TaskHandle[Any]:
        """Submit one task with the next batch. Takes and raises what `Client.submit` does.

        The handle has an id once its batch is on disk: for certain after the block. An error of an earlier batch is
        raised here, or at the end of the block; nothing is sent after it.
        """
        return self.add(self._client.catalog.template(target), args, kwargs, correlation_id())

    def add(
        self, template: Template, args: Sequence[Any], kwargs: dict[str, Any], correlation_id: str
    ) -> TaskHandle[Any]:
        """`submit` for who knows already what the target stands for."""
        if not self._within:
            raise TaskqError("a pipeline takes tasks within its block only", hint="with q.pipeline() as p: p.submit(…)")
        item = self._client.prepare(template, args, kwargs, correlation_id)
        if not self._batch.add(item):
            if self._pid != os.getpid():
                raise _forked()
            self._sender.put(self._batch)
            self._batch = Batch()
            self._batch.add(item)
        handle = self._client.new_handle()
        self._batch.handles.append(handle)
        return handle

    def _finish(self) -> None:
        """Send what is left, and wait until everything is on disk."""
        self._sender.finish()
        if self._sender.error is not None:
            raise self._sender.error
        if self._batch.items:
            self._send(self._batch)

    def _send(self, batch: Batch) -> None:
        self._client.confirm(batch.items, batch.handles)
        self._accepted.extend(handle.id for handle in batch.handles)


class Sender:
    """A background thread that gives batches to ``send``, one after the other, until one of them fails.

    ``error``: what the failed one raised. The thread starts with the first batch; the other methods are for one thread.
    """

    def __init__(self, send: Callable[[Batch], None]) -> None:
        self._send = send
        self._changed = threads.condition()
        self._waiting: deque[Batch] = deque()
        self._ending = False
        self._thread: threads.Thread | None = None
        self.error: Exception | None = None

    def put(self, batch: Batch) -> None:
        """Hand over a batch; waits while `AHEAD` are waiting. Raises the error of an earlier one."""
        if self._thread is None:
            self._thread = threads.start_thread(self._run, "taskq-pipeline")
        with self._changed:
            while len(self._waiting) >= AHEAD and self.error is None:
                self._changed.wait()
            if self.error is not None:
                raise self.error
            self._waiting.append(batch)
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait until all batches are sent, or one has failed."""
        if self._thread is not None:
            with self._changed:
                self._ending = True
                self._changed.notify_all()
            self._thread.join()

    def abandon(self) -> None:
        """Send nothing more. Does not wait for the batch that is on its way."""
        with self._changed:
            self._ending = True
            self._waiting.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            try:
                self._send(batch)
            except Exception as error:  # the loop's body: whoever waits for this thread is told
                with self._changed:
                    self.error = error
                    self._waiting.clear()
                    self._changed.notify_all()
                return

    def _next(self) -> Batch | None:
        """The next batch, None at the end."""
        with self._changed:
            while not self._waiting and not self._ending:
                self._changed.wait()
            batch = self._waiting.popleft() if self._waiting else None
            self._changed.notify_all()
            return batch


def _forked() -> TaskqError:
    return TaskqError(
        "this pipeline was begun before this process was forked: its tasks are the parent's",
        hint="begin another one in the child",
    )
