"""Derives all bookkeeping of the queue from its records and compares: for tests. PURE.

The idea is HyperQueue's ``sanity_check``: whatever a random walk does, nothing that is counted or indexed may differ
from what the records say.
"""

from __future__ import annotations

from collections import Counter

from taskq.queue.ready import Ready
from taskq.queue.state import RUNS_PER_EPOCH, QueueState
from taskq.queue.task import FINAL, PENDING, RUNNING, SCHEDULED, State, Task


def check(state: QueueState) -> None:
    """Raise `AssertionError` at the first thing that does not agree with the records."""
    _check_shelves(state)
    _check_counts(state)
    _check_leases(state)
    due = Counter(task.id for _, _, task in state.scheduled if task.state is SCHEDULED)
    scheduled = {task.id for task in state.tasks.values() if task.state is SCHEDULED}
    assert set(due) == scheduled, f"scheduled heap {set(due) ^ scheduled}"
    assert all(count == 1 for count in due.values()), "a task is scheduled twice"
    for at, _, task in state.scheduled:
        assert task.state is not SCHEDULED or at == task.due_at, f"{task} is in the heap under another time"


def _entries(ready: Ready) -> list[Task]:
    found = []
    for shelf in ready.shelves.values():
        entries = shelf.entries()
        assert shelf.pending == len(entries), (
            f"{shelf.queue}/{shelf.type}: {shelf.pending} counted, {len(entries)} there"
        )
        for task in entries:
            assert (task.queue, task.type) == (shelf.queue, shelf.type), f"{task} is on the wrong shelf"
            shelf.push(task)
        found += entries
    return found


def _check_shelves(state: QueueState) -> None:
    entries = _entries(state.ready) + (_entries(state.kept_back) if state.kept_back else [])
    pending = [task for task in state.tasks.values() if task.state is PENDING]
    assert sorted(task.id for task in entries) == sorted(task.id for task in pending), "shelves and records differ"
    assert {id(task) for task in entries} == {id(task) for task in pending}, "a shelf holds an outdated copy"


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
    assert held.keys() == running.keys(), f"running without a lease: {running.keys() - held.keys()}"
    offers = Counter(name for worker in state.leases.workers.values() for name in worker.types)
    assert {name: count for name, count in state.leases.offers.items() if count} == dict(offers), "offers differ"
