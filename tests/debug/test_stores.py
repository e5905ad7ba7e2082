"""What every store promises: one suite over the memory store and the SQLite store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskq.errors import StoreFailed, StoreLocked
from taskq.queue.task import FINAL, State
from taskq.queue.task_row import TaskChange, TaskRow
from taskq.stores.base import (
    KEEP_ATTEMPTS,
    KEEP_CALLS,
    AttemptRow,
    Batch,
    CallRow,
    KeyRow,
    QueueRow,
    ResultEnd,
    Store,
    TypeRow,
    UniqueRow,
    WorkerRow,
)
from taskq.stores.memory import MemoryStore
from taskq.stores.sqlite import SqliteStore
from taskq.turns import Turns

NOW = 1_700_000_000.0
ERROR = ("error", "ValueError", 'no "such" thing: ü\n', "Traceback …")


def row(id: int, state: State = State.PENDING, **others: Any) -> TaskRow:
    """A record, as young and plain as can be where nothing else is said."""
    fields: dict[str, Any] = {
        "type": "compute",
        "queue": "default",
        "payload": b"payload %d" % id,
        "priority": 0,
        "max_retries": 3,
        "backoff": 1.0,
        "timeout": None,
        "key": None,
        "correlation_id": f"c{id}",
        "client": 7,
        "submitted_at": NOW,
        "due_at": NOW,
        "run": 0,
        "failures": 0,
        "deaths": 0,
        "cancel_requested": False,
        "worker": None,
        "worker_name": None,
        "started_at": None,
        "finished_at": None,
        "result": None,
        "error": None,
        "terms_more": None,
    }
    return TaskRow(id=id, state=int(state), **{**fields, **others})


def finished(id: int, state: State = State.COMPLETED, at: float = NOW, **others: Any) -> TaskRow:
    """A final record."""
    return row(id, state, run=(1 << 40) + id, worker="w1", worker_name="host/1", finished_at=at, **others)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A new store, opened."""
    made: Store = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "store.sqlite")
    made.open()
    yield made
    made.close()


def put(store: Store, *rows: TaskRow, **others: Any) -> None:
    """Write new records."""
    store.write(Batch(new=list(rows), **others))


def change(store: Store, *rows: TaskRow) -> None:
    """Write changed records, as the queue does: without payload."""
    store.write(Batch(changed=[changed.change() for changed in rows]))


def reopened(store: Store) -> Store:
    """The store after a restart."""
    store.close()
    store.open()
    return store


def live(store: Store) -> list[TaskRow]:
    """What a start loads; the store is open after it."""
    found: list[TaskRow] = []
    store.close()
    store.open(lambda opened, rows: found.extend(rows))
    return found


# -- opening ----------------------------------------------------------------------------------------------------------


def test_a_new_store_is_empty(store: Store) -> None:
    store.close()
    opened = store.open()
    assert (opened.next_id, opened.totals, opened.live, opened.final, opened.types, opened.workers) == (
        1,
        {},
        0,
        {},
        [],
        [],
    )
    assert live(store) == []
    assert 0 < opened.store_id < 2**63


def test_each_opening_is_a_new_epoch_of_the_same_store(store: Store) -> None:
    store.close()
    second = store.open()
    store.close()
    third = store.open()
    assert (second.epoch, third.epoch) == (2, 3)
    assert second.store_id == third.store_id


def test_two_stores_have_different_ids(store: Store, tmp_path: Path) -> None:
    other = MemoryStore() if store.kind == "memory" else SqliteStore(tmp_path / "other.sqlite")
    store.close()
    assert store.open().store_id != other.open().store_id
    other.close()


def test_an_open_store_cannot_be_opened_again(store: Store) -> None:
    with pytest.raises(StoreLocked):
        store.open()
    put(store, row(1))
    assert store.get([1])


def test_opening_tells_what_is_there(store: Store) -> None:
    put(
        store,
        row(1),
        row(2, State.SCHEDULED),
        row(3, State.RUNNING, run=5),
        finished(4),
        finished(5),
        finished(6, State.FAILED)._replace(submitted_at=NOW + 7),
        calls=[CallRow(1, 1, 1, 1, b"", NOW + 5), CallRow(2, 1, 2, 5, b"", NOW + 6), CallRow(1, 2, 7, 0, b"", NOW)],
        next_id=7,
        totals={"submitted": 6, "completed": 2},
    )
    store.close()
    opened = store.open()
    assert (opened.live, opened.final) == (3, {State.COMPLETED: 2, State.FAILED: 1})
    assert (opened.next_id, opened.totals) == (7, {"submitted": 6, "completed": 2})
    assert (opened.last_record_at, opened.last_call_at) == (NOW + 7, NOW + 6)


