"""A queue dies at chosen points of its own code, and the next one must find everything that was promised.

``python tests/kill_points.py FOLDER SEED PART PARTS TIMES [MISTAKE]`` prints figures as JSON. The points are put in
from outside: after every SQL statement, after every step of the state, the group commit, the store and its files,
before and after every verb. A first child process runs `scenario` and lists the points that it passes; then for each of
them (the PART-th of PARTS; TIMES of the times that it is passed) a child kills itself there with SIGKILL, and another
one starts on what it left. Children are forked from this process, which has one thread and no open store. With a
MISTAKE the queue has one, and must be caught.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checker
import power_loss
from power_load import set_small
from promises import AFTER_A_CRASH, Promises
from queue_driver import Driver, Talk

from taskq.clock import SystemClock
from taskq.config import QueueSettings
from taskq.queue import check
from taskq.queue.commit import GroupCommit
from taskq.queue.job_queue import JobQueue
from taskq.queue.state import QueueState
from taskq.stores import disk, guard, sqlite
from taskq.stores.sqlite import SqliteStore

VERBS = ("open", "attach", "submit", "reserve", "report", "cancel", "requeue", "drop", "child_died", "purge", "clean")
STATE = (
    "load",
    "resume",
    "submit",
    "reserve",
    "report",
    "cancel",
    "requeue",
    "attach",
    "worker_gone",
    "tick",
    "forget",
)
COMMIT = ("add", "add_call", "add_worker", "add_left", "hand_out", "settle", "settle_all", "settle_submits", "_lead")
STORE = ("open", "write", "purge", "delete", "forget_results", "prune", "shrink", "_checkpoint", "close")
ROUNDS = 3


def _answer_too_early() -> None:
    """Replies leave before their commit, which comes with the next chore."""
    finish = JobQueue._finish
    JobQueue._finish = lambda self, changes, durable: finish(self, changes, durable=False)  # type: ignore[method-assign]


def _commit_in_pieces() -> None:
    """Each statement of a batch is a transaction of its own."""
    sqlite.transaction = lambda db, statements: statements(db)


MISTAKES: dict[str, Callable[[], None]] = {"": lambda: None, "early": _answer_too_early, "pieces": _commit_in_pieces}

Point = tuple[str, int]
"""The name of a place in the code, and the how-manieth time it is passed."""


class Points:
    """The points that were passed; the process dies at ``target``."""

    def __init__(self, target: Point | None = None) -> None:
        self.passed: Counter[str] = Counter()
        self._target = target
        self._verb = "start"

    def reach(self, name: str) -> None:
        """The process is at this point."""
        name = f"{self._verb}: {name}"
        self.passed[name] += 1
        if (name, self.passed[name]) == self._target:
            os.kill(os.getpid(), signal.SIGKILL)

    def after(self, owner: Any, name: str, *, verb: bool = False) -> None:
        """Put a point behind a function or method; with ``verb`` one before it too, and all in between are its own."""
        inner = getattr(owner, name)
        label = f"after {getattr(owner, '__name__', owner)}.{name}"

        @functools.wraps(inner)
        def outer(*args: Any, **kwargs: Any) -> Any:
            if verb:
                self._verb = name
                self.reach("before it")
            result = inner(*args, **kwargs)
            self.reach(label)
            return result

        setattr(owner, name, outer)

    def put_in(self) -> None:
        """All of them, for the rest of this process's life."""
        points, connect = self, sqlite3.connect

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *args: Any) -> Any:
                cursor = super().execute(sql, *args)
                points.reach(f"after {' '.join(sql.split()[:4])}")
                return cursor

        sqlite3.connect = lambda *args, **kwargs: connect(*args, factory=Connection, **kwargs)  # type: ignore[assignment]
        for owner, names in ((QueueState, STATE), (GroupCommit, COMMIT), (SqliteStore, STORE)):
            for name in names:
                self.after(owner, name)
        for owner, name in ((disk.LockFile, "take"), (disk.LockFile, "release"), (guard.Reserve, "take")):
            self.after(owner, name)
        for owner, name in ((sqlite, "make_file"), (os, "pwrite"), (os, "fsync"), (os, "ftruncate")):
            self.after(owner, name)
        for name in VERBS:
            self.after(JobQueue, name, verb=True)
        self.after(JobQueue, "close", verb=True)


