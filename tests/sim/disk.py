"""The disk: a store that outlives its manager with what was committed, takes its time, and fails.

In a share of all seeds it is the real `SqliteStore` on a real file (`files`), else the one in memory: cheaper steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskq.errors import StoreFailed
from taskq.queue.task import FINAL, State
from taskq.stores.base import Batch
from taskq.stores.memory import MemoryStore

from .files import Files
from .scheduler import World


@dataclass
class Trouble:
    """Chances for each commit, and seconds. ``error``: the write fails, and may be on disk or not."""

    latency: float = 0.003
    error: float = 0.0


@dataclass
class Disk:
    """What is on it. ``real``: in files of the real store."""

    world: World
    trouble: Trouble
    history: Any
    real: bool = False
    full: bool = False
    faults: dict[str, int] = field(default_factory=lambda: {"error": 0, "torn": 0, "full": 0})
    uniques: dict[bytes, int] = field(default_factory=dict)
    commits: int = 0

    def __post_init__(self) -> None:
        number = self.world.rng.getrandbits(63)
        self.files = Files() if self.real else None
        if self.files is None:
            self.store: Any = MemoryStore()
            self.store._store_id = number

    def crash(self) -> None:
        """Whoever had it is gone."""
        if self.files is not None:
            self.files.crash()
        else:
            self.store.close()

    def mount(self) -> Any:
        """The store for one manager."""
        if self.files is not None:
            self.store = self.files.mount()
        return Mounted(self)

    def close(self) -> None:
        """Delete it."""
        if self.files is not None:
            self.files.close()


class Mounted:
    """The store as one manager has it."""

    kind, durable = "sqlite", True

    def __init__(self, disk: Disk) -> None:
        self._disk, self._store = disk, disk.store
        self._process = disk.world.thread().process
        self._broken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def has_space(self) -> bool:
        """Whether there is room."""
        return not self._disk.full

    def write(self, batch: Batch) -> None:
        """One commit: a crash in the middle leaves all of it or nothing."""
        disk, world = self._disk, self._disk.world
        if self._broken:
            raise StoreFailed("the disk failed before")
        lands = world.rng.random() < 0.5
        where = world.rng.random()
        waits = disk.trouble.latency * (0.3 + world.rng.random())
        try:
            world.wait(waits)
        except BaseException:  # the crash hits the write
            disk.faults["torn"] += 1
            self._torn(batch, lands, where)
            raise
        world.step(f"disk {len(batch.new)} {len(batch.changed)}")
        if world.rng.random() < disk.trouble.error:
            disk.faults["error"] += 1
            self._broken = True
            self._fail(batch, lands, where)
            raise StoreFailed("input/output error")
        self._apply(batch)

    def _torn(self, batch: Batch, lands: bool, where: float) -> None:
        if lands:
            self._apply(batch)
        elif self._disk.files is not None:
            self._disk.files.tear(lambda: self._store.write(batch), where)

    def _fail(self, batch: Batch, lands: bool, where: float) -> None:
        """The write fails: after the commit, or (in a real file) in the middle of the transaction, which is undone."""
        if lands:
            self._apply(batch)
        elif self._disk.files is not None:
            self._apply(batch, lambda write: self._disk.files.break_off(write, int(where * 400)))

    def _apply(self, batch: Batch, how: Callable[[Callable[[], None]], None] = lambda write: write()) -> None:
        store, world = self._store, self._disk.world
        before = store.slim([change.id for change in batch.changed])
        for change in batch.changed:
            if change.id in before:
                self._compare(before[change.id], change)
        world.changed = world.changed or bool(batch.new or batch.changed)
        if self._disk.files is not None:
            how(lambda: store.write(batch))
        else:
            was_open, store._open = store._open, True  # a torn write may land after the manager is gone
            store.write(batch)
            store._open = was_open
        self._disk.commits += 1
        self._look_at_uniques(batch)

    def _compare(self, before: Any, change: Any) -> None:
        failures = self._disk.world.failures
        if before.state == State.COMPLETED:
            if (change.state, change.run) != (before.state, before.run):
                failures.append(f"task {change.id} was completed, and changed after that")
        elif change.run < before.run:
            failures.append(f"task {change.id} went back from run {before.run} to {change.run}")
        elif before.state in FINAL and change.state not in FINAL and (change.failures, change.deaths) != (0, 0):
            failures.append(f"task {change.id} was over and is {State(change.state).label}")

    def _look_at_uniques(self, batch: Batch) -> None:
        """Of tasks with one unique value at most one is not over, whatever happened in between."""
        for row in batch.uniques:
            if row.twin is not None:
                continue
            holder = self._disk.uniques.get(row.value)
            self._disk.uniques[row.value] = row.id
            rows = self._store.slim([row.id] if holder is None else [holder, row.id])
            if len(rows) == 2 and all(one.state not in FINAL for one in rows.values()):
                self._disk.world.failures.append(f"tasks {holder} and {row.id} are alive with one unique value")

    def purge(self, states: Iterable[State], finished_before: float, limit: int, now: float) -> dict[State, int]:
        """Delete what is over since before then: all of it, and nothing else."""
        wanted = frozenset(states)
        before = self._finished()
        gone = self.purge_in_store(wanted, finished_before, limit, now)
        due = {id for id, (state, at) in before.items() if state in wanted and at < finished_before}
        self._deleted("purged", before, due, sum(gone.values()) == limit)
        return dict(gone)

    def purge_in_store(self, *given: Any) -> dict[State, int]:
        """What the store itself makes of it."""
        return dict(self._store.purge(*given))

    def forget_attempts(self, id: int) -> None:
        """Nothing in taskq does so; a planted bug does."""
        if self._disk.files is None:
            self._store._attempts.pop(id, None)

    def delete(self, ids: Sequence[int], states: Iterable[State], now: float) -> list[int]:
        """Delete these, where they are in these states."""
        wanted = frozenset(states)
        before = self._finished()
        gone = self._store.delete(ids, wanted, now)
        self._deleted("dropped", before, {id for id in ids if id in before and before[id][0] in wanted}, False)
        return list(gone)

    def _finished(self) -> dict[int, tuple[int, float]]:
        rows = self._store.select(limit=10**9)
        return {row.id: (row.state, row.finished_at) for row in rows if row.state in FINAL}

    def _deleted(self, how: str, before: Iterable[int], due: set[int], partly: bool) -> None:
        gone = set(before) - self._finished().keys()
        if gone - due or (due - gone and not partly):
            wrong = sorted(gone - due)[:5], sorted(due - gone)[:5]
            self._disk.world.failures.append(f"{how} {wrong[0]} without cause, not {how} {wrong[1]}")
        if gone:
            history = self._disk.history
            history.ok(history.call("purge", ids=sorted(gone)), labels=[how] * len(gone))
            self._disk.world.changed = True

    def close(self) -> None:
        """Let go of it."""
        if self._process.alive:
            self._store.close()
