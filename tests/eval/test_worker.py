"""One worker's threads against a real queue: what is run, told, held and given back, whatever happens on the way.

The worker lives in the test's process, so that connections can be cut at the worst moment; the queue is the real one,
behind the real wire (`here`).
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from cluster import wait_until
from here import Here

from taskq.clock import SystemClock
from taskq.config import Address, Join
from taskq.errors import Malformed, ManagerUnavailable
from taskq.queue.job_queue import JobQueue
from taskq.queue.terms import new_task
from taskq.queue.waiting import Seat
from taskq.registry import TaskType, current_task
from taskq.shapes import Attached, Handout, Report, Reserved, WorkerInfo
from taskq.stores.memory import MemoryStore
from taskq.wire.client import RemoteQueue
from taskq.wire.codec import decode, encode_arguments
from taskq.workers import worker as worker_module
from taskq.workers.attachment import Attachment, Outcome
from taskq.workers.backlog import EXTRA, Backlog, Wanted
from taskq.workers.slots import SlotTable
from taskq.workers.worker import Worker


class Proxy:
    """A TCP connection in the middle that can be cut, on both sides and at any moment."""

    def __init__(self, here: Here) -> None:
        self._here = here
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.join = Join((Address(*self._listener.getsockname()),), here.key)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._here.port))
            except OSError:
                near.close()
                continue
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs.add((near, far))
            for source, target in ((near, far), (far, near)):
                self._threads.append(threading.Thread(target=self._forward, args=(source, target)))
                self._threads[-1].start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            _shut(end)

    def cut(self) -> None:
        """End all connections."""
        for pair in list(self._pairs):
            for end in pair:
                _shut(end)

    def close(self) -> None:
        _shut(self._listener)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()
        for pair in self._pairs:
            for end in pair:
                end.close()


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


class Wire(RemoteQueue):
    """A connection that can lose the reply to its next reserve, and remembers the held lists."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench.proxy.join, connect_timeout=2.0)
        self.bench = bench

    def attach(self, worker: WorkerInfo, held: Sequence[tuple[int, int]]) -> Attached:
        self.bench.attached_with.append(list(held))
        return super().attach(worker, held)

    def reserve(self, *args: Any) -> Reserved:
        reply = super().reserve(*args)
        if reply.tasks and self.bench.lose_reserves:
            self.bench.lose_reserves -= 1
            self.bench.lost += [(task.id, task.run) for task in reply.tasks]
            raise self.bench.how
        return reply

    def report(self, incarnation: str, session: int, reports: Sequence[Report]) -> Sequence[int]:
        if self.bench.bad_result is not None and any(self.bench.bad_result in report for report in reports):
            raise Malformed("a report that the manager cannot read")
        return super().report(incarnation, session, reports)


