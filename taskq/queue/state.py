"""The queue as a pure state machine: every decision about tasks is made here. PURE.

Theory of operation. `QueueState` holds the records of all tasks that are not final (and of final ones until the store
has them), and the bookkeeping that can be derived from them: shelves of pending tasks, the schedule of others, what
each worker runs, counters. Each verb takes ``now`` and gives `Changes`: the records that must be written, those that
became final, and what became pending. It waits for nothing, locks nothing and writes nothing; the shell around it
(`taskq.queue.job_queue`) does.

Rules. (1) Only `_move` changes a task's state, and `reserve` and `_complete` those of many at once, and only along the
table in `lifecycle`. (2) A worker's word about a task counts only with the run that is current: with any other nothing
changes. (3) A task object that has left the shelves or the schedule by another door than their own never comes back
into them; a copy takes its place (`_readopt`), so that the entry it leaves behind stays stale.

`taskq.queue.check` derives all bookkeeping anew and compares.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Any

from taskq.config import QueueSettings
from taskq.queue import dispatch
from taskq.queue.admission import afresh, by_queue, full, kinds, record, resolve_keys, without
from taskq.queue.changes import Accepted, Changes
from taskq.queue.expiry import Expiry, expired
from taskq.queue.figures import Figures
from taskq.queue.history import ended
from taskq.queue.leases import SILENT_KEPT, Leases, Moment, Worker, owned
from taskq.queue.lifecycle import Event, next_state
from taskq.queue.ready import Ready, Shelf, oldest
from taskq.queue.retry import MAX_DEATHS, death_delay, retry_delay
from taskq.queue.schedule import Schedule
from taskq.queue.stopping import Stopping
from taskq.queue.suspects import Suspects, verdict
from taskq.queue.task import FINAL, PENDING, RUNNING, SCHEDULED, NewTask, State, Task, TaskError, TaskRow, from_row
from taskq.queue.uniqueness import Uniqueness, repetitions
from taskq.service import ACK, GIVE_BACK, NACK, PROGRESS, SNOOZE, Evidence, Report, WorkerInfo
from taskq.stores.base import KeyRow, ResultEnd, UniqueRow

RUNS_PER_EPOCH = 2**40
UNKNOWN = "?"
DUE_STEP = 5_000
"""Most scheduled tasks that one `QueueState.tick` makes pending: a hundred thousand may be due in the same second."""
CLOCK_SET = 1.0
"""Seconds by which the wall clock leaves the other one behind, between two ticks, only when somebody sets it."""
HOLD = 5.0
"""Seconds for which tasks from before a restart are kept back while workers that may hold them come back."""


class QueueState:
    """All tasks that are alive, and who runs them."""

    def __init__(self, settings: QueueSettings, *, epoch: int = 1, next_id: int = 1) -> None:
        self.settings = settings
        self.epoch = epoch
        self.next_id = next_id
        self.tasks: dict[int, Task] = {}
        self.ready = Ready()
        self.kept_back: Ready | None = None
        self.expiry = Expiry()
        self.kept_expiry = Expiry()
        self.leases = Leases(settings.lease)
        self.figures = Figures()
        self.schedule = Schedule()
        self.stopping = Stopping()
        self.suspects = Suspects()
        self.uniqueness = Uniqueness()
        self.rules = dispatch.Rules()
        self._next_run = epoch * RUNS_PER_EPOCH + 1
        self._kept_below = 0
        self._kept_until = 0.0
        self._apart: float | None = None

    # -- the one door

    def _move(self, task: Task, event: Event, changes: Changes) -> None:
        before = task.state
        after = next_state(before, event)
        task.state = after
        if before is PENDING:
            self._shelves(task).gone(task)
        elif before is SCHEDULED and event is not Event.DUE:
            self.schedule.gone()
        self.figures.moved(task, before, after)
        changes.written.append(task)
        self._settle(task, changes)

    def _settle(self, task: Task, changes: Changes) -> None:
        """Put a task where its state belongs."""
        if task.state is PENDING:
            shelves = self._shelves(task)
            shelves.push(task)
            if shelves is self.ready:
                shelf = (task.queue, task.type)
                changes.ready[shelf] = changes.ready.get(shelf, 0) + 1
        elif task.state is SCHEDULED:
            self.schedule.push(task)
        elif task.state in FINAL:
            changes.final.append(task)
        if task.terms.expiring and task.state not in FINAL:
            (self.kept_expiry if self._is_kept(task) else self.expiry).push(task)

    def _shelves(self, task: Task) -> Ready:
        if task.deaths:
            return self.suspects
        return self.kept_back if self.kept_back is not None and self._is_kept(task) else self.ready

    def _is_kept(self, task: Task) -> bool:
        return self.kept_back is not None and task.id < self._kept_below

    # -- start

    def load(self, rows: Iterable[TaskRow], now: Moment) -> int:
        """Take over live records by rising id, through the doors that all tasks use; gives their number.

        Pending ones are kept back until `release` (see `tick`). Workers must be known before (`Leases.expect`); one
        that is not gets the usual lease.
        """
        if self.kept_back is None:
            self.kept_back = Ready()
            self._kept_below = self.next_id
            self._kept_until = now.mono + HOLD
        loaded, before, counts = Changes(), len(self.tasks), Counter[tuple[str, State]]()
        for row in rows:
            task = from_row(row)
            self.tasks[task.id] = task
            counts[task.queue, task.state] += 1
            if task.state is RUNNING:
                worker = self._worker_of(task, now)
                worker.running[task.id] = task
                worker.alone = worker.alone or task.deaths > 0
                if task.cancel_requested:
                    self.stopping.add(task)
            else:
                self._settle(task, loaded)
        for (queue, state), count in counts.items():
            self.figures.entered(queue, state, count)
        return len(self.tasks) - before

    def resume(self, now: Moment) -> None:
        """Loading, which may take long, is over: only now do leases begin, and the time to come back in."""
        self._kept_until = now.mono + HOLD
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
        changes.ready = self.ready.extend(task for task in changes.written if task.state is PENDING)
        for (queue, _), count in changes.ready.items():
            self.figures.entered(queue, PENDING, count)
        for task in changes.written:
            if task.state is SCHEDULED:
                self.figures.entered(task.queue, SCHEDULED)
                self.schedule.push(task)
        if any(kind.expiring for kind in terms):
            for task in changes.written:
                self.expiry.push(task)
        self.uniqueness.add(uniques)
        return Accepted(ids, existing, keys, changes, uniques)

    def _refuse_if_full(self, counts: Mapping[str, int], now: Moment) -> None:
        for queue, count in counts.items():
            if self.figures.queues[queue].waiting() + count > self.settings.max_pending:
                raise full(queue, self.figures.queues[queue].waiting(), self.oldest_pending(now).get(queue))

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

    def oldest_pending(self, now: Moment) -> dict[str, float]:
        """For each queue with pending tasks: how many seconds the one that came first has waited."""
        return oldest(self.places(), now.wall)

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

    def _readopt(self, worker: Worker, task_id: int, run: int, changes: Changes) -> bool:
        """Accept a run that the last manager handed out and could not store any more.

        Only from the epoch before this one: a manager in between might have given the task to somebody else.
        """
        task = self.tasks.get(task_id)
        if task is None or task.state in FINAL:
            return False
        if run <= task.run or run // RUNS_PER_EPOCH != self.epoch - 1:
            return False
        if task.state is RUNNING:  # the stored run was given up, and this one handed out, just before the crash
            holder = self.leases.workers[task.worker or UNKNOWN]
            del holder.running[task_id]
            holder.progress.pop(task_id, None)
        else:
            twin = copy.copy(task)
            self._move(task, Event.READOPT, Changes())
            twin.state = task.state
            self.tasks[task_id] = task = twin
        task.run, task.worker, task.worker_name = run, worker.incarnation, worker.name
        worker.running[task_id] = task
        worker.alone = worker.alone or task.deaths > 0
        changes.written.append(task)
        return True

    def places(self) -> list[Ready]:
        """Where pending tasks stand."""
        return [self.ready, self.suspects, *([self.kept_back] if self.kept_back is not None else [])]

    def kept_back_for(self, task: Task, now: Moment) -> float | None:
        """How many seconds a task is kept back at most after a restart, None when it is not."""
        if self.kept_back is None or not (task.deaths or self._is_kept(task)):
            return None
        return max(0.0, self._kept_until - now.mono)

    def open_to(self, worker: Worker, place: Ready | None = None) -> list[Shelf]:
        """The shelves that this worker may be served from now; ``place``: where else than in `ready`."""
        shelves = (self.ready if place is None else place).serving(worker.queues, worker.types)
        return self.rules.open(shelves, self.figures)

    def reserve(
        self, worker: Worker, slots: int, extra: int, fast: Sequence[str], waiting: int, now: Moment
    ) -> tuple[list[Task], Changes]:
        """Hand out up to ``slots`` tasks, and up to ``extra`` more of the ``fast`` types.

        ``waiting``: how many other workers wait; a short backlog is shared out evenly among them all. Of a queue with a
        limit nothing is handed out ahead: what waits at a worker counts as running.
        """
        changes = Changes()
        if not worker.may_reserve(now.mono, self.leases.heartbeat):
            return [], changes
        if self.suspects.shelves and slots and not worker.running and self.kept_back is None:
            alone = self.suspects.next_for(worker, self.open_to(worker, self.suspects), now.wall)
            if alone:
                return self._hand_out(worker, alone, now, changes)
        if worker.alone:
            return [], changes
        shelves, rooms = self.open_to(worker), self.rules.rooms(self.figures)
        share = -(-dispatch.available(shelves, rooms) // (waiting + 1))
        taken = dispatch.take(self.ready, worker, shelves, min(slots, share), now.wall, rooms)
        if extra and len(taken) == slots < share:
            quick = [shelf for shelf in shelves if shelf.type in fast and shelf.queue not in rooms]
            taken += dispatch.take(self.ready, worker, quick, min(extra, share - slots), now.wall, rooms)
        return self._hand_out(worker, taken, now, changes)

    def _hand_out(self, worker: Worker, taken: list[Task], now: Moment, changes: Changes) -> tuple[list[Task], Changes]:
        running = next_state(PENDING, Event.RESERVE)
        for run, task in enumerate(taken, self._next_run):
            task.state = running
            task.run = run
            task.worker = worker.incarnation
            task.worker_name = worker.name
            task.started_at = now.wall
            worker.running[task.id] = task
        self._next_run += len(taken)
        self.figures.handed_out(taken, now.mono, now.wall)
        changes.written += taken
        return taken, changes

    def report(self, worker: Worker, reports: Sequence[Report], now: Moment) -> tuple[list[int], Changes]:
        """Take in outcomes; gives the positions of those that are stale."""
        changes = Changes()
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
                task.due_at = now.wall + report[3]
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

    def _complete(self, worker: Worker, acked: Sequence[tuple[Task, Report]], now: Moment, changes: Changes) -> None:
        """Runs have come to a good end; the worker does not hold them any more."""
        done = next_state(RUNNING, Event.ACK)
        wall = now.wall
        for task, report in acked:
            task.state = done
            task.result, task.error = report[3], None
            task.finished_at = wall
            task.started_at = wall - report[4]
            if task.terms.result_ttl is not None:
                changes.result_ends.append(ResultEnd(task.id, wall + task.terms.result_ttl))
        if worker.progress:
            for task, _ in acked:
                worker.progress.pop(task.id, None)
        worker.completed += len(acked)
        tasks = [task for task, _ in acked]
        self.figures.completed(tasks, [report[4] for _, report in acked], now.mono)
        changes.written += tasks
        changes.final += tasks

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
        task.due_at = now.wall + delay
        task.finished_at = None
        if not task.cancel_requested:
            self.figures.totals["retried"] += 1
        self._take_from(worker, task, Event.RETRY, now, changes)

    def _take_from(
        self, worker: Worker, task: Task, event: Event, now: Moment, changes: Changes, death: Any = None
    ) -> None:
        """A run is over: whatever would lead to another attempt ends a task that is to be cancelled."""
        del worker.running[task.id]
        if worker.progress:
            worker.progress.pop(task.id, None)
        began, error = event is not Event.GIVE_BACK, None if event is Event.SNOOZE else task.error
        if task.cancel_requested and next_state(task.state, event) not in FINAL:
            event = Event.CANCELLED
            task.finished_at = now.wall
        if began:
            changes.attempts.append(ended(task, event, error, now.wall, death))
        self._move(task, event, changes)

    def worker_gone(
        self,
        worker: Worker,
        how: str,
        started: Mapping[int, int] | None,
        now: Moment,
        *,
        counts: bool,
        evidence: Evidence | None = None,
    ) -> Changes:
        """A worker process is dead or its leases are over: its tasks go back.

        What had ``started`` ((task: run); None: unknown, so all) counts a death, if ``counts``; the rest goes back at
        once.
        """
        death = {"how": how, **(evidence or {})}
        changes = Changes()
        for task in list(worker.running.values()):
            began = started is None or started.get(task.id) == task.run
            if not (began and counts):
                self._take_from(worker, task, Event.GIVE_BACK, now, changes)
                continue
            task.deaths += 1
            task.error = verdict(task, worker, death)
            if task.deaths >= MAX_DEATHS:
                task.finished_at = now.wall
                self._take_from(worker, task, Event.POISON, now, changes, death)
            else:
                task.due_at = now.wall + death_delay(task.deaths)
                self._take_from(worker, task, Event.DEATH, now, changes, death)
        return changes

    # -- time

    def tick(self, now: Moment) -> list[Changes]:
        """Everything that is due by ``now``: scheduled tasks, ended leases, what was kept back after a restart."""
        done = [self.expire(now, DUE_STEP), self._follow_wall_clock(now), self._due(now)]
        self.uniqueness.sweep(self.tasks, now.wall)
        for worker in list(self.leases.expired(now.mono)):
            done.append(self.worker_gone(worker, "silence: its lease ran out", None, now, counts=True))
            if not worker.attached or now.mono - worker.expires >= SILENT_KEPT:
                self.leases.remove(worker.incarnation, dead=False)
                done[-1].left.append(worker.incarnation)
        self.leases.forget_silent_pools(now.mono)
        if self.kept_back is not None and (now.mono >= self._kept_until or not self.leases.expected()):
            done.append(self._release())
        if self.kept_back is None:
            shelves = self.rules.open(list(self.suspects.shelves.values()), self.figures)
            kept = self.suspects.keep(self.leases.workers.values(), lambda one: self._may_reserve(one, now), shelves)
            done.append(Changes(recall=[worker.incarnation for worker in kept]))
        return done

    def _may_reserve(self, worker: Worker, now: Moment) -> bool:
        return worker.may_reserve(now.mono, self.leases.heartbeat)

    def _follow_wall_clock(self, now: Moment) -> Changes:
        """When the wall clock is set, the pauses of tasks that ran before stay as long as they were."""
        apart = now.wall - now.mono
        jump = 0.0 if self._apart is None else apart - self._apart
        self._apart = apart
        return Changes(self.schedule.shift(jump) if abs(jump) > CLOCK_SET else [])

    def expire(self, now: Moment, limit: float = inf) -> Changes:
        """Tasks that had to begin by ``now`` and have not are failed, up to ``limit``.

        Who hands out tasks calls it before. After a restart no task expires while a worker may come back with it.
        """
        changes = Changes()
        for task in self.expiry.pop(now.wall, self.tasks, limit):
            task.error = expired(task)
            task.finished_at = now.wall
            self._move(task, Event.EXPIRE, changes)
        return changes

    def _due(self, now: Moment) -> Changes:
        changes = Changes()
        while self.schedule.first() <= now.wall and len(changes.written) < DUE_STEP:
            self._move(self.schedule.pop(), Event.DUE, changes)
        return changes

    def _release(self) -> Changes:
        assert self.kept_back is not None
        changes = Changes(ready={place: shelf.pending for place, shelf in self.kept_back.shelves.items()})
        self.kept_back.absorb(self.ready)
        self.ready, self.kept_back = self.kept_back, None
        self.expiry.absorb(self.kept_expiry, self.tasks)
        return changes

    def next_date(self) -> float:
        """The wall-clock seconds at which the next task is due or expires, infinity when there is none."""
        return min(self.schedule.first(), self.expiry.first())

    def next_deadline(self, now: Moment) -> float | None:
        """Seconds until `tick` has something to do, None when it has nothing to wait for."""
        waits = [self.next_date() - now.wall, self.leases.next_expiry() - now.mono]
        if self.kept_back is not None:
            waits.append(self._kept_until - now.mono)
        soonest = min(waits)
        return None if soonest == inf else max(0.0, soonest)

    def forget(self, tasks: Sequence[Task]) -> None:
        """Final records are stored: they leave memory."""
        for task in tasks:
            if self.tasks.get(task.id) is task:
                del self.tasks[task.id]
        for index in (self.expiry, self.uniqueness):
            if index:
                index.forget(task.id for task in tasks)
