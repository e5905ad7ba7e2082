"""Delays, dates and expiry through real processes, with a restart of the manager in between."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from cluster import Cluster, wait_until

from taskq import TaskFailed, named

MANY = 100_000
"""Tasks that are due in the same second."""

STAMPS = """
import time
from taskq import task

@task(name="stamp", max_retries=0)
def stamp() -> float:
    return time.time()

@task(name="broken")
def broken() -> None:
    raise ValueError("not today")
"""


def soon(seconds: float) -> datetime:
    return datetime.now(timezone.utc) + timedelta(seconds=seconds)


def shown(cluster: Cluster, id: int) -> dict[str, Any]:
    """What ``task show`` says."""
    done = cluster.run("monitor", "task", "show", id, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def write_module(cluster: Cluster) -> None:
    (cluster.folder / "stamps.py").write_text(STAMPS)


@pytest.mark.speed
def test_100_000_tasks_of_one_second_are_handed_out_in_time_and_none_before_it(cluster: Cluster) -> None:
    write_module(cluster)
    manager = cluster.manager("--tasks", "stamps", workers=0)
    client = cluster.client()
    at = soon(20)
    target = named("stamp", at=at)
    with client.pipeline() as pipeline:
        handles = [pipeline.submit(target) for _ in range(MANY)]
    assert cluster.snapshot()["queues"][0]["scheduled"] == MANY
    manager.kill()
    cluster.manager("--tasks", "stamps")
    assert cluster.snapshot()["queues"][0]["scheduled"] == MANY, "the start took too long: nothing is shown by this"
    ran = [handle.result(timeout=60) for handle in handles]
    print(f"from {min(ran) - at.timestamp():.3f} s to {max(ran) - at.timestamp():.3f} s after their time")
    assert min(ran) >= at.timestamp()
    assert max(ran) <= at.timestamp() + 10


def test_dates_from_everywhere_hold_over_a_restart(cluster: Cluster) -> None:
    write_module(cluster)
    manager = cluster.manager("--tasks", "stamps", workers=0)
    at = soon(9)  # time enough for five programs to start before
    with cluster.client() as client:
        ids = [client.submit(named("stamp", at=at)).id, client.submit(named("stamp", delay=9)).id]
    ids += cluster.submit({"type": "stamp"}, "--at", at.isoformat())
    entries = [{"payload": {"type": "stamp"}, "at": at.isoformat()}, {"payload": {"type": "stamp"}, "at": "+9s"}]
    done = cluster.run("submit", "--payload-file", "-", stdin=json.dumps(entries))
    assert done.returncode == 0, done.stderr
    ids += map(int, done.stdout.split())
    before = [shown(cluster, id) for id in ids]
    assert [one["state"] for one in before] == ["scheduled"] * 5
    due = [datetime.fromisoformat(one["due_at"].replace("Z", "+00:00")) for one in before]
    assert all(abs(due[place] - at) < timedelta(milliseconds=1) for place in (0, 2, 3))
    manager.kill()
    cluster.manager("--tasks", "stamps")
    client = cluster.client()
    ran = [client.result(id, timeout=30) for id in ids]
    for moment, one in zip(ran, due, strict=True):
        assert 0 <= moment - one.timestamp() + 0.001 < 3
    assert [shown(cluster, id)["due_at"] for id in ids] == [one["due_at"] for one in before]


def test_what_did_not_begin_in_time_fails_wherever_it_waits_and_over_a_restart(cluster: Cluster) -> None:
    write_module(cluster)
    manager = cluster.manager("--tasks", "stamps", workers=0)
    by = soon(4)
    client = cluster.client()
    pending = client.submit(named("stamp", expires=4))
    scheduled = client.submit(named("stamp", delay=3600, expires=by))
    (typed,) = cluster.submit({"type": "stamp"}, "--expires", "4s")
    done = cluster.run(
        "submit", "--payload-file", "-", stdin='[{"payload": {"type": "stamp"}, "expires": "' + by.isoformat() + '"}]'
    )
    from_file = int(done.stdout)
    in_time = client.submit(named("stamp", expires=3600))
    assert datetime.fromisoformat(shown(cluster, scheduled.id)["expires_at"].replace("Z", "+00:00")) == by.replace(
        microsecond=by.microsecond // 1000 * 1000
    )
    manager.kill()
    cluster.manager("--tasks", "stamps", workers=0)
    for id in (pending.id, scheduled.id, typed, from_file):
        with pytest.raises(TaskFailed, match="did not begin") as caught:
            client.result(id, timeout=20)
        assert caught.value.details["kind"] == "expired"
        assert shown(cluster, id)["error"]["kind"] == "expired"
        assert shown(cluster, id)["started_at"] is None
    assert in_time.state() == "pending"
    cluster.pool("--tasks", "stamps", workers=1)
    assert in_time.result(timeout=20) > 0
    assert cluster.run("submit", "stamp", "--expires", "1ms", "--wait", "--delay", "1s").returncode == 2


def test_between_two_attempts_it_expires_and_while_it_runs_it_does_not(cluster: Cluster) -> None:
    write_module(cluster)
    cluster.manager("--tasks", "stamps", workers=1)
    client = cluster.client()
    broken = client.submit(named("broken", expires=3, max_retries=5, backoff=3600))
    running = client.submit(named("sleep", expires=1), duration=4)
    wait_until(lambda: running.state() == "running", 10.0, "it to run")
    with pytest.raises(TaskFailed, match=r"did not begin again within 3\.0s, after 1 attempt; the last: ValueError"):
        broken.result(timeout=20)
    running.result(timeout=20)
