"""``python -m taskq manager | worker | submit | monitor | recover | bench``, also installed as the command ``taskq``.

Each subcommand but ``recover`` and ``bench`` is the very command ``taskq-…``; its module is imported only when it is
asked for.
"""

from __future__ import annotations

import importlib
import sys

import click

from taskq.cli.options import Group
from taskq.cli.output import run
from taskq.config import VERSION

SUBCOMMANDS = {
    "manager": "Run the queue, with a pool of workers on this machine.",
    "worker": "Run more workers for a manager, on this machine or another.",
    "submit": "Submit tasks.",
    "monitor": "See what the queue does; list, show and cancel tasks.",
    "recover": "Save what is readable of a damaged store.",
    "bench": "Measure how fast it is here.",
}


class _Subcommands(Group):
    """Looks subcommands up by name; only the one that runs is imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which people meet them."""
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; None if there is none."""
        if cmd_name not in SUBCOMMANDS:
            return None
        command: click.Command = importlib.import_module(f"taskq.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write names and purposes without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUBCOMMANDS.items()))


@click.group(cls=_Subcommands, example="taskq manager          (the same as taskq-manager)")
@click.version_option(VERSION, message="%(prog)s %(version)s")
def command() -> None:
    """A distributed task queue with no broker to install."""


def main() -> None:
    """The entry point of ``taskq`` and ``python -m taskq``."""
    sys.exit(run(command, "taskq"))


if __name__ == "__main__":
    main()
