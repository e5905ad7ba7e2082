"""Clients while managers and submitters are killed: nothing is lost, nothing is doubled, everybody hears the end."""

from __future__ import annotations

import json
import threading
import time

from cluster import Cluster, wait_until

from taskq import Client
from taskq.service import MAX_BATCH


def totals(cluster: Cluster) -> dict[str, int]:
    return {name: int(value) for name, value in cluster.snapshot()["totals"].items()}


def test_handles_outlive_a_killed_manager(cluster: Cluster) -> None:
    manager = cluster.manager(workers=0)
    cluster.pool(workers=2, threads=4)
    q: Client = cluster.client()
    handles = q.map("sleep", [0.02] * 400)
    wait_until(lambda: totals(cluster)["completed"] >= 20)
    manager.kill()
    cluster.manager(workers=0)
    results = [handle.result(timeout=60) for handle in handles]
    assert results == [0.02] * 400
    assert totals(cluster)["submitted"] == 400


def test_submits_through_two_kills_of_the_manager_are_neither_lost_nor_doubled(cluster: Cluster) -> None:
    manager = cluster.manager(workers=0)
    cluster.pool(workers=1)
    ids: list[int] = []
    enough = threading.Event()

    def submit() -> None:
        with Client(cluster.join, connect_timeout=30) as q:
            while not enough.is_set():
                ids.extend(handle.id for handle in q.map("compute", ["double"] * 7, range(7)))

    threads = [threading.Thread(target=submit) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            before = len(ids)
            wait_until(lambda before=before: len(ids) > before + 200)
            manager.kill()
            time.sleep(0.2)  # so that the clients are really without a manager for a while
            manager = cluster.manager(workers=0)
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    assert len(ids) == len(set(ids)) == totals(cluster)["submitted"]
    with Client(cluster.join) as q:
        assert len(list(q.as_completed(map(q.handle, ids), timeout=60))) == len(ids)
    assert totals(cluster)["completed"] == len(ids)


def test_a_file_whose_submitter_is_killed_half_way_is_completed_by_the_same_command(cluster: Cluster) -> None:
    cluster.manager(workers=1)
    count = 40 * MAX_BATCH
    file = cluster.folder / "jobs.json"
    file.write_text(json.dumps([{"type": "compute", "operation": "double", "value": n} for n in range(count)]))
    submit = cluster.start("submit", "--payload-file", file)
    wait_until(lambda: totals(cluster)["submitted"] > 0)
    submit.kill()
    assert totals(cluster)["submitted"] < count, "it was killed too late to show anything"
    done = cluster.run("submit", "--payload-file", file)
    assert (done.returncode, len(set(done.stdout.split()))) == (0, count), done.stderr
    assert totals(cluster)["submitted"] == count
