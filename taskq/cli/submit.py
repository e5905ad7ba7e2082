"""``taskq-submit``: submit tasks, declared for click; `taskq.submit` and `taskq.entries` do the work."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskq.cli.options import DURATION, LIMIT, TIME, Command, Connection, Integer, common_options, connection_options
from taskq.cli.output import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_TIMEOUT, Output, run
from taskq.config import parse_duration
from taskq.errors import BadArguments, ConfigError, Retry, TaskFailed, TaskqError

if TYPE_CHECKING:
    from taskq.client import Client
    from taskq.entries import BadEntry, Entry
    from taskq.queue.terms import NewTask
    from taskq.results import TaskHandle

EXAMPLE = """\
taskq-submit compute operation=factorial value=10 --wait
taskq-submit --payload '{"type": "compute", "operation": "factorial", "value": 10}'
taskq-submit --payload-file jobs.json
taskq-submit --random --count 20"""

OPTIONS = (
    "max_retries",
    "retry",
    "queue",
    "priority",
    "delay",
    "at",
    "expires",
    "timeout",
    "key",
    "ignore_result",
    "result_ttl",
)
"""Parameters that are options of a task (`taskq.options.Options`), in this order."""
UNIQUE_OPTIONS = ("unique", "unique_while", "unique_within", "on_conflict")
"""Parameters that make up its option ``unique``."""
FOREVER = "forever"
BAR_FROM = 2_000
"""Tasks from which on sending shows a progress bar."""


class _Submit(Command):
    """Makes the values of ``--wait`` and ``--unique`` optional: what follows ``--wait`` is its value only when it is a
    duration; that of ``--unique`` comes after a ``=``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the missing values in, then go on as click does."""
        words: list[str] = []
        for index, word in enumerate(args):
            if word == "--":
                words += args[index:]
                break
            if word == "--wait" and not _is_duration(args[index + 1 :]):
                word += f"={FOREVER}"
            words.append("--unique=" if word == "--unique" else word)
        return super().parse_args(ctx, words)


def _is_duration(words: Sequence[str]) -> bool:
    try:
        return bool(words) and parse_duration(words[0]) >= 0
    except ConfigError:
        return False


def _wait_time(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Seconds; infinite for ``--wait`` alone, None without it."""
    if value is None:
        return None
    if value == FOREVER:
        return float("inf")
    try:
        return parse_duration(value)
    except ConfigError as error:
        raise click.BadParameter(f"{error.message}; {error.hint}") from None


def _retry(ctx: click.Context, param: click.Parameter, value: str | None) -> Retry | None:
    """The policy that a text stands for."""
    if value is None:
        return None
    from taskq.entries import read_retry

    try:
        return read_retry(value)
    except BadArguments as error:
        raise click.BadParameter(f"{error.message.removeprefix('retry: ')}; {error.hint}") from None


def _unique(by: str | None, while_in: str | None, within: float | None, on_conflict: str | None) -> Any:
    """What these options say together; None without any."""
    given = {
        "while_in": None if while_in is None else _names(while_in),
        "within": within,
        "on_conflict": on_conflict,
    }
    kept = {name: value for name, value in given.items() if value is not None}
    if by is None:
        if kept:
            raise click.UsageError("--unique-while, --unique-within and --on-conflict go with --unique")
        return None
    from taskq.entries import read_unique

    return read_unique({"by": _names(by), **kept})


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@dataclass(frozen=True)
class Source:
    """Where the tasks come from: exactly one of these."""

    payload: str | None
    payload_file: str | None
    words: tuple[str, ...]
    random: bool
    count: int | None
    seed: int | None


@dataclass(frozen=True)
class How:
    """What to do with the tasks. ``wait``: seconds, None = do not wait."""

    wait: float | None
    dry_run: bool
    keep_going: bool
    allow_unknown: bool


