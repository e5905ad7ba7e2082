"""Cables that are cut, stalled and treat bytes badly, under load: nothing is lost, and nothing runs twice without need.

A cut is no proof of a death, so no short cut is an excuse for a second run: the checker hears only of those of a pool
that outlast its leases. (Two machines whose link is set down are in `test_second_machine`, which also sees how soon
that is noticed.)
"""

from __future__ import annotations

import dataclasses
import os
import random
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from bad_cable import GOOD, KINDS, Cable
from checker import check, read_sqlite, told
from cluster import Cluster, Process, wait_until
from history import HistoryFile, HistoryList, boot_time, read_history
from observed import observe
from storm_submitter import batches, submit
from traces import MODULE, write_module

from taskq.config import Join
from taskq.errors import TaskqError
from taskq.queue.task import State
from taskq.queue.terms import new_task
from taskq.wire.client import CALL_TIMEOUT, RemoteQueue
from taskq.wire.codec import encode_arguments

SEEDS = [int(seed) for seed in os.environ.get("PARTITION_SEEDS", "1").split(",")]
SUBMITTERS = 6
LEASE = 30.0
BEAT = LEASE / 3
LONG = (33.0, 40.0)
"""Seconds of a cut that outlasts the leases."""
SHORT = 3.0
"""Seconds of the others, at most."""
AWAKE = 3.0
"""Seconds within which a pool has noticed what it has missed."""
BACK_WITHIN = 5.0
"""Seconds from the last fault until every worker process runs tasks again; who waits for bytes that were lost waits for
his deadline."""
LIMIT = LEASE + 0.2 + 30.0
"""Seconds within which everything is over after the last fault: lease, largest backoff, and 30."""


