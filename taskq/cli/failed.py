"""``taskq-monitor failed …``: failed tasks by error, one of them in full, begin them anew, drop them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from taskq.cli import output as out
from taskq.cli.options import Connection, common_options, connection_options
from taskq.cli.output import Output
from taskq.cli.tasks import TASK_ID, Verbs, act, connected, show_task
from taskq.clock import SystemClock
from taskq.layout import counted
from taskq.selecting import FAILED_ONLY
from taskq.service import MAX_BATCH, QueueService

where_option = click.option(
    "--where", metavar="CONDITIONS", help="Only those for which this holds: 'type=mail error~=Timeout age>1h'."
)


@click.group(cls=Verbs, example="taskq-monitor failed list")
def failed() -> None:
    """Look at failed tasks, let them begin anew, drop them."""


@failed.command("list", example="taskq-monitor failed list --where 'queue=mail age<1d'")
@where_option
@connection_options
@common_options
def list_failed(*, where: str | None, connection: Connection, output: Output) -> int:
    """Print failed tasks by error and type, the most frequent first."""
    from taskq import dead_letters
    from taskq.selecting import matching

    with connected(connection) as queue:
        groups = dead_letters.grouped(matching(queue, where or "", FAILED_ONLY))
    if output.json:
        output.value([dead_letters.public_group(group) for group in groups])
    elif groups:
        now = SystemClock().wall()
        output.table(dead_letters.HEAD, [dead_letters.group_row(group, now) for group in groups])
    else:
        output.note("no failed task is like that" if where else "no failed tasks")
    return out.EXIT_OK


@failed.command("show", example="taskq-monitor failed show 42")
@click.argument("task_id", metavar="ID", type=TASK_ID)
@connection_options
@common_options
def show(*, task_id: int, connection: Connection, output: Output) -> int:
    """Print all that is known of a task, its attempts too; of those that a worker process died under, how it died."""
    return show_task(task_id, connection, output)


def _choosing(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which failed tasks are meant."""
    command = common_options(connection_options(command))
    command = click.option("--yes", is_flag=True, help="Do not ask.")(command)
    command = click.option("--all", "everything", is_flag=True, help="All failed tasks.")(command)
    command = where_option(command)
    return click.argument("task_ids", metavar="[ID...]", type=TASK_ID, nargs=-1)(command)


@failed.command("requeue", example="taskq-monitor failed requeue --where 'type=mail.send error~=Timeout'")
@_choosing
def requeue(*, connection: Connection, output: Output, **chosen: Any) -> int:
    """Let failed tasks begin anew, with a new budget of retries; their history stays."""
    return _act(connection, output, "requeue", "requeued", **chosen)


@failed.command("drop", example="taskq-monitor failed drop --where 'age>7d' --yes")
@_choosing
def drop(*, connection: Connection, output: Output, **chosen: Any) -> int:
    """Delete records of failed tasks. Their ids are never used again."""
    return _act(connection, output, "drop", "dropped", **chosen)


def _act(
    connection: Connection,
    output: Output,
    verb: str,
    done: str,
    *,
    task_ids: Sequence[int],
    where: str | None,
    everything: bool,
    yes: bool,
) -> int:
    if sum((bool(task_ids), where is not None, everything)) != 1:
        raise click.UsageError(f"say what to {verb}: ids, or --where, or --all")
    if where is not None and not where.strip():
        raise click.UsageError("--where has no conditions; --all is for all")
    with connected(connection) as queue:
        if task_ids:
            return act(getattr(queue, verb), task_ids, done, output)
        ids = _meant(queue, where or "")
        if not ids:
            output.note("no failed task is like that" if where else "no failed tasks")
        elif not yes and not output.agreed(f"{verb} {counted(len(ids), 'failed task')}?"):
            output.note("nothing was done")
            return out.EXIT_FAILED
        one = getattr(queue, verb)
        parts = [ids[start : start + MAX_BATCH] for start in range(0, len(ids), MAX_BATCH)]
        answers = [answer for part in parts for answer in one(part)]
    number = answers.count(done)
    if output.json:
        output.value({done: number})
    else:
        output.line(f"{counted(number, 'task')} {done}")
    return out.EXIT_OK


def _meant(queue: QueueService, where: str) -> list[int]:
    from taskq.selecting import matching

    return [record["id"] for record in matching(queue, where, FAILED_ONLY)]
