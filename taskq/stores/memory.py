"""A store that lives and dies with its object: for tests, and for queues that need not survive a restart.

It keeps its records over `close` and `open` of the same object, so that a restart can be played through without a disk.
"""

from __future__ import annotations

import heapq
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from taskq.errors import ConfigError, StoreFailed, StoreLocked
from taskq.queue.task import FINAL, State
from taskq.queue.task_row import TaskRow
from taskq.stores.base import (
    INLINE_PAYLOAD,
    KEEP_ATTEMPTS,
    KEEP_CALLS,
    AttemptRow,
    Batch,
    CallRow,
    KeyRow,
    Opened,
    QueueRow,
    Take,
    TypeRow,
    UniqueRow,
    WorkerRow,
    nothing,
)
from taskq.turns import Turns

PRUNED = 1_000
"""Calls, keys and unique values that are forgotten at one go."""

K = TypeVar("K")


class Ends(Generic[K]):
    """When things are over; the end that was set last counts."""

    def __init__(self) -> None:
        self._ends: dict[K, float] = {}
        self._heap: list[tuple[float, K]] = []

    def set(self, key: K, end: float) -> None:
        """It is over then."""
        self._ends[key] = end
        heapq.heappush(self._heap, (end, key))

    def clear(self, key: K) -> None:
        """It has no end."""
        self._ends.pop(key, None)

    def all(self) -> Iterable[float]:
        """When the things that have an end are over, in no order."""
        return self._ends.values()

    def over(self, now: float) -> list[K]:
        """Take up to `PRUNED` of those that are over, the first ones first."""
        found: list[K] = []
        while self._heap and self._heap[0][0] <= now and len(found) < PRUNED:
            end, key = heapq.heappop(self._heap)
            if self._ends.get(key) == end:
                del self._ends[key]
                found.append(key)
        return found


