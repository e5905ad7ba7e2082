"""What one submit may ask for: `Options`, and whether values for it are any good."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from taskq.errors import BadArguments, Retry, RetryPolicy
from taskq.queue.limits import MAX_DELAY, MAX_KEY, MAX_NAME, MAX_PRIORITY, MAX_RETRIES, are_error_names, shown
from taskq.queue.retry import DEFAULT, MAX_FACTOR, error_name
from taskq.queue.terms import Terms
from taskq.unique import Unique


@dataclass(frozen=True)
class Options:
    """How one submit differs from its type's defaults; None: as the type says.

    ``priority``: higher first. ``delay`` and ``timeout`` (0: no limit) in seconds. ``key``: the caller's own key; the
    same key again gives the same task. ``retry``: what to do after a failure; ``max_retries`` and ``backoff`` stand for
    these parts of it alone. ``ignore_result``: drop what the task returns, its result is None. ``result_ttl``: seconds
    for which the result is kept, if that is less than the record is. ``at``: not before this time. ``expires``: a task
    that has not begun so many seconds after its submit, or by this time, fails; both by the manager's wall clock, and
    times have a zone. ``unique``: see `Unique`.
    """

    queue: str | None = None
    priority: int = 0
    max_retries: int | None = None
    delay: float = 0.0
    key: str | None = None
    backoff: float | None = None
    timeout: float | None = None
    retry: Retry | None = None
    ignore_result: bool | None = None
    result_ttl: float | None = None
    at: datetime | None = None
    expires: float | datetime | None = None
    unique: Unique | None = None

    def __post_init__(self) -> None:
        policy = policy_of(self.retry, max_retries=self.max_retries, backoff=self.backoff)
        if wrong := problem(self.queue, self.timeout, self.retry, policy, self.ignore_result, self.result_ttl):
            raise BadArguments(wrong)
        if type(self.priority) is not int or abs(self.priority) > MAX_PRIORITY:
            raise BadArguments(
                f"priority must be an integer from -{MAX_PRIORITY:,} to {MAX_PRIORITY:,}, not {shown(self.priority)}"
            )
        if not _is_seconds(self.delay):
            raise BadArguments(f"delay must be a number of seconds, at most ten years, not {shown(self.delay)}")
        if self.key is not None and (not isinstance(self.key, str) or not 0 < len(self.key) <= MAX_KEY):
            raise BadArguments(f"key must be a text of 1 to {MAX_KEY} characters, not {shown(self.key)}")
        self._check_times()
        if self.unique is not None and not isinstance(self.unique, Unique):
            raise BadArguments(f"unique must be a Unique(…), not {shown(self.unique)}")
        if self.unique is not None and self.key is not None:
            raise BadArguments("a task has a key or is unique, not both", hint="a key is unique by itself")

    def _check_times(self) -> None:
        at, expires = self.at, self.expires
        if at is not None:
            _check_zone("at", at)
            if self.delay:
                raise BadArguments("a task has a delay or a time to start at, not both")
        if isinstance(expires, datetime):
            _check_zone("expires", expires)
            late = at is not None and at >= expires
        else:
            if expires is not None and not (_is_seconds(expires) and expires):
                raise BadArguments(f"expires must be a number of seconds over 0, or a datetime, not {shown(expires)}")
            late = expires is not None and self.delay >= expires
        if late:
            raise BadArguments("it would expire before it is due", hint="expires counts from the submit")

    def on(self, terms: Terms) -> Terms:
        """The terms of a type, with what these options say."""
        changes = {} if self.retry is None else retry_terms(self.retry.policy)
        for name in ("queue", "max_retries", "backoff", "timeout", "ignore_result", "result_ttl"):
            value = getattr(self, name)
            if value is not None:
                changes[name] = value
        if isinstance(self.expires, datetime):
            changes["expires_by"] = self.expires.timestamp()
        elif self.expires is not None:
            changes["expires"] = self.expires
        if self.unique is not None:
            changes.update(self.unique.terms())
        return terms._replace(priority=self.priority, **changes)


def policy_of(retry: Retry | None, **parts: Any) -> RetryPolicy:
    """The policy that ``retry`` (None: the usual one) and single parts of it, those that are not None, add up to."""
    whole = retry.policy if isinstance(retry, Retry) else DEFAULT
    return whole._replace(**{name: value for name, value in parts.items() if value is not None})


def retry_terms(policy: RetryPolicy) -> dict[str, Any]:
    """The fields of `Terms` that a policy stands for, without those that it leaves to the type's code."""
    fields = policy._asdict()
    del fields["retry_on"], fields["never_on"]
    return {**fields, **error_terms(policy)}


