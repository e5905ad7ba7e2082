"""``taskq-monitor worker list``: the worker processes, one a line."""

from __future__ import annotations

from typing import Any

import click

from taskq.cli import output as out
from taskq.cli.options import Connection, common_options, connection_options
from taskq.cli.output import Output
from taskq.cli.tasks import Verbs, connected
from taskq.layout import count, duration, plain, size

HEAD = ("WORKER", "HOST", "PID", "STATE", "BUSY", "RSS", "DONE", "FAILED", "BEAT", "QUEUES")


@click.group(cls=Verbs, example="taskq-monitor worker list")
def worker() -> None:
    """Look at worker processes."""


@worker.command("list", example="taskq-monitor worker list --json")
@connection_options
@common_options
def list_workers(*, connection: Connection, output: Output) -> int:
    """Print all worker processes: where they are, how busy, and which queues they serve."""
    with connected(connection) as manager:
        found = sorted(manager.snapshot()["workers"], key=lambda one: str(one["id"]))
    if output.json:
        output.value(found)
    elif found:
        output.table(HEAD, [_row(one) for one in found])
    else:
        output.note('no workers; start some with "taskq-worker"')
    return out.EXIT_OK


def _row(one: dict[str, Any]) -> tuple[object, ...]:
    queues = plain(",".join(one["queues"])) or "all"
    return (
        plain(one["id"]),
        plain(one["host"] or "-"),
        one["pid"],
        one["state"],
        f"{count(one['busy'])}/{count(one['threads'])}",
        size(one["rss_bytes"]),
        count(one["completed"]),
        count(one["failed"]),
        duration(one["last_heartbeat_s"]),
        queues + (f" ({one['queue_order']})" if one["queue_order"] else ""),
    )
