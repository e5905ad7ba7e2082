"""The verbs of clients: submit, ask, cancel, purge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskq.errors import BadArguments, KeyConflict, NotUnique, StorageFull, TaskNotFound
from taskq.queue.core import QueueCore
from taskq.queue.feeds import fitting, outcome, unknown
from taskq.queue.idempotency import call_digest
from taskq.queue.limits import check_number, check_seconds, checked
from taskq.queue.task import FINAL, State, state_named
from taskq.queue.task_row import TaskRow, cut, describe
from taskq.queue.terms import NewTask
from taskq.queue.uniqueness import as_long_as_calls
from taskq.service import MAX_BATCH, MAX_BATCH_BYTES, MAX_WAIT
from taskq.shapes import Finished, Outcome, Submitted
from taskq.stores.base import CallRow, KeyRow

_LIVE = {state.label for state in State if state not in FINAL}


class ClientVerbs(QueueCore):
    """What clients may call; see `taskq.service.QueueService` for what each verb promises."""

    def submit(self, client: int, seq: int, items: Sequence[NewTask]) -> Submitted:
        """Accept all of these tasks, or none."""
        check_number("client", client)
        check_number("seq", seq)
        good = checked(items, self.settings.max_payload)
        digest = call_digest(good)
        self._look_if_much_came(sum(len(item.payload) for item in good))
        keys = [item.key for item in good if item.key is not None]
        repeated = None
        while repeated is None:
            turns = self._recent.turns
            stored = self._find_call(client, seq)
            known = self._store.find_keys(keys) if keys else {}
            with self._lock:
                if self._recent.turns != turns:
                    continue  # what was neither in the store then, nor is here now, may have gone from here to there
                self._refuse_if_shut()
                twin = self._recent.call(client, seq) or stored
                known.update((key, row) for key in keys if (row := self._recent.key(key)) is not None)
                if twin is None:
                    return self._accept(client, seq, good, digest, known)
                self._commit.settle(self._commit.mark)
                repeated = twin
        first = repeated.first_id
        unused = [first + position for position, item in enumerate(good) if item.unique or item.key]
        return _replayed(repeated, digest, self._store.twins(unused) if unused else {})

    def _find_call(self, client: int, seq: int) -> CallRow | None:
        """What the store knows of this call."""
        if not self._recent.knows(client):
            self._recent_learn(client)
        return self._store.find_call(client, seq) if self._may_be_known(client, seq) else None

    def _accept(
        self, client: int, seq: int, items: Sequence[NewTask], digest: bytes, known: Mapping[str, KeyRow]
    ) -> Submitted:
        if not self._has_space or self._store.strained:
            raise StorageFull(
                "the disk of the manager is nearly full; not accepted", hint="free some space, then try again"
            )
        now = self._now()
        try:
            accepted = self._state.submit(client, items, known, now)
        except (KeyConflict, NotUnique):  # they tell of a task: only when it is on disk
            self._commit.settle(self._commit.mark)
            raise
        first_id = self._state.next_id - len(items)
        call = CallRow(client, seq, first_id, len(items), digest, self._ageing.calls(now))
        self._recent.add(call, accepted.keys)
        self._commit.add_call(call, accepted.keys, as_long_as_calls(accepted.uniques, call.at))
        if self._recent.is_large():
            self._recent.turn(self._commit.mark, self._commit.covered)
        self._finish(accepted.changes, durable=True)
        return Submitted(accepted.ids, accepted.existing)

    def _recent_learn(self, client: int) -> None:
        highest = self._store.last_seq(client)
        with self._lock:
            self._recent.learn(client, highest)

    def _may_be_known(self, client: int, seq: int) -> bool:
        with self._lock:
            return not self._recent.is_new(client, seq) and self._recent.call(client, seq) is None

    def finished(self, client: int, cursor: int, timeout: float) -> Finished:
        """The next outcomes of this client's tasks."""
        patience = min(check_seconds("timeout", timeout), MAX_WAIT)
        with self._lock:
            self._refuse_if_shut()
            found = self._feeds.next(client, cursor, patience, self._clock.monotonic())
            self._refuse_if_shut()
        return found

    def wait(self, ids: Sequence[int], timeout: float) -> Sequence[Outcome]:
        """The outcomes of those of these tasks that are final or unknown, or of all with ``timeout`` 0."""
        if len(ids) > MAX_BATCH:
            raise BadArguments(f"at most {MAX_BATCH:,} ids in one call")
        deadline = self._clock.monotonic() + min(check_seconds("timeout", timeout), MAX_WAIT)
        while True:
            found = self._outcomes(ids)
            final = [item for item in found if item.state not in _LIVE]
            left = deadline - self._clock.monotonic()
            if timeout == 0:
                return fitting(found)
            if final or left <= 0:
                return fitting(final)
            with self._lock:
                self._refuse_if_shut()
                if all(task_id in self._state.tasks for task_id in ids):
                    self._feeds.watch(ids, left)

    def _outcomes(self, ids: Sequence[int]) -> list[Outcome]:
        live = self._live(ids)
        stored = self._stored([task_id for task_id in ids if task_id not in live])
        return [
            live.get(task_id) or (outcome(stored[task_id]) if task_id in stored else unknown(task_id))
            for task_id in ids
        ]

    def _live(self, ids: Sequence[int]) -> dict[int, Outcome]:
        """The outcomes of those of these tasks that are not final; what is told of them is on disk."""
        with self._lock:
            if any(self._commit.is_dirty(task_id) for task_id in ids):
                self._commit.settle_all()
            found = (self._state.tasks.get(task_id) for task_id in ids)
            return {task.id: outcome(task) for task in found if task is not None and task.state not in FINAL}

    def _stored(self, ids: Sequence[int]) -> dict[int, TaskRow]:
        """Stored records as they are to be shown now."""
        wall = self._clock.wall()
        return {id: row.at(wall) for id, row in self._store.get(ids).items()}

    def result(self, id: int) -> Outcome:
        """The whole outcome of one task."""
        live = self._live([id])
        if id in live:
            return live[id]
        row = self._stored([id]).get(id)
        if row is None:
            raise TaskNotFound(f"there is no task {id}", hint="finished tasks are kept for a day, failed ones for 30")
        return outcome(row, whole=True)

    def get(self, ids: Sequence[int]) -> Sequence[dict[str, Any] | None]:
        """Whole records."""
        if len(ids) > MAX_BATCH:
            raise BadArguments(f"at most {MAX_BATCH:,} ids in one call")
        self._write_out()
        rows = self._stored(ids)
        return _described([rows.get(task_id) for task_id in ids])

    def list_tasks(
        self, state: str | None, type: str | None, queue: str | None, limit: int
    ) -> Sequence[dict[str, Any]]:
        """Whole records, newest first."""
        states = () if state is None else (state_named(state),)
        if not 0 < limit <= MAX_BATCH:
            raise BadArguments(f"a limit is a number from 1 to {MAX_BATCH:,}")
        self._write_out()
        rows = self._store.select(states=states, type=type, queue=queue, limit=limit)
        wall = self._clock.wall()
        return [record for record in _described([row.at(wall) for row in rows]) if record is not None]

    def cancel(self, ids: Sequence[int]) -> Sequence[str]:
        """Cancel these tasks; gives what each is now."""
        if len(ids) > MAX_BATCH:
            raise BadArguments(f"at most {MAX_BATCH:,} ids in one call")
        labels: dict[int, str] = {}
        left: Sequence[int] = ids
        while left:
            with self._lock:
                self._refuse_if_shut()
                now = self._now()
                for task_id in left:
                    state, changes = self._state.cancel(task_id, now)
                    self._record(changes)
                    if state is not None:
                        labels[task_id] = state.label
                self._commit.settle(self._commit.mark)
            stored = self._store.get([task_id for task_id in left if task_id not in labels])
            over = {task_id: State(row.state) for task_id, row in stored.items() if row.state in FINAL}
            labels.update((task_id, state.label) for task_id, state in over.items())
            left = [task_id for task_id in stored if task_id not in over]  # submitted, or requeued, just now
        return [labels.get(task_id, "unknown") for task_id in ids]

    def purge(self, states: Sequence[str], older_s: float) -> int:
        """Delete final records; gives their number."""
        wanted = [state_named(label) for label in states]
        if not wanted or not FINAL.issuperset(wanted):
            raise BadArguments("only completed, failed and cancelled tasks can be purged")
        finished_before = self._clock.wall() - check_seconds("older_s", older_s)
        self._write_out()
        total = 0
        while (gone := self._purge_piece(wanted, finished_before)) > 0:
            self._refuse_if_shut()
            total += gone
        self._cleaner.call()  # to give the room back
        return total


def _described(rows: Sequence[TaskRow | None]) -> list[dict[str, Any] | None]:
    """Records for one reply: whole as long as they are `MAX_BATCH_BYTES` in all (the first in any case), else cut."""
    records: list[dict[str, Any] | None] = []
    room = MAX_BATCH_BYTES
    for row in rows:
        if row is None:
            records.append(None)
            continue
        size = len(row.payload or b"") + len(row.result or b"") + sum(map(len, row.error or ()))
        whole = size <= room or not any(records)
        records.append(describe(row) if whole else cut(row))
        room -= size if whole else 0
    return records


def _replayed(call: CallRow, digest: bytes, twins: Mapping[int, int]) -> Submitted:
    """The reply that this call had when it was made first. ``twins``: given instead of ids that it did not use."""
    if call.digest != digest:
        raise KeyConflict("this submit call was made before with other tasks; nothing was accepted")
    own = range(call.first_id, call.first_id + call.size)
    existing = [position for position, id in enumerate(own) if id in twins]
    return Submitted([twins.get(id, id) for id in own], existing)
