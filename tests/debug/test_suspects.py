"""A task under which a worker process died runs next alone in one; single rules, played through by hand."""

from __future__ import annotations

import pytest
from test_state import ERROR, START, after, join, new_state, put, restarted, take, worker_info

from taskq.queue.check import check
from taskq.queue.leases import Moment, Worker
from taskq.queue.state import QueueState
from taskq.queue.task import RUNNING, State, Task
from taskq.queue.task_row import to_row
from taskq.queue.terms import new_task
from taskq.shapes import ACK, NACK


def die(state: QueueState, worker: Worker, now: Moment) -> None:
    state.leases.remove(worker.incarnation, dead=True)
    state.worker_gone(worker, "signal 11", worker.under_way(), now, counts=True)


def done(state: QueueState, worker: Worker, *tasks: Task, now: Moment) -> list[str]:
    """Report these tasks as done; gives who is called for it."""
    return state.report(worker, [(ACK, task.id, task.run, b"r", 0.1) for task in tasks], now)[1].recall


def recalled(state: QueueState, now: Moment) -> list[str]:
    found = [name for changes in state.tick(now) for name in changes.recall]
    check(state)
    return found


def with_suspects(count: int) -> QueueState:
    """A queue in which so many tasks have died once and are due at 2 s."""
    state = new_state()
    put(state, *[new_task("x", b"")] * count)
    worker = join(state, "gone")
    take(state, worker, count)
    die(state, worker, START)
    assert [task.deaths for task in state.tasks.values()] == [1] * count
    return state


def test_an_empty_process_takes_one_suspect_and_nothing_beside_it() -> None:
    state = with_suspects(2)
    put(state, *[new_task("x", b"", priority=9)] * 3)
    first, second = join(state, "a"), join(state, "b")
    state.tick(after(2))
    (suspect,) = take(state, first, 4, now=after(2))
    assert suspect.deaths == 1 and take(state, first, 3, now=after(2)) == []
    (other,) = take(state, second, 4, now=after(2))
    assert other.deaths == 1
    check(state)
    assert done(state, first, suspect, now=after(3)) == ["a"], "it may take others again, and waits for them"
    assert len(take(state, first, 4, now=after(3))) == 3
    check(state)


def test_a_busy_process_is_chosen_to_become_empty_and_the_others_go_on() -> None:
    state = with_suspects(1)
    idle_soon, busy = join(state, "a"), join(state, "b")
    put(state, *[new_task("x", b"")] * 20)
    (last,) = take(state, idle_soon, 1)
    take(state, busy, 2)
    assert recalled(state, after(2)) == ["a"], "the one that runs the least"
    assert take(state, idle_soon, 4, now=after(2)) == [] and len(take(state, busy, 2, now=after(2))) == 2
    assert recalled(state, after(2)) == [], "one is enough"
    assert done(state, idle_soon, last, now=after(3)) == ["a"]
    (suspect,) = take(state, idle_soon, 4, now=after(3))
    assert suspect.deaths == 1
    done(state, idle_soon, suspect, now=after(4))
    assert len(take(state, idle_soon, 4, now=after(4))) == 4


def test_who_became_empty_in_vain_is_let_go() -> None:
    state = with_suspects(1)
    kept, other = join(state, "a"), join(state, "b")
    put(state, *[new_task("x", b"")] * 20)
    take(state, kept, 1)
    (running,) = take(state, other, 1)
    take(state, other, 1)
    state.tick(after(2))
    assert kept.alone
    done(state, other, running, *other.running.values(), now=after(2))
    (suspect,) = take(state, other, 1, now=after(2))
    assert suspect.deaths == 1 and take(state, kept, 1, now=after(2)) == []
    assert recalled(state, after(2)) == ["a"] and len(take(state, kept, 1, now=after(2))) == 1


@pytest.mark.parametrize("gone", ["cancelled", "dead", "silent"])
def test_a_chosen_process_or_a_suspect_may_be_gone(gone: str) -> None:
    state = with_suspects(1)
    kept, other = join(state, "a"), join(state, "b")
    put(state, *[new_task("x", b"")] * 20)
    take(state, kept, 1)
    take(state, other, 2)
    state.tick(after(2))
    assert kept.alone and not other.alone
    if gone == "cancelled":
        state.cancel(1, after(2))
        assert recalled(state, after(2)) == ["a"] and take(state, kept, 1, now=after(2))
    elif gone == "dead":
        die(state, kept, after(2))
        assert recalled(state, after(2)) == ["b"] and other.alone
    else:
        kept.stopped = True
        assert recalled(state, after(2)) == ["b"] and take(state, other, 1, now=after(2)) == []


def test_only_who_serves_it_is_kept_for_a_suspect() -> None:
    state = with_suspects(1)
    elsewhere = join(state, "a", queues=("mail",))
    assert recalled(state, after(2)) == [] and take(state, elsewhere, 1, now=after(2)) == []
    assert not elsewhere.alone


def test_a_suspect_stays_one_over_retries_and_restarts() -> None:
    state = with_suspects(1)
    worker = join(state, "a")
    state.tick(after(2))
    (suspect,) = take(state, worker, 4, now=after(2))
    state.report(worker, [(NACK, suspect.id, suspect.run, ERROR, 1.0, 0.1)], after(3))
    state.tick(after(5))
    put(state, *[new_task("x", b"")] * 3)
    (suspect,) = take(state, worker, 4, now=after(5))
    again = restarted(state, to_row(suspect))
    worker, _, _ = again.attach(worker_info("a"), [(suspect.id, suspect.run)], START)
    put(again)
    assert again.tasks[suspect.id].state is RUNNING and take(again, worker, 3) == []
    check(again)


def test_a_suspect_from_before_a_restart_is_kept_back_like_others() -> None:
    state = with_suspects(1)
    state.tick(after(2))
    (row,) = map(to_row, state.tasks.values())
    again = restarted(state, row)
    again.leases.expect("gone-too", "pool", "gone-too", "h", 2, START.mono)
    worker = join(again, "a")
    assert row.state == State.PENDING and take(again, worker, 1) == []
    again.tick(after(6))
    assert [task.id for task in take(again, worker, 1, now=after(6))] == [1]
