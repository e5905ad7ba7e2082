"""Records of tasks as people and programs read them: payload and result decoded, times in ISO 8601. PURE.

A record comes from the manager as `taskq.queue.task_row.describe` makes it; the manager itself never looks into
payloads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone, tzinfo
from typing import Any

from taskq.errors import RetryPolicy, TaskqError
from taskq.layout import UNKNOWN, counted, duration, plain, when
from taskq.shapes import TypeInfo
from taskq.views import outcome
from taskq.wire import codec

Record = Mapping[str, Any]

LIST_HEAD = ("TASK", "STATE", "TYPE", "QUEUE", "SUBMITTED", "TOOK", "WORKER", "OUTCOME")


def timestamp(wall: float | None) -> str | None:
    """ISO 8601 in UTC, to the millisecond, of wall-clock seconds.

    >>> timestamp(1_700_000_000.25)
    '2023-11-14T22:13:20.250Z'
    """
    if wall is None:
        return None
    return datetime.fromtimestamp(wall, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def public(record: Record, types: Mapping[str, TypeInfo] | None = None) -> dict[str, Any]:
    """The fields of a record that are shown, in the order of the manual.

    ``types`` gives the names of arguments that were passed by position, and the errors that a type's code tries again.
    """
    name = record["type"]
    return {
        "id": record["id"],
        "type": name,
        "queue": record["queue"],
        "state": record["state"],
        "priority": record["priority"],
        "retry": _retry(record, (types or {}).get(name)),
        "payload": _payload(name, record["payload"], (types or {}).get(name)),
        "submitted_at": timestamp(record["submitted_at"]),
        "due_at": timestamp(record["due_at"]),
        "expires_at": timestamp(record["expires_at"]),
        "started_at": timestamp(record["started_at"]),
        "finished_at": timestamp(record["finished_at"]),
        "failures": record["failures"],
        "deaths": record["deaths"],
        "timeout": record["timeout"],
        "cancel_requested": record["cancel_requested"],
        "worker": record["worker_name"],
        "result": _decoded(record["result"]),
        "ignore_result": record["ignore_result"],
        "result_ttl": record["result_ttl"],
        "error": _error(record["error"]),
        "correlation_id": record["correlation_id"],
        "key": record["key"],
        "unique": _unique(record),
    }


def _unique(record: Record) -> dict[str, Any] | None:
    """What made another task a twin of this one when it was submitted."""
    if record["unique_in"] is None:
        return None
    return {"while_in": list(record["unique_in"]), "within": record["unique_within"]}


def _error(error: Any) -> dict[str, str] | None:
    if error is None:
        return None
    return {name: error[name] for name in ("kind", "type", "message", "traceback")}


def _decoded(data: bytes | None) -> Any:
    """The value; of bytes that this version cannot read, the bytes themselves."""
    if data is None:
        return None
    try:
        return codec.decode(data)
    except TaskqError:
        return data


def _retry(record: Record, info: TypeInfo | None) -> dict[str, Any]:
    """The policy; what the submit left to the type's code, as workers announced it."""
    retry = {name: record[name] for name in RetryPolicy._fields}
    for name in ("retry_on", "never_on"):
        if retry[name] is None and info is not None:
            retry[name] = info.get(name)
    return retry


def _payload(name: str, data: bytes | None, info: TypeInfo | None) -> dict[str, Any] | None:
    """``{"type": …, argument: value, …}``; arguments whose names are not known are listed as ``args``."""
    if data is None:
        return None
    try:
        args, kwargs = codec.decode_arguments(data)
    except TaskqError:
        return {"type": name, "encoded": data}
    names = [parameter for parameter, kind, _ in info["parameters"] if kind <= _BY_POSITION] if info else []
    if len(args) > len(names) or "type" in kwargs or "type" in names[: len(args)]:
        return {"type": name, "args": args, "kwargs": kwargs} if kwargs else {"type": name, "args": args}
    return {"type": name, **dict(zip(names, args, strict=False)), **kwargs}


