"""The options that commands share, declared once: connection, directories, logging, output.

Each decorator hands the command *one* object instead of its many options::

    @click.command(cls=Command, example="taskq-monitor --once")
    @connection_options          # connection: Connection
    @common_options              # output: Output
    def command(connection: Connection, output: Output) -> int: ...

Precedence is flag, environment (``TASKQ_`` + the option's name), join file, default.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from taskq import config
from taskq.cli.output import EXIT_USAGE, Output
from taskq.errors import ConfigError
from taskq.service import FAIR, STRICT

R = TypeVar("R")
Function = Callable[..., R]
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")


class _Parsed(click.ParamType):  # type: ignore[type-arg]  # not generic yet in older versions of click
    """A value that `taskq.config` can read from text."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The parsed value; a usage error when it cannot be read."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ConfigError as error:
            self.fail(f"{error.message}; {error.hint}" if error.hint else error.message, param, ctx)


DURATION = _Parsed("duration", config.parse_duration)
"""Seconds, from ``30``, ``10s``, ``1h30m``."""
TIME = _Parsed("time", config.parse_time)
"""A time with its zone as a `datetime`; of ``+90m``, the seconds from now."""
LIMIT = _Parsed("limit", config.parse_limit)
"""The same, or seconds from ``30``, ``10s``, ``1h30m``."""
SIZE = _Parsed("size", config.parse_size)
"""Bytes, from ``1000``, ``64k``, ``1MiB``."""


class _ExampleFirst:
    """Help that opens with an example, and ``-h`` beside ``--help``."""

    example = ""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example, then what click writes."""
        if self.example:
            with formatter.section("Example"):
                for line in self.example.splitlines():
                    formatter.write(f"  {line}\n")
            formatter.write("\n")
        super().format_help(ctx, formatter)  # type: ignore[misc]  # a mixin: the other base is a click.Command

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Name the environment variables."""
        options: list[click.Parameter] = self.params  # type: ignore[attr-defined]  # of the other base
        variables = [str(one.envvar) for one in options if one.envvar]
        if variables:
            with formatter.section("Environment"):
                formatter.write_text(f"{', '.join(variables)}: each stands for the option of its name.")


class Command(_ExampleFirst, click.Command):
    """A command; ``example`` is the first thing that its help shows."""

    def __init__(self, *args: Any, example: str = "", **attributes: Any) -> None:
        attributes.setdefault("context_settings", {"help_option_names": ["-h", "--help"], "max_content_width": 100})
        super().__init__(*args, **attributes)
        self.example = example


