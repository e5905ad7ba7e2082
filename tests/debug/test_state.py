"""Single rules of the pure queue, each played through by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.config import QueueSettings
from taskq.errors import KeyConflict, QueueFull
from taskq.queue.announced import Announced
from taskq.queue.changes import Changes
from taskq.queue.check import check
from taskq.queue.figures import QUEUES_KEPT
from taskq.queue.idempotency import Recent, content_digest
from taskq.queue.leases import SILENT_KEPT, Moment, Worker
from taskq.queue.ready import Ready
from taskq.queue.state import DUE_STEP, QueueState
from taskq.queue.task import PENDING, State, Task
from taskq.queue.task_row import TaskRow, to_row
from taskq.queue.terms import NewTask, Terms, new_task
from taskq.shapes import ACK, GIVE_BACK, NACK, PROGRESS, SNOOZE
from taskq.stores.base import KeyRow

START = Moment(100.0, 5_000.0)
POOL = {"id": "pool", "name": "pool", "host": "h", "pid": 1, "local": None}
ERROR = ("error", "ValueError", "no", "")


def after(seconds: float) -> Moment:
    return Moment(START.mono + seconds, START.wall + seconds)


def new_state(**settings: Any) -> QueueState:
    return QueueState(QueueSettings(**settings))


def worker_info(name: str, queues: tuple[str, ...] = ()) -> Any:
    return {
        **{"incarnation": name, "pool": POOL, "name": name, "host": "h", "pid": 2, "threads": 4},
        **{"queues": queues, "types": [{"name": "x"}, {"name": "y"}]},
    }


def join(state: QueueState, name: str = "w", queues: tuple[str, ...] = (), now: Moment = START) -> Worker:
    return state.attach(worker_info(name, queues), [], now)[0]


def put(state: QueueState, *items: NewTask, now: Moment = START) -> list[int]:
    return state.submit(1, items or (new_task("x", b"p"),), {}, now).ids


def take(state: QueueState, worker: Worker, slots: int = 1, now: Moment = START, waiting: int = 0) -> list[Task]:
    return state.reserve(worker, slots, 0, (), waiting, now)[0]


def test_submit_says_all_that_it_changed() -> None:
    state = new_state()
    accepted = state.submit(7, [new_task("x", b"p"), new_task("y", b"q", queue="mail", delay=9.0)], {}, START)
    first, second = accepted.changes.written
    assert accepted.ids == [1, 2] and accepted.existing == [] and accepted.keys == []
    assert accepted.changes == Changes([first, second], [], {("default", "x"): 1}, [])
    assert (first.state, first.client, first.due_at) == (State.PENDING, 7, START.wall)
    assert (second.state, second.queue, second.due_at) == (State.SCHEDULED, "mail", START.wall + 9)
    check(state)


def test_hand_outs_go_by_priority_then_age_over_all_queues() -> None:
    state = new_state()
    items = [
        new_task("x", b"", queue="a"),
        new_task("y", b"", queue="b", priority=5),
        new_task("x", b"", queue="b"),
        new_task("y", b"", queue="a", priority=5),
    ]
    put(state, *items)
    assert [task.id for task in take(state, join(state), 4)] == [2, 4, 1, 3]


@given(
    order=st.permutations(range(1, 9)),
    priorities=st.lists(st.integers(0, 1), min_size=9, max_size=9),
    gone=st.sets(st.integers(1, 8), max_size=4),
    cut=st.integers(0, 8),
    later=st.permutations(range(9, 13)),
)
def test_whatever_comes_in_whatever_order_is_handed_out_by_priority_and_age(
    order: list[int], priorities: list[int], gone: set[int], cut: int, later: list[int]
) -> None:
    tasks = {n: Task(n, Terms("x", "q", priorities[n % 9]), b"", None, "", 1, 0, 0, PENDING) for n in range(1, 13)}
    ready, others = Ready(), Ready()
    for number in order:
        ready.push(tasks[number])
    for number in gone:
        tasks[number].state = State.CANCELLED
        ready.gone(tasks[number])
    found = ready.take(ready.serving((), ("x",)), cut, 0.0)
    for number in later:
        others.push(tasks[number])
    ready.absorb(others)
    expected = sorted(set(order) - gone, key=lambda n: (-tasks[n].terms.priority, n))
    assert [task.id for task in found] == expected[:cut]
    expected = sorted([*expected[cut:], *later], key=lambda n: (-tasks[n].terms.priority, n))
    assert [task.id for task in ready.take(ready.serving((), ("x",)), 20, 0.0)] == expected
    assert not ready.shelves


def test_a_worker_gets_only_what_it_serves() -> None:
    state = new_state()
    put(state, new_task("x", b"", queue="a"), new_task("z", b"", queue="b"), new_task("y", b"", queue="b"))
    assert [task.id for task in take(state, join(state, queues=("b",)), 4)] == [3]


def test_a_short_backlog_is_shared_out_evenly() -> None:
    state = new_state()
    put(state, *[new_task("x", b"")] * 8)
    shares = [len(take(state, join(state, f"w{n}"), 4, waiting=3 - n)) for n in range(4)]
    assert shares == [2, 2, 2, 2]


def test_an_expired_run_is_over_even_for_the_worker_that_has_the_task_again() -> None:
    state = new_state(lease=30.0)
    (number,) = put(state)
    worker = join(state)
    (task,) = take(state, worker)
    old = task.run
    state.tick(after(31))
    assert (task.state, task.deaths, task.due_at) == (State.SCHEDULED, 1, START.wall + 31 + 1)
    state.leases.beat(POOL, [{"incarnation": "w", "stopped": False}], after(32).mono)
    state.tick(after(33))
    (task,) = take(state, worker, now=after(33))
    assert task.run > old
    refused, changes = state.report(worker, [(ACK, number, old, b"late", 1.0)], after(33))
    assert refused == [0] and changes == Changes() and task.state is State.RUNNING and task.result is None
    refused, _ = state.report(worker, [(ACK, number, task.run, b"good", 1.0)], after(34))
    assert refused == [] and task.result == b"good" and task.error is None
    check(state)


@pytest.mark.parametrize("silent", ["process", "machine", "machine and manager"])
def test_silence_is_the_death_of_what_may_have_begun_and_the_rest_goes_back_unharmed(silent: str) -> None:
    state = new_state(lease=30.0)
    numbers = put(state, *[new_task("x", b"")] * 20)
    worker = join(state)
    held = take(state, worker, 20)
    seen = [(task.id, task.run, "x", 1.0) for task in held[2:5]]
    if silent == "machine and manager":  # of a worker that did not come back nobody knows the threads
        worker.threads = 0
    else:
        child = {"incarnation": "w", "stopped": silent == "process", "running": seen}
        state.leases.beat(POOL, [child], START.mono)
    began = {"process": numbers[2:5], "machine": [*numbers[:1], *numbers[2:5]], "machine and manager": numbers[:8]}
    state.tick(after(31))
    assert [task.id for task in held if task.deaths] == began[silent]
    assert {task.state for task in held if task.deaths} == {State.SCHEDULED}
    assert {(task.state, task.failures) for task in held if not task.deaths} == {(PENDING, 0)}
    check(state)


def test_three_deaths_poison_and_what_had_not_started_goes_back_unharmed() -> None:
    state = new_state()
    put(state, new_task("x", b"", priority=1), new_task("x", b""))
    now = START
    for death in (1, 2, 3):
        worker = join(state, f"w{death}", now=now)
        bad, *others = take(state, worker, 2, now)
        assert len(others) == (death == 1), "from the second time on it runs alone"
        state.leases.remove(worker.incarnation, dead=True)
        changes = state.worker_gone(worker, "signal 11", {bad.id: bad.run}, now, counts=True)
        assert bad.deaths == death and [(one.deaths, one.failures, one.state) for one in others] in (
            [],
            [(0, 0, PENDING)],
        )
        assert changes.ready == ({("default", "x"): 1} if others else {})
        if death < 3:
            assert bad.state is State.SCHEDULED and bad.due_at == now.wall + 2.0 ** (death - 1)
            now = Moment(now.mono + 10, now.wall + 10)
            state.tick(now)
    assert bad.state is State.FAILED and bad.error is not None and bad.error.kind == "poisoned"
    assert changes.final == [bad]
    state.forget([bad])
    check(state)


def test_retries_wait_longer_each_time_and_end() -> None:
    state = new_state()
    put(state, new_task("x", b"", max_retries=2, backoff=4.0))
    worker, now = join(state), START
    for low, high in ((2.0, 4.0), (4.0, 8.0)):
        (task,) = take(state, worker, now=now)
        state.report(worker, [(NACK, task.id, task.run, ERROR, None, 0.1)], now)
        assert task.state is State.SCHEDULED and low <= task.due_at - now.wall <= high
        now = Moment(now.mono + 9, now.wall + 9)
        worker.beat_at = now.mono
        state.tick(now)
    (task,) = take(state, worker, now=now)
    _, changes = state.report(worker, [(NACK, task.id, task.run, ERROR, None, 0.1)], now)
    assert task.state is State.FAILED and task.failures == 3 and changes.final == [task]
    assert state.figures.totals["retried"] == 2 and state.figures.totals["failed"] == 1


def test_attaching_again_gives_back_what_the_worker_does_not_hold() -> None:
    state = new_state()
    put(state, *[new_task("x", b"")] * 3)
    worker = join(state)
    kept, lost, _ = take(state, worker, 3)
    held = [(kept.id, kept.run), (99, 5)]
    session = worker.session
    worker, gone, changes = state.attach(worker_info("w"), held, START)
    assert gone == [(99, 5)] and worker.session == session + 1 and changes.ready == {("default", "x"): 2}
    assert state.leases.session("w", session) is None, "the former session is over"
    assert kept.state is State.RUNNING and lost.state is State.PENDING
    check(state)


def test_a_worker_that_holds_another_run_of_its_task_has_lost_it() -> None:
    state = new_state()
    (number,) = put(state)
    (task,) = take(state, join(state))
    _, lost, changes = state.attach(worker_info("w"), [(number, task.run - 1)], START)
    assert lost == [(number, task.run - 1)] and changes.ready == {("default", "x"): 1}
    check(state)


def test_progress_is_told_while_the_run_lasts() -> None:
    state = new_state()
    put(state)
    worker = join(state)
    (task,) = take(state, worker)
    state.report(worker, [(PROGRESS, task.id, task.run, 0.5, "half")], START)
    assert worker.progress == {task.id: (0.5, "half")}
    state.report(worker, [(GIVE_BACK, task.id, task.run)], START)
    assert not worker.progress
    check(state)


def test_workers_and_pools_of_which_nobody_hears_are_forgotten() -> None:
    state = new_state(lease=30.0)
    state.leases.expect("expected", "pool", "w", "h", 2, START.mono)
    join(state, "joined")
    state.leases.beat(POOL, [], START.mono)
    state.tick(after(29))
    assert state.leases.workers.keys() == {"expected", "joined"}
    assert [changes.left for changes in state.tick(after(31)) if changes.left] == [["expected"]]
    state.tick(after(30 + SILENT_KEPT - 1))
    assert state.leases.workers.keys() == {"joined"} and state.leases.pools
    assert [changes.left for changes in state.tick(after(30 + SILENT_KEPT)) if changes.left] == [["joined"]]
    assert not state.leases.workers and not state.leases.pools


def restarted(before: QueueState, *rows: TaskRow) -> QueueState:
    """The next manager, which finds these records; workers that are not in them are not expected."""
    state = QueueState(before.settings, epoch=before.epoch + 1, next_id=before.next_id)
    state.load(rows, START)
    state.resume(START)
    check(state)
    return state


@pytest.mark.parametrize("stored", ["pending", "scheduled", "due"])
@pytest.mark.parametrize("end", ["give back", "snooze", "nack", "death"])
def test_a_task_that_was_taken_up_by_its_worker_goes_on_like_any_other(stored: str, end: str) -> None:
    """Its old entry stays behind where it waited, and must not come to life again."""
    before = new_state()
    number, follower = put(before, new_task("x", b"p", delay=0.0 if stored == "pending" else 1.0), new_task("x", b"p"))
    rows = [to_row(before.tasks[number]), to_row(before.tasks[follower])]
    before.tick(after(2))
    (task,) = take(before, join(before), now=after(2))
    state = restarted(before, *rows)
    if stored == "due":
        state.leases.expect("w", "pool", "w", "h", 2, START.mono)
        state.tick(after(1))
    worker, lost, changes = state.attach(worker_info("w"), [(number, task.run)], START)
    (taken,) = changes.written
    assert not lost and (taken.state, taken.run) == (State.RUNNING, task.run)
    assert (taken.worker, taken.worker_name) == ("w", "w")
    check(state)
    reports = {
        "give back": (GIVE_BACK, number, task.run),
        "snooze": (SNOOZE, number, task.run, 1.0),
        "nack": (NACK, number, task.run, ERROR, 1.0, 0.1),
    }
    if end == "death":
        state.worker_gone(worker, "signal 9", worker.under_way(), START, counts=True)
    else:
        state.report(worker, [reports[end]], START)
    check(state)
    for seconds in (5.0, 6.0):
        state.tick(after(seconds))
        check(state)
    other = join(state, "other", now=after(6))
    again, *rest = take(state, other, 3, now=after(6))
    if end == "death":  # then it runs alone
        assert not rest
        state.report(other, [(ACK, again.id, again.run, b"r", 0.1)], after(6))
        rest = take(state, other, 3, now=after(6))
    assert (again.id, [one.id for one in rest]) == (number, [follower]) and again.run > task.run
    check(state)


def test_a_run_that_was_over_before_the_restart_is_not_taken_up() -> None:
    before = new_state(lease=30.0)
    (number,) = put(before)
    (task,) = take(before, join(before))
    first = task.run
    before.tick(after(40))
    before.tick(after(50))
    (task,) = take(before, join(before, "other", now=after(50)), now=after(50))
    over = to_row(task)
    assert restarted(before, over).attach(worker_info("w"), [(number, first)], START)[1] == [(number, first)]
    state = restarted(before, over._replace(state=State.PENDING))
    assert state.attach(worker_info("w"), [(number, first)], START)[1] == [(number, first)]


def test_a_run_is_taken_up_from_the_worker_that_the_store_names() -> None:
    """The store knows of the first run; it was over, and the second one handed out, just before the crash."""
    before = new_state(lease=30.0)
    (number,) = put(before)
    (task,) = take(before, join(before))
    row = to_row(task)
    before.tick(after(40))
    before.tick(after(50))
    (task,) = take(before, join(before, "other", now=after(50)), now=after(50))
    state = restarted(before, row)
    state.report(state.leases.workers["w"], [(PROGRESS, number, row.run, 0.5, "half")], START)
    other, lost, _ = state.attach(worker_info("other"), [(number, task.run)], START)
    assert not lost and other.running.keys() == {number}
    check(state)
    assert state.attach(worker_info("w"), [(number, row.run)], START)[1] == [(number, row.run)]
    check(state)


def test_a_task_that_was_handed_out_since_the_restart_is_not_taken_up() -> None:
    before = new_state()
    (number,) = put(before)
    row = to_row(before.tasks[number])
    (task,) = take(before, join(before))
    state = restarted(before, row)
    state.tick(after(5))
    worker = join(state, "other", now=after(5))
    (again,) = take(state, worker, now=after(5))
    state.report(worker, [(GIVE_BACK, number, again.run)], after(5))
    assert state.attach(worker_info("w"), [(number, task.run)], after(6))[1] == [(number, task.run)]
    check(state)


@pytest.mark.parametrize("trouble", ["silent", "stopped", "draining"])
def test_nothing_is_handed_to_a_worker_in_trouble(trouble: str) -> None:
    state = new_state(lease=30.0)
    put(state)
    worker = join(state)
    if trouble == "stopped":
        state.leases.beat(POOL, [{"incarnation": "w", "stopped": True}], START.mono)
    worker.draining = trouble == "draining"
    now = after(20.5) if trouble == "silent" else START
    assert take(state, worker, now=now) == []
    state.leases.beat(POOL, [{"incarnation": "w", "stopped": False}], now.mono)
    worker.draining = False
    assert len(take(state, worker, now=now)) == 1


def test_a_stopped_worker_keeps_its_old_lease_only() -> None:
    state = new_state(lease=30.0)
    put(state)
    worker = join(state)
    take(state, worker)
    state.leases.beat(POOL, [{"incarnation": "w", "stopped": True}], after(29).mono)
    state.tick(after(31))
    assert not worker.running


def test_a_full_queue_takes_nothing_of_a_call_and_other_queues_go_on() -> None:
    state = new_state(max_pending=3)
    put(state, new_task("x", b""), new_task("x", b"", delay=60.0))
    with pytest.raises(QueueFull, match=r'queue "default" is full \(2 pending, oldest 1m05s\); not accepted'):
        put(state, new_task("x", b"", queue="other"), new_task("x", b""), new_task("x", b""), now=after(65))
    assert sorted(state.tasks) == [1, 2] and state.figures.totals["submitted"] == 2
    assert put(state, *[new_task("x", b"", queue="other")] * 3) == [3, 4, 5]
    check(state)


def test_what_was_learned_of_a_client_is_never_unlearned() -> None:
    """The store may say less than what is known already: it was asked before the last call was written."""
    recent = Recent()
    recent.learn(1, 5)
    recent.learn(1, 3)
    assert not recent.is_new(1, 5) and recent.is_new(1, 6) and not recent.is_new(2, 1)


def test_a_key_gives_the_same_task_or_a_conflict() -> None:
    state = new_state()
    item = new_task("x", b"p", key="k")
    known = {"k": KeyRow("k", 77, content_digest(item))}
    accepted = state.submit(1, [item, new_task("x", b"p"), item._replace(correlation_id="c")], known, START)
    assert accepted.ids == [77, 2, 77] and accepted.existing == [0, 2] and sorted(state.tasks) == [2]
    twins = state.submit(1, [item, item], {}, START)
    assert twins.ids == [4, 4] and twins.existing == [1] and [row.key for row in twins.keys] == ["k"]
    with pytest.raises(KeyConflict, match="belongs to task 77"):
        state.submit(1, [new_task("x", b"n"), item._replace(payload=b"other")], known, START)
    assert sorted(state.tasks) == [2, 4]


def test_a_cancelled_running_task_gets_no_further_attempt_but_may_complete() -> None:
    state = new_state()
    put(state, *[new_task("x", b"")] * 2)
    worker = join(state)
    first, second = take(state, worker, 2)
    for task in (first, second):
        assert state.cancel(task.id, START)[0] is State.RUNNING
    reports = [(ACK, first.id, first.run, b"r", 0.1), (NACK, second.id, second.run, ERROR, None, 0.1)]
    state.report(worker, reports, START)
    assert (first.state, second.state) == (State.COMPLETED, State.CANCELLED)


def test_whatever_stopped_because_it_was_asked_to_is_cancelled_and_nothing_else_is() -> None:
    state = new_state()
    put(state, *[new_task("x", b"", max_retries=0)] * 3)
    worker = join(state)
    stopped, failed, liar = take(state, worker, 3)
    state.cancel(stopped.id, START)
    state.cancel(failed.id, START)
    assert {task.id for task in state.stopping.tasks()} == {stopped.id, failed.id}
    interrupted = ("cancelled", "TaskCancelled", "it was cancelled", "Traceback …")
    reports = [
        (NACK, stopped.id, stopped.run, interrupted, None, 0.1),
        (NACK, failed.id, failed.run, ERROR, None, 0.1),
        (NACK, liar.id, liar.run, interrupted, None, 0.1),
    ]
    changes = state.report(worker, reports, after(3))[1]
    assert [task.state for task in changes.final] == [State.CANCELLED, State.FAILED, State.FAILED]
    assert (stopped.failures, stopped.finished_at, stopped.error) == (0, after(3).wall, interrupted)
    assert state.stopping.tasks() == []
    check(state)


@pytest.mark.parametrize("end", ["nack", "give back", "snooze", "death", "re-attach"])
def test_every_end_of_a_cancelled_attempt_has_a_time(end: str) -> None:
    """Records without one would never be purged."""
    state = new_state()
    put(state)
    worker = join(state)
    (task,) = take(state, worker)
    state.cancel(task.id, START)
    reports = {
        "nack": (NACK, task.id, task.run, ERROR, None, 0.1),
        "give back": (GIVE_BACK, task.id, task.run),
        "snooze": (SNOOZE, task.id, task.run, 3.0),
    }
    if end in reports:
        state.report(worker, [reports[end]], after(7))
    elif end == "death":
        state.worker_gone(worker, "signal 9", worker.under_way(), after(7), counts=True)
    else:
        join(state, now=after(7))
    assert (task.state, task.finished_at) == (State.CANCELLED, START.wall + 7)
    check(state)


@pytest.mark.parametrize("jump", [-366 * 86400.0, 366 * 86400.0])
def test_pauses_are_as_long_as_before_when_somebody_sets_the_clock(jump: float) -> None:
    """A date is a date; but a pause of seconds must not become one of a year."""
    state = new_state()
    put(state, new_task("x", b"", delay=60.0), *[new_task("x", b"", backoff=10.0)] * 2)
    worker = join(state)
    retried, snoozed = take(state, worker, 2)
    reports = [(NACK, retried.id, retried.run, ERROR, None, 0.1), (SNOOZE, snoozed.id, snoozed.run, 8.0)]
    state.report(worker, reports, START)
    pause = retried.due_at - START.wall
    state.tick(START)
    now = Moment(START.mono + 1, START.wall + 1 + jump)
    changed = [task.id for changes in state.tick(now) for task in changes.moved + changes.written]
    assert changed == ([2, 3] if jump < 0 else [2, 3, 1])
    assert [retried.due_at - now.wall, snoozed.due_at - now.wall] == pytest.approx([pause - 1, 7.0])
    assert state.tasks[1].due_at == START.wall + 60
    check(state)


@pytest.mark.parametrize("seen", [0.0, 366 * 86400.0])
@pytest.mark.parametrize("back", [3600.0, 366 * 86400.0])
def test_a_pause_stays_short_when_the_clock_is_set_back_while_no_manager_runs(seen: float, back: float) -> None:
    """Whether or not the manager saw how it was set ahead before."""
    before = new_state()
    put(before, *[new_task("x", b"", backoff=10.0)] * 2, new_task("x", b"", delay=60.0))
    worker = join(before)
    retried, snoozed = take(before, worker, 2)
    reports = [(NACK, retried.id, retried.run, ERROR, 10.0, 2.0), (SNOOZE, snoozed.id, snoozed.run, 8.0)]
    before.report(worker, reports, START)
    before.follow_wall_clock(Moment(START.mono, START.wall + seen))
    state = new_state()
    state.next_id = before.next_id
    now = Moment(1.0, START.wall + seen - back)
    state.load([to_row(task) for task in before.tasks.values()], now)
    assert [state.tasks[one].due_at - now.wall for one in (1, 2)] == [12.0, 8.0]  # from the start of the run on
    assert state.tasks[3].due_at == START.wall + 60
    check(state)


@pytest.mark.parametrize("event", ["snooze", "death"])
def test_a_pause_stays_short_when_the_clock_went_ahead_under_the_attempt(event: str) -> None:
    """And was set back while no manager ran: the beginning of the attempt followed the clock as its end did."""
    before = new_state()
    put(before)
    worker = join(before)
    before.follow_wall_clock(START)
    (task,) = take(before, worker)
    ahead = Moment(START.mono + 1.0, START.wall + 1.0 + 86400.0)
    if event == "snooze":
        before.report(worker, [(SNOOZE, task.id, task.run, 8.0)], ahead)
        pause = 8.0
    else:
        before.worker_gone(worker, "killed", {task.id: task.run}, ahead, counts=True)
        pause = 1.0
    state = new_state()
    state.next_id = before.next_id
    now = Moment(1.0, START.wall + 2.0)
    state.load([to_row(task)], now)
    assert state.tasks[task.id].due_at - now.wall == 1.0 + pause  # from the start of the run on
    check(state)


@pytest.mark.parametrize("jump", [-86400.0, 86400.0])
def test_a_task_has_run_for_as_long_as_it_has_whatever_the_clock_does(jump: float) -> None:
    state = new_state()
    put(state)
    worker = join(state)
    state.tick(START)
    (task,) = take(state, worker)
    state.tick(Moment(START.mono + 1.0, START.wall + 1.0 + jump))
    assert task.started_at == START.wall + jump


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_clock_that_is_set_while_records_are_loaded_is_followed(jump: float) -> None:
    before = new_state()
    put(before)
    worker = join(before)
    (task,) = take(before, worker)
    before.report(worker, [(NACK, task.id, task.run, ERROR, 10.0, 0.0)], START)
    state = restarted(before, to_row(task))
    now = Moment(START.mono + 1, START.wall + 1 + jump)
    state.tick(now)
    assert state.tasks[task.id].due_at - now.wall == 9.0


def test_many_that_are_due_at_once_come_in_pieces() -> None:
    """The lock is held for each piece only."""
    state = new_state()
    put(state, *[new_task("x", b"", delay=5.0)] * (2 * DUE_STEP + 1))
    for piece in (DUE_STEP, DUE_STEP, 1):
        assert state.next_deadline(after(5)) == 0.0
        assert sum(len(changes.written) for changes in state.tick(after(5))) == piece
    assert state.next_deadline(after(5)) is None
    check(state)


def test_cancelled_tasks_do_not_wait_in_memory_for_their_day() -> None:
    state = new_state()
    numbers = put(state, *[new_task("x", b"", delay=9e6)] * 5_000, *[new_task("x", b"")] * 5_000)
    worker = join(state)
    (back,) = take(state, worker)
    state.report(worker, [(GIVE_BACK, back.id, back.run)], START)
    for number in numbers[:-1]:
        if number == back.id:
            continue
        for task in state.cancel(number, START)[1].final:
            state.forget([task])
    assert len(state.places.schedule._heap) <= 1_000
    (shelf,) = state.places.ready.shelves.values()
    assert sum(map(len, shelf._lanes.values())) <= 1_100
    check(state)
    assert [task.id for task in take(state, worker, 3)] == [back.id, numbers[-1]]


def test_names_of_queues_that_are_empty_cost_nothing() -> None:
    state = new_state()
    first, second, third = put(state, *[new_task("x", b"", queue=f"user-{n}") for n in range(3)])
    worker = join(state)
    taken = state.reserve(worker, 1, 1, ("x",), 0, START)[0]
    assert [task.id for task in taken] == [first, second] and list(state.places.ready.shelves) == [("user-2", "x")]
    state.cancel(third, START)
    assert not state.places.ready.shelves
    check(state)


def test_very_many_queues_are_forgotten_when_they_are_idle() -> None:
    state = new_state()
    numbers = put(state, *[new_task("x", b"", queue=f"user-{n}") for n in range(QUEUES_KEPT + 50)])
    for number in numbers[1:]:
        state.cancel(number, START)
    state.figures.forget_idle()
    assert len(state.figures.queues) == QUEUES_KEPT and "user-0" in state.figures.queues
    for number in [number for number, task in state.tasks.items() if task.state is State.CANCELLED]:
        state.forget([state.tasks[number]])
    check(state)


def test_what_was_kept_back_comes_before_what_was_submitted_since() -> None:
    before = new_state()
    items = [new_task("x", b"", priority=priority) for priority in (0, 1, 0, 2)] + [new_task("y", b"")]
    rows = [to_row(task) for task in before.submit(1, items, {}, START).changes.written]
    state = QueueState(QueueSettings(), epoch=2, next_id=before.next_id)
    state.load(rows, START)
    put(state, new_task("x", b"", priority=1), new_task("x", b"", priority=3), new_task("z", b""), new_task("x", b""))
    state.cancel(9, START)
    given_back = take(state, join(state), 1)[0]
    state.worker_gone(state.leases.workers["w"], "leaving", {}, START, counts=False)
    assert given_back.id == 7, "only new ones are handed out until the others are released"
    (changes,) = [changes for changes in state.tick(after(5)) if changes.ready]
    assert changes.ready == {("default", "x"): 4, ("default", "y"): 1}
    check(state)
    assert [task.id for task in take(state, join(state), 9)] == [7, 4, 2, 6, 1, 3, 5]


def test_what_is_due_is_known_to_the_second() -> None:
    state = new_state(lease=30.0)
    assert state.next_deadline(START) is None
    put(state, new_task("x", b"", delay=50.0))
    assert state.next_deadline(START) == 50.0
    put(state)
    take(state, join(state))
    assert state.next_deadline(after(10)) == 20.0
    assert state.next_deadline(after(90)) == 0.0


def test_several_signatures_of_a_type_count_while_workers_offer_them() -> None:
    state, announced = new_state(), Announced()
    assert announced.types([]) == []
    workers = [join(state, name) for name in ("old", "new")]
    described: list[Any] = [
        {"name": "x", "parameters": parameters, "queue": "default", "max_retries": 3, "backoff": 1.0, "timeout": None}
        for parameters in ([["a", 1, True]], [["b", 1, True]])
    ]
    for worker, info in zip(workers, described, strict=True):
        worker.announced = announced.add([info])
    both = announced.types(workers)
    assert [(info["parameters"], info["workers"]) for info in both] == [([["a", 1, True]], 1), ([["b", 1, True]], 1)]
    assert [info["parameters"] for info in announced.types(workers[:1])] == [[["a", 1, True]]]
    (left,) = announced.types([])
    assert (left["parameters"], left["workers"]) == ([["b", 1, True]], 0), "offered before, but by nobody now"
    assert Announced(row for worker in workers for row in worker.announced).types([]) == [left]