def test_types_and_workers_are_kept_until_they_leave(store: Store) -> None:
    types = [TypeRow("b", '{"v": 1}'), TypeRow("a", "{}")]
    workers = [WorkerRow("i1", "pool", "host/1", "host", 41), WorkerRow("i2", "pool", "host/2", "host", 42)]
    store.write(Batch(types=types, joined=workers))
    store.write(Batch(types=[TypeRow("b", '{"v": 2}'), TypeRow("b", '{"v": 1}')], left=["i1", "unknown"]))
    store.close()
    opened = store.open()
    assert opened.types == [TypeRow("a", "{}"), TypeRow("b", '{"v": 2}'), TypeRow("b", '{"v": 1}')], "last told, last"
    assert opened.workers == [workers[1]]


def test_rules_of_queues_are_kept(store: Store) -> None:
    store.write(Batch(queues=[QueueRow("a", "ann@host", 5.5, None), QueueRow("b", None, None, 3)]))
    store.write(Batch(queues=[QueueRow("a", "bob@host", 7.5, 2), QueueRow("c", "bob@host", 8.0), QueueRow("c")]))
    store.close()
    assert sorted(store.open().queues) == [
        QueueRow("a", "bob@host", 7.5, 2),
        QueueRow("b", None, None, 3),
        QueueRow("c", None, None, None),
    ]


def test_a_worker_that_leaves_in_the_batch_it_joined_in_is_gone(store: Store) -> None:
    store.write(Batch(joined=[WorkerRow("i1", "pool", "host/1", "host", 41)], left=["i1"]))
    store.close()
    assert store.open().workers == []


def test_a_closed_store_takes_no_writes_and_closes_twice(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreFailed):
        put(store, row(1))


# -- records ----------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
times = st.none() | st.floats(allow_nan=False, allow_infinity=False)
blobs = st.binary(max_size=40) | st.integers(60, 70).map(bytes) | st.integers(1020, 1030).map(bytes)
counts = st.integers(0, 2**63 - 1)


def as_it_can_be(row: TaskRow) -> TaskRow:
    """A pending task that was never handed out has no outcome of any kind: a store need not look for one."""
    if row.run != 0 or row.state != State.PENDING:
        return row
    ended = {"worker": None, "worker_name": None, "started_at": None, "finished_at": None, "result": None}
    return row._replace(failures=0, deaths=0, cancel_requested=False, error=None, **ended)


rows = st.builds(
    TaskRow,
    id=st.integers(1, 60),
    type=texts,
    queue=texts,
    payload=blobs,
    priority=st.integers(-(2**31), 2**31),
    max_retries=counts,
    backoff=st.floats(0, 1e9),
    timeout=times,
    key=st.none() | texts,
    correlation_id=texts,
    client=counts,
    submitted_at=st.floats(0, 1e12),
    due_at=st.floats(0, 1e12),
    state=st.sampled_from([int(state) for state in State]),
    run=st.just(0) | counts,
    failures=st.just(0) | counts,
    deaths=st.just(0) | counts,
    cancel_requested=st.booleans(),
    worker=st.none() | texts,
    worker_name=st.none() | texts,
    started_at=times,
    finished_at=times,
    result=st.none() | blobs,
    error=st.none() | st.tuples(texts, texts, texts, texts),
    terms_more=st.sampled_from([None, '{"factor":3.0}', '{"result_ttl":60.0}']),
).map(as_it_can_be)


KEPT = {*TaskRow._fields} - {*TaskChange._fields} | {"id"}