class Bench:
    """A queue and workers of it; tasks are functions in ``types`` that count how often they ran."""

    def __init__(self, here: Here) -> None:
        self.here = here
        self.proxy = Proxy(here)
        self.types: dict[str, TaskType[..., Any]] = {}
        self.ran: Counter[Any] = Counter()
        self.gate = threading.Event()
        self.attached_with: list[list[tuple[int, int]]] = []
        self.lose_reserves = 0
        self.how: Exception = ManagerUnavailable("the reply was lost")
        self.lost: list[tuple[int, int]] = []
        self.bad_result: bytes | None = None
        self.seq = 0
        self.workers: list[tuple[Worker, Attachment, SlotTable]] = []
        self.add("quick", self.quick)
        self.add("gated", self.gated)

    def add(self, name: str, function: Callable[..., Any]) -> None:
        self.types[name] = TaskType(function, name)

    def quick(self, x: int) -> int:
        self.ran[x] += 1
        return x

    def gated(self, x: int) -> int:
        """Runs until the gate opens."""
        self.ran[x] += 1
        assert self.gate.wait(30)
        return x

    def worker(self, threads: int = 2) -> Worker:
        pool = {"id": secrets.token_hex(8), "name": "bench", "host": "here", "pid": 1, "local": None}
        info = WorkerInfo(
            incarnation=secrets.token_hex(8),
            pool=pool,  # type: ignore[typeddict-item]
            name="bench/0",
            host="here",
            pid=1,
            threads=threads,
            queues=(),
            types=[found.describe() for found in self.types.values()],
        )
        slots = SlotTable.create(threads)
        attachment = Attachment(lambda: Wire(self), info, lambda: made.wake())
        made = Worker(attachment, self.types.get, slots, threads, SystemClock())
        attachment.attach()
        made.start()
        self.workers.append((made, attachment, slots))
        return made

    def attachment(self) -> Attachment:
        return self.workers[-1][1]

    def left(self) -> bool:
        return self.workers[-1][2].left

    def submit(self, name: str, *values: int) -> list[int]:
        self.seq += 1
        items = [new_task(name, encode_arguments((value,), {})) for value in values]
        return list(self.here.queue.submit(1, self.seq, items).ids)

    def states(self, ids: Sequence[int]) -> Counter[str]:
        pieces = [ids[start : start + 1000] for start in range(0, len(ids), 1000)]
        return Counter(outcome.state for piece in pieces for outcome in self.here.queue.wait(piece, 0.0))

    def until(self, ids: Sequence[int], state: str, timeout: float = 10.0) -> None:
        wait_until(lambda: self.states(ids)[state] == len(ids), timeout, f"{len(ids)} tasks to be {state}")

    def until_begun(self, count: int) -> None:
        """The queue says earlier that they run: when it hands them out, and what has not begun can be given back."""
        wait_until(lambda: sum(self.ran.values()) == count, what=f"{count} tasks to begin")

    def close(self) -> None:
        self.gate.set()
        for made, _, _ in self.workers:
            made.drain()
        for made, _, slots in self.workers:
            assert made.over.wait(10), "a worker does not leave"
            made.join(5)
            slots.close()
        self.proxy.close()


def seats(queue: JobQueue) -> list[Seat]:
    """The `reserve` calls that wait in it."""
    with queue._lock:
        return queue._waiting.seats()


