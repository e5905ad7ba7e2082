"""What a queue has promised, and whether a store keeps it. PURE.

A driver (`queue_driver`) says before each call what it asks for, and after it what it was told. From its lines
`Promises` knows for each task the versions of its record in their order, up to which one is promised (the reply was
there), and up to which one may be there (the call had begun). A store that was found after a crash must hold, of each
task, one of the versions in between.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from taskq.queue.task import FINAL, State, TaskRow

RUNS_PER_EPOCH = 2**40
SOME = 12
"""Calls that are asked about after each crash: the last ones."""


class Version(NamedTuple):
    """A record as a call leaves it. ``kind``: ``live``, a final state's label, or ``gone``. ``run``: at least."""

    kind: str
    failures: int = 0
    deaths: int = 0
    cancel: bool = False
    run: int = 0
    result: str | None = None


class Found(NamedTuple):
    """What a store holds. ``epoch``: that of the process that has opened it now."""

    store_id: int
    epoch: int
    next_id: int
    rows: Mapping[int, TaskRow]
    calls: Mapping[tuple[int, int], tuple[int, int] | None]
    keys: Mapping[str, int]


@dataclass
class _Promised:
    """One task. ``kept``: the place of the version that is promised. ``payload``: what it was submitted with."""

    payload: bytes
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
    """Everything that was promised by the lines heard so far."""

    store_id: int = 0
    epoch: int = 0
    next_id: int = 1
    acknowledged: int = 0
    tasks: dict[int, _Promised] = field(default_factory=dict)
    calls: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    open: dict[int, dict[str, Any]] = field(default_factory=dict)

    def hear(self, line: bytes) -> None:
        """A line of the driver's."""
        said = json.loads(line)
        match said["at"]:
            case "begin":
                self.open[said["call"]] = said
                for id, *version in said.get("to", ()):
                    self.tasks[id].versions.append(Version(*version))
            case "end":
                self._end(self.open.pop(said["call"]), said)
            case "given":
                self.epoch = max(self.epoch, *(run // RUNS_PER_EPOCH for _, run in said["runs"]))
            case "opened":
                self.store_id, self.epoch = said["store_id"], max(self.epoch, said["epoch"])

    def _end(self, begun: dict[str, Any], said: dict[str, Any]) -> None:
        self.acknowledged += 1
        for id, *_ in begun.get("to", ()):
            self.tasks[id].kept = len(self.tasks[id].versions) - 1
        if "items" not in begun:
            return
        client, seq, ids = begun["client"], begun["seq"], said["ids"]
        self.calls[client, seq] = (ids[0], len(ids))
        self.next_id = max(self.next_id, ids[-1] + 1)
        for position, (id, (size, key)) in enumerate(zip(ids, begun["items"], strict=True)):
            self.tasks[id] = _Promised(payload(client, seq, position, size), key, [Version("live")])

    def asked_calls(self) -> list[tuple[int, int]]:
        """The calls whose rows a check wants: the last ones that were acknowledged, and those that were under way."""
        submits = [begun for begun in self.open.values() if "items" in begun]
        return [*list(self.calls)[-SOME:], *((begun["client"], begun["seq"]) for begun in submits)]

    def asked_keys(self) -> list[str]:
        """The keys that a check wants."""
        return [task.key for task in self.tasks.values() if task.key is not None]

    def check(self, found: Found) -> list[str]:
        """What is not as it was promised."""
        wrong = []
        if self.store_id and found.store_id != self.store_id:
            wrong.append(f"it is another store: {found.store_id} for {self.store_id}")
        if found.epoch <= self.epoch:
            wrong.append(f"epoch {found.epoch} was there before: runs may repeat")
        if found.next_id < self.next_id:
            wrong.append(f"id {found.next_id} is given twice")
        for id, task in self.tasks.items():
            wrong += [f"task {id}: {text}" for text in self._wrong_with(task, found.rows.get(id))]
            if task.key is not None and found.keys.get(task.key) != id:
                wrong.append(f"task {id}: its key {task.key} stands for {found.keys.get(task.key)}")
        for call, row in found.calls.items():
            if call in self.calls and row != self.calls[call]:
                wrong.append(f"call {call} was answered with {self.calls[call]}, now it is {row}")
        return wrong + self._unexpected(found)

    @staticmethod
    def _wrong_with(task: _Promised, row: TaskRow | None) -> list[str]:
        allowed = task.versions[task.kept :]
        if row is None:
            return [] if any(version.kind == "gone" for version in allowed) else [f"lost; it was {allowed[0]}"]
        if not any(_is_version(row, version) for version in allowed):
            there = version_of(row)
            return [f"it is {there}, and was {allowed[0]}" + (f", or one of {allowed[1:]}" if allowed[1:] else "")]
        return [] if row.payload == task.payload else [f"wrong payload of {len(row.payload or b'')} bytes"]

    def _unexpected(self, found: Found) -> list[str]:
        """Records that nobody asked for, and submits of which only a part is there."""
        wrong, allowed = [], set(self.tasks)
        for begun in self.open.values():
            row = found.calls.get((begun["client"], begun["seq"])) if "items" in begun else None
            if row is not None:
                ids = set(range(row[0], row[0] + row[1]))
                allowed |= ids
                if not ids <= set(found.rows):
                    wrong.append(f"of call {begun['client'], begun['seq']} only a part is there")
        strange = sorted(set(found.rows) - allowed)
        return [*wrong, *(f"task {id} was never submitted" for id in strange)]


def version_of(row: TaskRow) -> Version:
    """The version that a stored record is."""
    state = State(row.state)
    kind = state.label if state in FINAL else "live"
    done = row.result.decode() if kind == "completed" and row.result is not None else None
    return Version(kind, row.failures, row.deaths, bool(row.cancel_requested), row.run, done)


def _is_version(row: TaskRow, version: Version) -> bool:
    found = version_of(row)
    return found.run >= version.run and found._replace(run=0) == version._replace(run=0)
