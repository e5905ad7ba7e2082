"""What a person hands to ``taskq-submit``, read: payloads and their options, as JSON or as words.

An entry is a payload (an object with ``type`` and that type's arguments), or an object with ``payload`` and options
for it. Nothing here knows of a manager; every error is a `BadArguments` that says where it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any, NamedTuple, NoReturn

from taskq.config import parse_duration, parse_limit, parse_time
from taskq.errors import BadArguments, ConfigError, Retry, RetryPolicy
from taskq.options import Options
from taskq.queue.limits import MAX_NUMBER
from taskq.unique import Unique

OPTION_NAMES = frozenset(field.name for field in fields(Options))
RANDOM_OPERATIONS = (("factorial", 500), ("fibonacci", 1_000), ("double", 1_000_000))
"""What ``--random`` computes, and up to which value."""
RANDOM_FAILURES = 0.05
"""Part of the random tasks that fail on purpose."""

_WRITTEN: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("delay", "timeout", "backoff", "result_ttl"), parse_duration),
    "at": parse_time,
    "expires": parse_limit,
}
"""Options that may be written as a text like ``10m``, and how it is read."""
_RETRY_PARTS = ("max_retries", "backoff", "max_delay")
_RETRY_HINT = 'write retries:backoff:max_delay, such as 5:2s:10m; or an object, such as {"max_retries": 5, "factor": 3}'
_MOST_DIGITS = 18
_EXCERPT = 72
"""Columns of a line that an error shows."""


class Entry(NamedTuple):
    """One task as it was asked for. ``where``: its place for people, like ``entry 17``; empty if it is the only one."""

    where: str
    type: str
    arguments: dict[str, Any]
    options: Options


class BadEntry(NamedTuple):
    """An entry that cannot be read, and why."""

    where: str
    error: BadArguments


def read_payload(text: str, source: str, defaults: Mapping[str, Any]) -> Entry | BadEntry:
    """The entry that one JSON text holds. ``defaults``: options for it. Raises `BadArguments` for bad JSON."""
    hint = "in a shell, put single quotes around it: '{\"type\": …}'"
    if not text.strip():
        raise BadArguments(f"{source} is empty", hint=hint)
    return _entry(_load(text, source, hint), "", defaults)


def read_file(text: str, source: str, defaults: Mapping[str, Any]) -> Iterator[Entry | BadEntry]:
    """The entries of a file: a JSON array, one object, or an object on each line.

    Raises `BadArguments` when an array or a single object is bad JSON; a bad line among others is a `BadEntry`.
    """
    stripped = text.lstrip("\ufeff \t\r\n")
    if not stripped:
        raise BadArguments(f"{source} is empty")
    if _is_lines(stripped):
        yield from _lines(text, defaults)
        return
    value = _load(text, source, "a file holds a JSON array, one object, or one object on each line")
    if not isinstance(value, list):
        yield _entry(value, "", defaults)
        return
    if not value:
        raise BadArguments(f"{source} holds no entries")
    for number, item in enumerate(value, 1):
        yield _entry(item, f"entry {number}", defaults)


def _is_lines(text: str) -> bool:
    """Whether this is an object on each line: the first line alone is a whole value, and more follows."""
    first, _, rest = text.partition("\n")
    if not rest.strip():
        return False
    try:
        return isinstance(_parse(first), dict)
    except ValueError:
        return False


def _lines(text: str, defaults: Mapping[str, Any]) -> Iterator[Entry | BadEntry]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip(" \t\r\ufeff"):
            where = f"line {number}"
            try:
                yield _entry(_load(line, "", ""), where, defaults)
            except BadArguments as error:
                yield BadEntry(where, error)


def read_words(name: str, words: Sequence[str], defaults: Mapping[str, Any]) -> Entry | BadEntry:
    """The entry that ``TYPE name=value …`` means; a value that is no JSON is a text. Raises `BadArguments`."""
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise BadArguments(f'"{word}" is not name=value', hint=f"write for instance: {name} value=10")
        if key in arguments:
            raise BadArguments(f'"{key}" is given twice')
        try:
            arguments[key] = _parse(text)
        except ValueError:
            arguments[key] = text
    return _entry({**arguments, "type": name}, "", defaults)


def random_entries(count: int, seed: int | None, defaults: Mapping[str, Any]) -> Iterator[Entry]:
    """So many small tasks of all built-in types, a few of which fail; the same ``seed`` gives the same tasks."""
    import random  # slow to import, and needed here only

    dice = random.Random(seed)
    options = _options(defaults, {})
    for number in range(1, count + 1):
        name, arguments = _random_payload(dice)
        yield Entry(f"entry {number}", name, arguments, options)


def _random_payload(dice: Any) -> tuple[str, dict[str, Any]]:
    if dice.random() < RANDOM_FAILURES:
        return "fail", {"error_message": f"failed on purpose ({dice.randrange(1000)})"}
    kind = dice.choice(("compute", "sleep", "http_request"))
    if kind == "compute":
        operation, most = dice.choice(RANDOM_OPERATIONS)
        return kind, {"operation": operation, "value": dice.randrange(most + 1)}
    if kind == "sleep":
        return kind, {"duration": round(dice.uniform(0.01, 0.2), 3)}
    return kind, {"url": f"https://example.com/{dice.randrange(1000)}", "method": dice.choice(("GET", "POST"))}


# -- one entry -------------------------------------------------------------------------------------------------------


def _entry(value: Any, where: str, defaults: Mapping[str, Any]) -> Entry | BadEntry:
    try:
        payload, given = value, {}
        if isinstance(value, dict) and "payload" in value and "type" not in value:
            given = {name: item for name, item in value.items() if name != "payload"}
            payload = value["payload"]
        if not isinstance(payload, dict):
            raise BadArguments(
                f"a payload is an object with a type, not {_kind(payload)}", hint='such as {"type": "compute", …}'
            )
        arguments = dict(payload)
        name = arguments.pop("type", None)
        if not isinstance(name, str) or not name:
            raise BadArguments('the payload has no "type", the name of a task', hint='such as {"type": "compute", …}')
        return Entry(where, name, arguments, _options(defaults, given))
    except BadArguments as error:
        return BadEntry(where, error)


def _options(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> Options:
    merged = dict(defaults)
    for name, value in given.items():
        known = "key" if name == "dedupe_key" else name
        if known not in OPTION_NAMES:
            raise BadArguments(
                f'there is no option "{name}"', hint=f"an entry may have {', '.join(sorted(OPTION_NAMES))}"
            )
        if _holds_huge_number(value):
            raise BadArguments(f"{name}: a number is too large")
        value = _value(known, name, value)
        if value is not None:
            merged[known] = value
    for one, other in (("at", "delay"), ("delay", "at"), ("key", "unique"), ("unique", "key")):
        if one in given and other not in given:
            merged.pop(other, None)  # the entry knows better than what holds for all
    if type(merged.get("at")) is float:  # it was +90m
        if merged.get("delay"):
            raise BadArguments("a task has a delay or a time to start at, not both")
        merged["delay"] = merged.pop("at")
    return Options(**merged)


def _holds_huge_number(value: Any) -> bool:
    """Whether there is an integer in it that no option takes; Python cannot even print those of thousands of digits."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, (dict, list)):
            left += item.values() if isinstance(item, dict) else item
        elif isinstance(item, int) and abs(item) > MAX_NUMBER:
            return True
    return False


