"""Tasks that are meant by conditions, as a program sees them that asks the manager for them piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from taskq import where as conditions
from taskq.shapes import Found


class Finds(Protocol):
    """Whoever has the verb `find`."""

    def find(self, where: str, states: Sequence[str], below: int) -> Found:
        """See `taskq.service.QueueService.find`."""
        ...


def matching(queue: Finds, where: str = "", states: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The records in these states (none = all) for which the conditions hold, newest first, without payload, result and
    traceback. Raises `BadArguments` at once, and what the calls raise.

    What changes its state meanwhile may or may not be among them: whoever acts on one hears from the manager.
    """
    wanted = conditions.parse(where)
    return _matching(queue, wanted, states)


def _matching(queue: Finds, wanted: conditions.Where, states: Sequence[str]) -> Iterator[dict[str, Any]]:
    below = 0
    while True:
        records, below = queue.find(wanted.text, states, below)
        yield from filter(wanted.matches, records)
        if not below:
            return


FAILED_ONLY = ("failed",)
"""States for `matching`."""


class Finder:
    """Makes a function one that `matching` can ask."""

    def __init__(self, find: Callable[[str, Sequence[str], int], Found]) -> None:
        self.find = find


def dead_letter(record: Mapping[str, Any]) -> dict[str, Any]:
    """A failed task as programs read it, without what is of interest to the queue alone."""
    error = record["error"] or {}
    return {
        **{name: record[name] for name in ("id", "type", "queue", "priority", "submitted_at", "finished_at")},
        **{name: record[name] for name in ("failures", "deaths")},
        "worker": record["worker_name"],
        "error": {name: error.get(name, "") for name in ("kind", "type", "message")},
    }
