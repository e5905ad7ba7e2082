"""What a queue has promised, and whether a store keeps it after a crash. PURE.

A driver (`queue_driver`) says before each call what it asks for, and after it what it was told. `Promises` makes a
history of its lines, which `checker` holds against the store that was found. A driver alone decides what becomes of its
tasks, so one thing more is known than the checker asks for: the versions of each record in their order, up to which one
is promised (the reply was there), and up to which one may be there (the call had begun). The store must hold one of the
versions in between.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from checker import Stored, Violation, check
from history import Record, content, digest
from observed import Observed, Run, Try

from taskq.queue.task import FINAL, State
from taskq.queue.task_row import TaskRow

AFTER_A_CRASH = ("I1", "I2", "I3", "I4", "I5", "I8", "I12")
"""What holds of a store at any moment, beside I13."""
SOME = 12
"""Calls that are asked about after each crash: the last ones."""
LABELS = {"requeue": "requeued", "drop": "dropped", "purge": "purged"}


class Version(NamedTuple):
    """A record as a call leaves it. ``kind``: ``live``, a final state's label, or ``gone``. ``run``: at least."""

    kind: str
    failures: int = 0
    deaths: int = 0
    cancel: bool = False
    run: int = 0
    result: str | None = None


@dataclass
class _Promised:
    """One task. ``kept``: the place of the version that is promised."""

    key: str | None
    versions: list[Version]
    kept: int = 0


def payload(client: int, seq: int, position: int, size: int) -> bytes:
    """The payload of a task: it tells where it comes from."""
    return f"{client}/{seq}/{position}/".encode().ljust(size, b"p")


def result(id: int, run: int, size: int) -> str:
    """The result of a run, as text."""
    return f"{id}/{run}/".ljust(size, "r")