@pytest.fixture
def bench(here: Here, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(worker_module, "TICK", 0.1)  # the tests need not take as long as life
    made = Bench(here)
    try:
        yield made
    finally:
        made.close()


# -- the ordinary course


def test_tasks_are_run_once_each_and_their_results_arrive(bench: Bench) -> None:
    bench.worker(threads=4)
    ids = bench.submit("quick", *range(900))
    bench.until(ids, "completed")
    assert bench.ran == Counter(range(900))
    assert [decode(bench.here.queue.result(id).result or b"") for id in ids[:5]] == [0, 1, 2, 3, 4]
    wait_until(lambda: not bench.attachment().held, 5)  # the reply to the last report may be on its way


def test_fast_tasks_come_in_batches_and_slow_ones_do_not(bench: Bench) -> None:
    bench.worker(threads=1)
    bench.until(bench.submit("quick", 1), "completed")
    slow = bench.submit("gated", 1, 2, 3)
    wait_until(lambda: bench.states(slow)["running"] == 1)
    assert bench.states(slow)["pending"] == 2, "no slow task waits behind another one"


def test_progress_of_a_task_is_told_while_it_runs(bench: Bench) -> None:
    def slow(x: int) -> None:
        current_task().progress(0.25, "a quarter")
        bench.gated(x)

    bench.add("telling", slow)
    bench.worker()
    (id,) = bench.submit("telling", 1)
    state = bench.here.queue._state
    told = lambda: [worker.progress.get(id) for worker in state.leases.workers.values()]  # noqa: E731
    wait_until(lambda: told() == [(0.25, "a quarter")], 5)


def test_what_waits_behind_long_tasks_goes_back(bench: Bench) -> None:
    """Of a type that was fast so far, many are taken at once; when the first hangs, the others must not wait for it."""
    bench.add("fickle", lambda x: bench.gated(x) if x < 0 else bench.quick(x))
    bench.worker(threads=1)
    bench.until(bench.submit("fickle", *range(50)), "completed")
    hanging, *others = bench.submit("fickle", -1, *range(100, 200))
    wait_until(lambda: bench.states(others)["running"] == 100, 5, "the others to be taken in advance")
    bench.worker(threads=1)
    bench.until(others, "completed", 8)
    assert bench.states([hanging]) == {"running": 1}
    assert all(bench.ran[x] == 1 for x in range(100, 200))


# -- the stop


def test_drain_finishes_what_runs_gives_back_the_rest_and_says_goodbye(bench: Bench) -> None:
    bench.add("fickle", lambda x: bench.gated(x) if x < 0 else bench.quick(x))
    made = bench.worker(threads=1)
    bench.until(bench.submit("fickle", *range(50)), "completed")
    ids = bench.submit("fickle", -1, *range(100, 200))
    bench.until(ids[:1], "running")
    made.drain()
    wait_until(lambda: bench.states(ids)["pending"] == 100, 15, "the tasks that were not begun to be back")
    assert bench.states(ids)["running"] == 1
    assert not made.over.is_set()
    bench.gate.set()
    assert made.over.wait(5)
    assert bench.states(ids) == {"completed": 1, "pending": 100}
    assert bench.left()
    assert bench.here.queue.snapshot()["workers"] == []


def test_an_idle_worker_drains_at_once(bench: Bench) -> None:
    made = bench.worker()
    begin = time.monotonic()
    made.drain()
    assert made.over.wait(5)
    assert time.monotonic() - begin < 1.0
    assert bench.left()


def test_drain_while_the_manager_is_away_delivers_when_it_is_back(bench: Bench) -> None:
    made = bench.worker()
    ids = bench.submit("gated", 1, 2)
    bench.until_begun(2)
    bench.here.end()
    made.drain()
    bench.gate.set()
    wait_until(lambda: made._backlog.under_way == 0)
    assert not made.over.is_set()
    bench.here.begin()
    assert made.over.wait(10)
    assert bench.states(ids) == {"completed": 2}
    assert bench.ran == {1: 1, 2: 1}
    assert bench.left()


def test_drain_while_the_manager_is_away_ends_at_once_when_there_is_nothing_to_deliver(bench: Bench) -> None:
    made = bench.worker()
    bench.here.end()
    try:
        wait_until(lambda: not bench.attachment().up)
        made.drain()
        assert made.over.wait(5)
        assert not bench.left(), "nobody heard a goodbye, so the parent must tell"
    finally:
        bench.here.begin()


def test_an_orphan_does_not_wait_for_the_manager_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "ORPHAN_PATIENCE", 0.5)
    made = bench.worker()
    bench.submit("gated", 1)
    bench.until_begun(1)
    bench.here.end()
    try:
        made.drain(orphan=True)
        assert not made.over.wait(1.0), "what runs is never given up"
        bench.gate.set()
        assert made.over.wait(10)
    finally:
        bench.here.begin()


# -- connections that are cut


@pytest.mark.parametrize("how", [ManagerUnavailable("the reply was lost"), OSError(9, "surprise"), MemoryError()])
def test_a_reserve_reply_that_got_lost_costs_no_task(bench: Bench, how: Exception) -> None:
    bench.how = how
    bench.lose_reserves = 3
    bench.worker(threads=4)
    begin = time.monotonic()
    ids = bench.submit("quick", *range(20))
    bench.until(ids, "completed")
    assert time.monotonic() - begin < 2.0
    assert bench.lost, "no reply was lost"
    assert not set(bench.lost) & {pair for held in bench.attached_with for pair in held}
    assert bench.ran == Counter(range(20))
    assert {outcome.deaths for outcome in bench.here.queue.wait(ids, 0)} == {0}


def test_a_cut_while_tasks_run_loses_and_repeats_nothing(bench: Bench) -> None:
    bench.worker(threads=3)
    running = bench.submit("gated", 1, 2, 3)
    bench.until_begun(len(running))
    held = sorted((handout.id, handout.run) for handout in bench.attachment().held.values())
    bench.proxy.cut()
    wait_until(lambda: len(bench.attached_with) == 2, 5, "the worker to be back though all its threads are busy")
    assert sorted(bench.attached_with[-1]) == held
    bench.gate.set()
    bench.until(running, "completed")
    assert bench.ran == {1: 1, 2: 1, 3: 1}


