"""``taskq bench``: measures how fast it is here, declared for click; `taskq.bench` does the work."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from taskq.cli.options import Command, Integer, common_options
from taskq.cli.output import EXIT_FAILED, EXIT_OK, Output, run

EXAMPLE = """\
taskq bench
taskq bench P1 P3 --runs 3 --floor"""


@click.command(cls=Command, example=EXAMPLE)
@click.argument("workloads", nargs=-1, metavar="[WORKLOAD]...")
@click.option("--list", "list_", is_flag=True, help="List the workloads, and leave.")
@click.option(
    "--runs", type=Integer(1, 1000), default=5, show_default=True, metavar="N", help="How often to measure each."
)
@click.option(
    "--scale",
    type=click.FloatRange(0, 100, min_open=True),
    default=1.0,
    show_default=True,
    metavar="FACTOR",
    help="So many times the tasks; for a quick look, bars mean little then.",
)
@click.option("--floor", is_flag=True, help="Measure also what the machine can do at best, without a queue.")
@click.option("--profile", is_flag=True, help="Say where a task's microseconds go; alone, if no workload is named.")
@click.option("--join", metavar="FILE", help="Measure the running manager of this join file.  [one of its own]")
@common_options
def command(
    *,
    workloads: tuple[str, ...],
    list_: bool,
    runs: int,
    scale: float,
    floor: bool,
    profile: bool,
    join: str | None,
    output: Output,
) -> int:
    """Measure how fast it is on this machine.

    Without workloads, all quick ones. It starts managers and workers of its own in a scratch folder. A manager that
    runs (--join) must have workers with --tasks taskq.bench.tasks.
    """
    from taskq.bench import report, runner  # brings all that is measured: not needed for help
    from taskq.bench.settings import Settings
    from taskq.bench.workloads import WORKLOADS

    if list_:
        if output.json:
            output.value([{"id": one.id, "name": one.name, "bar": one.bar} for one in WORKLOADS.values()])
        else:
            output.table(("ID", "WORKLOAD", "BAR"), [(one.id, one.name, one.bar) for one in WORKLOADS.values()])
        return EXIT_OK
    names = [name.upper() for name in workloads]
    if unknown := [name for name in names if name not in WORKLOADS]:
        raise click.BadParameter(f'"{unknown[0]}" is none of {", ".join(WORKLOADS)}', param_hint="'WORKLOAD'")
    chosen = [one for one in WORKLOADS.values() if (one.id in names if names else one.quick and not profile)]
    settings = Settings(runs, scale, Path(join) if join else None, output.note)
    found = runner.run(chosen, settings, floor=floor, with_profile=profile)
    if output.json:
        output.value(found.as_json(), indent=2)
    else:
        for line in report.lines(found):
            output.line(line)
    return EXIT_FAILED if found.failed else EXIT_OK


def main() -> None:
    """The entry point of ``taskq bench``."""
    sys.exit(run(command, "taskq bench"))
