"""What a submit brings: new tasks, and the terms that those which are alike have in common. PURE."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

from taskq.queue.retry import DEFAULT_BACKOFF, DEFAULT_FACTOR, DEFAULT_MAX_DELAY, DEFAULT_MAX_RETRIES


class _Terms(NamedTuple):
    type: str
    queue: str = "default"
    priority: int = 0
    max_retries: int = DEFAULT_MAX_RETRIES
    backoff: float = DEFAULT_BACKOFF
    timeout: float | None = None
    # What follows is rarely given: see `Terms.short`, `Terms.more`.
    factor: float = DEFAULT_FACTOR
    max_delay: float = DEFAULT_MAX_DELAY
    jitter: bool = True
    retry_on: tuple[str, ...] | None = None
    never_on: tuple[str, ...] | None = None
    ignore_result: bool = False
    result_ttl: float | None = None
    expires: float | None = None
    expires_by: float | None = None
    unique_in: tuple[str, ...] | None = None
    unique_within: float = 0.0
    unique_raises: bool = False


USUAL = 6
"""Fields of `Terms` that always travel: the first ones."""
_HANDED = ("retry_on", "never_on", "ignore_result")
"""Fields of `Terms` that the worker heeds."""


class Terms(_Terms):
    """What tasks that are submitted alike have in common; they share one object of it.

    ``priority``: higher first. ``backoff``, ``factor``, ``max_delay``, ``jitter``: see `taskq.queue.retry.retry_delay`.
    ``retry_on``, ``never_on``: names of exception classes, None = as the type's own code says. ``ignore_result``: what
    the task returns is dropped. ``timeout`` (0: no limit, None: that of its queue), ``result_ttl`` (how long the result
    is kept; None: as long as the record): seconds.
    ``expires``, ``expires_by``: the task fails if it has not begun so many seconds after its submit, or by this wall
    time. ``unique_in`` (labels of states; None = not unique), ``unique_within`` (seconds), ``unique_raises``: which
    other tasks were twins of this one when it was submitted, see `taskq.queue.uniqueness`.
    """

    @classmethod
    def of(cls, fields: Sequence[Any]) -> Terms:
        """The terms that these are the `short` form of, unchecked. Raises `TypeError`."""
        if len(fields) < USUAL:
            raise TypeError(f"terms have at least {USUAL} fields")
        return cls(*fields)

    @cached_property
    def usual(self) -> tuple[Any, ...]:
        """The fields that have columns of their own in stores."""
        return self[:USUAL]

    @cached_property
    def expiring(self) -> bool:
        """Whether tasks with these terms expire."""
        return self.expires is not None or self.expires_by is not None

    @cached_property
    def short(self) -> tuple[Any, ...]:
        """The fields but for the rare ones at the end that are as usual: what travels, and what digests are made of."""
        size = len(self)
        while size > USUAL and self[size - 1] == self._field_defaults[self._fields[size - 1]]:
            size -= 1
        return self[:size]

    @cached_property
    def more(self) -> str | None:
        """The rare fields that are not as usual, as JSON; None when all are."""
        changed = {name: value for name, value in self._unusual.items() if value != self._field_defaults[name]}
        return json.dumps(changed, separators=(",", ":")) if changed else None

    @cached_property
    def rules(self) -> dict[str, Any] | None:
        """What the worker has to heed beyond the usual: see `taskq.shapes.Handout`."""
        return {
            name: self._unusual[name] for name in _HANDED if self._unusual[name] != self._field_defaults[name]
        } or None

    @property
    def _unusual(self) -> dict[str, Any]:
        return dict(zip(self._fields[USUAL:], self[USUAL:], strict=True))


@lru_cache(maxsize=4096)
def terms_of(*fields: Any) -> Terms:
    """The terms of these usual fields, and the rare ones as `Terms.more`; one object for all that are equal."""
    *usual, more = fields
    found: dict[str, Any] = {} if more is None else json.loads(more)
    rare: dict[str, Any] = {name: tuple(value) if type(value) is list else value for name, value in found.items()}
    return Terms(*usual, **rare)


class NewTask(NamedTuple):
    """One task in a submit call: only plain data.

    ``payload``: the encoded arguments, opaque to the manager. ``delay``: seconds from now. ``key``: the caller's own
    idempotency key. ``correlation_id``: copied into logs; made by the submitter. ``at``: instead of a delay, the wall
    time before which it does not run. ``unique``: the value by which twins are known, made by the submitter.
    """

    terms: Terms
    payload: bytes
    delay: float = 0.0
    key: str | None = None
    correlation_id: str = ""
    at: float | None = None
    unique: bytes | None = None


def new_task(
    type: str,
    payload: bytes,
    *,
    delay: float = 0.0,
    key: str | None = None,
    correlation_id: str = "",
    at: float | None = None,
    unique: bytes | None = None,
    **terms: Any,
) -> NewTask:
    """A task on its own: ``terms`` are the fields of `Terms`."""
    return NewTask(Terms(type, **terms), payload, delay, key, correlation_id, at, unique)


def expiry_of(terms: Terms, submitted_at: float) -> float | None:
    """The wall time by which a task with these terms must have begun, None = whenever."""
    return terms.expires_by if terms.expires is None else submitted_at + terms.expires


as_new_task: Callable[[Sequence[Any]], NewTask] = partial(tuple.__new__, NewTask)
"""`NewTask` of its fields in their order, without a look at them: each task that passes is made twice."""
