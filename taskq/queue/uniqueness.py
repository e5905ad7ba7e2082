"""Which tasks stand for a unique value, so that a submit finds the twin that is there already. PURE.

The submitter makes the value (a digest of what must not be there twice) and says what counts as a twin: a task with
this value in one of certain states, or one that was submitted less than ``within`` seconds ago, whatever became of it.
A final task is remembered for as long as its own ``within``. The store has all of this too (`UniqueRow`), so that it
survives a restart; it is written with the submit and never changes.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Iterable, Mapping, Sequence

from taskq.errors import NotUnique
from taskq.queue.task import Task
from taskq.queue.terms import NewTask, Terms
from taskq.stores.base import KEEP_CALLS, UniqueRow


class Uniqueness:
    """The index by value, over tasks that are alive and final ones whose window goes on."""

    def __init__(self) -> None:
        self._rows: dict[int, UniqueRow] = {}
        self._ids: dict[bytes, list[int]] = {}  # oldest first
        self._windows: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, rows: Iterable[UniqueRow]) -> None:
        """Tasks that stand for their values; rows that tell of a repetition, or are here, are left out."""
        for row in rows:
            if row.twin is None and row.id not in self._rows:
                self._rows[row.id] = row
                insort(self._ids.setdefault(row.value, []), row.id)
                if row.until is not None:
                    heapq.heappush(self._windows, (row.until, row.id))

    def admit(
        self, items: Sequence[NewTask], ids: list[int], existing: list[int], tasks: Mapping[int, Task], wall: float
    ) -> list[UniqueRow]:
        """Decide about the unique ones among these items; gives the rows to store, and to `add` once all is decided.

        Where there is a twin, its id goes into ``ids`` and the position into ``existing``. ``tasks``: those that are
        alive. Raises `NotUnique` where the item asks for that; then nothing has changed.
        """
        rows: list[UniqueRow] = []
        here: dict[bytes, list[tuple[int, str]]] = {}  # what this call brings: ids and states
        for position, item in enumerate(items):
            terms, value = item.terms, item.unique
            if value is None or terms.unique_in is None:
                continue
            twin = _twin_here(here.get(value, ()), terms) or self._twin(value, terms, tasks, wall)
            if twin is None:
                later = item.delay > 0 or (item.at is not None and item.at > wall)
                here.setdefault(value, []).append((ids[position], "scheduled" if later else "pending"))
                until = wall + terms.unique_within if terms.unique_within else None
                rows.append(UniqueRow(ids[position], value, wall, until, None))
                continue
            if terms.unique_raises:
                raise _conflict(position, item, twin)
            rows.append(UniqueRow(ids[position], value, wall, None, twin))
            ids[position] = twin
            existing.append(position)
        existing.sort()
        return rows

    def _twin(self, value: bytes, terms: Terms, tasks: Mapping[int, Task], wall: float) -> int | None:
        """The newest task that counts as one with this value already."""
        for number in reversed(self._ids.get(value, ())):
            task = tasks.get(number)
            if task is not None and terms.unique_in and task.state.label in terms.unique_in:
                return number
            if abs(wall - self._rows[number].at) < terms.unique_within:  # a clock that was ahead then opens no long one
                return number
        return None

    def forget(self, ids: Iterable[int]) -> None:
        """These tasks are final; those whose window goes on are let go by `sweep`."""
        for number in ids:
            row = self._rows.get(number)
            if row is not None and row.until is None:
                self._drop(row)

    def sweep(self, tasks: Mapping[int, Task], wall: float) -> None:
        """Windows that are over by now: final tasks stand for their values no more."""
        while self._windows and self._windows[0][0] <= wall:
            row = self._rows.get(heapq.heappop(self._windows)[1])
            if row is None:
                continue
            self._rows[row.id] = row = row._replace(until=None)
            if row.id not in tasks:
                self._drop(row)

    def _drop(self, row: UniqueRow) -> None:
        del self._rows[row.id]
        ids = self._ids[row.value]
        ids.remove(row.id)
        if not ids:
            del self._ids[row.value]

    def has_window(self, number: int) -> bool:
        """Whether this task counts for some time whatever became of it."""
        return self._rows[number].until is not None

    def ids(self) -> set[int]:
        """The tasks that stand for a value."""
        return set(self._rows)


def repetitions(first: int, ids: Sequence[int], existing: Sequence[int], wall: float) -> list[UniqueRow]:
    """What is to be known of items that a key had already, so that the same call gives the same ids again even when
    the key is no longer kept. ``first``: the id that the first item would have had."""
    return [UniqueRow(first + position, b"", wall, None, ids[position]) for position in existing]


def as_long_as_calls(rows: Iterable[UniqueRow], calls: float) -> list[UniqueRow]:
    """The same rows; those of repetitions are kept for as long as the call that they belong to, made at ``calls``."""
    return [row if row.twin is None else row._replace(until=calls + KEEP_CALLS) for row in rows]


def _twin_here(here: Sequence[tuple[int, str]], terms: Terms) -> int | None:
    return next((id for id, label in reversed(here) if terms.unique_within or label in (terms.unique_in or ())), None)


def _conflict(position: int, item: NewTask, twin: int) -> NotUnique:
    return NotUnique(
        f"entry {position + 1}: task {twin} ({item.terms.type}) is there with the same values; nothing was accepted",
        hint='wait until it is over, or submit with on_conflict="return" to get its handle',
        details={"id": twin, "position": position},
    )
