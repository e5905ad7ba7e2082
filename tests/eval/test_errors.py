"""What errors say: every case of the table of messages, as real commands, with its exact text and exit code."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from cluster import Cluster, wait_until

from taskq.config import ADMIN, VERSION, Address, Join, write_private
from taskq.roles import RoleKey
from taskq.service import PROTOCOL
from taskq.wire.handshake import ServerHandshake, fingerprint

Done = CompletedProcess[str]
PAYLOAD = '{"type": "compute", "operation": "factorial", "value": 10}'
KEY = secrets.token_bytes(32)
CLIENTS = (("submit", "--payload", PAYLOAD), ("monitor", "--once"), ("worker",))


def says(done: Done, code: int, error: str, hint: str | None = None) -> None:
    """Check exit code, the error line, the hint line, and that there is no traceback."""
    lines = done.stderr.splitlines()
    assert f"error: {error}" in lines, done.stderr
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    if hint is not None:
        assert lines[lines.index(f"error: {error}") + 1] == f"hint: {hint}", done.stderr


@contextmanager
def listener(answer: Callable[[socket.socket], None]) -> Iterator[Address]:
    """Something on a port that treats each connection in its own way, until the end of the block."""
    connections: list[socket.socket] = []

    def accept(server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connections.append(connection)
            try:
                answer(connection)
            except OSError:
                continue

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept, args=(server,))
        thread.start()
        try:
            yield Address(*server.getsockname())
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in connections:
                connection.close()


def silence(connection: socket.socket) -> None:
    """Say nothing."""


def know(cluster: Cluster, address: Address) -> None:
    """Give the state folder a join file that leads there."""
    cluster.state.mkdir(mode=0o700, exist_ok=True)
    write_private(cluster.state / "join.json", Join((address,), KEY).to_json())


def free_address() -> Address:
    """Where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return Address(*server.getsockname())


# -- the way to the manager


@pytest.mark.parametrize("command", CLIENTS, ids=lambda command: command[0])
def test_nothing_listens(cluster: Cluster, command: tuple[str, ...]) -> None:
    address = free_address()
    know(cluster, address)
    says(
        cluster.run(*command, "--connect-timeout", "0.5s"),
        3,
        f"no manager at {address} (connection refused)",
        'start one with "taskq-manager", or point elsewhere with --host and --port (TASKQ_HOST, TASKQ_PORT)',
    )


def test_with_json_the_error_is_one_object(cluster: Cluster) -> None:
    address = free_address()
    know(cluster, address)
    done = cluster.run("submit", "--payload", PAYLOAD, "--json", "--connect-timeout", "0.5s")
    error = json.loads(done.stderr)["error"]
    assert (done.returncode, done.stdout) == (3, "")
    assert error["code"] == "manager_unavailable"
    assert error["message"] == f"no manager at {address} (connection refused)"
    assert error["hint"].startswith('start one with "taskq-manager"')


def test_a_traceback_only_when_it_is_asked_for(cluster: Cluster) -> None:
    know(cluster, free_address())
    done = cluster.run("submit", "--payload", PAYLOAD, "--connect-timeout", "0.1s", TASKQ_DEBUG="1")
    assert done.returncode == 3
    assert "Traceback" in done.stderr and "error: no manager at" in done.stderr


@pytest.mark.parametrize("command", CLIENTS, ids=lambda command: command[0])
def test_a_host_is_silent(cluster: Cluster, command: tuple[str, ...]) -> None:
    with listener(silence) as address:
        know(cluster, address)
        says(
            cluster.run(*command, "--connect-timeout", "1s"),
            3,
            f"{address} did not answer within 1 s",
            "is the port open, or used by another service?",
        )


@pytest.mark.parametrize("banner", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 64])
def test_it_is_not_a_manager(cluster: Cluster, banner: bytes) -> None:
    with listener(lambda connection: connection.sendall(banner)) as address:
        know(cluster, address)
        says(
            cluster.run("submit", "--payload", PAYLOAD, "--connect-timeout", "2s"),
            3,
            f"something listens at {address} but it is not a taskq manager",
        )


def test_the_manager_speaks_another_protocol(cluster: Cluster) -> None:
    def greet(connection: socket.socket) -> None:
        hands = ServerHandshake([RoleKey(ADMIN, KEY)], PROTOCOL + 1, "9.4.0", secrets.token_bytes(32))
        send(connection, hands.greeting)
        send(connection, hands.finish(receive(connection)))

    with listener(greet) as address:
        know(cluster, address)
        says(
            cluster.run("submit", "--payload", PAYLOAD),
            3,
            f"manager speaks protocol {PROTOCOL + 1} (taskq 9.4.0), this side {PROTOCOL} ({VERSION})",
            "upgrade this side",
        )