@given(new=st.lists(rows, max_size=30, unique_by=lambda row: row.id), later=st.lists(rows, max_size=10))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_records_come_back_as_they_were(store: Store, new: list[TaskRow], later: list[TaskRow]) -> None:
    base = max((row.id for row in store.select(limit=1)), default=0)
    expected = {base + row.id: row._replace(id=base + row.id) for row in new}
    put(store, *expected.values())
    for number, changed in enumerate(later):
        if expected:
            # Where it came from never changes: the store need not write it again.
            stored = list(expected.values())[number % len(expected)]
            expected[stored.id] = changed._replace(**{name: getattr(stored, name) for name in KEPT})
            change(store, expected[stored.id])
    assert store.get(list(expected)) == expected
    assert {id: expected[id].payload for id in expected} == store.payloads(list(expected))


def test_unknown_ids_are_left_out(store: Store) -> None:
    put(store, row(1))
    assert list(store.get([3, 1, 2**63 - 1, 2**70, -1])) == [1]
    assert store.payloads([3, 1, 2**70]) == {1: b"payload 1"}
    assert store.get([]) == store.payloads([]) == {}


def test_a_change_keeps_the_payload(store: Store) -> None:
    large = b"\x00\xff" * 5000
    put(store, row(1), row(2, payload=large), row(3, payload=b""))
    store.write(Batch(changed=[finished(number).change() for number in (1, 2, 3)]))
    assert store.payloads([1, 2, 3]) == {1: b"payload 1", 2: large, 3: b""}
    assert store.get([2])[2] == finished(2, payload=large)


def test_a_result_can_change_its_size_and_go(store: Store) -> None:
    put(store, row(1))
    for result in (b"r" * 5000, b"s" * 6000, b"small", b"t" * 5000, None, b""):
        change(store, finished(1, result=result))
        assert store.get([1])[1].result == result


def test_many_sizes_of_batches(store: Store) -> None:
    """Batches are cut into statements of some sizes; none of the rows may fall between them."""
    next_id = 1
    for size in (1, 2, 3, 16, 17, 41, 255, 256, 257, 511, 700):
        ids = range(next_id, next_id + size)
        put(store, *(row(id, run=id % 2) for id in ids))
        change(store, *(finished(id) for id in ids))
        assert store.get(list(ids)) == {id: finished(id) for id in ids}
        next_id += size


@pytest.mark.parametrize("count", [100, 101, 1_001])
def test_of_many_that_are_alike_each_is_kept_as_it_is(store: Store, count: int) -> None:
    """What many tasks share is written once; 1 and 1.0 are equal, and still two values."""
    new = [row(id, backoff=1 if id % 2 else 1.0, timeout=id % 3 or None) for id in range(1, count + 1)]
    new += [row(count + 1, payload=b"p" * 5_000), row(count + 2, key="own"), row(count + 3, due_at=NOW + 60)]
    put(store, *new, next_id=count + 4)
    ids = [made.id for made in new]
    assert repr(sorted(reopened(store).get(ids).items())) == repr([(made.id, made) for made in new])
    later = [made._replace(state=4, run=made.id, finished_at=NOW, result=b"r%d" % made.id) for made in new]
    later[1] = later[1]._replace(result=b"r" * 5_000)
    later[2] = later[2]._replace(state=5, result=None, error=ERROR)
    change(store, *later)
    assert reopened(store).get(ids) == {made.id: made for made in later}


def test_an_empty_batch_writes_its_numbers(store: Store) -> None:
    store.write(Batch(next_id=12, totals={"failed": 3}))
    store.close()
    opened = store.open()
    assert (opened.next_id, opened.totals) == (12, {"failed": 3})


# -- loading ----------------------------------------------------------------------------------------------------------


def test_live_gives_what_is_not_final_by_rising_id(store: Store) -> None:
    put(store, *(row(id, State.RUNNING, run=id) if id % 3 else row(id) for id in range(2500, 0, -1)))
    change(store, *(finished(id) for id in range(5, 2500, 5)))
    expected = [row(id, State.RUNNING, run=id) if id % 3 else row(id) for id in range(1, 2501) if id % 5 or id == 2500]
    assert live(store) == expected


def test_live_leaves_larger_payloads_where_they_are(store: Store) -> None:
    sizes = {1: 0, 2: 64, 3: 65, 4: 1024, 5: 1025, 6: 100_000}
    put(store, *(row(id, payload=bytes(size)) for id, size in sizes.items()))
    payloads = {found.id: found.payload for found in live(store)}
    assert payloads == {1: b"", 2: bytes(64), 3: None, 4: None, 5: None, 6: None}
    assert {id: len(payload) for id, payload in store.payloads(list(sizes)).items()} == sizes