@dataclass
class Line:
    """A cable, and whose it is. ``workers``: pids of the pool's worker processes at its end; none of submitters."""

    cable: Cable
    way: Join
    rng: random.Random
    workers: tuple[str, ...] = ()
    waited_for: float = 0.0
    """Monotonic seconds until which somebody may wait for bytes that were lost."""

    def strike(self, faults: list[tuple[str, float]], history: HistoryList) -> None:
        """Treat the cable badly, in one (kind, seconds) after the other."""
        for kind, seconds in faults:
            if self.workers and seconds > LEASE - BEAT:
                grace, until = LEASE - BEAT, boot_time() + seconds + AWAKE
                history.fault("cut", workers=self.workers, grace=grace, until=until)
            self.cable.turn(kind)
            time.sleep(seconds)  # for so long it lasts
            self.cable.turn(GOOD)
            if kind == "drop":
                self.waited_for = time.monotonic() + CALL_TIMEOUT
            time.sleep(self.rng.uniform(0.1, 0.6))

    def short(self, count: int) -> list[tuple[str, float]]:
        """So many faults, each kind as often as all others."""
        first = self.rng.randrange(len(KINDS))
        kinds = [KINDS[(first + number) % len(KINDS)] for number in range(count)]
        return [(kind, min(SHORT, 0.1 + self.rng.expovariate(1.0))) for kind in kinds]

    def with_long(self, count: int) -> list[tuple[str, float]]:
        """So many faults, one in seven of them a cut that outlasts the leases; the last fault is such a one."""
        faults = self.short(count - count // 7)
        for place in range(count // 7):
            faults.insert(self.rng.randrange(len(faults)) if place else len(faults), ("stall", self.rng.uniform(*LONG)))
        return faults


def bring(queue: RemoteQueue, history: HistoryFile, part: int, tasks: int, seed: int, over: threading.Event) -> None:
    """Submit tasks, in batches, with short rests; all of them, whatever the cable does."""
    rng, client = random.Random(seed * 1_000 + part), secrets.randbits(63)
    for seq, batch in enumerate(batches(part, tasks, rng), 1):
        submit(queue, history, client, seq, batch)
        if not over.is_set():
            time.sleep(rng.uniform(0.0, 3.0))


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


def back(cluster: Cluster, line: Line, history: HistoryList) -> float:
    """Submit naps past the cables, that go before all others; gives the seconds until every worker has begun one."""
    began, client, seq = time.monotonic(), secrets.randbits(63), 0
    limit = max(began, line.waited_for) + BACK_WITHIN
    before = {pid: _traced(cluster.folder, pid) for pid in line.workers}
    service, away = RemoteQueue(cluster.join), set(line.workers)
    while away and time.monotonic() < limit:
        seq += 1
        items = [new_task("nap", encode_arguments((client + 10 * seq + n, 0.1), {}), priority=100) for n in range(8)]
        call = history.submit(client, seq, [(item.terms.type, item.payload, item.key) for item in items])
        history.ok(call, ids=list(service.submit(client, seq, items).ids), existing=[])
        time.sleep(0.2)
        away = {pid for pid in away if _traced(cluster.folder, pid) == before[pid]}
    service.close()
    assert not away, f"{len(away)} of {len(line.workers)} workers are not back after {time.monotonic() - began:.1f} s"
    return time.monotonic() - began


def _traced(folder: Path, pid: str) -> int:
    file = folder / f"trace-{pid}"
    return file.stat().st_size if file.exists() else 0


def join(cluster: Cluster, line: Line) -> Process:
    """A pool at the end of a cable."""
    known = {found.pid for found in cluster.worker_processes()}
    options = ("--join", "-", "--tasks", MODULE, "--workers", 2, "--threads", 2)
    pool = cluster.start("worker", *options, stdin=line.way.to_json())
    wait_until(lambda: len(cluster.snapshot()["workers"]) == len(known) + 2, 20.0, "the pool to join")
    line.workers = tuple(str(found.pid) for found in cluster.worker_processes() if found.pid not in known)
    return pool


def lay(cluster: Cluster, seed: int) -> list[Line]:
    """Four cables to the manager: two for pools, two for submitters."""
    lines = []
    for number in range(4):
        cable = Cable(cluster.join.addresses[0], seed + number)
        way = dataclasses.replace(cluster.join, addresses=(cable.address,))
        lines.append(Line(cable, way, random.Random(seed * 1_000 + number)))
    return lines


def run(cluster: Cluster, seed: int, cuts: int, tasks: int) -> dict[str, object]:
    """Load, faults, and the end of both; gives figures, ``violations`` among them."""
    nemesis = HistoryList("nemesis")
    write_module(cluster.folder, history=True)
    manager = cluster.manager("--tasks", MODULE, "--lease", f"{LEASE}s", workers=0)
    found = psutil.Process(manager.pid)
    base = found.num_fds(), found.num_threads()
    lines = lay(cluster, seed)
    pools = [join(cluster, line) for line in lines[:2]]
    queues = [RemoteQueue(lines[2 + part % 2].way, connect_timeout=2.0) for part in range(SUBMITTERS)]
    histories = [HistoryFile(cluster.folder, f"submitter{part}") for part in range(SUBMITTERS)]
    over, wrong = threading.Event(), list[BaseException]()
    onlookers = [threading.Thread(target=look, args=(line.cable, line.way, over, wrong)) for line in lines]
    threads = [
        threading.Thread(target=bring, args=(queue, history, part, tasks // SUBMITTERS, seed, over))
        for part, (queue, history) in enumerate(zip(queues, histories, strict=True))
    ]
    plans = [line.with_long(cuts * 7 // 30) for line in lines[:2]] + [line.short(cuts * 8 // 30) for line in lines[2:]]
    strikes = [
        threading.Thread(target=line.strike, args=(plan, nemesis)) for line, plan in zip(lines, plans, strict=True)
    ]
    try:
        for thread in (*threads, *onlookers, *strikes):
            thread.start()
        for thread in strikes:
            thread.join()
        over.set()
        nemesis.phase("faults over")
        took = [round(back(cluster, line, nemesis), 1) for line in lines[:2]]
        for thread in threads:
            thread.join(90)
        wait_until(lambda: _idle(cluster), 60.0, "all tasks to be over")
        nemesis.phase("idle")
        for pool in pools:
            pool.stop()  # while it can still say goodbye
    finally:
        over.set()
        for one in (*queues, *histories, *(line.cable for line in lines)):
            one.close()
        for thread in (*onlookers, *strikes):
            thread.join(60)
    wait_until(lambda: found.num_fds() <= base[0] and found.num_threads() <= base[1] + 1, 60.0, f"no more than {base}")
    manager.stop()
    lasted = [seconds for plan in plans for _, seconds in plan]
    struck = {kind: sum(line.cable.struck[kind] for line in lines) for kind in KINDS}
    known = {"seed": seed, "struck": struck, "back": took, "wrong": wrong}
    return {**known, **lengths(lasted), **judge(cluster, nemesis)}


def lengths(lasted: list[float]) -> dict[str, object]:
    """Figures of cuts that lasted so many seconds each."""
    return {
        "cuts": len(lasted),
        "seconds": f"{min(lasted):.1f} to {max(lasted):.1f}",
        "longer than the lease": sum(seconds > LEASE for seconds in lasted),
    }


def judge(cluster: Cluster, nemesis: HistoryList) -> dict[str, object]:
    """Figures of what the store and the histories say, ``violations`` among them."""
    note_deaths(cluster, nemesis)
    seen = observe([*read_history(cluster.folder), *nemesis.records])
    stored = read_sqlite(cluster.state / "store.sqlite")
    return {
        "acknowledged": len({id for one in seen.acknowledged("submit") for id in one.reply["ids"]}),
        "completed": sum(row.state == State.COMPLETED for row in stored.tasks.values()),
        "unanswered": sum(one.outcome == "unknown" for one in seen.tries),
        "run again": sum(len(runs) > 1 for runs in seen.runs.values()),
        "deaths": sum(row.deaths for row in stored.tasks.values()),
        "violations": check(seen, stored, limit=LIMIT),
    }


def note_deaths(cluster: Cluster, nemesis: HistoryList) -> None:
    """Write into the history which runs the manager may have taken for dead: those that a long cut may have hit."""
    runs = [run for runs in observe(read_history(cluster.folder)).runs.values() for run in runs.values()]
    for cut in [record for record in nemesis.records if record.get("kind") == "cut"]:
        hit = [run for run in runs if run.worker in cut["workers"] and run.at <= cut["until"]]
        deaths = [(run.task, run.run) for run in hit if run.over >= cut["at"] - 1.0]
        nemesis.fault("death possible", deaths=deaths)


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
    assert figures["acknowledged"] == figures["completed"]
    assert isinstance(figures["unanswered"], int) and figures["unanswered"] > 3, "nobody noticed anything"
    assert isinstance(figures["struck"], dict) and all(figures["struck"].values()), "a kind of fault hit nothing"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", SEEDS)
def test_bad_cables_lose_nothing_and_repeat_nothing_without_need(
    cluster: Cluster, seed: int, record_property: Callable[[str, object], None]
) -> None:
    verdict(run(cluster, seed, 30, 1_800), record_property)


@pytest.mark.full
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("seed", range(1, 4))
def test_bad_cables_for_long(cluster: Cluster, seed: int, record_property: Callable[[str, object], None]) -> None:
    verdict(run(cluster, seed, 300, 20_000), record_property)
