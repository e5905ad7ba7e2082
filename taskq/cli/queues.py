"""``taskq-monitor queue …``: list queues, pause and resume them, cancel what waits in one, limit what runs of one."""

from __future__ import annotations

from typing import Any

import click

from taskq import queues
from taskq.cli import output as out
from taskq.cli.options import Connection, common_options, connection_options
from taskq.cli.output import Output
from taskq.cli.tasks import Verbs, connected
from taskq.errors import QueueNotFound
from taskq.layout import count, counted, duration, plain
from taskq.service import QueueService

HEAD = ("QUEUE", "PENDING", "SCHEDULED", "RUNNING", "LIMIT", "OLDEST", "PAUSED")
NO_LIMIT = "none"


@click.group(cls=Verbs, example="taskq-monitor queue pause mail")
def queue() -> None:
    """Look at queues, pause and resume them, empty one, limit what runs of one."""


@queue.command("list", example="taskq-monitor queue list --json")
@connection_options
@common_options
def list_queues(*, connection: Connection, output: Output) -> int:
    """Print the queues that have tasks, are paused or have a limit."""
    with connected(connection) as manager:
        snapshot = manager.snapshot()
    if output.json:
        output.value(snapshot["queues"])
    elif snapshot["queues"]:
        output.table(HEAD, [_row(found) for found in snapshot["queues"]])
    else:
        output.note('no queues: one is there as soon as a task is submitted to it, or "queue pause" names it')
    return out.EXIT_OK


def _row(found: dict[str, Any]) -> tuple[object, ...]:
    limit = "-" if found["limit"] is None else count(found["limit"])
    paused = f"by {plain(found['paused_by'] or '?')} since {found['paused_at']}" if found["paused"] else ""
    counts = (count(found["pending"]), count(found["scheduled"]), count(found["running"]))
    return plain(found["name"]), *counts, limit, duration(found["oldest_pending_s"]), paused


@queue.command("pause", example="taskq-monitor queue pause mail")
@click.argument("queue_name", metavar="QUEUE")
@connection_options
@common_options
def pause(*, queue_name: str, connection: Connection, output: Output) -> int:
    """Hand out nothing of a queue until it is resumed. Tasks that run go on, and submits are accepted."""
    with connected(connection) as manager:
        info = manager.pause_queue(queue_name, queues.whoami())
        found = _find(manager, queue_name)
    if output.json:
        output.value(found)
        return out.EXIT_OK
    output.line(
        f'queue "{plain(queue_name)}" is paused by {plain(info["paused_by"] or "?")} since {found["paused_at"]}'
    )
    if not any(found[kind] for kind in ("pending", "scheduled", "running")):
        output.note("it has no tasks now: those that come will wait")
    return out.EXIT_OK


@queue.command("resume", example="taskq-monitor queue resume mail")
@click.argument("queue_name", metavar="QUEUE")
@connection_options
@common_options
def resume(*, queue_name: str, connection: Connection, output: Output) -> int:
    """Hand out tasks of a paused queue again."""
    with connected(connection) as manager:
        before = manager.resume_queue(queue_name)
    was = before["paused_at"] is not None
    if output.json:
        output.value({"name": queue_name, "was_paused": was})
    else:
        output.line(f'queue "{plain(queue_name)}" goes on' if was else f'queue "{plain(queue_name)}" was not paused')
    return out.EXIT_OK


@queue.command("limit", example="taskq-monitor queue limit mail 5")
@click.argument("queue_name", metavar="QUEUE")
@click.argument("running", metavar="N|none")
@connection_options
@common_options
def limit(*, queue_name: str, running: str, connection: Connection, output: Output) -> int:
    """Let at most N tasks of a queue run at once, over all workers; "none" ends that."""
    if running != NO_LIMIT and not running.isdecimal():
        raise click.BadParameter(f'"{running}" is neither a number nor "{NO_LIMIT}"', param_hint="N|none")
    with connected(connection) as manager:
        info = manager.limit_queue(queue_name, None if running == NO_LIMIT else int(running))
    if output.json:
        output.value({"name": queue_name, "limit": info["limit"]})
    elif info["limit"] is None:
        output.line(f'queue "{plain(queue_name)}" has no limit')
    else:
        output.line(f'of queue "{plain(queue_name)}" at most {counted(info["limit"], "task")} run at once')
    return out.EXIT_OK


@queue.command("purge", example="taskq-monitor queue purge mail --yes")
@click.argument("queue_name", metavar="QUEUE")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connection_options
@common_options
def purge(*, queue_name: str, yes: bool, connection: Connection, output: Output) -> int:
    """Cancel all tasks that wait in a queue, pending and scheduled ones. What runs goes on."""
    with connected(connection) as manager:
        found = _find(manager, queue_name)
        waiting = found["pending"] + found["scheduled"]
        if (
            waiting
            and not yes
            and not output.agreed(f'cancel {counted(waiting, "task")} of queue "{plain(queue_name)}"?')
        ):
            output.note("nothing was done")
            return out.EXIT_FAILED
        with output.bar(waiting, "cancelling") as advance:
            cancelled = queues.purge(manager.purge_queue, queue_name, advance)
    if output.json:
        output.value({"name": queue_name, "cancelled": cancelled})
    else:
        output.line(f"{counted(cancelled, 'task')} cancelled")
    return out.EXIT_OK


def _find(manager: QueueService, name: str) -> dict[str, Any]:
    """The figures of one queue. Raises `QueueNotFound`."""
    for found in manager.snapshot()["queues"]:
        if found["name"] == name:
            return dict(found)
    raise QueueNotFound(f'there is no queue "{name}"', hint='"taskq-monitor queue list" shows those that there are')
