"""``taskq-worker``: a pool of worker processes, declared for click; `taskq.workers.worker_pool` does the work."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import click

from taskq import logs
from taskq.cli.options import Command, Connection, common_options, connection_options, pool_options, setting
from taskq.cli.output import EXIT_OK, Output, run
from taskq.config import Join, PoolSettings
from taskq.signature import Signature

EXAMPLE = """\
taskq-worker --tasks myapp.tasks
ssh mgr taskq-manager --print-join | taskq-worker --join - --tasks myapp.tasks"""


@click.command(cls=Command, example=EXAMPLE)
@pool_options
@setting("--worker-name", default="", metavar="NAME", help="How the monitor calls this pool.  [host-pid]")
@click.option("--list-tasks", is_flag=True, help="List the tasks that it would offer, and leave.")
@click.option("--local-to", hidden=True, help="Id of the manager run that starts this pool.")
@click.option("--next-join", hidden=True, type=Path, help="Join file of the manager that comes after that one.")
@connection_options
@common_options
def command(
    pool: PoolSettings,
    worker_name: str,
    list_tasks: bool,
    local_to: str | None,
    next_join: Path | None,
    connection: Connection,
    output: Output,
) -> int:
    """Run worker processes that take tasks from a manager, until stopped.

    SIGTERM or Ctrl-C lets running tasks finish; a second one stops at once. When the manager is away, running tasks
    go on and are delivered when it is back.
    """
    if list_tasks:
        return _list_tasks(pool.tasks, output)
    if pool.workers == 0:
        raise click.BadParameter("a pool needs at least one worker process", param_hint="'--workers'")
    settings = dataclasses.replace(
        pool,
        name=worker_name or f"{socket.gethostname()}-{os.getpid()}",
        connect_timeout=connection.connect_timeout,
        local=local_to,
        log_level=output.log_level or "info",
        log_format=output.log_format or logs.default_format(),
    )
    logs.setup("pool", level=settings.log_level, format=settings.log_format, quiet=output.quiet, worker=settings.name)
    return _run_pool(settings, connection, next_join)


def _run_pool(settings: PoolSettings, connection: Connection, next_join: Path | None) -> int:
    from taskq.workers.worker_pool import WorkerPool  # not needed to list tasks or to show help

    return WorkerPool(_find_join(settings, connection, next_join), settings).run()


def _find_join(settings: PoolSettings, connection: Connection, next_join: Path | None) -> Callable[[], Join]:
    """What says, each time anew, where the manager is: a file may be another one after a restart."""
    if connection.join_file != "-":
        return connection.join
    if settings.local is not None:
        from taskq.local_pool import joins_from_manager

        return joins_from_manager(next_join)
    only = connection.join()
    return lambda: only


def _list_tasks(modules: tuple[str, ...], output: Output) -> int:
    from taskq import builtin_tasks, registry  # imports the user's code, so only when asked

    registry.load([builtin_tasks.__name__, *modules])
    types = registry.all_types()
    if output.json:
        output.value([{**found.describe(), "parameters": _names(found.signature)} for found in types])
    else:
        rows = [(str(found.signature), found.queue, found.terms.max_retries, found.terms.timeout) for found in types]
        output.table(("TASK", "QUEUE", "RETRIES", "TIMEOUT"), rows)
    return EXIT_OK


def _names(signature: Signature) -> list[str]:
    return [name for name, _, _ in signature.parameters]


def main() -> None:
    """The entry point of ``taskq-worker``."""
    sys.exit(run(command, "taskq-worker"))
