"""Figures and tables as people read them: durations, sizes, rates, rows cut to a width. PURE.

A value that is not known (None) is ``-`` everywhere. Nothing that comes out holds a control character.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone, tzinfo
from typing import NamedTuple

UNKNOWN = "-"


def plain(text: str) -> str:
    """The text without line ends, escape sequences or other characters that a terminal would act on.

    >>> plain("two\\nlines \\x1b[31m")
    'two lines  [31m'
    """
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def duration(seconds: float | None) -> str:
    """Seconds, in the two largest units that matter.

    >>> [duration(s) for s in (0.0004, 0.041, 0.4, 2.94, 42, 252, 8040, 273600)]
    ['<1ms', '41ms', '0.4s', '2.9s', '42s', '4m12s', '2h14m', '3d4h']
    """
    if seconds is None:
        return UNKNOWN
    if seconds < 0.001:
        return "<1ms" if seconds > 0 else "0s"
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600}h"


def size(number: int | None) -> str:
    """Bytes, in units of 1024.

    >>> [size(n) for n in (512, 41 * 2**20, 1300 * 2**20)]
    ['512B', '41M', '1.3G']
    """
    if number is None:
        return UNKNOWN
    if number < 1000:
        return f"{number}B"
    amount, units = number / 1024, "KMGT"
    while amount >= 999.5 and len(units) > 1:
        amount, units = amount / 1024, units[1:]
    unit = units[0]
    return f"{amount:.1f}{unit}" if amount < 9.95 and unit in "GT" else f"{amount:.0f}{unit}"


def count(number: int | None) -> str:
    """A whole number with separators.

    >>> count(12048), count(None)
    ('12,048', '-')
    """
    return UNKNOWN if number is None else f"{number:,}"


def counted(number: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "task"), counted(1204, "task"), counted(0, "worker process")
    ('1 task', '1,204 tasks', '0 worker processes')
    """
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{count(number)} {noun}{ending}"


def rate(per_second: float | None, digits: int = 1) -> str:
    """A number a second; ``digits`` after the point as long as it is under 1,000.

    >>> rate(402.14), rate(0.3, digits=0), rate(412.2, digits=0), rate(67_000.4)
    ('402.1', '0.3', '412', '67,000')
    """
    if per_second is None:
        return UNKNOWN
    if per_second >= 999.95 or (digits == 0 and (per_second >= 9.95 or per_second == 0)):
        return f"{per_second:,.0f}"
    return f"{per_second:.1f}"


def percent(number: float | None) -> str:
    """A percentage without decimals."""
    return UNKNOWN if number is None else f"{number:.0f}%"


def moment(text: str | None) -> datetime | None:
    """The point in time that an ISO 8601 text names (Python 3.10 cannot read its ``Z`` itself)."""
    return None if text is None else datetime.fromisoformat(text.replace("Z", "+00:00"))


def time_of_day(text: str | None, zone: tzinfo | None = None) -> str:
    """``hh:mm:ss`` of an ISO 8601 text, in ``zone`` (None: the machine's own).

    >>> from datetime import timezone
    >>> time_of_day("2026-01-02T02:31:07.500Z", timezone.utc)
    '02:31:07'
    """
    when = moment(text)
    return UNKNOWN if when is None else f"{when.astimezone(zone):%H:%M:%S}"


def when(wall: float, now: float, zone: tzinfo | None = None) -> str:
    """A point in time: of the same day as ``now`` the time, else the date too. Both are wall-clock seconds.

    >>> from datetime import timezone
    >>> when(1_700_000_000, 1_700_003_600, timezone.utc), when(1_700_000_000, 1_700_010_000, timezone.utc)
    ('22:13:20', '2023-11-14 22:13')
    """
    then, today = (datetime.fromtimestamp(seconds, timezone.utc).astimezone(zone) for seconds in (wall, now))
    return f"{then:%H:%M:%S}" if then.date() == today.date() else f"{then:%Y-%m-%d %H:%M}"


def cut(text: str, width: int) -> str:
    """The text, at most ``width`` characters of it; a cut shows as ``…``.

    >>> cut("SMTPServerDisconnected", 8)
    'SMTPSer…'
    """
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


class Column(NamedTuple):
    """A column of a table. ``width`` and ``gap`` (spaces before it) are what it gets where there is room."""

    title: str
    width: int
    gap: int = 2
    right: bool = True
    cuttable: bool = False


Row = Sequence[str]
"""The cells of a row, one for each column."""

SHORTEST = 8
"""Characters that a cuttable column keeps at least."""
TAIL = 24
"""Characters that the last column should have before others are cut for it."""


def table(columns: Sequence[Column], rows: Sequence[Row], tails: Sequence[Sequence[str]], width: int) -> list[str]:
    """The lines of a table, heading first, none longer than ``width``.

    The last column is free text and takes what is left: ``tails`` gives for each row its wordings, the fullest first;
    the first that fits is taken. Where the room does not suffice, generous columns become as narrow as their contents,
    then gaps shrink to one space, then names are cut.
    """
    body = columns[:-1]
    contents = [max(len(cell) for cell in cells) for cells in zip([c.title for c in body], *rows, strict=True)]
    wanted = max((len(tail[0]) for tail in tails), default=0)
    room = 0
    widths, gaps = contents, [1] * len(body)
    for widths, gaps in (
        ([max(column.width, content) for column, content in zip(body, contents, strict=True)], [c.gap for c in body]),
        (contents, [min(column.gap, 2) for column in body]),
        (contents, [1] * len(body)),
    ):
        room = width - sum(widths) - sum(gaps[1:]) - columns[-1].gap
        if room >= wanted:
            break
    need = max(len(columns[-1].title), min(wanted, TAIL))
    if room < need:
        widths = _narrowed(body, widths, need - room)
        room = width - sum(widths) - sum(gaps[1:]) - columns[-1].gap
    lines = []
    for cells, tail in zip([[c.title for c in body], *rows], [[columns[-1].title], *tails], strict=True):
        parts = [
            " " * gap * (index > 0) + _cell(cell, cell_width, column.right)
            for index, (cell, cell_width, gap, column) in enumerate(zip(cells, widths, gaps, body, strict=True))
        ]
        text = next((text for text in tail if len(text) <= room), tail[-1])
        lines.append(cut(("".join(parts) + " " * columns[-1].gap + text).rstrip(), width))
    return lines


def _cell(text: str, width: int, right: bool) -> str:
    text = cut(text, width)
    return text.rjust(width) if right else text.ljust(width)


def _narrowed(columns: Sequence[Column], widths: Sequence[int], excess: int) -> list[int]:
    """Widths that are ``excess`` smaller in all, taken from the widest cuttable column, one by one."""
    narrowed = list(widths)
    for _ in range(excess):
        able = [i for i, column in enumerate(columns) if column.cuttable and narrowed[i] > SHORTEST]
        if not able:
            break
        narrowed[max(able, key=narrowed.__getitem__)] -= 1
    return narrowed


def flow(groups: Sequence[tuple[int, str]], width: int, indent: int = 1) -> list[str]:
    """Groups of words in as many lines as they need; each has the number of spaces before it within a line.

    >>> flow([(0, "in 4/s  done 3/s"), (4, "pending 12")], 20)
    [' in 4/s  done 3/s', ' pending 12']
    """
    lines: list[str] = []
    for gap, text in groups:
        if lines and len(lines[-1]) + gap + len(text) <= width:
            lines[-1] += " " * gap + text
        else:
            lines.append(cut(" " * indent + text, width))
    return lines
