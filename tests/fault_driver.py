"""Runs a queue over a store whose disk fails at one place, as often as it is asked to; needs a preloaded library.

Each line of stdin is one run as JSON (see `Run`), each line of stdout its `verdict`. A run happens in a fork of this
process, so that it costs no start of an interpreter; the record that it leaves is read in another fork, without faults.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskq.clock import SystemClock
from taskq.config import QueueSettings
from taskq.errors import OutcomeUnknown, StorageFull, TaskqError
from taskq.queue.job_queue import JobQueue
from taskq.queue.task import State
from taskq.queue.terms import new_task
from taskq.shapes import ACK, NACK
from taskq.stores.sqlite import SqliteStore

CALLS = ("write", "sync", "truncate", "open", "read", "allocate", "unlink")
"""Kinds of system calls, in the library's numbering."""
HANG = 30.0
"""Seconds that one run may take; it takes a tenth of one."""
ROUNDS = 25
"""Of 8 calls each, with a restart after half of them."""
LIBRARY = ctypes.CDLL(None)
LIBRARY.fault_seen.restype = ctypes.c_long


class Run:
    """One run. ``acknowledged``: (correlation id, state that it must have, result); ``said``: how each call ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.acknowledged: dict[str, tuple[str, str | None]] = {}
        self.ids: dict[str, int] = {}
        self.refused: list[str] = []
        self.unknown: list[str] = []
        self.problems: list[str] = []
        self.failures: list[str] = []
        self.calls = 0
        self.session = 0
        self.queue: JobQueue | None = None

    def go(self) -> None:
        """All rounds, or until the store fails."""
        for half in (range(ROUNDS // 2), range(ROUNDS // 2, ROUNDS)):
            if not self._guarded(self._open) or self.queue is None:
                return
            for number in half:
                self._round(number)
                if self.failures:
                    break
            self._guarded(self.queue.close)
            if self.failures:
                return

    def _guarded(self, step: Callable[[], object]) -> bool:
        """Do a step; gives whether it went well. Anything but one of our errors is a problem."""
        self.calls += 1
        try:
            step()
        except TaskqError:
            return False
        except Exception as error:
            self.problems.append(f"{type(error).__name__} got through: {error}")
            return False
        return True

    def _open(self) -> None:
        store = SqliteStore(self.folder / "store.sqlite", free_mark=0, reserve=65536)
        queue = JobQueue(store, SystemClock(), QueueSettings(), lambda error: self.failures.append(str(error)))
        try:
            queue.open()
        except BaseException:
            store.close()
            raise
        assert store._db is not None
        store._db.execute("PRAGMA wal_autocheckpoint = 40")  # else no run would be long enough to copy the log
        pool: Any = {"id": "p", "name": "p", "host": "h", "pid": 1, "local": None}
        kind = {"name": "t", "parameters": (), "queue": "q", "max_retries": 3, "backoff": 9.0, "timeout": None}
        worker: Any = {"incarnation": os.urandom(8).hex(), "pool": pool, "name": "w", "host": "h", "pid": 2}
        worker.update(threads=9, queues=(), types=[{**kind, "workers": 0}])
        self.queue = queue
        self.incarnation = worker["incarnation"]
        if self._guarded(lambda: setattr(self, "session", queue.attach(worker, ())["session"])):
            queue.child_died("p", "nobody", "signal 9", (), False, {})

    def _round(self, number: int) -> None:
        queue = self.queue
        assert queue is not None
        for part in range(3):
            size = 40 if part else 3000
            self._submit(f"s{number}.{part}", size)
        got: list[Any] = []
        self._guarded(lambda: got.extend(queue.reserve(self.incarnation, self.session, 2, 0, (), 0.0).tasks))
        for place, task in enumerate(got):
            if place:
                report = (NACK, task.id, task.run, ("error", "OSError", "no", "trace"), -1, 0.1)
            else:
                report = (ACK, task.id, task.run, b"r%d" % task.id * 400, 0.1)
            self._change([task.correlation_id], ["failed" if place else "completed"], lambda r=report: self._report(r))
        newest = max(self.ids.values(), default=0)
        name = next((name for name, id in self.ids.items() if id == newest), "")
        self._change([name], ["cancelled"], lambda: queue.cancel([newest]) == ["cancelled"])
        self._guarded(queue.tick)
        self._guarded(queue.look_after_disk)
        self._guarded(lambda: queue.get([1, 2, newest]))
        self._guarded(queue.clean)

    def _report(self, report: Any) -> bool:
        assert self.queue is not None
        return self.queue.report(self.incarnation, self.session, [report]) == []

    def _submit(self, name: str, size: int) -> None:
        queue = self.queue
        assert queue is not None
        item = new_task("t", b"p" * size, correlation_id=name, key=f"key {name}" if size > 99 else None)
        self.calls += 1
        try:
            (self.ids[name],) = queue.submit(7, len(self.ids) + len(self.refused) + len(self.unknown) + 1, [item]).ids
        except OutcomeUnknown:
            self.unknown.append(name)
        except TaskqError as error:
            self.refused.append(name)
            if isinstance(error, StorageFull):
                self.calls -= 1
        except Exception as error:
            self.problems.append(f"{type(error).__name__} got through: {error}")
        else:
            self.acknowledged[name] = ("", None)

    def _change(self, names: list[str], states: list[str], change: Callable[[], bool]) -> None:
        told: list[bool] = []
        if self._guarded(lambda: told.append(change())) and told == [True]:
            self.acknowledged.update(zip(names, ((state, None) for state in states), strict=True))
        else:
            for name in names:
                self.acknowledged.pop(name, None)  # whatever it is now
                self.unknown.append(name)


def run(folder: Path, call: int, at: int, number: int, for_good: bool) -> dict[str, Any]:
    """Run with this fault; gives what was told."""
    this = Run(folder)
    LIBRARY.fault_arm(os.fsencode(folder), call, at, number, for_good)
    this.go()
    seen = LIBRARY.fault_seen()
    LIBRARY.fault_arm(b"", -1, 0, 0, 0)
    told = {name: getattr(this, name) for name in ("acknowledged", "refused", "unknown", "problems", "failures", "ids")}
    return {**told, "calls": this.calls, "hit": seen >= at}


def compare(folder: Path, told: dict[str, Any]) -> list[str]:
    """Read the record as the next start does; gives what is wrong with it."""
    store = SqliteStore(folder / "store.sqlite", free_mark=0, reserve=65536)
    store.open()
    rows = {row.correlation_id: row for row in store.select(limit=10_000)}
    ids = Counter(row.id for row in rows.values())
    store.close()
    wrong = [f"id {id} was given {count} times" for id, count in ids.items() if count > 1]
    for name, (state, _) in told["acknowledged"].items():
        row = rows.get(name)
        if row is None:
            wrong.append(f"{name} was acknowledged and is lost")
        elif state and State(row.state).label != state:
            wrong.append(f"{name} was told to be {state} and is {State(row.state).label}")
        elif row.id != told["ids"].get(name, row.id):
            wrong.append(f"{name} has another id")
        elif row.state is State.COMPLETED and row.result != b"r%d" % row.id * 400:
            wrong.append(f"{name} has another result")
    known = set(told["acknowledged"]) | set(told["unknown"])
    wrong += [
        f"{name} was {'refused' if name in told['refused'] else 'never sent'} and is there"
        for name in rows
        if name not in known
    ]
    return wrong


def forked(step: Callable[[], Any]) -> Any:
    """The same in a fork, which is killed when it hangs."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(int(HANG))
            value = step()
        except BaseException as error:
            value = {"crashed": f"{type(error).__name__}: {error}"}
        with os.fdopen(writing, "w") as pipe:
            json.dump(value, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return json.loads(said) if said else {"crashed": f"hung for {HANG:g} s"}


def verdict(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """One run and what came of it; ``wrong`` is empty when every promise was kept."""
    folder.mkdir()
    try:
        fault = asked["call"], asked["at"], asked["errno"], asked["for_good"]
        told = forked(lambda: run(folder, CALLS.index(fault[0]), *fault[1:]))
        if "crashed" in told:
            return {"wrong": [told["crashed"]], "hit": True, "acknowledged": 0, "calls": 0, "stopped": False}
        wrong = forked(lambda: compare(folder, told))
        wrong = [wrong["crashed"]] if isinstance(wrong, dict) else wrong
        return {
            "wrong": told["problems"] + wrong,
            "hit": told["hit"],
            "acknowledged": len(told["acknowledged"]),
            "calls": told["calls"],
            "stopped": bool(told["failures"]),
        }
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Serve until stdin ends."""
    logging.disable()
    base = Path(sys.argv[1])
    for number, line in enumerate(sys.stdin):
        started = time.monotonic()
        found = verdict(base / f"run-{number}", json.loads(line))
        print(json.dumps({**found, "took": time.monotonic() - started}), flush=True)


if __name__ == "__main__":
    main()
