"""Run one task: find its function, call it, and say what came of it. No network, no queue.

Everything between a hand-out and its report is here. The user's code may do anything: each exception, also one that
is no `Exception`, becomes a report, so that a task thread never ends because of a task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import partial
from math import inf
from typing import Any

from taskq import logs
from taskq.errors import BadArguments, NotEncodable, Permanent, Retry, Snooze, TaskCancelled, TaskTimeout
from taskq.queue.retry import is_listed
from taskq.registry import CURRENT, STOPPING, TaskContext, TaskType
from taskq.service import MAX_RESULT
from taskq.shapes import ACK, NACK, SNOOZE, Handout, Report
from taskq.wire.codec import decode_arguments, encode
from taskq.workers import control, failures
from taskq.workers.failures import NO_RETRY
from taskq.workers.overtime import NOTICE
from taskq.workers.slots import NAME_BYTES, SlotTable
from taskq.workers.watchdog import Watchdog

Types = Callable[[str], TaskType[..., Any] | None]
"""Finds a task type by its name, as `taskq.registry.lookup` does."""
OnProgress = Callable[[Handout, float, str], None]
"""Takes what a running task says of its progress: a fraction and a few words."""

_log = logging.getLogger(__name__)


class Executor:
    """Runs tasks in the threads that call it; one for a whole process, since it keeps no state of a task.

    ``monotonic`` gives the seconds for run times, timeouts and the slot table.
    """

    def __init__(self, types: Types, slots: SlotTable, on_progress: OnProgress, monotonic: Callable[[], float]) -> None:
        self._types = types
        self._slots = slots
        self._on_progress = on_progress
        self._monotonic = monotonic
        self._watchdog = Watchdog(monotonic)
        self._names: dict[str, tuple[bytes, bool]] = {}
        self._debug = _log.isEnabledFor(logging.DEBUG)
        self._forked = False

    def run(self, slot: int, handout: Handout) -> Report:
        """Run one task in the calling thread, which owns ``slot``; gives the outcome. Raises nothing."""
        started = self._monotonic()
        timeout = handout.timeout
        deadline = inf if timeout is None else started + timeout
        known = self._names.get(handout.type) if handout.rules is None else None
        name, again = known or self._known(handout)
        self._slots.begin(slot, handout.id, handout.run, started, name, deadline, again)
        try:
            return self._guarded(handout, started, deadline)
        except Exception as error:  # out of memory or threads, or a result that changes while it is encoded
            return self._failed(handout, started, failures.describe("error", error, __file__), None)
        finally:
            self._slots.end(slot)

    def after_fork(self) -> None:
        """In a process that a task forked: the task's function is all that this process is for."""
        self._forked = True

    def cancel(self, run: int) -> None:
        """Ask a run of this process to stop: it can see that at once, and is interrupted a little later."""
        STOPPING.add(run)
        self._watchdog.cancel(run, self._monotonic() + NOTICE)

    def close(self) -> None:
        """End the watchdog's thread; call it when no task runs any more."""
        self._watchdog.close()

    def _known(self, handout: Handout) -> tuple[bytes, bool]:
        """What the slot table is to say of a task: its type, and whether it is tried again after its timeout."""
        found = self._types(handout.type)
        again = found is None or _is_tried_again(TaskTimeout, found, handout)
        known = (handout.type.encode("utf-8", "replace")[:NAME_BYTES], again)
        if handout.rules is None:
            self._names[handout.type] = known
        return known

    def _guarded(self, handout: Handout, started: float, deadline: float) -> Report:
        """An attempt that the watchdog may interrupt: its exception may arrive at any step until it is disarmed."""
        run = handout.run
        report: Report | None = None
        try:
            self._watchdog.arm(run, deadline)
            if STOPPING and run in STOPPING:  # not before it is armed: else a cancel could slip through between
                report = self._refused(handout, started, "TaskCancelled", "it was cancelled")
            else:
                report = copy_context().run(self._attempt, handout, started)
            raised = self._watchdog.disarm(run)
        except (TaskTimeout, TaskCancelled) as error:  # just before or after the user's code
            raised = type(error)
            if report is None:
                report = self._failed(handout, started, failures.describe("error", error, __file__), None)
        if raised is not None or (STOPPING and run in STOPPING):
            self._watchdog.forget(run)
            STOPPING.discard(run)
            if report[0] == NACK:
                report = self._interrupted(handout, report, raised or TaskCancelled)
        return report

    def _interrupted(self, handout: Handout, report: Report, raised: type[BaseException]) -> Report:
        """The report of an attempt that failed after it was interrupted, with what that was."""
        _, name, message, trace = report[3]
        if raised is TaskCancelled:
            described = ("cancelled", name, "it was cancelled" if name == raised.__name__ else message, trace)
        elif name == raised.__name__:
            described = ("timeout", name, f"ran longer than its timeout of {handout.timeout:g} s", trace)
        else:
            return report
        return (*report[:3], described, *report[4:])

    def _attempt(self, handout: Handout, started: float) -> Report:
        found = self._types(handout.type)
        if found is None:
            unknown = f'this worker does not know the type "{handout.type}"'
            return self._refused(handout, started, "UnknownTaskType", unknown)
        try:
            args, kwargs = decode_arguments(handout.payload)
            found.bind(args, kwargs)
        except (TaskTimeout, TaskCancelled):
            raise
        except Exception as error:  # the payload is a stranger's and the check may be the user's code
            described = failures.describe("arguments", error, __file__)
            return self._failed(handout, started, (*described[:3], ""), NO_RETRY)
        self._enter(handout)
        try:
            result = found.function(*args, **kwargs)
        except BaseException as error:
            if self._forked:
                control.leave(error)
            return self._raised(handout, started, found, error)
        if self._forked:
            control.leave(None)
        return self._returned(handout, started, result)

    def _enter(self, handout: Handout) -> None:
        """Make the task known to its own code and to its log lines; the context ends with the attempt."""
        CURRENT.set(partial(self._context, handout))
        if self._debug:
            logs.event(
                _log,
                logging.DEBUG,
                "task_started",
                f"task {handout.id} ({handout.type}) begins attempt {handout.attempt}",
            )

    def _context(self, handout: Handout) -> TaskContext:
        id, run, type, _, queue, attempt, _, correlation_id, _, _ = handout
        return TaskContext(id, run, attempt, type, queue, correlation_id, partial(self._say, handout))

    def _say(self, handout: Handout, fraction: float, note: str) -> None:
        self._on_progress(handout, fraction, failures.plain(note))

    def _returned(self, handout: Handout, started: float, result: object) -> Report:
        run_s = self._monotonic() - started
        if handout.rules is not None and handout.rules.get("ignore_result"):
            result = None
        try:
            encoded = encode(result, "result")
        except NotEncodable as error:
            return self._refused(handout, started, "NotEncodable", error.message)
        if len(encoded) > MAX_RESULT:
            too_large = f"the result is {len(encoded):,} bytes, over the limit of {MAX_RESULT:,}"
            return self._refused(handout, started, "PayloadTooLarge", too_large)
        if self._debug:
            logs.event(_log, logging.DEBUG, "task_completed", f"task {handout.id} is done", run_s=round(run_s, 6))
        return (ACK, handout.id, handout.run, encoded, run_s)

    def _raised(self, handout: Handout, started: float, found: TaskType[..., Any], error: BaseException) -> Report:
        """What an exception out of the user's code means: again, later, or never again."""
        if isinstance(error, Snooze):
            return (SNOOZE, handout.id, handout.run, failures.seconds(error.delay))
        kind = "timeout" if isinstance(error, TaskTimeout) else "error"
        described = failures.describe(kind, error, __file__)
        if isinstance(error, Retry):
            delay = None if error.delay is None else failures.seconds(error.delay)
        elif isinstance(error, (Permanent, BadArguments)) or not _is_tried_again(type(error), found, handout):
            delay = NO_RETRY
        else:
            delay = None
        return self._failed(handout, started, described, delay)

    def _refused(self, handout: Handout, started: float, type: str, message: str) -> Report:
        return self._failed(handout, started, failures.without_traceback("error", type, message), NO_RETRY)

    def _failed(self, handout: Handout, started: float, described: Sequence[str], delay: float | None) -> Report:
        if self._debug:
            text = (
                f"task {handout.id}: attempt {handout.attempt} failed: {described[1]}"  # the message may hold arguments
            )
            logs.event(_log, logging.DEBUG, "task_retried" if delay != NO_RETRY else "task_failed", text)
        return (NACK, handout.id, handout.run, tuple(described), delay, self._monotonic() - started)


def _is_tried_again(error: type[BaseException], found: TaskType[..., Any], handout: Handout) -> bool:
    """Whether an exception of this class leads to another attempt: by what was said at submit, else by the code."""
    rules = handout.rules or {}
    retry_on, never_on = rules.get("retry_on"), rules.get("never_on")
    wanted = is_listed(error, found.retry_on if retry_on is None else retry_on)
    return wanted and not is_listed(error, found.never_on if never_on is None else never_on)
