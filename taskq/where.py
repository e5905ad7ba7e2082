"""Which tasks are meant: ``type=mail.send error~=Timeout age>1h``. PURE.

Conditions stand side by side, and a task is meant when all of them hold. Each is a field, an operator and a value; a
value with spaces is put in quotes, ``message~="no route"``, in which a backslash takes the meaning from a quote.

Patterns (``~=``) are told apart from the other conditions: a regular expression may take for ever on an unlucky text,
so it is matched by the program that asks, never by the manager, which has everybody waiting.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import eq, gt, lt, ne
from typing import Any

from taskq.config import parse_duration
from taskq.errors import BadArguments, ConfigError

Record = Mapping[str, Any]
"""A record as `taskq.queue.task_row.describe` gives it."""

TEXTS: dict[str, Callable[[Record], str]] = {
    "type": lambda record: str(record["type"]),
    "queue": lambda record: str(record["queue"]),
    "state": lambda record: str(record["state"]),
    "error": lambda record: error_name(record),
    "message": lambda record: str((record["error"] or {}).get("message", "")),
    "worker": lambda record: str(record["worker_name"] or ""),
}
"""Fields that are text, and how a record gives them."""
NUMBERS: dict[str, Callable[[Record, float], float]] = {
    "id": lambda record, wall: record["id"],
    "priority": lambda record, wall: record["priority"],
    "age": lambda record, wall: wall - (record["finished_at"] or record["submitted_at"]),
}
"""Fields that are numbers; ``age``: seconds since the task was over, or, while it is not, since it was submitted."""

MAX_TEXT = 4_000
"""Characters."""

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {"=": eq, "!=": ne, ">": gt, "<": lt}
PATTERN = "~="
_OF_TEXT, _OF_NUMBERS, _OF_AGE = ("=", "!=", PATTERN), ("=", "!=", ">", "<"), (">", "<")
_WORD = re.compile(r"[A-Za-z_]*")
_OPERATOR = re.compile(r"!=|~=|[=<>~!]+")
_QUOTED = re.compile(r"""(["'])((?:\\.|(?!\1)[^\\])*)\1(?=\s|$)""", re.DOTALL)
_BARE = re.compile(r"""[^\s"'][^\s]*""")


def error_name(record: Record) -> str:
    """What a failed task is filed under: the exception's type, or what else ended it (``poisoned``, ``expired``)."""
    error = record["error"] or {}
    return str(error.get("type") or error.get("kind") or "")


@dataclass(frozen=True)
class Condition:
    """One condition; ``value`` is a text, a number, or a compiled pattern."""

    field: str
    operator: str
    value: Any

    def holds(self, record: Record, wall: float) -> bool:
        """Whether it holds for this record at ``wall`` (wall-clock seconds)."""
        found = NUMBERS[self.field](record, wall) if self.field in NUMBERS else TEXTS[self.field](record)
        if self.operator == PATTERN:
            return self.value.search(found) is not None
        return _COMPARE[self.operator](found, self.value)


@dataclass(frozen=True)
class Where:
    """All conditions of a text; `parse` reads it."""

    text: str
    plain: tuple[Condition, ...]
    patterns: tuple[Condition, ...]

    def admits(self, record: Record, wall: float) -> bool:
        """Whether all conditions hold that are no patterns. Cheap: this the manager asks."""
        return all(condition.holds(record, wall) for condition in self.plain)

    def matches(self, record: Record) -> bool:
        """Whether all patterns are found: this asks the program that wants to know."""
        return all(condition.holds(record, 0.0) for condition in self.patterns)


def parse(text: str) -> Where:
    """Read conditions; no text, no conditions. Raises `BadArguments`, which shows the place.

    >>> parse('type=mail.send error~=^Time age>1h').plain
    (Condition(field='type', operator='=', value='mail.send'), Condition(field='age', operator='>', value=3600.0))
    >>> parse("speed>3")
    Traceback (most recent call last):
        ...
    taskq.errors.BadArguments: there is no field "speed", at character 1 of: speed>3
    """
    if len(text) > MAX_TEXT:
        raise BadArguments(f"conditions have at most {MAX_TEXT:,} characters")
    conditions = []
    place = _skip(text, 0)
    while place < len(text):
        condition, place = _condition(text, place)
        conditions.append(condition)
        place = _skip(text, place)
    return Where(
        text,
        tuple(one for one in conditions if one.operator != PATTERN),
        tuple(one for one in conditions if one.operator == PATTERN),
    )


def _skip(text: str, place: int) -> int:
    while place < len(text) and text[place].isspace():
        place += 1
    return place


def _condition(text: str, place: int) -> tuple[Condition, int]:
    """The condition that begins at ``place``, and where it ends."""
    field, after = _found(_WORD, text, place)
    if field not in TEXTS and field not in NUMBERS:
        wrong = f'there is no field "{field}"' if field else "a field is expected"
        raise _wrong(wrong, text, place, "fields are " + ", ".join((*TEXTS, *NUMBERS)))
    allowed = _OF_AGE if field == "age" else _OF_NUMBERS if field in NUMBERS else _OF_TEXT
    operator, begin = _found(_OPERATOR, text, after)
    if operator not in allowed:
        wrong = f'{field} does not go with "{operator}"' if operator else f"an operator is expected after {field}"
        raise _wrong(wrong, text, after, f"{field} goes with {' '.join(allowed)} (no spaces around them)")
    quoted = _QUOTED.match(text, begin)
    if quoted is not None:
        value, end = re.sub(r"\\([\"'\\])", r"\1", quoted[2]), quoted.end()
    else:
        value, end = _found(_BARE, text, begin)
    if quoted is None and not value:
        quote = text[begin : begin + 1].strip()
        wrong = "a quote is not closed, or text follows it at once" if quote else f"a value is expected for {field}"
        raise _wrong(wrong, text, begin, f"such as {field}{operator}{_EXAMPLES.get(field, 'word')}")
    return Condition(field, operator, _value(field, operator, value, text, begin)), end


_EXAMPLES = {"id": "42", "priority": "5", "age": "1h30m", "state": "failed", "message": '"no route"'}


def _found(pattern: re.Pattern[str], text: str, place: int) -> tuple[str, int]:
    match = pattern.match(text, place)
    return ("", place) if match is None else (match[0], match.end())


def _value(field: str, operator: str, value: str, text: str, place: int) -> Any:
    try:
        if field == "age":
            return parse_duration(value)
        if field in NUMBERS:
            return int(value)
        return re.compile(value) if operator == PATTERN else value
    except ConfigError as error:
        raise _wrong(error.message, text, place, error.hint) from None
    except re.error as error:
        raise _wrong(f"not a regular expression: {error}", text, place) from None
    except (OverflowError, RecursionError):
        raise _wrong("a regular expression with too many repeats or levels", text, place) from None
    except ValueError:
        raise _wrong(f'{field} is a whole number, not "{value}"', text, place) from None


def _wrong(what: str, text: str, place: int, hint: str = "") -> BadArguments:
    return BadArguments(f"{what}, at character {place + 1} of: {text}", hint=hint)
