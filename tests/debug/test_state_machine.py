"""Random walks over the pure queue, against a model that is too simple to be wrong; `check` after every step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from taskq.config import QueueSettings
from taskq.errors import InvalidTransition, KeyConflict, NotUnique, QueueFull, StaleRun
from taskq.queue.changes import Changes
from taskq.queue.check import check
from taskq.queue.leases import THREADS_UNTOLD, Moment, Worker
from taskq.queue.lifecycle import TRANSITIONS, next_state
from taskq.queue.moves import RUNS_PER_EPOCH
from taskq.queue.places import HOLD
from taskq.queue.ready import AGING
from taskq.queue.state import QueueState
from taskq.queue.task import FINAL, State
from taskq.queue.task_row import TaskRow, to_row
from taskq.queue.terms import NewTask, new_task
from taskq.shapes import ACK, GIVE_BACK, NACK, SNOOZE
from taskq.stores.base import KeyRow, QueueRow, UniqueRow

LEASE = 30.0
LIMIT = 40
QUEUES = ("a", "b")
TYPES = ("x", "y")
POOL = {"id": "pool", "name": "pool", "host": "h", "pid": 1, "local": None}


def info(incarnation: str, queues: tuple[str, ...], types: tuple[str, ...]) -> Any:
    described = [{"name": name} for name in types]
    return {
        **{"incarnation": incarnation, "pool": POOL, "name": incarnation, "host": "h", "pid": 2, "threads": 2},
        **{"queues": queues, "types": described},
    }


class QueueWalk(RuleBasedStateMachine):
    """The model: what each task's state must be, and which runs are out with which worker."""

    @initialize()
    def begin(self) -> None:
        self.mono, self.wall = 1_000.0, 1_000_000.0
        self.state = QueueState(QueueSettings(lease=LEASE, max_pending=LIMIT), epoch=1)
        self.expected: dict[int, State] = {}
        self.wanted: dict[int, NewTask] = {}
        self.out: dict[str, dict[int, int]] = {}
        self.stored: dict[int, TaskRow] = {}
        self.unsaved: set[int] = set()
        self.spent: list[tuple[str, int, int]] = []
        self.keys: dict[str, KeyRow] = {}
        self.uniques: list[UniqueRow] = []
        self.highest_run = 0
        self.over: set[tuple[int, int]] = set()
        self.limits: dict[str, int] = {}
        self.paused: set[str] = set()
        self.workers = 0
        for name in ("w1", "w2"):
            self.join((), TYPES)
            assert name in self.out

    @property
    def now(self) -> Moment:
        return Moment(self.mono, self.wall)

    def save(self, changes: Changes, *, durable: bool = True) -> None:
        for task in changes.written:
            if task.error is not None and task.error.kind == "expired":
                assert task.expires_at is not None and task.expires_at <= self.wall
                assert self.expected[task.id] in (State.PENDING, State.SCHEDULED), "it had begun"
            self.expected[task.id] = task.state
            if durable:
                self.stored[task.id] = to_row(task)
                self.unsaved.discard(task.id)
            else:
                self.unsaved.add(task.id)
        over = {(attempt.id, attempt.run) for attempt in changes.attempts}
        assert not over & self.over and len(over) == len(changes.attempts), "an attempt was over twice"
        self.over |= over
        assert {task.id for task in changes.final} == {t.id for t in changes.written if t.state in FINAL}
        for task in changes.final:
            assert task.finished_at == self.wall, "without a time it would never be purged"
            self.state.forget([task])

    def session(self, incarnation: str) -> Worker:
        worker = self.state.leases.workers[incarnation]
        return worker

    # -- clients

    @rule(
        queue=st.sampled_from(QUEUES),
        kind=st.sampled_from(TYPES),
        priorities=st.lists(st.integers(-2, 2), min_size=1, max_size=5),
        delay=st.sampled_from([0.0, 0.0, 5.0]),
        retries=st.integers(0, 2),
        expires=st.sampled_from([None, None, None, 6.0]),
    )
    def submit(
        self, queue: str, kind: str, priorities: list[int], delay: float, retries: int, expires: float | None
    ) -> None:
        terms: dict[str, Any] = {"queue": queue, "max_retries": retries, "backoff": 1.0, "expires": expires}
        items = [new_task(kind, b"p", delay=delay, priority=priority, **terms) for priority in priorities]
        waiting = sum(
            state in (State.PENDING, State.SCHEDULED) and self.wanted[number].terms.queue == queue
            for number, state in self.expected.items()
        )
        if waiting + len(items) > LIMIT:
            with pytest.raises(QueueFull):
                self.state.submit(1, items, {}, self.now)
            return
        accepted = self.state.submit(1, items, {}, self.now)
        assert not accepted.existing and accepted.ids == sorted(set(accepted.ids))
        assert not set(accepted.ids) & self.expected.keys(), "an id was given twice"
        self.wanted.update(zip(accepted.ids, items, strict=True))
        self.save(accepted.changes)
        for number in accepted.ids:
            assert self.expected[number] is (State.SCHEDULED if delay else State.PENDING)

    @rule(key=st.sampled_from("kl"), priority=st.integers(0, 1), wrong=st.booleans())
    def submit_with_a_key(self, key: str, priority: int, wrong: bool) -> None:
        """Between two others; what the store knows of keys is what was accepted."""
        item = new_task("x", b"p", queue="a", priority=priority, key=key)
        plain = new_task("y", b"p", queue="b", key="other " + key if wrong else None)
        before = {number: to_row(task) for number, task in self.state.tasks.items()}
        twin = self.keys.get(key)
        try:
            accepted = self.state.submit(1, [plain, item, item], self.keys, self.now)
        except QueueFull:
            assert before == {number: to_row(task) for number, task in self.state.tasks.items()}
            return
        except KeyConflict:
            assert twin is not None and self.wanted[twin.id].terms.priority != priority
            assert before == {number: to_row(task) for number, task in self.state.tasks.items()}
            return
        first, second, third = accepted.ids
        assert second == third and (2 in accepted.existing) and (1 in accepted.existing) == (twin is not None)
        assert twin is None or (second == twin.id and self.wanted[second].terms.priority == priority)
        for row in accepted.keys:
            self.keys[row.key] = row
        self.wanted.update({number: item for number in (second,) if number not in self.wanted})
        self.wanted.setdefault(first, plain)
        self.save(accepted.changes)

    @rule(value=st.sampled_from([b"u", b"v"]), raises=st.booleans())
    def submit_a_unique_one(self, value: bytes, raises: bool) -> None:
        item = new_task("x", b"p", queue="a", unique=value, unique_in=("pending", "running"), unique_raises=raises)
        twins = [
            number
            for number, state in self.expected.items()
            if state in (State.PENDING, State.RUNNING) and self.wanted[number].unique == value
        ]
        try:
            accepted = self.state.submit(1, [item], {}, self.now)
        except QueueFull:
            assert not twins
            return
        except NotUnique as error:
            assert raises and error.details["id"] == max(twins)
            return
        assert not (raises and twins)
        assert accepted.ids == ([max(twins)] if twins else [self.state.next_id - 1])
        self.uniques += accepted.uniques
        self.wanted.setdefault(accepted.ids[0], item)
        self.save(accepted.changes)

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.expected)))
        before = self.expected[number]
        after, changes = self.state.cancel(number, self.now)
        self.save(changes)
        if before in FINAL:
            assert after is None and not changes.written
        elif before is State.RUNNING:
            assert after is State.RUNNING and self.state.tasks[number].cancel_requested
        else:
            assert after is State.CANCELLED

    # -- workers

    @rule(queues=st.sampled_from([(), ("a",), ("a", "b")]), types=st.sampled_from([("x",), ("x", "y")]))
    def another_joins(self, queues: tuple[str, ...], types: tuple[str, ...]) -> None:
        self.join(queues, types)

    def join(self, queues: tuple[str, ...], types: tuple[str, ...]) -> None:
        if len(self.out) >= 4:
            return
        self.workers += 1
        name = f"w{self.workers}"
        _, lost, changes = self.state.attach(info(name, queues, types), [], self.now)
        assert not lost and not changes.written
        self.out[name] = {}

    @rule(data=st.data(), slots=st.integers(1, 4), extra=st.integers(0, 3), waiting=st.integers(0, 2))
    def reserve_some(self, data: st.DataObject, slots: int, extra: int, waiting: int) -> None:
        self.reserve(data, slots, extra, waiting)

    def reserve(self, data: st.DataObject, slots: int, extra: int, waiting: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.out) or ["nobody"]))
        worker = self.state.leases.workers.get(name)
        if worker is None or not worker.attached:
            return
        self.save(self.state.expire(self.now))
        servable = [
            number
            for number, state in self.expected.items()
            if state is State.PENDING
            and self.wanted[number].terms.type in worker.types
            and (not worker.queues or self.wanted[number].terms.queue in worker.queues)
            and not (self.state.places.kept_back is not None and number < self.state.places.kept_below)
        ]
        rooms = self.rooms()
        suspects = [number for number in servable if self.state.tasks[number].deaths]
        servable = [number for number in servable if number not in suspects]
        free, alone = not worker.running and self.state.places.kept_back is None, worker.alone
        fits = sum(
            min(count, rooms.get(queue, count))
            for queue, count in Counter(self.wanted[number].terms.queue for number in servable).items()
        )
        before = dict(rooms)
        tasks, changes = self.state.reserve(worker, slots, extra, ["x"], waiting, self.now)
        if not worker.may_reserve(self.mono, LEASE / 3):
            assert not tasks
            return
        suspects = [number for number in suspects if rooms.get(self.wanted[number].terms.queue, 1)]
        if free and suspects:
            servable, slots, extra, waiting, fits, before = suspects, 1, 0, 0, 1, {}
        elif alone:
            assert not tasks, "it is to be empty, or runs a suspect"
            return
        share = -(-fits // (waiting + 1))
        assert [task.id for task in tasks[:slots]] == self.best_first(servable, rooms, min(slots, share))
        assert all(task.queue not in before for task in tasks[slots:]), "nothing of a queue with a limit goes ahead"
        assert all(task.type == "x" for task in tasks[slots:]) and len(tasks) <= min(slots + extra, max(share, 0))
        for task in tasks:
            assert task.run > self.highest_run, "a run was given twice"
            self.highest_run = task.run
            if task.id in self.out[name]:
                self.spent.append((name, task.id, self.out[name][task.id]))
            self.out[name][task.id] = task.run
        self.save(changes, durable=data.draw(st.booleans()))

    def best_first(self, servable: list[int], rooms: dict[str, int], limit: int) -> list[int]:
        """Heads of lanes by priority, one step higher for each `AGING` that they have waited, then by id."""
        lanes: dict[tuple[str, str, int], list[int]] = {}
        for number in sorted(servable):
            terms = self.wanted[number].terms
            lanes.setdefault((terms.queue, terms.type, terms.priority), []).append(number)
        found: list[int] = []
        while len(found) < limit:
            heads = [
                (-priority - max(0, int((self.wall - self.state.tasks[lane[0]].due_at) / AGING)), lane[0], queue, lane)
                for (queue, _, priority), lane in lanes.items()
                if lane and rooms.get(queue, 1)
            ]
            if not heads:
                break
            _, number, queue, lane = min(heads)
            found.append(number)
            lane.pop(0)
            if queue in rooms:
                rooms[queue] -= 1
        return found

    def rooms(self) -> dict[str, int]:
        """How many tasks of each queue may be handed out, for those that have a limit or are paused."""
        running = Counter(
            self.wanted[number].terms.queue for number, state in self.expected.items() if state is State.RUNNING
        )
        rooms = {queue: max(0, most - running[queue]) for queue, most in self.limits.items()}
        return {**rooms, **dict.fromkeys(self.paused, 0)}

    @rule(queue=st.sampled_from(QUEUES), paused=st.booleans(), limit=st.sampled_from([None, None, 1, 3]))
    def lay_down(self, queue: str, paused: bool, limit: int | None) -> None:
        self.state.rules.put(QueueRow(queue, "ann@host", self.wall if paused else None, limit))
        self.paused = self.paused - {queue} | ({queue} if paused else set())
        self.limits.pop(queue, None)
        if limit is not None:
            self.limits[queue] = limit

    def draw_held(self, data: st.DataObject) -> tuple[str, int, int] | None:
        held = [(name, number, run) for name, tasks in sorted(self.out.items()) for number, run in tasks.items()]
        return data.draw(st.sampled_from(held)) if held else None

    def is_current(self, name: str, number: int, run: int) -> bool:
        task = self.state.tasks.get(number)
        worker = self.state.leases.workers.get(name)
        return bool(worker and task and task.state is State.RUNNING and task.run == run and task.worker == name)

    @rule(data=st.data(), what=st.sampled_from(["ack", "nack", "permanent", "give back", "snooze"]))
    def report_one(self, data: st.DataObject, what: str) -> None:
        self.report(data, what)

    @rule(data=st.data(), outcomes=st.lists(st.sampled_from(["ack", "nack", "nack", "snooze"]), min_size=1, max_size=4))
    def work_for_a_while(self, data: st.DataObject, outcomes: list[str]) -> None:
        for what in outcomes:
            self.reserve(data, 2, 0, 0)
            self.report(data, what)
            self.let_pass(4.0, list(self.out))

    def report(self, data: st.DataObject, what: str) -> None:
        held = self.draw_held(data)
        if held is None:
            return
        name, number, run = held
        worker = self.state.leases.workers.get(name)
        if worker is None or not worker.attached:
            return
        error = ("error", "E", "m", "t")
        reports = {
            "ack": (ACK, number, run, b"r", 0.1),
            "nack": (NACK, number, run, error, None, 0.1),
            "permanent": (NACK, number, run, error, -1, 0.1),
            "give back": (GIVE_BACK, number, run),
            "snooze": (SNOOZE, number, run, 3.0),
        }
        current = self.is_current(name, number, run)
        before = to_row(self.state.tasks[number]) if number in self.state.tasks else None
        refused, changes = self.state.report(worker, [reports[what]], self.now)
        del self.out[name][number]
        self.spent.append((name, number, run))
        assert refused == ([] if current else [0])
        if not current:
            now = self.state.tasks.get(number)
            assert not changes.written and before == (None if now is None else to_row(now)), "a stale word counted"
            return
        assert before is not None
        self.save(changes)
        after = self.expected[number]
        if what == "ack":
            assert after is State.COMPLETED
        elif what == "permanent":
            assert after is State.FAILED
        elif before.cancel_requested and not (what == "nack" and before.failures >= before.max_retries):
            assert after is State.CANCELLED
        elif what == "nack":
            assert after is (State.FAILED if before.failures >= before.max_retries else State.SCHEDULED)
        else:
            assert after is (State.PENDING if what == "give back" else State.SCHEDULED)

    @precondition(lambda self: self.spent)
    @rule(data=st.data())
    def report_a_spent_run(self, data: st.DataObject) -> None:
        """The later ones are the likelier ones to be believed by mistake: the same worker has the task again."""
        name, number, run = data.draw(st.sampled_from(self.spent[-5:]))
        worker = self.state.leases.workers.get(name)
        if worker is None:
            return
        before = {number: to_row(task) for number, task in self.state.tasks.items()}
        refused, changes = self.state.report(worker, [(ACK, number, run, b"late", 0.1)], self.now)
        assert refused == [0] and not changes.written
        assert before == {number: to_row(task) for number, task in self.state.tasks.items()}

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def attach_again(self, data: st.DataObject) -> None:
        """A cut connection: the worker is back and holds some of what it was given, the rest never reached it."""
        name = data.draw(st.sampled_from(sorted(self.out)))
        kept = data.draw(st.sets(st.sampled_from(sorted(self.out[name])))) if self.out[name] else set()
        held = [(number, run) for number, run in self.out[name].items() if number in kept]
        queues, types = (), ("x", "y")
        current = {number for number, run in held if self.is_current(name, number, run)}
        worker, lost, changes = self.state.attach(info(name, queues, types), held, self.now)
        self.save(changes)
        assert current <= {number for number, _ in held} - {number for number, _ in lost}
        assert worker.running.keys() == {number for number, _ in held} - {number for number, _ in lost}
        self.out[name] = dict(held)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), counts=st.booleans())
    def die(self, data: st.DataObject, counts: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.out)))
        held = self.out.pop(name)
        started = {n: run for n, run in held.items() if data.draw(st.booleans())}
        worker = self.state.leases.remove(name, dead=True)
        if worker is not None:
            before = {number: to_row(task) for number, task in worker.running.items()}
            self.save(self.state.worker_gone(worker, "signal 11", started, self.now, counts=counts))
            for number, row in before.items():
                died = counts and started.get(number) == row.run
                if number in self.state.tasks:
                    assert self.state.tasks[number].deaths == row.deaths + died
                if died and row.deaths == 2:
                    assert self.expected[number] is State.FAILED
                elif row.cancel_requested:
                    assert self.expected[number] is State.CANCELLED
                else:
                    assert self.expected[number] is (State.SCHEDULED if died else State.PENDING)
        with pytest.raises(StaleRun):
            self.state.attach(info(name, (), TYPES), [], self.now)

    # -- time

    @rule(data=st.data(), seconds=st.sampled_from([0.5, 4.0, 11.0, 40.0]))
    def pass_time(self, data: st.DataObject, seconds: float) -> None:
        self.let_pass(seconds, [name for name in self.out if data.draw(st.booleans())])

    def let_pass(self, seconds: float, beating: list[str]) -> None:
        self.mono += seconds
        self.wall += seconds
        children = [{"incarnation": name, "stopped": False, "running": ()} for name in beating]
        self.state.leases.beat(POOL, children, self.mono)
        silent = [worker for worker in self.state.leases.workers.values() if worker.expires <= self.mono]
        lost = {number: to_row(task) for worker in silent for number, task in worker.running.items()}
        began = {
            id
            for worker in silent
            for id in sorted(worker.running, key=lambda id: lost[id].run)[: worker.threads or THREADS_UNTOLD]
        }
        for changes in self.state.tick(self.now):
            self.save(changes)
        for number, row in lost.items():
            died = number in began
            if number in self.state.tasks:
                assert self.state.tasks[number].deaths == row.deaths + died
                assert self.expected[number] is (State.SCHEDULED if died else State.PENDING)
            elif row.cancel_requested and row.deaths + died < 3:
                assert self.expected[number] is State.CANCELLED
            else:
                assert self.expected[number] is State.FAILED and row.deaths + died == 3
        for task in self.state.tasks.values():
            assert task.state is not State.SCHEDULED or task.due_at > self.wall, "it is due and not pending"
        for worker in self.state.leases.workers.values():
            assert worker.expires > self.mono or not worker.running, "a lease outlived its time"

    @rule(seconds=st.sampled_from([-366 * 86400.0, 366 * 86400.0]))
    def jump_wall_clock(self, seconds: float) -> None:
        self.let_pass(0.0, [])
        pauses = {n: task.due_at - self.wall for n, task in self.state.tasks.items() if task.state is State.SCHEDULED}
        leased = {name: set(worker.running) for name, worker in self.state.leases.workers.items()}
        self.wall += seconds
        for changes in self.state.tick(self.now):
            self.save(changes)
        now = {name: set(worker.running) for name, worker in self.state.leases.workers.items()}
        assert leased == now, "a lease ended by the wall clock"
        for number, pause in pauses.items():
            task = self.state.tasks.get(number)
            if task is None:
                assert seconds > 0 and self.wanted[number].terms.expiring
            elif task.run:
                assert task.state is State.SCHEDULED and task.due_at - self.wall == pytest.approx(pause, abs=1e-3)

    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        """The manager is killed: what was not written is lost, the workers live on."""
        epoch = self.state.epoch + 1
        state = QueueState(QueueSettings(lease=LEASE, max_pending=LIMIT), epoch=epoch, next_id=self.state.next_id)
        state.rules = self.state.rules
        for name in self.out:
            if name in self.state.leases.workers:
                state.leases.expect(name, "pool", name, "h", 2, self.mono)
        live = [row._replace(payload=b"p") for _, row in sorted(self.stored.items()) if row.state not in FINAL]
        assert state.load(live, self.now) == len(live)
        state.uniqueness.add(row for row in self.uniques if row.id in {one.id for one in live})
        before, self.state = self.state, state
        self.expected = {number: State(row.state) for number, row in self.stored.items()}
        self.unsaved.clear()
        check(self.state)
        owners = {
            (number, task.run): worker.incarnation
            for worker in before.leases.workers.values()
            for number, task in worker.running.items()
        }
        for name in sorted(self.out):
            if data.draw(st.booleans()) and name in before.leases.workers:
                held = list(self.out[name].items())
                _, lost, changes = self.state.attach(info(name, (), TYPES), held, self.now)
                self.save(changes)
                for number, run in held:
                    if owners.get((number, run)) == name:
                        assert (number, run) not in lost, "a worker that came back in time lost its run"

    # -- always

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "state"):
            return
        check(self.state)
        alive = {number: state for number, state in self.expected.items() if state not in FINAL}
        assert {number: task.state for number, task in self.state.tasks.items()} == alive
        for name, tasks in self.out.items():
            worker = self.state.leases.workers.get(name)
            if worker is not None:
                assert {n: task.run for n, task in worker.running.items()}.items() <= tasks.items() | {
                    (n, task.run) for n, task in worker.running.items() if not worker.attached
                }


