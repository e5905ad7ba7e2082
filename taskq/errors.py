"""Every error that taskq raises, in one hierarchy.

Each class has a stable ``code``: it is what crosses the wire and what programs should compare. The message says what
happened, the hint (may be empty) what to do next. Nothing here imports anything of taskq.

Whose fault it is can be read off the branch: the caller's (`BadArguments`, `TaskNotFound`, …), a lease that is gone
(`StaleRun`), the connection's (`ManagerUnavailable` and its siblings), the task's own (`TaskFailed`).
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple


class TaskqError(Exception):
    """Base of all errors of taskq.

    ``details`` holds plain data (strings, numbers, lists, dicts) that goes along over the wire.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str = "", *, hint: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])
        self.hint = hint
        self.details = details or {}

    @property
    def message(self) -> str:
        """What happened, in one sentence."""
        return str(self.args[0])


class ConfigError(TaskqError):
    """A setting, file or module that cannot be used."""

    code = "config"


class StoreLocked(ConfigError):
    """Another manager has the store."""

    code = "store_locked"


class StoreDamaged(TaskqError):
    """The store cannot be read; nothing was started and its files were left as they are."""

    code = "store_damaged"


class StoreFailed(TaskqError):
    """A write did not reach the disk; the manager stops and the next start believes the disk."""

    code = "store_failed"


# -- the way to the manager ------------------------------------------------------------------------------------------


class ManagerUnavailable(TaskqError):
    """No manager answers at this address."""

    code = "manager_unavailable"


class AuthenticationFailed(TaskqError):
    """The manager rejected the key, or could not prove that it has it."""

    code = "authentication_failed"


class PermissionDenied(TaskqError):
    """The key that was used does not allow this."""

    code = "permission_denied"


class ProtocolMismatch(TaskqError):
    """The two sides speak different versions of the protocol."""

    code = "protocol_mismatch"


class FrameTooLarge(TaskqError):
    """A message is larger than the wire allows."""

    code = "frame_too_large"


class Malformed(TaskqError):
    """Bytes or a request that the protocol does not allow."""

    code = "malformed"


class ShuttingDown(TaskqError):
    """The manager is stopping and takes no more work."""

    code = "shutting_down"


class Busy(TaskqError):
    """The manager has more to do than it can hold; try again a little later."""

    code = "busy"


class OutcomeUnknown(TaskqError):
    """The change may or may not be on disk; repeating the same call with the same key gives the truth."""

    code = "outcome_unknown"


class StoreChanged(TaskqError):
    """The manager now has another store than the one that gave this task its id."""

    code = "store_changed"


# -- what was asked for ----------------------------------------------------------------------------------------------


class TaskNotFound(TaskqError):
    """There is no task with this id."""

    code = "task_not_found"


class ResultExpired(TaskqError):
    """The task is done, but its result is no longer kept."""

    code = "result_expired"


class QueueNotFound(TaskqError):
    """There is no queue with this name."""

    code = "queue_not_found"


class UnknownTaskType(TaskqError):
    """No worker offers this type of task."""

    code = "unknown_task_type"


class BadArguments(TaskqError):
    """The arguments do not fit the task."""

    code = "bad_arguments"


class NotEncodable(TaskqError):
    """A value cannot be sent; the message gives the path to it."""

    code = "not_encodable"


class PayloadTooLarge(TaskqError):
    """The arguments or the result of a task are larger than the manager accepts."""

    code = "payload_too_large"


class KeyConflict(TaskqError):
    """The same key was used before for another task."""

    code = "key_conflict"


class NotUnique(TaskqError):
    """A task like this one is there already; ``details["id"]`` is its id."""

    code = "not_unique"


class QueueFull(TaskqError):
    """The queue has as many pending tasks as it may hold."""

    code = "queue_full"


class StorageFull(TaskqError):
    """The disk is nearly full, so that no new tasks are accepted."""

    code = "storage_full"


class InvalidTransition(TaskqError):
    """The task's state does not allow this."""

    code = "invalid_transition"


class StaleRun(TaskqError):
    """This run of the task is over: another has begun or the task is final."""

    code = "stale_run"


# -- outcomes, raised by ``TaskHandle.result`` -----------------------------------------------------------------------