def test_live_gives_requeued_and_retried_records_whole(store: Store) -> None:
    again = row(1, State.SCHEDULED, run=9, failures=1, worker="w", started_at=NOW, error=ERROR)
    expired = row(2, State.PENDING, error=("expired", "", "", ""), finished_at=None)
    put(store, row(1), row(2, State.FAILED, finished_at=NOW))
    change(store, again, expired)
    assert live(store) == [again, expired]


# -- searching --------------------------------------------------------------------------------------------------------


def test_select_newest_first_by_state_type_and_queue(store: Store) -> None:
    put(
        store,
        row(1),
        row(2, type="sleep", queue="night"),
        finished(3, State.FAILED, error=ERROR, result=None),
        finished(4, type="sleep", result=bytes(5000), payload=bytes(5000)),
        row(200_000, type="sleep"),
    )

    def ids(**what: Any) -> list[int]:
        return [found.id for found in store.select(**what)]

    assert ids() == [200_000, 4, 3, 2, 1]
    assert ids(limit=2) == [200_000, 4]
    assert ids(limit=0) == []
    assert ids(states=[State.PENDING]) == [200_000, 2, 1]
    assert ids(states=iter([State.FAILED, State.COMPLETED])) == [4, 3]
    assert ids(type="sleep") == [200_000, 4, 2]
    assert ids(type="sleep", queue="night") == [2]
    assert ids(type="sleep", states=FINAL, queue="default") == [4]
    assert ids(queue="'; DROP TABLE task") == []
    assert store.select(states=FINAL) == [store.get([4])[4], store.get([3])[3]]
    assert store.select(states=[State.FAILED]) == [finished(3, State.FAILED, error=ERROR)]


# -- what makes a repetition harmless ---------------------------------------------------------------------------------


def test_calls_are_found_again(store: Store) -> None:
    calls = [CallRow(7, seq, 10 * seq, 2, b"digest%d" % seq, NOW) for seq in (1, 2, 5)]
    store.write(Batch(calls=[*calls, CallRow(2**63 - 1, 9, 90, 1, b"", NOW)]))
    reopened(store)
    assert store.find_call(7, 2) == calls[1]
    assert store.find_call(7, 3) is None
    assert [store.last_seq(client) for client in (7, 2**63 - 1, 8)] == [5, 9, 0]


def test_calls_are_forgotten_after_their_time(store: Store) -> None:
    store.write(
        Batch(calls=[CallRow(1, 1, 1, 1, b"", NOW - KEEP_CALLS - 1), CallRow(1, 2, 2, 1, b"", NOW - KEEP_CALLS + 1)])
    )
    store.write(Batch(calls=[CallRow(2, 1, 3, 1, b"", NOW - KEEP_CALLS - 1)]))
    store.prune(NOW, NOW)
    assert store.find_call(1, 1) is None
    assert store.find_call(1, 2) is not None
    assert [store.last_seq(1), store.last_seq(2)] == [2, 0]


def test_keys_are_found_again(store: Store) -> None:
    keys = [KeyRow("a", 1, b"1"), KeyRow("ü\n'", 2, b"2"), KeyRow("", 3, b"3")]
    store.write(Batch(keys=keys))
    assert reopened(store).find_keys(["ü\n'", "b", "", "A"]) == {"ü\n'": keys[1], "": keys[2]}
    assert store.find_keys([]) == {}


def test_a_key_outlives_its_purged_task_by_a_day(store: Store) -> None:
    put(store, finished(1, key="gone"), row(2, key="here"), keys=[KeyRow("gone", 1, b"1"), KeyRow("here", 2, b"2")])
    assert store.purge(FINAL, NOW + 1, 10, NOW + 5) == {State.COMPLETED: 1}
    store.prune(NOW + 5 + KEEP_CALLS - 1, NOW + 5 + KEEP_CALLS - 1)
    assert set(store.find_keys(["gone", "here"])) == {"gone", "here"}
    store.prune(NOW + 5 + KEEP_CALLS, NOW + 5 + KEEP_CALLS)
    assert set(store.find_keys(["gone", "here"])) == {"here"}


