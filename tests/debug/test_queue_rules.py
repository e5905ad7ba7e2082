"""What people lay down for queues, orders of queues, and priorities that age: on the pure queue, without processes."""

from __future__ import annotations

from typing import Any

import pytest

from taskq.clock import FakeClock
from taskq.config import QueueSettings
from taskq.errors import BadArguments, QueueNotFound
from taskq.queue.check import check
from taskq.queue.job_queue import JobQueue
from taskq.queue.leases import Moment, Worker
from taskq.queue.ready import AGING
from taskq.queue.state import QueueState
from taskq.queue.terms import NewTask, new_task
from taskq.service import FAIR, STRICT
from taskq.shapes import ACK
from taskq.stores.base import QueueRow
from taskq.stores.memory import MemoryStore

START = Moment(100.0, 5_000.0)
POOL = {"id": "pool", "name": "pool", "host": "h", "pid": 1, "local": None}


def after(seconds: float) -> Moment:
    return Moment(START.mono + seconds, START.wall + seconds)


def info(name: str = "w", queues: tuple[str, ...] = (), order: str = "") -> Any:
    return {
        **{"incarnation": name, "pool": POOL, "name": name, "host": "h", "pid": 2, "threads": 4},
        **{"queues": queues, "queue_order": order, "types": [{"name": "x"}, {"name": "y"}]},
    }


def join(state: QueueState, name: str = "w", queues: tuple[str, ...] = (), order: str = "") -> Worker:
    return state.attach(info(name, queues, order), [], START)[0]


def put(state: QueueState, *items: NewTask, now: Moment = START) -> list[int]:
    return list(state.submit(1, items, {}, now).ids)


def of(queue: str, count: int, **terms: Any) -> list[NewTask]:
    return [new_task("x", b"", queue=queue, **terms)] * count


def take(state: QueueState, worker: Worker, slots: int = 1, now: Moment = START) -> list[int]:
    state.leases.beat(POOL, [{"incarnation": worker.incarnation, "stopped": False}], now.mono)
    found = state.reserve(worker, slots, 0, (), 0, now)[0]
    check(state)
    return [task.id for task in found]


def queues_of(state: QueueState, worker: Worker, slots: int) -> str:
    return "".join(state.tasks[number].queue for number in take(state, worker, slots))


def lay_down(state: QueueState, queue: str, **rules: Any) -> None:
    state.rules.put(QueueRow(queue, **rules))


# -- priorities age


def test_five_minutes_of_waiting_count_as_one_priority() -> None:
    state = QueueState(QueueSettings())
    worker = join(state)
    [old] = put(state, *of("a", 1))
    [higher] = put(state, *of("a", 1, priority=1), now=after(AGING - 1))
    [highest] = put(state, *of("a", 1, priority=2), now=after(AGING - 1))
    assert take(state, worker, 1, after(AGING - 1)) == [highest]
    assert take(state, worker, 2, after(AGING)) == [old, higher], "it counts as high as the other, and is older"


def test_a_run_ends_where_younger_tasks_count_for_less() -> None:
    state = QueueState(QueueSettings())
    worker = join(state)
    old = put(state, *of("a", 2))
    young = put(state, *of("a", 2), now=after(AGING))
    higher = put(state, *of("b", 2, priority=1), now=after(AGING))
    assert take(state, worker, 6, after(AGING)) == [*old, *higher, *young]


def test_under_a_steady_stream_of_higher_priority_nothing_starves() -> None:
    state = QueueState(QueueSettings())
    worker = join(state)
    [low, _] = put(state, *of("a", 1), *of("a", 1, priority=9))
    served: list[int] = []
    for minute in range(60):
        now = after(60.0 * minute)
        put(state, *of("a", 1, priority=9), now=now)  # so that there is always one more than is taken
        served += take(state, worker, 1, now)
        if low in served:
            break
    assert minute == 9 * AGING / 60, "nine steps of priority"


# -- orders


