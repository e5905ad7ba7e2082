"""Failed tasks and their attempts as people and programs read them: grouped by error, line by line. PURE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import tzinfo
from typing import Any

from taskq.layout import UNKNOWN, counted, duration, plain, size, when
from taskq.records import timestamp
from taskq.where import error_name

HEAD = ("TASKS", "ERROR", "TYPE", "NEWEST", "WHEN", "MESSAGE")
MESSAGE_WIDTH = 60
"""Characters of a message in a table."""
IDS_SHOWN = 10
"""Ids of a group that are named, the newest ones."""


def grouped(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Failed tasks (newest id first) by error and type, the largest group first."""
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        key = error_name(record), record["type"]
        group = groups.get(key)
        if group is None:
            error = record["error"] or {}
            first = {"error": key[0], "type": key[1], "count": 0, "message": error.get("message", "")}
            group = groups[key] = {**first, "newest_at": 0.0, "oldest_at": float("inf"), "ids": []}
        at = record["finished_at"] or record["submitted_at"]
        group["count"] += 1
        group["newest_at"], group["oldest_at"] = max(group["newest_at"], at), min(group["oldest_at"], at)
        if len(group["ids"]) < IDS_SHOWN:
            group["ids"].append(record["id"])
    return sorted(groups.values(), key=lambda group: -group["count"])


def public_group(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group with its times in ISO 8601."""
    return {**group, "newest_at": timestamp(group["newest_at"]), "oldest_at": timestamp(group["oldest_at"])}


def group_row(group: Mapping[str, Any], now: float, zone: tzinfo | None = None) -> tuple[object, ...]:
    """The cells under `HEAD`."""
    message = plain(str(group["message"]))
    short = message if len(message) <= MESSAGE_WIDTH else message[: MESSAGE_WIDTH - 1] + "…"
    name = plain(group["error"] or UNKNOWN)
    return group["count"], name, plain(group["type"]), group["ids"][0], when(group["newest_at"], now, zone), short


def public_attempt(attempt: Mapping[str, Any]) -> dict[str, Any]:
    """An attempt with its times in ISO 8601, as `QueueService.history` tells of it; its task's id is left out."""
    death = attempt["death"]
    if death is not None:
        rss = [{"before_end_s": before, "rss_bytes": bytes_} for before, bytes_ in death.get("rss", ())]
        death = {"how": death["how"], "rss": rss, "stderr": death.get("stderr", "")}
    return {
        "worker": attempt["worker"],
        "started_at": timestamp(attempt["started_at"]),
        "ended_at": timestamp(attempt["ended_at"]),
        "outcome": attempt["outcome"],
        "type": attempt["type"],
        "message": attempt["message"],
        "traceback": attempt["traceback"],
        "death": death,
    }


def attempt_lines(attempts: Sequence[Mapping[str, Any]], now: float, zone: tzinfo | None = None) -> list[str]:
    """The history of a task, oldest attempt first; the last traceback is left to the record's own error."""
    if not attempts:
        return []
    lines = ["", f"history: {counted(len(attempts), 'attempt')}"]
    for attempt in attempts:
        began, ended = attempt["started_at"], attempt["ended_at"]
        start = when(began, now, zone) if began is not None else UNKNOWN
        took = "" if began is None or ended is None else f" after {duration(max(0.0, ended - began))}"
        reason = ": ".join(part for part in (attempt["type"], attempt["message"]) if part)
        text = f"  {start}  {plain(attempt['worker'] or UNKNOWN)}  {attempt['outcome']}{took}"
        lines.append(text + (f"  {plain(reason)}" if reason else ""))
        lines += _death_lines(attempt["death"])
    return lines


def _death_lines(death: Mapping[str, Any] | None) -> list[str]:
    if death is None:
        return []
    lines = [f"    worker process ended by {plain(death['how'])}"]
    rss = death.get("rss", ())
    if rss:
        first, last, most = rss[0], rss[-1], max(bytes_ for _, bytes_ in rss)
        lines.append(
            f"    rss {size(first[1])} {duration(first[0])} before, {size(last[1])} at last, {size(most)} at most"
        )
    words = str(death.get("stderr", "")).splitlines()
    if words:
        lines += ["    last lines on stderr:", *(f"      {plain(line)}" for line in words)]
    return lines


def answer_line(task_id: int, answer: str) -> str:
    """What became of a request to requeue or drop, in words."""
    words = {"requeued": "begins anew", "dropped": "was dropped", "unknown": "is not there"}
    return f"task {task_id} {words.get(answer, f'is {answer}: left as it is')}"