def test_the_time_of_calls_goes_on_where_a_purge_was(store: Store) -> None:
    """Else it would begin anew once no call is known any more, and keys would be forgotten too early."""
    put(store, finished(1, key="k"), keys=[KeyRow("k", 1, b"1")], calls=[CallRow(1, 1, 1, 1, b"", NOW)])
    later = NOW + KEEP_CALLS + 1
    store.prune(later, later)
    store.purge(FINAL, NOW + 1, 10, later)
    store.close()
    assert store.open().last_call_at == later


def test_repetitions_go_by_the_time_of_calls_and_not_by_the_wall_clock(store: Store) -> None:
    put(store, row(1), uniques=[UniqueRow(3, b"a", NOW, NOW + KEEP_CALLS, 1)])
    store.prune(NOW + 10 * KEEP_CALLS, NOW + KEEP_CALLS - 1)
    assert store.twins([3]) == {3: 1}
    store.prune(NOW + 10 * KEEP_CALLS, NOW + KEEP_CALLS)
    assert store.twins([3]) == {}


def test_a_key_that_is_used_again_belongs_to_the_new_task(store: Store) -> None:
    put(store, finished(1, key="k"), keys=[KeyRow("k", 1, b"1")])
    store.purge(FINAL, NOW + 1, 10, NOW)
    put(store, finished(2, key="k", at=NOW + 9), keys=[KeyRow("k", 2, b"2")])
    store.prune(NOW + 2 * KEEP_CALLS, NOW + 2 * KEEP_CALLS)
    assert store.find_keys(["k"]) == {"k": KeyRow("k", 2, b"2")}


# -- purging ----------------------------------------------------------------------------------------------------------


UNIQUES = [
    UniqueRow(1, b"a", NOW, None, None),
    UniqueRow(2, b"b", NOW, NOW + 60, None),
    UniqueRow(3, b"a", NOW, NOW + KEEP_CALLS, 1),
    UniqueRow(4, b"c", NOW, None, None),
]


def test_unique_values_are_found_as_long_as_they_count(store: Store) -> None:
    assert store.uniques(NOW) == []
    put(store, row(1), row(2), row(4), row(5), uniques=UNIQUES)
    store = reopened(store)
    assert store.uniques(NOW) == [UNIQUES[0], UNIQUES[1], UNIQUES[3]]
    assert store.twins([1, 2, 3, 9]) == {3: 1}
    change(store, finished(1, State.CANCELLED), finished(2))
    assert store.uniques(NOW + 59) == [UNIQUES[1], UNIQUES[3]]
    assert store.uniques(NOW + 60) == [UNIQUES[3]]


def test_unique_values_go_with_their_records_or_windows(store: Store) -> None:
    put(store, finished(1), finished(2), row(4), uniques=UNIQUES)
    assert store.purge(FINAL, NOW + 1, 9, NOW + 5) == {State.COMPLETED: 2}
    store.prune(NOW + 10, NOW + 10)
    assert store.uniques(NOW + 10) == [UNIQUES[1], UNIQUES[3]], "a window goes on without its record"
    assert store.twins([3]) == {3: 1}
    store.prune(NOW + 60, NOW + 60)
    change(store, finished(4))
    assert store.uniques(0.0) == []
    assert store.twins([3]) == {3: 1}
    store.prune(NOW + KEEP_CALLS, NOW + KEEP_CALLS)
    assert store.twins([3]) == {}


def test_purge_takes_the_oldest_of_the_states_asked_for(store: Store) -> None:
    put(
        store,
        finished(1, at=NOW + 3),
        finished(2, at=NOW + 1),
        finished(3, at=NOW + 2, payload=bytes(5000), result=bytes(5000)),
        finished(4, State.FAILED, at=NOW + 1),
        finished(5, State.CANCELLED, at=NOW + 1),
        row(6),
    )
    assert store.purge([State.COMPLETED], NOW + 1, 10, NOW) == {}, "finished before, not at"
    assert store.purge([State.COMPLETED], NOW + 9, 1, NOW) == {State.COMPLETED: 1}
    assert set(store.get(range(1, 7))) == {1, 3, 4, 5, 6}
    assert store.purge([State.COMPLETED, State.FAILED], NOW + 3, 10, NOW) == {State.COMPLETED: 1, State.FAILED: 1}
    assert set(store.get(range(1, 7))) == {1, 5, 6}
    assert store.payloads([3]) == {}
    assert store.purge(list(State), NOW + 9, 10, NOW) == {State.COMPLETED: 1, State.CANCELLED: 1}
    assert store.purge(list(State), NOW + 9, 10, NOW) == {}
    assert list(store.get(range(1, 7))) == [6]


