"""Cables that are cut, stalled and treat bytes badly, under load: nothing is lost, and nothing runs twice.

A cut is no proof of a death, so no cut here is an excuse for a second run: the checker is told of no fault at all.
(Two machines whose link is set down are in `test_second_machine`, which also sees how soon that is noticed.)
"""

from __future__ import annotations

import dataclasses
import os
import random
import secrets
import threading
import time
from collections.abc import Callable

import psutil
import pytest
from bad_cable import GOOD, KINDS, Cable
from checker import check, read_sqlite, told
from cluster import Cluster, wait_until
from history import HistoryFile, HistoryList, read_history
from observed import observe
from storm_submitter import batches, submit
from traces import MODULE, write_module

from taskq.config import Join
from taskq.errors import TaskqError
from taskq.queue.task import State, new_task
from taskq.wire.client import RemoteQueue
from taskq.wire.codec import encode_arguments

SEEDS = [int(seed) for seed in os.environ.get("PARTITION_SEEDS", "1").split(",")]
SUBMITTERS = 6
BACK_WITHIN = 30.0
"""Seconds from the last fault until tasks run again: who waits for bytes that were lost waits for his deadline."""
LIMIT = 30.0 + 0.2 + 30.0
"""Seconds within which everything is over after the last fault: lease, largest backoff, and 30."""


def bring(queue: RemoteQueue, history: HistoryFile, part: int, tasks: int, seed: int, over: threading.Event) -> None:
    """Submit tasks, in batches, with short rests; all of them, whatever the cable does."""
    rng, client = random.Random(seed * 1_000 + part), secrets.randbits(63)
    for seq, batch in enumerate(batches(part, tasks, rng), 1):
        submit(queue, history, client, seq, batch)
        if not over.is_set():
            time.sleep(rng.uniform(0.0, 0.4))


def look(cable: Cable, way: Join, over: threading.Event, wrong: list[BaseException]) -> None:
    """Ask the manager who it is, each time on a new connection: so that each fault meets handshakes too."""
    while not over.wait(0.05):
        queue = RemoteQueue(way, connect_timeout=0.5)
        try:
            queue.hello()
        except TaskqError:
            pass
        except BaseException as error:
            wrong.append(error)
        finally:
            queue.close()


def strike(cables: list[Cable], rng: random.Random, cuts: int, longest: float) -> None:
    """Treat the cables badly, one fault after the other, each kind as often as all others."""
    for number in range(cuts):
        for cable in cables:
            cable.turn(KINDS[(number + cables.index(cable)) % len(KINDS)] if rng.random() < 0.8 else GOOD)
        time.sleep(min(longest, 0.1 + rng.expovariate(1.0)))  # for so long it lasts
        for cable in cables:
            cable.turn(GOOD)
        time.sleep(rng.uniform(0.1, 0.6))


def serve_again(cluster: Cluster, history: HistoryList) -> float:
    """Submit a task past the cables that goes before all others; gives the seconds until a worker has done it."""
    began, item = time.monotonic(), new_task("quick", encode_arguments((10**9,), {}), priority=100)
    call = history.submit(1, 1, [(item.terms.type, item.payload, item.key)])
    service = RemoteQueue(cluster.join)
    (id,) = service.submit(1, 1, [item]).ids
    history.ok(call, ids=[id], existing=[])
    wait_until(lambda: service.result(id).state == "completed", BACK_WITHIN, "a worker to be back")
    service.close()
    return time.monotonic() - began


