"""A history put together: tries of calls, runs of tasks, faults. What `checker` looks at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Any

from history import Record

RUNS_PER_EPOCH = 2**40


@dataclass
class Try:
    """One try of a call. ``end``: infinity when nobody heard of its end, as when the caller died."""

    verb: str
    start: float
    arguments: Record
    end: float = inf
    outcome: str = "unknown"
    reply: Record = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether it was acknowledged."""
        return self.outcome == "ok"

    def pairs(self) -> list[tuple[int, str, str | None]]:
        """(id, content, key) of each task of a submit that was acknowledged."""
        return [(id, *item) for id, item in zip(self.reply["ids"], self.arguments["items"], strict=True)]

    def labels(self) -> list[tuple[int, str]]:
        """(id, label) of each task in the reply of a cancel, requeue or drop."""
        return list(zip(self.arguments["ids"], self.reply["labels"], strict=True))


@dataclass
class Run:
    """One run of a task, as its worker saw it."""

    task: int
    run: int
    worker: str
    leased: float = inf
    starts: list[float] = field(default_factory=list)
    end: float | None = None
    result: str | None = None
    failed: float | None = None
    reports: list[Record] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """The start of the manager that gave it."""
        return self.run // RUNS_PER_EPOCH

    @property
    def at(self) -> float:
        """When it was got, as far as that is known."""
        return min(self.leased, *self.starts, inf)

    @property
    def over(self) -> float:
        """When its worker began to tell of its end; where reports were not seen, when its code was over."""
        known = [one["since"] for one in self.reported()]
        if not self.reports:
            known += [at for at in (self.end, self.failed) if at is not None]
        return min(known, default=inf)

    def reported(self, *kinds: str) -> list[Record]:
        """The reports of these kinds (none: all) that were not refused."""
        return [one for one in self.reports if (not kinds or one["kind"] in kinds) and one["outcome"] != "refused"]

    def accepted(self, *kinds: str) -> list[Record]:
        """The reports of these kinds (none: all) that the manager said it took."""
        return [one for one in self.reported(*kinds) if one["outcome"] == "accepted"]


@dataclass
class Observed:
    """Everything that a history tells."""

    tries: list[Try] = field(default_factory=list)
    runs: dict[int, dict[int, Run]] = field(default_factory=lambda: defaultdict(dict))
    faults: list[Record] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)

    def of(self, *verbs: str) -> list[Try]:
        """The tries of these verbs, by their start."""
        return [one for one in self.tries if one.verb in verbs]

    def acknowledged(self, *verbs: str) -> list[Try]:
        """Those of them that were answered."""
        return [one for one in self.of(*verbs) if one.ok]

    def calls(self) -> dict[tuple[int, int], list[Try]]:
        """All tries of each submit call, by their start."""
        found: dict[tuple[int, int], list[Try]] = defaultdict(list)
        for one in self.of("submit"):
            found[one.arguments["client"], one.arguments["seq"]].append(one)
        return found

    def leases(self, task: int) -> list[Run]:
        """The runs of a task in the order in which workers got them."""
        return sorted(self.runs.get(task, {}).values(), key=lambda run: run.at)

    def by_run(self, task: int) -> list[Run]:
        """The runs of a task in the order of their numbers, in which its manager gave them."""
        return sorted(self.runs.get(task, {}).values(), key=lambda run: run.run)

    def gone(self) -> set[int]:
        """Tasks whose records were deleted on request, or may have been."""
        found = set()
        for one in self.of("drop", "purge"):
            if one.outcome == "unknown":
                found.update(one.arguments["ids"])
            elif one.ok:
                found.update(id for id, label in one.labels() if label in ("dropped", "purged"))
        return found

    def requeued(self) -> set[int]:
        """Tasks that began anew on request, or may have."""
        found = set()
        for one in self.of("requeue"):
            if one.outcome == "unknown":
                found.update(one.arguments["ids"])
            elif one.ok:
                found.update(id for id, label in one.labels() if label == "requeued")
        return found


def observe(records: Iterable[Record]) -> Observed:
    """Put a history together. The records may come in any order; their times decide."""
    found = Observed()
    open_calls: dict[tuple[str, int], Try] = {}
    for record in sorted(records, key=lambda one: one["at"]):
        _TAKE[record["event"]](found, record, open_calls)
    found.tries.sort(key=lambda one: one.start)
    return found


def _call(found: Observed, record: Record, open_calls: dict[Any, Try]) -> None:
    one = Try(record["verb"], record["at"], record)
    open_calls[record["by"], record["call"]] = one
    found.tries.append(one)


def _answer(found: Observed, record: Record, open_calls: dict[Any, Try]) -> None:
    one = open_calls.pop((record["by"], record["call"]))
    one.end, one.outcome, one.reply = record["at"], record["outcome"], record


def _of_run(found: Observed, record: Record, _: object) -> None:
    runs = found.runs[record["task"]]
    run = runs.get(record["run"])
    if run is None:
        run = runs[record["run"]] = Run(record["task"], record["run"], record["worker"])
    event, at = record["event"], record["at"]
    if event == "lease":
        run.leased = min(run.leased, at)
    elif event == "start":
        run.starts.append(at)
    elif event == "end":
        run.end, run.result = at, record["result"]
    elif event == "fail":
        run.failed = at
    else:
        run.reports.append(record)


def _fault(found: Observed, record: Record, _: object) -> None:
    found.faults.append(record)


def _phase(found: Observed, record: Record, _: object) -> None:
    found.phases[record["name"]] = record["at"]


_TAKE = {
    "call": _call,
    "answer": _answer,
    **dict.fromkeys(("lease", "start", "end", "fail", "report"), _of_run),
    "fault": _fault,
    "phase": _phase,
}