def test_purge_never_takes_more_than_the_limit(store: Store) -> None:
    put(store, *(finished(id, list(FINAL)[id % 3]) for id in range(1, 31)))
    steps = []
    while gone := store.purge(FINAL, NOW + 1, 7, NOW):
        steps.append(sum(gone.values()))
    assert steps == [7, 7, 7, 7, 2]


def test_purge_leaves_what_lives_again(store: Store) -> None:
    put(store, finished(1, State.FAILED))
    change(store, row(1, run=3))
    assert store.purge(FINAL, NOW + 1, 10, NOW) == {}
    change(store, finished(1, at=NOW + 5))
    assert store.purge(FINAL, NOW + 1, 10, NOW) == {}
    assert store.purge(FINAL, NOW + 6, 10, NOW) == {State.COMPLETED: 1}


def test_purge_takes_large_records_a_few_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq.stores.cleaning.PIECE", 10_000)
    small = [finished(id, at=NOW + id) for id in range(1, 11)]
    large = [finished(id, at=NOW + id, payload=bytes(2_000), result=bytes(2_000)) for id in range(11, 16)]
    put(store, *small, *large, finished(16, State.FAILED, payload=bytes(20_000)), finished(17, State.FAILED))
    steps = []
    while gone := store.purge(FINAL, NOW + 99, 100, NOW):
        steps.append(sum(gone.values()))
    assert steps == ([12, 2, 2, 1] if store.durable else [17])
    assert store.payloads(range(1, 18)) == {} and store.get(range(1, 18)) == {}


def test_prune_forgets_a_piece_at_a_time(store: Store) -> None:
    calls = [CallRow(1, seq, seq, 1, b"", NOW - seq) for seq in range(1, 1_501)]
    keys = [KeyRow(f"k{id}", id, b"") for id in range(1, 1_501)]
    put(store, *(finished(id, key=f"k{id}") for id in range(1, 1_501)), calls=calls, keys=keys)
    assert store.purge(FINAL, NOW + 1, 1_500, NOW) == {State.COMPLETED: 1_500}
    later = NOW + KEEP_CALLS
    assert store.prune(later, later)
    assert len(store.find_keys([key.key for key in keys])) == 500
    assert [seq for seq in (1, 500, 501, 1_500) if store.find_call(1, seq)] == [1, 500]
    assert not store.prune(later, later) and not store.prune(later, later)
    assert store.find_keys([key.key for key in keys]) == {} and store.find_call(1, 1) is None


def test_prune_leaves_records_alone(store: Store) -> None:
    put(store, row(1), finished(2))
    store.prune(NOW + 10 * KEEP_CALLS, NOW + 10 * KEEP_CALLS)
    assert set(store.get([1, 2])) == {1, 2}


# -- threads ----------------------------------------------------------------------------------------------------------


def in_thread(target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target)
    thread.start()
    return thread


def test_a_read_never_sees_half_a_batch(store: Store) -> None:
    ids = list(range(1, 41))
    put(store, *(row(id) for id in ids))
    done = threading.Event()
    failures: list[str] = []

    def write() -> None:
        for run in range(1, 60):
            change(store, *(row(id, State.RUNNING, run=run) for id in ids))
        done.set()

    def read() -> None:
        while not done.is_set():
            runs = {found.run for found in store.get(ids).values()}
            if len(runs) != 1:
                failures.append(f"runs {runs} in one read")

    threads = [in_thread(read), in_thread(read), in_thread(write)]
    for thread in threads:
        thread.join(30)
    assert done.is_set()
    assert not failures


def test_a_write_that_waits_comes_before_the_next_piece_of_a_purge(store: MemoryStore | SqliteStore) -> None:
    put(store, *(finished(id) for id in range(1, 41)))
    with store._mutex:  # as a first piece has it
        thread = in_thread(lambda: put(store, row(99)))
        wait_until(store._mutex._next.locked)
    assert store.purge(FINAL, NOW + 1, 10, NOW) == {State.COMPLETED: 10}
    assert 99 in store.get([99])
    thread.join()


