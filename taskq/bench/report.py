"""What `taskq bench` shows to people: a plain table."""

from __future__ import annotations

from taskq.bench.figures import Row
from taskq.bench.profile import Profile
from taskq.bench.runner import Report
from taskq.layout import Column, count, counted, cut, size, table

WIDTH = 100

COLUMNS = (
    Column("", 5, right=False),
    Column("WORKLOAD", 34, right=False),
    Column("MEDIAN", 9),
    Column("UNIT", 7, gap=1, right=False),
    Column("LOWEST", 9),
    Column("HIGHEST", 9),
    Column("", 6, right=False),
    Column("BAR", 0, right=False),
)

IN_MEMORY = ("tmpfs", "ramfs")


def figure(value: float) -> str:
    """A figure with as many digits as say something.

    >>> figure(41234.6), figure(87.26), figure(0.8123)
    ('41,235', '87.3', '0.812')
    """
    if value >= 999.5:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.95 else f"{value:.3g}"


def lines(report: Report) -> list[str]:
    """The whole report, at most `WIDTH` columns wide."""
    machine = report.machine
    head = f"{machine['system']}, {counted(machine['cores'], 'core')}, {size(machine['memory_bytes'])} memory"
    found = [
        f"{head}, Python {machine['python']}, {machine['disk']} at {machine['scratch']}, load {machine['load']:.1f}",
    ]
    if report.rows:
        found.append(f"median of {counted(report.settings.runs, 'run')}")
    found += [f"note: {text}" for text in warnings(report)]
    if report.rows:
        cells = [_cells(row) for row in report.rows]
        found += ["", *table(COLUMNS, cells, [[row.bar] for row in report.rows], WIDTH)]
        found += [f"{row.workload} {row.name}: {row.note}" for row in report.rows if row.note]
    if report.profile is not None:
        found += ["", *profile_lines(report.profile)]
    found += [f"{id} left out: {why}" for id, why in report.left_out]
    found += [f"{id} could not be measured: {error}" for id, error in report.failed]
    return found


def profile_lines(profile: Profile) -> list[str]:
    """Where the time goes."""
    cpu = ", ".join(f"{role} {us:.1f}" for role, us in profile.cpu_us.items())
    total = f"{sum(profile.cpu_us.values()):.1f} us of processor time a task"
    found = [f"{count(profile.tasks)} tasks as in P1, {figure(profile.rate)}/s, {total}: {cpu}"]
    for role, functions in profile.stacks.items():
        found.append(f"{role}: who holds the interpreter")
        found += [cut(f"  {share:6.1%}  {name}", WIDTH) for name, share in functions]
    return [*found, *filter(None, [profile.note])]


def warnings(report: Report) -> list[str]:
    """Why the figures may mean less than they seem to."""
    found = []
    if report.settings.scale != 1:
        found.append(f"--scale {report.settings.scale:g}: other amounts than the bars are made for; they mean little")
    if report.machine["disk"] in IN_MEMORY:
        found.append("the scratch folder is in memory, where a commit costs nothing; set TMPDIR to one on a disk")
    return found


def _cells(row: Row) -> list[str]:
    verdict = {True: "ok", False: "MISSED", None: ""}[row.passed]
    spread = figure(min(row.values)), figure(max(row.values))
    return [row.workload, row.name, figure(row.median), row.unit, *spread, verdict]
