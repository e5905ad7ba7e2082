"""Copies of a store that is in use: whole, and nobody waits long for them."""

from __future__ import annotations

import itertools
import shutil
import statistics
import threading
import time
from pathlib import Path

import pytest
from cluster import Cluster

from taskq.errors import ConfigError
from taskq.queue.terms import new_task
from taskq.stores.sqlite import SqliteStore

PAYLOAD = b"\xc4" + bytes(200)


def test_a_backup_is_whole_while_submits_go_on(cluster: Cluster, tmp_path: Path) -> None:
    cluster.manager(workers=0)
    service = cluster.service()
    for seq in range(1, 201):
        service.submit(1, seq, [new_task("noop", PAYLOAD * 5)] * 500)
    target = tmp_path / "copy.sqlite"
    took: list[float] = []
    over = threading.Event()
    acknowledged: list[int] = []

    def submit_all_the_time() -> None:
        remote = cluster.service()
        for seq in itertools.count(1):
            if over.is_set():
                return
            began = time.perf_counter()
            acknowledged.extend(remote.submit(2, seq, [new_task("noop", PAYLOAD)]).ids)
            took.append(time.perf_counter() - began)

    submitter = threading.Thread(target=submit_all_the_time)
    submitter.start()
    try:
        cluster.wait_until(lambda: list(acknowledged), what="the first of them")
        before = list(acknowledged)
        began = time.monotonic()
        done = cluster.run("manager", "--backup", target)
        seconds = time.monotonic() - began
    finally:
        over.set()
        submitter.join()
    assert done.returncode == 0, done.stderr
    assert "is a whole copy of the store" in done.stderr
    assert not list(tmp_path.glob("*.part"))
    assert target.stat().st_mode & 0o077 == 0
    print(
        f"{target.stat().st_size / 2**20:.0f} MiB in {seconds:.1f} s; {len(took)} submits meanwhile, median"
        f" {statistics.median(took) * 1e3:.1f} ms, slowest {max(took) * 1e3:.0f} ms"
    )
    assert max(took) < 1.0
    again = cluster.run("manager", "--backup", target)
    assert again.returncode == 2 and "is there already" in again.stderr, again.stderr
    store = SqliteStore(target)
    ids: list[int] = []
    opened = store.open(lambda opened, rows: ids.extend(row.id for row in rows))
    assert ids == list(range(1, len(ids) + 1)), "it is of one moment"
    assert len(ids) > 100_000 and set(before) <= set(ids)
    assert opened.next_id > max(acknowledged), "no id is given twice, though nobody kept the counter of commits"
    assert store.get([7])[7].payload == PAYLOAD * 5
    store.close()


def test_a_backup_is_a_store_to_go_on_with(cluster: Cluster, tmp_path: Path) -> None:
    manager = cluster.manager()
    with cluster.client() as client:
        handle = client.submit("compute", operation="double", value=21)
        assert handle.result(timeout=20) == 42
    done = cluster.run("manager", "--backup", "copy.sqlite")
    assert done.returncode == 0, done.stderr
    manager.stop()
    cluster.manager("--store", f"sqlite:{tmp_path / 'copy.sqlite'}")
    assert cluster.client().result(handle.id, timeout=20) == 42


def test_a_copy_that_is_put_back_goes_on_behind_all_ids(cluster: Cluster, tmp_path: Path) -> None:
    """As the README says how: without --accept-lost-tail nothing starts, with it nothing of the copy is lost."""
    manager = cluster.manager(workers=0)
    kept = cluster.service().submit(1, 1, [new_task("noop", PAYLOAD)] * 300).ids
    copy = tmp_path / "copy.sqlite"
    assert cluster.run("manager", "--backup", copy).returncode == 0
    gone = cluster.service().submit(1, 2, [new_task("noop", PAYLOAD)] * 200).ids
    manager.stop()
    aside = tmp_path / "aside"
    aside.mkdir()
    for path in cluster.state.glob("store.sqlite*"):
        if path.name != "store.sqlite.commits":
            path.rename(aside / path.name)
    shutil.copy(copy, cluster.state / "store.sqlite")
    refused = cluster.run("manager", "--port", 0, "--workers", 0)
    assert refused.returncode == 65 and "--accept-lost-tail" in refused.stderr, refused.stderr
    assert f"tasks {gone[0]} to {gone[-1]} are gone" in refused.stderr
    assert (cluster.state / "store.sqlite").read_bytes() == copy.read_bytes()
    manager = cluster.manager("--accept-lost-tail", workers=0)
    assert f"tasks {gone[0]} to {gone[-1]} are gone" in manager.output
    service = cluster.service()
    assert [task["id"] for task in service.get(kept)] == list(kept) and not any(service.get(gone))
    assert service.submit(1, 3, [new_task("noop", PAYLOAD)]).ids[0] > gone[-1]
    manager.stop()
    manager = cluster.manager(workers=0)
    assert "are gone" not in manager.output, "it is said once"


def test_a_backup_that_cannot_be_made_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.run("manager", "--backup", "x.sqlite").returncode == 3
    manager = cluster.manager(workers=0)
    done = cluster.run("manager", "--backup", tmp_path / "missing" / "x.sqlite")
    assert done.returncode == 2 and "cannot write to" in done.stderr, done.stderr
    manager.stop()
    cluster.manager("--store", "memory:", workers=0)
    with pytest.raises(ConfigError, match="in memory only"):
        cluster.service().backup(str(tmp_path / "x.sqlite"), 1)
    assert not list(tmp_path.glob("x.sqlite*"))