def test_who_waits_for_its_turn_has_the_next_one() -> None:
    turns = Turns()
    order = []

    def other() -> None:
        with turns:
            order.append("other")

    with turns:
        thread = in_thread(other)
        wait_until(turns._next.locked)
        order.append("first")
    with turns:
        order.append("first again")
    thread.join()
    assert order == ["first", "other", "first again"]


def test_every_kind_says_what_it_is(store: Store) -> None:
    assert (store.kind, store.durable) in {("memory", False), ("sqlite", True)}


def test_results_are_forgotten_when_their_own_time_is_over(store: Store) -> None:
    put(store, *map(row, range(1, 6)))
    done = [finished(id, result=b"r" * size) for id, size in enumerate((9, 3000, 9, 9, 3000), 1)]
    ends = [ResultEnd(1, NOW + 60), ResultEnd(2, NOW + 60), ResultEnd(3, NOW + 120), ResultEnd(99, NOW + 130)]
    store.write(Batch(changed=[one.change() for one in done], result_ends=ends, next_id=6))
    assert store.forget_results(NOW + 59.9, 10) == 0
    assert store.forget_results(NOW + 60, 1) == 1 == store.forget_results(NOW + 60, 1)
    assert store.forget_results(NOW + 61, 10) == 0
    kept = {3: b"r" * 9, 4: b"r" * 9, 5: b"r" * 3000}
    assert {id: found.result for id, found in store.get([1, 2, 3, 4, 5]).items()} == {1: None, 2: None, **kept}
    assert store.forget_results(NOW + 1e9, 10) == 2, "one is of a task that is no longer there"
    assert store.get([3])[3].result is None and store.get([5])[5].result == kept[5]
    assert store.purge([State.COMPLETED], NOW + 1, 10, NOW) == {State.COMPLETED: 5}


# -- attempts and single records --------------------------------------------------------------------------------------


def attempt(id: int, run: int, **others: Any) -> AttemptRow:
    """An attempt that failed."""
    made = AttemptRow(id, run, "host/1", NOW, NOW + 1, "failed", "ValueError", "no ü", "T\n", None)
    return made._replace(**others)


def test_the_newest_attempts_are_kept_and_survive(store: Store) -> None:
    put(store, row(1), row(2), attempts=[attempt(1, run) for run in range(1, KEEP_ATTEMPTS)])
    late = [attempt(1, run, death='{"how":"signal 9"}') for run in (50, 51, 52)]
    store.write(Batch(attempts=[attempt(2, 7), *late]))
    kept = reopened(store).attempts(1)
    assert [one.run for one in kept] == [*range(3, KEEP_ATTEMPTS), 50, 51, 52] and kept[-3:] == late
    assert store.attempts(2) == [attempt(2, 7)] and store.attempts(3) == []


def test_single_final_records_are_deleted_with_all_that_is_theirs(store: Store) -> None:
    put(
        store,
        finished(1, State.FAILED, error=ERROR),
        finished(2, State.FAILED),
        finished(3),
        row(4),
        attempts=[attempt(1, 9)],
    )
    assert store.delete([1, 3, 4, 99, 1], [State.FAILED], NOW) == [1]
    assert store.delete([3, 4], FINAL, NOW) == [3]
    assert sorted(store.get([1, 2, 3, 4])) == [2, 4] and store.attempts(1) == []


def test_slim_records_have_neither_payload_nor_result(store: Store) -> None:
    put(store, finished(1, result=b"r" * 5_000, payload=b"p" * 5_000), finished(2, State.FAILED, error=ERROR))
    for found in (store.slim([1, 2, 3]), {one.id: one for one in store.scan((), 0, 10)[0]}):
        assert sorted(found) == [1, 2]
        assert (found[1].payload, found[1].result, found[2].error) == (None, None, ERROR)


def test_a_scan_goes_on_where_it_ended(store: Store) -> None:
    put(store, *[finished(id, State.FAILED if id % 2 else State.COMPLETED) for id in range(1, 10)])
    rows, below = store.scan([State.FAILED], 0, 2)
    assert ([one.id for one in rows], below) == ([9, 7], 7)
    rows, below = store.scan([State.FAILED], below, 5)
    assert ([one.id for one in rows], below) == ([5, 3, 1], 0)
