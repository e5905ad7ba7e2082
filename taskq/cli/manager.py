"""``taskq-manager``: the queue and its local pool, declared for click; `taskq.manager` does the work."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from taskq import layout, logs
from taskq.cli.options import (
    DURATION,
    SIZE,
    Command,
    Directories,
    Function,
    Integer,
    R,
    common_options,
    directory_options,
    key_option,
    pool_options,
    setting,
)
from taskq.cli.output import EXIT_FAILED, EXIT_OK, Output, run
from taskq.config import DEFAULT_HOST, DEFAULT_PORT, ROLES, ManagerSettings, PoolSettings, QueueSettings
from taskq.errors import ConfigError

EXAMPLE = """\
taskq-manager --workers 8 --tasks myapp.tasks
taskq-manager --bind 0.0.0.0 --advertise mgr.lan"""

SHORTEST_LEASE = 0.5
LARGEST_PAYLOAD = 3 * 2**20
"""What fits into one frame together with the rest of the call."""


def _check_store(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if value in ("", "memory:") or (value.startswith("sqlite:") and len(value) > len("sqlite:")):
        return value
    raise click.BadParameter(f'"{value}" is no store; write sqlite:PATH or memory:')


def _read_timeouts(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """Queue -> seconds."""
    timeouts = {}
    for value in values:
        queue, equals, time = value.rpartition("=")
        if not (queue and equals):
            raise click.BadParameter(f'"{value}" is not QUEUE=TIME, such as mail=30s')
        timeouts[queue] = DURATION.convert(time, param, ctx)
    return timeouts


QUEUE_OPTIONS = [
    setting(
        "--lease",
        type=DURATION,
        default="30s",
        show_default=True,
        metavar="TIME",
        help="How long a silent worker keeps its tasks.",
    ),
    setting(
        "--timeout",
        type=DURATION,
        default="1h",
        show_default=True,
        metavar="TIME",
        help="How long a task may run for which nothing else is said; 0: without limit.",
    ),
    setting(
        "--queue-timeout",
        "queue_timeouts",
        multiple=True,
        callback=_read_timeouts,
        metavar="QUEUE=TIME",
        help="The same for the tasks of one queue; may be repeated.",
    ),
    setting(
        "--max-pending",
        type=Integer(1),
        default=1_000_000,
        show_default=True,
        metavar="N",
        help="Most pending tasks in a queue.",
    ),
    setting(
        "--max-payload",
        type=SIZE,
        default="1MiB",
        show_default=True,
        metavar="BYTES",
        help="Largest arguments of a task.",
    ),
    setting(
        "--keep-completed",
        type=DURATION,
        default="1d",
        show_default=True,
        metavar="AGE",
        help="How long completed and cancelled tasks are kept.",
    ),
    setting(
        "--keep-failed",
        type=DURATION,
        default="30d",
        show_default=True,
        metavar="AGE",
        help="How long failed tasks are kept.",
    ),
]


def _queue_options(function: Function[R]) -> Function[R]:
    for option in reversed(QUEUE_OPTIONS):
        function = option(function)
    return function


@click.command(cls=Command, example=EXAMPLE)
@pool_options
@setting("--bind", default=DEFAULT_HOST, show_default=True, metavar="ADDRESS", help="Address to listen on.")
@setting(
    "--port",
    type=Integer(0, 65535),
    default=DEFAULT_PORT,
    show_default=True,
    metavar="PORT",
    help="Port; 0: the last one if it is free, else any.",
)
@setting(
    "--advertise",
    multiple=True,
    metavar="HOST",
    help="Name or address by which other machines reach it, for the join file; may be repeated.",
)
@setting(
    "--store",
    default="",
    callback=_check_store,
    metavar="STORE",
    help="sqlite:PATH or memory:  [sqlite in the state folder]",
)
@_queue_options
@click.option("--accept-lost-tail", is_flag=True, help="Start also when the store has lost its newest commits.")
@click.option("--print-join", is_flag=True, help="Print the join file for other machines, and leave.")
@click.option("--role", type=click.Choice(ROLES), help="With --print-join: what its key shall be good for.  [admin]")
@click.option(
    "--rotate-key",
    is_flag=True,
    help="Make a new key, and leave; the one until now stays good until the next time. The manager may run.",
)
@click.option(
    "--backup",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Let the manager that runs write a copy of its store into a new file, and leave.",
)
@key_option
@directory_options
@common_options
def command(
    *,
    pool: PoolSettings,
    print_join: bool,
    role: str | None,
    rotate_key: bool,
    backup: Path | None,
    directories: Directories,
    output: Output,
    key_file: str | None,
    **others: Any,
) -> int:
    """Run the queue, and a pool of worker processes on this machine.

    SIGTERM or Ctrl-C lets running tasks finish and keeps everything that is waiting; a second one stops at once.
    """
    if role is not None and not print_join:
        raise click.UsageError("--role goes with --print-join")
    if rotate_key and print_join:
        raise click.UsageError("one after the other: --rotate-key, then --print-join")
    if backup is not None:
        return _backup(backup, directories, output)
    if rotate_key:
        return _rotate_key(directories, key_file, output)
    if print_join:
        return _print_join(directories, role, output)
    return _run_manager(_settings(pool, directories, output, key_file, **others), output)


def _print_join(directories: Directories, role: str | None, output: Output) -> int:
    from taskq.addresses import is_loopback, join_for_others

    join = join_for_others(directories.state, role)
    if is_loopback(join.addresses[0].host):
        output.note(f"for this machine only: the manager listens on {join.addresses[0].host}")
    output.line(join.to_json())
    return EXIT_OK


def _backup(target: Path, directories: Directories, output: Output) -> int:
    from taskq.backup import write_backup

    def say(done: int, size: int) -> None:
        output.note(f"{layout.size(done)} of {layout.size(size)} are copied")

    size = write_backup(target.absolute(), directories.state, say)
    output.note(f"{target} is a whole copy of the store ({layout.size(size)})")
    return EXIT_OK


def _rotate_key(directories: Directories, key_file: str | None, output: Output) -> int:
    from taskq.rotation import rotate
    from taskq.wire.handshake import fingerprint

    state = directories.state
    keys = rotate(state, Path(key_file) if key_file else state.key)
    assert keys.former is not None
    output.note(f"the key is now another one: fingerprint {fingerprint(keys.current)}")
    output.note(f"the one before it ({fingerprint(keys.former)}) stays good until the next --rotate-key")
    output.note("until then: give out new join files (--print-join), and start pools with --join - again")
    return EXIT_OK


def _settings(
    pool: PoolSettings,
    directories: Directories,
    output: Output,
    key_file: str | None,
    *,
    bind: str,
    port: int,
    advertise: tuple[str, ...],
    store: str,
    **limits: Any,
) -> ManagerSettings:
    accept_lost_tail = limits.pop("accept_lost_tail")
    queue = QueueSettings(name=directories.name, **limits)
    if queue.lease < SHORTEST_LEASE:
        raise click.BadParameter(f"it must be at least {SHORTEST_LEASE:g} s", param_hint="'--lease'")
    if queue.max_payload > LARGEST_PAYLOAD:
        raise click.BadParameter(f"it must be at most {LARGEST_PAYLOAD:,} bytes", param_hint="'--max-payload'")
    pool = dataclasses.replace(
        pool, log_level=output.log_level or "info", log_format=output.log_format or logs.default_format()
    )
    return ManagerSettings(
        state=directories.state,
        key_file=key_file or "",
        queue=queue,
        pool=pool,
        bind=bind,
        port=port,
        advertise=advertise,
        store=store,
        accept_lost_tail=accept_lost_tail,
    )


def _run_manager(settings: ManagerSettings, output: Output) -> int:
    from taskq.manager import Manager  # brings the wire, the store and psutil: not needed for help and --print-join

    try:
        settings.state.make()
        logs.setup(
            "manager",
            level=settings.pool.log_level,
            format=output.log_format,
            quiet=output.quiet,
            folder=settings.state.log.parent,
        )
        return Manager(settings).run()
    except ConfigError as error:  # the options were fine: it is this machine that cannot do it
        output.failure(error)
        return EXIT_FAILED


def main() -> None:
    """The entry point of ``taskq-manager``."""
    sys.exit(run(command, "taskq-manager"))
