"""The queue as everybody calls it: lock, clock, store and waiting around `QueueState`.

Theory of operation. One lock guards the state. Public methods take it, underscore methods assume it. A verb decides
under the lock by asking the pure state machine, puts what changed into the next commit, waits for that commit where its
reply depends on it, and then wakes whoever is concerned. Reads of the store happen without the lock. Nothing here knows
sockets, and nothing in the state machine knows any of this.

A reply that tells of a change (submit, report, cancel; also a state or result that somebody asks for) leaves after the
commit that holds it. A hand-out is not waited for: it is written with the next commit, or by the housekeeper within
50 ms; but a `reserve` waits for the commit of the submits that it hands out.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from taskq.clock import Clock
from taskq.config import VERSION, QueueSettings
from taskq.errors import BadArguments, KeyConflict, ShuttingDown, StaleRun, StorageFull, TaskNotFound
from taskq.logs import event
from taskq.queue import task_log
from taskq.queue.commit import GroupCommit
from taskq.queue.feeds import Feeds, outcome, unknown
from taskq.queue.housekeeper import LINGER, ROUND, Housekeeper
from taskq.queue.idempotency import Recent, call_digest
from taskq.queue.leases import Moment, Worker
from taskq.queue.limits import checked
from taskq.queue.snapshot import iso, snapshot
from taskq.queue.state import Changes, QueueState
from taskq.queue.task import FINAL, STATE_BY_LABEL, NewTask, State, Task, TaskRow, describe
from taskq.queue.waiting import WaitingRoom
from taskq.service import (
    MAX_BATCH,
    MAX_WAIT,
    Attached,
    BeatReply,
    ChildInfo,
    Finished,
    Handout,
    Hello,
    Outcome,
    PoolInfo,
    Report,
    Reserved,
    Submitted,
    TypeInfo,
    Types,
    WorkerInfo,
)
from taskq.stores.base import CallRow, KeyRow, Store, TypeRow, WorkerRow

log = logging.getLogger("taskq.queue")

_LIVE = {state.label for state in State if state not in FINAL}

PURGE_STEP = 1_000
"""Records deleted in one transaction, so that a purge holds nobody up."""
PROGRESS_STEP = 20_000
"""Records between two words of progress while loading."""


class JobQueue:
    """The queue of one manager. Implements `taskq.service.QueueService`.

    ``on_failure`` is called once when a write did not reach the disk; the process must then end.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        settings: QueueSettings,
        on_failure: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.settings = settings
        self.local_pool: str | None = None
        self.self_report: Callable[[], dict[str, Any]] = dict
        self._store = store
        self._clock = clock
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._waiting = WaitingRoom(self._lock)
        self._recent = Recent()
        self._types: dict[str, TypeInfo] = {}
        self._shut = False
        self._has_space = True
        self._lingering = 0
        self._housekeeper = Housekeeper(self)

    # -- life

    def open(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Take the store and load its live records; ``progress`` is told (done, total) from time to time."""
        opened = self._store.open()
        now = self._now()
        self._opened = opened
        self._started_at = now.wall
        self._state = QueueState(self.settings, epoch=opened.epoch, next_id=opened.next_id)
        self._state.figures.totals.update(opened.totals)
        self._state.figures.final.update(opened.final)
        self._feeds = Feeds(self._lock, opened.epoch << 40)
        self._commit = GroupCommit(
            self._lock,
            self._store,
            stored_below=opened.next_id,
            head=lambda: (self._state.next_id, self._state.figures.totals),
            settled=self._settled,
            failed=self._on_failure,
        )
        for row in opened.types:
            info = cast(TypeInfo, json.loads(row.info))
            self._types[row.name] = info
        for worker in opened.workers:
            self._state.leases.expect(*worker, now=now.mono)
        self._state.load(_with_progress(self._store.live(), opened.live, progress), now)
        self._has_space = self._store.has_space()

    def start(self) -> None:
        """Start the housekeeper: the one thread of the queue's own."""
        self._housekeeper.start()

    def shut(self) -> None:
        """Take no more work: submits, waiting reserves and feeds answer `ShuttingDown`; reports still count."""
        with self._lock:
            self._shut = True
            self._waiting.recall_all()
            self._feeds.close()

    def close(self) -> None:
        """Write what is left and close the store."""
        self.shut()
        self._housekeeper.stop()
        with self._lock:
            if not self._commit.broken:
                self._commit.settle(self._commit.mark)
        self._store.close()

    # -- chores (see `taskq.queue.housekeeper`)

    def tick(self) -> float:
        """Do what is due; gives the seconds until there is more to do."""
        with self._lock:
            now = self._now()
            for changes in self._state.tick(now):
                self._finish(changes, durable=False)
            self._commit.settle(self._lingering)
            self._lingering = self._commit.mark
            waits = [self._state.next_deadline(now), None if self._commit.idle else LINGER]
        return min((wait for wait in waits if wait is not None), default=ROUND)

    def look_after_disk(self) -> None:
        """Find out whether there is room for new tasks."""
        has_space = self._store.has_space()
        if self._has_space and not has_space:
            event(log, logging.WARNING, "storage_low", "the disk is nearly full: no new tasks are accepted")
        self._has_space = has_space

    def tidy(self) -> bool:
        """Delete a piece of what is too old; gives whether there may be more."""
        with self._lock:
            self._feeds.forget_quiet(self._clock.monotonic())
        wall = self._clock.wall()
        self._store.prune(wall)
        done = self._purge_piece([State.COMPLETED, State.CANCELLED], wall - self.settings.keep_completed)
        failed = self._purge_piece([State.FAILED], wall - self.settings.keep_failed)
        return max(done, failed) >= PURGE_STEP

    def monotonic(self) -> float:
        """Seconds of the queue's clock."""
        return self._clock.monotonic()

    def _now(self) -> Moment:
        return Moment(self._clock.monotonic(), self._clock.wall())

    def _refuse_if_shut(self) -> None:
        if self._shut:
            raise ShuttingDown("the manager is stopping", hint="try again when it is back")

    # -- what follows a decision

    def _record(self, changes: Changes) -> int:
        """Put changes into the next commit; gives its mark."""
        self._commit.add_left(changes.left)
        if not changes.written and not changes.left:
            return self._commit.mark
        task_log.transitions(changes.written)
        mark = self._commit.add(changes.written)
        self._housekeeper.expect(LINGER)
        if self._state.scheduled:
            self._housekeeper.expect(self._state.scheduled[0][0] - self._clock.wall())
        return mark

    def _finish(self, changes: Changes, *, durable: bool) -> None:
        """Record changes, wait for their commit if asked to, then wake whom they concern."""
        mark = self._record(changes)
        if durable:
            self._commit.settle(mark)
        if changes.ready:
            self._waiting.wake(changes.ready)

    def _settled(self, final: list[Task]) -> None:
        for task in final:
            self._state.forget(task)
        self._feeds.publish(final)

    # -- everybody

    def hello(self) -> Hello:
        """Who this manager is."""
        return {
            "name": self.settings.name,
            "version": VERSION,
            "store_id": self._opened.store_id,
            "epoch": self._opened.epoch,
            "durable": self._store.durable,
            "pid": os.getpid(),
            "started_at": self._started_at,
            "max_payload": self.settings.max_payload,
        }

    def types(self) -> Types:
        """The types ever announced, and how many workers offer each now."""
        with self._lock:
            offers = self._state.leases.offers
            known = [cast(TypeInfo, {**info, "workers": offers.get(name, 0)}) for name, info in self._types.items()]
        return {"types": known, "ever_joined": bool(known)}

    def snapshot(self) -> dict[str, Any]:
        """Figures for the monitor."""
        manager = {
            "name": self.settings.name,
            "version": VERSION,
            "pid": os.getpid(),
            "started_at": iso(self._started_at),
            "uptime_s": self._now().wall - self._started_at,
            "store": self._store.kind,
            "durable": self._store.durable,
            **self.self_report(),
        }
        with self._lock:
            warnings = []
            if not self._has_space:
                text = "the disk is nearly full: no new tasks are accepted"
                warnings.append({"code": "storage_full", "message": text})
            return snapshot(self._state, self._now(), manager, warnings)

    # -- clients

    def submit(self, client: int, seq: int, items: Sequence[NewTask]) -> Submitted:
        """Accept all of these tasks, or none."""
        good = checked(items, self.settings.max_payload)
        digest = call_digest(good)
        if not self._recent.knows(client):
            self._recent_learn(client)
        stored = self._store.find_call(client, seq) if self._may_be_known(client, seq) else None
        keys = [item.key for item in good if item.key is not None]
        known = self._store.find_keys(keys) if keys else {}
        with self._lock:
            self._refuse_if_shut()
            known.update((key, row) for key in keys if (row := self._recent.key(key)) is not None)
            twin = self._recent.call(client, seq) or stored
            if twin is not None:
                self._commit.settle(self._commit.mark)
                return _replayed(twin, digest, good, known)
            if not self._has_space:
                raise StorageFull(
                    "the disk of the manager is nearly full; not accepted", hint="free some space, then try again"
                )
            now = self._now()
            accepted = self._state.submit(client, good, known, now)
            call = CallRow(client, seq, self._state.next_id - len(good), len(good), digest, now.wall)
            self._recent.add(call, accepted.keys)
            self._commit.add_call(call, accepted.keys)
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
        with self._lock:
            self._refuse_if_shut()
            found = self._feeds.next(client, cursor, min(timeout, MAX_WAIT), self._clock.monotonic())
            self._refuse_if_shut()
        return found

    def wait(self, ids: Sequence[int], timeout: float) -> Sequence[Outcome]:
        """The outcomes of those of these tasks that are final or unknown, or of all with ``timeout`` 0."""
        if len(ids) > MAX_BATCH:
            raise BadArguments(f"at most {MAX_BATCH:,} ids in one call")
        deadline = self._clock.monotonic() + min(timeout, MAX_WAIT)
        while True:
            found = self._outcomes(ids)
            final = [item for item in found if item.state not in _LIVE]
            left = deadline - self._clock.monotonic()
            if timeout == 0:
                return found
            if final or left <= 0:
                return final
            with self._lock:
                self._refuse_if_shut()
                if all(task_id in self._state.tasks for task_id in ids):
                    self._feeds.watch(ids, left)

    def _outcomes(self, ids: Sequence[int]) -> list[Outcome]:
        live = self._live(ids)
        stored = self._store.get([task_id for task_id in ids if task_id not in live])
        return [
            live.get(task_id) or (outcome(stored[task_id]) if task_id in stored else unknown(task_id))
            for task_id in ids
        ]

    def _live(self, ids: Sequence[int]) -> dict[int, Outcome]:
        """The outcomes of those of these tasks that are not final; what is told of them is on disk."""
        with self._lock:
            if any(self._commit.is_dirty(task_id) for task_id in ids):
                self._commit.settle(self._commit.mark)
            found = (self._state.tasks.get(task_id) for task_id in ids)
            return {task.id: outcome(task) for task in found if task is not None and task.state not in FINAL}

    def result(self, id: int) -> Outcome:
        """The whole outcome of one task."""
        live = self._live([id])
        if id in live:
            return live[id]
        row = self._store.get([id]).get(id)
        if row is None:
            raise TaskNotFound(f"there is no task {id}", hint="finished tasks are kept for a day, failed ones for 30")
        return outcome(row, whole=True)

    def get(self, ids: Sequence[int]) -> Sequence[dict[str, Any] | None]:
        """Whole records."""
        if len(ids) > MAX_BATCH:
            raise BadArguments(f"at most {MAX_BATCH:,} ids in one call")
        self._write_out()
        rows = self._store.get(ids)
        return [describe(rows[task_id]) if task_id in rows else None for task_id in ids]

    def list_tasks(
        self, state: str | None, type: str | None, queue: str | None, limit: int
    ) -> Sequence[dict[str, Any]]:
        """Whole records, newest first."""
        states = () if state is None else (_state_named(state),)
        if not 0 < limit <= MAX_BATCH:
            raise BadArguments(f"a limit is a number from 1 to {MAX_BATCH:,}")
        self._write_out()
        return [describe(row) for row in self._store.select(states=states, type=type, queue=queue, limit=limit)]

    def _write_out(self) -> None:
        with self._lock:
            self._commit.settle(self._commit.mark)

    def cancel(self, ids: Sequence[int]) -> Sequence[str]:
        """Cancel these tasks; gives what each is now."""
        labels: dict[int, str] = {}
        with self._lock:
            self._refuse_if_shut()
            now = self._now()
            for task_id in ids:
                state, changes = self._state.cancel(task_id, now)
                self._record(changes)
                if state is not None:
                    labels[task_id] = state.label
            self._commit.settle(self._commit.mark)
        stored = self._store.get([task_id for task_id in ids if task_id not in labels])
        labels.update((task_id, State(row.state).label) for task_id, row in stored.items())
        return [labels.get(task_id, "unknown") for task_id in ids]

    def purge(self, states: Sequence[str], older_s: float) -> int:
        """Delete final records; gives their number."""
        wanted = [_state_named(label) for label in states]
        if not wanted or not FINAL.issuperset(wanted):
            raise BadArguments("only completed, failed and cancelled tasks can be purged")
        self._write_out()
        total = 0
        while (gone := self._purge_piece(wanted, self._clock.wall() - older_s)) > 0:
            total += gone
        return total

    def _purge_piece(self, states: Sequence[State], finished_before: float) -> int:
        gone = self._store.purge(states, finished_before, PURGE_STEP, self._clock.wall())
        with self._lock:
            for state, count in gone.items():
                self._state.figures.final[state] -= count
        return sum(gone.values())

    # -- pools

    def beat(self, pool: PoolInfo, children: Sequence[ChildInfo]) -> BeatReply:
        """A heartbeat of a pool."""
        with self._lock:
            leases = self._state.leases
            silent = [child["incarnation"] for child in children if self._was_silent(child["incarnation"])]
            leases.beat(dict(pool), [dict(child) for child in children], self._clock.monotonic())
            for incarnation in silent:
                self._waiting.recall(incarnation)
            foreign = pool["local"] is not None and pool["local"] != self.local_pool
            return {
                "drain": foreign or self._shut,
                "interval": leases.heartbeat,
                "store_id": self._opened.store_id,
                "epoch": self._opened.epoch,
            }

    def _was_silent(self, incarnation: str) -> bool:
        worker = self._state.leases.workers.get(incarnation)
        heartbeat = self._state.leases.heartbeat
        return worker is not None and not worker.may_reserve(self._clock.monotonic(), heartbeat)

    def child_died(
        self, pool: str, incarnation: str, how: str, started: Sequence[tuple[int, int]], counts: bool
    ) -> None:
        """A worker process is gone for certain."""
        with self._lock:
            worker = self._state.leases.remove(incarnation, dead=True)
            if worker is None:
                return
            begun = {int(task_id): int(run) for task_id, run in started}
            changes = self._state.worker_gone(worker, how, begun, self._now(), counts=counts)
            changes.left.append(incarnation)
            self._waiting.recall(incarnation)
            self._finish(changes, durable=True)
        task_log.worker_left(worker, how)

    def leave(self, pool: str) -> None:
        """A pool is over."""
        with self._lock:
            changes = Changes()
            for worker in self._state.leases.of_pool(pool):
                self._remove(worker, changes)
            self._state.leases.pools.pop(pool, None)
            self._finish(changes, durable=True)

    # -- worker processes

    def attach(self, worker: WorkerInfo, held: Sequence[tuple[int, int]]) -> Attached:
        """A worker process joins, first or again."""
        with self._lock:
            self._refuse_if_shut_to_new(worker)
            joined, lost, changes = self._state.attach(worker, held, self._now())
            row = WorkerRow(joined.incarnation, joined.pool, joined.name, joined.host, joined.pid)
            self._commit.add_worker(row, self._announce(worker["types"]))
            self._waiting.recall(joined.incarnation)
            mark = self._commit.add(changes.written)
            self._commit.settle(mark)
            self._waiting.wake(changes.ready)
        task_log.worker_joined(joined)
        return {
            "session": joined.session,
            "store_id": self._opened.store_id,
            "epoch": self._opened.epoch,
            "lost": lost,
        }

    def _refuse_if_shut_to_new(self, worker: WorkerInfo) -> None:
        if worker["incarnation"] not in self._state.leases.workers:
            self._refuse_if_shut()

    def _announce(self, types: Sequence[TypeInfo]) -> list[TypeRow]:
        """Remember what a worker offers; gives the rows that are new."""
        rows = []
        for info in types:
            text = json.dumps({**info, "workers": 0}, sort_keys=True)
            known = cast(TypeInfo, json.loads(text))
            if self._types.get(info["name"]) != known:
                self._types[info["name"]] = known
                rows.append(TypeRow(info["name"], text))
        return rows

    def reserve(
        self, incarnation: str, session: int, slots: int, extra: int, fast: Sequence[str], timeout: float
    ) -> Reserved:
        """The next tasks for a worker; waits for the first one."""
        deadline = self._clock.monotonic() + min(timeout, MAX_WAIT)
        with self._lock:
            while True:
                self._refuse_if_shut()
                worker = self._state.leases.session(incarnation, session)
                if worker is None or worker.draining:
                    return Reserved((), True)
                rivals = self._waiting.rivals(worker)
                tasks, changes = self._state.reserve(worker, slots, extra, fast, rivals, self._now())
                if tasks:
                    break
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    return Reserved((), False)
                self._waiting.wait(worker, left)
            self._record(changes)
            handouts = [_handout(task) for task in tasks]
            self._commit.settle_submits(max(task.id for task in tasks))
        return Reserved(self._with_payloads(handouts), False)

    def _with_payloads(self, handouts: list[Handout]) -> list[Handout]:
        resting = [handout.id for handout in handouts if handout.payload is None]
        if not resting:
            return handouts
        payloads = self._store.payloads(resting)
        return [h if h.payload is not None else h._replace(payload=payloads[h.id]) for h in handouts]

    def report(self, incarnation: str, session: int, reports: Sequence[Report]) -> Sequence[int]:
        """Outcomes of runs."""
        with self._lock:
            worker = self._session(incarnation, session)
            refused, changes = self._state.report(worker, reports, self._now())
            self._finish(changes, durable=True)
        if refused:
            task_log.refused(worker, [reports[position] for position in refused])
        return refused

    def _session(self, incarnation: str, session: int) -> Worker:
        worker = self._state.leases.session(incarnation, session)
        if worker is None:
            raise StaleRun("this session is over", hint="attach again")
        return worker

    def drain(self, incarnation: str, session: int) -> None:
        """Hand out nothing more to this worker."""
        with self._lock:
            self._session(incarnation, session).draining = True
            self._waiting.recall(incarnation)

    def detach(self, incarnation: str, session: int) -> None:
        """An orderly goodbye."""
        with self._lock:
            worker = self._session(incarnation, session)
            changes = Changes()
            self._remove(worker, changes)
            self._finish(changes, durable=True)
        task_log.worker_left(worker, "its own goodbye")

    def _remove(self, worker: Worker, changes: Changes) -> None:
        """A worker is gone in good order: whatever it still holds goes back."""
        self._state.leases.remove(worker.incarnation, dead=False)
        gone = self._state.worker_gone(worker, "leaving", {}, self._now(), counts=False)
        changes.written += gone.written
        changes.final += gone.final
        for shelf, count in gone.ready.items():
            changes.ready[shelf] = changes.ready.get(shelf, 0) + count
        changes.left.append(worker.incarnation)
        self._waiting.recall(worker.incarnation)


def _handout(task: Task) -> Handout:
    return Handout(
        task.id,
        task.run,
        task.type,
        cast(bytes, task.payload),  # None while it rests in the store: `_with_payloads` fetches it
        task.queue,
        task.failures + task.deaths + 1,
        task.timeout,
        task.correlation_id,
        task.submitted_at,
    )


def _replayed(call: CallRow, digest: bytes, items: Sequence[NewTask], known: Mapping[str, KeyRow]) -> Submitted:
    """The reply that this call had when it was made first."""
    if call.digest != digest:
        raise KeyConflict("this submit call was made before with other tasks; nothing was accepted")
    ids = list(range(call.first_id, call.first_id + call.size))
    existing = []
    for position, item in enumerate(items):
        row = known.get(item.key) if item.key is not None else None
        if row is not None and row.id != ids[position]:
            ids[position] = row.id
            existing.append(position)
    return Submitted(ids, existing)


def _state_named(label: str) -> State:
    try:
        return STATE_BY_LABEL[label]
    except KeyError:
        raise BadArguments(f'there is no state "{label}"', hint="one of " + ", ".join(STATE_BY_LABEL)) from None


def _with_progress(rows: Iterator[TaskRow], total: int, progress: Callable[[int, int], None]) -> Iterator[TaskRow]:
    for number, row in enumerate(rows):
        if number % PROGRESS_STEP == 0:
            progress(number, total)
        yield row
    progress(total, total)