def error_terms(policy: RetryPolicy) -> dict[str, tuple[str, ...]]:
    """Those of ``retry_on`` and ``never_on`` that a policy has, as names."""
    listed = {"retry_on": policy.retry_on, "never_on": policy.never_on}
    return {name: tuple(map(error_name, errors)) for name, errors in listed.items() if errors is not None}


def problem(
    queue: object, timeout: object, retry: object, policy: RetryPolicy, ignore_result: object, result_ttl: object
) -> str:
    """What is wrong with these values, empty if nothing is; None is always right. ``policy``: see `policy_of`."""
    if queue is not None and not is_name(queue):
        return f"a queue's name is a text without spaces of 1 to {MAX_NAME} characters, not {shown(queue)}"
    if retry is not None and not isinstance(retry, Retry):
        return f"retry must be a Retry(…), not {shown(retry)}"
    for name, seconds in (("timeout", timeout), ("result_ttl", result_ttl)):
        if seconds is not None and not (_is_seconds(seconds) and (seconds or name == "timeout")):
            least = "0 for no limit" if name == "timeout" else "over 0"
            return f"{name} must be a number of seconds, {least}, at most ten years, not {shown(seconds)}"
    if ignore_result is not None and type(ignore_result) is not bool:
        return f"ignore_result must be True or False, not {shown(ignore_result)}"
    return _policy_problem(policy)


def _policy_problem(policy: RetryPolicy) -> str:
    count, factor = policy.max_retries, policy.factor
    if type(count) is not int or not 0 <= count <= MAX_RETRIES:
        return f"max_retries must be an integer from 0 to {MAX_RETRIES:,}, not {shown(count)}"
    for name in ("backoff", "max_delay"):
        if not _is_seconds(getattr(policy, name)):
            return f"{name} must be a number of seconds, at most ten years, not {shown(getattr(policy, name))}"
    if type(factor) not in (int, float) or not 1 <= factor <= MAX_FACTOR:
        return f"factor must be a number from 1 to {MAX_FACTOR:g}, not {shown(factor)}"
    if type(policy.jitter) is not bool:
        return f"jitter must be True or False, not {shown(policy.jitter)}"
    for name in ("retry_on", "never_on"):
        listed = getattr(policy, name)
        if listed is not None and not _are_errors(listed):
            return f"{name} must be a tuple of exception classes or of their names, not {shown(listed)}"
    return ""


def _are_errors(listed: object) -> bool:
    if not isinstance(listed, tuple):
        return False
    classes = [one for one in listed if not isinstance(one, str)]
    if not all(isinstance(one, type) and issubclass(one, Exception) for one in classes):
        return False
    return are_error_names(tuple(map(error_name, listed)))


def _check_zone(name: str, value: object) -> None:
    if not isinstance(value, datetime):
        raise BadArguments(f"{name} must be a datetime with a time zone, not {shown(value)}")
    if value.utcoffset() is None:
        raise BadArguments(f"{name} must have a time zone", hint="datetime.now().astimezone() has that of this machine")


def is_name(value: object) -> bool:
    """Whether this may be the name of a queue or of a type."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= MAX_NAME
        and value.isprintable()
        and not any(map(str.isspace, value))
    )


def _is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MAX_DELAY