def _value(known: str, name: str, value: Any) -> Any:
    """The value of the option ``known`` as `Options` takes it."""
    if value is None:
        return None
    if known == "retry":
        return read_retry(value)
    if known == "unique":
        return read_unique(value)
    return _read(name, value, _WRITTEN[known]) if known in _WRITTEN else value


def _read(name: str, value: Any, parse: Callable[[str], Any] = parse_duration) -> Any:
    """What a text like ``10m`` stands for; anything else as it is, for `Options` to judge."""
    if not isinstance(value, str):
        return value
    try:
        return parse(value)
    except ConfigError as error:
        raise BadArguments(f"{name}: {error.message}", hint=error.hint) from None


def read_unique(value: Any) -> Unique | None:
    """What ``unique`` means as it is written: true, the names of the arguments to compare, or an object with parts.

    Raises `BadArguments`.

    >>> read_unique(["user_id"])
    Unique(by=('user_id',), while_in=('pending', 'scheduled', 'running'), within=0.0, on_conflict='return')
    """
    if isinstance(value, bool):
        return Unique() if value else None
    if isinstance(value, list):
        return Unique(by=value)
    if not isinstance(value, dict):
        raise BadArguments(f"unique is true, an array of names of arguments, or an object, not {_kind(value)}")
    parts = [field.name for field in fields(Unique)]
    if unknown := sorted(value.keys() - set(parts)):
        raise BadArguments(f'unique: there is no part "{unknown[0]}"', hint=f"it may have {', '.join(parts)}")
    return Unique(
        **{name: _read(f"unique: {name}", part) if name == "within" else part for name, part in value.items()}
    )


