"""``taskq-monitor`` against a real manager: picture, exports, health, verbs, and the terminal it draws on."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import secrets
import select
import signal
import statistics
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, wait_until

from taskq.queue.terms import new_task
from taskq.wire import codec

CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

FIELDS = [
    *("id", "type", "queue", "state", "priority", "retry", "payload", "submitted_at", "due_at", "expires_at"),
    *("started_at", "finished_at", "failures", "deaths", "timeout", "cancel_requested", "worker", "result"),
    *("ignore_result", "result_ttl", "error", "correlation_id", "key", "unique", "history"),
]


def finished(cluster: Cluster, *ids: int) -> None:
    """Wait until these tasks are final."""
    service = cluster.service()
    left = list(ids)
    while left:
        over = {outcome.id for outcome in service.wait(left, 10.0)}
        assert over, f"still not final: {left}"
        left = [task_id for task_id in left if task_id not in over]


def shape(text: str) -> str:
    """The text with every number, time and identity replaced, so that only the layout is left."""
    text = re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", text)
    text = re.sub(r"\d\d:\d\d:\d\d", "hh:mm:ss", text)
    text = re.sub(r"\b[\w.-]+-\d+/\d+", "WORKER", text)
    text = re.sub(r"(?<!\w)<?\d[\d.,]*(ms|s|m\d\ds|%|[BKMG])?(?=[/\s)]|$)", "N", text, flags=re.MULTILINE)
    return re.sub(r" +", " ", text)


# -- once ------------------------------------------------------------------------------------------------------------


def test_once_has_the_layout_of_the_manual(cluster: Cluster) -> None:
    cluster.manager(workers=1, threads=2)
    done = cluster.submit({"type": "compute", "operation": "double", "value": 21})
    failed = cluster.submit({"type": "fail", "error_message": "test"}, "--max-retries", 0)
    later = cluster.submit({"type": "sleep", "duration": 0}, "--delay", "1h", "--queue", "night")
    finished(cluster, *done, *failed)
    printed = cluster.run("monitor", "--once")
    assert (printed.returncode, printed.stderr) == (0, "")
    assert later
    assert max(map(len, printed.stdout.splitlines())) <= 80
    assert all(char.isprintable() or char == "\n" for char in printed.stdout)
    assert shape(printed.stdout).splitlines() == [
        "taskq default ADDRESS up N cpu N rss N hh:mm:ss",
        " store sqlite, committed in N/s done N/s failed N/s",
        " pending N oldest - running N/N failed N",
        "",
        "QUEUE PENDING OLDEST RUNNING SCHEDULED IN/s DONE/s WAIT p95 RUN p95",
        "default N - N N N N N N",
        "night N - N N N N - -",
        "",
        "WORKER BUSY CPU RSS DONE FAILED BEAT NOW",
        "WORKER N/N N N N N N",
        "",
        "RECENT TASK TYPE QUEUE TOOK WORKER OUTCOME",
        "hh:mm:ss N fail default N WORKER failed after 1: RuntimeError",
        "hh:mm:ss N compute default N WORKER completed",
    ]


@pytest.mark.speed
def test_once_is_quick_and_costs_the_same_with_many_tasks(cluster: Cluster) -> None:
    cluster.manager(workers=0)
    service = cluster.service()
    payload = codec.encode_arguments((), {"duration": 0})
    client = secrets.randbits(62)

    def submit(calls: int, first: int) -> None:
        for seq in range(first, first + calls):
            service.submit(client, seq, [new_task("sleep", payload, delay=3600.0)] * 500)

    def cost() -> tuple[float, int]:
        spent, sizes = [], []
        for _ in range(15):
            started = time.perf_counter()
            snapshot = service.snapshot()
            spent.append(time.perf_counter() - started)
            sizes.append(len(json.dumps(snapshot)))
        return statistics.median(spent), max(sizes)

    submit(1, 1)
    few_s, few_bytes = cost()
    submit(60, 2)
    many_s, many_bytes = cost()
    assert many_bytes < few_bytes + 200
    assert many_s < 3 * few_s + 0.005
    walls = []
    for _ in range(3):
        started = time.perf_counter()
        assert cluster.run("monitor", "--once").returncode == 0
        walls.append(time.perf_counter() - started)
    assert min(walls) < 0.35


def test_an_empty_system_says_what_to_run_next(cluster: Cluster) -> None:
    cluster.manager(workers=0)
    text = cluster.run("monitor", "--once").stdout
    assert ' no tasks yet; try "taskq-submit --random --count 20"' in text
    assert ' no workers; start some with "taskq-worker"' in text
    listed = cluster.run("monitor", "task", "list")
    assert (listed.returncode, listed.stdout) == (0, "")
    assert listed.stderr == 'no tasks; submit some with "taskq-submit --random --count 20"\n'
    assert cluster.run("monitor", "task", "list", "--json").stdout == "[]\n"


def test_a_type_that_nobody_serves_is_a_warning(cluster: Cluster) -> None:
    cluster.manager(workers=1)
    payload = {"type": "resize_image", "width": 3}
    for _ in range(2):
        cluster.submit(payload, "--allow-unknown")
    text = cluster.run("monitor", "--once").stdout
    assert '! no worker serves "resize_image" (2 pending)' in text.splitlines()
    checked = cluster.run("monitor", "--check")
    assert (checked.returncode, checked.stdout) == (7, 'unhealthy: no worker serves "resize_image" (2 pending)\n')


def keys(value: Any) -> set[str]:
    """All names in a value and in what it holds."""
    if isinstance(value, list):
        return set().union(*map(keys, value))
    return set(value).union(*map(keys, value.values())) if isinstance(value, dict) else set()


def test_the_manual_names_every_field_of_the_export_and_no_other(cluster: Cluster) -> None:
    cluster.manager("--drain-timeout", "0.1s", workers=1, threads=2)
    finished(cluster, *cluster.submit({"type": "fail", "error_message": "x"}, "--max-retries", 0))
    cluster.submit({"type": "resize_image"}, "--allow-unknown")
    cluster.submit({"type": "sleep", "duration": 60})

    def taken() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(cluster.run("monitor", "--export", "json").stdout)
        return found if found["workers"][0]["running"] else {}

    snapshot = wait_until(taken)
    manual = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    _, _, manual = manual.partition("What `--export` gives")
    table, _, _ = manual[manual.index("| field |") :].partition("\n\n")
    named = set(re.findall(r"`([a-z_0-9]+)`", table))
    assert named == keys(snapshot)


@pytest.mark.parametrize("arguments", [["--once"], ["--check"], ["--export", "json"], [], ["task", "list"]])
def test_without_a_manager_it_ends_with_3_and_a_hint(cluster: Cluster, arguments: list[str]) -> None:
    cluster.manager(workers=0).stop()
    done = cluster.run("monitor", *arguments)
    assert done.returncode == 3
    assert done.stdout == ""
    assert re.fullmatch(
        r"error: no manager at 127\.0\.0\.1:\d+ \(connection refused\)\nhint: start one with \"taskq-manager\".*\n",
        done.stderr,
    )


# -- export and health -----------------------------------------------------------------------------------------------


def test_export_json_is_one_value_with_the_fields_of_the_manual(cluster: Cluster) -> None:
    cluster.manager(workers=1, threads=2)
    finished(cluster, *cluster.submit({"type": "compute", "operation": "double", "value": 1}))
    done = cluster.run("monitor", "--export", "json")
    assert done.returncode == 0
    snapshot = json.loads(done.stdout)
    assert snapshot["schema"] == "taskq.snapshot/1"
    assert set(snapshot) >= {
        "taken_at",
        "manager",
        "totals",
        "queues",
        "types",
        "workers",
        "recent_failures",
        "warnings",
    }
    assert set(snapshot["manager"]) >= {
        *(
            "version",
            "host",
            "pid",
            "address",
            "started_at",
            "uptime_s",
            "store",
            "durable",
            "cpu_percent",
            "rss_bytes",
        ),
    }
    assert set(snapshot["totals"]) >= {"submitted", "completed", "failed", "retried", "cancelled"}
    (queue,) = snapshot["queues"]
    assert set(queue) >= {"name", "paused", "pending", "scheduled", "blocked", "running", "oldest_pending_s"}
    assert set(queue["rate"]) >= {"in_per_s", "done_per_s", "failed_per_s", "window_s"}
    assert set(queue["wait_s"]) == set(queue["run_s"]) == {"p50", "p95", "p99"}
    (worker,) = snapshot["workers"]
    assert set(worker) >= {
        *("id", "host", "pid", "state", "threads", "busy", "last_heartbeat_s", "cpu_percent", "rss_bytes"),
        *("completed", "failed", "running"),
    }
    assert (worker["threads"], worker["completed"]) == (2, 1)
    compute = next(found for found in snapshot["types"] if found["name"] == "compute")
    assert compute["workers"] == 1
    assert compute["completed"] == 1


def test_export_to_a_file(cluster: Cluster) -> None:
    cluster.manager(workers=0)
    target = cluster.folder / "stats.json"
    for _ in range(2):
        done = cluster.run("monitor", "--export", "json", "-o", target)
        assert (done.returncode, done.stdout) == (0, "")
        assert json.loads(target.read_text())["schema"] == "taskq.snapshot/1"
    refused = cluster.run("monitor", "--export", "json", "-o", cluster.folder / "nowhere" / "x")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: cannot write to ")


def test_jsonl_is_one_line_an_interval_until_interrupted(cluster: Cluster) -> None:
    cluster.manager(workers=0)
    with monitoring(cluster, "--export", "jsonl", "--interval", "0.1") as (process, output):
        lines = [json.loads(output.readline()) for _ in range(4)]
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    assert len({line["taken_at"] for line in lines}) == 4
    assert lines[3]["manager"]["uptime_s"] - lines[0]["manager"]["uptime_s"] == pytest.approx(0.3, abs=0.25)


def test_pictures_follow_each_other_where_there_is_no_terminal(cluster: Cluster) -> None:
    cluster.manager(workers=0)
    with monitoring(cluster, "--interval", "0.1") as (process, output):
        titles = 0
        while titles < 3:
            line = output.readline()
            assert line, "ended early"
            assert "\x1b" not in line
            titles += line.startswith("taskq default ")
        process.terminate()


@contextlib.contextmanager
def monitoring(cluster: Cluster, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """A monitor whose output is a pipe."""
    process = subprocess.Popen(
        [sys.executable, "-m", "taskq", "monitor", *arguments],
        cwd=cluster.folder,
        env=cluster.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            yield process, process.stdout
        finally:
            process.kill()


def test_check_tells_a_healthy_system_from_one_without_workers(cluster: Cluster) -> None:
    manager = cluster.manager(workers=1, threads=2)
    healthy = cluster.run("monitor", "--check")
    assert (healthy.returncode, healthy.stdout) == (0, "healthy: 1 worker, 2 threads, 0 pending, 0 running\n")
    assert json.loads(cluster.run("monitor", "--check", "--json").stdout) == {"healthy": True, "reasons": []}
    manager.stop()
    cluster.manager(workers=0)
    ill = cluster.run("monitor", "--check")
    assert (ill.returncode, ill.stdout) == (7, "unhealthy: no workers\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--interval", "0.01"], "must be at least 50 ms"),
        (["--check", "--once"], "--check goes with neither --once nor --export"),
        (["-o", "x"], "-o goes with --export"),
        (["task", "purge"], "say what to purge"),
        (["task", "list", "--state", "lost"], "'lost' is not one of"),
        (["task", "show", "seven"], "'seven' is not a valid integer"),
    ],
)
def test_bad_usage(cluster: Cluster, arguments: list[str], message: str) -> None:
    done = cluster.run("monitor", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


# -- single tasks ----------------------------------------------------------------------------------------------------


def show(cluster: Cluster, task_id: int) -> dict[str, Any]:
    done = cluster.run("monitor", "task", "show", task_id, "--json")
    assert done.returncode == 0, done.stderr
    shown: dict[str, Any] = json.loads(done.stdout)
    assert list(shown) == FIELDS
    return shown


def test_show_completed_failed_and_waiting_tasks(cluster: Cluster) -> None:
    cluster.manager(workers=1)
    payload = {"type": "compute", "operation": "factorial", "value": 10}
    (done,) = cluster.submit(payload, "--priority", 3)
    (failed,) = cluster.submit({"type": "fail", "error_message": "test"}, "--max-retries", 0)
    (later,) = cluster.submit({"type": "sleep", "duration": 0}, "--delay", "1h")
    finished(cluster, done, failed)
    shown = show(cluster, done)
    assert shown["payload"] == payload
    assert (shown["state"], shown["result"], shown["error"]) == ("completed", 3_628_800, None)
    assert (shown["priority"], shown["failures"], shown["deaths"], shown["queue"]) == (3, 0, 0, "default")
    assert shown["submitted_at"] <= shown["started_at"] <= shown["finished_at"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", shown["submitted_at"])
    assert shown["correlation_id"]
    shown = show(cluster, failed)
    assert (shown["state"], shown["result"], shown["failures"]) == ("failed", None, 1)
    assert shown["error"]["kind"] == "error"
    assert shown["error"]["message"] == "test"
    assert "Traceback" in shown["error"]["traceback"]
    shown = show(cluster, later)
    assert (shown["state"], shown["started_at"], shown["finished_at"]) == ("scheduled", None, None)
    assert shown["due_at"] > shown["submitted_at"]
    people = cluster.run("monitor", "task", "show", failed).stdout
    assert re.search(r"^error +error: \w+: test$", people, re.MULTILINE)
    assert people.rstrip().endswith(": test")


def test_big_results_are_printed_in_full(cluster: Cluster) -> None:
    cluster.manager(workers=1)
    (big,) = cluster.submit({"type": "compute", "operation": "factorial", "value": 5_000})
    finished(cluster, big)
    done = cluster.run("monitor", "task", "result", big)
    assert (done.returncode, done.stderr) == (0, "")
    record = cluster.run("monitor", "task", "show", big, "--json").stdout
    limit = sys.get_int_max_str_digits() if hasattr(sys, "get_int_max_str_digits") else None
    try:
        if limit is not None:
            sys.set_int_max_str_digits(0)
        assert int(done.stdout) == json.loads(record)["result"] == math.factorial(5_000)
    finally:
        if limit is not None:
            sys.set_int_max_str_digits(limit)


def test_results_and_their_exit_codes(cluster: Cluster) -> None:
    cluster.manager(workers=1)
    (done,) = cluster.submit({"type": "http_request", "url": "https://api.example.com/data", "method": "GET"})
    (failed,) = cluster.submit({"type": "fail", "error_message": "test"}, "--max-retries", 0)
    (later,) = cluster.submit({"type": "sleep", "duration": 0}, "--delay", "1h")
    finished(cluster, done, failed)
    result = cluster.run("monitor", "task", "result", done)
    assert result.returncode == 0
    assert json.loads(result.stdout)["status"] == 200
    result = cluster.run("monitor", "task", "result", failed)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.search(rf"^error: task {failed} failed after 1 attempts? on \S+: \w+: test$", result.stderr, re.MULTILINE)
    result = cluster.run("monitor", "task", "result", later)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"task {later} is scheduled" in result.stderr


def test_list_filters_and_is_newest_first(cluster: Cluster) -> None:
    cluster.manager(workers=1)
    (done,) = cluster.submit({"type": "compute", "operation": "double", "value": 1})
    ids = [
        *cluster.submit({"type": "sleep", "duration": 0}, "--delay", "1h"),
        *cluster.submit({"type": "sleep", "duration": 0}, "--delay", "1h", "--queue", "night"),
    ]
    finished(cluster, done)

    def listed(*options: object) -> list[int]:
        found = json.loads(cluster.run("monitor", "task", "list", *options, "--json").stdout)
        assert all([*record, "history"] == FIELDS for record in found)
        return [record["id"] for record in found]

    assert listed() == sorted([done, *ids], reverse=True)
    assert listed("--limit", 1) == [ids[1]]
    assert listed("--state", "completed") == [done]
    assert listed("--state", "scheduled") == [ids[1], ids[0]]
    assert listed("--type", "compute") == [done]
    assert listed("--queue", "night") == [ids[1]]
    assert listed("--queue", "nowhere") == []
    table = cluster.run("monitor", "task", "list").stdout.splitlines()
    assert table[0].split() == ["TASK", "STATE", "TYPE", "QUEUE", "SUBMITTED", "TOOK", "WORKER", "OUTCOME"]
    assert [int(line.split()[0]) for line in table[1:]] == [ids[1], ids[0], done]


def test_cancel_and_purge(cluster: Cluster) -> None:
    cluster.manager(workers=1)
    (later,) = cluster.submit({"type": "sleep", "duration": 0}, "--delay", "1h")
    (done,) = cluster.submit({"type": "compute", "operation": "double", "value": 1})
    (failed,) = cluster.submit({"type": "fail", "error_message": "test"}, "--max-retries", 0)
    finished(cluster, done, failed)
    cancelled = cluster.run("monitor", "task", "cancel", later)
    assert (cancelled.returncode, cancelled.stdout) == (0, f"task {later} cancelled\n")
    too_late = cluster.run("monitor", "task", "cancel", later, done, "--json")
    assert too_late.returncode == 1
    assert json.loads(too_late.stdout)[1] == {"id": done, "state": "completed"}
    kept = cluster.run("monitor", "task", "purge", "--completed", "--older", "1h")
    assert (kept.returncode, kept.stdout) == (0, "0 tasks purged\n")
    assert cluster.run("monitor", "task", "purge", "--completed").stdout == "1 task purged\n"
    assert cluster.run("monitor", "task", "show", done).returncode == 6
    assert show(cluster, failed)["state"] == "failed"
    assert cluster.run("monitor", "task", "purge", "--failed", "--json").stdout == '{"purged": 1}\n'
    assert cluster.run("monitor", "task", "show", failed).returncode == 6
    assert show(cluster, later)["state"] == "cancelled"


@pytest.mark.parametrize("verb", ["show", "result", "cancel"])
def test_unknown_ids_end_with_6(cluster: Cluster, verb: str) -> None:
    cluster.manager(workers=0)
    done = cluster.run("monitor", "task", verb, 999)
    assert done.returncode == 6
    assert "task 999" in done.stdout + done.stderr


def test_options_before_the_verb_hold_for_it(cluster: Cluster, tmp_path: Path) -> None:
    cluster.manager(workers=0)
    elsewhere = {"TASKQ_STATE_DIR": str(tmp_path / "elsewhere")}
    assert cluster.run("monitor", "task", "list", **elsewhere).returncode != 0
    before = cluster.run("monitor", "--state-dir", cluster.state, "--json", "task", "list", **elsewhere)
    after = cluster.run("monitor", "task", "list", "--json", "--state-dir", cluster.state, **elsewhere)
    assert (before.returncode, before.stdout) == (after.returncode, after.stdout) == (0, "[]\n")


# -- on a terminal ---------------------------------------------------------------------------------------------------


class Terminal:
    """A monitor on a pseudo-terminal of 80 x 24, as its session's foreground process."""

    def __init__(self, cluster: Cluster, *arguments: str) -> None:
        self.master, self.slave = os.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        environment = cluster.environment(TERM="xterm-256color")
        environment.pop("COLUMNS", None)
        command = [sys.executable, "-m", "taskq", "monitor", *arguments]
        take_terminal = (
            "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", take_terminal, *command],
            cwd=cluster.folder,
            env=environment,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
        )
        self.written = b""

    def read(self) -> None:
        """Take what has been written meanwhile."""
        while select.select([self.master], [], [], 0.02)[0]:
            self.written += os.read(self.master, 65536)

    @property
    def screen(self) -> str:
        """The last whole picture, without control codes."""
        self.read()
        frames = self.written.split(b"\x1b[H")
        whole = [frame for frame in frames if b" q quits" in frame]
        return CODES.sub("", whole[-1].decode()).replace("\r", "") if whole else ""

    def until(self, text: str, timeout: float = 15.0) -> str:
        """Wait until the picture shows this text, and give the picture."""
        wait_until(lambda: text in self.screen, timeout, f'"{text}" on the screen')
        return self.screen

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self.master, keys)

    def wait(self) -> int:
        """The exit code; asserts that the terminal is as it was before."""
        code = wait_until(
            lambda: (self.read(), self.process.poll())[1] is not None and (self.process.returncode,), 10.0
        )
        self.read()
        assert termios.tcgetattr(self.slave) == self.before
        assert self.written.rindex(b"\x1b[?1049l") > self.written.rindex(b"\x1b[?1049h"), "left on the other screen"
        assert self.written.rindex(b"\x1b[?25h") > self.written.rindex(b"\x1b[?25l"), "cursor left hidden"
        return int(code[0])

    def close(self) -> None:
        """End it however it is."""
        self.process.kill()
        self.process.wait(10)
        os.close(self.master)
        os.close(self.slave)


