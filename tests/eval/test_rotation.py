"""The key is changed while everything runs: nobody who works is disturbed, and a key that was given away is worth
nothing after the second change."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

import pytest
from cluster import Cluster, wait_until
from waiting_task import WAITING_TASK

from taskq import config
from taskq.config import Join, read_join
from taskq.errors import AuthenticationFailed
from taskq.roles import key_of
from taskq.wire.client import RemoteQueue

TASKS = (
    WAITING_TASK
    + """\
from taskq import Client

@task(name="submits_another")
def submits_another() -> int:
    with Client() as q:
        return q.submit("compute", operation="double", value=4).result(timeout=20)
"""
)


def rotate(cluster: Cluster) -> Join:
    """Change the key; gives the join file after it."""
    done = cluster.run("manager", "--rotate-key")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and "stays good until the next --rotate-key" in done.stderr
    return cluster.join


def reaches(join: Join) -> bool:
    """Whether this key is accepted."""
    queue = RemoteQueue(join)
    try:
        queue.hello()
    except AuthenticationFailed:
        return False
    finally:
        queue.close()
    return True


def key_files(state: Path) -> dict[str, int]:
    """The files with keys and their modes."""
    return {path.name: path.stat().st_mode & 0o777 for path in state.iterdir() if path.name.startswith(("key", "join"))}


def test_running_pools_and_clients_go_on_through_two_changes(cluster: Cluster) -> None:
    (cluster.folder / "tried.py").write_text(TASKS)
    cluster.manager("--tasks", "tried", workers=1, threads=1)
    cluster.pool("--tasks", "tried", "--join", cluster.state / "join.json", workers=1, threads=1)
    client = cluster.client()
    gate = cluster.folder / "gate"
    running = [client.submit("wait_for_file", str(gate)) for _ in range(2)]
    wait_until(lambda: [task.state() for task in running] == ["running"] * 2, what="both pools to be at work")
    first = cluster.join
    given_away = Join(first.addresses, key_of("submit", first.key), role="submit")

    second = rotate(cluster)
    assert second.key != first.key and second.addresses == first.addresses
    assert reaches(first) and reaches(second) and reaches(given_away)
    third = rotate(cluster)
    assert [reaches(join) for join in (first, given_away, second, third)] == [False, False, True, True]
    assert key_files(cluster.state) == {"key": 0o600, "key.old": 0o600, "join.json": 0o600}

    gate.touch()
    assert [task.result(timeout=20) for task in running] == [1, 1]  # in their first attempt
    for _ in range(4):  # one at a time: it keeps a thread busy that waits for another one
        assert client.submit("submits_another").result(timeout=20) == 8
    printed = "".join(process.output for process in cluster.processes)
    printed += "".join(path.read_text() for path in (cluster.state / "log").iterdir())
    for join in (first, second, third):
        for role in ("admin", "submit", "work", "monitor"):
            assert key_of(role, join.key).hex() not in printed


def test_a_pool_that_cannot_read_its_key_again_says_what_to_do(cluster: Cluster) -> None:
    """One was given its key through a pipe, one has a file that nobody renews: they work until the second change."""
    cluster.manager(workers=0)
    old = cluster.folder / "old.json"
    config.write_private(old, cluster.run("manager", "--print-join", "--role", "work").stdout)
    piped = cluster.pool("--join", "-", "--worker-name", "piped", workers=1, stdin=old.read_text())
    filed = cluster.pool("--join", old, "--worker-name", "filed", workers=1)
    rotate(cluster)
    assert cluster.result_of({"type": "compute", "operation": "double", "value": 21}) == 42
    assert "key_rejected" not in piped.output + filed.output
    rotate(cluster)
    cluster.until_output(
        piped, "start this program again with what this prints: taskq-manager --print-join --role work"
    )
    cluster.until_output(filed, f"rejected the work key from {old}")

    config.write_private(old, cluster.run("manager", "--print-join", "--role", "work").stdout)
    assert cluster.result_of({"type": "compute", "operation": "double", "value": 4}) == 8
    assert [one.output.count("key_rejected") for one in (piped, filed)] == [1, 1]
    piped.stop()
    cluster.pool("--join", "-", workers=1, stdin=old.read_text())


def test_a_key_is_changed_while_no_manager_runs(cluster: Cluster) -> None:
    manager = cluster.manager(workers=0)
    first = cluster.join
    manager.stop()
    second = rotate(cluster)
    cluster.manager(workers=0)
    assert cluster.join.key == second.key
    assert reaches(second) and reaches(Join(second.addresses, first.key))


def test_a_manager_says_that_it_cannot_read_the_new_key(cluster: Cluster) -> None:
    """The file is replaced by hand with one that others can read: the manager keeps its key, until that is mended."""
    manager = cluster.manager(workers=0)
    first = cluster.join
    key = cluster.state / "key"
    key.with_name("new").write_text(secrets.token_hex(32))
    key.with_name("new").chmod(0o644)
    key.with_name("new").replace(key)
    cluster.until_output(manager, "keeps its own")
    assert f"run: chmod 600 {key}" in manager.output and reaches(first)
    key.chmod(0o600)
    wait_until(lambda: cluster.join.key != first.key, what="the manager to take the new key")
    assert reaches(cluster.join) and not reaches(first)  # nobody said which key was before that one


def test_there_is_nothing_to_change_before_the_first_start(cluster: Cluster) -> None:
    done = cluster.run("manager", "--rotate-key")
    assert done.returncode == 2 and f"there is no key at {cluster.state / 'key'} to change" in done.stderr
    done = cluster.run("manager", "--role", "submit")
    assert done.returncode == 2 and "--role goes with --print-join" in done.stderr


def test_a_join_file_for_each_role(cluster: Cluster) -> None:
    """What each command does with the key of each role, as a user meets it."""
    cluster.manager("--bind", "0.0.0.0", workers=1)
    files = {}
    for role in ("submit", "work", "monitor", "admin"):
        done = cluster.run("manager", "--print-join", "--role", role)
        files[role] = cluster.folder / f"{role}.json"
        files[role].touch(0o600)
        files[role].write_text(done.stdout)
        assert read_join(files[role]).role == role
    payload = ("--payload", '{"type": "compute", "operation": "double", "value": 21}', "--wait")
    codes = {
        role: (
            cluster.run("submit", "--join", file, *payload).returncode,
            cluster.run("monitor", "--once", "--join", file).returncode,
            cluster.run("monitor", "task", "purge", "--completed", "--join", file).returncode,
        )
        for role, file in files.items()
    }
    assert codes == {"submit": (0, 4, 4), "work": (0, 4, 4), "monitor": (4, 0, 4), "admin": (0, 0, 0)}
    refused = cluster.run("monitor", "queue", "pause", "default", "--join", files["monitor"])
    assert refused.stderr.startswith(
        "error: the key of the role monitor does not allow pause_queue\nhint: it takes that"
    )
    denied = cluster.run("worker", "--workers", 1, "--join", files["submit"])
    assert denied.returncode == 4 and "--print-join --role work" in denied.stderr
    cluster.pool("--join", files["work"], workers=1)
    assert re.search(r'"role": "work"', files["work"].read_text())
    with pytest.raises(AuthenticationFailed, match="rejected the submit key"):
        queue = RemoteQueue(Join(cluster.join.addresses[:1], key_of("work", cluster.join.key), role="submit"))
        queue.hello()