def send(connection: socket.socket, message: bytes) -> None:
    """Send one frame."""
    connection.sendall(struct.pack("!I", len(message)) + message)


def receive(connection: socket.socket) -> bytes:
    """Receive one frame."""
    with connection.makefile("rb") as file:
        (size,) = struct.unpack("!I", file.read(4))
        return file.read(size)


# -- the key


@pytest.mark.parametrize("command", CLIENTS, ids=lambda command: command[0])
def test_the_key_is_wrong(cluster: Cluster, command: tuple[str, ...]) -> None:
    cluster.manager(workers=0)
    address = cluster.join.addresses[0]
    wrong = cluster.folder / "wrong.json"
    write_private(wrong, Join((address,), KEY).to_json())
    says(
        cluster.run(*command, "--join", wrong),
        4,
        f"the manager at {address} rejected the key from {wrong} (fingerprint {fingerprint(KEY)})",
        "is it a manager with another state folder? then point there with --state-dir, --name or --join",
    )


@pytest.mark.parametrize("command", CLIENTS, ids=lambda command: command[0])
def test_others_can_read_the_key(cluster: Cluster, command: tuple[str, ...]) -> None:
    key = cluster.folder / "key"
    write_private(key, KEY.hex())
    key.chmod(0o644)
    says(cluster.run(*command, "--key-file", key), 4, f"key file {key} has mode 0644; run: chmod 600 {key}")


def test_a_manager_does_not_start_with_a_key_that_others_can_read(cluster: Cluster) -> None:
    cluster.manager(workers=0).stop()
    key = cluster.state / "key"
    key.chmod(0o640)
    says(cluster.run("manager", "--port", 0), 4, f"key file {key} has mode 0640; run: chmod 600 {key}")


def test_there_is_no_key(cluster: Cluster) -> None:
    done = cluster.run("submit", "--payload", PAYLOAD)
    key = cluster.state / "key"
    says(
        done,
        4,
        f"cannot read the key file {key}: no such file or directory",
        'it is made by the first start of "taskq-manager"; or point elsewhere with --state-dir or --join',
    )


# -- what is submitted


def test_bad_json(cluster: Cluster) -> None:
    cluster.manager(workers=0)
    done = cluster.run("submit", "--payload", '{"type: "compute"}')
    assert done.returncode == 2
    first, line, caret, *more = done.stderr.splitlines()
    assert re.match(r"error: --payload is not valid JSON: line 1 column \d+: ", first), done.stderr
    assert line.strip() == '{"type: "compute"}'
    column = int(first.split("column ")[1].split(":")[0])
    assert caret.index("^") - line.index("{") == column - 1
    assert any(text.startswith("hint: ") and "quot" in text for text in more)


def test_a_bad_entry_in_a_file_and_nothing_is_submitted(cluster: Cluster) -> None:
    cluster.manager()
    entries = [json.loads(PAYLOAD)] * 16 + [{"type": "compute", "operation": "factorial"}] + [json.loads(PAYLOAD)]
    path = cluster.folder / "jobs.json"
    path.write_text(json.dumps(entries))
    done = cluster.run("submit", "--payload-file", "jobs.json")
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"error: jobs\.json: entry 17: .*value.*; nothing was submitted", done.stderr.splitlines()[0])
    assert cluster.snapshot()["totals"]["submitted"] == 0

    done = cluster.run("submit", "--payload-file", "jobs.json", "--keep-going")
    assert done.returncode == 0 and len(done.stdout.split()) == 17
    assert "1 bad skipped" in done.stderr


def test_arguments_that_do_not_fit(cluster: Cluster) -> None:
    cluster.manager()
    done = cluster.run("submit", "--payload", json.dumps({**json.loads(PAYLOAD), "z": 1}))
    says(done, 2, 'compute(operation, value) got an unexpected argument "z"')


@pytest.mark.parametrize("value", [20_001, -1, 1.5, "ten"])
def test_values_that_the_task_refuses(cluster: Cluster, value: object) -> None:
    cluster.manager()
    done = cluster.run("submit", "--payload", json.dumps({"type": "compute", "operation": "factorial", "value": value}))
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert cluster.snapshot()["totals"]["submitted"] == 0


