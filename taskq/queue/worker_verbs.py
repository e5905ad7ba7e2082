"""The verbs of pools and worker processes: heartbeats, deaths, attach, reserve, report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import cast

from taskq.config import QueueSettings
from taskq.errors import StaleRun, StoreDamaged
from taskq.queue import task_log
from taskq.queue.changes import Changes
from taskq.queue.core import QueueCore
from taskq.queue.leases import Moment, Worker
from taskq.queue.limits import check_number, check_reports, check_seconds, check_worker, fitting_evidence
from taskq.queue.task import Task
from taskq.queue.timeouts import timeout_of
from taskq.service import MAX_BATCH, MAX_BATCH_BYTES, MAX_WAIT
from taskq.shapes import (
    GIVE_BACK,
    Attached,
    BeatReply,
    ChildInfo,
    Evidence,
    Handout,
    PoolInfo,
    Report,
    Reserved,
    WorkerInfo,
)
from taskq.stores.base import WorkerRow

_terms = attrgetter("terms")


class WorkerVerbs(QueueCore):
    """What pools and worker processes may call; see `taskq.service.QueueService` for what each verb promises."""

    # -- pools

    def beat(self, pool: PoolInfo, children: Sequence[ChildInfo]) -> BeatReply:
        """A heartbeat of a pool."""
        with self._lock:
            leases = self._state.leases
            silent = [child["incarnation"] for child in children if self._was_silent(child["incarnation"])]
            leases.beat(dict(pool), [dict(child) for child in children], self._clock.monotonic())
            leaving = [child["incarnation"] for child in children if child.get("leaving")]
            for incarnation in silent + leaving:
                self._waiting.recall(incarnation)
            foreign = pool["local"] is not None and pool["local"] != self.local_pool
            return {
                "drain": foreign,
                "interval": leases.heartbeat,
                "store_id": self._opened.store_id,
                "epoch": self._opened.epoch,
            }

    def _was_silent(self, incarnation: str) -> bool:
        worker = self._state.leases.workers.get(incarnation)
        return worker is not None and not self._may_reserve(worker)

    def child_died(
        self,
        pool: str,
        incarnation: str,
        how: str,
        started: Sequence[tuple[int, int]],
        counts: bool,
        evidence: Evidence,
        outcomes: Sequence[Report] = (),
    ) -> None:
        """A worker process is gone for certain."""
        known = fitting_evidence(evidence)
        check_reports(outcomes)
        with self._lock:
            worker = self._state.leases.remove(incarnation, dead=True)
            if worker is None:
                self._commit.settle(self._commit.mark)  # it may be a repetition of the call that is being written
                return
            begun = {int(task_id): int(run) for task_id, run in started}
            now = self._now()
            changes = self._state.report(worker, outcomes, now)[1]
            changes.add(self._state.worker_gone(worker, how, begun, now, counts=counts, evidence=known))
            changes.left.append(incarnation)
            self._waiting.recall(incarnation)
            self._finish(changes, durable=True)
        task_log.say(self._lines)
        task_log.worker_left(worker, how)

    def to_cancel(self, pool: str) -> Sequence[tuple[str, int]]:
        """What this pool's worker processes hold and is to be cancelled."""
        with self._lock:
            incarnations = {worker.incarnation for worker in self._state.leases.of_pool(pool)}
            found = [(task.worker, task.run) for task in self._state.stopping.tasks() if task.worker in incarnations]
            if found:
                self._commit.settle(self._commit.mark)  # a request that is not on disk might be forgotten
        return found

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
        check_worker(worker, held)
        with self._lock:
            self._refuse_if_shut_to_new(worker)
            joined, lost, changes = self._state.attach(worker, held, self._now())
            row = WorkerRow(joined.incarnation, joined.pool, joined.name, joined.host, joined.pid)
            joined.announced = self._announced.add(worker["types"])
            self._commit.add_worker(row, joined.announced)
            self._waiting.recall(joined.incarnation)
            self._housekeeper.expect(0.0)  # it may be the last one for which tasks are kept back
            mark = self._commit.add(changes.written)
            self._commit.settle(mark)
            self._wake(changes.ready)
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

    def reserve(
        self, incarnation: str, session: int, slots: int, extra: int, fast: Sequence[str], timeout: float
    ) -> Reserved:
        """The next tasks for a worker; waits for the first one."""
        deadline = self._clock.monotonic() + min(check_seconds("timeout", timeout), MAX_WAIT)
        check_number("slots", slots)
        check_number("extra", extra)
        slots, extra = min(slots, MAX_BATCH), min(extra, MAX_BATCH)
        called: Worker | None = None
        with self._lock:
            while True:
                self._refuse_if_shut()
                worker = self._state.leases.session(incarnation, session)
                if worker is None or worker.draining:
                    if called is not None:
                        self._waiting.hand_on(called)
                    return Reserved((), True)
                now = self._now()
                self._keep_dates(now)
                rivals = self._waiting.rivals(self._state.open_to(worker))
                tasks, changes = self._state.reserve(worker, slots, extra, fast, rivals, now)
                if called is not None and not self._may_reserve(called):  # or it took a suspect
                    self._waiting.hand_on(called)
                if tasks:
                    break
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    return Reserved((), False)
                called = worker if self._waiting.wait(worker, left) else None
            self._record_handouts(changes.written)
            handouts = list(_handouts(tasks, self.settings))
            self._commit.settle_submits(max(task.id for task in tasks))
            if self._state.leases.session(incarnation, session) is not worker:
                return Reserved((), True)  # while it waited; whatever ended the session has seen to the tasks
        whole = self._with_payloads(handouts)
        fitting = _fitting(whole)
        if fitting < len(whole):
            self._take_back(incarnation, session, whole[fitting:])
        return Reserved(whole[:fitting], False)

    def _keep_dates(self, now: Moment) -> None:
        """What comes before a hand-out: tasks begin by the clock as it is now, and none whose time is over."""
        changes = self._state.follow_wall_clock(now)
        if self._state.places.expiry.first() <= now.wall:
            changes.add(self._state.expire(now))
        if changes.written or changes.moved:
            self._finish(changes, durable=False)

    def _take_back(self, incarnation: str, session: int, handouts: Sequence[Handout]) -> None:
        """Tasks that were taken for a worker, but are too large to travel with those before them."""
        with self._lock:
            worker = self._state.leases.session(incarnation, session)
            if worker is not None:
                back = [(GIVE_BACK, handout.id, handout.run) for handout in handouts]
                self._finish(self._state.report(worker, back, self._now())[1], durable=False)

    def _with_payloads(self, handouts: list[Handout]) -> list[Handout]:
        resting = [handout.id for handout in handouts if handout.payload is None]
        if not resting:
            return handouts
        try:
            payloads = self._store.payloads(resting)
        except StoreDamaged as error:  # no worker can have these tasks; the start would not have let this pass
            self._on_failure(error)
            raise
        # One that is gone was purged: its task is over, and so is the session that it was taken for.
        return [
            handout if handout.payload is not None else handout._replace(payload=payloads[handout.id])
            for handout in handouts
            if handout.payload is not None or handout.id in payloads
        ]

    def report(self, incarnation: str, session: int, reports: Sequence[Report]) -> Sequence[int]:
        """Outcomes of runs."""
        check_reports(reports)
        with self._lock:
            worker = self._session(incarnation, session)
            refused, changes = self._state.report(worker, reports, self._now())
            self._finish(changes, durable=True)
        task_log.say(self._lines)
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
        task_log.say(self._lines)
        task_log.worker_left(worker, "its own goodbye")

    def _remove(self, worker: Worker, changes: Changes) -> None:
        """A worker is gone in good order: whatever it still holds goes back."""
        self._state.leases.remove(worker.incarnation, dead=False)
        gone = self._state.worker_gone(worker, "leaving", {}, self._now(), counts=False)
        changes.add(gone)
        changes.left.append(worker.incarnation)
        self._waiting.recall(worker.incarnation)


def _fitting(handouts: Sequence[Handout]) -> int:
    """How many of these may travel in one reply: their payloads are at most `MAX_BATCH_BYTES`, or there is only one."""
    size = 0
    for number, handout in enumerate(handouts):
        size += len(handout.payload)
        if size > MAX_BATCH_BYTES:
            return max(number, 1)
    return len(handouts)


def _handouts(tasks: Sequence[Task], settings: QueueSettings) -> Iterator[Handout]:
    for terms, group in groupby(tasks, _terms):
        type, queue, timeout, rules = terms.type, terms.queue, timeout_of(terms, settings), terms.rules
        for task in group:
            yield Handout(
                task.id,
                task.run,
                type,
                cast(bytes, task.payload),  # None while it rests in the store: `_with_payloads` fetches it
                queue,
                task.failures + task.deaths + 1,
                timeout,
                task.correlation_id,
                task.submitted_at,
                rules,
            )
