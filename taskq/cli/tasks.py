"""``taskq-monitor task …``: list tasks, show one, print its result, cancel, purge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from taskq.cli import output as out
from taskq.cli.options import DURATION, Command, Connection, Group, Integer, common_options, connection_options
from taskq.cli.output import Output, to_json
from taskq.clock import SystemClock
from taskq.errors import ResultExpired, TaskNotFound
from taskq.layout import plain
from taskq.queue.task import FINAL, STATE_BY_LABEL, State
from taskq.service import MAX_BATCH

if TYPE_CHECKING:
    from taskq.service import QueueService

TASK_ID = Integer(1, 2**63 - 1)
MAX_LISTED = 1_000
UNFINISHED = tuple(state.label for state in State if state not in FINAL)
NOT_FOUND_HINT = '"taskq-monitor task list" shows the tasks that there are'


@contextmanager
def connected(connection: Connection) -> Iterator[QueueService]:
    """The manager's queue, for a few calls; a manager that is not there is an error at once."""
    from taskq.wire.client import RemoteQueue

    queue = RemoteQueue(connection.join(), connect_timeout=connection.connect_timeout)
    try:
        yield queue
    finally:
        queue.close()


class Verb(Command):
    """A verb; options that were given before it (``taskq-monitor --port 9000 task list``) hold for it too."""

    def invoke(self, ctx: click.Context) -> Any:
        """Take over what was given to the commands above, then run."""
        for name in ctx.params:
            giver: click.Context | None = ctx
            while giver is not None and giver.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
                giver = giver.parent
            if giver is not None:
                ctx.params[name] = giver.params[name]
        return super().invoke(ctx)


class Verbs(Group):
    """A group of verbs."""

    command_class = Verb


@click.group(cls=Verbs, example="taskq-monitor task show 42")
def task() -> None:
    """Look at tasks, cancel them, delete old ones."""


@task.command("list", example="taskq-monitor task list --state failed --limit 10")
@click.option("--state", type=click.Choice(tuple(STATE_BY_LABEL)), help="Only tasks in this state.")
@click.option("--type", "type_name", metavar="TYPE", help="Only tasks of this type.")
@click.option("--queue", "queue_name", metavar="QUEUE", help="Only tasks of this queue.")
@click.option(
    "--limit", type=Integer(1, MAX_LISTED), default=50, show_default=True, metavar="N", help="At most so many."
)
@connection_options
@common_options
def list_tasks(
    *,
    state: str | None,
    type_name: str | None,
    queue_name: str | None,
    limit: int,
    connection: Connection,
    output: Output,
) -> int:
    """Print tasks, newest first."""
    with connected(connection) as queue:
        found = queue.list_tasks(state, type_name, queue_name, limit)
        types = queue.types()["types"] if output.json and found else ()
        if output.json:
            found = [_whole(queue, record) for record in found]
    from taskq import records

    if output.json:
        known = records.by_name(types)
        output.value([records.public(record, known) for record in found])
    elif found:
        now = SystemClock().wall()
        output.table(records.LIST_HEAD, [records.list_row(record, now) for record in found])
    elif state or type_name or queue_name:
        output.note('no task is like that; "taskq-monitor task list" shows all')
    else:
        output.note('no tasks; submit some with "taskq-submit --random --count 20"')
    return out.EXIT_OK


def _whole(queue: QueueService, record: dict[str, Any]) -> dict[str, Any]:
    """The record with its large parts, which a long list leaves out."""
    if not record.get("cut"):
        return record
    (whole,) = queue.get([record["id"]])
    return whole or record


@task.command("show", example="taskq-monitor task show 42 --json")
@click.argument("task_id", metavar="ID", type=TASK_ID)
@connection_options
@common_options
def show(*, task_id: int, connection: Connection, output: Output) -> int:
    """Print all that is known of a task: arguments, times, outcome, its last attempts."""
    return show_task(task_id, connection, output)


def show_task(task_id: int, connection: Connection, output: Output) -> int:
    """Do what ``task show`` does."""
    with connected(connection) as queue:
        (record,) = queue.get([task_id])
        if record is None:
            raise _not_found(task_id)
        types = queue.types()["types"]
        history = queue.history(task_id)
    from taskq import dead_letters, records

    shown = records.public(record, records.by_name(types))
    if output.json:
        output.value({**shown, "history": [dead_letters.public_attempt(attempt) for attempt in history]})
    else:
        for line in records.detail_lines(shown, to_json):
            output.line(line)
        for line in dead_letters.attempt_lines(history, SystemClock().wall()):
            output.line(line)
    return out.EXIT_OK


@task.command("result", example="taskq-monitor task result 42")
@click.argument("task_id", metavar="ID", type=TASK_ID)
@connection_options
@common_options
def result(*, task_id: int, connection: Connection, output: Output) -> int:
    """Print the result of a task as JSON. Of a failed one its traceback, and the exit code is 1."""
    with connected(connection) as queue:
        outcome = queue.result(task_id)
    from taskq.wire import codec

    if outcome.state == "completed":
        if outcome.result is None:
            raise ResultExpired(f"the result of task {task_id} is no longer kept")
        output.value(codec.decode(outcome.result))
        return out.EXIT_OK
    if outcome.error is not None and outcome.state == "failed":
        kind, name, message, traceback = outcome.error
        if traceback:
            output.note(traceback.rstrip())
        attempts = outcome.failures + outcome.deaths
        where = f" on {outcome.worker}" if outcome.worker else ""
        output.error(
            f"task {task_id} failed after {attempts} attempts{where}: {name or kind}: {message}", code="task_failed"
        )
    elif outcome.state == "cancelled":
        output.error(f"task {task_id} was cancelled", code="task_cancelled")
    else:
        output.error(f"task {task_id} is {outcome.state}: it has no result yet", code="not_finished")
    return out.EXIT_FAILED


