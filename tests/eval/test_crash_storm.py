"""The crash storm: managers and worker processes are killed and paused under load; nothing is lost or doubled.

Four submitters bring 8,000 tasks, two pools run them; kill -9 hits managers (with tasks under way, while they start,
with their own pool left behind) and worker processes, which are also stopped and let go on. When it is over, the
checker holds what submitters were told, what tasks did, and the pools' own words about deaths against the record. The
seed fixes what is submitted, who is hit and at which point of the work; ``STORM_SEEDS=2,3,4`` runs others.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from checker import check, read_sqlite, told
from cluster import Cluster, Process, wait_until
from history import HistoryList, boot_time, read_history
from observed import RUNS_PER_EPOCH, observe
from traces import MODULE, progress, running, traces, write_module

from taskq.errors import TaskqError
from taskq.queue.task import State
from taskq.wire.client import RemoteQueue

SEEDS = [int(seed) for seed in os.environ.get("STORM_SEEDS", "1").split(",")]
SUBMITTERS = 4
THREADS = 2
PAUSES = 0.25
"""Pauses (SIGSTOP, later SIGCONT) for each worker process that is killed."""
LONGEST_PAUSE = 6.0
"""Seconds; the lease is longer, so that a pause alone costs nothing."""
LONG_PAUSE = 60.0
"""Seconds, in long storms: twice the lease."""
EXPIRES_AFTER = 20.0
"""Seconds of silence after which a lease may be over at the earliest: a heartbeat comes every third of it."""
AWAKE = 1.0
"""Seconds within which a process that goes on has noticed what it has missed."""
SETTLED = 1.0
"""Seconds that a manager must have lived after a death for that to be in its record."""
LIMIT = 30.0 + 4.0 + 30.0
"""Seconds within which everything is over after the last fault: lease, largest backoff, and 30."""
CONNECTIONS = 2 + 2 * 4
"""Of a manager with two pools of two worker processes each: one for each parent, two for each process."""
SUBMITTER = Path(__file__).resolve().parent.parent / "storm_submitter.py"
DEATH = re.compile(r"worker process \d+ \(pid (\d+)\) ended with signal 9 \(SIGKILL\)(?:, running ([a-z0-9, ]*))?")


class Kill(NamedTuple):
    """A worker process that was killed. ``epoch``: of the manager that was there (0: none was)."""

    pid: int
    at: float
    epoch: int


@dataclass
class Reign:
    """The time of one manager that got as far as to be ready; monotonic seconds."""

    epoch: int
    until: float = float("inf")


@dataclass
class Storm:
    """The cluster under fire. ``asleep``: until when (monotonic seconds) stopped processes are to stay so.

    ``struck``: how often each task was running in a worker process that was killed.
    """

    cluster: Cluster
    rng: random.Random
    tasks: int
    seed: int
    history: HistoryList = field(default_factory=lambda: HistoryList("nemesis"))
    asleep: dict[psutil.Process, float] = field(default_factory=dict)
    kills: list[Kill] = field(default_factory=list)
    struck: Counter[int] = field(default_factory=Counter)
    longest_pause: float = LONGEST_PAUSE
    pauses: int = 0
    reigns: list[Reign] = field(default_factory=list)
    manager: Process | None = None

    # -- managers

    def begin(self) -> None:
        """Start a manager with a pool of its own, and wait until it is ready."""
        self.manager = self.cluster.manager("--tasks", MODULE, "--max-pending", 400, workers=2, threads=THREADS)
        queue = RemoteQueue(self.cluster.join)
        self.reigns.append(Reign(queue.hello()["epoch"]))
        queue.close()

    def kill_manager(self) -> None:
        """Kill it. In one of three cases its successor dies too, before it is ready."""
        assert self.manager is not None
        self.manager.kill()
        self.history.fault("manager killed")
        self.reigns[-1].until = time.monotonic()
        if self.rng.random() < 0.5:
            self.kill_worker(manager_is_there=False)
        if self.rng.random() < 0.34:
            options = ("--port", 0, "--tasks", MODULE, "--max-pending", 400, "--workers", 2, "--threads", THREADS)
            early = self.cluster.start("manager", *options)
            wait_until(lambda: self._answers(early), 30.0, "the manager to answer")
            early.kill()
        self.begin()

    def _answers(self, process: Process) -> bool:
        queue = RemoteQueue(self.cluster.join, connect_timeout=1.0)
        try:
            return queue.hello()["pid"] == process.pid
        except TaskqError:
            return False
        finally:
            queue.close()

    # -- workers

    def kill_worker(self, *, manager_is_there: bool = True) -> None:
        """Kill any worker process that runs now: of the manager's pool, of an earlier one's, of the attached one."""
        victim = self.rng.choice(wait_until(self._victims, 20.0, "a worker process"))
        with contextlib.suppress(psutil.NoSuchProcess):  # an orphan may leave by itself just now
            victim.suspend()  # so that nothing begins between the look and the kill
            if victim not in self._victims():
                victim.resume()
                return self.kill_worker(manager_is_there=manager_is_there)
            self.struck.update(running(self.cluster.folder, victim.pid))
            victim.kill()
            self.asleep.pop(victim, None)
            self.history.fault("kill", workers=[str(victim.pid)])
            self.kills.append(Kill(victim.pid, time.monotonic(), self.reigns[-1].epoch if manager_is_there else 0))

    def _victims(self) -> list[psutil.Process]:
        """All worker processes but those with a task that has died twice: a third time would rightly poison it.

        Pools tell of tasks that had begun without a trace of it, and nobody tells of the orphans of a pool.
        """
        told = Counter(id for _, ids in told_deaths(self.cluster) for id in ids)
        spared = {id for id, times in (told | self.struck).items() if times > 1}
        found = sorted(self.cluster.worker_processes(), key=lambda process: process.pid)
        return [one for one in found if spared.isdisjoint(running(self.cluster.folder, one.pid))]

    def pause_worker(self) -> None:
        """SIGSTOP, for some seconds."""
        awake = [one for one in self.cluster.worker_processes() if one not in self.asleep]
        if len(awake) > 2:  # somebody must go on, or no further point of the work is ever reached
            victim, seconds = self.rng.choice(awake), self.rng.uniform(1.0, self.longest_pause)
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.suspend()
                self.asleep[victim] = time.monotonic() + seconds
                self.history.fault("pause", workers=[str(victim.pid)], until=boot_time() + seconds + AWAKE)
                self.pauses += 1

    def wake(self, now: float) -> None:
        """SIGCONT to those whose time has come."""
        for process in [one for one, until in self.asleep.items() if until <= now]:
            del self.asleep[process]
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def rage(self, manager_kills: int, worker_kills: int) -> None:
        """Strike at points of the work that are spread over all of it."""
        events: list[Callable[[], None]] = [self.kill_manager] * manager_kills + [self.kill_worker] * worker_kills
        events += [self.pause_worker] * round(worker_kills * PAUSES)
        self.rng.shuffle(events)
        work = 2 * self.tasks  # lines: a begin and an end for each task
        points = sorted(self.rng.uniform(0.01, 0.93) * work for _ in events)
        for point, event in zip(points, events, strict=True):
            wait_until(lambda: self._reached(point), 60.0, f"{point:.0f} lines")  # noqa: B023
            event()
        self.wake(float("inf"))
        self.history.phase("faults over")

    def _reached(self, point: float) -> bool:
        self.wake(time.monotonic())
        return progress(self.cluster.folder) >= point


@contextlib.contextmanager
def submitters(storm: Storm) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The submitters, as processes; ended at the end, whatever happens."""
    folder, share = storm.cluster.folder, storm.tasks // SUBMITTERS
    started = [
        subprocess.Popen(
            [sys.executable, SUBMITTER, folder, str(part), str(share), str(storm.seed)],
            env=storm.cluster.environment(),
        )
        for part in range(SUBMITTERS)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def idle(cluster: Cluster) -> bool:
    """Whether nothing waits, runs or is to run later."""
    queues = cluster.snapshot()["queues"]
    return not any(queue["pending"] + queue["running"] + queue["scheduled"] for queue in queues)


def told_deaths(cluster: Cluster) -> list[tuple[int, list[int]]]:
    """(pid, ids of the tasks that ran in it) of every death that a pool wrote in its log."""
    text = "".join(process.output for process in cluster.processes)
    return [(int(pid), [int(word) for word in re.findall(r"\d+", tasks)]) for pid, tasks in DEATH.findall(text)]


class Size(NamedTuple):
    """What a process takes; ``memory`` in MiB."""

    threads: int
    descriptors: int
    memory: int


def size(process: Process | None) -> Size:
    """What a process takes now."""
    assert process is not None
    found = psutil.Process(process.pid)
    return Size(found.num_threads(), found.num_fds(), found.memory_info().rss // 2**20)


def connections(process: Process | None) -> int:
    """How many connections a manager has."""
    assert process is not None
    found = psutil.Process(process.pid)
    look = getattr(found, "net_connections", None) or found.connections  # the name has changed
    return sum(one.status == psutil.CONN_ESTABLISHED for one in look("tcp"))


def run(
    seed: int,
    tasks: int,
    manager_kills: int,
    worker_kills: int,
    folder: Path | None = None,
    longest_pause: float = LONGEST_PAUSE,
) -> dict[str, Any]:
    """One storm; gives its figures, ``violations`` among them. ``folder``: an empty one to be used."""
    if folder is None:
        with tempfile.TemporaryDirectory() as made:
            return run(seed, tasks, manager_kills, worker_kills, Path(made), longest_pause)
    began, rng = time.monotonic(), random.Random(seed)
    storm = Storm(Cluster(folder, folder / "state"), rng, tasks, seed, longest_pause=longest_pause)
    try:
        weather(storm, manager_kills, worker_kills)
        for process in storm.cluster.processes:
            process.stop()
        return {**figures(storm), "seconds": round(time.monotonic() - began)}
    finally:
        storm.cluster.close()


def weather(storm: Storm, manager_kills: int, worker_kills: int) -> None:
    """Let it rage, and wait for the end of everything."""
    cluster = storm.cluster
    write_module(cluster.folder, history=True)
    storm.begin()
    cluster.pool("--tasks", MODULE, "--worker-name", "attached", workers=2, threads=THREADS)
    wait_until(lambda: connections(storm.manager) == CONNECTIONS, 10.0, "all connections")
    base = size(storm.manager)
    with submitters(storm) as started:
        storm.rage(manager_kills, worker_kills)
        assert [process.wait(90) for process in started] == [0] * SUBMITTERS
    wait_until(lambda: idle(cluster), 60.0, "all tasks to be over")
    storm.history.phase("idle")
    wait_until(lambda: len(cluster.worker_processes()) == 4, 30.0, "former pools to leave")
    wait_until(lambda: len(cluster.snapshot()["workers"]) == 4, 10.0, "their end to be known")
    wait_until(lambda: connections(storm.manager) == CONNECTIONS, 10.0, "the other connections to end")
    wait_until(lambda: size(storm.manager).threads <= base.threads, 10.0, f"no more than {base.threads} threads")
    after = size(storm.manager)
    assert after.descriptors <= base.descriptors and after.memory - base.memory < 40, f"{base} -> {after}"


def figures(storm: Storm) -> dict[str, Any]:
    """What the checker says, and how much it has seen."""
    sure = note_deaths(storm)
    note_pauses(storm)
    seen = observe([*read_history(storm.cluster.folder), *storm.history.records])
    stored = read_sqlite(storm.cluster.state / "store.sqlite")
    return {
        "seed": storm.seed,
        "acknowledged": len({id for one in seen.acknowledged("submit") for id in one.reply["ids"]}),
        "completed": sum(row.state == State.COMPLETED for row in stored.tasks.values()),
        "failed": sum(row.state == State.FAILED for row in stored.tasks.values()),
        "runs": sum(map(len, seen.runs.values())),
        "managers": len(storm.reigns),
        "workers_killed": len(storm.kills),
        "pauses": storm.pauses,
        "unanswered": sum(one.outcome == "unknown" for one in seen.tries),
        "deaths": sum(row.deaths for row in stored.tasks.values()),
        "sure_deaths": sure,
        "violations": check(seen, stored, limit=LIMIT),
    }


def note_deaths(storm: Storm) -> int:
    """Write into the history which runs died, as the pools told it; gives how many of them the manager must know.

    It must, if it lived on for a while after the death, and had handed out that run itself.
    """
    lived = {reign.epoch: reign.until for reign in storm.reigns}
    kills = {kill.pid: kill for kill in storm.kills}
    begun = defaultdict(list)
    for trace in traces(storm.cluster.folder, "begin"):
        begun[trace.pid, trace.id].append(trace.run)
    count = 0
    for pid, ids in told_deaths(storm.cluster):
        assert pid in kills, f"process {pid} died, and nobody had killed it"
        kill = kills[pid]
        lasted = bool(kill.epoch) and lived[kill.epoch] - kill.at > SETTLED
        for id in ids:
            runs = begun[pid, id]  # none: it was killed before its task's first word
            sure = bool(runs) and lasted and max(runs) // RUNS_PER_EPOCH == kill.epoch
            storm.history.fault("death told", deaths=[(id, max(runs, default=0))], sure=sure)
            count += sure
    return count


def note_pauses(storm: Storm) -> None:
    """Write into the history which runs may have been taken for dead because their worker was silent for so long: those
    that it had begun.
    """
    runs = [run for runs in observe(read_history(storm.cluster.folder)).runs.values() for run in runs.values()]
    for pause in [one for one in storm.history.records if one.get("kind") == "pause"]:
        if pause["until"] - pause["at"] > EXPIRES_AFTER:
            hit = [
                run for run in runs if run.worker in pause["workers"] and min(run.starts, default=inf) <= pause["until"]
            ]
            deaths = [(run.task, run.run) for run in hit if run.over >= pause["at"] - AWAKE]
            storm.history.fault("death possible", deaths=deaths)


def verdict(figures: dict[str, Any], record: Callable[[str, object], None]) -> None:
    """Print the figures, and fail where a promise was broken."""
    for name, value in figures.items():
        record(name, str(value))
    text = (
        "T1: seed {seed}: {acknowledged:,} acknowledged, {completed:,} completed, in {runs:,} runs;"
        " {managers} managers, {workers_killed} workers killed, {pauses} paused, {unanswered} calls unanswered,"
        " {deaths} deaths; {seconds} s"
    )
    print(text.format(**figures), f"{len(figures['violations'])} violations", sep=", ")
    again = f"again: STORM_SEEDS={figures['seed']} python -m pytest tests/eval/test_crash_storm.py"
    assert not figures["violations"], f"{told(figures['violations'])}\n{again}"
    assert (figures["acknowledged"], figures["failed"]) == (figures["completed"], 0)
    assert figures["unanswered"] > 0, "no submitter noticed anything"
    assert figures["sure_deaths"] > 5, "the storm was too quick to show that deaths are counted"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_or_doubled_in_a_storm_of_kills(
    tmp_path: Path, seed: int, record_property: Callable[[str, object], None]
) -> None:
    verdict(run(seed, 8_000, 40, 120, tmp_path), record_property)


@pytest.mark.full
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("seed", range(1, 6))
def test_nothing_is_lost_or_doubled_in_a_long_storm(
    tmp_path: Path, seed: int, record_property: Callable[[str, object], None]
) -> None:
    verdict(run(seed, 50_000, 200, 600, tmp_path, LONG_PAUSE), record_property)