TestQueueWalk = QueueWalk.TestCase
TestQueueWalk.settings = settings(
    max_examples=70, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_a_restart_releases_what_it_kept_back() -> None:
    before = QueueState(QueueSettings())
    accepted = before.submit(1, [new_task("x", b"p")] * 3, {}, Moment(0.0, 0.0))
    after = QueueState(QueueSettings(), epoch=2, next_id=before.next_id)
    after.leases.expect("w1", "pool", "w1", "h", 2, 0.0)
    after.load([to_row(task) for task in accepted.changes.written], Moment(0.0, 0.0))
    worker, _, _ = after.attach(info("w2", (), TYPES), [], Moment(0.0, 0.0))
    fresh = after.submit(1, [new_task("x", b"p")], {}, Moment(0.0, 0.0))
    tasks, _ = after.reserve(worker, 4, 0, (), 0, Moment(0.0, 0.0))
    assert [task.id for task in tasks] == fresh.ids, "new submits go at once, older ones wait"
    assert after.next_deadline(Moment(0.0, 0.0)) == HOLD
    released = after.tick(Moment(HOLD, HOLD))
    assert {("default", "x"): 3} in [changes.ready for changes in released]
    tasks, _ = after.reserve(worker, 4, 0, (), 0, Moment(HOLD, HOLD))
    assert [task.id for task in tasks] == accepted.ids
    check(after)


def test_a_run_the_store_never_saw_is_taken_up_only_from_the_epoch_before() -> None:
    def restart(epoch: int) -> tuple[QueueState, list[tuple[int, int]]]:
        state = QueueState(QueueSettings(), epoch=epoch, next_id=2)
        row = to_row(QueueState(QueueSettings()).submit(1, [new_task("x", b"p")], {}, Moment(0, 0)).changes.written[0])
        state.load([row], Moment(0.0, 0.0))
        _, lost, _ = state.attach(info("w", (), TYPES), [(1, 4 * RUNS_PER_EPOCH + 9)], Moment(0.0, 0.0))
        check(state)
        return state, lost

    assert restart(5)[1] == []
    assert restart(6)[1] == [(1, 4 * RUNS_PER_EPOCH + 9)]


def test_a_pair_that_is_not_in_the_table_changes_nothing() -> None:
    for event, moves in TRANSITIONS.items():
        for state in (None, *State):
            if state in moves:
                assert next_state(state, event) is moves[state]
            else:
                with pytest.raises(InvalidTransition):
                    next_state(state, event)