class Group(_ExampleFirst, click.Group):
    """A command with subcommands; ``example`` is the first thing that its help shows."""

    command_class = Command

    def __init__(self, *args: Any, example: str = "", **attributes: Any) -> None:
        attributes.setdefault("context_settings", {"help_option_names": ["-h", "--help"], "max_content_width": 100})
        super().__init__(*args, **attributes)
        self.example = example

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does; a group that does nothing alone shows its help when nothing else was said."""
        if not args and not self.invoke_without_command and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(EXIT_USAGE)
        return super().parse_args(ctx, args)


class Integer(click.IntRange):
    """An integer within limits; click calls it "integer range", which no user would."""

    name = "integer"


def setting(name: str, *more: str, **attributes: Any) -> Decorator:
    """An option that has an environment variable too: ``--state-dir`` is ``TASKQ_STATE_DIR``."""
    variable = "TASKQ_" + name.removeprefix("--").upper().replace("-", "_")
    return click.option(name, *more, envvar=variable, **attributes)


@dataclass(frozen=True)
class Directories:
    """Where an instance lives: ``--state-dir`` and ``--name``."""

    state_dir: str | None
    name: str

    @property
    def state(self) -> config.StateDir:
        """The folder of the instance; it need not exist."""
        return config.state_dir(self.name, self.state_dir)


@dataclass(frozen=True)
class Connection(Directories):
    """How to reach a manager. ``connect_timeout``: seconds."""

    join_file: str | None
    host: str | None
    port: int | None
    key_file: str | None
    connect_timeout: float

    def join(self) -> config.Join:
        """Addresses and key, from what was given; ``--join -`` reads them from stdin (once).

        Raises `ConfigError`, `AuthenticationFailed`.
        """
        if self.join_file == "-":
            return config.Join.from_json(sys.stdin.read(), config.FROM_STDIN)
        return config.find_join(
            join=self.join_file, host=self.host, port=self.port, key_file=self.key_file, state=self.state
        )


def directory_options(function: Function[R]) -> Function[R]:
    """Add ``--state-dir`` and ``--name``: the command gets ``directories: Directories``."""

    @functools.wraps(function)
    def wrapper(*, state_dir: str | None, name: str, **others: Any) -> R:
        return function(directories=Directories(state_dir, name), **others)

    return _directories(wrapper)


def connection_options(function: Function[R]) -> Function[R]:
    """Add ``--join --host --port --key-file --state-dir --name --connect-timeout``: the command gets ``connection``."""

    @functools.wraps(function)
    def wrapper(
        *,
        state_dir: str | None,
        name: str,
        join_file: str | None,
        host: str | None,
        port: int | None,
        key_file: str | None,
        connect_timeout: float,
        **others: Any,
    ) -> R:
        found = Connection(state_dir, name, join_file, host, port, key_file, connect_timeout)
        return function(connection=found, **others)

    options: list[Decorator] = [
        setting("--join", "join_file", metavar="FILE", help="Join file of the manager; - reads it from stdin."),
        setting("--host", metavar="HOST", help="Where the manager is.  [join file, else 127.0.0.1]"),
        setting("--port", type=Integer(1, 65535), metavar="PORT", help="Its port.  [join file, else 8275]"),
        key_option,
        _directories,
        setting(
            "--connect-timeout",
            type=DURATION,
            default="5s",
            show_default=True,
            metavar="TIME",
            help="How long to try to reach it.",
        ),
    ]
    return _apply(options, wrapper)


def common_options(function: Function[R]) -> Function[R]:
    """Add ``--log-level --log-format --json -q --color -h --version``: the command gets ``output: Output``."""

    @functools.wraps(function)
    def wrapper(
        *, log_level: str | None, log_format: str | None, as_json: bool, quiet: bool, color: str, **others: Any
    ) -> R:
        output = Output(json=as_json, quiet=quiet, color=color, log_level=log_level, log_format=log_format)
        return function(output=output, **others)

    options: list[Decorator] = [
        setting("--log-level", type=click.Choice(LOG_LEVELS), help="What to log.  [info; clients: warning]"),
        setting("--log-format", type=click.Choice(LOG_FORMATS), help="How to log.  [text on a terminal, else json]"),
        click.option("--json", "as_json", is_flag=True, help="Print data and errors as JSON."),
        click.option("-q", "--quiet", is_flag=True, help="Print data and errors only."),
        click.option(
            "--color",
            type=click.Choice(("auto", "always", "never")),
            default="auto",
            show_default=True,
            help="Colours; auto: on a terminal, unless NO_COLOR is set.",
        ),
        click.version_option(config.VERSION, message="%(prog)s %(version)s"),
    ]
    return _apply(options, wrapper)


_POOL_OPTIONS: list[Decorator] = [
    setting(
        "--workers",
        type=Integer(0, 1000),
        default=4,
        show_default=True,
        metavar="N",
        help="Worker processes.",
    ),
    setting(
        "--threads",
        type=Integer(1, 1000),
        default=4,
        show_default=True,
        metavar="N",
        help="Tasks that each of them runs at a time.",
    ),
    setting(
        "--tasks",
        multiple=True,
        metavar="MODULE",
        help="Module with your tasks, found from the current folder; may be repeated.",
    ),
    setting("--queues", default="", metavar="A,B", help="Serve only these queues.  [all]"),
    setting(
        "--queue-order",
        type=click.Choice((STRICT, FAIR)),
        help="One queue after the other as --queues names them, or in turn.  [by priority and age over all]",
    ),
    setting(
        "--drain-timeout",
        type=DURATION,
        default="30s",
        show_default=True,
        metavar="TIME",
        help="How long running tasks may go on at the stop.",
    ),
]


def pool_options(function: Function[R]) -> Function[R]:
    """Add ``--workers --threads --tasks --queues --queue-order --drain-timeout``: the command gets ``pool``."""

    @functools.wraps(function)
    def wrapper(
        *,
        workers: int,
        threads: int,
        tasks: tuple[str, ...],
        queues: str,
        queue_order: str | None,
        drain_timeout: float,
        **others: Any,
    ) -> R:
        named = tuple(dict.fromkeys(name.strip() for name in queues.split(",") if name.strip()))
        if queue_order == STRICT and not named:
            raise click.BadParameter(f"{STRICT} is the order of --queues: name them", param_hint="'--queue-order'")
        pool = config.PoolSettings(
            workers=workers,
            threads=threads,
            tasks=tasks,
            queues=named,
            queue_order=queue_order or "",
            drain_timeout=drain_timeout,
        )
        return function(pool=pool, **others)

    return _apply(_POOL_OPTIONS, wrapper)


def key_option(function: Function[R]) -> Function[R]:
    """Add ``--key-file``."""
    add = setting("--key-file", metavar="FILE", help="File with the key.  [join file, else key in the state folder]")
    return add(function)


def _directories(function: Function[R]) -> Function[R]:
    state_dir = setting(
        "--state-dir",
        type=click.Path(file_okay=False, path_type=None),
        metavar="DIR",
        help="Folder of the instance: key, join file, store, logs.  [$XDG_STATE_HOME/taskq/<name>]",
    )
    name = setting("--name", default="default", show_default=True, metavar="NAME", help="Name of the instance.")
    return _apply([state_dir, name], function)


def _apply(options: list[Decorator], function: Function[R]) -> Function[R]:
    for option in reversed(options):
        function = option(function)
    return function
