"""Submits that are unique: the rules of the pure queue, and what is compared."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.config import QueueSettings
from taskq.errors import BadArguments, NotUnique
from taskq.queue.check import check
from taskq.queue.leases import Moment, Worker
from taskq.queue.limits import MAX_WITHIN, checked
from taskq.queue.state import QueueState
from taskq.queue.task_row import to_row
from taskq.queue.terms import NewTask, new_task
from taskq.shapes import ACK
from taskq.stores.base import UniqueRow
from taskq.unique import Unique
from taskq.wire.codec import encode

POOL = {"id": "pool", "name": "pool", "host": "h", "pid": 1, "local": None}
START = Moment(100.0, 5_000.0)
LIVE = ("pending", "scheduled", "running")


def after(seconds: float) -> Moment:
    return Moment(START.mono + seconds, START.wall + seconds)


def new_state() -> QueueState:
    return QueueState(QueueSettings())


def one(
    value: bytes = b"v", *, states: tuple[str, ...] = LIVE, within: float = 0.0, raises: bool = False, **others: Any
) -> NewTask:
    terms = {"unique_in": states, "unique_within": within, "unique_raises": raises}
    return new_task("x", b"", unique=value, **terms, **others)


def put(state: QueueState, *items: NewTask, now: Moment = START) -> tuple[list[int], list[int]]:
    accepted = state.submit(1, items, {}, now)
    check(state)
    return accepted.ids, accepted.existing


def join(state: QueueState, now: Moment = START) -> Worker:
    info: Any = {
        **{"incarnation": "w", "pool": POOL, "name": "w", "host": "h", "pid": 2, "threads": 4},
        **{"queues": (), "types": [{"name": "x"}]},
    }
    return state.attach(info, [], now)[0]


def finish(state: QueueState, now: Moment = START) -> None:
    """Run everything that is pending to its end; the records leave memory, as they do once they are stored."""
    worker = join(state, now)
    tasks, _ = state.reserve(worker, 100, 0, (), 0, now)
    changes = state.report(worker, [(ACK, task.id, task.run, b"r", 0.0) for task in tasks], now)[1]
    state.forget(changes.final)
    check(state)


def test_a_twin_is_given_instead_as_long_as_there_is_one() -> None:
    state = new_state()
    assert put(state, one()) == ([1], [])
    assert put(state, one()) == ([1], [0])
    assert put(state, one(b"other"), one(), new_task("x", b"")) == ([3, 1, 5], [1])
    (task, *_), _ = state.reserve(join(state), 1, 0, (), 0, START)
    assert put(state, one()) == ([1], [0]), "running"
    state.forget(state.report(state.leases.workers["w"], [(ACK, 1, task.run, b"", 0.0)], START)[1].final)
    assert put(state, one()) == ([7], [])
    state.forget(state.cancel(7, START)[1].final)
    assert put(state, one()) == ([8], [])


def test_also_against_what_the_same_call_brings() -> None:
    state = new_state()
    assert put(state, one(), one(), one(b"other"), one()) == ([1, 1, 3, 1], [1, 3])
    assert sorted(state.tasks) == [1, 3]


def test_only_the_states_that_were_asked_for_count() -> None:
    state = new_state()
    put(state, one(delay=10.0))
    assert put(state, one(states=("pending",))) == ([2], [])
    assert put(state, one(states=("scheduled",))) == ([1], [0])
    assert put(state, one(states=("running",))) == ([4], [])
    state.reserve(join(state), 1, 0, (), 0, START)
    assert put(state, one(states=("running",))) == ([2], [0])
    assert put(state, one(states=("pending",))) == ([4], [0])
    assert put(state, one(b"w", states=("running",)), one(b"w", states=("running",))) == ([7, 8], [])
    assert put(state, one(b"z", states=("pending",), delay=1.0), one(b"z", states=("pending",))) == ([9, 10], [])


def test_the_newest_of_several_is_given() -> None:
    state = new_state()
    put(state, one(states=("running",)), one(states=("running",)))
    assert put(state, one()) == ([2], [0])


def test_a_window_goes_on_after_the_end_and_after_a_purge() -> None:
    state = new_state()
    put(state, one(within=60.0))
    finish(state)
    assert put(state, one(within=60.0), now=after(59.9)) == ([1], [0])
    assert put(state, one(within=60.0), now=after(60)) == ([3], []), "it counts from the first submit"


def test_a_window_that_is_over_leaves_nothing_behind() -> None:
    state = new_state()
    put(state, one(within=60.0), one(b"w", within=60.0), one(b"z"))
    finish(state)
    assert state.uniqueness.ids() == {1, 2}
    put(state, one(b"late", within=30.0), now=after(40))
    state.tick(after(60))
    assert state.uniqueness.ids() == {4}
    state.tick(after(70))
    assert state.uniqueness.ids() == {4}, "it is pending"
    finish(state, after(70))
    assert not state.uniqueness._ids and not state.uniqueness._windows


def test_a_submit_that_wants_an_error_gets_one_and_nothing_is_accepted() -> None:
    state = new_state()
    put(state, one())
    with pytest.raises(NotUnique, match=r"entry 2: task 1 \(x\) is there") as caught:
        state.submit(1, [one(b"new"), one(raises=True)], {}, START)
    assert caught.value.details == {"id": 1, "position": 1}
    assert list(state.tasks) == [1] and state.next_id == 2
    check(state)
    assert put(state, one(b"new")) == ([2], []), "the refused call left no value behind"


def test_a_full_queue_refuses_without_a_trace() -> None:
    state = QueueState(QueueSettings(max_pending=1))
    put(state, one())
    with pytest.raises(Exception, match="is full"):
        state.submit(1, [one(b"new")], {}, START)
    assert put(state, one()) == ([1], [0]), "what is there needs no room"
    assert state.uniqueness.ids() == {1}


def test_after_a_restart_the_store_knows() -> None:
    before = new_state()
    rows = before.submit(1, [one(), one(), one(b"w", within=60.0), new_task("x", b"")], {}, START).uniques
    assert rows == [
        UniqueRow(1, b"v", START.wall, None, None),
        UniqueRow(2, b"v", START.wall, None, 1),
        UniqueRow(3, b"w", START.wall, START.wall + 60, None),
    ]
    live = [to_row(task) for task in before.tasks.values() if task.id != 3]
    state = QueueState(QueueSettings(), epoch=2, next_id=5)
    state.load(live, after(10))
    state.uniqueness.add(rows)
    check(state)
    assert put(state, one(), one(b"w", within=60.0), now=after(59)) == ([1, 3], [0, 1])
    assert put(state, one(b"w"), now=after(59)) == ([7], []), "it asks for no window"


@given(calls=st.lists(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), min_size=1, max_size=4), max_size=6))
def test_there_is_never_more_than_one(calls: list[list[tuple[str, bool]]]) -> None:
    """``True``: everything is done after that call."""
    state = new_state()
    alive: dict[str, int] = {}
    for call in calls:
        ids, existing = put(state, *[one(value.encode()) for value, _ in call])
        for position, (value, _) in enumerate(call):
            assert (position in existing) == (value in alive)
            assert ids[position] == alive.setdefault(value, ids[position])
        if call[0][1]:
            finish(state)
            alive.clear()


@pytest.mark.parametrize(
    "item",
    [
        new_task("x", b"", unique=b"v"),
        new_task("x", b"", unique_in=LIVE),
        new_task("x", b"", unique="v", unique_in=LIVE),  # type: ignore[arg-type]  # that is the point
        one(b""),
        one(b"v" * 65),
        one(key="k"),
        one(states=("pending", "completed")),
        one(within=-1.0),
        one(within=MAX_WITHIN + 1),
        one(raises=1),  # type: ignore[arg-type]  # that is the point
    ],
)
def test_what_makes_no_sense_is_refused_at_the_door(item: NewTask) -> None:
    with pytest.raises(BadArguments, match="entry 2"):
        checked([new_task("x", b""), item], 100)


# -- what is compared

PARAMETERS = [("user_id", 1, True), ("text", 1, False), ("extra", 4, False)]


def value(unique: Unique, *args: Any, **kwargs: Any) -> bytes:
    return encode(unique.compared("mail", "default", PARAMETERS, args, kwargs))


def test_arguments_are_compared_by_name_however_they_were_passed() -> None:
    whole, by_user = Unique(), Unique(by=("user_id",))
    assert value(whole, 1, "hi") == value(whole, text="hi", user_id=1) != value(whole, 1, "ho")
    assert value(by_user, 1, "hi") == value(by_user, user_id=1, text="ho") != value(by_user, 2, "hi")
    assert value(whole, 1) != value(whole, 1, ""), "a default that is left out is not known here"
    assert value(whole, user_id=1) != value(by_user, user_id=1), "only what was submitted with the same by"
    assert value(Unique(by=("other",)), 1, other=2) != value(Unique(by=("other",)), 1, other=3)


def test_type_and_queue_are_part_of_it() -> None:
    found = {encode(Unique().compared(*where, PARAMETERS, (1,), {})) for where in (("a", "q"), ("b", "q"), ("a", "r"))}
    assert len(found) == 3


def test_the_order_of_keys_is_not() -> None:
    time = datetime(2030, 1, 31, tzinfo=timezone.utc)
    one = {"b": [{"x": 1, "y": 2**70}], "a": time}
    other = {"a": time, "b": ({"y": 2**70, "x": 1},)}
    assert value(Unique(), one) == value(Unique(), other)


def test_an_argument_that_the_type_does_not_have_is_refused() -> None:
    with pytest.raises(BadArguments, match='mail has no argument "user"'):
        Unique(by=("user",)).compared("mail", "default", PARAMETERS[:2], (1,), {})
    with pytest.raises(BadArguments, match="no argument"):
        Unique(by=("user",)).compared("mail", "default", [], (1,), {})
    assert Unique(by=("user",)).compared("mail", "default", [], (), {"user": 1}) == [
        "mail",
        "default",
        ["user"],
        [["user", 1]],
    ]


@pytest.mark.parametrize(
    "given",
    [
        {"by": "user_id"},
        {"by": [1]},
        {"while_in": ["completed"]},
        {"while_in": []},
        {"within": -1},
        {"within": True},
        {"on_conflict": "replace"},
    ],
)
def test_options_that_make_no_sense_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(BadArguments, match="unique: "):
        Unique(**given)
