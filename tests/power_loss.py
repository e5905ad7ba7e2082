"""Power cuts without a plug: a queue's writes are traced once, then the power fails at every one of them.

`run` is one campaign of one seed: trace `power_load`, cut at every operation, keep a random part of what was not synced
(`crash_disk`), open what is left with the real store, and hold it with `checker` against the replies that had been
sent (`promises` makes a history of them).

``python tests/power_loss.py TRACE SEED CUT`` repeats one cut of a trace that was kept.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checker import Stored, Violation, i13_side_counter
from crash_disk import TRACED, Disk, Operation, operations
from promises import Promises
from systrace import calls

from taskq.errors import TaskqError
from taskq.stores.commits import CommitCounter
from taskq.stores.sqlite import SqliteStore

TESTS = Path(__file__).resolve().parent
STORE = "store.sqlite"
SHOWN = 20
"""Broken promises that are kept as text; all are counted."""


@dataclass
class Figures:
    """What came of it. ``acknowledged``: replies sent before the cut, summed over all cuts; ``broken``: promises that
    were not kept, as text; ``lossy``: cuts that broke at least one."""

    seed: int
    operations: int = 0
    cuts: int = 0
    acknowledged: int = 0
    lossy: int = 0
    violations: int = 0
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)
    trace: str = ""


def trace(folder: Path, seed: int, steps: int, synchronous: str = "FULL") -> Path:
    """Run the load below ``folder`` under strace; gives what strace wrote."""
    state, output = folder / "state", folder / "trace"
    state.mkdir()
    traced = ["strace", "-f", "--seccomp-bpf", "-xx", "-s", "1000000", "-e", f"trace={','.join(TRACED)}", "-o", output]
    load = [sys.executable, TESTS / "power_load.py", state, folder / "log", str(seed), str(steps), synchronous]
    done = subprocess.run([*traced, *load], capture_output=True, text=True, check=False, env=_environment())
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def _environment() -> dict[str, str]:
    places = [str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONDONTWRITEBYTECODE": "1"}


def read_trace(output: Path) -> list[Operation]:
    """The operations of a trace; the names of its folders are found in it."""
    found = calls(output)
    log = next(path for path in map(_path_of, found) if path and path.name == "log")
    return operations(found, log.parent / "state", log)


def _path_of(call: Any) -> Path | None:
    match = re.match(r'AT_FDCWD, "((?:\\x[0-9a-f]{2})*)"', call.text) if call.name == "openat" else None
    return Path(bytes.fromhex(match[1].replace("\\x", "")).decode(errors="replace")) if match else None


def keeper(seed: int, cut: int) -> Callable[[], bool]:
    """What decides of each part that was not synced whether it is there after this cut: all, none, or some."""
    chance = random.Random(seed * 1_000_003 + cut)
    share = chance.choice((0.0, 1.0, 0.5, chance.random()))
    return lambda: chance.random() < share


def look(folder: Path, files: dict[str, bytearray], promises: Promises) -> list[str]:
    """Put these files into the folder, open the store there as a manager would; gives what is wrong."""
    for old in folder.iterdir():
        old.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    crash = counted(folder / STORE)
    store = SqliteStore(folder / STORE, free_mark=0, reserve=0)
    try:
        opened = store.open()
        rows = {row.id: row for row in store.select(limit=10**6)}
        found_calls = {key: store.find_call(*key) for key in promises.asked_calls()}
        keys = {key: row.id for key, row in store.find_keys(promises.asked_keys()).items()}
    except TaskqError as error:
        return [f"the store does not open: {error!r}", *map(as_text, i13_side_counter([crash]))]
    finally:
        store.close()
    calls = {key: None if row is None else (row.first_id, row.size) for key, row in found_calls.items()}
    stored = Stored(rows, keys, calls, opened.epoch, opened.next_id)
    return [as_text(one) for one in promises.check(stored, opened.store_id, crash)]


def counted(path: Path) -> tuple[int, int]:
    """How many commits the side counter of a store has seen, and how many are found in it, before it is opened."""
    counter = CommitCounter(path.with_name(path.name + ".commits")).read()
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            commits = db.execute("SELECT commits FROM store").fetchone()[0]
    except (sqlite3.Error, TypeError):
        commits = 0  # there is no such file yet, no such table, or no row in it
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    return (0 if counter is None else counter.commits), commits


def as_text(found: Violation) -> str:
    """A violation in one line."""
    return f"{found.promise} task {found.task}: {found.what}"


def cuts(found: list[Operation], seed: int, variants: int, chosen: Callable[[int], bool]) -> Iterator[tuple[Any, ...]]:
    """(number of the cut, its files, what was promised) for each chosen cut of a trace."""
    disk, promises, number = Disk(), Promises(), 0
    for operation in found:
        if operation.kind == "said":
            promises.hear(operation.data)
        else:
            disk.do(operation)
        for _ in range(variants):
            number += 1
            if chosen(number):
                yield number, disk.crash(keeper(seed, number)), promises


def run(
    seed: int, *, seconds: float = 600.0, steps: int = 10, variants: int = 1, synchronous: str = "FULL", part: int = 0
) -> Figures:
    """Trace one load and cut it at every operation, ``variants`` times each, for at most so many seconds.

    With ``part`` only every so many-th cut, evenly over the trace. Violations are in the figures; a trace that showed
    any is kept.
    """
    begun = time.monotonic()
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="taskq-power-", dir=place))
    figures = Figures(seed)
    try:
        output = trace(folder, seed, steps, synchronous)
        found = read_trace(output)
        figures.operations = sum(operation.kind != "said" for operation in found)
        after = folder / "after"
        after.mkdir()
        for number, files, promises in cuts(found, seed, variants, lambda number: not part or number % part == 0):
            wrong = look(after, files, promises)
            figures.cuts += 1
            figures.acknowledged += promises.acknowledged
            figures.lossy += bool(wrong)
            figures.violations += len(wrong)
            figures.broken += [f"cut {number}: {text}" for text in wrong][: SHOWN - len(figures.broken)]
            if time.monotonic() - begun > seconds:
                break
        if figures.violations and synchronous == "FULL":
            kept = Path(tempfile.mkdtemp(prefix="taskq-power-kept-")) / "trace"
            shutil.copy(output, kept)
            figures.trace = str(kept)
    finally:
        shutil.rmtree(folder)
    figures.seconds = time.monotonic() - begun
    return figures


def campaign(seed: int) -> dict[str, Any]:
    """The figures of one run, for `tests.campaign`."""
    figures = run(seed, variants=2)
    again = [f"trace {figures.trace}", *figures.broken] if figures.broken else []
    return {
        "operations": figures.operations,
        "power cuts": figures.cuts,
        "acknowledged calls": figures.acknowledged,
        "violations": again,
    }


def repeat(output: Path, seed: int, cut: int) -> list[str]:
    """One cut of a kept trace again; gives what is wrong."""
    with tempfile.TemporaryDirectory() as after:
        for _, files, promises in cuts(read_trace(output), seed, 1, lambda number: number == cut):
            return look(Path(after), files, promises)
    raise SystemExit(f"there is no cut {cut}")


if __name__ == "__main__":
    print("\n".join(repeat(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))) or "nothing is wrong")