@click.command(cls=_Submit, example=EXAMPLE)
@click.argument("words", nargs=-1, metavar="[TYPE [NAME=VALUE]...]")
@click.option("--payload", metavar="JSON", help="One task as JSON: its type and arguments.")
@click.option("--payload-file", metavar="FILE", help="Tasks as a JSON array, one object, or JSON lines; - is stdin.")
@click.option("--random", is_flag=True, help="Small random tasks of the built-in types, a few of which fail.")
@click.option("--count", type=Integer(1, 10_000_000), metavar="N", help="How many random tasks.  [10]")
@click.option("--seed", type=int, metavar="N", help="The same seed gives the same random tasks.")
@click.option("--max-retries", type=Integer(0), metavar="N", help="Attempts after the first.  [the type's: 3]")
@click.option(
    "--retry",
    metavar="N:TIME:TIME",
    callback=_retry,
    help="Attempts after the first, pause before the first of them, longest pause: 5:2s:10m.  [the type's]",
)
@click.option("--queue", metavar="NAME", help="The queue to put them in.  [the type's: default]")
@click.option("--priority", type=int, metavar="N", help="Higher first.  [0]")
@click.option("--delay", type=DURATION, metavar="TIME", help="Not before so long from now.")
@click.option("--at", type=TIME, metavar="TIME", help="Not before this time, like 2030-01-31T08:00+01:00 or +90m.")
@click.option("--expires", type=LIMIT, metavar="TIME", help="Fails unless it begins within, or by, this time.")
@click.option(
    "--timeout", type=DURATION, metavar="TIME", help="How long it may run; 0: without limit.  [the type's: 1h]"
)
@click.option("--dedupe-key", "key", metavar="KEY", help="The same key again gives the same task, not another one.")
@click.option("--ignore-result", is_flag=True, default=None, help="Drop what the task returns.  [the type's]")
@click.option("--result-ttl", type=DURATION, metavar="TIME", help="Keep the result so long only.  [the type's]")
@click.option("--unique", metavar="[=FIELDS]", help="Not if one with the same arguments, or these of them, is there.")
@click.option("--unique-while", metavar="STATES", help="States in which one is there.  [pending,scheduled,running]")
@click.option("--unique-within", type=DURATION, metavar="TIME", help="One is there too for so long after its submit.")
@click.option(
    "--on-conflict", type=click.Choice(["return", "raise"]), help="Give the task that is there, or refuse.  [return]"
)
@click.option("--wait", metavar="[SECONDS]", callback=_wait_time, help="Wait for the results, and print them as JSON.")
@click.option("--dry-run", is_flag=True, help="Check everything and show it, submit nothing.")
@click.option("--keep-going", is_flag=True, help="Skip bad entries of a file instead of submitting nothing.")
@click.option("--allow-unknown", is_flag=True, help="Submit types too that no worker offers.")
@connection_options
@common_options
def command(connection: Connection, output: Output, wait: float | None, **values: Any) -> int:
    """Submit tasks; prints their ids, one a line, or with --wait their results.

    When it ends, the tasks are on disk. A file is submitted wholly or not at all, unless the queue is full half way:
    then the same command again adds only the rest.
    """
    defaults = {name: values.pop(name) for name in OPTIONS}
    defaults["unique"] = _unique(*(values.pop(name) for name in UNIQUE_OPTIONS))
    how = How(wait, *(values.pop(name) for name in ("dry_run", "keep_going", "allow_unknown")))
    source = Source(**values)
    _check_usage(source, how, defaults)

    from taskq.client import Client  # only now: help and usage errors need no client
    from taskq.wire.client import RemoteQueue

    join = connection.join()
    warnings: list[str] = []
    with Client.over(
        lambda: RemoteQueue(join, connect_timeout=connection.connect_timeout),
        patience=connection.connect_timeout,
        allow_unknown=how.allow_unknown,
        warn=warnings.append,
    ) as client:
        try:
            handles = _submit(client, source, how, defaults, connection, output)
        except TaskqError as error:
            if ids := error.details.get("ids"):
                _print_ids(ids, output)
            raise
        for text in warnings:  # not before: they speak of tasks that wait, and a refused one does not
            output.warning(text)
        if how.wait is not None:
            return _wait(handles, how.wait, output)
        if handles:
            _print_ids(_ids(handles), output, _ids(handle for handle in handles if handle.existing))
        return EXIT_OK


def _check_usage(source: Source, how: How, defaults: Mapping[str, Any]) -> None:
    given = sum((source.payload is not None, source.payload_file is not None, bool(source.words), source.random))
    if given == 0:
        raise click.UsageError("what to submit? Give TYPE name=value …, --payload, --payload-file or --random")
    if given > 1:
        raise click.UsageError("give one of TYPE name=value …, --payload, --payload-file and --random")
    if not source.random and (source.count is not None or source.seed is not None):
        raise click.UsageError("--count and --seed go with --random")
    if how.keep_going and source.payload_file is None:
        raise click.UsageError("--keep-going goes with --payload-file")
    if how.wait is not None and how.dry_run:
        raise click.UsageError("--dry-run submits nothing that --wait could wait for")
    if defaults["key"] is not None and source.random:
        raise click.UsageError("--dedupe-key stands for one task; --random makes many")


