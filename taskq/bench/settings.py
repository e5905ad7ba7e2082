"""What a workload is given: how often and how much to measure, and where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from taskq.bench.floors import Commits, commits
from taskq.bench.stage import Stage

SMALLEST = 20
"""Tasks: no scale makes a workload smaller."""


def _say_nothing(text: str) -> None:
    """For those who do not want to hear of progress."""


@dataclass
class Settings:
    """``runs``: how often each figure is measured. ``scale``: 1 for the sizes that the bars are made for.

    ``join``: the join file of a running manager to be measured; None: each workload starts its own. ``say`` is told of
    the progress, in a few words.
    """

    runs: int = 5
    scale: float = 1.0
    join: Path | None = None
    say: Callable[[str], None] = field(default=_say_nothing)

    def count(self, tasks: int) -> int:
        """So many tasks, scaled."""
        return max(SMALLEST, round(tasks * self.scale))

    def seconds(self, seconds: float) -> float:
        """So long, scaled, but not under a fifth of it."""
        return seconds * max(0.2, min(1.0, self.scale))

    def stage(
        self, *, workers: int = 2, threads: int = 2, store: str = "sqlite", options: tuple[str, ...] = ()
    ) -> Stage:
        """A stage to be entered by `with`: one that runs already if there is one, else a fresh one."""
        if self.join is not None:
            return Stage.joined(self.join)
        return Stage(workers=workers, threads=threads, store=store, options=options)

    @cached_property
    def commits(self) -> Commits:
        """What a commit costs on this disk; measured once."""
        self.say("floor: commits")
        return commits(200 if self.scale < 1 else 1000)
