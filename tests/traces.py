"""Tasks that leave a trace of every run in files, and what the tests read from these: who ran what, when kills come.

Each worker process appends to a file of its own, one line with one `write`, so that a kill -9 loses nothing of what had
happened before it. A line lies within one page of the file: of a longer way the system may do the first part only.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

MODULE = "traced"
LINE = 64
"""Bytes of one line: a page holds a whole number of them."""

TASKS = '''
import os
import time
from pathlib import Path

from taskq import current_task, task

HERE = Path(__file__).parent
FILE = os.open(HERE / f"trace-{os.getpid()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def note(word, me, value):
    """Where a history is wanted, it is written here."""


def trace(word, value=None):
    """One line of fixed length: what happened, and which run of which task this is."""
    me = current_task()
    note(word, me, value)
    os.write(FILE, f"{word:6}{me.id:10}{me.run:18}{me.attempt:5}{'':24}\\n".encode())


@task(name="quick")
def quick(number):
    """Over at once."""
    trace("begin")
    trace("end", number)
    return number


@task(name="nap")
def nap(number, seconds):
    """Takes its time."""
    trace("begin")
    time.sleep(seconds)
    trace("end", number)
    return number


@task(name="flaky", backoff=0.2)
def flaky(number):
    """Fails the first time."""
    trace("begin")
    if current_task().attempt == 1:
        trace("fail")
        raise OSError(number)
    trace("end", number)
    return number


@task(name="hold")
def hold(name):
    """Ends when it is let go: all attempts at once, or this one."""
    trace("begin")
    ways = [HERE / f"{name}.go", HERE / f"{name}.{current_task().attempt}.go"]
    while not any(map(os.path.exists, ways)):
        time.sleep(0.005)
    trace("end")
    return [os.getpid(), current_task().attempt]
'''


NOTES = '''
import sys

sys.path.insert(0, {tests!r})

from history import HistoryFile  # noqa: E402

from taskq.wire.codec import encode  # noqa: E402

HISTORY = HistoryFile(HERE, "worker")


def note(word, me, value):
    """The same as a record of the history."""
    worker = str(os.getpid())
    if word == "begin":
        HISTORY.start(me.id, me.run, worker)
    elif word == "end":
        HISTORY.end(me.id, me.run, worker, encode(value))
    else:
        HISTORY.fail(me.id, me.run, worker)
'''
"""What makes the tasks write a history too (see `history`), in the same folder; a worker is called by its pid there."""


class Trace(NamedTuple):
    """One line: ``word`` (begin, end, fail) of a run in the process ``pid``."""

    word: str
    id: int
    run: int
    attempt: int
    pid: int


def write_module(folder: Path, *, history: bool = False) -> None:
    """Put the tasks where worker processes of this folder find them (``--tasks traced``)."""
    notes = NOTES.format(tests=str(Path(__file__).parent)) if history else ""
    (folder / f"{MODULE}.py").write_text(TASKS + notes)


def progress(folder: Path) -> int:
    """How many lines there are; cheap."""
    return sum(file.stat().st_size for file in folder.glob("trace-*")) // LINE


def traces(folder: Path, *words: str) -> list[Trace]:
    """All lines with one of these words (none given: all), in order within each process."""
    found = [trace for file in folder.glob("trace-*") for trace in _read(file)]
    return [trace for trace in found if not words or trace.word in words]


def running(folder: Path, pid: int) -> set[int]:
    """The tasks that have begun in a process and not ended."""
    file = folder / f"trace-{pid}"
    states = {trace.id: trace.word for trace in (_read(file) if file.exists() else ())}
    return {id for id, word in states.items() if word == "begin"}


def _read(file: Path) -> list[Trace]:
    pid = int(file.name.partition("-")[2])
    found = []
    for line in file.read_text().splitlines(keepends=True):
        assert len(line) == LINE, f"half a line in {file}: {line!r}"
        word, id, run, attempt = line.split()
        found.append(Trace(word, int(id), int(run), int(attempt), pid))
    return found
