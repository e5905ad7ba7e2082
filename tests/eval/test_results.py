"""What becomes of results, through real processes: waiting, callbacks, their own time, and those nobody wants."""

from __future__ import annotations

import json
from queue import SimpleQueue
from typing import Any

import pytest
from cluster import Cluster, wait_until

from taskq import NotEncodable, ResultExpired, TaskFailed, TaskHandle, named

TASKS = """
from taskq import task

@task(name="quiet", ignore_result=True)
def quiet():
    return object()

@task(name="fleeting", result_ttl=2.0)
def fleeting(size):
    return "x" * size

@task(name="odd", max_retries=5)
def odd(number):
    return {"a": [number, object()]}
"""


def shown(cluster: Cluster, id: int) -> dict[str, Any]:
    """What ``task show`` says."""
    done = cluster.run("monitor", "task", "show", id, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def cluster(cluster: Cluster) -> Cluster:
    """With the tasks of this file in its folder."""
    (cluster.folder / "fleeting.py").write_text(TASKS)
    return cluster


def test_waiting_and_callbacks_go_on_over_a_restart_of_the_manager(cluster: Cluster) -> None:
    manager = cluster.manager("--tasks", "fleeting", workers=0)
    client = cluster.client()
    others = cluster.client()
    handles = [client.submit("compute", operation="double", value=number) for number in range(20)]
    foreign = [others.handle(handle.id) for handle in handles]
    slow = client.submit(named("sleep", delay=3600), duration=1)
    called: SimpleQueue[TaskHandle[Any]] = SimpleQueue()
    for handle in (*handles, *foreign, slow):
        handle.add_done_callback(called.put)
    manager.kill()
    cluster.manager("--tasks", "fleeting")
    waited = client.wait([*handles, slow], timeout=30, return_when="FIRST_COMPLETED")
    assert waited.done and slow in waited.not_done
    waited = client.wait([*handles, *foreign], timeout=30)
    assert (len(waited.done), waited.not_done) == (40, set())
    assert {called.get(timeout=10) for _ in range(40)} == {*handles, *foreign}
    assert called.empty(), "each once"
    assert [handle.result() for handle in handles] == [2 * number for number in range(20)]


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_result_is_gone_when_its_time_is_over_also_after_a_restart(cluster: Cluster, size: int) -> None:
    manager = cluster.manager("--tasks", "fleeting")
    client = cluster.client()
    handle = client.submit("fleeting", size=size)
    kept = client.submit(named("fleeting", result_ttl=3600.0), size=size)
    assert handle.result(timeout=30) == kept.result(timeout=30) == "x" * size
    assert shown(cluster, handle.id)["result_ttl"] == 2.0
    manager.kill()
    cluster.manager("--tasks", "fleeting")
    service = cluster.service()
    wait_until(lambda: service.result(handle.id).result is None, what="the end of the result")
    record = shown(cluster, handle.id)
    assert (record["state"], record["result"], record["failures"]) == ("completed", None, 0)
    other = cluster.client()
    with pytest.raises(ResultExpired):
        other.result(handle.id, timeout=5)
    assert cluster.run("monitor", "task", "result", handle.id).returncode != 0
    assert other.result(kept.id, timeout=5) == "x" * size
    wait_until(lambda: len(cluster.worker_processes()) == 2, what="the end of the first manager's workers")


def test_results_that_nobody_wants_are_dropped(cluster: Cluster) -> None:
    cluster.manager("--tasks", "fleeting")
    client = cluster.client()
    assert client.submit("quiet").result(timeout=30) is None
    with pytest.raises(TaskFailed, match="NotEncodable"):
        client.submit(named("quiet", ignore_result=False)).result(timeout=30)
    payload = {"type": "compute", "operation": "double", "value": 4}
    assert cluster.result_of(payload, "--ignore-result") is None
    entries = [{"payload": payload, "ignore_result": True}, {"payload": payload, "result_ttl": "1h"}]
    done = cluster.run("submit", "--payload-file", "-", stdin=json.dumps(entries))
    dropped, kept = (int(line) for line in done.stdout.split())
    assert (client.result(dropped, timeout=30), client.result(kept, timeout=30)) == (None, 8)
    assert (shown(cluster, dropped)["ignore_result"], shown(cluster, kept)["result_ttl"]) == (True, 3600.0)


def test_a_result_that_cannot_be_sent_fails_its_task_for_good(cluster: Cluster) -> None:
    cluster.manager("--tasks", "fleeting")
    client = cluster.client()
    with pytest.raises(TaskFailed, match=r'NotEncodable: .*result\["a"\]\[1\]') as caught:
        client.submit("odd", number=1).result(timeout=30)
    assert caught.value.details["failures"] == 1, "it would not be any better the next time"
    with pytest.raises(
        TaskFailed, match=r"PayloadTooLarge: the result is 1,\d+,\d+ bytes, over the limit of 1,048,576"
    ):
        client.submit("fleeting", size=2**20).result(timeout=30)
    with pytest.raises(NotEncodable):
        client.submit("odd", number=object())