def test_cuts_under_load_lose_and_repeat_nothing(bench: Bench) -> None:
    bench.worker(threads=4)
    bench.until(bench.submit("quick", *range(-50, 0)), "completed")
    ids: list[int] = []
    for turn in range(8):
        ids += bench.submit("quick", *range(turn * 500, turn * 500 + 500))
        bench.proxy.cut()
    bench.until(ids, "completed", 20)
    assert all(bench.ran[x] == 1 for x in range(4000))
    wait_until(lambda: not bench.attachment().held)


def test_a_new_epoch_of_the_manager_takes_over_what_runs(bench: Bench) -> None:
    bench.worker(threads=2)
    running = bench.submit("gated", 1, 2)
    bench.until_begun(len(running))
    bench.here.end()
    bench.here.begin()
    more = bench.submit("quick", 7)
    wait_until(lambda: len(bench.attached_with) >= 2, 5)
    bench.gate.set()
    bench.until([*running, *more], "completed")
    assert bench.ran == {1: 1, 2: 1, 7: 1}


def test_outcomes_that_finished_while_the_manager_was_away_are_kept_and_delivered(bench: Bench) -> None:
    made = bench.worker(threads=2)
    running = bench.submit("gated", 1, 2)
    bench.until_begun(len(running))
    bench.here.end()
    bench.gate.set()
    wait_until(lambda: made._backlog.under_way == 0)
    bench.here.begin()
    bench.until(running, "completed")
    assert sorted(id for id, _ in bench.attached_with[-1]) == running, "finished, but not delivered: still held"
    assert bench.ran == {1: 1, 2: 1}


def test_another_store_gets_nothing_of_the_former_ones_tasks(bench: Bench) -> None:
    """Both stores give the same ids and the same run numbers; a result must never land in the other store's task."""
    made = bench.worker(threads=2)
    (old,) = bench.submit("gated", 111)
    bench.until([old], "running")
    wait_until(lambda: bench.attachment().held)  # a little later than the queue says so
    (old_run,) = bench.attachment().held
    bench.here.end()
    bench.here.store = MemoryStore()
    bench.here.begin()
    wait_until(lambda: len(bench.attached_with) == 2)
    assert bench.attached_with[-1] == []
    (new,) = bench.submit("gated", 222)
    wait_until(lambda: bench.attachment().held)
    assert (new, list(bench.attachment().held)) == (old, [old_run])
    bench.gate.set()
    bench.until([new], "completed")
    wait_until(lambda: made._backlog.under_way == 0)
    assert decode(bench.here.queue.result(new).result or b"") == 222


def test_a_worker_that_was_reported_dead_leaves(bench: Bench) -> None:
    made = bench.worker()
    bench.until(bench.submit("gated", 1), "running")
    (incarnation,) = bench.here.queue._state.leases.workers
    bench.here.queue.child_died("p", incarnation, "by mistake", [], False, {})
    assert made.over.wait(5)
    assert not bench.left()


def test_a_report_that_the_manager_cannot_read_harms_only_itself(bench: Bench) -> None:
    bench.worker(threads=2)
    bench.bad_result = b"\xcd\x02\x9a"  # 666, encoded
    ids = bench.submit("quick", 1, 2, 666, 3)
    wait_until(lambda: bench.states(ids) == {"completed": 3, "failed": 1})
    outcome = bench.here.queue.result(ids[2])
    assert outcome.error is not None
    assert outcome.error[1] == "Malformed"


def test_a_task_is_not_offered_to_a_silent_worker_while_another_one_waits(bench: Bench) -> None:
    """The silent one has waited for longer; were it called for the task, the other one would sleep on."""
    bench.worker(threads=1)
    queue = bench.here.queue
    wait_until(lambda: seats(queue))
    (silent,) = queue._state.leases.workers.values()
    silent.beat_at -= 1000.0
    bench.worker(threads=1)
    wait_until(lambda: len(seats(queue)) == 2)
    begin = time.monotonic()
    bench.until(bench.submit("quick", 1), "completed")
    assert time.monotonic() - begin < 5.0


def test_a_worker_that_cannot_take_what_it_was_called_for_hands_the_call_on(bench: Bench) -> None:
    bench.worker(threads=1)
    queue = bench.here.queue
    wait_until(lambda: seats(queue))
    (silent,) = queue._state.leases.workers.values()
    bench.worker(threads=1)
    wait_until(lambda: len(seats(queue)) == 2)
    assert seats(queue)[0].worker is silent
    queue._waiting._may_reserve = lambda worker: True  # it was called just before it fell silent
    silent.beat_at -= 1000.0
    begin = time.monotonic()
    bench.until(bench.submit("quick", 1), "completed")
    assert time.monotonic() - begin < 5.0


