"""Whether the arguments of a request are of the types that its verb takes.

A verb may rely on it: what comes in is of the right type, no deeper and no longer than it should be. What a value
means, and whether it is in range, is for the verb's own checks; tasks and reports have theirs in `taskq.queue.limits`,
which look at every value of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from taskq.errors import BadArguments
from taskq.queue.limits import MAX_NUMBER
from taskq.service import MAX_BATCH
from taskq.where import MAX_TEXT
from taskq.wire.codec import MAX_ARRAY

Check = Callable[[Any], bool]

_PLAIN = frozenset({type(None), bool, int, float, str})
_NUMBERS = frozenset({int})
_TEXTS = frozenset({str})


def _number(value: Any) -> bool:
    return type(value) is int and -MAX_NUMBER <= value <= MAX_NUMBER


def _seconds(value: Any) -> bool:
    return type(value) in (int, float)


def _text(value: Any) -> bool:
    return type(value) is str and len(value) <= MAX_TEXT


def _flag(value: Any) -> bool:
    return type(value) is bool


def _numbers(value: Any) -> bool:
    small = type(value) is tuple and _NUMBERS.issuperset(map(type, value))
    return small and (not value or (min(value) >= -MAX_NUMBER and max(value) <= MAX_NUMBER))


def _texts(value: Any) -> bool:
    return type(value) is tuple and _TEXTS.issuperset(map(type, value))


def _pairs(value: Any) -> bool:
    return type(value) is tuple and all(_numbers(pair) and len(pair) == 2 for pair in value)


def _reports(value: Any) -> bool:
    return type(value) is tuple and len(value) <= MAX_BATCH and all(type(report) is tuple for report in value)


def _or_nil(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _each(check: Check) -> Check:
    return lambda value: type(value) is tuple and all(map(check, value))


def _is_plain(value: Any, levels: int = 3) -> bool:
    """Whether it can be kept and shown as JSON: no blobs, no NaN, nothing infinite, and not deep."""
    if type(value) is tuple:
        return levels > 0 and len(value) <= MAX_ARRAY and all(_is_plain(item, levels - 1) for item in value)
    return type(value) in _PLAIN and (type(value) is not float or math.isfinite(value))


def _map(**fields: Check) -> Check:
    """A map that has these fields, each as it should be, and perhaps more (of a later version), which must be plain."""

    def fits(value: Any) -> bool:
        if type(value) is not dict or not value.keys() >= fields.keys():
            return False
        return all(fields.get(name, _is_plain)(item) for name, item in value.items())

    return fits


_POOL = _map(id=_text, name=_text, host=_text, pid=_number, local=_or_nil(_text))
_CHILD = _map(incarnation=_text, stopped=_flag)
_TYPE = _map(name=_text)
_EVIDENCE = _map()
_WORKER = _map(
    incarnation=_text,
    pool=_POOL,
    name=_text,
    host=_text,
    pid=_number,
    threads=_number,
    queues=_texts,
    types=_each(_TYPE),
)

ARGUMENTS: dict[str, tuple[Check, ...]] = {
    "submit": (_number, _number),  # its tasks are made, and checked, by what follows
    "finished": (_number, _number, _seconds),
    "wait": (_numbers, _seconds),
    "result": (_number,),
    "get": (_numbers,),
    "list_tasks": (_or_nil(_text), _or_nil(_text), _or_nil(_text), _number),
    "find": (lambda where: type(where) is str, _texts, _number),
    "cancel": (_numbers,),
    "history": (_number,),
    "requeue": (_numbers,),
    "drop": (_numbers,),
    "purge": (_texts, _seconds),
    "pause_queue": (_text, _text),
    "resume_queue": (_text,),
    "limit_queue": (_text, _or_nil(_number)),
    "purge_queue": (_text, _number),
    "explain": (_number,),
    "beat": (_POOL, _each(_CHILD)),
    "child_died": (_text, _text, _text, _pairs, _flag, _EVIDENCE, _reports),
    "to_cancel": (_text,),
    "leave": (_text,),
    "attach": (_WORKER, _pairs),
    "reserve": (_text, _number, _number, _number, _texts, _seconds),
    "report": (_text, _number, _reports),
    "drain": (_text, _number),
    "detach": (_text, _number),
}
"""Verb -> a check for each of its arguments. What is not in here is checked by the verb alone."""


def check(verb: str, args: tuple[Any, ...]) -> None:
    """Raise `BadArguments` unless each of these arguments is of a type that the verb takes."""
    for position, (fits, value) in enumerate(zip(ARGUMENTS.get(verb, ()), args, strict=False)):
        if not fits(value):
            raise BadArguments(f"argument {position + 1} of {verb} is not of the type or size that it takes")