def read_retry(value: Any) -> Retry:
    """A policy as it is written: ``retries:backoff:max_delay``, of which the end may be missing, or an object.

    Raises `BadArguments`.

    >>> read_retry("5:2s:10m")
    Retry(max_retries=5, backoff=2.0, max_delay=600.0)
    >>> read_retry({"max_retries": 2, "never_on": ["ValueError"]})
    Retry(max_retries=2, never_on=('ValueError',))
    """
    if isinstance(value, str):
        parts = value.split(":")
        if not (parts[0].strip().isdecimal() and len(parts[0]) <= _MOST_DIGITS) or len(parts) > len(_RETRY_PARTS):
            raise BadArguments(f'retry: "{value}" is no policy', hint=_RETRY_HINT)
        value = {"max_retries": int(parts[0]), **dict(zip(_RETRY_PARTS[1:], parts[1:], strict=False))}
    if not isinstance(value, dict):
        raise BadArguments(f"retry: {_kind(value)} is no policy", hint=_RETRY_HINT)
    if unknown := sorted(value.keys() - {*RetryPolicy._fields}):
        raise BadArguments(
            f'retry: there is no part "{unknown[0]}"', hint=f"a policy may have {', '.join(RetryPolicy._fields)}"
        )
    given: dict[str, Any] = {name: tuple(part) if isinstance(part, list) else part for name, part in value.items()}
    for name in ("backoff", "max_delay"):
        if name in given:
            given[name] = _read(f"retry: {name}", given[name])
    retry = Retry(**given)
    Options(retry=retry)  # refuses what is out of range
    return retry


def as_json(entry: Entry) -> dict[str, Any]:
    """The entry as it could stand in a file, options that are set included."""
    payload = {"type": entry.type, **entry.arguments}
    usual = Options()
    changed = {field.name: getattr(entry.options, field.name) for field in fields(Options)}
    changed = {name: value for name, value in changed.items() if value != getattr(usual, name)}
    if "retry" in changed:
        parts = changed["retry"].policy._asdict()
        changed["retry"] = {name: value for name, value in parts.items() if value != getattr(Retry.policy, name)}
    for name in ("at", "expires"):
        if isinstance(changed.get(name), datetime):
            changed[name] = changed[name].isoformat()
    if "unique" in changed:
        changed["unique"] = asdict(changed["unique"])
    return {"payload": payload, **changed} if changed else payload


def _kind(value: Any) -> str:
    words = {dict: "an object", list: "an array", str: "a text", bool: "true or false", type(None): "null"}
    return words.get(type(value), "a number")


# -- JSON ------------------------------------------------------------------------------------------------------------


@contextmanager
def all_digits() -> Iterator[None]:
    """Let integers of any length be read and written; Python alone stops at 4,300 digits."""
    if not hasattr(sys, "set_int_max_str_digits"):
        yield
        return
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


def _parse(text: str) -> Any:
    try:
        with all_digits():
            return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _load(text: str, source: str, hint: str) -> Any:
    """The value of a JSON text. Raises `BadArguments` that shows the place; without ``source`` it is a single line."""
    what = f"{source} is not valid JSON" if source else "not valid JSON"
    try:
        return _parse(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        place = f"{f'line {error.lineno} ' if source else ''}column {error.colno}: {error.msg}"
        lines = error.doc.splitlines() or [""]
        line = lines[error.lineno - 1] if error.lineno <= len(lines) else ""
        raise BadArguments(f"{what}: {place}\n{_caret(line, error.colno)}", hint=hint) from None
    except ValueError as error:
        raise BadArguments(f"{what}: {error}", hint=hint) from None


def _caret(line: str, column: int) -> str:
    """The part of a line around a column, counted from 1, and a caret under it."""
    start = max(0, column - 1 - _EXCERPT // 2)
    part = line[start : start + _EXCERPT].expandtabs(1)
    return f"  {part}\n  {' ' * (column - 1 - start)}^"