# -- how much to take


def handouts(count: int, type: str = "t", first: int = 1) -> list[Handout]:
    return [Handout(n, n, type, b"", "q", 1, None, "", 0.0) for n in range(first, first + count)]


def test_wanted_is_what_free_threads_need() -> None:
    backlog = Backlog(4, held=())
    assert backlog.wanted() == (4, 0, [])
    backlog.add(handouts(3), Wanted(4, 0, []))
    assert backlog.wanted() == (1, 0, [])
    backlog.take()
    backlog.settle(0)
    assert backlog.wanted() == (2, 0, [])


def test_fast_types_are_taken_ahead_until_one_run_was_slow() -> None:
    backlog = Backlog(2, held=())
    backlog.note_run_time("t", 0.0001)
    assert backlog.wanted() == (2, EXTRA, ["t"])
    backlog.add(handouts(2 + EXTRA), backlog.wanted())
    assert backlog.wanted() == (0, 0, ["t"])
    while backlog.under_way > EXTRA // 2:
        backlog.take()
        backlog.settle(0)
    slots, extra, _ = backlog.wanted()
    assert (slots, extra > 0) == (0, True), "more is asked for before the threads are idle"
    backlog.add([], backlog.wanted())
    assert backlog.wanted() == (0, 0, ["t"]), "but not again and again when there is no more"
    backlog.note_run_time("t", 1.0)
    assert backlog.wanted().fast == []


def test_of_short_tasks_one_for_each_thread_is_taken_ahead_while_there_are_more() -> None:
    backlog = Backlog(2, held=())
    backlog.note_run_time("t", 0.010)
    asked = backlog.wanted()
    assert asked == (2, 2, ["t"])
    backlog.add(handouts(4), asked)
    assert backlog.wanted() == (0, 0, ["t"]), "two run, two wait"
    for _ in range(3):
        backlog.take()
    backlog.settle(0)
    asked = backlog.wanted()
    assert asked == (0, 1, ["t"]), "two run, one waits"
    backlog.add([], asked)
    assert backlog.wanted() == (0, 0, ["t"]), "there are no more"
    backlog.take()
    backlog.settle(1)
    backlog.settle(0)
    asked = backlog.wanted()
    assert asked == (1, 2, ["t"])
    backlog.add(handouts(1, first=5), asked)
    assert backlog.wanted() == (0, 0, ["t"]), "no more than the free thread needs was there"
    backlog.note_run_time("t", 1.0)
    assert backlog.wanted().fast == []


def test_nothing_is_taken_beyond_what_one_attach_can_tell() -> None:
    held: list[int] = list(range(998))
    backlog = Backlog(4, held)
    backlog.note_run_time("t", 0.0001)
    assert backlog.wanted() == (2, 0, ["t"])
    held += [1, 2]
    assert backlog.wanted() == (0, 0, ["t"])
    assert not backlog.wait(0.01)
    waiting = threading.Thread(target=lambda: woken.append(backlog.wait(10)))
    woken: list[bool] = []
    waiting.start()
    wait_until(lambda: backlog._hungry)
    held.clear()
    backlog.delivered()
    waiting.join(5)
    assert woken == [True]


def test_what_is_taken_back_is_not_under_way() -> None:
    backlog = Backlog(1, held=())
    backlog.add(handouts(5), Wanted(1, 4, ["t"]))
    first = backlog.take()
    assert first is not None
    assert [handout.id for handout in backlog.take_back()] == [2, 3, 4, 5]
    assert backlog.under_way == 1


def test_outcomes_of_what_is_not_held_are_never_sent(bench: Bench) -> None:
    """The very hand-out is the proof, not its run number."""
    bench.worker()
    stray = handouts(1, first=10**6)[0]
    assert bench.attachment().report([Outcome(stray, (0, stray.id, stray.run, b"", 0.1))])
    assert bench.here.queue.snapshot()["totals"].get("completed", 0) == 0