@contextlib.contextmanager
def terminal(cluster: Cluster, *arguments: str) -> Iterator[Terminal]:
    opened = Terminal(cluster, *arguments)
    try:
        yield opened
    finally:
        opened.close()


def test_the_picture_is_redrawn_in_place_and_q_quits(cluster: Cluster) -> None:
    cluster.manager(workers=1, threads=2)
    with terminal(cluster, "--interval", "0.1") as screen:
        first = screen.until("nothing has finished yet")
        assert [len(line) for line in first.splitlines()] == [80] * 24
        attributes = termios.tcgetattr(screen.slave)
        assert not attributes[3] & (termios.ECHO | termios.ICANON)
        (task_id,) = cluster.submit({"type": "compute", "operation": "double", "value": 4})
        assert re.search(rf" {task_id} +compute +default .* completed *$", screen.until("completed"), re.MULTILINE)
        screen.press(b"x")
        screen.press(b"q")
        assert screen.wait() == 0


@pytest.mark.parametrize(
    ("keys", "number", "code"), [(b"\x03", None, 130), (b"", signal.SIGTERM, 143), (b"", signal.SIGHUP, 129)]
)
def test_it_can_be_interrupted_cleanly(cluster: Cluster, keys: bytes, number: int | None, code: int) -> None:
    cluster.manager(workers=0)
    with terminal(cluster) as screen:
        screen.until("nothing has finished yet")
        started = time.monotonic()
        if number is None:
            screen.press(keys)
        else:
            screen.process.send_signal(number)
        assert screen.wait() == code
        assert time.monotonic() - started < 2.0
        assert b"Traceback" not in screen.written