def run(cluster: Cluster, seed: int, cuts: int, tasks: int, longest: float) -> dict[str, object]:
    """Load, faults, and the end of both; gives figures, ``violations`` among them."""
    rng, nemesis = random.Random(seed), HistoryList("nemesis")
    write_module(cluster.folder, history=True)
    manager = cluster.manager("--tasks", MODULE, workers=0)
    base = psutil.Process(manager.pid).num_fds(), psutil.Process(manager.pid).num_threads()
    cables = [Cable(cluster.join.addresses[0], seed), Cable(cluster.join.addresses[0], seed + 1)]
    ways = [dataclasses.replace(cluster.join, addresses=(cable.address,)) for cable in cables]
    pool = cluster.start("worker", "--join", "-", "--tasks", MODULE, "--workers", 2, "--threads", 2,
                         stdin=ways[0].to_json())  # fmt: skip
    wait_until(lambda: len(cluster.snapshot()["workers"]) == 2, 20.0, "the pool to join")
    queues = [RemoteQueue(ways[1], connect_timeout=2.0) for _ in range(SUBMITTERS)]
    histories = [HistoryFile(cluster.folder, f"submitter{part}") for part in range(SUBMITTERS)]
    over, wrong = threading.Event(), list[BaseException]()
    onlookers = [threading.Thread(target=look, args=(*pair, over, wrong)) for pair in zip(cables, ways, strict=True)]
    threads = [
        threading.Thread(target=bring, args=(queue, history, part, tasks // SUBMITTERS, seed, over))
        for part, (queue, history) in enumerate(zip(queues, histories, strict=True))
    ]
    try:
        for thread in (*threads, *onlookers):
            thread.start()
        strike(cables, rng, cuts, longest)
        over.set()
        nemesis.phase("faults over")
        back = serve_again(cluster, nemesis)
        for thread in threads:
            thread.join(90)
        wait_until(lambda: _idle(cluster), 60.0, "all tasks to be over")
        nemesis.phase("idle")
        pool.stop()  # while it can still say goodbye
    finally:
        over.set()
        for one in (*queues, *histories, *cables):
            one.close()
        for thread in onlookers:
            thread.join(30)
    found = psutil.Process(manager.pid)
    wait_until(lambda: found.num_fds() <= base[0] and found.num_threads() <= base[1] + 1, 60.0, f"no more than {base}")
    manager.stop()
    seen = observe([*read_history(cluster.folder), *nemesis.records])
    stored = read_sqlite(cluster.state / "store.sqlite")
    return {
        "seed": seed,
        "cuts": cuts,
        "struck": {kind: sum(cable.struck[kind] for cable in cables) for kind in KINDS},
        "acknowledged": len({id for one in seen.acknowledged("submit") for id in one.reply["ids"]}),
        "completed": sum(row.state == State.COMPLETED for row in stored.tasks.values()),
        "unanswered": sum(one.outcome == "unknown" for one in seen.tries),
        "deaths": sum(row.deaths for row in stored.tasks.values()),
        "back": round(back, 2),
        "wrong": wrong,
        "violations": check(seen, stored, limit=LIMIT),
    }


def _idle(cluster: Cluster) -> bool:
    queues = cluster.snapshot()["queues"]
    return not any(queue["pending"] + queue["running"] + queue["scheduled"] for queue in queues)


def verdict(figures: dict[str, object], record: Callable[[str, object], None]) -> None:
    """Print the figures, and fail where a promise was broken."""
    for name, value in figures.items():
        record(name, str(value))
    print("T7:", ", ".join(f"{name} {value}" for name, value in figures.items() if name != "violations"))
    violations = figures["violations"]
    again = f"again: PARTITION_SEEDS={figures['seed']} python -m pytest tests/eval/test_partitions.py"
    assert isinstance(violations, list) and not violations, f"{told(violations)}\n{again}"
    assert not figures["wrong"], "not an error of taskq's"
    assert figures["acknowledged"] == figures["completed"] and figures["deaths"] == 0
    assert isinstance(figures["unanswered"], int) and figures["unanswered"] > 3, "nobody noticed anything"
    assert isinstance(figures["struck"], dict) and all(figures["struck"].values()), "a kind of fault hit nothing"


@pytest.mark.timeout(200)
@pytest.mark.parametrize("seed", SEEDS)
def test_bad_cables_lose_nothing_and_repeat_nothing(
    cluster: Cluster, seed: int, record_property: Callable[[str, object], None]
) -> None:
    verdict(run(cluster, seed, 20, 1_800, 3.0), record_property)


@pytest.mark.full
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("seed", range(1, 4))
def test_bad_cables_for_long(cluster: Cluster, seed: int, record_property: Callable[[str, object], None]) -> None:
    verdict(run(cluster, seed, 150, 10_000, 12.0), record_property)
