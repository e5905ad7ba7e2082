"""The verbs about records: find those that are meant, whatever state they are in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taskq import where as conditions
from taskq.queue.core import QueueCore
from taskq.queue.limits import check_number
from taskq.queue.task import slim, state_named
from taskq.service import MAX_BATCH, MAX_BATCH_BYTES, Found

PIECES = 20
"""Reads of the store in one call of `find`: so that a search in a large store takes many short calls."""


class RecordVerbs(QueueCore):
    """What everybody may ask and do about records; see `taskq.service.QueueService` for what each verb promises."""

    def find(self, where: str, states: Sequence[str], below: int) -> Found:
        """Some of the records for which the conditions hold."""
        wanted = conditions.parse(where)
        kinds = [state_named(label) for label in states]
        check_number("below", below)
        if not below:
            self._write_out()
        wall = self._clock.wall()
        found: list[dict[str, Any]] = []
        room = MAX_BATCH_BYTES
        for _ in range(PIECES):
            rows, below = self._store.scan(kinds, below, MAX_BATCH)
            for record in map(slim, rows):
                if not wanted.admits(record, wall):
                    continue
                found.append(record)
                room -= 300 + len((record["error"] or {}).get("message", ""))
                if room <= 0 or len(found) == MAX_BATCH:
                    return Found(found, record["id"])
            if not below:
                break
        return Found(found, below)
