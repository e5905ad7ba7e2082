"""What commands print, and with which code they end: data to stdout, everything else to stderr.

Commands never call ``print``. `run` is the one place that turns an error into its two lines (or, with ``--json``, into
one object) and an exit code.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import click

from taskq import errors, streams

EXIT_OK = 0
EXIT_FAILED = 1
"""The task failed (``--wait``), or an unexpected error."""
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_KEY = 4
EXIT_REFUSED = 5
"""Refused for now: the same command may be accepted later."""
EXIT_NOT_FOUND = 6
EXIT_UNHEALTHY = 7
EXIT_DAMAGED = 65
EXIT_TIMEOUT = 124
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

EXIT_CODES: dict[type[errors.TaskqError], int] = {
    errors.ConfigError: EXIT_USAGE,
    errors.StoreLocked: EXIT_FAILED,
    errors.StoreDamaged: EXIT_DAMAGED,
    errors.ManagerUnavailable: EXIT_UNREACHABLE,
    errors.ProtocolMismatch: EXIT_UNREACHABLE,
    errors.AuthenticationFailed: EXIT_KEY,
    errors.PermissionDenied: EXIT_KEY,
    errors.ShuttingDown: EXIT_REFUSED,
    errors.Busy: EXIT_REFUSED,
    errors.QueueFull: EXIT_REFUSED,
    errors.StorageFull: EXIT_REFUSED,
    errors.NotUnique: EXIT_REFUSED,
    errors.FrameTooLarge: EXIT_USAGE,
    errors.BadArguments: EXIT_USAGE,
    errors.NotEncodable: EXIT_USAGE,
    errors.PayloadTooLarge: EXIT_USAGE,
    errors.KeyConflict: EXIT_USAGE,
    errors.TaskNotFound: EXIT_NOT_FOUND,
    errors.ResultExpired: EXIT_NOT_FOUND,
    errors.QueueNotFound: EXIT_NOT_FOUND,
    errors.UnknownTaskType: EXIT_NOT_FOUND,
}
"""Exit code of each error; what is not named here (nor a base of it) is `EXIT_FAILED`."""


def exit_code(error: errors.TaskqError) -> int:
    """The exit code that belongs to an error."""
    return next((EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES), EXIT_FAILED)


class Output:
    """Where a command's words go. ``json``, ``quiet`` and ``color`` (auto, always, never) are what the user asked for.

    ``log_level`` and ``log_format`` (None: the command's own default) are for those commands that log.
    """

    def __init__(
        self,
        *,
        json: bool = False,
        quiet: bool = False,
        color: str = "auto",
        log_level: str | None = None,
        log_format: str | None = None,
    ) -> None:
        self.json = json
        self.quiet = quiet
        self.color = color
        self.log_level = log_level
        self.log_format = log_format

    def colors(self, stream: IO[str]) -> bool:
        """Whether to write colours and control codes to this stream."""
        if self.color != "auto":
            return self.color == "always"
        return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def line(self, text: str) -> None:
        """A line of data, to stdout; printed with ``--quiet`` too."""
        click.echo(text, color=self.colors(sys.stdout))

    def value(self, value: Any, *, indent: int | None = None) -> None:
        """A value as JSON, to stdout. Numbers of any size are written in full."""
        self.line(to_json(value, indent=indent))

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Rows under a heading, to stdout; columns as wide as they need to be, numbers to the right."""
        for text in format_table(head, rows):
            self.line(text)

    def note(self, text: str) -> None:
        """Something for people, to stderr; not with ``--quiet``."""
        if not self.quiet:
            click.echo(text, err=True, color=self.colors(sys.stderr))

    def warning(self, text: str, hint: str = "") -> None:
        """Something that people should know although the command goes on, to stderr; not with ``--quiet``."""
        self.note(f"{self._label('warning', 'yellow')} {text}")
        if hint:
            self.note(f"{self._label('hint', 'cyan')} {hint}")

    def error(self, message: str, hint: str = "", code: str = "error") -> None:
        """What went wrong and what to do next, to stderr: two lines, or one object with ``--json``."""
        if self.json:
            text = to_json({"error": {"code": code, "message": message, "hint": hint}})
        else:
            text = f"{self._label('error', 'red')} {message}"
            if hint:
                text += f"\n{self._label('hint', 'cyan')} {hint}"
        click.echo(text, err=True, color=self.colors(sys.stderr))

    def failure(self, error: errors.TaskqError) -> int:
        """Print an error of taskq; gives the exit code that belongs to it."""
        self.error(error.message, error.hint, error.code)
        return exit_code(error)

    def agreed(self, question: str) -> bool:
        """Ask the person at the terminal. Raises `BadArguments` where there is none."""
        if not sys.stdin.isatty():
            raise errors.BadArguments(f"{question.removesuffix('?')}: nobody is there to ask", hint="add --yes")
        return click.confirm(question, err=True)

    @contextmanager
    def bar(self, length: int, label: str) -> Iterator[Callable[[int], None]]:
        """A progress bar on stderr where a person looks at it and ``length`` is over 0; gives what moves it on."""
        if not length or self.quiet or not sys.stderr.isatty():
            yield lambda steps: None
            return
        with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
            yield bar.update

    def _label(self, word: str, color: str) -> str:
        return click.style(f"{word}:", fg=color, bold=True) if self.colors(sys.stderr) else f"{word}:"


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text of plain data; bytes and times as text, big integers in full."""
    if hasattr(sys, "set_int_max_str_digits"):  # the limit guards parsers of strangers' text; these are our own results
        sys.set_int_max_str_digits(0)
    return json.dumps(value, indent=indent, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="backslashreplace")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def format_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a table: a heading and rows; a column whose cells are all numbers is set to the right.

    >>> format_table(("ID", "TYPE"), [(7, "compute"), (12, "sleep")])
    ['ID  TYPE', ' 7  compute', '12  sleep']
    """
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [list(head), *cells]) for column in range(len(head))]
    right = [bool(rows) and all(isinstance(row[column], (int, float)) for row in rows) for column in range(len(head))]
    lines = []
    for row in [list(head), *cells]:
        padded = (
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    return lines


def run(command: click.Command, prog: str, args: Sequence[str] | None = None) -> int:
    """Run a command and give its exit code; every error ends here.

    A command's function returns its exit code (None = 0) or raises: `TaskqError`, `KeyboardInterrupt`.
    """
    words = list(sys.argv[1:] if args is None else args)
    output = Output(json="--json" in words)
    _occupy_standard_streams()
    try:
        code = _invoke(command, prog, words)
        sys.stdout.flush()
        return int(code or EXIT_OK)
    except click.ClickException as error:
        return _usage(output, error)
    except (KeyboardInterrupt, click.Abort):
        output.note("\ninterrupted")  # the empty line ends the terminal's "^C"
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left (`| head`): nothing to tell it, nor anybody else
        _discard_output()
        return EXIT_OK
    except errors.TaskqError as error:
        _debug()
        return output.failure(error)
    except Exception as error:  # the last door: people get one line, a traceback only when they ask for it
        _debug()
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            _discard_output()  # else the interpreter tries once more at its end
            output.error(f"cannot write to standard output: {os.strerror(error.errno).lower()}", code="unwritable")
        else:
            text = f"unexpected: {type(error).__name__}: {error}"
            output.error(text, "set TASKQ_DEBUG=1 to see where it comes from", "unexpected")
        return EXIT_FAILED


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""How writing to a stream fails that is not closed."""


def _invoke(command: click.Command, prog: str, words: list[str]) -> Any:
    """Completion for the shell if it asks for it, else the command; gives what the command gave.

    So does ``command.main``, but there a broken pipe is an error.
    """
    variable = f"_{prog.upper().replace('-', '_')}_COMPLETE"
    if instruction := os.environ.get(variable):
        from click.shell_completion import shell_complete

        return shell_complete(command, {}, prog, variable, instruction)
    try:
        with command.make_context(prog, words) as context:
            return command.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _occupy_standard_streams() -> None:
    """Let streams that a daemon has closed be /dev/null."""
    streams.occupy()
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115  (open as long as we are)


def _usage(output: Output, error: click.ClickException) -> int:
    hint = ""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f'"{error.ctx.command_path} -h" shows what it takes'
    output.error(error.format_message(), hint, "usage")
    return EXIT_USAGE


def _debug() -> None:
    if os.environ.get("TASKQ_DEBUG", "") not in ("", "0"):
        traceback.print_exc()
