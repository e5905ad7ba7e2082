"""What all commands share: options and their environment variables, help, output, exit codes."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from taskq import errors
from taskq.__main__ import SUBCOMMANDS
from taskq.__main__ import command as everything
from taskq.cli import output
from taskq.cli.options import DURATION, SIZE, Command, Connection, common_options, connection_options, setting
from taskq.cli.output import Output, exit_code, format_table, run, to_json
from taskq.config import Address, Join, write_private

COMMANDS = {name: importlib.import_module(f"taskq.cli.{name}").command for name in SUBCOMMANDS}


# -- options and environment


@click.command(cls=Command, example="probe it")
@setting("--lease", type=DURATION, default="30s")
@setting("--limit", type=SIZE, default="1k")
@connection_options
@common_options
def probe(connection: Connection, output: Output, lease: float, limit: int) -> None:
    """Shows what it was given."""
    values = {"lease": lease, "limit": limit, **vars(connection), "quiet": output.quiet, "log": output.log_level}
    output.value(values)


def given(*arguments: str, **environment: str) -> dict[str, Any]:
    """What the probe says of its options."""
    done = CliRunner().invoke(probe, list(arguments), env=environment, standalone_mode=False)
    assert done.exception is None, done.exception
    return dict(json.loads(done.stdout))


def test_defaults() -> None:
    found = given()
    assert (found["lease"], found["limit"], found["connect_timeout"], found["name"]) == (30.0, 1024, 5.0, "default")
    assert found["host"] is found["port"] is found["join_file"] is found["key_file"] is None


def test_the_environment_is_second_to_flags() -> None:
    environment = {"TASKQ_HOST": "one", "TASKQ_PORT": "7", "TASKQ_LEASE": "1m", "TASKQ_CONNECT_TIMEOUT": "2s"}
    found = given(**environment)
    assert (found["host"], found["port"], found["lease"], found["connect_timeout"]) == ("one", 7, 60.0, 2.0)
    found = given("--host", "two", "--lease", "90s", **environment)
    assert (found["host"], found["port"], found["lease"]) == ("two", 7, 90.0)


def test_common_options() -> None:
    found = given("-q", "--log-level", "debug")
    assert (found["quiet"], found["log"]) == (True, "debug")


@pytest.mark.parametrize("name", COMMANDS)
def test_options_with_an_environment_variable_are_named_after_themselves(name: str) -> None:
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option) and parameter.envvar:
            words = parameter.opts[0].removeprefix("--").replace("-", "_").upper()
            assert parameter.envvar == f"TASKQ_{words}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_common_options(name: str) -> None:
    flags = {flag for parameter in COMMANDS[name].params for flag in parameter.opts}
    assert {"--log-level", "--log-format", "--json", "--quiet", "-q", "--color", "--version"} <= flags
    if name != "bench":  # which has scratch folders of its own
        assert {"--state-dir", "--name"} <= flags
        assert "--key-file" in flags or name == "recover"  # which talks to nobody


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_for(name: str) -> None:
    options = [parameter for parameter in COMMANDS[name].params if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help and not option.hidden] == []


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_starts_with_an_example(name: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(COMMANDS[name], f"taskq-{name}", [flag]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    first, second, *_ = printed.out.splitlines()
    assert first == "Example:" and second.strip().startswith((f"taskq {name}", "taskq-"))
    assert max(map(len, printed.out.splitlines())) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_environment_variables(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(COMMANDS[name], f"taskq-{name}", ["-h"])
    _, _, environment = capsys.readouterr().out.partition("Environment:")
    variables = [param.envvar for param in COMMANDS[name].params if param.envvar]
    assert variables and [word.strip(",:") for word in environment.split() if "TASKQ_" in word] == variables


@pytest.mark.parametrize("words", [[], ["monitor", "task"]])
def test_a_group_without_a_subcommand_shows_its_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(everything, "taskq", words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("Example:\n") and "Commands:\n" in printed.err and "error" not in printed.err


def test_help_of_everything_names_the_commands_without_importing_them() -> None:
    code = "import sys; from taskq.__main__ import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, "-h"], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in done.stdout for name in SUBCOMMANDS)
    assert not {f"taskq.cli.{name}" for name in SUBCOMMANDS} & set(done.stderr.split())


def test_the_join_file_may_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    join = Join((Address("mgr.lan", 99),), bytes(32))
    monkeypatch.setattr(sys, "stdin", io.StringIO(join.to_json()))
    found = Connection(None, "default", "-", None, None, None, 5.0).join()
    assert (found.addresses, found.key) == (join.addresses, join.key)


def test_connection_options_find_the_manager_in_the_state_folder(tmp_path: Path) -> None:
    join = Join((Address("mgr.lan", 99),), bytes(32))
    write_private(tmp_path / "join.json", join.to_json())
    found = Connection(str(tmp_path), "default", None, None, 100, None, 5.0).join()
    assert found.addresses == (Address("mgr.lan", 100),)


# -- output


def test_data_goes_to_stdout_and_words_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    out.line("data")
    out.value({"a": [1, None, "ü"]})
    out.note("by the way")
    out.warning("careful", "look")
    printed = capsys.readouterr()
    assert printed.out == 'data\n{"a": [1, null, "ü"]}\n'
    assert printed.err == "by the way\nwarning: careful\nhint: look\n"


def test_quiet_leaves_data_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(quiet=True)
    out.line("data")
    out.note("by the way")
    out.warning("careful")
    out.error("broken", "mend it")
    printed = capsys.readouterr()
    assert printed.out == "data\n"
    assert printed.err == "error: broken\nhint: mend it\n"


def test_errors_as_json_are_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert Output(json=True).failure(errors.QueueFull("full", hint="later")) == 5
    printed = capsys.readouterr()
    assert json.loads(printed.err) == {"error": {"code": "queue_full", "message": "full", "hint": "later"}}
    assert printed.out == ""


def test_colours_only_where_they_are_wanted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Output().error("plain")
    assert "\x1b" not in capsys.readouterr().err
    Output(color="always").error("red")
    assert "\x1b[31m" in capsys.readouterr().err

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    assert Output().colors(Terminal())
    assert not Output(color="never").colors(Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Output().colors(Terminal())


def test_big_numbers_are_printed_in_full() -> None:
    assert to_json({"n": 10**5_000}) == '{"n": 1' + "0" * 5_000 + "}"


def test_tables_are_as_wide_as_they_need_to_be() -> None:
    lines = format_table(("ID", "TYPE", "NOTE"), [(7, "compute", None), (12, "x", "y")])
    assert lines == ["ID  TYPE     NOTE", " 7  compute  -", "12  x        y"]


# -- exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.TaskqError("x"), 1),
        (errors.TaskFailed("x"), 1),
        (errors.StoreLocked("x"), 1),
        (errors.ConfigError("x"), 2),
        (errors.BadArguments("x"), 2),
        (errors.NotEncodable("x"), 2),
        (errors.ManagerUnavailable("x"), 3),
        (errors.ProtocolMismatch("x"), 3),
        (errors.AuthenticationFailed("x"), 4),
        (errors.QueueFull("x"), 5),
        (errors.StorageFull("x"), 5),
        (errors.Busy("x"), 5),
        (errors.TaskNotFound("x"), 6),
        (errors.UnknownTaskType("x"), 6),
        (errors.StoreDamaged("x"), 65),
    ],
)
def test_exit_codes(error: errors.TaskqError, code: int) -> None:
    assert exit_code(error) == code


def raising(error: BaseException | int | None) -> click.Command:
    """A command that ends in this way."""

    def callback() -> int | None:
        if isinstance(error, BaseException):
            raise error
        return error

    return click.Command("ends", callback=callback)


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        (None, 0, ""),
        (7, 7, ""),
        (errors.ManagerUnavailable("away", hint="start it"), 3, "error: away\nhint: start it\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (click.UsageError("bad"), 2, 'error: bad\nhint: "ends -h" shows what it takes\n'),
    ],
)
def test_every_end_of_a_command(
    end: BaseException | int | None, code: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(end), "ends", []) == code
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", words)


def test_an_unexpected_error_is_one_line_and_a_traceback_only_when_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(raising(ZeroDivisionError("oh")), "ends", []) == 1
    printed = capsys.readouterr().err.splitlines()
    assert printed == [
        "error: unexpected: ZeroDivisionError: oh",
        "hint: set TASKQ_DEBUG=1 to see where it comes from",
    ]
    monkeypatch.setenv("TASKQ_DEBUG", "1")
    run(raising(ZeroDivisionError("oh")), "ends", [])
    assert "Traceback" in capsys.readouterr().err


def test_a_usage_error_says_how_to_get_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(probe, "taskq-probe", ["--lease", "soon"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: Invalid value for '--lease': \"soon\" is not a duration")
    assert second == 'hint: "taskq-probe -h" shows what it takes'


@pytest.mark.parametrize(
    ("prog", "words", "found"),
    [
        ("taskq", "taskq su", "plain,submit\n"),
        ("taskq-submit", "taskq-submit --payload-", "plain,--payload-file\n"),
        ("taskq-monitor", "taskq-monitor task sh", "plain,show\n"),
    ],
)
def test_the_shell_can_complete_a_line(prog: str, words: str, found: str) -> None:
    module = f"taskq.cli.{prog.removeprefix('taskq-')}" if "-" in prog else "taskq.__main__"
    variable = f"_{prog.upper().replace('-', '_')}_COMPLETE"
    asked = {variable: "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    code = f"from {module} import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert done.stdout == found, done.stderr


def in_a_shell(line: str, body: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose function has this body, in place of PYTHON in a shell's line."""
    script = "import click, errno, os, sys; from taskq.cli.output import Output, run\n"
    script += f"def command():\n    {body}\nsys.exit(run(click.Command('x', callback=command), 'x', []))"
    line = line.replace("PYTHON", '"$0" -c "$1"')
    return subprocess.run(["sh", "-c", line, sys.executable, script], capture_output=True, text=True, check=False)


