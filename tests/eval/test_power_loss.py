"""The power fails at every write: nothing that was acknowledged is lost, no id, epoch or run comes twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from crash_disk import Disk, Operation
from power_loss import Figures, run
from systrace import obstacle

needs_strace = pytest.mark.skipif(bool(obstacle()), reason=obstacle())


def tell(figures: Figures, record_property: Callable[[str, object], None]) -> None:
    for name in ("seed", "operations", "cuts", "acknowledged", "lossy", "violations"):
        record_property(name, getattr(figures, name))
    print(
        f"T3: seed {figures.seed}, {figures.cuts:,} power cuts in {figures.operations:,} operations,"
        f" {figures.acknowledged:,} acknowledged calls held against them, {figures.violations} violations"
    )


def explain(figures: Figures) -> str:
    again = f"python tests/power_loss.py {figures.trace} {figures.seed} CUT"
    return "\n".join([*figures.broken, f"to see one again: {again}"])


@needs_strace
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2])
def test_no_power_cut_loses_what_was_acknowledged(seed: int, record_property: Callable[[str, object], None]) -> None:
    figures = run(seed, variants=4)
    tell(figures, record_property)
    assert figures.cuts > 10_000
    assert not figures.violations, explain(figures)


@needs_strace
@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", [11, 12])
def test_no_power_cut_of_a_long_run_loses_anything(seed: int, record_property: Callable[[str, object], None]) -> None:
    figures = run(seed, steps=30, variants=32, seconds=3600)
    tell(figures, record_property)
    assert figures.cuts > 100_000
    assert not figures.violations, explain(figures)


@needs_strace
def test_a_store_that_does_not_sync_its_commits_is_caught(record_property: Callable[[str, object], None]) -> None:
    """The control run: without it, nobody knows whether the others could fail."""
    figures = run(3, part=10, synchronous="NORMAL")
    tell(figures, record_property)
    assert figures.lossy > figures.cuts // 4, figures
    assert {"I1", "I12", "I13"} <= {text.split(": ")[1].split()[0] for text in figures.broken}, figures.broken


def test_of_what_was_not_synced_any_sector_may_be_there() -> None:
    disk = Disk()
    for operation in (
        Operation("create", "a"),
        Operation("open", "a", 3),
        Operation("names", "."),
        Operation("write", "a", 3, 0, b"x" * 1024),
        Operation("sync", "a", 3),
        Operation("write", "a", 3, 256, b"y" * 512),
        Operation("size", "a", 3, 600),
    ):
        disk.do(operation)

    def found(*kept: bool) -> bytes:
        answers = iter(kept)
        return bytes(disk.crash(lambda: next(answers))["a"])

    assert found(False, False, False) == b"x" * 1024
    assert found(True, False, False) == b"x" * 256 + b"y" * 256 + b"x" * 512
    assert found(False, True, True) == b"x" * 512 + b"y" * 88
    assert found(True, True, True) == b"x" * 256 + b"y" * 344


def test_a_name_may_be_missing_until_its_folder_is_synced() -> None:
    disk = Disk()
    for operation in (Operation("create", "a"), Operation("open", "a", 3), Operation("write", "a", 3, 0, b"x")):
        disk.do(operation)
    disk.do(Operation("sync", "a", 3))
    assert disk.crash(lambda: False) == {}
    disk.do(Operation("names", "."))
    disk.do(Operation("unlink", "a"))
    assert disk.crash(lambda: False) == {"a": b"x"}
    assert disk.crash(lambda: True) == {}
