"""The queue as seen from another process: `RemoteQueue` has the verbs of `QueueService` and sends them to a manager.

One connection, made by the first call and, when it was lost, by the next one; one call at a time. This module must stay
cheap to import: no `multiprocessing`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, cast

from taskq import threads
from taskq.config import Join
from taskq.errors import Busy, FrameTooLarge, Malformed, ManagerUnavailable, from_wire
from taskq.pauses import Pauses
from taskq.queue.lots import lots
from taskq.queue.terms import NewTask
from taskq.shapes import (
    Attached,
    BackedUp,
    BeatReply,
    ChildInfo,
    Evidence,
    Explained,
    Finished,
    Found,
    Handout,
    Hello,
    Outcome,
    PoolInfo,
    PurgedQueue,
    QueueInfo,
    Report,
    Reserved,
    Submitted,
    Types,
    WorkerInfo,
)
from taskq.wire import codec
from taskq.wire.dialer import Dialer
from taskq.wire.frames import OK, Channel, ConnectionLost, TimedOut

CALL_TIMEOUT = 30.0
"""Seconds until a call that does not wait must have its answer."""
WAIT_MARGIN = 10.0
"""Seconds that an answer may come later than the call was willing to wait."""


class RemoteQueue:
    """The verbs of a manager elsewhere; see `taskq.service.QueueService` for what each does.

    ``connect_timeout``: seconds for making a connection; ``dialer`` makes it. ``call_timeout``: seconds for an answer.
    A call whose connection is lost raises `ManagerUnavailable` and is not repeated: whether that is right, the caller
    knows. The next call makes a new connection.

    Any call may raise `ManagerUnavailable`, `AuthenticationFailed`, `ProtocolMismatch`, `FrameTooLarge`, and what its
    verb raises. An instance may be used by several threads; each call waits for the one before it.
    """

    def __init__(
        self,
        join: Join,
        *,
        connect_timeout: float = 5.0,
        call_timeout: float = CALL_TIMEOUT,
        dialer: Dialer | None = None,
    ) -> None:
        self._join = join
        self._connect_timeout = connect_timeout
        self._call_timeout = call_timeout
        self._lock = threads.lock()
        self._channel: Channel | None = None
        self._dialer = dialer or Dialer()
        self._address = str(join.addresses[0])
        self._pid = os.getpid()
        self._closed = threads.event()
        self._last_id = 0

    # -- everybody

    def hello(self) -> Hello:
        """Who the manager is."""
        return cast(Hello, self._call("hello"))

    def types(self) -> Types:
        """The task types that workers announced."""
        return cast(Types, self._call("types"))

    def snapshot(self) -> dict[str, Any]:
        """Figures for the monitor."""
        return cast("dict[str, Any]", self._call("snapshot"))

    # -- clients

    def submit(self, client: int, seq: int, items: Sequence[NewTask]) -> Submitted:
        """Accept all of these tasks, or none."""
        return Submitted(*self._call("submit", client, seq, lots(items)))

    def finished(self, client: int, cursor: int, timeout: float) -> Finished:
        """The next outcomes of this client's tasks."""
        cursor, lagged, outcomes = self._call("finished", client, cursor, timeout, wait=timeout)
        return Finished(cursor, lagged, tuple(map(Outcome._make, outcomes)))

    def wait(self, ids: Sequence[int], timeout: float) -> Sequence[Outcome]:
        """The outcomes of those of these tasks that are final."""
        return tuple(map(Outcome._make, self._call("wait", ids, timeout, wait=timeout)))

    def result(self, id: int) -> Outcome:
        """The whole outcome of one task."""
        return Outcome(*self._call("result", id))

    def get(self, ids: Sequence[int]) -> Sequence[dict[str, Any] | None]:
        """Whole records."""
        return cast("Sequence[dict[str, Any] | None]", self._call("get", ids))

    def list_tasks(
        self, state: str | None, type: str | None, queue: str | None, limit: int
    ) -> Sequence[dict[str, Any]]:
        """Whole records, newest first."""
        return cast("Sequence[dict[str, Any]]", self._call("list_tasks", state, type, queue, limit))

    def find(self, where: str, states: Sequence[str], below: int) -> Found:
        """Records for which conditions hold."""
        return Found(*self._call("find", where, states, below))

    def cancel(self, ids: Sequence[int]) -> Sequence[str]:
        """Cancel tasks."""
        return cast("Sequence[str]", self._call("cancel", ids))

    def history(self, id: int) -> Sequence[dict[str, Any]]:
        """The last attempts at a task."""
        return cast("Sequence[dict[str, Any]]", self._call("history", id))

    def requeue(self, ids: Sequence[int]) -> Sequence[str]:
        """Let failed and cancelled tasks begin anew."""
        return cast("Sequence[str]", self._call("requeue", ids))

    def drop(self, ids: Sequence[int]) -> Sequence[str]:
        """Delete the records of failed tasks."""
        return cast("Sequence[str]", self._call("drop", ids))

    def purge(self, states: Sequence[str], older_s: float) -> int:
        """Delete final records."""
        return cast(int, self._call("purge", states, older_s))

    # -- queues

    def pause_queue(self, queue: str, by: str) -> QueueInfo:
        """Hand out nothing of a queue."""
        return cast(QueueInfo, self._call("pause_queue", queue, by))

    def resume_queue(self, queue: str) -> QueueInfo:
        """Hand out again."""
        return cast(QueueInfo, self._call("resume_queue", queue))

    def limit_queue(self, queue: str, running: int | None) -> QueueInfo:
        """Let at most so many tasks of a queue run at once."""
        return cast(QueueInfo, self._call("limit_queue", queue, running))

    def purge_queue(self, queue: str, below: int) -> PurgedQueue:
        """Cancel tasks that wait in a queue."""
        return PurgedQueue(*self._call("purge_queue", queue, below))

    def backup(self, path: str, token: int) -> BackedUp:
        """Write a copy of the store."""
        return BackedUp(*self._call("backup", path, token))

    def explain(self, id: int) -> Explained:
        """Why a task does not run now."""
        return cast(Explained, self._call("explain", id))

    # -- pools

    def beat(self, pool: PoolInfo, children: Sequence[ChildInfo]) -> BeatReply:
        """A heartbeat."""
        return cast(BeatReply, self._call("beat", pool, children))

    def child_died(
        self,
        pool: str,
        incarnation: str,
        how: str,
        started: Sequence[tuple[int, int]],
        counts: bool,
        evidence: Evidence,
        outcomes: Sequence[Report] = (),
    ) -> None:
        """A worker process is gone for certain."""
        self._call("child_died", pool, incarnation, how, started, counts, evidence, outcomes)

    def to_cancel(self, pool: str) -> Sequence[tuple[str, int]]:
        """What this pool has to cancel."""
        return cast(Sequence[tuple[str, int]], self._call("to_cancel", pool))

    def leave(self, pool: str) -> None:
        """The pool is over."""
        self._call("leave", pool)

    # -- worker processes

    def attach(self, worker: WorkerInfo, held: Sequence[tuple[int, int]]) -> Attached:
        """Join, first or again."""
        return cast(Attached, self._call("attach", worker, held))

    def reserve(
        self, incarnation: str, session: int, slots: int, extra: int, fast: Sequence[str], timeout: float
    ) -> Reserved:
        """Tasks to run."""
        tasks, closed = self._call("reserve", incarnation, session, slots, extra, fast, timeout, wait=timeout)
        return Reserved(tuple(map(Handout._make, tasks)), closed)

    def report(self, incarnation: str, session: int, reports: Sequence[Report]) -> Sequence[int]:
        """Outcomes of runs."""
        return cast("Sequence[int]", self._call("report", incarnation, session, reports))

    def drain(self, incarnation: str, session: int) -> None:
        """Hand out nothing more to this worker."""
        self._call("drain", incarnation, session)

    def detach(self, incarnation: str, session: int) -> None:
        """An orderly goodbye."""
        self._call("detach", incarnation, session)

    # -- the connection

    def close(self) -> None:
        """End the connection, for good and from any thread: a call under way raises `ManagerUnavailable`."""
        self._closed.set()
        self._dialer.cancel()
        channel = self._channel
        if channel is not None:
            channel.shut()
        if self._lock.acquire(blocking=False):  # else the call under way drops it
            try:
                self._drop()
            finally:
                self._lock.release()

    def _call(self, verb: str, *args: Any, wait: float = 0.0) -> Any:
        """Send a request and give the value of its answer. Raises the error that the manager answered."""
        with self._lock:
            self._last_id += 1
            request = codec.pack((self._last_id, verb, args))
            try:
                status, value = self._repeated(request, wait + WAIT_MARGIN if wait > 0 else self._call_timeout)
            finally:
                if self._closed.is_set():
                    self._drop()  # `close` could not do it while the call was under way
        if status == OK:
            return value
        code, message, details = value
        raise from_wire(code, message, details)

    def _repeated(self, request: bytes, timeout: float) -> tuple[int, Any]:
        """Status and value of the reply. Where there was no room for the request, of which nothing was done then, it
        is sent again and again, with longer and longer pauses, until ``timeout`` is over."""
        give_up = time.monotonic() + timeout
        pauses: Pauses | None = None
        while True:
            status, value = self._exchange(request, timeout)
            asked = None if status == OK else _pause_asked(value)
            if asked is None:
                return status, value
            pauses = pauses or Pauses(int.from_bytes(os.urandom(4), "big"), asked)
            pause = pauses.next()
            if time.monotonic() + pause > give_up or self._closed.wait(pause):
                return status, value

    def _exchange(self, request: bytes, timeout: float) -> tuple[int, Any]:
        """Status and value of the reply. However this ends without one: a late reply must not meet the next call."""
        channel = self._connected()
        try:
            channel.send(request)
            return self._parse(channel.receive(timeout))
        except FrameTooLarge:
            raise  # nothing was sent
        except ConnectionLost as error:
            self._drop()
            raise ManagerUnavailable(self._describe(error)) from None
        except BaseException:
            self._drop()
            raise

    def _parse(self, data: bytes) -> tuple[int, Any]:
        """Status and value of the reply to the last request."""
        try:
            reply_id, status, value = codec.unpack(data)
            if status != OK:
                code, message, details = value
                value = str(code), str(message), dict(details)
        except (Malformed, TypeError, ValueError):
            raise ConnectionLost("it sent what is no reply") from None
        if reply_id != self._last_id:
            raise ConnectionLost("it sent the reply to another request")
        return status, value

    def _connected(self) -> Channel:
        """The connection, made now if this process (it may be a fork) has none."""
        channel = self._channel
        if channel is not None and self._pid == os.getpid():
            return channel
        self._drop()
        if self._closed.is_set():
            raise ManagerUnavailable("the connection to the manager was closed")
        self._channel, self._address = self._dialer.connect(self._join, self._connect_timeout)
        self._pid = os.getpid()
        return self._channel

    def _describe(self, error: ConnectionLost) -> str:
        if self._closed.is_set():
            return "the connection to the manager was closed"
        if isinstance(error, TimedOut):
            return f"the manager at {self._address} {error}"
        return f"lost the manager at {self._address} ({error})"

    def _drop(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()


def _pause_asked(error: tuple[str, str, dict[str, Any]]) -> float | None:
    """Seconds after which a call that found no room may be repeated; None for any other error."""
    code, _, details = error
    pause = details.get("retry_after_s")
    return pause if code == Busy.code and isinstance(pause, float) and pause > 0 else None