def test_the_queue_is_full(cluster: Cluster) -> None:
    cluster.manager("--max-pending", 5, workers=0)
    cluster.run("submit", "--random", "--count", 5)
    done = cluster.run("submit", "--payload", PAYLOAD)
    assert done.returncode == 5 and done.stdout == ""
    first, second = done.stderr.splitlines()
    assert re.fullmatch(r'error: queue "default" is full \(5 pending, oldest \d[\d.ms]*\); not accepted', first)
    assert second.startswith("hint: ") and "--max-pending" in second and "later" in second


def test_a_file_fills_the_queue_half_way_and_again_adds_only_the_rest(cluster: Cluster) -> None:
    manager = cluster.manager("--max-pending", 2_500, workers=0)
    path = cluster.folder / "jobs.json"
    path.write_text(json.dumps([{"type": "sleep", "duration": 0, "timeout": number + 1} for number in range(4_000)]))
    done = cluster.run("submit", "--payload-file", "jobs.json")
    assert done.returncode == 5, done.stderr
    accepted = cluster.snapshot()["totals"]["submitted"]
    assert 0 < accepted <= 2_500
    assert f"{accepted:,}" in done.stderr
    manager.stop()
    cluster.manager("--max-pending", 10_000, workers=0)
    done = cluster.run("submit", "--payload-file", "jobs.json")
    assert done.returncode == 0, done.stderr
    assert cluster.snapshot()["totals"]["submitted"] == 4_000


# -- types


def test_an_unknown_type(cluster: Cluster) -> None:
    cluster.manager()
    done = cluster.run("submit", "--payload", '{"type": "comptue", "operation": "double", "value": 1}')
    says(done, 6, 'no worker offers "comptue"; did you mean "compute"?', "--allow-unknown queues it anyway")
    done = cluster.run("submit", "--allow-unknown", "--payload", '{"type": "comptue"}')
    assert done.returncode == 0 and done.stdout.strip() == "1"


def test_a_type_is_accepted_with_a_warning_while_no_worker_has_ever_joined(cluster: Cluster) -> None:
    cluster.manager(workers=0)
    done = cluster.run("submit", "--payload", '{"type": "anything", "x": 1}')
    assert (done.returncode, done.stdout.strip()) == (0, "1")
    assert done.stderr.startswith("warning: ")


def test_a_type_is_accepted_with_a_warning_when_it_was_offered_before(cluster: Cluster) -> None:
    (cluster.folder / "mine.py").write_text("from taskq import task\n\n@task\ndef add(x):\n    return x\n")
    cluster.manager("--tasks", "mine", workers=1).stop()
    cluster.manager(workers=1)
    done = cluster.run("submit", "mine.add", "x=1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: ") and "mine.add" in done.stderr


# -- what keeps a manager or a pool from starting


@pytest.mark.parametrize("command", ["worker", "manager", "list"])
def test_a_module_does_not_import(cluster: Cluster, command: str) -> None:
    if command == "worker":
        cluster.manager(workers=0)
    arguments = {"worker": ("worker",), "manager": ("manager", "--port", 0), "list": ("worker", "--list-tasks")}[
        command
    ]
    done = cluster.run(*map(str, arguments), "--tasks", "myapp.tasks")
    assert done.returncode == 2, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    start = f"error: cannot import \"myapp.tasks\": No module named 'myapp' (looked in {cluster.folder}"
    assert line.startswith(start), done.stderr


def test_a_module_with_a_mistake_is_shown_once(cluster: Cluster) -> None:
    cluster.manager(workers=0)
    (cluster.folder / "broken.py").write_text("import taskq\n\n1 / 0\n")
    done = cluster.run("worker", "--workers", 3, "--tasks", "broken")
    assert done.returncode == 2
    assert done.stderr.count('error: cannot import "broken": ZeroDivisionError: division by zero') == 1


def test_the_port_is_taken(cluster: Cluster) -> None:
    with listener(silence) as address:
        done = cluster.run("manager", "--port", address.port)
        says(done, 1, f"{address} is in use")


def test_a_second_manager_on_one_store(cluster: Cluster) -> None:
    first = cluster.manager(workers=0)
    says(cluster.run("manager", "--port", 0), 1, f"the store is locked by pid {first.pid}")


def test_the_state_folder_cannot_be_written(cluster: Cluster) -> None:
    (cluster.folder / "file").write_text("in the way")
    done = cluster.run("manager", "--port", 0, "--state-dir", cluster.folder / "file" / "state")
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first.startswith(f"error: cannot write to {cluster.folder / 'file' / 'state'}: ")
    assert second.startswith("hint: ") and "--state-dir" in second


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_the_state_folder_belongs_to_somebody_else(cluster: Cluster) -> None:
    folder = cluster.folder / "locked"
    folder.mkdir(mode=0o500)
    done = cluster.run("manager", "--port", 0, "--state-dir", folder)
    says(done, 1, f"cannot write to {folder}: permission denied")


