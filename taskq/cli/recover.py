"""``taskq recover``: saves what is readable of a damaged store, declared for click; `taskq.stores.recovery` does it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from taskq.cli.options import Command, Directories, common_options, directory_options
from taskq.cli.output import EXIT_FAILED, EXIT_OK, Output, run

EXAMPLE = """\
taskq recover
taskq recover /srv/taskq/store.sqlite -o /srv/taskq/saved.sqlite"""


@click.command(cls=Command, example=EXAMPLE)
@click.argument("store", required=False, metavar="[FILE]")
@click.option("-o", "--output", "target", metavar="FILE", help="The new store.  [the store's name with .recovered]")
@directory_options
@common_options
def command(store: str | None, target: str | None, directories: Directories, output: Output) -> int:
    """Save what is readable of a damaged store into a new one.

    FILE: the store, by default that of the state folder. Its files stay as they are. It must not be in use. Prints each
    task that is lost, or in doubt: then it is among the failed ones. Exit code 1 if there are any.
    """
    from taskq.stores.recovery import recover  # brings sqlite3: not needed for help

    source = Path(store) if store else directories.state.store
    made = Path(target) if target else source.with_name(source.name + ".recovered")
    found = recover(source, made)
    if output.json:
        output.value({"file": str(made), **dataclasses.asdict(found)})
    else:
        for word, ids in (("lost", found.lost), ("doubtful", found.doubtful)):
            for id in ids:
                output.line(f"{word} {id}")
    output.note(
        f"{made}: {found.whole:,} tasks as they were, {len(found.doubtful):,} in doubt, {len(found.lost):,} lost;"
        " put it in the place of the store, without the store's -wal, to start with it"
    )
    return EXIT_FAILED if found.lost or found.doubtful else EXIT_OK


def main() -> None:
    """The entry point of ``taskq recover``."""
    sys.exit(run(command, "taskq recover"))
