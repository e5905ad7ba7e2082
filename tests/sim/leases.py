"""Who holds what, as the queue must see it: no run is taken from its worker without a proof, and none given twice.

The ledger outlives managers. It hears what is delivered to the queue (heartbeats, deaths, reports, attaches) and what
the queue decides, and judges each decision by what was delivered: a run is over when its worker reported it, is dead,
came back without it, or was not heard of for a whole lease. Each end that is not a report goes into the history as a
fault, so that the checker knows which runs and deaths there may be.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from observed import RUNS_PER_EPOCH

from taskq.queue.places import HOLD
from taskq.queue.task import FINAL, RUNNING
from taskq.shapes import ACK, GIVE_BACK, NACK, SNOOZE

SLACK = 0.001
ENDS = (ACK, NACK, GIVE_BACK, SNOOZE)


@dataclass
class Given:
    """A run that was handed out. ``known``: the manager of now knows of it. ``over``: why it is over."""

    task: int
    run: int
    worker: str
    at: float
    known: bool = True
    over: str = ""

    @property
    def epoch(self) -> int:
        """Of the manager that gave it."""
        return self.run // RUNS_PER_EPOCH


class Ledger:
    """All runs. ``lease``: seconds of the managers' clock, which goes at ``rate``."""

    def __init__(self, world: Any, history: Any, lease: float, rate: float) -> None:
        self._world, self._history = world, history
        self._lease, self._hold = (lease - SLACK) / rate, (HOLD - SLACK) / rate
        self._given: dict[int, Given] = {}
        self._heard: dict[str, float] = {}
        self._pools: dict[str, str] = {}
        self._dead: set[str] = set()
        self._told: set[tuple[int, int]] = set()
        self._epoch, self._since = 0, 0.0
        self._lately: list[Given] = []

    # -- what the queue decides

    def started(self, epoch: int, store: Any) -> None:
        """A manager has loaded what is in the store; what the one before had only in mind did not happen."""
        self._epoch, self._since = epoch, self._world.now
        unsure = [*(one for one in self._given.values() if not one.over), *self._lately]
        self._lately.clear()
        rows = store.slim([one.task for one in unsure])
        for one in unsure:
            row = rows.get(one.task)
            one.known = row is not None and row.state == RUNNING and row.run == one.run
            if one.over and row is not None and (one.known or (row.run < one.run and row.state not in FINAL)):
                one.over = ""
                self._told.discard((one.task, one.run))

    def handed_out(self, task: Any) -> None:
        """A task is given to a worker."""
        before = self._given.get(task.id)
        if before is not None:
            if task.run <= before.run:
                self._wrong(f"task {task.id} has run {task.run} after {before.run}")
            if not before.over and (before.known or not self._lost_with_its_manager(before)):
                self._wrong(f"run {task.run} of task {task.id} began while run {before.run} was under way")
            elif not before.over:
                self._end(before, "its manager died")
        self._given[task.id] = Given(task.id, task.run, task.worker, self._world.now)
        self._history.lease(task.id, task.run, task.worker)

    def _lost_with_its_manager(self, one: Given) -> bool:
        if one.worker in self._dead or one.epoch < self._epoch - 1:
            return True
        return self._world.now >= self._since + self._hold

    def changed(self, tasks: Iterable[Any]) -> None:
        """These records changed: those that do not run are taken from who held them."""
        for task in tasks:
            one = self._given.get(task.id)
            if one is None or one.over or task.state is RUNNING:
                continue
            reason = self._reason(one)
            if not reason:
                self._wrong(f"run {one.run} of task {one.task} was taken from {one.worker} without a proof")
            self._end(one, reason or "?")

    def _reason(self, one: Given) -> str:
        if (one.task, one.run) in self._told:
            return "told"
        if one.worker in self._dead:
            return "died"
        if not one.known:
            return "its manager died"
        heard = max(self._heard.get(one.worker, 0.0), self._since if one.epoch != self._epoch else 0.0)
        over = max(heard + self._lease, one.at + self._lease / 3)  # nothing is given to who was silent for two beats
        return "silent" if self._world.now >= over else ""

    def _end(self, one: Given, why: str) -> None:
        one.over = why
        self._lately.append(one)
        if why != "told":
            deaths = [(one.task, one.run)] if why in ("died", "silent") else []
            self._history.fault(why, tasks=[one.task], deaths=deaths)

    def _wrong(self, what: str) -> None:
        self._world.failures.append(f"I6 {what}")

    # -- what is delivered to it

    def beat(self, children: Iterable[Any]) -> None:
        """A heartbeat with these worker processes."""
        self._heard.update((child["incarnation"], self._world.now) for child in children if not child["stopped"])

    def died(self, worker: str, outcomes: Iterable[Any] = ()) -> None:
        """A worker process is dead, or has said its goodbye."""
        self.told(worker, outcomes)
        self._dead.add(worker)

    def left(self, pool: str) -> None:
        """A pool is over."""
        self._dead.update(worker for worker, its in self._pools.items() if its == pool)

    def counted(self, worker: str, started: Iterable[Any]) -> None:
        """The death is acknowledged: the manager has counted it for those that had started and were held."""
        for task, run in started:
            one = self._given.get(task)
            if one is not None and one.run == run and one.over == "died" and one.epoch == self._epoch:
                self._history.fault("died", deaths=[(task, run)], sure=True)

    def told(self, worker: str, reports: Iterable[Any]) -> None:
        """Outcomes of runs; who sent them may not live to hear what became of them."""
        for report in reports:
            if report[0] in ENDS:
                self._told.add((report[1], report[2]))
            if report[0] == NACK:
                more = {"since": self._world.now, "outcome": "unknown", "last": report[4] == -1}
                self._history.report("nack", report[1], report[2], worker, **more)

    def attaching(self, info: Any, held: Iterable[Any]) -> None:
        """A worker process comes, with these runs."""
        worker = info["incarnation"]
        self._heard[worker] = self._world.now
        self._pools[worker] = info["pool"]["id"]
        its = {(task, run) for task, run in held}
        for one in self._given.values():
            if one.worker == worker and not one.over and (one.task, one.run) not in its:
                self._end(one, "not held")

    def attached(self, held: Iterable[Any], lost: Iterable[Any]) -> None:
        """It was told that it has lost these; the others are its own again."""
        gone = {(task, run) for task, run in lost}
        for task, run in held:
            one = self._given.get(task)
            if one is None or one.run != run or one.over:
                continue
            if (task, run) not in gone:
                one.known = True
            elif not one.known:
                self._end(one, "its manager died")
            elif reason := self._reason(one):
                self._end(one, reason)
            else:
                self._wrong(f"run {run} of task {task} was taken from {one.worker}, which had come back with it")
