"""The README says what the code says: diagram, option tables, exit codes; and its first page has no links."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import click
import pytest

from taskq import service
from taskq.cli import output, recover
from taskq.config import QueueSettings
from taskq.errors import RetryPolicy
from taskq.queue.lifecycle import mermaid
from taskq.stores import sqlite
from taskq.unique import Unique
from taskq.wire import client as wire_client
from taskq.wire import codec, door, frames, room

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")

COMMANDS = {
    name: importlib.import_module(f"taskq.cli.{name}").command for name in ("manager", "worker", "submit", "monitor")
}
VERBS = {
    "task": ("list", "show", "result", "explain", "cancel", "requeue", "purge"),
    "failed": ("list", "show", "requeue", "drop"),
    "queue": ("list", "pause", "resume", "limit", "purge"),
    "worker": ("list",),
}

LINK = re.compile(r"\]\([^)]+\)|https?://(?!api\.example)")


def _value(option: click.Option) -> str:
    """The word for an option's value."""
    if option.metavar is None and isinstance(option.type, click.Choice):
        return "|".join(option.type.choices)
    return option.metavar or option.type.name.upper()


def row(option: click.Option) -> str:
    """A line of an option table."""
    words, _, bracketed = (option.help or "").partition("  [")
    default = bracketed.rstrip("]")
    if not default and option.show_default and option.default not in (None, ""):
        amount = isinstance(option.default, int) and option.name != "port"
        default = f"{option.default:,}" if amount else str(option.default)
    value = "" if option.is_flag or option.count else f" {_value(option)}"
    names = ", ".join(f"`{name}{value}`" for name in sorted(option.opts, key=len, reverse=True))
    variable = f"`{option.envvar}`" if option.envvar else ""
    cells = [cell.replace("|", "\\|") for cell in (names, default, variable, words)]
    return f"| {' | '.join(cells)} |"


def rows(command: click.Command) -> list[str]:
    """The lines of all options of a command, in the order of its help."""
    return [row(param) for param in command.params if isinstance(param, click.Option) and not param.hidden]


def table(lines: Iterable[str]) -> str:
    """A whole option table."""
    return "\n".join(["| option | default | environment | meaning |", "| --- | --- | --- | --- |", *lines])


def option_tables() -> dict[str, str]:
    """Heading -> table: options of all commands, of those that connect, and of each command."""
    of = {name: rows(command) for name, command in COMMANDS.items()}
    everywhere = [line for line in of["manager"] if all(line in lines for lines in of.values())]
    clients = [of[name] for name in ("worker", "submit", "monitor")]
    connecting = [line for line in clients[0] if all(line in lines for lines in clients) and line not in everywhere]
    tables = {"everywhere": table(everywhere), "connecting": table(connecting)}
    for name, lines in of.items():
        shared = everywhere if name == "manager" else [*everywhere, *connecting]
        tables[f"taskq-{name}"] = table(line for line in lines if line not in shared)
    tables["taskq recover"] = table(line for line in rows(recover.command) if line not in everywhere)
    for group, names in VERBS.items():
        verbs = COMMANDS["monitor"].commands[group].commands
        for verb in names:
            own = [line for line in rows(verbs[verb]) if line not in [*everywhere, *connecting]]
            if own:
                tables[f"taskq-monitor {group} {verb}"] = table(own)
        assert set(verbs) == set(names)
    return tables


def test_the_state_diagram_is_the_one_of_the_code() -> None:
    assert f"```mermaid\n{mermaid()}\n```" in README


@pytest.mark.parametrize("name", option_tables())
def test_option_tables_are_those_of_the_commands(name: str) -> None:
    assert f"\n\n{option_tables()[name]}\n\n" in README