def scenario(folder: Path, log: Path, seed: int) -> None:
    """Two lives of a queue in one thread: the same calls for the same seed, and each verb at least once."""
    driver = Driver(1, seed, talk := Talk(log))
    for _ in range(2):
        queue = _open(folder)
        hello = queue.hello()
        talk.say("opened", epoch=hello["epoch"], store_id=hello["store_id"])
        driver.join(queue)
        for _ in range(ROUNDS):
            for action in (driver.submit, driver.submit, driver.submit, driver.reserve, driver.cancel):
                action()
            for action in (driver.report, driver.reserve, driver.die, driver.requeue, driver.drop, driver.reserve):
                action()
            queue.tick()
        gone = driver.purged()
        call = talk.begin("purge", to=[(id, *version) for id, version in gone.items()])
        assert queue.purge(["completed", "cancelled"], 0.0) == len(gone)
        talk.say("end", call=call)
        driver.forget(list(gone))
        queue.clean()
        driver.submit()
        driver.reserve()
        queue.close()


def _open(folder: Path) -> JobQueue:
    queue = JobQueue(SqliteStore(folder / power_loss.STORE, free_mark=0, reserve=65536), SystemClock(), QueueSettings())
    queue.open()
    return queue


def aftermath(folder: Path, log: Path, after: Path) -> list[str]:
    """What is wrong with what a dead process left: what was promised, then whether a queue can go on with it."""
    promises = Promises()
    for line in log.read_bytes().splitlines():
        promises.hear(line)
    files = {path.name: bytearray(path.read_bytes()) for path in folder.iterdir()}
    wrong = power_loss.look(after, files, promises)
    queue = _open(folder)
    check.check(queue._state)
    for begun in promises.open.values():
        if begun["verb"] == "submit":
            _again(queue, begun, promises)
    queue.close()
    stored = checker.read_sqlite(folder / power_loss.STORE)
    return [*wrong, *map(power_loss.as_text, checker.check(promises.seen, stored, AFTER_A_CRASH))]


def _again(queue: JobQueue, begun: dict[str, Any], promises: Promises) -> None:
    """Repeat a submit that had no answer, two times."""
    driver = Driver(1, 0, Talk(Path(os.devnull)))
    driver._seq = begun["seq"]
    items = [driver._item(place, *item) for place, item in enumerate(begun["items"])]
    for _ in range(2):
        answered = promises.submits(begun["client"], begun["seq"], begun["items"])
        answered(ids=list(queue.submit(begun["client"], begun["seq"], items).ids), existing=[])


def in_child(work: Callable[[], object], output: Path) -> int:
    """Do this in a process of its own; its result, as JSON, goes to a file. Gives how it ended, as `os.waitpid`."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            output.write_text(json.dumps(work()), encoding="utf-8")
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def chosen(passed: dict[str, int], times: int) -> list[Point]:
    """Each point: the first time it is passed, the last, and others evenly in between, ``times`` in all."""
    found: set[Point] = set()
    for name, count in passed.items():
        found |= {(name, 1 + (count - 1) * part // max(times - 1, 1)) for part in range(times)}
    return sorted(found)


def main(place: str, seed: str, part: str, parts: str, times: str, mistake: str = "") -> None:
    """Find the points, die at each, and look."""
    logging.disable(logging.CRITICAL)
    set_small("FULL")
    folder, after, output, log = (Path(place, name) for name in ("state", "after", "output", "log"))
    after.mkdir()

    def fresh() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        log.unlink(missing_ok=True)

    def live(points: Points) -> dict[str, int]:
        MISTAKES[mistake]()
        points.put_in()
        scenario(folder, log, int(seed))
        return points.passed

    fresh()
    assert in_child(lambda: live(Points()), output) == 0, "the scenario failed"
    passed = json.loads(output.read_text())
    mine = chosen(passed, int(times))[int(part) :: int(parts)]
    missed, broken = [], []
    for point in mine:
        fresh()
        if in_child(functools.partial(live, Points(point)), output) != signal.SIGKILL:
            missed.append(point)
        elif in_child(lambda: aftermath(folder, log, after), output):
            broken.append(f"{point}: the next start failed")
        else:
            broken += [f"{point}: {text}" for text in json.loads(output.read_text())]
    figures = {"names": len(passed), "points": len(mine), "missed": missed, "broken": broken}
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
