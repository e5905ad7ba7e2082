"""The client: submit tasks and get their results, from any Python program.

One `Client` holds a connection for its calls and, once somebody waits for a result, a second one for the results feed.
It may be used from several threads. A connection that is lost is opened anew; a submit that may have been lost with it
is repeated under its old number, so that nothing is submitted twice. A forked child gets a number and connections of
its own: under its parent's the manager would take the submits of one for repetitions of the other's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, overload
from weakref import WeakSet

from taskq import config, threads
from taskq.catalog import Catalog, Template
from taskq.clock import Clock
from taskq.config import Join, find_join, state_dir
from taskq.errors import BadArguments, ConfigError, PayloadTooLarge
from taskq.feed import Feed
from taskq.pipeline import Pipeline
from taskq.queue.terms import NewTask
from taskq.queues import purge, whoami
from taskq.reconnecting import Reconnecting
from taskq.registry import Prepared, TaskType, correlation_id
from taskq.results import Results, TaskHandle, Waited
from taskq.selecting import FAILED_ONLY, Finder, Finds, dead_letter, matching
from taskq.service import MAX_BATCH, Connection, QueueService
from taskq.shapes import Explained, Hello, PurgedQueue, QueueInfo, Types
from taskq.wire.client import RemoteQueue
from taskq.wire.codec import encode, encode_arguments

P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger("taskq.client")
_clients: WeakSet[Client] = WeakSet()


class Client:
    """A connection to a manager, found as the commands find it.

    ``join``: a join file (a path), or what was read from one; ``host``, ``port``: instead of the addresses in there;
    ``state_dir``, ``name``: the folder or the name of a local instance. ``connect_timeout``: seconds to go on trying
    after a connection was lost. ``allow_unknown``: submit types too that no worker offers.

    With none of these, a client that a task makes is one of the manager that the task came from.

    Connects when it is first used. Raises `ConfigError` and `AuthenticationFailed` at once when the files are no good.
    """

    def __init__(
        self,
        join: str | Path | Join | None = None,
        *,
        host: str | None = None,
        port: int | None = None,
        state_dir: str | Path | None = None,
        name: str | None = None,
        connect_timeout: float = 5.0,
        allow_unknown: bool = False,
    ) -> None:

        def find() -> Join:
            return join if isinstance(join, Join) else _find(join, host, port, state_dir, name)

        find()  # so that files that are no good are heard of at once

        def connect() -> Connection:  # looks again each time: a manager that was restarted may have another port
            return RemoteQueue(find(), connect_timeout=connect_timeout)

        self._setup(connect, connect_timeout, allow_unknown)

    @classmethod
    def over(
        cls,
        connect: Callable[[], Connection],
        *,
        patience: float = 5.0,
        allow_unknown: bool = False,
        warn: Callable[[str], None] = _log.warning,
        clock: Clock | None = None,
        id: int | None = None,
    ) -> Client:
        """A client of whatever ``connect`` gives, such as a queue in this same process. ``patience``: seconds.

        ``warn`` is told of tasks that nobody can run at the moment. ``id``: its number, if not a random one.
        """
        client = cls.__new__(cls)
        client._setup(connect, patience, allow_unknown, warn, clock, id)
        return client

    def _setup(
        self,
        connect: Callable[[], Connection],
        patience: float,
        allow_unknown: bool,
        warn: Callable[[str], None] = _log.warning,
        clock: Clock | None = None,
        id: int | None = None,
    ) -> None:
        """Everything that a forked child needs anew. Nothing of it refers to the client, whose end ends it."""
        self.id = int.from_bytes(os.urandom(8), "big") >> 1 if id is None else id
        """Random, 63 bits: whose submit calls these are."""
        self._given = (connect, patience, allow_unknown, warn, clock)
        self._patience = patience
        self._closed = False
        self._seq = 0
        self._submitting = threads.lock()
        feed = self._feed = Feed(self.id, connect, clock)

        def met(hello: Hello) -> None:
            catalog.forget()
            feed.meet(hello)

        manager = self._manager = Reconnecting(connect, met, self.id, clock)
        catalog = self.catalog = Catalog(lambda: manager.call(_ask_types, patience), warn, allow_unknown, clock)
        self._results = Results(feed, manager, connect, patience, clock)
        _clients.add(self)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Tasks go on; waiting for a result of this client raises from now on."""
        self._closed = True
        self._manager.close()
        self._results.close()
        self._feed.close()

    # -- submitting

    @overload
    def submit(
        self, target: TaskType[P, R] | Prepared[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[R]: ...

    @overload
    def submit(self, target: str, /, *args: Any, **kwargs: Any) -> TaskHandle[Any]: ...

    def submit(
        self, target: TaskType[..., Any] | Prepared[..., Any] | str, /, *args: Any, **kwargs: Any
    ) -> TaskHandle[Any]:
        """Submit one task: a `TaskType`, one with ``.options(…)``, or the name of one. It is on disk when this returns.

        Raises `BadArguments`, `NotEncodable`, `UnknownTaskType`, `PayloadTooLarge`, `QueueFull`, `StorageFull`,
        `KeyConflict`, `NotUnique`, and the errors of the way to the manager.
        """
        item = self.prepare(self.catalog.template(target), args, kwargs, correlation_id())
        (handle,) = self.send([item])
        return handle

    @overload
    def map(self, target: TaskType[..., R] | Prepared[..., R], /, *iterables: Iterable[Any]) -> list[TaskHandle[R]]: ...

    @overload
    def map(self, target: str, /, *iterables: Iterable[Any]) -> list[TaskHandle[Any]]: ...

    def map(
        self, target: TaskType[..., Any] | Prepared[..., Any] | str, /, *iterables: Iterable[Any]
    ) -> list[TaskHandle[Any]]:
        """Submit a task for each item of the iterables (for each tuple of items, like `map`); their handles, in order.

        Sent in batches, as by `pipeline`: what it says of errors holds here too.
        """
        template = self.catalog.template(target)
        if template.key is not None:
            raise BadArguments("a key stands for one task: map cannot give the same one to many")
        shared = correlation_id()
        with self.pipeline() as pipeline:
            return [pipeline.add(template, args, {}, shared) for args in zip(*iterables)]  # noqa: B905

    def pipeline(self) -> Pipeline:
        """Submit many tasks of any types: ``with q.pipeline() as p:``, and `Pipeline.submit` in the block.

        They are sent in batches while the block goes on; all are on disk when it is left. If it is left by an error,
        its own or one of a batch, then whole batches made before may be accepted, and nothing after them is:
        ``details["ids"]`` of a `TaskqError` are the tasks that were.
        """
        return Pipeline(self)

    def prepare(self, template: Template, args: Sequence[Any], kwargs: dict[str, Any], correlation_id: str) -> NewTask:
        """A task ready to be sent. Raises `BadArguments`, `NotEncodable`, `PayloadTooLarge`."""
        check, terms, delay, key, at, compared = template
        check(args, kwargs)
        payload = encode_arguments(args, kwargs)
        limit = self.hello()["max_payload"]
        if len(payload) > limit:
            raise PayloadTooLarge(
                f"the arguments of {terms.type} take {len(payload):,} bytes, the manager accepts {limit:,}",
                hint="put large data where workers can read it and send its name; or raise --max-payload",
            )
        unique = None if compared is None else _digest(compared(args, kwargs))
        return NewTask(terms, payload, delay, key, correlation_id, at, unique)

    def send(self, items: Sequence[NewTask]) -> list[TaskHandle[Any]]:
        """Submit prepared tasks in one call, all or none; at most `MAX_BATCH`. Raises as `submit` does."""
        handles = [self.new_handle() for _ in items]
        self.confirm(items, handles)
        return handles

    def new_handle(self) -> TaskHandle[Any]:
        """A handle of a task that is not sent yet."""
        return TaskHandle(self._results, None, 0, own=True)

    def confirm(self, items: Sequence[NewTask], handles: Sequence[TaskHandle[Any]]) -> None:
        """Do as `send`; the ids go into ``handles``."""
        with self._feed.submitting() as ticket:
            with self._submitting:  # so that the numbers of the calls reach the manager in order
                self._seq += 1
                seq = self._seq
                reply, store = self._manager.call(
                    lambda queue: (queue.submit(self.id, seq, items), self.hello()["store_id"]), self._patience
                )  # both of one connection: the next may lead to another store
            existing = set(reply.existing)  # perhaps another client's: then our feed has no news of them
            for position, (handle, id) in enumerate(zip(handles, reply.ids, strict=True)):
                handle.accepted(id, store, position not in existing)
            own = [handle for handle in handles if handle.own]
            doubtful = self._feed.register(ticket, own)
        if doubtful:
            self._feed.settle(self._results.ask(own))

    def continue_as(self, client: int) -> None:
        """Before anything was submitted: be this client again. The same calls in the same order give the same ids."""
        self.id = self._feed.client = client

    # -- tasks by id

    def handle(self, id: int) -> TaskHandle[Any]:
        """A handle of any task, for instance of one that another program submitted."""
        known = self._feed.known(id)
        if isinstance(known, TaskHandle):
            return known
        return TaskHandle(self._results, id, self._feed.store, own=False)

    def result(self, id: int, timeout: float | None = None) -> Any:
        """The result of a task; waits and raises as `TaskHandle.result`."""
        return self.handle(id).result(timeout)

    def state(self, id: int) -> str:
        """The state of a task. Raises `TaskNotFound`."""
        return self.handle(id).state()

    def cancel(self, id: int) -> bool:
        """Cancel a task; True when it is cancelled, see `TaskHandle.cancel`. Raises `TaskNotFound`."""
        return self.handle(id).cancel()

    def as_completed(self, handles: Iterable[TaskHandle[R]], timeout: float | None = None) -> Iterator[TaskHandle[R]]:
        """Yield handles as their tasks finish, whatever the outcome; those that have finished come first.

        Raises `TimeoutError` when not all have finished ``timeout`` seconds after the first one was asked for.
        """
        return self._results.as_completed(handles, timeout)

    def wait(
        self, handles: Iterable[TaskHandle[Any]], timeout: float | None = None, return_when: str = "ALL_COMPLETED"
    ) -> Waited:
        """Wait for tasks, at most ``timeout`` seconds, as `concurrent.futures.wait` does; gives ``(done, not_done)``.

        ``return_when``, as there: "ALL_COMPLETED"; "FIRST_COMPLETED": as soon as any is done; "FIRST_EXCEPTION": as
        soon as any has failed. When the time is over nothing is raised.
        """
        return self._results.wait(handles, timeout, return_when)

    def explain(self, id: int) -> Explained:
        """Why a task does not run now, and what must happen first: each cause with ``code`` and ``text``.

        Raises `TaskNotFound`.
        """
        return self._manager.call(lambda queue: queue.explain(id), self._patience)

    # -- queues

    def queues(self) -> list[dict[str, Any]]:
        """All queues with their figures, as the snapshot has them: ``name``, ``pending``, ``paused``, ``limit``, …"""
        return list(self._manager.call(lambda queue: queue.snapshot(), self._patience)["queues"])

    def pause(self, queue: str) -> QueueInfo:
        """Hand out nothing of a queue until `resume`; what runs goes on. Gives who paused it, and when."""
        return self._manager.call(lambda manager: manager.pause_queue(queue, whoami()), self._patience)

    def resume(self, queue: str) -> bool:
        """Hand out tasks of a queue again; gives whether it was paused. Raises `QueueNotFound`."""
        before = self._manager.call(lambda manager: manager.resume_queue(queue), self._patience)
        return before["paused_at"] is not None

    def limit(self, queue: str, running: int | None) -> QueueInfo:
        """Let at most so many tasks of a queue run at once, over all workers; None: as many as there are threads."""
        return self._manager.call(lambda manager: manager.limit_queue(queue, running), self._patience)

    def purge(self, queue: str) -> int:
        """Cancel all tasks that wait in a queue; gives their number. What runs goes on. Raises `QueueNotFound`."""

        def verb(name: str, below: int) -> PurgedQueue:
            return self._manager.call(lambda manager: manager.purge_queue(name, below), self._patience)

        return purge(verb, queue)

    # -- failed tasks

    def failed(self, where: str = "") -> list[dict[str, Any]]:
        """The failed tasks for which these conditions hold (`taskq.where`; none = all), newest first.

        Of each ``id``, ``type``, ``queue``, ``priority``, ``submitted_at`` and ``finished_at`` (wall-clock seconds),
        ``failures``, ``deaths``, ``worker``, ``error`` (``kind``, ``type``, ``message``). Raises `BadArguments`.
        """
        return [dead_letter(record) for record in matching(self._finding(), where, FAILED_ONLY)]

    def requeue(self, *ids: int, where: str | None = None) -> list[int]:
        """Let failed or cancelled tasks begin anew, with a new budget of retries; gives the ids of those that do.

        ``where``: all failed tasks for which these conditions hold (an empty text: all of them). A handle that has its
        outcome keeps it: `handle` gives a new one. Raises `BadArguments`, `QueueFull`.
        """
        return self._act(lambda part: lambda queue: queue.requeue(part), "requeued", ids, where)

    def drop(self, *ids: int, where: str | None = None) -> list[int]:
        """Delete the records of failed tasks, chosen as in `requeue`; gives the ids of those that are gone."""
        return self._act(lambda part: lambda queue: queue.drop(part), "dropped", ids, where)

    def history(self, id: int) -> list[dict[str, Any]]:
        """The last ten attempts at a task, oldest first (`QueueService.history`). Raises `TaskNotFound`."""
        return list(self._manager.call(lambda queue: queue.history(id), self._patience))

    def _finding(self) -> Finds:
        return Finder(lambda *asked: self._manager.call(lambda queue: queue.find(*asked), self._patience))

    def _act(
        self,
        verb: Callable[[Sequence[int]], Callable[[QueueService], Sequence[str]]],
        done: str,
        ids: Sequence[int],
        where: str | None,
    ) -> list[int]:
        if where is not None:
            ids = [*ids, *(record["id"] for record in matching(self._finding(), where, FAILED_ONLY))]
        acted: list[int] = []
        for start in range(0, len(ids), MAX_BATCH):
            part = ids[start : start + MAX_BATCH]
            answers = self._manager.call(verb(part), self._patience)
            acted += [id for id, answer in zip(part, answers, strict=True) if answer == done]
        return acted

    def hello(self) -> Hello:
        """What the manager says of itself; asked once a connection."""
        if self._manager.hello is None:
            self._manager.call(lambda queue: queue.hello(), self._patience)
        assert self._manager.hello is not None
        return self._manager.hello

    # -- inside

    def after_fork(self) -> None:
        """Begin anew, in a forked child; locks and connections are the parent's."""
        if not self._closed:
            self._results.disown()
            self._setup(*self._given)


def _after_fork() -> None:
    for client in list(_clients):
        client.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _digest(compared: list[Any]) -> bytes:
    """The value by which the manager tells whether two submits are the same."""
    from hashlib import blake2b  # slow to import, and most submits have no need for it

    return blake2b(encode(compared), digest_size=16).digest()


def _ask_types(queue: QueueService) -> Types:
    return queue.types()


def _find(
    join: str | Path | None, host: str | None, port: int | None, folder: str | Path | None, name: str | None
) -> Join:
    """Addresses and key: what was given, else in a worker those of its manager, else ``TASKQ_JOIN``, ``TASKQ_HOST`` and
    so on, else from the state folder."""
    if config.own_manager is not None and not any((join, host, port, folder, name)):
        return config.own_manager()
    environ = os.environ
    variable = environ.get("TASKQ_PORT")
    if variable and not variable.isdigit():
        raise ConfigError(f'TASKQ_PORT is "{variable}", not a port')
    folder = folder or environ.get("TASKQ_STATE_DIR")
    return find_join(
        join=str(join) if join is not None else environ.get("TASKQ_JOIN"),
        host=host or environ.get("TASKQ_HOST"),
        port=port or (int(variable) if variable else None),
        key_file=environ.get("TASKQ_KEY_FILE"),
        state=state_dir(name or environ.get("TASKQ_NAME") or "default", str(folder) if folder else None),
    )
