"""``taskq-monitor``: see what the queue does, continuously, once, or as JSON. Its verbs are in `taskq.cli.tasks`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from taskq.cli import output as out
from taskq.cli.failed import failed
from taskq.cli.options import DURATION, Connection, Group, common_options, connection_options, setting
from taskq.cli.output import Output
from taskq.cli.queues import queue
from taskq.cli.tasks import connected, explaining, task
from taskq.cli.workers import worker

if TYPE_CHECKING:
    from taskq.monitor import Source, Watch

SHORTEST_INTERVAL = 0.05
"""Seconds."""

EXAMPLE = """taskq-monitor                          # q quits
taskq-monitor --once
taskq-monitor --export json > stats.json
taskq-monitor task list --state failed
taskq-monitor explain 42"""


@click.group(cls=Group, invoke_without_command=True, example=EXAMPLE)
@setting("--interval", type=DURATION, default="1s", show_default=True, metavar="TIME", help="Time between two looks.")
@click.option("--once", is_flag=True, help="Show the picture once, as plain text of 80 columns.")
@click.option("--export", type=click.Choice(("json", "jsonl")), help="One snapshot as JSON, or one a line for ever.")
@click.option("-o", "--output-file", "target", metavar="FILE", help="Where --export writes: json replaces, jsonl adds.")
@click.option("--check", is_flag=True, help="Say what needs a person; the exit code is 7 if anything does.")
@connection_options
@common_options
@click.pass_context
def command(
    ctx: click.Context,
    *,
    interval: float,
    once: bool,
    export: str | None,
    target: str | None,
    check: bool,
    connection: Connection,
    output: Output,
) -> int:
    """See what the queue does; look after tasks, queues and workers."""
    if ctx.invoked_subcommand is not None:
        return out.EXIT_OK
    if interval < SHORTEST_INTERVAL:
        raise click.BadParameter("must be at least 50 ms", param_hint="--interval")
    if check and (export is not None or once):
        raise click.UsageError("--check goes with neither --once nor --export")
    if target is not None and export is None:
        raise click.UsageError("-o goes with --export")
    if check:
        return _check(connection, output)
    if export == "jsonl" and not once:
        return _export_lines(_watch(connection, interval), output, target)
    if export is not None or output.json:
        return _export(connection, output, target, replace=export != "jsonl")
    return _once(connection, output) if once else _continuous(connection, output, interval)


for verbs in (task, explaining("taskq-monitor explain 42"), failed, queue, worker):
    command.add_command(verbs)


def _once(connection: Connection, output: Output) -> int:
    from taskq import views

    with connected(connection) as queue:
        snapshot = queue.snapshot()
    output.line(views.to_text(views.render(snapshot)).removesuffix("\n"))
    return out.EXIT_OK


def _check(connection: Connection, output: Output) -> int:
    from taskq import views

    with connected(connection) as queue:
        snapshot = queue.snapshot()
    reasons = views.unhealthy(snapshot)
    if output.json:
        output.value({"healthy": not reasons, "reasons": reasons})
    elif reasons:
        for reason in reasons:
            output.line(f"unhealthy: {reason}")
    elif not output.quiet:
        output.line(f"healthy: {views.in_short(snapshot)}")
    return out.EXIT_UNHEALTHY if reasons else out.EXIT_OK


def _export(connection: Connection, output: Output, target: str | None, *, replace: bool) -> int:
    from taskq import monitor

    with connected(connection) as queue:
        text = monitor.export_line(queue.snapshot())
    if target is None:
        output.line(text)
    elif replace:
        monitor.write_atomically(Path(target), text)
    else:
        monitor.append(Path(target), text)
    return out.EXIT_OK


def _export_lines(watch: Watch, output: Output, target: str | None) -> int:
    from taskq import monitor

    write: Callable[[str], None] = output.line if target is None else lambda text: monitor.append(Path(target), text)
    monitor.export_lines(watch, write, output.warning)
    return out.EXIT_OK


def _continuous(connection: Connection, output: Output, interval: float) -> int:
    from taskq import monitor
    from taskq.clock import SystemClock

    clock = SystemClock()
    watch = _watch(connection, interval)
    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        color = output.colors(sys.stdout)
        return monitor.Screen(watch, clock, interval, keys=sys.stdin, output=sys.stdout, color=color).run()
    monitor.print_forever(watch, clock, interval, output.line)
    return out.EXIT_OK


def _watch(connection: Connection, interval: float) -> Watch:
    """A watch that reads the join file anew for each connection: a manager that starts again may have another port."""
    from taskq.clock import SystemClock
    from taskq.monitor import Watch
    from taskq.wire.client import RemoteQueue

    given = connection.join() if connection.join_file == "-" else None

    def connect() -> Source:
        return RemoteQueue(given or connection.join(), connect_timeout=connection.connect_timeout)

    return Watch(connect, interval, SystemClock())


def main() -> None:
    """The entry point of ``taskq-monitor``."""
    sys.exit(out.run(command, "taskq-monitor"))


if __name__ == "__main__":
    main()
