"""Log lines: one closed list of events, the same fields as text for people and as JSON lines for machines.

Whoever logs calls `event` with a name from `EVENTS`; `context` adds fields to every line of the current thread,
lines of the user's own code inside a task included. Fields are numbers and names only: never a key, never an
argument or a result of a task.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from taskq.errors import ConfigError

EVENTS = {
    # the manager's life
    "starting": "the manager opens its store",
    "recovering": "so many of the stored tasks are back in memory",
    "ready": "the port is open and the local pool has joined",
    "stopping": "no new work is taken; what runs may finish",
    "stopped": "everything is on disk and closed",
    "key_changed": "the manager has noticed its new key",
    "failed": "a write did not reach the disk: the manager ends with an error",
    "local_pool_died": "the manager's own pool ended unasked and is started again",
    # pools and worker processes
    "pool_started": "a pool of worker processes begins",
    "pool_stopped": "all its worker processes have left",
    "draining": "a pool takes no new tasks and finishes what it has",
    "stopping_hard": "asked a second time, or out of time: what still runs is killed",
    "child_started": "a worker process was started",
    "child_died": "a worker process ended unasked",
    "child_failed": "worker processes cannot start, or die at once again and again: the pool gives up",
    "worker_joined": "a worker process has attached",
    "worker_left": "a worker process has left or was reported dead",
    "connected": "a worker process or pool has reached the manager",
    "connection_lost": "it is gone; what runs goes on and is delivered later",
    "key_rejected": "the manager is there and does not take the key; the text says where to get the new one",
    # tasks
    "task_submitted": "accepted and on disk",
    "task_started": "a worker thread begins an attempt",
    "task_completed": "done",
    "task_retried": "this attempt failed; another one follows",
    "task_failed": "failed for good",
    "task_cancelled": "cancelled before it was done",
    "task_returned": "back in its queue: another attempt is due, or it was handed out but not begun",
    "task_stuck": "a task did not end when it was interrupted: its worker process is killed",
    "outcome_refused": "a late outcome of a run that is over was not taken",
    # housekeeping and strangers
    "backup_written": "a whole copy of the store has its name",
    "purged": "old records were deleted",
    "store_doubtful": "the newest commits of the store are lost, or nobody can tell",
    "storage_low": "the disk is nearly full: no new tasks are accepted",
    "storage_back": "there is room on the disk again: new tasks are accepted",
    "peer_refused": "a connection did not prove that it has the key, or sent something unreadable",
    "internal_error": "a bug; the text says where",
}
"""event -> what it means. The closed list: a line of other code (the user's own) has the event ``log``."""

FIELDS = (
    *("role", "host", "pid", "worker", "task_id", "task_type", "queue", "attempt"),
    *("wait_s", "run_s", "outcome", "error", "correlation_id"),
)
"""The fields besides ``ts``, ``level``, ``logger``, ``event`` and ``msg``, in the order of a text line."""

FILE_BYTES = 10 * 2**20
FILES_KEPT = 5

_context: ContextVar[Mapping[str, Any]] = ContextVar("taskq_log_fields", default={})  # noqa: B039  (never changed)
_sources: list[Callable[[], Mapping[str, Any]]] = []


@contextlib.contextmanager
def context(**fields: Any) -> Iterator[None]:
    """Add these fields to every line that is logged inside the block."""
    token = _context.set({**_context.get(), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def ask(source: Callable[[], Mapping[str, Any]]) -> None:
    """Add to every line the fields that ``source`` gives in the thread, and `contextvars` context, that logs it."""
    _sources.append(source)


def event(logger: logging.Logger, level: int, name: str, message: str, /, **fields: Any) -> None:
    """Log an event of `EVENTS` with its fields (from `FIELDS`); ``message`` is the whole sentence for people."""
    if logger.isEnabledFor(level):
        logger.log(level, "%s", message, extra={"taskq_event": name, "taskq_fields": fields})


def announce(logger: logging.Logger, name: str, message: str, /, **fields: Any) -> None:
    """Log at info what the person at the terminal must read: there it stands alone, without time and fields."""
    logger.info("%s", message, extra={"taskq_event": name, "taskq_fields": fields, "taskq_plain": True})


def setup(
    role: str,
    *,
    level: str = "info",
    format: str | None = None,
    quiet: bool = False,
    folder: Path | None = None,
    **fields: Any,
) -> None:
    """Send this process's log lines to stderr and, with ``folder``, to the rotating file ``<role>.log`` there.

    ``format``: text or json; None: text where stderr is a terminal. ``quiet``: only warnings and errors on stderr.
    ``fields`` go along with every line. Replaces an earlier set-up. Raises `ConfigError` when the folder cannot be
    written.
    """
    base = {"role": role, "host": socket.gethostname(), "pid": os.getpid(), **fields}
    handlers: list[logging.Handler] = []
    if sys.stderr is not None:  # a daemon may have closed it
        stream = logging.StreamHandler(sys.stderr)
        as_json = (format or default_format()) == "json"
        stream.setFormatter(JsonFormatter(base) if as_json else TextFormatter(base, terminal=True))
        stream.setLevel(max(logging.WARNING, _number(level)) if quiet else _number(level))
        handlers.append(stream)
    if folder is not None:
        file = _file(folder / f"{role}.log")
        file.setFormatter(TextFormatter(base) if format == "text" else JsonFormatter(base))
        handlers.append(file)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(_number(level))
    logging.raiseExceptions = False  # a full disk or a closed terminal must not disturb the queue


def default_format() -> str:
    """``text`` where stderr is a terminal, else ``json``."""
    return "text" if sys.stderr is not None and sys.stderr.isatty() else "json"


def _number(level: str) -> int:
    number: int = getattr(logging, level.upper())
    return number


def _file(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        return logging.handlers.RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=FILES_KEPT, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write to {path}: {(error.strerror or 'error').lower()}",
            hint="choose another folder with --state-dir (TASKQ_STATE_DIR)",
        ) from None


class _Formatter(logging.Formatter):
    """Collects the fields of a record: those of the process, of the context, of the call."""

    def __init__(self, base: Mapping[str, Any]) -> None:
        super().__init__()
        self._base = base

    def collect(self, record: logging.LogRecord) -> dict[str, Any]:
        """All fields of a record, ``msg`` included, in a fixed order."""
        fields = {**self._base, **_context.get()}
        for source in _sources:
            fields.update(source())
        fields.update(getattr(record, "taskq_fields", {}))
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "ts": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": getattr(record, "taskq_event", "log"),
            "msg": record.getMessage(),
        }
        line.update({name: fields[name] for name in FIELDS if fields.get(name) is not None})
        return line


class JsonFormatter(_Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return json.dumps(self.collect(record), ensure_ascii=False, default=str)


class TextFormatter(_Formatter):
    """One line for people: time, level, who, event, sentence, fields; a traceback follows on lines of its own.

    ``terminal``: sentences that were announced stand alone.
    """

    def __init__(self, base: Mapping[str, Any], *, terminal: bool = False) -> None:
        super().__init__(base)
        self._terminal = terminal

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        if self._terminal and getattr(record, "taskq_plain", False):
            return record.getMessage()
        line = self.collect(record)
        who = f"{line.pop('role')}@{line.pop('host')}[{line.pop('pid')}]"
        parts = [line.pop("ts"), f"{line.pop('level'):<7}", who, line.pop("logger"), f"{line.pop('event')}:"]
        error = str(line.pop("error", ""))
        text = " ".join([*parts, _one_line(line.pop("msg"))])
        if line:
            text += "  " + " ".join(f"{name}={value}" for name, value in line.items())
        if "\n" in error:
            return f"{text}\n{error}"
        return f"{text} error={error}" if error else text


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n")
