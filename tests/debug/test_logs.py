"""Log lines: the closed list of events, fields in both formats, the rotating file."""

from __future__ import annotations

import ast
import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path

import pytest

from taskq import logs
from taskq.errors import ConfigError

PACKAGE = Path(logs.__file__).parent
log = logging.getLogger("taskq.test")


class Stderr:
    """What was written to stderr since the start of the test."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self._text = ""

    def getvalue(self) -> str:
        """All of it."""
        self._text += self._capture.readouterr().err
        return self._text


@pytest.fixture(autouse=True)
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Stderr]:
    """What goes to stderr; the root logger is put back afterwards."""
    root = logging.getLogger()
    before, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    yield Stderr(capsys)
    for handler in root.handlers[:]:
        if handler not in before:
            handler.close()
    root.handlers[:] = before
    root.setLevel(level)
    logging.raiseExceptions = raising


def test_json_lines_have_the_fields(stderr: Stderr) -> None:
    logs.setup("manager", format="json", worker="w/1")
    logs.event(log, logging.WARNING, "task_retried", "task 7 failed", task_id=7, queue="default", attempt=2)
    line = json.loads(stderr.getvalue())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("ts"))
    assert line.pop("host") and isinstance(line.pop("pid"), int)
    assert line == {
        "level": "warning",
        "logger": "taskq.test",
        "event": "task_retried",
        "msg": "task 7 failed",
        "role": "manager",
        "worker": "w/1",
        "task_id": 7,
        "queue": "default",
        "attempt": 2,
    }


def test_text_lines_have_the_same_fields_and_stay_one_line(stderr: Stderr) -> None:
    logs.setup("pool", format="text")
    logs.event(log, logging.ERROR, "task_failed", "task 7\nfailed", task_id=7, error="OSError: no")
    assert re.fullmatch(
        r"\S+Z error   pool@\S+\[\d+\] taskq\.test task_failed: task 7\\nfailed  task_id=7 error=OSError: no\n",
        stderr.getvalue(),
    )


def test_a_traceback_is_in_the_error_field(stderr: Stderr) -> None:
    logs.setup("manager", format="json")
    try:
        raise OSError("broken")
    except OSError:
        log.exception("it broke")
    line = json.loads(stderr.getvalue())
    assert line["event"] == "log"
    assert line["error"].startswith("Traceback") and line["error"].endswith("OSError: broken")


def test_the_users_own_lines_carry_the_context(stderr: Stderr) -> None:
    logs.setup("worker", format="json")
    with logs.context(task_id=7, correlation_id="c1"), logs.context(attempt=1):
        logging.getLogger("users.module").warning("hello %s", "you")
    logging.getLogger("users.module").warning("outside")
    inside, outside = map(json.loads, stderr.getvalue().splitlines())
    assert (inside["msg"], inside["task_id"], inside["attempt"], inside["correlation_id"]) == ("hello you", 7, 1, "c1")
    assert "task_id" not in outside


def test_the_context_of_one_thread_is_not_that_of_another(stderr: Stderr) -> None:
    logs.setup("worker", format="json")
    with logs.context(task_id=7):
        bare = threading.Thread(target=log.warning, args=("bare",))
        copied = threading.Thread(target=copy_context().run, args=(log.warning, "copied"))
        for thread in (bare, copied):
            thread.start()
            thread.join()
    first, second = map(json.loads, stderr.getvalue().splitlines())
    assert "task_id" not in first
    assert second["task_id"] == 7


def test_levels_and_quiet(stderr: Stderr) -> None:
    logs.setup("manager", format="text", level="info", quiet=True)
    logs.event(log, logging.DEBUG, "task_completed", "one")
    logs.event(log, logging.INFO, "ready", "two")
    logs.event(log, logging.WARNING, "task_retried", "three")
    assert [line.split()[4] for line in stderr.getvalue().splitlines()] == ["task_retried:"]


def test_what_is_announced_stands_alone_for_people_and_whole_for_machines(stderr: Stderr, tmp_path: Path) -> None:
    logs.setup("manager", format="text", folder=tmp_path)
    logs.announce(log, "ready", "taskq-manager ready")
    assert stderr.getvalue() == "taskq-manager ready\n"
    assert " ready: taskq-manager ready" in (tmp_path / "manager.log").read_text()
    logs.setup("manager", format="json")
    logs.announce(log, "ready", "taskq-manager ready")
    assert json.loads(stderr.getvalue().splitlines()[1])["event"] == "ready"


def test_the_file_rotates_and_is_json_unless_told_otherwise(
    stderr: Stderr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES", 2_000)
    logs.setup("manager", folder=tmp_path / "log")
    for number in range(100):
        logs.event(log, logging.INFO, "ready", f"line {number}")
    files = sorted(path.name for path in (tmp_path / "log").iterdir())
    assert files == ["manager.log", *(f"manager.log.{number}" for number in range(1, logs.FILES_KEPT + 1))]
    last = (tmp_path / "log" / "manager.log").read_text().splitlines()[-1]
    assert json.loads(last)["msg"] == "line 99"


def test_a_log_folder_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"cannot write to .*file/log/manager\.log") as caught:
        logs.setup("manager", folder=tmp_path / "file" / "log")
    assert "--state-dir" in caught.value.hint


def test_a_closed_stderr_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    logs.setup("manager", folder=tmp_path)
    logs.event(log, logging.INFO, "ready", "still here")
    assert "still here" in (tmp_path / "manager.log").read_text()


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Name and syntax tree of every module of the package that may log."""
    for path in PACKAGE.rglob("*.py"):
        if path.name != "logs.py":
            yield path.name, ast.parse(path.read_text(encoding="utf-8"))


def logged_events() -> dict[str, str]:
    """event -> module, of every call of `logs.event` and `logs.announce` that names its event on the spot."""
    found = {}
    for name, tree in modules():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            position = {"event": 2, "announce": 1}.get(called)
            if position is not None and len(node.args) > position + 1:
                parts = [part for part in ast.walk(node.args[position]) if isinstance(part, ast.Constant)]
                found.update({part.value: name for part in parts if isinstance(part.value, str)})
    return found


def test_only_documented_events_are_logged() -> None:
    found = logged_events()
    assert len(found) > 15
    assert {event: module for event, module in found.items() if event not in logs.EVENTS} == {}


def test_every_documented_event_is_used() -> None:
    words = {node.value for _, tree in modules() for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert sorted(set(logs.EVENTS) - words) == []