class TaskFailed(TaskqError):
    """The task failed for good.

    ``details``: ``id``, ``kind`` (error, timeout, poisoned, expired), ``type`` (name of the exception), ``message``,
    ``traceback`` (text, from the worker), ``failures``, ``deaths``, ``worker``.
    """

    code = "task_failed"


class TaskCancelled(TaskqError):
    """The task was cancelled."""

    code = "task_cancelled"


# -- raised by code inside a task ------------------------------------------------------------------------------------


class RetryPolicy(NamedTuple):
    """What a `Retry` says of failed attempts; see there."""

    max_retries: int = 3
    backoff: float = 1.0
    factor: float = 2.0
    max_delay: float = 3600.0
    jitter: bool = True
    retry_on: tuple[type[Exception] | str, ...] | None = None
    never_on: tuple[type[Exception] | str, ...] | None = None


class Retry(TaskqError):
    """How often, and after which pauses, a task is tried again; raised in a task: this attempt failed, try again.

    As a value (``@task(retry=…)``, ``.options(retry=…)``): ``max_retries`` attempts after the first one; ``backoff``
    seconds before the first of them, ``factor`` times as long before each further one, at most ``max_delay`` seconds;
    with ``jitter`` each pause is shortened by up to a half at random. Only exceptions that are instances of
    ``retry_on``, and of none of ``never_on``, are tried again: classes, or their names with or without the module.
    None: as the type's own code says, by default all.

    Raised: the next attempt comes after ``delay`` seconds (None: the pause of the task's policy), if one is left.
    """

    code = "retry"
    delay: float | None = None
    policy = RetryPolicy()

    def __init__(  # noqa: PLR0913  (a policy has as many parts as it has)
        self,
        message: str = "",
        *,
        delay: float | None = None,
        max_retries: int = policy.max_retries,
        backoff: float = policy.backoff,
        factor: float = policy.factor,
        max_delay: float = policy.max_delay,
        jitter: bool = policy.jitter,
        retry_on: tuple[type[Exception] | str, ...] | None = None,
        never_on: tuple[type[Exception] | str, ...] | None = None,
    ) -> None:
        super().__init__(message or "the task asked for another attempt")
        self.delay = delay
        self.policy = RetryPolicy(max_retries, backoff, factor, max_delay, jitter, retry_on, never_on)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Retry) and self._value() == other._value()

    def __hash__(self) -> int:
        return hash(self._value())

    def __repr__(self) -> str:
        given = {"delay": self.delay, **self.policy._asdict()}
        usual = {"delay": None, **RetryPolicy()._asdict()}
        return f"Retry({', '.join(f'{name}={value!r}' for name, value in given.items() if value != usual[name])})"

    def _value(self) -> tuple[object, ...]:
        return self.args, self.delay, self.policy


class Permanent(TaskqError):
    """Raise it in a task: it failed for good, no further attempts."""

    code = "permanent"


class Snooze(TaskqError):
    """Raise it in a task: not now, run it again in ``delay`` seconds; neither a failure nor an attempt."""

    code = "snooze"

    def __init__(self, delay: float) -> None:
        super().__init__(f"snoozed for {delay:g} s")
        self.delay = delay


class TaskTimeout(TaskqError):
    """Raised inside a task that has run longer than its timeout."""

    code = "task_timeout"


def _all_errors(base: type[TaskqError]) -> dict[str, type[TaskqError]]:
    found = {base.code: base}
    for child in base.__subclasses__():
        found.update(_all_errors(child))
    return found


ERRORS: dict[str, type[TaskqError]] = _all_errors(TaskqError)
"""code -> class, for the wire."""


def to_wire(error: TaskqError) -> tuple[str, str, dict[str, Any]]:
    """(code, message, details) of an error; the hint travels in the details."""
    details = dict(error.details, hint=error.hint) if error.hint else dict(error.details)
    return error.code, error.message, details


def from_wire(code: str, message: str, details: dict[str, Any]) -> TaskqError:
    """The error that `to_wire` described; an unknown code gives a plain `TaskqError`."""
    found = ERRORS.get(code, TaskqError)
    error = found.__new__(found)
    TaskqError.__init__(error, message, hint=str(details.get("hint", "")), details=details)
    return error
