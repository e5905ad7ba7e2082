"""What a pool's parent and its worker processes say to each other, besides the slot table.

To the child's standard input: one line with its configuration (JSON, the key included, which must not be seen in
argv), then commands, one a line: ``drain``, ``cancel`` with the number of a run, and ``join`` with a join file when the
manager's address has changed. The end of file means that the parent is gone. Back, over one inherited pipe and once: a
line that says that the child is ready, or which error kept it from starting.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from taskq.config import Join
from taskq.errors import TaskqError, from_wire, to_wire
from taskq.shapes import PoolInfo

DRAIN = "drain"
CANCEL = "cancel"
JOIN = "join"

SHOW_STACKS = signal.SIGUSR2
"""The signal by which the parent has a child write the stacks of its threads behind the slot table. It works in a child
whose interpreter is held by a call in C; Python code of the child never sees it."""

_CHUNK = 64 * 1024


@dataclass(frozen=True)
class ChildConfig:
    """What one worker process is to be. ``slots``, ``status``: the descriptors of slot table and pipe.

    ``stderr``: those of `taskq.workers.stderr.Spare`.
    """

    join: str
    incarnation: str
    name: str
    pool: PoolInfo
    threads: int
    tasks: tuple[str, ...]
    queues: tuple[str, ...]
    queue_order: str
    connect_timeout: float
    log_level: str
    log_format: str
    slots: int
    status: int
    stderr: tuple[int, int]

    def to_line(self) -> str:
        """The line for the child."""
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> ChildConfig:
        """What `to_line` wrote."""
        data = json.loads(line)
        return cls(
            **{**data, "tasks": tuple(data["tasks"]), "queues": tuple(data["queues"]), "stderr": tuple(data["stderr"])}
        )


def join_command(join: Join) -> str:
    """The command that tells a child of another address."""
    return f"{JOIN} {join.to_json()}"


def cancel_command(run: int) -> str:
    """The command that asks a run to stop."""
    return f"{CANCEL} {run}"


# -- the child's side ------------------------------------------------------------------------------------------------


def take_over() -> int:
    """Make standard input and output harmless for the user's code; gives the descriptor of the parent's lines.

    A program that a task starts must not read the parent's commands. What a task prints goes to stderr, each line at
    once: it must not be lost with the process.
    """
    commands = os.dup(0)  # not inheritable
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    return commands


def leave_signals_to_the_parent() -> None:
    """Do nothing about signals that a terminal sends to all of its processes: the parent has them too, and decides.

    A handler that does nothing is, unlike SIG_IGN, not inherited by the programs that a task starts.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: None)


def become_ordinary() -> None:
    """Undo in a process that a task forked what concerns worker processes only: its signals and crashes are its own."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.disable()
    faulthandler.unregister(SHOW_STACKS)


def write_stacks_to(descriptor: int) -> None:
    """Have the stacks of all threads written there when this process crashes, or its parent asks for them."""
    faulthandler.enable(descriptor)
    faulthandler.register(SHOW_STACKS, descriptor)


def leave(error: BaseException | None) -> NoReturn:
    """End a process that a task forked when the task's function is over, as a program ends: 0, its exit code, or 1."""
    if error is not None and not isinstance(error, SystemExit):
        traceback.print_exception(error)
    code = 1 if error is not None else 0
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        code = error.code or 0
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code & 0xFF)


def lines(descriptor: int) -> Iterator[str]:
    """The lines that arrive, until the end of file or until somebody closed the descriptor.

    Reads the descriptor itself: a thread that waits inside a buffered file would stop the interpreter from ending.
    """
    ours = os.fstat(descriptor)
    pending = b""
    while True:
        try:
            if not os.path.samestat(ours, os.fstat(descriptor)):  # closed by a task, and its number is a connection's
                return
            chunk = os.read(descriptor, _CHUNK)
        except OSError:  # a task closed it: as good as the end
            return
        if not chunk:
            return
        *whole, pending = (pending + chunk).split(b"\n")
        for line in whole:
            yield line.decode("utf-8")


def say_ready(descriptor: int) -> None:
    """Tell the parent that this process is attached and works."""
    _say(descriptor, {"ready": True})


def say_error(descriptor: int, error: TaskqError) -> None:
    """Tell the parent why this process cannot start."""
    code, message, details = to_wire(error)
    _say(descriptor, {"ready": False, "code": code, "message": message, "details": details})


def _say(descriptor: int, status: dict[str, Any]) -> None:
    try:
        os.write(descriptor, json.dumps(status, default=str).encode() + b"\n")
        os.close(descriptor)
    except OSError:
        sys.stderr.write("taskq: the parent of this worker process does not listen\n")


# -- the parent's side -----------------------------------------------------------------------------------------------


def read_status(line: bytes) -> TaskqError | None:
    """What a child said: None when it is ready, else its error."""
    status = json.loads(line)
    return None if status["ready"] else from_wire(status["code"], status["message"], status["details"])