class MemoryStore:
    """Records in dictionaries, behind the interface of `taskq.stores.base.Store`."""

    kind = "memory"
    durable = False
    strained = False

    def __init__(self) -> None:
        self._mutex = Turns()
        self._open = False
        self._store_id = secrets.randbits(63)
        self._epoch = 0
        self._next_id = 1
        self._totals: dict[str, int] = {}
        self._rows: dict[int, TaskRow] = {}
        # Final records by age, oldest first; an entry whose record has changed since is skipped when it comes up.
        self._ages: dict[State, list[tuple[float, int]]] = {state: [] for state in FINAL}
        self._result_ends: list[tuple[float, int]] = []
        self._calls: dict[tuple[int, int], CallRow] = {}
        self._call_ends: Ends[tuple[int, int]] = Ends()
        self._last_seqs: dict[int, int] = {}
        self._keys: dict[str, KeyRow] = {}
        self._key_ends: Ends[str] = Ends()
        self._uniques: dict[int, UniqueRow] = {}
        self._unique_ends: Ends[int] = Ends()
        self._types: dict[TypeRow, None] = {}
        self._workers: dict[str, WorkerRow] = {}
        self._queues: dict[str, QueueRow] = {}
        self._attempts: dict[int, dict[int, AttemptRow]] = {}

    def open(self, take: Take = nothing) -> Opened:
        """Begin another epoch; see `Store.open`. Raises `StoreLocked` when it is open already."""
        with self._mutex:
            if self._open:
                raise StoreLocked("the store is open already")
            counts = Counter(State(row.state) for row in self._rows.values())
            final = {state: counts.pop(state) for state in sorted(FINAL) if state in counts}
            opened = Opened(
                self._store_id,
                self._epoch + 1,
                self._next_id,
                dict(self._totals),
                counts.total(),
                final,
                list(self._types),
                list(self._workers.values()),
                list(self._queues.values()),
                self._rows[max(self._rows)].submitted_at if self._rows else None,
                max(self._call_times(), default=None),
            )
            take(opened, self._live())
            self._open = True
            self._epoch += 1
            return opened

    def _call_times(self) -> Iterator[float]:
        """What carries the time of calls: they themselves, and keys that outlast them."""
        yield from (call.at for call in self._calls.values())
        yield from (end - KEEP_CALLS for end in self._key_ends.all())

    def _live(self) -> Iterator[TaskRow]:
        for id in sorted(id for id, row in self._rows.items() if row.state not in FINAL):
            row = self._rows[id]
            keep = row.payload is not None and len(row.payload) <= INLINE_PAYLOAD
            yield row if keep else row._replace(payload=None)

    def write(self, batch: Batch) -> None:
        """See `Store.write`; raises `StoreFailed` when the store is closed."""
        with self._mutex:
            if not self._open:
                raise StoreFailed("the store is closed")
            for row in batch.new:
                self._put(row)
            for change in batch.changed:
                before = self._rows.get(change.id)
                if before is not None:
                    self._put(TaskRow._make((*before[: -len(change)], *change[1:], before.terms_more)))
            for call in batch.calls:
                self._calls[call.client, call.seq] = call
                self._call_ends.set((call.client, call.seq), call.at)
                self._last_seqs[call.client] = max(call.seq, self._last_seqs.get(call.client, 0))
            for key in batch.keys:
                self._keys[key.key] = key
                self._key_ends.clear(key.key)
            self._uniques.update((unique.id, unique) for unique in batch.uniques)
            for unique in batch.uniques:
                if unique.twin is not None:
                    self._unique_ends.set(unique.id, unique.until or 0.0)
            self._write_rare(batch)
            self._next_id = batch.next_id
            self._totals = dict(batch.totals)

    def _write_rare(self, batch: Batch) -> None:
        for announced in batch.types:
            self._types.pop(announced, None)
            self._types[announced] = None
        self._workers.update((worker.incarnation, worker) for worker in batch.joined)
        for incarnation in batch.left:
            self._workers.pop(incarnation, None)
        for rules in batch.queues:
            self._queues[rules.name] = rules
        for id, at in batch.result_ends:
            heapq.heappush(self._result_ends, (at, id))
        self._keep(batch.attempts)

    def _put(self, row: TaskRow) -> None:
        self._rows[row.id] = row
        if row.state in FINAL and row.finished_at is not None:
            heapq.heappush(self._ages[State(row.state)], (row.finished_at, row.id))

    def _keep(self, attempts: Iterable[AttemptRow]) -> None:
        for attempt in attempts:
            kept = self._attempts.setdefault(attempt.id, {})
            kept[attempt.run] = attempt
            while len(kept) > KEEP_ATTEMPTS:
                del kept[min(kept)]

    def has_space(self) -> bool:
        """Always: memory is bounded by the limits of the queue."""
        return True

    def payloads(self, ids: Sequence[int]) -> dict[int, bytes]:
        """See `Store.payloads`."""
        return {id: row.payload for id, row in self.get(ids).items() if row.payload is not None}

    def get(self, ids: Sequence[int]) -> dict[int, TaskRow]:
        """See `Store.get`."""
        with self._mutex:
            return {id: self._rows[id] for id in ids if id in self._rows}

    def slim(self, ids: Sequence[int]) -> dict[int, TaskRow]:
        """See `Store.slim`."""
        return {id: row._replace(payload=None, result=None) for id, row in self.get(ids).items()}

    def select(
        self, *, states: Iterable[State] = (), type: str | None = None, queue: str | None = None, limit: int = 50
    ) -> list[TaskRow]:
        """See `Store.select`."""
        wanted = frozenset(states)
        found: list[TaskRow] = []
        with self._mutex:
            for id in sorted(self._rows, reverse=True):
                if len(found) >= limit:
                    break
                row = self._rows[id]
                if (not wanted or row.state in wanted) and type in (None, row.type) and queue in (None, row.queue):
                    found.append(row)
        return found

    def scan(self, states: Iterable[State], below: int, limit: int) -> tuple[list[TaskRow], int]:
        """See `Store.scan`; reads all at once."""
        wanted = frozenset(states)
        found: list[TaskRow] = []
        with self._mutex:
            for id in sorted((id for id in self._rows if not below or id < below), reverse=True):
                if len(found) >= limit:
                    return found, found[-1].id
                if not wanted or self._rows[id].state in wanted:
                    found.append(self._rows[id]._replace(payload=None, result=None))
        return found, 0

    def attempts(self, id: int) -> list[AttemptRow]:
        """See `Store.attempts`."""
        with self._mutex:
            return [attempt for _, attempt in sorted(self._attempts.get(id, {}).items())]

    def last_seq(self, client: int) -> int:
        """See `Store.last_seq`."""
        with self._mutex:
            return self._last_seqs.get(client, 0)

    def find_call(self, client: int, seq: int) -> CallRow | None:
        """See `Store.find_call`."""
        with self._mutex:
            return self._calls.get((client, seq))

    def find_keys(self, keys: Sequence[str]) -> dict[str, KeyRow]:
        """See `Store.find_keys`."""
        with self._mutex:
            return {key: self._keys[key] for key in keys if key in self._keys}

    def uniques_of(self, ids: Sequence[int]) -> list[UniqueRow]:
        """See `Store.uniques_of`."""
        with self._mutex:
            found = [self._uniques[id] for id in ids if id in self._uniques]
        return [row for row in found if row.twin is None]

    def uniques(self, now: float) -> list[UniqueRow]:
        """See `Store.uniques`."""
        with self._mutex:
            return [
                row
                for id, row in sorted(self._uniques.items())
                if row.twin is None
                and ((row.until or 0) > now or (id in self._rows and self._rows[id].state not in FINAL))
            ]

    def twins(self, ids: Sequence[int]) -> dict[int, int]:
        """See `Store.twins`."""
        with self._mutex:
            found = {id: self._uniques[id].twin for id in ids if id in self._uniques}
        return {id: twin for id, twin in found.items() if twin is not None}

    def purge(self, states: Iterable[State], finished_before: float, limit: int, now: float) -> dict[State, int]:
        """See `Store.purge`."""
        gone: Counter[State] = Counter()
        with self._mutex:
            for state in sorted(FINAL.intersection(states)):
                ages = self._ages[state]
                while ages and ages[0][0] < finished_before and gone.total() < limit:
                    finished_at, id = heapq.heappop(ages)
                    row = self._rows.get(id)
                    if row is None or row.state != state or row.finished_at != finished_at:
                        continue
                    self._drop(row, now)
                    gone[state] += 1
        return dict(gone)

    def _drop(self, row: TaskRow, now: float) -> None:
        del self._rows[row.id]
        self._attempts.pop(row.id, None)
        if row.key is not None and row.key in self._keys and self._keys[row.key].id == row.id:
            self._key_ends.set(row.key, now + KEEP_CALLS)
        if row.id in self._uniques:
            self._unique_ends.set(row.id, self._uniques[row.id].until or 0.0)

    def delete(self, ids: Sequence[int], states: Iterable[State], now: float) -> list[int]:
        """See `Store.delete`."""
        wanted = FINAL.intersection(states)
        with self._mutex:
            doomed = [self._rows[id] for id in dict.fromkeys(ids) if id in self._rows]
            doomed = [row for row in doomed if row.state in wanted]
            for row in doomed:
                self._drop(row, now)
        return [row.id for row in doomed]

    def forget_results(self, now: float, limit: int) -> int:
        """See `Store.forget_results`."""
        count = 0
        with self._mutex:
            while self._result_ends and self._result_ends[0][0] <= now and count < limit:
                _, id = heapq.heappop(self._result_ends)
                if id in self._rows:
                    self._rows[id] = self._rows[id]._replace(result=None)
                count += 1
        return count

    def prune(self, now: float, calls: float) -> bool:
        """See `Store.prune`."""
        with self._mutex:
            old, keys = self._call_ends.over(calls - KEEP_CALLS), self._key_ends.over(calls)
            for client, seq in old:
                del self._calls[client, seq]
                if self._last_seqs.get(client) == seq:
                    del self._last_seqs[client]
            for key in keys:
                del self._keys[key]
            uniques = self._unique_ends.over(min(now, calls))  # repetitions go by the calls, windows by the wall clock
            for id in uniques:
                del self._uniques[id]
            return PRUNED in (len(old), len(keys), len(uniques))

    def shrink(self) -> bool:
        """See `Store.shrink`; there is nothing to do."""
        return False

    def backup(self, target: Path, progress: Callable[[int, int], None]) -> None:
        """See `Store.backup`."""
        raise ConfigError("this manager keeps its tasks in memory only: there is nothing to copy")

    def close(self) -> None:
        """Stop taking writes; the records stay with the object."""
        with self._mutex:
            self._open = False
