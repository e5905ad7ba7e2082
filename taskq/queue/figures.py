"""Counters, rates and distributions of the queue: whatever the monitor shows. PURE.

Everything is counted when it happens, so that a snapshot costs the same with ten tasks and with ten million.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from operator import attrgetter
from typing import Any

from taskq.queue.meters import WINDOW, Distribution, Rate, bucket_of, buckets_of
from taskq.queue.task import COMPLETED, FAILED, FINAL, PENDING, RUNNING, SCHEDULED, State, Task

QUEUES_KEPT = 1_000
"""With more queues than these, those without tasks are forgotten."""
RECENT = 10
RECENT_FAILURES = 20

_queue, _terms, _due_at = attrgetter("terms.queue"), attrgetter("terms"), attrgetter("due_at")
_TOTAL = {state: state.label for state in FINAL}
TOTALS = ("submitted", "completed", "failed", "retried", "cancelled")


class QueueFigures:
    """One queue: how many tasks are in each state, and what has happened lately."""

    __slots__ = ("counts", "done", "failed", "incoming", "run_s", "wait_s")

    def __init__(self) -> None:
        self.counts = [0] * (max(State) + 1)
        self.incoming = Rate()
        self.done = Rate()
        self.failed = Rate()
        self.wait_s = Distribution()
        self.run_s = Distribution()

    def waiting(self) -> int:
        """Tasks that are accepted and not begun: what the queue's limit counts."""
        return self.counts[PENDING] + self.counts[SCHEDULED]

    def describe(self, now: float) -> dict[str, Any]:
        """The figures of one queue as the snapshot has them (without those of its head)."""
        return {
            "pending": self.counts[PENDING],
            "scheduled": self.counts[SCHEDULED],
            "blocked": 0,
            "running": self.counts[RUNNING],
            "rate": {
                "in_per_s": self.incoming.per_second(now),
                "done_per_s": self.done.per_second(now),
                "failed_per_s": self.failed.per_second(now),
                "window_s": WINDOW,
            },
            "wait_s": self.wait_s.percentiles(now),
            "run_s": self.run_s.percentiles(now),
        }


class TypeFigures:
    """One task type: what has become of its attempts."""

    __slots__ = ("completed", "failed", "run_s")

    def __init__(self) -> None:
        self.completed = 0
        self.failed = 0
        self.run_s = Distribution()


class Figures:
    """All counters of the queue. ``final`` counts the final records that are kept, by state."""

    def __init__(self) -> None:
        self.totals = dict.fromkeys(TOTALS, 0)
        self.final = {state: 0 for state in FINAL}
        self.queues: defaultdict[str, QueueFigures] = defaultdict(QueueFigures)
        self.types: defaultdict[str, TypeFigures] = defaultdict(TypeFigures)
        self.recent: deque[Task] = deque(maxlen=RECENT)
        self.recent_failures: deque[Task] = deque(maxlen=RECENT_FAILURES)

    def forget_idle(self) -> None:
        """Drop what is known of queues without tasks when there are very many: names may be made up for each user."""
        for name in [name for name, queue in self.queues.items() if not any(queue.counts)]:
            if len(self.queues) <= QUEUES_KEPT:
                return
            del self.queues[name]

    def entered(self, queue: str, state: State, count: int = 1) -> None:
        """Tasks are there that were not there before."""
        self.queues[queue].counts[state] += count

    def submitted(self, queue: str, count: int, now: float) -> None:
        """Tasks were accepted."""
        self.totals["submitted"] += count
        self.queues[queue].incoming.add(count, now)

    def moved(self, task: Task, before: State, after: State) -> None:
        """A task went from one state to another."""
        counts = self.queues[task.queue].counts
        if before in FINAL:
            self.final[before] -= 1
        else:
            counts[before] -= 1
        if after not in FINAL:
            counts[after] += 1
            return
        self.final[after] += 1
        self.totals[_TOTAL[after]] += 1
        self.recent.append(task)
        if after is FAILED:
            self.recent_failures.append(task)

    def handed_out(self, tasks: Iterable[Task], now: float, wall: float) -> None:
        """Pending tasks began to run, at ``now`` (monotonic) and ``wall`` seconds."""
        for queue, group in groupby(tasks, _queue):
            figures = self.queues[queue]
            waits = Counter[int]()
            for due_at, alike in groupby(group, _due_at):  # those of one submit
                waits[bucket_of(max(0.0, wall - due_at))] += len(list(alike))
            count = waits.total()
            figures.counts[PENDING] -= count
            figures.counts[RUNNING] += count
            figures.wait_s.add(waits, now)

    def completed(self, tasks: Sequence[Task], ran: Iterable[float], now: float) -> None:
        """Running tasks completed, after so many seconds each."""
        times = iter(ran)
        for terms, group in groupby(tasks, _terms):
            count = len(list(group))
            buckets = buckets_of(islice(times, count))
            figures, kind = self.queues[terms.queue], self.types[terms.type]
            figures.run_s.add(buckets, now)
            kind.run_s.add(buckets, now)
            figures.counts[RUNNING] -= count
            figures.done.add(count, now)
            kind.completed += count
        self.final[COMPLETED] += len(tasks)
        self.totals[_TOTAL[COMPLETED]] += len(tasks)
        self.recent.extend(tasks[-RECENT:])

    def failed(self, task: Task, ran: float, now: float) -> None:
        """An attempt failed after ``ran`` seconds."""
        queue = self.queues[task.queue]
        kind = self.types[task.type]
        buckets = buckets_of((ran,))
        queue.run_s.add(buckets, now)
        kind.run_s.add(buckets, now)
        kind.failed += 1
        queue.failed.add(1, now)
