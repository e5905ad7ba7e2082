"""What a failed attempt looks like in a report: kind, type, message and traceback, as text that always travels."""

from __future__ import annotations

import math
import traceback
from types import TracebackType

MAX_MESSAGE = 2 * 1024
"""Characters of a message that are kept."""
MAX_TRACEBACK = 8 * 1024
"""Characters of a traceback that are kept: a little of its beginning, most of its end."""
_TRACEBACK_HEAD = 2 * 1024
MAX_DELAY = 366 * 86400.0
"""Seconds: longest pause that a task may ask for."""

NO_RETRY = -1.0
"""The delay in a report that means: no further attempt."""

Described = tuple[str, str, str, str]
"""(kind, type, message, traceback), see `taskq.queue.task.TaskError`."""


def describe(kind: str, error: BaseException, skip: str = "") -> Described:
    """How ``error`` is reported; leading frames of the file ``skip`` (taskq's own) are left out of the traceback."""
    return (kind, _cut(type(error).__name__, 200), _message(error), _traceback(error, skip))


def without_traceback(kind: str, type: str, message: str) -> Described:
    """A failure that did not come out of the user's code."""
    return (kind, type, _cut(message, MAX_MESSAGE), "")


def overtime(seconds: float, *, cancelled: bool, stack: str) -> Described:
    """A task that did not end when it was interrupted, and now its process does. ``seconds``: its timeout."""
    stack = plain(stack)[:MAX_TRACEBACK]
    if cancelled:
        return ("cancelled", "TaskCancelled", "it was cancelled and did not stop; its process was killed", stack)
    message = f"ran longer than its timeout of {seconds:g} s and did not stop; its process was killed"
    return ("timeout", "TaskTimeout", message, stack)


def plain(text: str) -> str:
    """``text`` as it can be sent: a lone surrogate is not valid in UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def seconds(value: object) -> float:
    """A pause that a task asked for, forced into what the manager accepts."""
    if not isinstance(value, (int, float)) or math.isnan(value):
        return 0.0
    return float(min(max(value, 0), MAX_DELAY))


def _message(error: BaseException) -> str:
    try:
        return _cut(str(error), MAX_MESSAGE)
    except Exception as broken:  # the exception's own __str__ is the user's code
        return f"(its message cannot be shown: {type(broken).__name__})"


def _traceback(error: BaseException, skip: str) -> str:
    try:
        first = _outside(error.__traceback__, skip)
        text = plain("".join(traceback.format_exception(type(error), error, first, limit=-50)))
    except Exception as broken:  # the exceptions in the chain are the user's code
        return f"(its traceback cannot be shown: {type(broken).__name__})"
    if len(text) <= MAX_TRACEBACK:
        return text
    return f"{text[:_TRACEBACK_HEAD]}\n[…]\n{text[_TRACEBACK_HEAD + 5 - MAX_TRACEBACK :]}"


def _outside(frames: TracebackType | None, skip: str) -> TracebackType | None:
    while frames is not None and frames.tb_frame.f_code.co_filename == skip:
        frames = frames.tb_next
    return frames


def _cut(text: str, limit: int) -> str:
    text = plain(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