def test_the_log_folder_cannot_be_written(cluster: Cluster) -> None:
    cluster.state.mkdir(mode=0o700)
    (cluster.state / "log").write_text("in the way")
    done = cluster.run("manager", "--port", 0)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot write to {cluster.state / 'log' / 'manager.log'}: ")


def test_the_store_is_damaged_and_its_file_stays_as_it_is(cluster: Cluster) -> None:
    cluster.state.mkdir(mode=0o700)
    store = cluster.state / "store.sqlite"
    store.write_bytes(b"this is no database, and never was one. " * 100)
    before = store.read_bytes()
    done = cluster.run("manager", "--port", 0)
    assert done.returncode == 65, done.stderr
    assert done.stderr.splitlines()[-2].startswith("error: ") or done.stderr.splitlines()[-1].startswith("error: ")
    assert store.read_bytes() == before


# -- outcomes


def test_a_task_fails_while_somebody_waits(cluster: Cluster) -> None:
    (cluster.folder / "mine.py").write_text(
        "from taskq import task\n\n@task(backoff=0.01)\ndef fetch(url):\n    raise OSError('no route to ' + url)\n"
    )
    cluster.manager("--tasks", "mine", workers=1)
    done = cluster.run("submit", "--wait", "--max-retries", 3, "mine.fetch", "url=there")
    assert done.returncode == 1 and done.stdout == ""
    lines = done.stderr.splitlines()
    last = next(number for number, line in enumerate(lines) if line.startswith("error: "))
    assert "Traceback (most recent call last):" in lines[:last]
    assert any("mine.py" in line for line in lines[:last])
    pattern = r"error: task 1 failed after 4 attempts on \S+: OSError: no route to there"
    assert re.fullmatch(pattern, lines[last]), done.stderr


def test_waiting_runs_out_of_time_and_the_task_goes_on(cluster: Cluster) -> None:
    cluster.manager(workers=1)
    done = cluster.run("submit", "--payload", '{"type": "sleep", "duration": 1.5}', "--wait", "0.3")
    assert done.returncode == 124 and done.stdout == ""
    assert done.stderr.startswith("error: task 1 has not finished within 0.3 s")
    wait_until(lambda: cluster.snapshot()["totals"]["completed"] == 1, 10.0, "the task that went on")


def test_a_task_that_is_not_there(cluster: Cluster) -> None:
    cluster.manager(workers=0)
    done = cluster.run("monitor", "task", "show", 4711)
    assert done.returncode == 6
    assert done.stderr.startswith("error: there is no task 4711")


# -- usage


@pytest.mark.parametrize(
    "arguments",
    [
        ("submit",),
        ("submit", "--nonsense"),
        ("submit", "--payload", PAYLOAD, "--random"),
        ("manager", "--workers", "-1"),
        ("manager", "--lease", "soon"),
        ("manager", "--store", "redis:"),
        ("manager", "--port", "70000"),
        ("worker", "--workers", "0"),
        ("monitor", "--interval", "x"),
        ("nonsense",),
    ],
    ids=" ".join,
)
def test_usage_errors_are_one_line_and_a_hint(cluster: Cluster, arguments: tuple[str, ...]) -> None:
    done = cluster.run(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("error: ") and second.startswith("hint: ") and ' -h"' in second


def test_ctrl_c_ends_a_waiting_submit(cluster: Cluster) -> None:
    cluster.manager(workers=1)
    waiting = cluster.start("submit", "--payload", '{"type": "sleep", "duration": 1}', "--wait")
    wait_until(lambda: cluster.snapshot()["totals"]["submitted"] == 1)
    waiting.send(2)
    assert waiting.popen.wait(5) == 130
    assert "interrupted" in waiting.output


def test_a_reader_that_leaves_is_no_error(cluster: Cluster, tmp_path: Path) -> None:
    """``taskq-monitor task list | head -1``."""
    cluster.manager(workers=0)
    cluster.run("submit", "--random", "--count", 2_000)
    command = f'"$0" -m taskq monitor task list --limit 1000 2>{tmp_path}/stderr | head -1; cat {tmp_path}/stderr'
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command, sys.executable],
        env=cluster.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert len(done.stdout.splitlines()) == 1, done.stdout