def explain(*, task_id: int, connection: Connection, output: Output) -> int:
    """Say why a task does not run now, and what must happen first."""
    with connected(connection) as queue:
        found = queue.explain(task_id)
    if output.json:
        output.value(found)
        return out.EXIT_OK
    output.line(f"task {task_id} ({plain(found['type'])}, queue {plain(found['queue'])}) is {found['state']}")
    for cause in found["causes"]:
        output.line(f"- {plain(cause['text'])}")
    return out.EXIT_OK


def explaining(example: str) -> Verb:
    """``explain ID`` as a command; ``example`` is what its help shows."""
    command = click.command("explain", cls=Verb, example=example)
    return command(click.argument("task_id", metavar="ID", type=TASK_ID)(connection_options(common_options(explain))))


task.add_command(explaining("taskq-monitor task explain 42"))


@task.command(
    "cancel", example="taskq-monitor task cancel 42 43\ntaskq-monitor task cancel --where 'type=mail.send age>1h'"
)
@click.argument("task_ids", metavar="[ID...]", type=TASK_ID, nargs=-1)
@click.option("--where", metavar="CONDITIONS", help="All that are like that, such as 'type=mail.send age>1h'.")
@connection_options
@common_options
def cancel(*, task_ids: tuple[int, ...], where: str | None, connection: Connection, output: Output) -> int:
    """Cancel tasks that have not finished, those that run too.

    A running task is asked to stop; if it does not, its worker process is ended. Whichever comes first counts: a task
    that finishes before it has stopped is completed.
    """
    if bool(task_ids) == (where is not None):
        raise click.UsageError("say which tasks: their ids, or --where")
    with connected(connection) as queue:
        batches = (
            (task_ids[start : start + MAX_BATCH] for start in range(0, len(task_ids), MAX_BATCH))
            if where is None
            else ids_where(queue, where, UNFINISHED)
        )
        answers = [(id, answer) for batch in batches for id, answer in zip(batch, queue.cancel(batch), strict=True)]
    from taskq import records

    if output.json:
        output.value([{"id": task_id, "state": answer} for task_id, answer in answers])
    elif where is not None:
        output.line(records.cancelled_summary([answer for _, answer in answers]))
    else:
        for task_id, answer in answers:
            output.line(records.cancelled_line(task_id, answer))
    if where is not None:  # what finished meanwhile is no failure of a request for those that have not
        return out.EXIT_OK
    states = {answer for _, answer in answers}
    if "unknown" in states:
        return out.EXIT_NOT_FOUND
    return out.EXIT_FAILED if {"completed", "failed"} & states else out.EXIT_OK


def ids_where(queue: QueueService, where: str, states: Sequence[str]) -> Iterator[list[int]]:
    """The ids of the tasks in these states for which the conditions of ``where`` hold, in batches, newest first.

    Raises `BadArguments` when they cannot be read.
    """
    from taskq.selecting import matching

    found = (record["id"] for record in matching(queue, where, states))
    while batch := list(islice(found, MAX_BATCH)):
        yield batch


@task.command("requeue", example="taskq-monitor task requeue 42 43")
@click.argument("task_ids", metavar="ID...", type=TASK_ID, nargs=-1, required=True)
@connection_options
@common_options
def requeue(*, task_ids: tuple[int, ...], connection: Connection, output: Output) -> int:
    """Let failed or cancelled tasks begin anew, with a new budget of retries; their history stays."""
    with connected(connection) as queue:
        return act(queue.requeue, task_ids, "requeued", output)


def act(verb: Callable[[Sequence[int]], Sequence[str]], ids: Sequence[int], done: str, output: Output) -> int:
    """Do something to these tasks and say of each what became of it; ``done``: the answer when it was done."""
    from taskq import dead_letters

    answers = [answer for start in range(0, len(ids), MAX_BATCH) for answer in verb(ids[start : start + MAX_BATCH])]
    if output.json:
        output.value([{"id": task_id, "state": answer} for task_id, answer in zip(ids, answers, strict=True)])
    else:
        for task_id, answer in zip(ids, answers, strict=True):
            output.line(dead_letters.answer_line(task_id, answer))
    if "unknown" in answers:
        return out.EXIT_NOT_FOUND
    return out.EXIT_OK if set(answers) <= {done} else out.EXIT_FAILED


@task.command("purge", example="taskq-monitor task purge --completed --older 1h")
@click.option("--completed", is_flag=True, help="Delete records of completed tasks, results too.")
@click.option("--failed", is_flag=True, help="Delete records of failed tasks.")
@click.option("--cancelled", is_flag=True, help="Delete records of cancelled tasks.")
@click.option("--older", type=DURATION, default="0s", metavar="AGE", help="Only those that ended so long ago.  [all]")
@connection_options
@common_options
def purge(
    *, completed: bool, failed: bool, cancelled: bool, older: float, connection: Connection, output: Output
) -> int:
    """Delete records of tasks that are over. Their ids are never used again."""
    chosen = {"completed": completed, "failed": failed, "cancelled": cancelled}
    states = [state for state, wanted in chosen.items() if wanted]
    if not states:
        raise click.UsageError("say what to purge: --completed, --failed, --cancelled")
    with connected(connection) as queue:
        purged = queue.purge(states, older)
    if output.json:
        output.value({"purged": purged})
    else:
        output.line(f"{purged:,} tasks purged" if purged != 1 else "1 task purged")
    return out.EXIT_OK


def _not_found(task_id: int) -> TaskNotFound:
    return TaskNotFound(f"there is no task {task_id}", hint=NOT_FOUND_HINT)
