"""How a worker process is attached to the manager: two connections, and the exact list of what the process holds.

Theory of operation. A *session* begins with `attach` and ends when either of its connections fails, or the manager
says that it is over; then both are closed and the next one begins with another `attach`. Two threads use a session:

* the *reserving* thread alone attaches and reserves. So no reserve can be under way while the held list is made, and a
  reply that got lost with its connection brought nothing into the list: the manager takes such tasks back.
* the *reporting* thread reports. An outcome leaves the list only when the manager confirmed it. A report whose answer
  was lost stays in the list, is sent again, and is refused as stale if the first one had arrived.

`held` maps runs to hand-outs, and the hand-out object itself is the proof of tenure: whatever concerns a hand-out that
is not the very object under its run is dropped (taken away by an attach; or it belongs to another store, which may
give the same run numbers again). One lock is held during a report and while attaching, so that the two never overlap.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple
from zlib import crc32

from taskq import logs, threads
from taskq.errors import (
    AuthenticationFailed,
    Busy,
    ManagerUnavailable,
    OutcomeUnknown,
    ProtocolMismatch,
    ShuttingDown,
    StaleRun,
    StoreFailed,
    TaskqError,
)
from taskq.service import Connection
from taskq.shapes import ACK, NACK, PROGRESS, Handout, Report, WorkerInfo
from taskq.workers import failures

_SESSION_OVER = (ManagerUnavailable, AuthenticationFailed, ProtocolMismatch, StaleRun, OutcomeUnknown, StoreFailed)
"""Errors after which a session is of no use any more."""

_log = logging.getLogger(__name__)


class ReportedDead(Exception):
    """The manager was told that this process is dead; it can only leave."""


class Outcome(NamedTuple):
    """A report together with the hand-out that it is about."""

    handout: Handout
    report: Report


class _Session(NamedTuple):
    number: int
    reserving: Connection
    reporting: Connection


class Attachment:
    """See the module's text. ``connect`` makes a connection; ``on_lost`` is called,
    from any thread, when the session ended."""

    def __init__(self, connect: Callable[[], Connection], worker: WorkerInfo, on_lost: Callable[[], None]) -> None:
        self.held: dict[int, Handout] = {}
        self._connect = connect
        self._worker = worker
        self._incarnation = worker["incarnation"]
        self._on_lost = on_lost
        self._attached = threads.event()
        self._exchange = threads.lock()
        self._ending = threads.lock()
        self._session: _Session | None = None
        self._store_id: int | None = None
        self._draining = False

    @property
    def salt(self) -> int:
        """A number that no other process has, for pauses."""
        return crc32(self._incarnation.encode())

    @property
    def up(self) -> bool:
        """Whether there is a session."""
        return self._session is not None

    def wait(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for a session."""
        return self._attached.wait(timeout)

    def holds(self, handout: Handout) -> bool:
        """Whether this very hand-out is still this process's to run and to report."""
        return self.held.get(handout.run) is handout

    # -- for the reserving thread

    def attach(self) -> None:
        """Begin a session. Raises what a connection raises, and `ReportedDead`."""
        first = self._store_id is None
        with self._exchange:
            reserving, reporting = self._connect(), self._connect()
            try:
                self._begin(reserving, reporting)
            except BaseException:
                reserving.close()
                reporting.close()
                raise
        level = logging.DEBUG if first else logging.INFO  # the manager tells of the first time
        logs.event(_log, level, "connected", f"attached to the manager, holding {len(self.held)} tasks")

    def _begin(self, reserving: Connection, reporting: Connection) -> None:
        store_id = reporting.hello()["store_id"]
        if store_id != self._store_id:
            self._change_store(store_id)
        try:
            held = [(handout.id, handout.run) for handout in self.held.values()]
            reply = reporting.attach(self._worker, held)
        except StaleRun as error:
            raise ReportedDead(error.message) from None
        if reply["store_id"] != store_id:
            raise ManagerUnavailable("the manager changed its store during the first exchange")
        for task, run in reply["lost"]:
            self._drop(task, run)
        self._session = _Session(reply["session"], reserving, reporting)
        self._attached.set()

    def _change_store(self, store_id: int) -> None:
        if self.held:
            text = f"the manager has another store: {len(self.held)} tasks of the former one are dropped"
            logs.event(_log, logging.WARNING, "outcome_refused", text)
        self.held.clear()
        self._store_id = store_id

    def _drop(self, task: int, run: int) -> None:
        if self.held.pop(run, None) is not None:
            text = f"task {task} is no longer this worker's: it has its outcome already, or another worker"
            logs.event(_log, logging.WARNING, "outcome_refused", text, task_id=task)

    def reserve(self, slots: int, extra: int, fast: Sequence[str], timeout: float) -> Sequence[Handout]:
        """New tasks, already in the held list; none when the session is over. Raises `ShuttingDown`, `Busy`, …"""
        session = self._session
        if session is None:
            return ()
        try:
            tasks, closed = session.reserving.reserve(self._incarnation, session.number, slots, extra, fast, timeout)
        except _SESSION_OVER as error:
            self._lose(session, error)
            return ()
        except TaskqError:
            raise  # the manager's answer: it gave nothing
        except BaseException:
            self._end(session)  # what it gave got lost, and only an attach without it brings that back
            raise
        for handout in tasks:
            self.held[handout.run] = handout
        if closed and not self._draining:
            self._lose(session, None)
        return tasks

    def ping(self) -> None:
        """Find out whether the manager is still there; to be called now and then while nothing is asked of it."""
        session = self._session
        if session is None:
            return
        try:
            session.reserving.hello()
        except _SESSION_OVER as error:
            self._lose(session, error)

    # -- for the reporting thread

    def report(self, outcomes: Sequence[Outcome]) -> bool:
        """Deliver outcomes; those of tasks that are not held any more are left out. False: not delivered, try again."""
        with self._exchange:
            session = self._session
            if session is None:
                return False
            due = [outcome for outcome in outcomes if self.held.get(outcome.handout.run) is outcome.handout]
            try:
                if due:
                    self._deliver(session, due)
            except _SESSION_OVER as error:
                self._lose(session, error)
                return False
        return True

    def _deliver(self, session: _Session, due: Sequence[Outcome]) -> None:
        """Send them in one call; if that is refused as a whole, one by one, so that a bad one harms only itself."""
        try:
            stale = session.reporting.report(self._incarnation, session.number, [outcome.report for outcome in due])
        except (*_SESSION_OVER, ShuttingDown, Busy):
            raise
        except TaskqError as error:
            if len(due) > 1:
                for outcome in due:
                    self._deliver(session, [outcome])
            elif due[0].report[0] in (ACK, NACK) and due[0].report[3] != _undeliverable(error):
                run_s = due[0].report[-1]
                instead = (NACK, due[0].handout.id, due[0].handout.run, _undeliverable(error), -1.0, run_s)
                self._deliver(session, [Outcome(due[0].handout, instead)])
            else:
                text = f"the report of task {due[0].handout.id} was refused: {error.message}"
                logs.event(_log, logging.ERROR, "internal_error", text, task_id=due[0].handout.id)
                self._settle(due, ())
            return
        self._settle(due, stale)

    def _settle(self, due: Sequence[Outcome], stale: Sequence[int]) -> None:
        for position in stale:
            handout, report = due[position]
            if report[0] != PROGRESS:
                text = f"the outcome of task {handout.id} came too late: its run was over"
                logs.event(_log, logging.WARNING, "outcome_refused", text, task_id=handout.id)
        for handout, report in due:
            if report[0] != PROGRESS:
                self.held.pop(handout.run, None)

    def drain(self) -> bool:
        """Ask for no more tasks, so that a waiting reserve returns at once. False: there was no session."""
        self._draining = True
        session = self._session
        if session is None:
            return False
        try:
            session.reporting.drain(self._incarnation, session.number)
        except _SESSION_OVER as error:
            self._lose(session, error)
            return False
        return True

    def detach(self) -> bool:
        """Say goodbye, holding nothing. False: there was no session."""
        session = self._session
        if session is None:
            return False
        try:
            session.reporting.detach(self._incarnation, session.number)
        except TaskqError:
            return False
        finally:
            self.close()
        return True

    # -- for anybody

    def close(self) -> None:
        """End the session without a word."""
        session = self._session
        if session is not None:
            self._end(session)

    def _lose(self, session: _Session, error: TaskqError | None) -> None:
        if self._end(session):
            cause = "the manager ended the session" if error is None else error.message
            logs.event(_log, logging.WARNING, "connection_lost", cause)

    def _end(self, session: _Session) -> bool:
        """Close a session; False when the other thread was first."""
        with self._ending:
            if self._session is not session:
                return False
            self._session = None
            self._attached.clear()
        session.reserving.close()
        session.reporting.close()
        self._on_lost()
        return True


def _undeliverable(error: TaskqError) -> failures.Described:
    return failures.without_traceback("error", type(error).__name__, f"the outcome was refused: {error.message}")
