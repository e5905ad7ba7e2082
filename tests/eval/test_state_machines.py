"""Random walks over the whole queue with a store that outlives it, every store against one model.

The model knows of each task its state, which of `taskq.queue.lifecycle` it came to by which event, its counters, and
who holds it; of each call what it was told; of each key and each unique value the task that it stands for. After every
step the queue and its store are held against it. A crash loses what was not written: what was told to somebody must be
there, everything else may be as it was before.

``--order-seed N`` repeats the walks too.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from taskq.clock import FakeClock
from taskq.config import QueueSettings
from taskq.errors import KeyConflict
from taskq.queue.check import check
from taskq.queue.job_queue import JobQueue
from taskq.queue.lifecycle import TRANSITIONS, Event
from taskq.queue.ready import AGING
from taskq.queue.retry import MAX_DEATHS, death_delay
from taskq.queue.task import CANCELLED, FAILED, FINAL, PENDING, RUNNING, SCHEDULED, State
from taskq.queue.task_row import TaskRow
from taskq.queue.terms import NewTask, new_task
from taskq.shapes import ACK, GIVE_BACK, NACK, SNOOZE, Handout
from taskq.stores.base import KEEP_CALLS, Store
from taskq.stores.memory import MemoryStore
from taskq.stores.sqlite import SqliteStore

DAY = 86_400.0
LEASE = 30.0
THREADS = 2
WINDOW = 100.0
RETRIES = 1
SIZES = st.sampled_from([0, 64, 65, 2_000])
ERROR = ("error", "E", "m", "t")
STOPPED = ("cancelled", "", "it was asked to stop", "t")
LIVE = ("pending", "scheduled", "running")
EVERY = {(event, state) for event, moves in TRANSITIONS.items() for state in moves}


def worker(incarnation: str) -> Any:
    pool = {"id": "pool", "name": "pool", "host": "h", "pid": 1, "local": None}
    info = {
        "incarnation": incarnation,
        "pool": pool,
        "name": "w",
        "host": "h",
        "pid": 2,
        "threads": THREADS,
        "queues": (),
    }
    return {**info, "types": [{"name": "x", "parameters": ()}]}


@dataclass
class Known:
    """One task as it must be. ``on_disk``: states that a crash may leave it in."""

    item: NewTask
    submitted_at: float
    state: State | None = None
    failures: int = 0
    deaths: int = 0
    due_at: float = 0.0
    cancel: bool = False
    on_disk: set[State] = field(default_factory=set)

    @property
    def expires_at(self) -> float | None:
        terms = self.item.terms
        return None if terms.expires is None else self.submitted_at + terms.expires


class Walk(RuleBasedStateMachine):
    """The model beside a queue; a subclass says which store it has."""

    taken: ClassVar[Counter[tuple[Event, State | None]]] = Counter()
    """How often each transition of the table was taken, over all walks."""

    def new_store(self) -> Store:
        """The store as the next manager opens it."""
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        self.clock = FakeClock()
        self.tasks: dict[int, Known] = {}
        self.calls: dict[int, tuple[list[NewTask], list[int], float]] = {}
        self.keys: dict[str, int] = {}
        self.held: dict[int, Handout] = {}
        self.spent: list[Handout] = []
        self.joined = 0
        self.start()

    # -- the model

    @property
    def wall(self) -> float:
        return self.clock.wall()

    def go(self, id: int, event: Event, *, durable: bool = True) -> State:
        """This has happened to a task; ``durable``: and somebody was told of it."""
        known = self.tasks[id]
        self.taken[event, known.state] += 1
        known.state = TRANSITIONS[event][known.state]
        if durable:
            known.on_disk.clear()
        known.on_disk.add(known.state)
        if known.state is not RUNNING:
            known.cancel = False
            if (run := self.held.pop(id, None)) is not None:
                self.spent.append(run)
        if known.state is SCHEDULED:
            known.due_at = self.queue._state.tasks[id].due_at
        return known.state

    def attempt_over(self, id: int, event: Event, *, durable: bool = True) -> State:
        """As `go`; what would lead to another attempt ends a task that is to be cancelled."""
        again = TRANSITIONS[event][RUNNING] not in FINAL
        return self.go(id, Event.CANCELLED if again and self.tasks[id].cancel else event, durable=durable)

    def in_state(self, *states: State) -> list[int]:
        return sorted(id for id, known in self.tasks.items() if known.state in states)

    def is_final(self, id: int) -> bool:
        return self.tasks[id].state in FINAL

    def expire(self) -> None:
        """What should have begun by now and has not."""
        for id in self.in_state(PENDING, SCHEDULED):
            at = self.tasks[id].expires_at
            if at is not None and at <= self.wall:
                self.go(id, Event.EXPIRE, durable=False)

    def tick(self) -> None:
        """What the housekeeper does, and what becomes of the tasks by it."""
        self.queue.tick()
        self.expire()
        for id in self.in_state(SCHEDULED):
            if self.tasks[id].due_at <= self.wall:
                self.go(id, Event.DUE, durable=False)

    def die(self, ids: Iterable[int], *, durable: bool) -> None:
        """The worker process of these is dead, or silent."""
        for id in ids:
            known = self.tasks[id]
            known.deaths += 1
            self.attempt_over(id, Event.POISON if known.deaths == MAX_DEATHS else Event.DEATH, durable=durable)
            if known.state is SCHEDULED:
                assert known.due_at == self.wall + death_delay(known.deaths)

    def best_first(self, ids: list[int], limit: int) -> list[int]:
        """Heads of lanes by priority, one step higher for each `AGING` that they have waited, then by id."""
        lanes: dict[int, list[int]] = {}
        for id in ids:
            lanes.setdefault(self.tasks[id].item.terms.priority, []).append(id)
        found: list[int] = []
        while len(found) < limit and any(lanes.values()):
            _, _, lane = min(
                (-priority - max(0, int((self.wall - self.tasks[lane[0]].due_at) / AGING)), lane[0], lane)
                for priority, lane in lanes.items()
                if lane
            )
            found.append(lane.pop(0))
        return found

    # -- start, crash

    def start(self, *, after_a_crash: bool = False) -> None:
        self.store = self.new_store()
        keep = {"keep_completed": DAY, "keep_failed": 2 * DAY}
        self.queue = JobQueue(self.store, self.clock, QueueSettings(lease=LEASE, **keep))  # type: ignore[arg-type]
        self.queue.open()
        if after_a_crash:
            self.believe_the_disk()
        self.attach(self.joined or self.next_worker())
        self.tick()  # everybody is back: nothing is kept back any more
        self.tick()

    def next_worker(self) -> int:
        self.joined += 1
        return self.joined

    def attach(self, number: int) -> None:
        self.name = f"w{number}"
        held = {task.id: task.run for task in self.held.values()}
        stored = {id: self.queue._state.tasks[id].run for id in self.in_state(RUNNING)}
        reply = self.queue.attach(worker(self.name), list(held.items()))
        self.session = reply["session"]
        lost = []
        for id, run in stored.items():
            if held.get(id) != run:
                mine = self.held.pop(id, None)
                self.attempt_over(id, Event.GIVE_BACK)
                if mine is not None:
                    self.held[id] = mine
        for id in held:
            if self.tasks[id].state in (PENDING, SCHEDULED):
                self.go(id, Event.READOPT)  # a hand-out that the crash kept from the disk
            elif self.tasks[id].state in FINAL:
                lost.append((id, held[id]))
                self.spent.append(self.held.pop(id))
        assert sorted(reply["lost"]) == sorted(lost)

    @rule(orderly=st.booleans())
    def restart(self, orderly: bool) -> None:
        if orderly:
            self.queue.close()
            self.start()
        else:
            self.start_again()

    @rule(slots=st.integers(1, 4))
    def crash_after_a_hand_out(self, slots: int) -> None:
        """Of tasks that became due and were handed out in the same moment, neither is on disk."""
        self.pass_time(6.0)
        self.hand_out(slots)
        self.start_again()

    def start_again(self) -> None:
        self.store.close()
        self.start(after_a_crash=True)

    def believe_the_disk(self) -> None:
        """The manager was killed: the next one knows what is in the store, and no more."""
        rows = self.store.slim(list(self.tasks))
        for id, known in self.tasks.items():
            row = rows.get(id)
            if row is None:
                assert known.state in FINAL, f"task {id} is lost"
                continue
            assert row.state in known.on_disk, f"task {id} is {State(row.state).label}, though {known} was told"
            known.state, known.failures, known.deaths = State(row.state), row.failures, row.deaths
            known.cancel, known.due_at, known.on_disk = bool(row.cancel_requested), row.due_at, {known.state}

    # -- clients

    @rule(
        sizes=st.lists(SIZES, min_size=1, max_size=3),
        priority=st.integers(0, 1),
        key=st.sampled_from([None, None, "k", "l"]),
        delay=st.sampled_from([0.0, 0.0, 5.0]),
        expires=st.sampled_from([None, None, 6.0]),
        unique=st.booleans(),
    )
    def submit(
        self, sizes: list[int], priority: int, key: str | None, delay: float, expires: float | None, unique: bool
    ) -> None:
        seq = len(self.calls) + 1
        terms: Any = {"max_retries": RETRIES, "priority": priority, "expires": expires}
        items = [new_task("x", b"%d" % seq + bytes(size), delay=delay, **terms) for size in sizes]
        if key is not None:
            items.append(new_task("x", b"for " + key.encode() * 30, key=key))
        if unique:
            items += [new_task("x", b"u" * 90, unique=b"u", unique_in=LIVE, unique_within=WINDOW)] * 2
        told = self.queue.submit(1, seq, items)
        for position, (id, item) in enumerate(zip(told.ids, items, strict=True)):
            if item.key is not None and item.key in self.keys:
                assert id == self.keys[item.key] and position in told.existing
            elif item.unique is not None and (twin := self.newest_twin()) is not None:
                assert id == twin and position in told.existing
            else:
                assert position not in told.existing and id not in self.tasks, "an id was given twice"
                self.tasks[id] = Known(item, self.wall, due_at=self.wall)
                self.go(id, Event.SUBMIT_LATER if item.delay else Event.SUBMIT)
            if item.key is not None:
                self.keys[item.key] = id
        self.calls[seq] = (items, list(told.ids), self.wall)

    def newest_twin(self) -> int | None:
        """The last unique task that counts: it lives, or its window goes on."""
        unique = (id for id, known in self.tasks.items() if known.item.unique is not None)
        counting = (id for id in unique if not self.is_final(id) or self.wall < self.tasks[id].submitted_at + WINDOW)
        return max(counting, default=None)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), wrong=st.sampled_from([False, False, False, True]))
    def submit_again(self, data: st.DataObject, wrong: bool) -> None:
        seq = data.draw(st.sampled_from(sorted(self.calls)))
        items, ids, at = self.calls[seq]
        if self.wall - at > KEEP_CALLS - 1:
            return
        if wrong:
            with pytest.raises(KeyConflict):
                self.queue.submit(1, seq, [*items, new_task("x", b"another")])
        else:
            assert list(self.queue.submit(1, seq, items).ids) == ids

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        alive = self.in_state(PENDING, SCHEDULED, RUNNING)
        id = data.draw(st.sampled_from(alive or sorted(self.tasks)))
        before = self.tasks[id].state
        (answer,) = self.queue.cancel([id])
        if before in FINAL:
            assert before is not None and answer in (before.label, "unknown")
            return
        assert answer == self.go(id, Event.CANCEL).label
        self.tasks[id].cancel = before is RUNNING

    @precondition(lambda self: self.in_state(*FINAL))
    @rule(data=st.data(), verb=st.sampled_from(["requeue", "requeue", "drop"]))
    def requeue_or_drop(self, data: st.DataObject, verb: str) -> None:
        id = data.draw(st.sampled_from(self.in_state(FAILED, CANCELLED) or self.in_state(*FINAL)))
        known = self.tasks[id]
        assert known.state is not None
        self.queue.get([id])  # so that its end is on disk
        there = bool(self.store.get([id]))
        too_late = known.expires_at is not None and known.expires_at <= self.wall
        (answer,) = self.queue.requeue([id]) if verb == "requeue" else self.queue.drop([id])
        if not there:
            assert answer == "unknown"
        elif verb == "drop":
            assert answer == ("dropped" if known.state is FAILED else known.state.label)
        elif known.state in (FAILED, CANCELLED) and not too_late:
            assert answer == "requeued"
            known.failures = known.deaths = 0
            self.go(id, Event.REQUEUE)
            known.due_at = self.wall
        else:
            assert answer == known.state.label

    @rule(state=st.sampled_from(["completed", "failed", "cancelled"]))
    def purge(self, state: str) -> None:
        self.clock.advance(0.01)
        kept = self.queue.list_tasks(state, None, None, 1_000)
        assert self.queue.purge([state], 0.0) == len(kept)

    # -- workers

    @rule(slots=st.integers(1, 4))
    def reserve(self, slots: int) -> None:
        self.hand_out(slots)

    def hand_out(self, slots: int) -> None:
        alone, free = self.queue._state.leases.workers[self.name].alone, not self.held
        given = self.queue.reserve(self.name, self.session, slots, 0, (), 0.0).tasks
        self.expire()
        suspects = [id for id in self.in_state(PENDING) if self.tasks[id].deaths]
        others = [id for id in self.in_state(PENDING) if not self.tasks[id].deaths]
        if free and suspects:
            assert [task.id for task in given] == self.best_first(suspects, 1)
        else:
            assert [task.id for task in given] == ([] if alone else self.best_first(others, slots))
        for task in given:
            known = self.tasks[task.id]
            assert task.payload == known.item.payload and task.attempt == known.failures + known.deaths + 1
            assert all(task.run > earlier.run for earlier in self.spent), "a run was given twice"
            self.go(task.id, Event.RESERVE, durable=False)
            self.held[task.id] = task

    def one_held(self, data: st.DataObject) -> Handout:
        return self.held[data.draw(st.sampled_from(sorted(self.held)))]

    def say(self, *report: Any) -> None:
        assert not self.queue.report(self.name, self.session, [report])

    @precondition(lambda self: self.held)
    @rule(data=st.data(), result=st.sampled_from([b"r", bytes(5_000)]))
    def ack(self, data: st.DataObject, result: bytes) -> None:
        task = self.one_held(data)
        self.say(ACK, task.id, task.run, result, 0.1)
        self.go(task.id, Event.ACK)
        assert self.queue.result(task.id).result == result

    @precondition(lambda self: self.held)
    @rule(data=st.data(), error=st.sampled_from([ERROR, ERROR, STOPPED]), delay=st.sampled_from([None, None, -1]))
    def nack(self, data: st.DataObject, error: Any, delay: int | None) -> None:
        task = self.one_held(data)
        known = self.tasks[task.id]
        self.say(NACK, task.id, task.run, error, delay, 0.1)
        if known.cancel and error is STOPPED:
            self.go(task.id, Event.CANCELLED)
            return
        known.failures += 1
        over = delay == -1 or known.failures > known.item.terms.max_retries
        state = self.attempt_over(task.id, Event.FAIL if over else Event.RETRY)
        if state is SCHEDULED:
            pause = 2.0 ** (known.failures - 1)
            assert pause / 2 <= known.due_at - self.wall <= pause

    @precondition(lambda self: self.held)
    @rule(data=st.data(), pause=st.sampled_from([None, 3.0]))
    def put_back(self, data: st.DataObject, pause: float | None) -> None:
        task = self.one_held(data)
        if pause is None:
            self.say(GIVE_BACK, task.id, task.run)
            self.attempt_over(task.id, Event.GIVE_BACK)
        else:
            self.say(SNOOZE, task.id, task.run, pause)
            if self.attempt_over(task.id, Event.SNOOZE) is SCHEDULED:
                assert self.tasks[task.id].due_at == self.wall + pause

    @precondition(lambda self: self.spent)
    @rule(data=st.data())
    def say_it_too_late(self, data: st.DataObject) -> None:
        """A run that is over counts for nothing, whatever is said of it."""
        task = data.draw(st.sampled_from(self.spent))
        assert list(self.queue.report(self.name, self.session, [(ACK, task.id, task.run, b"late", 0.1)])) == [0]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def worker_dies(self, data: st.DataObject) -> None:
        held = sorted(self.held)
        began = [id for id in held if data.draw(st.sampled_from([True, True, False]))]
        started = [(id, self.held[id].run) for id in began]
        self.queue.child_died("pool", self.name, "signal 9", started, True, {})
        self.die(began, durable=True)
        for id in held:
            if id not in began:
                self.attempt_over(id, Event.GIVE_BACK)
        self.attach(self.next_worker())

    @precondition(lambda self: self.held)
    @rule()
    def worker_is_silent(self) -> None:
        self.clock.advance(LEASE + 1)
        oldest = sorted(self.held, key=lambda id: self.held[id].run)
        self.queue.tick()
        self.expire()
        for id in self.in_state(SCHEDULED):
            if self.tasks[id].due_at <= self.wall:
                self.go(id, Event.DUE, durable=False)
        self.die(oldest[:THREADS], durable=False)
        for id in oldest[THREADS:]:
            self.attempt_over(id, Event.GIVE_BACK, durable=False)
        self.beat()

    def beat(self) -> None:
        child: Any = {"incarnation": self.name, "pid": 2, "stopped": False, "cpu_percent": 0.0, "rss_bytes": 0}
        self.queue.beat(worker(self.name)["pool"], [{**child, "running": ()}])

    # -- time

    @rule(seconds=st.sampled_from([1.0, 1.0, 6.0, 6.0, DAY / 2]))
    def wait(self, seconds: float) -> None:
        self.pass_time(seconds)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.beat()
        self.tick()
        if seconds == DAY / 2:
            while self.queue.clean():
                pass
            for _ in range(2):
                self.queue.tidy()
            for key in [key for key in self.keys if not self.store.find_keys([key])]:
                assert self.is_final(self.keys[key]) and self.store.get([self.keys[key]]) == {}
                del self.keys[key]

    # -- always

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "queue"):
            return
        check(self.queue._state)
        rows = self.store.slim([id for id in self.tasks if id not in self.queue._state.tasks])
        there = []
        for id, known in self.tasks.items():
            found: Any = self.queue._state.tasks.get(id) or rows.get(id)
            if found is None:
                assert known.state in FINAL, f"task {id} is lost"
            else:
                self.agrees_on(id, known, found)
                there.append(known)
        assert {task.id for task in self.held.values()} == set(self.in_state(RUNNING))
        kept = {kind: count for kind, count in self.queue._state.figures.final.items() if count}
        assert kept == Counter(known.state for known in there if known.state in FINAL), "figures of what is over"

    @staticmethod
    def agrees_on(id: int, known: Known, found: TaskRow) -> None:
        assert State(found.state) is known.state, f"task {id} is {State(found.state).label}, expected {known}"
        assert (found.failures, found.deaths) == (known.failures, known.deaths), f"task {id}: {known}"
        assert known.state is not SCHEDULED or found.due_at == known.due_at
        assert known.state is not RUNNING or bool(found.cancel_requested) == known.cancel

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.queue.close()


class MemoryWalk(Walk):
    """Over a store that lives as long as the walk."""

    def new_store(self) -> Store:
        if not hasattr(self, "memory"):
            self.memory = MemoryStore()
        return self.memory


class SqliteWalk(Walk):
    """Over a file."""

    def new_store(self) -> Store:
        if not hasattr(self, "folder"):
            self.folder = Path(tempfile.mkdtemp(prefix="taskq-walk-"))
        return SqliteStore(self.folder / "store.sqlite", reserve=0)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


WALKS: dict[type[Walk], int] = {MemoryWalk: 500, SqliteWalk: 150}
"""How many walks over each store are for every day."""


def walk(machine: type[Walk], number: int, examples: int) -> Counter[tuple[Event, State | None]]:
    """Walk as often as that; gives how often each transition was taken."""
    Walk.taken.clear()
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        seed(number)(machine),
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return Counter(Walk.taken)


@pytest.fixture
def told(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Prints figures, and keeps them with the test's report."""

    def tell(machine: type[Walk], number: int, examples: int, taken: Counter[tuple[Event, State | None]]) -> None:
        record_property("transitions", taken.total())
        print(
            f"T5: {machine.__name__}, seed {number}: {examples} walks, {taken.total():,} transitions, "
            f"{len(taken)} of {len(EVERY)} kinds, 0 differences"
        )

    return tell


@pytest.mark.parametrize("machine", WALKS)
def test_every_store_agrees_with_the_model(
    machine: type[Walk], pytestconfig: pytest.Config, told: Callable[..., None]
) -> None:
    number = pytestconfig.getoption("order_seed")
    examples = WALKS[machine]
    told(machine, number, examples, walk(machine, number, examples))


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("machine", WALKS)
def test_very_many_walks(machine: type[Walk], pytestconfig: pytest.Config, told: Callable[..., None]) -> None:
    number = pytestconfig.getoption("order_seed")
    told(machine, number, 3_000, walk(machine, number, 3_000))


def test_every_transition_of_the_table_is_taken(told: Callable[..., None]) -> None:
    taken = walk(MemoryWalk, 5, 300)
    told(MemoryWalk, 5, 300, taken)
    assert not EVERY - taken.keys(), "of these the walks say nothing"
