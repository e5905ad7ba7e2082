"""Bugs that are put into the running queue on purpose: the checker finds each of them, and none where there is none.

A bug is a patch of one function, as somebody might have written it; the world around the queue (`small_world`) is the
same for all, and so are the seeds. The product has no switch for any of this.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from checker import told
from small_world import World

from taskq.queue import admission, places, state
from taskq.queue.commit import GroupCommit
from taskq.queue.core import QueueCore
from taskq.queue.idempotency import Recent
from taskq.queue.job_queue import JobQueue
from taskq.queue.leases import Leases, Moment
from taskq.queue.ready import Lane
from taskq.queue.schedule import Schedule
from taskq.queue.state import QueueState
from taskq.queue.task import FINAL, RUNNING, State
from taskq.queue.task_row import TaskRow
from taskq.shapes import ACK, GIVE_BACK, Submitted
from taskq.stores import cleaning
from taskq.stores.base import Opened
from taskq.stores.sqlite import SqliteStore

STEPS = 500
SEEDS = range(1, 9)
Patch = pytest.MonkeyPatch
Bug = Callable[[Patch], None]
BUGS: list[tuple[Bug, set[str]]] = []


def bug(*promises: str) -> Callable[[Bug], Bug]:
    """A bug, and the promises of which it must be seen to break at least one."""

    def add(plant: Bug) -> Bug:
        BUGS.append((plant, set(promises)))
        return plant

    return add


def around(patch: Patch, owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Call ``change`` with the original function in front, instead of it."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **kwargs: change(original, *args, **kwargs))


def rewritten(patch: Patch, change: Callable[[Any], Any]) -> None:
    """Every batch that is written is changed before."""
    around(patch, SqliteStore, "write", lambda write, self, batch: write(self, change(batch)))


def reread(patch: Patch, **fields: Callable[[TaskRow], Any]) -> None:
    """Every record that is loaded at start is changed before."""

    def load(original: Any, row: TaskRow) -> Any:
        return original(row._replace(**{name: make(row) for name, make in fields.items()}))

    around(patch, state, "from_row", load)


# -- what is on disk


@bug("I1", "I2", "I4")
def reply_before_commit(patch: Patch) -> None:
    patch.setattr(GroupCommit, "settle", lambda self, mark: None)


@bug("I2", "I12")
def calls_are_not_stored(patch: Patch) -> None:
    rewritten(patch, lambda batch: dataclasses.replace(batch, calls=[]))


@bug("I3")
def keys_are_not_stored(patch: Patch) -> None:
    rewritten(patch, lambda batch: dataclasses.replace(batch, keys=[]))


@bug("I1", "I4", "I7")
def an_outcome_is_lost_when_its_handout_was_not_written(patch: Patch) -> None:
    def add(original: Any, self: GroupCommit, tasks: Any) -> int:
        return original(self, [task for task in tasks if task.id not in self._handed_out or task.state is RUNNING])

    around(patch, GroupCommit, "add", add)


@bug("I3", "I12")
def a_purged_key_is_forgotten_at_once(patch: Patch) -> None:
    patch.setattr(cleaning, "KEEP_CALLS", -1.0)
    around(patch, Recent, "key", lambda original, self, key: None)


@bug("I1")
def a_purge_takes_what_nobody_asked_for(patch: Patch) -> None:
    around(patch, SqliteStore, "purge", lambda original, self, states, *args: original(self, FINAL, *args))


# -- runs


@bug("I5")
def runs_begin_again_with_each_start(patch: Patch) -> None:
    def open_at_epoch_one(original: Any, self: SqliteStore, load: Any) -> Opened:
        changed: Opened = original(self, lambda opened, rows: load(dataclasses.replace(opened, epoch=1), rows))
        return dataclasses.replace(changed, epoch=1)

    around(patch, SqliteStore, "open", open_at_epoch_one)


@bug("I1", "I4", "I5")
def the_run_of_a_report_is_not_looked_at(patch: Patch) -> None:
    def report(original: Any, self: QueueState, worker: Any, reports: Sequence[Any], now: Moment) -> Any:
        for position, one in enumerate(reports):
            task = self.tasks.get(one[1])
            holder = self.leases.workers.get(task.worker) if task is not None and task.state is RUNNING else None
            if holder is not None and holder is not worker:
                mended = [(one[0], one[1], task.run, *one[3:])]
                refused, changes = original(self, holder, mended, now)
                rest = [other for place, other in enumerate(reports) if place != position]
                more, later = original(self, worker, rest, now)
                changes.add(later)
                return [place + (place >= position) for place in more] + [position] * len(refused), changes
        mended = [
            (one[0], one[1], worker.running[one[1]].run, *one[3:]) if one[1] in worker.running else one
            for one in reports
        ]
        return original(self, worker, mended, now)

    around(patch, QueueState, "report", report)


@bug("I5")
def an_outcome_counts_after_the_lease_too(patch: Patch) -> None:
    over = set()

    def gone(original: Any, self: QueueState, worker: Any, *args: Any, **kwargs: Any) -> Any:
        over.update((worker.incarnation, task.id, task.run) for task in worker.running.values())
        return original(self, worker, *args, **kwargs)

    def report(original: Any, self: QueueState, worker: Any, reports: Sequence[Any], now: Moment) -> Any:
        for kind, id, run, *_ in reports:
            task = self.tasks.get(id)
            late = kind == ACK and (worker.incarnation, id, run) in over
            if late and task is not None and task.state is RUNNING and task.run != run:
                del self.leases.workers[task.worker].running[id]
                task.run, worker.running[id] = run, task
        return original(self, worker, reports, now)

    around(patch, QueueState, "worker_gone", gone)
    around(patch, QueueState, "report", report)


@bug("I4")
def results_of_a_batch_are_mixed_up(patch: Patch) -> None:
    last: list[Any] = [b"no result yet"]

    def complete(original: Any, self: QueueState, worker: Any, acked: Any, *args: Any) -> None:
        results = [*last, *(report[3] for _, report in acked)]
        last[0] = results[-1]
        original(
            self, worker, [(t, (*r[:3], other, *r[4:])) for (t, r), other in zip(acked, results, strict=False)], *args
        )

    around(patch, QueueState, "_complete", complete)


# -- leases


@bug("I6", "I7")
def what_a_worker_held_goes_back_when_its_connection_ends(patch: Patch) -> None:
    around(
        patch,
        QueueState,
        "attach",
        lambda original, self, info, held, now: (
            *original(self, info, [], now)[:1],
            [],
            original(self, info, [], now)[2],
        ),
    )


@bug("I6", "I7")
def a_run_that_was_not_stored_is_not_taken_back(patch: Patch) -> None:
    patch.setattr(QueueState, "_readopt", lambda *args: False)


@bug("I6", "I7")
def nobody_waits_for_workers_after_a_restart(patch: Patch) -> None:
    patch.setattr(places, "HOLD", 0.0)


@bug("I6", "I7", "I8", "I9")
def leases_go_by_the_wall_clock(patch: Patch) -> None:
    around(
        patch,
        QueueCore,
        "__init__",
        lambda original, self, store, clock, *args: original(self, store, OnlyWall(clock), *args),
    )


class OnlyWall:
    """A clock that takes the one for the other."""

    def __init__(self, clock: Any) -> None:
        self.monotonic = self.wall = clock.wall


@bug("I9")
def leases_never_end(patch: Patch) -> None:
    patch.setattr(Leases, "expired", lambda self, now: iter(()))


@bug("I6", "I7")
def leases_end_with_the_first_missed_heartbeat(patch: Patch) -> None:
    def expired(original: Any, self: Leases, now: float) -> Iterator[Any]:
        return original(self, now + self.lease * 0.9)

    around(patch, Leases, "expired", expired)


@bug("I1", "I6")
def a_cancelled_task_stays_on_its_shelf(patch: Patch) -> None:
    def cancel(original: Any, self: QueueState, task_id: int, now: Moment) -> Any:
        task = self.tasks.get(task_id)
        if task is None or task.state is not State.PENDING:
            return original(self, task_id, now)
        return State.CANCELLED, state.Changes()

    around(patch, QueueState, "cancel", cancel)


# -- counters


@bug("I8")
def failures_are_forgotten_with_a_restart(patch: Patch) -> None:
    reread(patch, failures=lambda row: 0)


@bug("I8")
def deaths_are_forgotten_with_a_restart(patch: Patch) -> None:
    reread(patch, deaths=lambda row: 0)


@bug("I8")
def pauses_are_forgotten_with_a_restart(patch: Patch) -> None:
    reread(patch, due_at=lambda row: 0.0)


@bug("I8")
def deaths_are_not_counted(patch: Patch) -> None:
    def gone(original: Any, *args: Any, counts: bool, **kwargs: Any) -> Any:
        return original(*args, counts=False, **kwargs)

    around(patch, QueueState, "worker_gone", gone)


@bug("I8")
def one_death_more_is_allowed(patch: Patch) -> None:
    patch.setattr(state, "MAX_DEATHS", 4)


@bug("I8")
def a_death_counts_for_what_had_not_started(patch: Patch) -> None:
    def gone(original: Any, self: QueueState, worker: Any, how: str, started: Any, *args: Any, **kwargs: Any) -> Any:
        return original(
            self, worker, how, started and {task.id: task.run for task in worker.running.values()}, *args, **kwargs
        )

    around(patch, QueueState, "worker_gone", gone)


@bug("I8")
def what_was_given_back_counts_as_a_failure(patch: Patch) -> None:
    def report(original: Any, self: QueueState, worker: Any, reports: Sequence[Any], now: Moment) -> Any:
        for one in reports:
            task = worker.running.get(one[1])
            if one[0] == GIVE_BACK and task is not None and task.run == one[2]:
                task.failures += 1
        return original(self, worker, reports, now)

    around(patch, QueueState, "report", report)


@bug("I8")
def a_permanent_error_is_tried_again(patch: Patch) -> None:
    def nack(original: Any, self: QueueState, worker: Any, task: Any, report: Any, *args: Any) -> Any:
        return original(self, worker, task, (*report[:4], None, *report[5:]), *args)

    around(patch, QueueState, "_nack", nack)


@bug("I8")
def one_retry_too_few(patch: Patch) -> None:
    def nack(original: Any, self: QueueState, worker: Any, task: Any, report: Any, *args: Any) -> Any:
        last = task.failures + 1 >= task.terms.max_retries
        return original(self, worker, task, (*report[:4], -1 if last else report[4], *report[5:]), *args)

    around(patch, QueueState, "_nack", nack)


@bug("I8")
def there_is_no_pause_before_a_retry(patch: Patch) -> None:
    patch.setattr(state, "retry_delay", lambda *args: 0.0)


# -- bookkeeping


@bug("I9")
def a_scheduled_task_falls_out_of_the_schedule(patch: Patch) -> None:
    count = itertools.count(1)
    around(patch, Schedule, "push", lambda original, self, task: next(count) % 9 and original(self, task))


@bug("I9")
def a_task_that_went_back_falls_off_its_shelf(patch: Patch) -> None:
    around(patch, Lane, "push", lambda original, self, task: task.run % 4 == 3 or original(self, task))


@bug("I10")
def the_newest_task_goes_first(patch: Patch) -> None:
    def take(original: Any, self: Lane, limit: int, *args: Any) -> Any:
        self._line.reverse()
        return original(self, limit, *args)

    around(patch, Lane, "take", take)


# -- clients


@bug("I3")
def a_key_with_other_content_is_taken_for_a_repetition(patch: Patch) -> None:
    patch.setattr(admission, "content_digest", lambda item: b"")


@bug("I1", "I12")
def a_call_is_known_by_its_number_alone(patch: Patch) -> None:
    around(patch, JobQueue, "submit", lambda original, self, client, seq, items: original(self, 1, seq, items))
    patch.setattr("taskq.queue.client_verbs.call_digest", lambda items: b"%d" % len(items))


@bug("I3", "I12")
def a_repeated_call_gets_fresh_ids_where_keys_had_given_others(patch: Patch) -> None:
    def replayed(call: Any, digest: bytes, twins: Any) -> Submitted:
        return Submitted(list(range(call.first_id, call.first_id + call.size)), [])

    patch.setattr("taskq.queue.client_verbs._replayed", replayed)


def violations(folder: Path, seed: int, *, calm: bool) -> list[Any]:
    """What the checker says of one world."""
    world = World(folder, seed, calm=calm)
    try:
        world.live(STEPS)
        return world.violations()
    finally:
        world.store.close()


def worlds() -> Iterator[tuple[int, bool]]:
    """(seed, calm) of all of them, the same for each bug."""
    yield SEEDS[0], True
    yield from ((seed, False) for seed in SEEDS)


@pytest.fixture(autouse=True)
def _without_log_lines() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_nothing_is_found_where_there_is_no_bug(tmp_path: Path) -> None:
    for seed, calm in worlds():
        folder = tmp_path / f"{seed}{calm}"
        folder.mkdir()
        assert not (found := violations(folder, seed, calm=calm)), f"seed {seed}: {told(found)}"


@pytest.mark.parametrize(("plant", "promises"), BUGS, ids=[plant.__name__ for plant, _ in BUGS])
def test_a_planted_bug_is_found(
    plant: Bug, promises: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    for seed, calm in worlds():
        folder = tmp_path / f"{seed}{calm}"
        folder.mkdir()
        broken = {found.promise for found in violations(folder, seed, calm=calm)}
        if broken & promises:
            return
        assert not broken, f"seed {seed}: found broken was only {broken}"
    pytest.fail("nobody noticed")