@pytest.mark.parametrize(("name", "usual"), [("Retry", RetryPolicy()._asdict()), ("Unique", asdict(Unique()))])
def test_the_parts_of_options_are_those_of_the_code(name: str, usual: dict[str, object]) -> None:
    heading = f"| part of a `{name}` | usual | meaning |\n| --- | --- | --- |\n"
    table = README.partition(heading)[2].partition("\n\n")[0]
    listed = {cells[1].strip(" `"): cells[2].strip() for cells in (line.split("|") for line in table.splitlines())}
    assert listed == {part: str(value) for part, value in usual.items()}


def test_exit_codes_are_those_of_the_commands() -> None:
    listed = [int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)]
    codes = {value for name, value in vars(output).items() if name.startswith("EXIT_") and isinstance(value, int)}
    assert listed == sorted(codes)


def _size(count: int) -> str:
    """A number of bytes in words."""
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"


def test_limits_are_those_of_the_code() -> None:
    settings = QueueSettings()
    expected = {
        "a message before the key is proved": _size(frames.MAX_STRANGER_FRAME),
        "a message": _size(frames.MAX_FRAME),
        "elements of an array or map in a message": f"{codec.MAX_ARRAY:,}",
        "values in a message": f"{codec.MAX_ITEMS:,}",
        "arrays and maps in a message": f"{codec.MAX_CONTAINERS:,}",
        "nesting in a message": f"{codec.MAX_LEVELS} levels",
        "nesting in a payload or result": f"{codec.MAX_DEPTH} levels",
        "messages of all connections that are being received or answered": _size(room.MAX_REQUESTS),
        "replies to all connections that are not taken yet": _size(room.MAX_REPLIES),
        "seconds for a message that has begun, or a reply that is not taken": f"{frames.FRAME_TIMEOUT:g}",
        "seconds to prove the key": f"{door.HANDSHAKE_TIMEOUT:g}",
        "connections that have not proved the key": f"{door.MAX_STRANGERS:,}",
        "connections": f"{door.MAX_CONNECTIONS:,}",
        "arguments of a task": _size(settings.max_payload),
        "result of a task": _size(service.MAX_RESULT),
        "pending tasks of a queue": f"{settings.max_pending:,}",
        "free space on the disk": _size(sqlite.FREE_MARK),
    }
    lines = README.partition("| limit | is | beyond it | set by |\n| --- | --- | --- | --- |\n")[2].partition("\n\n")[0]
    cells = [[cell.strip() for cell in line.split("|")] for line in lines.splitlines()]
    assert {line[1]: line[2] for line in cells} == expected
    options = {option for command in COMMANDS.values() for param in command.params for option in param.opts}
    assert {line[4].strip("`") for line in cells if line[4].startswith("`")} <= options
    text = " ".join(line[3] for line in cells)
    assert f"after {room.RETRY_AFTER:g} s and more, for {wire_client.CALL_TIMEOUT:g} s" in text
    assert f"over {_size(room.LONG)}" in text and f"up to {_size(room.SMALL)}" in text
    assert f"at {service.MAX_BATCH:,} items or {_size(service.MAX_BATCH_BYTES)}" in text


def test_the_first_minutes_come_before_the_first_link() -> None:
    lines = README.splitlines()
    first = next(number for number, line in enumerate(lines) if LINK.search(line))
    assert first < 60
    top = "\n".join(lines[:first])
    order = [
        *("bin/demo", "taskq-manager", "taskq-submit", "taskq-monitor", "@task", "--print-join"),
        *("| what ends", "bin/test"),
    ]
    places = [top.index(word) for word in order]
    assert places == sorted(places)


def test_nobody_is_sent_to_somebody_elses_package() -> None:
    assert not re.search(r"pip3? install\s+(-\S+\s+)*taskq", README)


def _anchors(lines: Sequence[str]) -> set[str]:
    titles = [line.lstrip("#").strip().lower() for line in lines if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def test_every_link_leads_somewhere() -> None:
    root = Path(__file__).resolve().parents[2]
    anchors = _anchors(README.splitlines())
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert targets
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("http"):
            assert (root / target).exists(), target
