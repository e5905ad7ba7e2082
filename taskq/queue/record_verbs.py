"""The verbs about records: find those that are meant, look at what became of a task, begin it anew, drop it.

Records that are over lie in the store only. Who changes one reads it first, without the queue's lock; the lock
``_finals`` sees to it that nobody else changes or deletes it meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskq import where as conditions
from taskq.errors import BadArguments, TaskNotFound
from taskq.queue import task_log
from taskq.queue.admission import may_begin_anew
from taskq.queue.core import QueueCore
from taskq.queue.history import attempts
from taskq.queue.limits import check_number
from taskq.queue.task import FAILED, State, state_named
from taskq.queue.task_row import TaskRow, slim
from taskq.service import MAX_BATCH, MAX_BATCH_BYTES
from taskq.shapes import Found

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

    def history(self, id: int) -> Sequence[dict[str, Any]]:
        """What became of the last attempts at a task."""
        check_number("id", id)
        self._write_out()
        row = self._store.slim([id]).get(id)
        if row is None:
            raise TaskNotFound(f"there is no task {id}")
        return attempts(row, self._store.attempts(id))

    def requeue(self, ids: Sequence[int]) -> Sequence[str]:
        """Let failed and cancelled tasks begin anew."""
        self._check_ids(ids)
        with self._finals:
            self._write_out()
            rows = self._store.slim(ids)
            now = self._now()
            again = [row for row in rows.values() if may_begin_anew(row, now.wall)]
            uniques = self._store.uniques_of([row.id for row in again])
            with self._lock:
                self._refuse_if_shut()
                again = [row for row in again if row.id not in self._state.tasks]
                labels = {**self._labels(rows), **{row.id: "requeued" for row in again}}
                self._finish(self._state.requeue(again, uniques, now), durable=True)
        task_log.say(self._lines)
        return [labels.get(id, "unknown") for id in ids]

    def drop(self, ids: Sequence[int]) -> Sequence[str]:
        """Delete the records of failed tasks."""
        self._check_ids(ids)
        with self._finals:
            self._write_out()
            gone = self._store.delete(ids, [FAILED], self._calls_now())
            rows = self._store.slim(ids)
        with self._lock:
            self._state.figures.final[FAILED] -= len(gone)
            labels = {**self._labels(rows), **dict.fromkeys(gone, "dropped")}
        return [labels.get(id, "unknown") for id in ids]

    def _labels(self, rows: Mapping[int, TaskRow]) -> dict[int, str]:
        """The states of these tasks; memory knows better than the store."""
        live = self._state.tasks
        return {id: (live[id].state if id in live else State(row.state)).label for id, row in rows.items()}

    @staticmethod
    def _check_ids(ids: Sequence[int]) -> None:
        if len(ids) > MAX_BATCH:
            raise BadArguments(f"at most {MAX_BATCH:,} ids in one call")
        for id in ids:
            check_number("id", id)