def test_closed_standard_streams_are_given_to_nobody_else() -> None:
    done = in_a_shell("PYTHON <&- >&- 2>&-", "return os.open(os.devnull, os.O_RDONLY)")
    assert done.returncode > 2


def test_closed_standard_streams_are_as_good_as_dev_null() -> None:
    body = "Output().line('data'); Output().note('words'); return 7 if sys.stdin.buffer.read() == b'' else 1"
    done = in_a_shell("PYTHON <&- >&- 2>&-", body)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")


@pytest.mark.parametrize(
    "body",
    [
        "raise BrokenPipeError(errno.EPIPE, 'Broken pipe')",
        "Output().line('x' * 1000000)",
        "sys.stdout.write('x' * 1000000)",
    ],
)
def test_a_reader_that_leaves_early_is_no_error(body: str) -> None:
    done = in_a_shell("{ PYTHON; echo $? >&2; } | true", body)
    assert done.stderr == "0\n"


@pytest.mark.parametrize("body", ["Output().line('data')", "sys.stdout.write('data')"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_an_error(body: str) -> None:
    done = in_a_shell("PYTHON >/dev/full", body)
    assert done.returncode == 1
    assert done.stderr == "error: cannot write to standard output: no space left on device\n"


# -- the pool's command


def test_the_tasks_that_a_pool_would_offer(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from taskq import task\n\n@task(queue='mail', max_retries=7, timeout=9)\ndef send(to, *, again=False): ...\n"
    )
    base = [sys.executable, "-m", "taskq", "worker", "--list-tasks", "--tasks", "mine"]
    shown = subprocess.run(base, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown[0].split() == ["TASK", "QUEUE", "RETRIES", "TIMEOUT"]
    [row] = [line for line in shown if line.startswith("mine.send(to")]
    assert row.split()[-3:] == ["mail", "7", "9"]
    listed = json.loads(subprocess.check_output([*base, "--json"], cwd=tmp_path))
    assert {"compute", "sleep", "http_request", "fail", "mine.send"} == {found["name"] for found in listed}


def test_nothing_is_written_for_help_and_lists(tmp_path: Path) -> None:
    environment = {**os.environ, "TASKQ_STATE_DIR": str(tmp_path / "state")}
    for arguments in (["manager", "-h"], ["worker", "--list-tasks"], ["manager", "--print-join"], ["submit", "-h"]):
        command = [sys.executable, "-m", "taskq", *arguments]
        subprocess.run(command, env=environment, capture_output=True, check=False)
    assert not (tmp_path / "state").exists()


def test_the_codes_are_all_different() -> None:
    codes = [value for name, value in vars(output).items() if name.startswith("EXIT_") and isinstance(value, int)]
    assert len(codes) == len(set(codes))
