"""What the monitor shows: a snapshot (schema ``taskq.snapshot/1``) in, lines of text out. PURE.

`render` gives the whole picture of ``taskq-monitor``: heading, queues, workers, recent outcomes, warnings. A field that
the manager does not know (or does not send yet) is shown as ``-``. Colours are not decided here: each line says what
kind of line it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import tzinfo
from typing import Any, NamedTuple

from taskq import layout
from taskq.layout import Column, count, counted, duration, percent, plain, rate, size, table, time_of_day

Snapshot = Mapping[str, Any]

WIDTH = 80
"""Columns of the picture where nobody says otherwise."""
WIDE = 100
"""Columns from which on the heading has two lines instead of three."""

QUEUE_COLUMNS = (
    Column("QUEUE", 9, right=False, cuttable=True),
    Column("PENDING", 7),
    Column("OLDEST", 6),
    Column("RUNNING", 7),
    Column("SCHEDULED", 9),
    Column("IN/s", 5),
    Column("DONE/s", 6),
    Column("WAIT p95", 8),
    Column("RUN p95", 8),
    Column("", 0, gap=3, right=False),
)
WORKER_COLUMNS = (
    Column("WORKER", 15, right=False, cuttable=True),
    Column("BUSY", 4),
    Column("CPU", 6),
    Column("RSS", 5),
    Column("DONE", 6),
    Column("FAILED", 6),
    Column("BEAT", 4),
    Column("NOW", 0, right=False),
)
RECENT_COLUMNS = (
    Column("RECENT", 8, right=False),
    Column("TASK", 7),
    Column("TYPE", 9, right=False, cuttable=True),
    Column("QUEUE", 9, gap=1, right=False, cuttable=True),
    Column("TOOK", 6, gap=1, right=False),
    Column("WORKER", 11, gap=1, right=False, cuttable=True),
    Column("OUTCOME", 0, gap=1, right=False),
)

NO_TASKS = ' no tasks yet; try "taskq-submit --random --count 20"'
NO_QUEUES = ' nothing waits or runs; "taskq-monitor task list" shows what was done before'
NO_WORKERS = ' no workers; start some with "taskq-worker"'
NO_RECENT = " nothing has finished yet"
NO_RECENT_SINCE = " nothing has finished since the manager started"

SHOWN_TASKS = 2
"""Tasks that a worker's line names; the others are counted."""


class Line(NamedTuple):
    """A line of the picture. ``kind``: title, head, row, failed, hint, warning or space."""

    kind: str
    text: str


def render(snapshot: Snapshot, width: int = WIDTH, height: int | None = None, zone: tzinfo | None = None) -> list[Line]:
    """The picture, no line longer than ``width``, in ``height`` lines if given: then lists are shortened to fit.

    Times of day are in ``zone`` (None: the machine's own).
    """
    top = [Line("title", text) for text in _heading(snapshot, width, zone)]
    bottom = [Line("warning", layout.cut(f"! {text}", width)) for text in warnings(snapshot)]
    sections = [_queues(snapshot, width), _workers(snapshot, width), _recent(snapshot, width, zone)]
    if height is not None:
        sections = _fitted(sections, height - len(top) - len(bottom) - len(sections))
    lines = list(top)
    for section in sections:
        lines += [Line("space", ""), *section]
    lines += bottom
    return lines if height is None else lines[:height]


def to_text(lines: Iterable[Line]) -> str:
    """The lines as plain text, one line end after each."""
    return "".join(f"{line.text}\n" for line in lines)


def warnings(snapshot: Snapshot) -> list[str]:
    """What is not well, in words for people: the snapshot's warnings, and pools that give no sign of life."""
    return [describe_warning(warning) for warning in snapshot.get("warnings") or ()] + _silent_pools(snapshot)


def _silent_pools(snapshot: Snapshot) -> list[str]:
    """One text for each pool that has missed its heartbeats or is suspended (``mgr-4188/1`` is of ``mgr-4188``)."""
    ailing: dict[tuple[str, str], list[float]] = {}
    for worker in snapshot.get("workers") or ():
        if worker.get("state") in ("silent", "stopped"):
            pool = str(worker.get("id")).rpartition("/")[0] or str(worker.get("id"))
            ailing.setdefault((pool, worker["state"]), []).append(worker.get("last_heartbeat_s") or 0.0)
    return [
        plain(f"{pool}: {counted(len(beats), 'worker')} {_AILMENTS[state]}")
        + (f", no heartbeat for {duration(max(beats))}" if state == "silent" else "")
        for (pool, state), beats in ailing.items()
    ]


_AILMENTS = {"silent": "silent", "stopped": "suspended (stopped by a signal)"}


def unhealthy(snapshot: Snapshot) -> list[str]:
    """Why the system needs a person, empty when it does not: that there is no worker at all, and every warning."""
    return ([] if snapshot.get("workers") else ["no workers"]) + warnings(snapshot)