def _submit(
    client: Client, source: Source, how: How, defaults: Mapping[str, Any], connection: Connection, output: Output
) -> list[TaskHandle[Any]]:
    """Check everything and submit it; with ``--dry-run`` show it instead."""
    from taskq import entries, submit

    skipped = 0

    def skip(place: str, error: TaskqError) -> None:
        nonlocal skipped
        skipped += 1
        output.warning(f"skipped: {place}{error.message}")

    name, found = _read(source, {option: value for option, value in defaults.items() if value is not None})
    ready = submit.check(client, found, name, skip if how.keep_going else None)
    if skipped:
        output.note(f"{skipped:,} bad skipped, {_tasks(len(ready))} to submit")
    if not ready:
        raise BadArguments("no entry was good; nothing was submitted")
    if how.dry_run:
        for entry, _ in ready:
            output.value(entries.as_json(entry))
        output.note(f"{_tasks(len(ready))} would be submitted")
        return []
    notes = connection.state.path / "submits" if source.payload_file is not None else None
    return _send(client, [item for _, item in ready], notes, output)


def _read(source: Source, defaults: Mapping[str, Any]) -> tuple[str, Iterable[Entry | BadEntry]]:
    """A name for the source, and what it holds."""
    from taskq import entries

    if source.payload is not None:
        return "--payload", [entries.read_payload(source.payload, "--payload", defaults)]
    if source.words:
        return "the command", [entries.read_words(source.words[0], source.words[1:], defaults)]
    if source.random:
        return "--random", entries.random_entries(source.count or 10, source.seed, defaults)
    name = source.payload_file or ""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {name}: {(error.strerror or 'error').lower()}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 text: byte {error.start:,} is bad") from None
    name = "standard input" if name == "-" else name
    return name, entries.read_file(text, name, defaults)


def _send(client: Client, items: list[NewTask], notes: Path | None, output: Output) -> list[TaskHandle[Any]]:
    from taskq import submit

    if sum(item.key is not None for item in items) > len({item.key for item in items if item.key is not None}):
        raise click.UsageError("--dedupe-key stands for one task, and there are several")
    with output.bar(len(items) if len(items) >= BAR_FROM else 0, "submitting") as advance:
        return submit.send(client, items, notes, advance)


def _wait(handles: list[TaskHandle[Any]], seconds: float, output: Output) -> int:
    from taskq import submit

    done: list[dict[str, Any]] = []
    failed = False
    on_screen = sys.stdout.isatty() and not output.json
    try:
        with output.bar(len(handles) if len(handles) > 1 and not on_screen else 0, "waiting") as advance:
            for handle, value, error in submit.outcomes(handles, None if seconds == float("inf") else seconds):
                advance(1)
                if error is not None:
                    failed = True
                    _print_failure(error, output)
                elif not output.json:
                    output.value(value)
                done.append(_as_json(handle, value, error))
    except TimeoutError:
        left = len(handles) - len(done)
        what = f"task {handles[0].id} has" if len(handles) == 1 else f"{left:,} of {len(handles):,} tasks have"
        hint = f"{_they_go_on(left)}; see taskq-monitor"
        output.error(f"{what} not finished within {seconds:g} s", hint, "timeout")
        return EXIT_TIMEOUT
    except KeyboardInterrupt:
        left = len(handles) - len(done)
        output.note(f"\ninterrupted; {_tasks(left)} not finished: {_they_go_on(left)}")
        return EXIT_INTERRUPTED
    finally:
        if output.json:
            ids, existing = _ids(handles), _ids(handle for handle in handles if handle.existing)
            output.value({"ids": ids, "existing": existing, "results": done})
    return EXIT_FAILED if failed else EXIT_OK


def _print_failure(error: TaskqError, output: Output) -> None:
    if isinstance(error, TaskFailed) and error.details.get("traceback") and not output.json:
        output.note(str(error.details["traceback"]).rstrip())
    output.error(error.message, error.hint, error.code)


def _as_json(handle: TaskHandle[Any], value: Any, error: TaskqError | None) -> dict[str, Any]:
    state = handle.outcome.state if handle.outcome is not None else "unknown"
    if error is None:
        return {"id": handle.id, "state": state, "result": value}
    kept = {name: error.details.get(name) for name in ("kind", "type", "message", "traceback")}
    return {
        "id": handle.id,
        "state": state,
        "error": kept if isinstance(error, TaskFailed) else {"message": error.message},
    }


def _print_ids(ids: Sequence[int], output: Output, existing: Sequence[int] = ()) -> None:
    if output.json:
        output.value({"ids": list(ids), "existing": list(existing)})
    else:
        if existing:
            which = f"task {existing[0]} was" if len(existing) == 1 else f"{len(existing):,} of these tasks were"
            output.note(f"{which} there already")
        output.line("\n".join(map(str, ids)))


def _ids(handles: Iterable[TaskHandle[Any]]) -> list[int]:
    return [handle.id for handle in handles]


def _tasks(count: int) -> str:
    return f"{count:,} task{'' if count == 1 else 's'}"


def _they_go_on(count: int) -> str:
    return "it goes on" if count == 1 else "they go on"


def main() -> None:
    """The entry point of ``taskq-submit``."""
    sys.exit(run(command, "taskq-submit"))
