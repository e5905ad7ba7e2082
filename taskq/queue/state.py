"""The queue as a pure state machine: every decision about tasks is made here. PURE.

Theory of operation. `QueueState` holds the records of all tasks that are not final (and of final ones until the store
has them), and the bookkeeping that can be derived from them: shelves of pending tasks, the schedule of others, what
each worker runs, counters. Each verb takes ``now`` and gives `Changes`: the records that must be written, those that
became final, and what became pending. It waits for nothing, locks nothing and writes nothing; the shell around it
(`taskq.queue.job_queue`) does.

Rules. (1) Only the doors in `taskq.queue.moves` change a task's state, and only along the table in `lifecycle`. (2) A
worker's word about a task counts only with the run that is current: with any other nothing changes. (3) A task object
that has left the shelves or the schedule by another door than their own never comes back into them; a copy takes its
place (`_readopt`), so that the entry it leaves behind stays stale.

`taskq.queue.check` derives all bookkeeping anew and compares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from math import inf

from taskq.config import QueueSettings
from taskq.queue import dispatch
from taskq.queue.admission import afresh, by_queue, full, kinds, record, resolve_keys, without
from taskq.queue.changes import Accepted, Changes
from taskq.queue.expiry import expired
from taskq.queue.leases import SILENT_KEPT, Moment, Worker, owned
from taskq.queue.lifecycle import Event
from taskq.queue.moves import UNKNOWN, Moves
from taskq.queue.ready import Ready, Shelf
from taskq.queue.retry import MAX_DEATHS, death_delay, retry_delay
from taskq.queue.stopping import Stopping
from taskq.queue.suspects import verdict
from taskq.queue.task import FINAL, PENDING, RUNNING, SCHEDULED, State, Task, TaskError
from taskq.queue.task_row import TaskRow, from_row
from taskq.queue.terms import NewTask
from taskq.queue.uniqueness import Uniqueness, repetitions
from taskq.shapes import ACK, GIVE_BACK, NACK, PROGRESS, SNOOZE, Evidence, Report, WorkerInfo
from taskq.stores.base import KeyRow, UniqueRow

DUE_STEP = 5_000
"""Most scheduled tasks that one `QueueState.tick` makes pending: a hundred thousand may be due in the same second."""

LOAD_STEP = 1_000
"""Records that are loaded at a time."""


class QueueState(Moves):
    """All tasks that are alive, and who runs them."""

    def __init__(self, settings: QueueSettings, *, epoch: int = 1, next_id: int = 1) -> None:
        super().__init__(settings.lease, epoch)
        self.settings = settings
        self.next_id = next_id
        self.stopping = Stopping()
        self.uniqueness = Uniqueness()
        self.rules = dispatch.Rules()

    # -- start

    def load(self, rows: Iterable[TaskRow], now: Moment) -> int:
        """Take over live records by rising id, through the doors that all tasks use; gives their number.

        Pending ones are kept back for a while (see `tick`). Workers must be known before (`Leases.expect`); one
        that is not gets the usual lease.
        """
        self.places.keep_back(self.next_id, now)
        self.follow_wall_clock(now)  # so that the first tick sees whether it was set meanwhile
        before, left = len(self.tasks), iter(rows)
        while tasks := [from_row(row) for row in islice(left, LOAD_STEP)]:
            self.tasks.update((task.id, task) for task in tasks)
            waiting = [task for task in tasks if task.state is PENDING and not task.deaths]
            for (queue, _), count in self.places.load_pending(waiting).items():
                self.figures.entered(queue, PENDING, count)
            if len(waiting) < len(tasks):
                self._load_others([task for task in tasks if task.state is not PENDING or task.deaths], now)
        return len(self.tasks) - before

    def _load_others(self, tasks: Iterable[Task], now: Moment) -> None:
        loaded = Changes()
        for task in tasks:
            self.figures.entered(task.queue, task.state)
            if task.state is RUNNING:
                worker = self._worker_of(task, now)
                worker.running[task.id] = task
                worker.alone = worker.alone or task.deaths > 0
                if task.cancel_requested:
                    self.stopping.add(task)
            else:
                self.places.load(task, now, loaded)

    def resume(self, now: Moment) -> None:
        """Loading, which may take long, is over: only now do leases begin, and the time to come back in."""
        self.places.hold_from(now)
        self.leases.renew(now.mono)

    def _worker_of(self, task: Task, now: Moment) -> Worker:
        incarnation = task.worker or UNKNOWN
        worker = self.leases.workers.get(incarnation)
        return worker or self.leases.expect(incarnation, "", task.worker_name or UNKNOWN, "", 0, now.mono)

    # -- clients

    def submit(self, client: int, items: Sequence[NewTask], known: Mapping[str, KeyRow], now: Moment) -> Accepted:
        """Accept all items or none. ``known``: what the store knows of the keys among them.

        Raises `QueueFull`, `KeyConflict`, `NotUnique`.
        """
        changes, terms = Changes(), kinds(items)
        ids, existing, keys = resolve_keys(items, known, self.next_id)
        uniques = repetitions(self.next_id, ids, existing, now.wall)
        if any(kind.unique_in is not None for kind in terms):
            uniques += self.uniqueness.admit(items, ids, existing, self.tasks, now.wall)
        fresh = without(existing, ids, items)
        counts = by_queue(fresh, terms)
        self._refuse_if_full(counts, now)
        for queue, count in counts.items():
            self.figures.submitted(queue, count, now.mono)
        self.next_id += len(items)
        changes.written = [record(id, item, client, now.wall) for id, item in fresh]
        self.tasks.update((task.id, task) for task in changes.written)
        changes.ready = self.places.ready.extend([task for task in changes.written if task.state is PENDING])
        for (queue, _), count in changes.ready.items():
            self.figures.entered(queue, PENDING, count)
        for task in changes.written:
            if task.state is SCHEDULED:
                self.figures.entered(task.queue, SCHEDULED)
                self.places.schedule.push(task)
        if any(kind.expiring for kind in terms):
            for task in changes.written:
                self.places.expiry.push(task)
        self.uniqueness.add(uniques)
        return Accepted(ids, existing, keys, changes, uniques)

    def _refuse_if_full(self, counts: Mapping[str, int], now: Moment) -> None:
        for queue, count in counts.items():
            if self.figures.queues[queue].waiting() + count > self.settings.max_pending:
                raise full(queue, self.figures.queues[queue].waiting(), self.places.oldest_pending(now).get(queue))

    def requeue(self, rows: Sequence[TaskRow], uniques: Sequence[UniqueRow], now: Moment) -> Changes:
        """Failed or cancelled tasks, as the store gave them without payload, begin anew. Raises `QueueFull`.

        ``uniques``: what stands for the unique ones among them. Each gets a run of its own, which nobody is handed: so
        it differs from its former self, which may still lie about in the shelves.
        """
        changes = Changes()
        self._refuse_if_full(Counter(row.queue for row in rows), now)
        for row in rows:
            task = self.tasks[row.id] = afresh(row, self._next_run, now.wall)
            self._next_run += 1
            self._move(task, Event.REQUEUE, changes)
        self.uniqueness.add(row for row in uniques if row.id in self.tasks)
        return changes

    def cancel(self, task_id: int, now: Moment) -> tuple[State | None, Changes]:
        """Cancel a task that is alive; gives its state now, None when it is not here (final and stored, or unknown).

        A running one is asked to stop (`stopping`), and gets no further attempt.
        """
        changes = Changes()
        task = self.tasks.get(task_id)
        if task is None or task.state in FINAL:
            return (None if task is None else task.state), changes
        if task.state is RUNNING:
            task.cancel_requested = True
            self.stopping.add(task)
            changes.written.append(task)
        else:
            task.finished_at = now.wall
            self._move(task, Event.CANCEL, changes)
        return task.state, changes

    # -- workers

    def attach(
        self, info: WorkerInfo, held: Sequence[tuple[int, int]], now: Moment
    ) -> tuple[Worker, list[tuple[int, int]], Changes]:
        """A worker joins, first or again, and holds exactly these (task, run); gives those it has lost.

        Raises `StaleRun` when it was reported dead.
        """
        worker = self.leases.attach(dict(info), now.mono)
        changes = Changes()
        holds = owned(held)
        for task in list(worker.running.values()):
            if holds.get(task.id) != task.run:
                self._take_from(worker, task, Event.GIVE_BACK, now, changes)
        lost = [
            (task_id, run)
            for task_id, run in holds.items()
            if task_id not in worker.running and not self._readopt(worker, task_id, run, changes)
        ]
        return worker, lost, changes

    def open_to(self, worker: Worker, place: Ready | None = None) -> list[Shelf]:
        """The shelves that this worker may be served from now; ``place``: where else than in `ready`."""
        shelves = (self.places.ready if place is None else place).serving(worker.queues, worker.types)
        return self.rules.open(shelves, self.figures)

    def reserve(
        self, worker: Worker, slots: int, extra: int, fast: Sequence[str], waiting: int, now: Moment
    ) -> tuple[list[Task], Changes]:
        """Hand out up to ``slots`` tasks, and up to ``extra`` more of the ``fast`` types. After `follow_wall_clock`.

        ``waiting``: how many other workers wait; a short backlog is shared out evenly among them all. Of a queue with a
        limit nothing is handed out ahead: what waits at a worker counts as running.
        """
        changes, places = Changes(), self.places
        if not worker.may_reserve(now.mono, self.leases.heartbeat):
            return [], changes
        if places.suspects.shelves and slots and not worker.running and places.kept_back is None:
            alone = places.suspects.next_for(worker, self.open_to(worker, places.suspects), now.wall)
            if alone:
                return self._hand_out(worker, alone, now, changes)
        if worker.alone:
            return [], changes
        shelves, rooms = self.open_to(worker), self.rules.rooms(self.figures)
        share = -(-dispatch.available(shelves, rooms) // (waiting + 1))
        taken = dispatch.take(places.ready, worker, shelves, min(slots, share), now.wall, rooms)
        if extra and len(taken) == slots < share:
            quick = [shelf for shelf in shelves if shelf.type in fast and shelf.queue not in rooms]
            taken += dispatch.take(places.ready, worker, quick, min(extra, share - slots), now.wall, rooms)
        return self._hand_out(worker, taken, now, changes)

    def report(self, worker: Worker, reports: Sequence[Report], now: Moment) -> tuple[list[int], Changes]:
        """Take in outcomes; gives the positions of those that are stale."""
        changes = self.follow_wall_clock(now)  # first: what is put off from here on is by the new time
        refused = []
        acked: list[tuple[Task, Report]] = []
        for position, report in enumerate(reports):
            task = worker.running.get(report[1])
            if task is None or task.run != report[2]:
                refused.append(position)
                continue
            kind = report[0]
            if kind == ACK:
                del worker.running[task.id]
                acked.append((task, report))
            elif kind == NACK:
                self._nack(worker, task, report, now, changes)
            elif kind == GIVE_BACK:
                self._take_from(worker, task, Event.GIVE_BACK, now, changes)
            elif kind == SNOOZE:
                task.due_at = self._again_at(report[3], now, changes)
                self._take_from(worker, task, Event.SNOOZE, now, changes)
            elif kind == PROGRESS:
                worker.progress[task.id] = (report[3], report[4])
            else:
                refused.append(position)
        if acked:
            self._complete(worker, acked, now, changes)
        if worker.alone and not worker.running:
            worker.alone = False
            changes.recall.append(worker.incarnation)
        return refused, changes

    def _nack(self, worker: Worker, task: Task, report: Report, now: Moment, changes: Changes) -> None:
        error, delay, ran = report[3:]
        task.error = TaskError(*error)
        task.finished_at = now.wall
        task.started_at = now.wall - ran
        if task.cancel_requested and task.error.kind == "cancelled":
            self._take_from(worker, task, Event.CANCELLED, now, changes)
            return
        task.failures += 1
        worker.failed += 1
        self.figures.failed(task, ran, now.mono)
        if delay == -1 or task.failures > task.terms.max_retries:
            self._take_from(worker, task, Event.FAIL, now, changes)
            return
        terms = task.terms
        if delay is None:
            delay = retry_delay(task.id, task.failures, terms.backoff, terms.factor, terms.max_delay, terms.jitter)
        task.due_at = self._again_at(delay, now, changes)
        task.finished_at = None
        if not task.cancel_requested:
            self.figures.totals["retried"] += 1
        self._take_from(worker, task, Event.RETRY, now, changes)

    def _again_at(self, delay: float, now: Moment, changes: Changes) -> float:
        """The wall time after this pause. If the clock was just set, other pauses follow it first, and this one not."""
        changes.add(self.follow_wall_clock(now))
        return now.wall + delay

    def worker_gone(
        self,
        worker: Worker,
        how: str,
        started: Mapping[int, int],
        now: Moment,
        *,
        counts: bool,
        evidence: Evidence | None = None,
    ) -> Changes:
        """A worker process is dead or its leases are over: its tasks go back.

        What had ``started`` (task: run) counts a death, if ``counts``; the rest goes back at once.
        """
        death = {"how": how, **(evidence or {})}
        changes = self.follow_wall_clock(now)
        for task in list(worker.running.values()):
            if not (counts and started.get(task.id) == task.run):
                self._take_from(worker, task, Event.GIVE_BACK, now, changes)
                continue
            task.deaths += 1
            task.error = verdict(task, worker, death)
            if task.deaths >= MAX_DEATHS:
                task.finished_at = now.wall
                self._take_from(worker, task, Event.POISON, now, changes, death)
            else:
                task.due_at = self._again_at(death_delay(task.deaths), now, changes)
                self._take_from(worker, task, Event.DEATH, now, changes, death)
        return changes

    # -- time

    def follow_wall_clock(self, now: Moment) -> Changes:
        """See `Places.follow_wall_clock`: whatever notes a time of day comes after it."""
        return self.places.follow_wall_clock(now, self.leases.running())

    def tick(self, now: Moment) -> list[Changes]:
        """Everything that is due by ``now``: scheduled tasks, ended leases, what was kept back after a restart."""
        places = self.places
        done = [self.expire(now, DUE_STEP), self.follow_wall_clock(now), self._due(now)]
        self.uniqueness.sweep(self.tasks, now.wall)
        for worker in list(self.leases.expired(now.mono)):
            done.append(self.worker_gone(worker, "silence: its lease ran out", worker.under_way(), now, counts=True))
            if not worker.attached or now.mono - worker.expires >= SILENT_KEPT:
                self.leases.remove(worker.incarnation, dead=False)
                done[-1].left.append(worker.incarnation)
        self.leases.forget_silent_pools(now.mono)
        if places.kept_back is not None and (now.mono >= places.kept_until or not self.leases.expected()):
            done.append(places.release(self.tasks))
        if places.kept_back is None:
            shelves = self.rules.open(list(places.suspects.shelves.values()), self.figures)
            kept = places.suspects.keep(self.leases.workers.values(), lambda one: self._may_reserve(one, now), shelves)
            done.append(Changes(recall=[worker.incarnation for worker in kept]))
        return done

    def _may_reserve(self, worker: Worker, now: Moment) -> bool:
        return worker.may_reserve(now.mono, self.leases.heartbeat)

    def expire(self, now: Moment, limit: float = inf) -> Changes:
        """Tasks that had to begin by ``now`` and have not are failed, up to ``limit``.

        Who hands out tasks calls it before. After a restart no task expires while a worker may come back with it.
        """
        changes = Changes()
        for task in self.places.expiry.pop(now.wall, self.tasks, limit):
            task.error = expired(task)
            task.finished_at = now.wall
            self._move(task, Event.EXPIRE, changes)
        return changes

    def _due(self, now: Moment) -> Changes:
        changes = Changes()
        while self.places.schedule.first() <= now.wall and len(changes.written) < DUE_STEP:
            self._move(self.places.schedule.pop(), Event.DUE, changes)
        return changes

    def next_deadline(self, now: Moment) -> float | None:
        """Seconds until `tick` has something to do, None when it has nothing to wait for."""
        soonest = min(self.places.wait(now), self.leases.next_expiry() - now.mono)
        return None if soonest == inf else max(0.0, soonest)

    def forget(self, tasks: Sequence[Task]) -> None:
        """Final records are stored: they leave memory."""
        for task in tasks:
            if self.tasks.get(task.id) is task:
                del self.tasks[task.id]
        self.places.forget(task.id for task in tasks)
        if self.uniqueness:
            self.uniqueness.forget(task.id for task in tasks)