def test_it_waits_for_a_manager_that_is_away_and_goes_on(cluster: Cluster) -> None:
    manager = cluster.manager(workers=0)
    with terminal(cluster, "--interval", "0.1") as screen:
        screen.until("nothing has finished yet")
        manager.stop()
        away = screen.until("manager away since")
        assert re.match(r"\n?! manager away since \d\d:\d\d:\d\d, retrying \(", away)
        assert "QUEUE" in away, "the last picture stays"
        again = cluster.manager(workers=0)
        wait_until(lambda: "manager away" not in screen.screen, 15.0, "the picture to come back")
        os.kill(again.pid, signal.SIGSTOP)
        try:
            screen.until("no answer for")
            screen.press(b"q")
            started = time.monotonic()
            assert screen.wait() == 0
            assert time.monotonic() - started < 2.0
        finally:
            os.kill(again.pid, signal.SIGCONT)


def test_a_resized_terminal_gets_a_picture_of_its_new_size_at_once(cluster: Cluster) -> None:
    cluster.manager(workers=0)
    with terminal(cluster, "--interval", "60s") as screen:
        screen.until("nothing has finished yet")
        fcntl.ioctl(screen.master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
        wait_until(lambda: [len(line) for line in screen.screen.splitlines()] == [120] * 30, 10.0, "the new size")
        screen.press(b"q")
        assert screen.wait() == 0


def test_without_a_manager_nothing_is_drawn(cluster: Cluster) -> None:
    cluster.manager(workers=0).stop()
    with terminal(cluster) as screen:
        wait_until(lambda: screen.process.poll() is not None, 10.0, "the end")
        screen.read()
        assert screen.process.returncode == 3
        assert b"\x1b[?1049h" not in screen.written
        assert b"error:" in screen.written
        assert termios.tcgetattr(screen.slave) == screen.before
