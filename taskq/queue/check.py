"""Derives all bookkeeping of the queue from its records and compares: for tests. PURE.

The idea is HyperQueue's ``sanity_check``: whatever a random walk does, nothing that is counted or indexed may differ
from what the records say.
"""

from __future__ import annotations

from collections import Counter

from taskq.queue.expiry import WAITING
from taskq.queue.moves import RUNS_PER_EPOCH, UNKNOWN
from taskq.queue.ready import Ready
from taskq.queue.state import QueueState
from taskq.queue.task import FINAL, PENDING, RUNNING, SCHEDULED, State, Task


def check(state: QueueState) -> None:
    """Raise `AssertionError` at the first thing that does not agree with the records."""
    _check_records(state)
    _check_shelves(state)
    _check_counts(state)
    _check_leases(state)
    _check_schedule(state)
    _check_expiry(state)
    _check_uniqueness(state)


def _check_schedule(state: QueueState) -> None:
    entries = state.places.schedule.entries()
    scheduled = [task for task in state.tasks.values() if task.state is SCHEDULED]
    assert sorted(task.id for _, task in entries) == sorted(task.id for task in scheduled), (
        "schedule and records differ"
    )
    for due_at, task in entries:
        assert task is state.tasks[task.id], "the schedule holds an outdated copy"
        assert due_at == task.due_at, f"{task} is scheduled for another time"


def _check_expiry(state: QueueState) -> None:
    due, kept = state.places.expiry.ids(), state.places.kept_expiry.ids()
    waiting = {task.id for task in state.tasks.values() if task.expires_at is not None and task.state in WAITING}
    assert waiting <= due | kept, f"tasks that would never expire: {waiting - due - kept}"
    if state.places.kept_back is not None:
        assert all(number >= state.places.kept_below for number in due), "a task from before the restart may expire"
    else:
        assert not kept, "tasks are kept from expiring"


def _check_uniqueness(state: QueueState) -> None:
    unique = {task.id for task in state.tasks.values() if task.terms.unique_in is not None and task.state not in FINAL}
    known = state.uniqueness.ids()
    assert unique <= known, f"unique tasks that would not be found: {unique - known}"
    for number in known - state.tasks.keys():
        assert state.uniqueness.has_window(number), f"task {number} is gone and still stands for its value"


def _entries(ready: Ready) -> list[Task]:
    found = []
    for shelf in ready.shelves.values():
        entries = shelf.entries()
        assert shelf.pending == len(entries), (
            f"{shelf.queue}/{shelf.type}: {shelf.pending} counted, {len(entries)} there"
        )
        assert entries, f"{shelf.queue}/{shelf.type}: an empty shelf"
        for task in entries:
            assert (task.queue, task.type) == (shelf.queue, shelf.type), f"{task} is on the wrong shelf"
        found += entries
    return found


def _check_shelves(state: QueueState) -> None:
    entries, suspects = _entries(state.places.ready), _entries(state.places.suspects)
    if state.places.kept_back is not None:
        assert all(task.id >= state.places.kept_below for task in entries), (
            "a task from before the restart is not kept back"
        )
        entries += _entries(state.places.kept_back)
    assert all(task.deaths for task in suspects), "a task without deaths is a suspect"
    assert not any(task.deaths for task in entries), "a suspect stands among the others"
    entries += suspects
    pending = [task for task in state.tasks.values() if task.state is PENDING]
    assert sorted(task.id for task in entries) == sorted(task.id for task in pending), "shelves and records differ"
    assert {id(task) for task in entries} == {id(task) for task in pending}, "a shelf holds an outdated copy"


def _check_records(state: QueueState) -> None:
    for number, task in state.tasks.items():
        assert number == task.id < state.next_id, f"{task} has an id that was not given"
        assert (task.finished_at is not None) == (task.state in FINAL), f"{task} finished at {task.finished_at}"
        assert task.result is None or task.state is State.COMPLETED, f"{task} has a result"


def _check_counts(state: QueueState) -> None:
    counted = Counter((task.queue, task.state) for task in state.tasks.values() if task.state not in FINAL)
    for name, figures in state.figures.queues.items():
        for kind in State:
            if kind not in FINAL:
                assert figures.counts[kind] == counted[name, kind], f"{name}: {kind.label} {figures.counts[kind]}"
    assert all(name in state.figures.queues for name, _ in counted), "a queue without figures"


def _check_leases(state: QueueState) -> None:
    running = {task.id: task for task in state.tasks.values() if task.state is RUNNING}
    held = {}
    for worker in state.leases.workers.values():
        for number, task in worker.running.items():
            assert number not in held, f"task {number} is leased twice"
            assert number == task.id and task is running.get(number), f"{task} is leased but not running"
            assert task.worker == worker.incarnation or task.worker is None, f"{task} names another worker"
            assert 0 < task.run < (state.epoch + 1) * RUNS_PER_EPOCH, f"{task} has an impossible run"
            held[number] = task
            # What an earlier run of the manager handed out may be over and its end told again, beside what came next.
            told_again = task.run < state.epoch * RUNS_PER_EPOCH or worker.incarnation == UNKNOWN
            assert not task.deaths or len(worker.running) == 1 or told_again, f"{task} is not alone"
        assert worker.progress.keys() <= worker.running.keys(), f"{worker.name}: progress of what it does not run"
    assert held.keys() == running.keys(), f"running without a lease: {running.keys() - held.keys()}"
    offers = Counter(name for worker in state.leases.workers.values() for name in worker.types)
    assert {name: count for name, count in state.leases.offers.items() if count} == dict(offers), "offers differ"
