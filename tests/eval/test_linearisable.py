"""Eight clients at once, and every reply is one that a queue would give that does one thing at a time."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from linearisability import Model, Op, explain

from taskq.clock import SystemClock
from taskq.config import QueueSettings
from taskq.queue.client_verbs import ClientVerbs
from taskq.queue.job_queue import JobQueue
from taskq.queue.terms import new_task
from taskq.shapes import ACK, GIVE_BACK
from taskq.stores.base import Store
from taskq.stores.memory import MemoryStore
from taskq.stores.sqlite import SqliteStore

CLIENTS, CALLS = 8, 60
KEYS = ("a", "b", "c")
VERBS = {"submit": 5, "reserve": 5, "ack": 4, "give_back": 1, "cancel": 2, "state": 3}
NOOP = {"name": "x", "parameters": (), "queue": "default", "max_retries": 0, "backoff": 1.0, "timeout": None}


class Clients:
    """Concurrent clients of one queue, each a worker too, and what they asked and heard."""

    def __init__(self, queue: JobQueue, seed: int) -> None:
        self.history: list[Op] = []
        self._queue = queue
        self._seed = seed
        self._times = itertools.count()
        self._ids = [1]
        self._runs: list[tuple[int, int]] = []
        self._sessions = [self._join(number) for number in range(CLIENTS)]

    def _join(self, number: int) -> int:
        info: Any = {
            "incarnation": f"w{number}",
            "pool": {"id": "p", "name": "p", "host": "h", "pid": 1, "local": None},
            **{"name": f"p/{number}", "host": "h", "pid": 2, "threads": 100, "queues": ()},
            "types": [{**NOOP, "workers": 0}],
        }
        return self._queue.attach(info, ())["session"]

    def run(self) -> list[Op]:
        """All calls of all clients, begun together; gives the history."""
        together = threading.Barrier(CLIENTS)
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda number: self._client(number, together), range(CLIENTS)))
        return self.history

    def _client(self, number: int, together: threading.Barrier) -> None:
        chance = random.Random(f"{self._seed} {number}")
        mine: list[tuple[int, int]] = []
        together.wait(30)
        for seq in range(1, CALLS // CLIENTS + 2):
            (verb,) = chance.choices(list(VERBS), list(VERBS.values()))
            args: tuple[Any, ...] = ()
            if verb == "submit":
                args = (chance.choice((None, *KEYS)),)
            elif verb in ("cancel", "state"):
                args = (chance.choice(self._ids),)
            elif verb in ("ack", "give_back"):
                if not mine:
                    continue
                args = chance.choice(mine)  # it may be over: then the reply must say so
            start = next(self._times)
            reply = self._call(verb, number, seq, *args)
            self.history.append(Op(number, verb, args, reply, start, next(self._times)))
            if verb == "submit":
                self._ids.append(reply[0])
            elif verb == "reserve" and reply:
                mine.append(reply)

    def _call(self, verb: str, number: int, seq: int, *args: Any) -> Any:
        queue, name, session = self._queue, f"w{number}", self._sessions[number]
        match verb:
            case "submit":
                reply = queue.submit(number + 1, seq, [new_task("x", b"p", key=args[0])])
                return reply.ids[0], bool(reply.existing)
            case "reserve":
                tasks = queue.reserve(name, session, 1, 0, (), 0.0).tasks
                return (tasks[0].id, tasks[0].run) if tasks else ()
            case "ack":
                return not queue.report(name, session, [(ACK, *args, b"r", 0.001)])
            case "give_back":
                return not queue.report(name, session, [(GIVE_BACK, *args)])
            case "cancel":
                return queue.cancel([args[0]])[0]
            case _:
                return queue.wait([args[0]], 0)[0].state


STORES: dict[str, Callable[[Path], Store]] = {
    "memory": lambda folder: MemoryStore(),
    "sqlite": lambda folder: SqliteStore(folder / "store.sqlite", free_mark=0, reserve=0),
}


def history_of(seed: int, store: Store, kind: type[JobQueue] = JobQueue) -> list[Op]:
    queue = kind(store, SystemClock(), QueueSettings())
    queue.open()
    queue.start()
    try:
        return Clients(queue, seed).run()
    finally:
        queue.close()


def check(seeds: Sequence[int], store: str, folder: Path, kind: type[JobQueue] = JobQueue) -> tuple[int, list[int]]:
    """Make a history of each seed; gives the number of calls, and the seeds that no order explains."""
    calls, wrong = 0, []
    for seed in seeds:
        place = folder / str(seed)
        place.mkdir()
        history = history_of(seed, STORES[store](place), kind)
        calls += len(history)
        if explain(history) is None:
            wrong.append(seed)
            (place / "history").write_text("\n".join(map(str, sorted(history, key=lambda op: op.start))))
    return calls, wrong


def tell(store: str, count: int, calls: int, wrong: list[int], record_property: Callable[[str, object], None]) -> None:
    for name, value in (("histories", count), ("calls", calls), ("not_linearisable", len(wrong))):
        record_property(name, value)
    print(f"T6: {store}: {count:,} histories, {calls:,} calls of {CLIENTS} clients, {len(wrong)} not linearisable")


@pytest.mark.parametrize("store", STORES)
def test_every_history_is_linearisable(
    store: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    seeds = range(1, 101)
    calls, wrong = check(seeds, store, tmp_path)
    tell(store, len(seeds), calls, wrong, record_property)
    assert not wrong, f"seeds {wrong}; their histories are in {tmp_path}/SEED/history"


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("store", STORES)
def test_thousands_of_histories_are_linearisable(
    store: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    seeds = range(1_001, 3_501)
    calls, wrong = check(seeds, store, tmp_path)
    tell(store, len(seeds), calls, wrong, record_property)
    assert not wrong, f"seeds {wrong}; their histories are in {tmp_path}/SEED/history"


# -- queues with a mistake in them: each must be caught


class KeysCheckedOutside(JobQueue):
    """Whether a key is known is looked up in the store, and not again under the lock."""

    def submit(self, client: int, seq: int, items: Any) -> Any:
        known = self._store.find_keys([item.key for item in items if item.key is not None])
        self.__dict__.setdefault("known", {})[client] = known
        time.sleep(0.002)  # long enough for somebody else to come in between
        return super().submit(client, seq, items)

    def _accept(self, client: int, seq: int, items: Any, digest: bytes, known: Any) -> Any:
        return super()._accept(client, seq, items, digest, self.__dict__["known"][client])


class StaleStates(JobQueue):
    """A state that was told once is told again."""

    def wait(self, ids: Sequence[int], timeout: float) -> Any:
        told = self.__dict__.setdefault("told", {})
        found = told.get(ids[0]) or ClientVerbs.wait(self, ids, timeout)
        if found[0].state != "unknown":
            told[ids[0]] = found
        return found


class AnswersTooEarly(JobQueue):
    """A cancel is answered first and done later."""

    def cancel(self, ids: Sequence[int]) -> Any:
        state = self.wait(ids, 0)[0].state
        later = threading.Timer(0.01, ClientVerbs.cancel, (self, ids))
        later.start()
        self.__dict__.setdefault("later", []).append(later)
        return ["cancelled" if state == "pending" else state]

    def close(self) -> None:
        for later in self.__dict__.get("later", ()):
            later.join()
        super().close()


@pytest.mark.parametrize("kind", [KeysCheckedOutside, StaleStates, AnswersTooEarly])
def test_a_queue_with_a_mistake_is_caught(kind: type[JobQueue], tmp_path: Path) -> None:
    _, wrong = check(range(1, 11), "memory", tmp_path, kind)
    assert wrong


# -- the search itself


def op(verb: str, args: tuple[Any, ...], reply: Any, start: float, end: float) -> Op:
    return Op(0, verb, args, reply, start, end)


def test_calls_that_overlap_may_have_happened_in_either_order() -> None:
    first, second = op("submit", ("a",), (1, True), 0, 3), op("submit", ("a",), (1, False), 1, 2)
    assert explain([first, second]) == [second, first]
    assert explain([first._replace(end=0.5), second]) is None, "the one that ended first came first"


def test_a_task_is_handed_out_once_and_in_order() -> None:
    submits = [op("submit", (None,), (1, False), 0, 1), op("submit", (None,), (2, False), 2, 3)]
    assert explain([*submits, op("reserve", (), (1, 5), 4, 5), op("reserve", (), (2, 6), 6, 7)])
    assert explain([*submits, op("reserve", (), (1, 5), 4, 5), op("reserve", (), (1, 6), 6, 7)]) is None
    assert explain([*submits, op("reserve", (), (2, 5), 4, 5)]) is None
    assert explain([*submits, op("reserve", (), (1, 6), 4, 5), op("reserve", (), (2, 5), 6, 7)]) is None
    assert explain([*submits, op("reserve", (), (), 4, 5)]) is None


def test_a_call_without_an_answer_happened_or_not() -> None:
    lost = Op(0, "submit", ("a",), None, 0)
    assert explain([lost, op("state", (1,), "pending", 2, 3)])
    assert explain([lost, op("state", (1,), "unknown", 2, 3)])
    assert explain([lost, op("state", (1,), "pending", 2, 3), op("state", (1,), "unknown", 4, 5)]) is None


def test_an_outcome_is_taken_once() -> None:
    def history(second: bool) -> Iterator[Op]:
        yield op("submit", (None,), (1, False), 0, 1)
        yield op("reserve", (), (1, 9), 2, 3)
        yield op("ack", (1, 9), True, 4, 5)
        yield op("ack", (1, 9), second, 6, 7)

    assert explain(list(history(False)))
    assert explain(list(history(True))) is None
    assert explain([op("ack", (1, 9), True, 0, 1)], Model(tasks=(("running", 9),)))