_BY_POSITION = 1
"""Kinds of `inspect.Parameter` up to this one can be passed by position."""


def list_row(record: Record, now: float, zone: tzinfo | None = None) -> tuple[object, ...]:
    """The cells under `LIST_HEAD`, at ``now`` (wall-clock seconds). Times are in ``zone`` (None: the machine's own)."""
    return (
        record["id"],
        record["state"],
        plain(record["type"]),
        plain(record["queue"]),
        when(record["submitted_at"], now, zone),
        took(record),
        plain(record["worker_name"] or UNKNOWN),
        outcome(record) if record["state"] in ("completed", "failed", "cancelled") else _attempts(record),
    )


def took(record: Record) -> str:
    """How long the last attempt ran, or ``-``."""
    if record["started_at"] is None or record["finished_at"] is None:
        return UNKNOWN
    return duration(record["finished_at"] - record["started_at"])


def _attempts(record: Record) -> str:
    tried = record["failures"] + record["deaths"]
    if not tried:
        return ""
    error = record["error"] or {}
    reason = error.get("type") or error.get("kind")
    return plain(f"failed {tried} so far: {reason}" if reason else f"failed {tried} so far")


def detail_lines(shown: Mapping[str, Any], to_json: Any) -> list[str]:
    """A record (as `public` gives it) for people: a field a line, the traceback last. ``to_json`` writes values."""
    width = max(len(name) for name in shown)
    lines = []
    for name, value in shown.items():
        if name == "retry":
            text = plain(_retry_in_words(value))
        elif name == "error":
            text = UNKNOWN if value is None else plain(f"{value['kind']}: {value['type']}: {value['message']}")
        elif value is None and not (name == "result" and shown["state"] == "completed"):
            text = UNKNOWN
        else:
            text = plain(value) if isinstance(value, str) and name != "result" else to_json(value)
        lines.append(f"{name:<{width}}  {text}")
    error = shown["error"]
    if error and error["traceback"]:
        lines += ["", *(plain(line) for line in error["traceback"].splitlines())]
    return lines


def _retry_in_words(retry: Mapping[str, Any]) -> str:
    if not retry["max_retries"]:
        return "never"
    pauses = f"{duration(retry['backoff'])} after the first failure, x{retry['factor']:g} after each further one"
    text = f"up to {retry['max_retries']:,}, {pauses}, at most {duration(retry['max_delay'])}"
    if not retry["jitter"]:
        text += ", without jitter"
    if retry["retry_on"] is not None:
        text += f"; only {', '.join(retry['retry_on']) or 'when asked for'}"
    if retry["never_on"]:
        text += f"; never {', '.join(retry['never_on'])}"
    return text


def cancelled_line(task_id: int, answer: str) -> str:
    """What became of a request to cancel, in words."""
    words = {
        "cancelled": "cancelled",
        "running": "is running: it is asked to stop",
        "completed": "had completed already",
        "failed": "had failed already",
        "unknown": "is not there",
    }
    return f"task {task_id} {words.get(answer, answer)}"


def cancelled_summary(answers: Sequence[str]) -> str:
    """What became of requests to cancel, in one line.

    >>> cancelled_summary(["cancelled", "running", "cancelled", "completed"])
    '2 tasks cancelled, 1 running task asked to stop, 1 task had finished'
    """
    cancelled, running = answers.count("cancelled"), answers.count("running")
    parts = [f"{counted(cancelled, 'task')} cancelled"]
    if running:
        parts.append(f"{counted(running, 'running task')} asked to stop")
    if late := len(answers) - cancelled - running:
        parts.append(f"{counted(late, 'task')} had finished")
    return ", ".join(parts)


def by_name(types: Sequence[TypeInfo]) -> dict[str, TypeInfo]:
    """Announced types by their names."""
    return {info["name"]: info for info in types}