def test_without_an_order_priority_and_age_decide_over_all_queues() -> None:
    state = QueueState(QueueSettings())
    put(state, *of("b", 2), *of("a", 2))
    assert queues_of(state, join(state, queues=("a", "b")), 4) == "bbaa"


def test_strict_serves_a_queue_only_when_those_before_it_are_empty() -> None:
    state = QueueState(QueueSettings())
    put(state, *of("c", 1, priority=9), *of("b", 2), *of("a", 2))
    worker = join(state, queues=("a", "b", "c"), order=STRICT)
    assert queues_of(state, worker, 3) == "aab"
    put(state, *of("a", 1))
    assert queues_of(state, worker, 3) == "abc"


def test_fair_lets_queues_take_turns() -> None:
    state = QueueState(QueueSettings())
    put(state, *of("a", 50, priority=9), *of("b", 3), *of("c", 3))
    worker = join(state, order=FAIR)
    assert "".join(queues_of(state, worker, 1) for _ in range(7)) == "abcabca"
    assert queues_of(state, worker, 4) == "bcaa", "a batch is dealt out"
    assert queues_of(state, worker, 4) == "aaaa", "whoever has nothing left is out of the round"


def test_fair_keeps_to_the_order_in_which_queues_are_named() -> None:
    state = QueueState(QueueSettings())
    put(state, *of("a", 2), *of("b", 2), *of("z", 2))
    assert queues_of(state, join(state, queues=("b", "a"), order=FAIR), 6) == "baba"
    assert {task.queue for task in state.tasks.values() if not task.run} == {"z"}


def test_strict_needs_names() -> None:
    queue = JobQueue(MemoryStore(), FakeClock(), QueueSettings())
    queue.open()
    for order in (STRICT, "other"):
        with pytest.raises(BadArguments, match="order of queues"):
            queue.attach(info(order=order), ())


# -- paused queues and limits


def test_nothing_of_a_paused_queue_is_handed_out_and_what_runs_goes_on() -> None:
    state = QueueState(QueueSettings())
    worker = join(state)
    first, second, other = put(state, *of("a", 2), *of("b", 1))
    assert take(state, worker) == [first]
    lay_down(state, "a", paused_by="ann@host", paused_at=START.wall)
    assert take(state, worker, 4) == [other]
    assert not state.report(worker, [(ACK, first, state.tasks[first].run, b"r", 0.1)], START)[0]
    put(state, *of("a", 1))
    assert take(state, worker, 4) == []
    lay_down(state, "a")
    assert take(state, worker, 1) == [second]


def test_a_limit_holds_over_all_workers_and_counts_what_runs() -> None:
    state = QueueState(QueueSettings())
    one, two = join(state, "w1"), join(state, "w2")
    ids = put(state, *of("a", 9), *of("b", 1))
    lay_down(state, "a", max_running=3)
    assert take(state, one, 2) == ids[:2]
    assert take(state, two, 4) == [ids[2], ids[9]]
    assert take(state, one, 4) == take(state, two, 4) == []
    state.report(two, [(ACK, ids[2], state.tasks[ids[2]].run, b"r", 0.1)], START)
    assert take(state, one, 4) == [ids[3]]
    lay_down(state, "a", max_running=1)
    assert take(state, one, 4) == [], "fewer than run now"
    lay_down(state, "a")
    assert take(state, one, 9) == ids[4:9]


def test_of_a_queue_with_a_limit_nothing_is_handed_out_ahead() -> None:
    state = QueueState(QueueSettings())
    worker = join(state)
    put(state, *of("a", 5))
    lay_down(state, "a", max_running=4)
    assert len(state.reserve(worker, 2, 100, ["x"], 0, START)[0]) == 2


