"""What a submitted item may be. PURE."""

from __future__ import annotations

from collections.abc import Sequence

from taskq.errors import BadArguments, PayloadTooLarge
from taskq.queue.task import NewTask
from taskq.service import MAX_BATCH

MAX_NAME = 200
"""Characters: longest name of a type or queue."""
MAX_KEY = 500
MAX_PRIORITY = 1_000
MAX_RETRIES = 1_000_000
MAX_DELAY = 10 * 366 * 86400.0
"""Seconds: furthest that a task can be put off, backoff and timeout included."""


def checked(items: Sequence[Sequence[object]], max_payload: int) -> list[NewTask]:
    """The items of a submit call as records. Raises `BadArguments`, `PayloadTooLarge`; nothing is half accepted."""
    if not 0 < len(items) <= MAX_BATCH:
        raise BadArguments(f"a submit call takes 1 to {MAX_BATCH:,} tasks, not {len(items):,}")
    good: list[NewTask] = []
    options: Sequence[object] = ()
    for position, fields in enumerate(items):
        try:
            item = NewTask(*fields)  # type: ignore[arg-type]  # what the fields are is looked at next
            if item[2:] != options:
                _check_options(item)
                options = item[2:]
            if not (0 < len(item.type) <= MAX_NAME and item.type.__class__ is str and type(item.payload) is bytes):
                raise ValueError("it has no type or no payload")
        except (TypeError, ValueError) as error:
            raise BadArguments(f"entry {position + 1}: {error}; nothing was accepted") from None
        if len(item.payload) > max_payload:
            raise PayloadTooLarge(
                f"entry {position + 1}: its arguments take {len(item.payload):,} bytes, {max_payload:,} are allowed",
                hint="keep large data in a file or database and submit its name, or raise --max-payload",
            )
        good.append(item)
    return good


def _check_options(item: NewTask) -> None:
    if not (type(item.queue) is str and 0 < len(item.queue) <= MAX_NAME):
        raise ValueError(f"a queue's name has 1 to {MAX_NAME} characters")
    if type(item.priority) is not int or abs(item.priority) > MAX_PRIORITY:
        raise ValueError(f"priority is a number from -{MAX_PRIORITY:,} to {MAX_PRIORITY:,}")
    if type(item.max_retries) is not int or not 0 <= item.max_retries <= MAX_RETRIES:
        raise ValueError(f"max_retries is a number from 0 to {MAX_RETRIES:,}")
    for name, seconds in (("backoff", item.backoff), ("delay", item.delay), ("timeout", item.timeout)):
        if seconds is not None and (type(seconds) not in (int, float) or not 0 <= seconds <= MAX_DELAY):
            raise ValueError(f"{name} is a number of seconds from 0 to {MAX_DELAY:,.0f}")
    if item.backoff is None or item.delay is None or item.timeout == 0:
        raise ValueError("backoff and delay are needed, and a timeout is more than 0")
    if item.key is not None and not (type(item.key) is str and 0 < len(item.key) <= MAX_KEY):
        raise ValueError(f"a key has 1 to {MAX_KEY} characters")
    if type(item.correlation_id) is not str or len(item.correlation_id) > MAX_NAME:
        raise ValueError(f"a correlation id has at most {MAX_NAME} characters")