def in_short(snapshot: Snapshot) -> str:
    """The system in a few words: ``4 workers, 16 threads, 1,204 pending, 12 running``."""
    workers, queues = snapshot.get("workers") or (), snapshot.get("queues") or ()
    words = (
        counted(len(workers), "worker"),
        counted(_sum(worker.get("threads") for worker in workers) or 0, "thread"),
        f"{count(_sum(queue.get('pending') for queue in queues) or 0)} pending",
        f"{count(_sum(queue.get('running') for queue in queues) or 0)} running",
    )
    return ", ".join(words)


def describe_warning(warning: Mapping[str, Any]) -> str:
    """One warning in words: its own ``message``, else one made of its code and fields."""
    if warning.get("message"):
        return plain(str(warning["message"]))
    fields = [f"{name}={value}" for name, value in warning.items() if name != "code"]
    return plain(" ".join([str(warning.get("code", "warning")).replace("_", " "), *fields]))


def _heading(snapshot: Snapshot, width: int, zone: tzinfo | None) -> list[str]:
    """Two lines where there is room, three at 80 columns."""
    manager = snapshot.get("manager") or {}
    store = str(manager.get("store") or layout.UNKNOWN)
    durable = manager.get("durable")
    kept = f"store {plain(store)}" + ("" if durable is None else ", committed" if durable else ", lost at a stop")
    title = "  ".join(
        (
            f"taskq {plain(str(manager.get('name') or 'default'))}",
            plain(str(manager.get("address") or layout.UNKNOWN)),
            f"up {duration(manager.get('uptime_s'))}",
            f"cpu {percent(manager.get('cpu_percent'))}",
            f"rss {size(manager.get('rss_bytes'))}",
        )
    )
    clock = time_of_day(snapshot.get("taken_at"), zone)
    speed, waiting, running = _totals(snapshot)
    if width >= WIDE and len(title) + len(kept) + len(clock) + 5 <= width:
        return [f"{title}  {kept}   {clock}", *layout.flow([speed, waiting, running], width)]
    title = layout.cut(title, width - len(clock) - 3)
    # The same breaks whatever the numbers are: a picture that is redrawn must not jump.
    below = (((0, kept), speed), (waiting, running))
    return [f"{title}   {clock}", *(line for groups in below for line in layout.flow(groups, width))]


def _totals(snapshot: Snapshot) -> list[tuple[int, str]]:
    queues = snapshot.get("queues") or ()
    workers = snapshot.get("workers") or ()
    speed = [_sum((queue.get("rate") or {}).get(name) for queue in queues) for name in _RATES]
    oldest = [queue["oldest_pending_s"] for queue in queues if queue.get("oldest_pending_s") is not None]
    busy, threads = _sum(w.get("busy") for w in workers), _sum(w.get("threads") for w in workers)
    failed = {**(snapshot.get("totals") or {}), **(snapshot.get("kept") or {})}.get("failed")
    flowing = zip(("in", "done", "failed"), speed, strict=True)
    return [
        (4, "  ".join(f"{word} {rate(number, digits=0)}/s" for word, number in flowing)),
        (4, f"pending {count(_sum(q.get('pending') for q in queues))}  oldest {duration(max(oldest, default=None))}"),
        (3, f"running {count(busy or 0)}/{count(threads or 0)}  failed {count(failed)}"),
    ]


_RATES = ("in_per_s", "done_per_s", "failed_per_s")


def _sum(numbers: Iterable[Any]) -> Any:
    """The sum of what is known, also of nothing at all; None when there are numbers and none is known."""
    given = list(numbers)
    known = [number for number in given if number is not None]
    return sum(known) if known or not given else None


def _queues(snapshot: Snapshot, width: int) -> list[Line]:
    rows, tails = [], []
    for queue in snapshot.get("queues") or ():
        speed = queue.get("rate") or {}
        rows.append(
            (
                plain(str(queue.get("name"))),
                count(queue.get("pending")),
                duration(queue.get("oldest_pending_s")),
                count(queue.get("running")),
                count(queue.get("scheduled")),
                rate(speed.get("in_per_s")),
                rate(speed.get("done_per_s")),
                duration((queue.get("wait_s") or {}).get("p95")),
                duration((queue.get("run_s") or {}).get("p95")),
            )
        )
        tails.append(_laid_down(queue))
    return _section(QUEUE_COLUMNS, rows, tails, width, NO_QUEUES if _has_history(snapshot) else NO_TASKS)


def _laid_down(queue: Mapping[str, Any]) -> list[str]:
    """What people have laid down for a queue, in wordings from full to short."""
    paused = "PAUSED" if queue.get("paused") else ""
    limit = f"LIMIT {count(queue['limit'])}" if queue.get("limit") is not None else ""
    return [f"{paused} {limit}".strip(), paused or limit, paused]