@dataclass
class Promises:
    """Everything that was promised by the lines heard so far. ``now`` counts them: it is the history's clock."""

    store_id: int = 0
    acknowledged: int = 0
    now: float = 0.0
    seen: Observed = field(default_factory=Observed)
    tasks: dict[int, _Promised] = field(default_factory=dict)
    open: dict[int, dict[str, Any]] = field(default_factory=dict)
    _answered: dict[int, Callable[[dict[str, Any]], None]] = field(default_factory=dict)

    def hear(self, line: bytes) -> None:
        """A line of the driver's."""
        said = json.loads(line)
        self.now += 1.0
        match said["at"]:
            case "begin":
                self.open[said["call"]] = said
                self._answered[said["call"]] = self._begin(said)
            case "end":
                begun = self.open.pop(said["call"])
                self._answered.pop(said["call"])(said)
                self.acknowledged += 1
                for id, *_ in begun.get("to", ()):
                    self.tasks[id].kept = len(self.tasks[id].versions) - 1
            case "given":
                for id, run in said["runs"]:
                    self.seen.runs[id][run] = Run(id, run, "", leased=self.now, starts=[self.now])
            case "opened":
                self.store_id = said["store_id"]

    # -- the history

    def _begin(self, said: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
        """A call begins; gives what is to be done when it is answered."""
        verb, to = said["verb"], [(id, Version(*version)) for id, *version in said.get("to", ())]
        for id, version in to:
            self.tasks[id].versions.append(version)
        if verb == "submit":
            return self._submit(said)
        if verb == "report":
            return self._report(to, said["outcomes"])
        if verb == "die":
            return self._die(to)
        return self._ask(verb, to)

    def _try(self, verb: str, **arguments: Any) -> Callable[..., None]:
        one = Try(verb, self.now, arguments)
        self.seen.tries.append(one)

        def answered(**reply: Any) -> None:
            one.end, one.outcome, one.reply = self.now, "ok", reply

        return answered

    def submits(self, client: int, seq: int, items: list[tuple[int, str | None]]) -> Callable[..., None]:
        """A submit of these (size of the payload, key) is tried; gives what takes the reply, if there is one."""
        self.now += 1.0
        named = [(content("x", payload(client, seq, place, size)), key) for place, (size, key) in enumerate(items)]
        return self._try("submit", client=client, seq=seq, items=named)

    def _submit(self, said: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
        items = said["items"]
        answered = self.submits(said["client"], said["seq"], items)

        def end(reply: dict[str, Any]) -> None:
            answered(ids=reply["ids"], existing=[])
            self.tasks.update(
                (id, _Promised(key, [Version("live")])) for id, (_, key) in zip(reply["ids"], items, strict=True)
            )

        return end

    def _report(self, to: list[tuple[int, Version]], outcomes: list[str]) -> Callable[[dict[str, Any]], None]:
        records: list[Record] = []
        for (id, version), outcome in zip(to, outcomes, strict=True):
            run = self.seen.runs[id][version.run]
            kind, _, last = outcome.partition(" ")
            record = {"kind": kind, "at": self.now, "since": self.now, "outcome": "unknown", "last": bool(last)}
            if kind == "ack":
                run.end, run.result = self.now, digest((version.result or "").encode())
            run.reports.append(record)
            records.append(record)

        def end(_: dict[str, Any]) -> None:
            for record in records:
                record["outcome"] = "accepted"

        return end

    def _die(self, to: list[tuple[int, Version]]) -> Callable[[dict[str, Any]], None]:
        deaths = [(id, version.run) for id, version in to]
        fault = {"kind": "die", "at": self.now, "workers": [], "tasks": [id for id, _ in to], "deaths": deaths}
        self.seen.faults.append(fault)
        return lambda _: fault.update(sure=True)

    def _ask(self, verb: str, to: list[tuple[int, Version]]) -> Callable[[dict[str, Any]], None]:
        labels = [LABELS.get(verb, "running" if version.cancel else "cancelled") for _, version in to]
        answered = self._try(verb, ids=[id for id, _ in to])
        return lambda _: answered(labels=labels)

    # -- what a check asks the store, and what it finds

    def asked_calls(self) -> list[tuple[int, int]]:
        """The calls whose rows a check wants: the last ones that were acknowledged, and those that were under way."""
        answered = [one.arguments for one in self.seen.acknowledged("submit")[-SOME:]]
        begun = [one for one in self.open.values() if one["verb"] == "submit"]
        return [(one["client"], one["seq"]) for one in (*answered, *begun)]

    def asked_keys(self) -> list[str]:
        """The keys that a check wants."""
        return [task.key for task in self.tasks.values() if task.key is not None]

    def check(self, stored: Stored, store_id: int, crash: tuple[int, int]) -> list[Violation]:
        """What is not as it was promised. ``crash``: the commit counter and the commits that were found."""
        found = check(self.seen, stored, AFTER_A_CRASH, crashes=[crash])
        if self.store_id and store_id != self.store_id:
            found.append(Violation("I1", f"it is another store: {store_id} for {self.store_id}"))
        for id, task in self.tasks.items():
            if text := _wrong_with(task, stored.tasks.get(id)):
                found.append(Violation("I1", text, id))
            if task.key is not None and stored.keys.get(task.key) != id:
                found.append(Violation("I3", f"its key {task.key} stands for {stored.keys.get(task.key)}", id))
        return [*found, *self._pieces(stored)]

    def _pieces(self, stored: Stored) -> Iterator[Violation]:
        """Submits without an answer of which only a part is there: some tasks, or tasks without the call."""
        allowed = set(self.tasks)
        for begun in self.open.values():
            row = stored.calls.get((begun["client"], begun["seq"])) if begun["verb"] == "submit" else None
            if row is not None:
                ids = set(range(row[0], row[0] + row[1]))
                allowed |= ids
                if not ids <= set(stored.tasks):
                    yield Violation("I12", f"of call {begun['client'], begun['seq']} only a part is there")
        for id in sorted(set(stored.tasks) - allowed):
            yield Violation("I12", "no call is known that submitted it", id)


def _wrong_with(task: _Promised, row: TaskRow | None) -> str:
    allowed = task.versions[task.kept :]
    if row is None:
        return "" if any(version.kind == "gone" for version in allowed) else f"lost; it was {allowed[0]}"
    if any(_is_version(row, version) for version in allowed):
        return ""
    return f"it is {version_of(row)}, and was {allowed[0]}" + (f", or one of {allowed[1:]}" if allowed[1:] else "")


def version_of(row: TaskRow) -> Version:
    """The version that a stored record is."""
    state = State(row.state)
    kind = state.label if state in FINAL else "live"
    done = row.result.decode() if kind == "completed" and row.result is not None else None
    return Version(kind, row.failures, row.deaths, bool(row.cancel_requested), row.run, done)


def _is_version(row: TaskRow, version: Version) -> bool:
    found = version_of(row)
    return found.run >= version.run and found._replace(run=0) == version._replace(run=0)
