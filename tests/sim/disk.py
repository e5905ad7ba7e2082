"""The disk: a store that outlives its manager with what was committed, takes its time, and fails."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from taskq.errors import StoreFailed
from taskq.queue.task import FINAL, State
from taskq.stores.base import Batch
from taskq.stores.memory import MemoryStore

from .scheduler import World


@dataclass
class Trouble:
    """Chances for each commit, and seconds. ``error``: the write fails, and may be on disk or not."""

    latency: float = 0.003
    error: float = 0.0


@dataclass
class Disk:
    """What is on it. ``violations``: what no commit may ever do, seen as it is written."""

    world: World
    trouble: Trouble
    full: bool = False
    faults: dict[str, int] = field(default_factory=lambda: {"error": 0, "torn": 0, "full": 0})

    def __post_init__(self) -> None:
        self.store = MemoryStore()
        self.store._store_id = self.world.rng.getrandbits(63)

    def crash(self) -> None:
        """Whoever had it is gone."""
        self.store.close()

    def mount(self) -> Any:
        """The store for one manager."""
        return Mounted(self)


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
        waits = disk.trouble.latency * (0.3 + world.rng.random())
        try:
            world.wait(waits)
        except BaseException:  # the crash hits the write
            disk.faults["torn"] += 1
            if lands:
                self._apply(batch)
            raise
        world.step(f"disk {len(batch.new)} {len(batch.changed)}")
        if world.rng.random() < disk.trouble.error:
            disk.faults["error"] += 1
            self._broken = True
            if lands:
                self._apply(batch)
            raise StoreFailed("input/output error")
        self._apply(batch)

    def _apply(self, batch: Batch) -> None:
        store, world = self._store, self._disk.world
        for change in batch.changed:
            before = store._rows.get(change.id)
            if before is None:
                continue
            if before.state == State.COMPLETED:
                if (change.state, change.run, change.result) != (before.state, before.run, before.result):
                    world.failures.append(f"task {change.id} was completed, and changed after that")
            elif change.run < before.run:
                world.failures.append(f"task {change.id} went back from run {before.run} to {change.run}")
            elif before.state in FINAL and change.state not in FINAL and (change.failures, change.deaths) != (0, 0):
                world.failures.append(f"task {change.id} was over and is {State(change.state).label}")
        world.changed = world.changed or bool(batch.new or batch.changed)
        was_open, store._open = store._open, True  # a torn write may land after the manager is gone
        store.write(batch)
        store._open = was_open

    def close(self) -> None:
        """Let go of it."""
        if self._process.alive:
            self._store.close()