def _has_history(snapshot: Snapshot) -> bool:
    """Whether there are tasks from before the manager's last start: its queues and recent outcomes begin with that."""
    return any((snapshot.get("totals") or {}).values())


def _workers(snapshot: Snapshot, width: int) -> list[Line]:
    rows, tails = [], []
    for worker in sorted(snapshot.get("workers") or (), key=_by_pool):
        rows.append(
            (
                plain(str(worker.get("id"))),
                f"{count(worker.get('busy'))}/{count(worker.get('threads'))}",
                percent(worker.get("cpu_percent")),
                size(worker.get("rss_bytes")),
                count(worker.get("completed")),
                count(worker.get("failed")),
                duration(worker.get("last_heartbeat_s")),
            )
        )
        tails.append(_now(worker))
    return _section(WORKER_COLUMNS, rows, tails, width, NO_WORKERS)


def _by_pool(worker: Mapping[str, Any]) -> tuple[str, int, str]:
    """Order of workers: by pool, then by number (``mgr-4188/2`` comes before ``mgr-4188/10``)."""
    pool, _, number = str(worker.get("id")).rpartition("/")
    return pool, int(number) if number.isdecimal() else 0, number


def _now(worker: Mapping[str, Any]) -> list[str]:
    """What a worker does, in wordings from full to short."""
    state = str(worker.get("state") or "running")
    prefix = "" if state in ("running", "ready", "live") else f"{plain(state).upper()} "
    tasks = [(f"{plain(str(task.get('type')))} {task.get('id')}", task) for task in worker.get("running") or ()]
    if not tasks:
        return [prefix.rstrip()]
    wordings = []
    for shown in range(min(SHOWN_TASKS, len(tasks)), 0, -1):
        more = f" +{len(tasks) - shown}" if len(tasks) > shown else ""
        named = ", ".join(f"{name} ({_so_far(task)})" for name, task in tasks[:shown])
        wordings.append(f"{prefix}{named}{more}")
    more = f" +{len(tasks) - 1}" if len(tasks) > 1 else ""
    return [*wordings, f"{prefix}{tasks[0][0]}{more}"]


def _so_far(task: Mapping[str, Any]) -> str:
    """How long a task has run, and how far it says it is."""
    done = task.get("progress")
    return duration(task.get("for_s")) + ("" if done is None else f", {percent(100 * done)}")


def _recent(snapshot: Snapshot, width: int, zone: tzinfo | None) -> list[Line]:
    rows, tails = [], []
    recent = snapshot.get("recent") or snapshot.get("recent_failures") or ()
    for task in recent:
        rows.append(
            (
                time_of_day(task.get("finished_at"), zone),
                str(task.get("id")),
                plain(str(task.get("type"))),
                plain(str(task.get("queue"))),
                duration(task.get("run_s")),
                plain(str(task.get("worker") or layout.UNKNOWN)),
            )
        )
        tails.append([outcome(task)])
    lines = _section(RECENT_COLUMNS, rows, tails, width, NO_RECENT_SINCE if _has_history(snapshot) else NO_RECENT)
    bad = [index for index, task in enumerate(recent, start=1) if task.get("state", "failed") == "failed"]
    return [Line("failed", line.text) if index in bad else line for index, line in enumerate(lines)]


def outcome(task: Mapping[str, Any]) -> str:
    """How a task ended: ``completed``, ``failed after 4: OSError``, ``failed after 3 deaths``, ``cancelled``."""
    state = str(task.get("state") or "failed")
    if state != "failed":
        return state
    error = task.get("error") or {}
    failures, deaths = task.get("failures") or 0, task.get("deaths") or 0
    if error.get("kind") == "poisoned":
        return f"failed after {deaths} deaths"
    tried = f" after {failures + deaths}" if failures + deaths else ""
    reason = error.get("type") or error.get("kind")
    return plain(f"failed{tried}: {reason}" if reason else f"failed{tried}")


def _section(
    columns: Sequence[Column], rows: Sequence[layout.Row], tails: Sequence[Sequence[str]], width: int, empty: str
) -> list[Line]:
    """A table, or its heading and what to do when it has no rows."""
    head, *body = table(columns, rows, tails, width)
    if not body:
        return [Line("head", head), Line("hint", layout.cut(empty, width))]
    return [Line("head", head), *(Line("row", text) for text in body)]


def _fitted(sections: list[list[Line]], height: int) -> list[list[Line]]:
    """The sections in ``height`` lines: the longest loses lines first, and says how many are not shown."""
    sizes = [len(section) for section in sections]
    while sum(sizes) > height and max(sizes) > 2:
        sizes[sizes.index(max(sizes))] -= 1
    fitted = []
    for section, lines in zip(sections, sizes, strict=True):
        if lines < len(section):
            section = [*section[: lines - 1], Line("hint", f" … {len(section) - lines + 1} more")]
        fitted.append(section)
    return fitted
