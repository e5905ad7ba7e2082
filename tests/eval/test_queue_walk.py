"""Random walks over the whole queue with a store that outlives it: repeated calls, keys, payloads, purges, crashes."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from taskq.clock import FakeClock
from taskq.config import QueueSettings
from taskq.errors import KeyConflict
from taskq.queue.check import check
from taskq.queue.job_queue import JobQueue
from taskq.queue.task import NewTask, new_task
from taskq.service import ACK, NACK, Handout
from taskq.stores.base import KEEP_CALLS
from taskq.stores.memory import MemoryStore

DAY = 86_400.0
SIZES = st.sampled_from([0, 64, 65, 2_000])
ERROR = ("error", "E", "m", "t")


def worker() -> Any:
    pool = {"id": "pool", "name": "pool", "host": "h", "pid": 1, "local": None}
    info = {"incarnation": "w", "pool": pool, "name": "w", "host": "h", "pid": 2, "threads": 4, "queues": ()}
    return {**info, "types": [{"name": "x", "parameters": ()}]}


WINDOW = 100.0
LIVE = ("pending", "scheduled", "running")


class JobQueueWalk(RuleBasedStateMachine):
    """The model: what each call was told, which task each key stands for, and what each task carries."""

    @initialize()
    def begin(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.calls: dict[int, tuple[list[NewTask], list[int], float]] = {}
        self.keys: dict[str, int] = {}
        self.twins: dict[int, float] = {}
        self.payloads: dict[int, bytes] = {}
        self.final: dict[int, str] = {}
        self.held: dict[int, Handout] = {}
        self.start()

    def start(self) -> None:
        self.queue = JobQueue(self.store, self.clock, QueueSettings(keep_completed=DAY, keep_failed=2 * DAY))
        self.queue.open()
        reply = self.queue.attach(worker(), [(task.id, task.run) for task in self.held.values()])
        self.session = reply["session"]
        assert not reply["lost"], "it came back at once"

    @rule(
        sizes=st.lists(SIZES, min_size=1, max_size=3),
        key=st.sampled_from([None, "k", "l"]),
        delay=st.booleans(),
        unique=st.booleans(),
    )
    def submit(self, sizes: list[int], key: str | None, delay: bool, unique: bool) -> None:
        seq = len(self.calls) + 1
        items = [new_task("x", b"%d" % seq + bytes(size), max_retries=1, delay=5.0 * delay) for size in sizes]
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
                assert position not in told.existing
                assert id not in self.payloads, "an id was given twice"
                self.payloads[id] = item.payload
                if item.unique is not None:
                    self.twins[id] = self.clock.wall()
            if item.key is not None:
                self.keys[item.key] = id
        self.calls[seq] = (items, list(told.ids), self.clock.wall())

    def newest_twin(self) -> int | None:
        """The last unique task that counts: it lives, or its window goes on."""
        wall = self.clock.wall()
        counting = (id for id, at in self.twins.items() if id not in self.final or wall < at + WINDOW)
        return max(counting, default=None)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), wrong=st.sampled_from([False, False, False, True]))
    def submit_again(self, data: st.DataObject, wrong: bool) -> None:
        seq = data.draw(st.sampled_from(sorted(self.calls)))
        items, ids, at = self.calls[seq]
        if self.clock.wall() - at > KEEP_CALLS - 1:
            return
        if wrong:
            try:
                self.queue.submit(1, seq, [*items, new_task("x", b"another")])
            except KeyConflict:
                return
            raise AssertionError("the same call with other tasks was accepted")
        assert list(self.queue.submit(1, seq, items).ids) == ids

    @rule(slots=st.integers(1, 4))
    def reserve(self, slots: int) -> None:
        for task in self.queue.reserve("w", self.session, slots, 0, (), 0.0).tasks:
            assert task.payload == self.payloads[task.id] and task.id not in self.final and task.id not in self.held
            self.held[task.id] = task

    @precondition(lambda self: self.held)
    @rule(data=st.data(), result=st.sampled_from([b"r", bytes(5_000), None]))
    def report(self, data: st.DataObject, result: bytes | None) -> None:
        task = self.held.pop(data.draw(st.sampled_from(sorted(self.held))))
        report = (ACK, task.id, task.run, result, 0.1) if result else (NACK, task.id, task.run, ERROR, None, 0.1)
        assert not self.queue.report("w", self.session, [report])
        outcome = self.queue.result(task.id)
        assert outcome.result == result
        if outcome.state != "scheduled":
            self.final[task.id] = outcome.state

    @precondition(lambda self: self.payloads)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.payloads)))
        (state,) = self.queue.cancel([id])
        if id in self.final:
            assert state in (self.final[id], "unknown")
        elif id in self.held:
            assert state == "running"
        else:
            assert state == "cancelled"
            self.final[id] = state

    @rule(seconds=st.sampled_from([1.0, 6.0, DAY / 2]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        pool = worker()["pool"]
        report = {"incarnation": "w", "pid": 2, "stopped": False, "cpu_percent": 0.0, "rss_bytes": 0, "running": ()}
        self.queue.beat(pool, [report])  # type: ignore[list-item]  # a dictionary of that form
        self.queue.tick()
        while self.queue.clean():
            pass
        for _ in range(2):
            self.queue.tidy()
        gone = [key for key, id in self.keys.items() if not self.store.find_keys([key])]
        for key in gone:
            assert self.keys[key] in self.final and self.store.get([self.keys[key]]) == {}
            del self.keys[key]

    @rule(state=st.sampled_from(["completed", "failed", "cancelled"]))
    def purge(self, state: str) -> None:
        self.clock.advance(0.01)
        kept = {row["id"] for row in self.queue.list_tasks(state, None, None, 1_000)}
        assert self.queue.purge([state], 0.0) == len(kept)

    @precondition(lambda self: self.final)
    @rule(data=st.data(), verb=st.sampled_from(["requeue", "requeue", "drop"]))
    def requeue_or_drop(self, data: st.DataObject, verb: str) -> None:
        id = data.draw(st.sampled_from(sorted(self.final)))
        before = self.final[id] if self.store.get([id]) else "unknown"
        (answer,) = self.queue.requeue([id]) if verb == "requeue" else self.queue.drop([id])
        if before in (("failed", "cancelled") if verb == "requeue" else ("failed",)):
            assert answer == ("requeued" if verb == "requeue" else "dropped")
            if verb == "requeue":
                del self.final[id]
                assert not self.store.slim([id])[id].failures
        else:
            assert answer == before

    @rule(orderly=st.booleans())
    def restart(self, orderly: bool) -> None:
        if orderly:
            self.queue.close()
        self.store.close()
        self.start()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "queue"):
            return
        check(self.queue._state)
        alive = self.payloads.keys() - self.final.keys()
        assert self.queue._state.tasks.keys() == alive, "final records leave memory, others stay"
        rows = self.store.get(list(self.payloads))
        kept = {kind.label: count for kind, count in self.queue._state.figures.final.items()}
        assert sum(kept.values()) == sum(id in self.final for id in rows)


TestJobQueueWalk = JobQueueWalk.TestCase
TestJobQueueWalk.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