def test_who_ends_a_task_of_a_full_queue_calls_for_the_next() -> None:
    state = QueueState(QueueSettings())
    worker = join(state)
    first, second, other = put(state, *of("a", 2), *of("b", 1))
    lay_down(state, "a", max_running=1)
    became = {("a", "x"): 2, ("b", "x"): 1}
    assert take(state, worker, 1) == [first]
    assert state.rules.to_be_called_for(became, state.places.ready, state.figures) == {("b", "x"): 1}
    state.report(worker, [(ACK, first, state.tasks[first].run, b"r", 0.1)], START)
    assert state.rules.to_be_called_for({}, state.places.ready, state.figures) == {("a", "x"): 1}
    lay_down(state, "a", paused_at=START.wall)
    assert state.rules.to_be_called_for({("a", "x"): 1}, state.places.ready, state.figures) == {}
    assert {task.id for task in state.tasks.values()} >= {second, other}


# -- the verbs


class Queue:
    """A queue on a store that outlives it."""

    def __init__(self) -> None:
        self.clock, self.store = FakeClock(), MemoryStore()
        self.start()

    def start(self) -> None:
        self.verbs = JobQueue(self.store, self.clock, QueueSettings())
        self.verbs.open()

    def restart(self) -> None:
        self.verbs.close()
        self.start()

    def seen(self, name: str) -> dict[str, Any]:
        return next(found for found in self.verbs.snapshot()["queues"] if found["name"] == name)


def test_who_paused_a_queue_and_when_is_kept_over_a_restart() -> None:
    queue = Queue()
    paused = queue.verbs.pause_queue("a", "ann@host")
    assert paused == {"name": "a", "paused_at": queue.clock.wall(), "paused_by": "ann@host", "limit": None}
    queue.clock.advance(60.0)
    assert queue.verbs.pause_queue("a", "bob@host") == paused, "the first one did it"
    queue.verbs.limit_queue("a", 2)
    queue.restart()
    seen = queue.seen("a")
    assert (seen["paused"], seen["paused_by"], seen["limit"], seen["pending"]) == (True, "ann@host", 2, 0)
    assert queue.verbs.resume_queue("a")["paused_by"] == "ann@host"
    queue.restart()
    seen = queue.seen("a")
    assert (seen["paused"], seen["paused_by"], seen["paused_at"], seen["limit"]) == (False, None, None, 2)
    queue.verbs.limit_queue("a", None)
    assert queue.verbs.snapshot()["queues"] == []


def test_queues_that_are_not_there() -> None:
    queue = Queue()
    with pytest.raises(QueueNotFound, match='"a"'):
        queue.verbs.resume_queue("a")
    with pytest.raises(QueueNotFound, match='"a"'):
        queue.verbs.purge_queue("a", 0)
    for bad in (0, -1, 1.5, "3", True):
        with pytest.raises(BadArguments, match="a limit is a number"):
            queue.verbs.limit_queue("a", bad)  # type: ignore[arg-type]


def test_a_purge_cancels_what_waits_and_was_there_when_it_began() -> None:
    queue = Queue()
    items = [*of("a", 400), *of("a", 200, delay=60.0), *of("a", 200, priority=3), *of("b", 200)]
    queue.verbs.submit(1, 1, items)
    session = queue.verbs.attach(info(), ())["session"]
    running = queue.verbs.reserve("w", session, 4, 0, (), 0.0).tasks
    assert {task.queue for task in running} == {"a"}
    queue.verbs.submit(1, 2, of("a", 5, delay=60.0))
    done = queue.verbs.purge_queue("a", 1001)
    assert (done.cancelled, done.below, done.more) == (796, 1001, False)
    check(queue.verbs._state)
    seen = queue.seen("a")
    assert (seen["pending"], seen["scheduled"], seen["running"]) == (0, 5, 4)
    assert queue.seen("b")["pending"] == 200
    assert queue.verbs.purge_queue("a", 0).cancelled == 5
    queue.restart()
    assert queue.verbs.snapshot()["kept"]["cancelled"] == 801


def test_a_purge_takes_what_came_back_out_of_order() -> None:
    queue = Queue()
    queue.verbs.submit(1, 1, [*of("a", 300, delay=1.0), *of("a", 300)])
    queue.clock.advance(2.0)
    queue.verbs.tick()
    assert queue.seen("a")["pending"] == 600
    assert queue.verbs.purge_queue("a", 0) == (600, 601, False)
    check(queue.verbs._state)
