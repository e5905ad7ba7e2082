"""Unique submits through real processes: from everywhere, over a restart, and when a reply is lost."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from cluster import Cluster

from taskq import Unique, named
from taskq.errors import NotUnique
from taskq.queue.terms import Terms, new_task
from taskq.wire.codec import encode_arguments

BY_USER = Unique(by=("duration",), while_in=("pending", "running"))


def test_twins_are_found_from_everywhere_and_over_a_restart(cluster: Cluster) -> None:
    manager = cluster.manager(workers=0)
    client = cluster.client()
    target = named("sleep", unique=BY_USER)
    first = client.submit(target, duration=0.1)
    again = client.submit(target, duration=0.1, timeout=5)
    other = client.submit(target, duration=0.2)
    assert (first.existing, again.existing, other.existing) == (False, True, False)
    assert again.id == first.id != other.id
    manager.kill()
    cluster.manager(workers=0)
    (typed,) = cluster.submit(
        {"type": "sleep", "duration": 0.1}, "--unique=duration", "--unique-while", "pending,running"
    )
    assert typed == first.id
    entry = {"payload": {"type": "sleep", "duration": 0.1}, "unique": {"by": ["duration"], "while_in": ["pending"]}}
    done = cluster.run("submit", "--payload-file", "-", "--json", stdin=json.dumps([entry, entry]))
    assert json.loads(done.stdout) == {"ids": [first.id] * 2, "existing": [first.id] * 2}
    with pytest.raises(NotUnique) as caught:
        client.submit(named("sleep", unique=Unique(by=("duration",), on_conflict="raise")), duration=0.2)
    assert caught.value.details["id"] == other.id
    done = cluster.run("submit", "sleep", "duration=0.2", "--unique=duration", "--on-conflict", "raise")
    assert (done.returncode, done.stdout) == (5, "") and f"task {other.id}" in done.stderr
    shown = json.loads(cluster.run("monitor", "task", "show", first.id, "--json").stdout)
    assert shown["unique"] == {"while_in": ["pending", "running"], "within": 0.0}
    cluster.pool(workers=1)
    assert again.result(timeout=20) == 0.1
    other.result(timeout=20)
    assert client.submit(target, duration=0.1).existing is False


def test_a_window_outlives_the_task_its_record_and_the_manager(cluster: Cluster) -> None:
    manager = cluster.manager(workers=0)
    cluster.pool(workers=1)
    client = cluster.client()
    target = named("sleep", unique=Unique(within=3600))
    first = client.submit(target, duration=0)
    first.result(timeout=20)
    assert client.submit(target, duration=0).id == first.id
    manager.kill()
    manager = cluster.manager(workers=0)
    assert client.submit(target, duration=0).id == first.id
    assert cluster.run("monitor", "task", "purge", "--completed").returncode == 0
    manager.stop()
    cluster.manager(workers=0)
    again = client.submit(target, duration=0)
    assert (again.id, again.existing) == (first.id, True)
    fresh = client.submit(named("sleep", unique=Unique()), duration=0)
    assert not fresh.existing, "it asks for no window"


def test_a_repeated_call_gets_the_same_answer_though_the_twin_is_over(cluster: Cluster) -> None:
    manager = cluster.manager(workers=0)
    terms = Terms("sleep", unique_in=("pending",))
    item = new_task("sleep", encode_arguments((), {"duration": 0}))._replace(terms=terms, unique=b"v")
    queue = cluster.service()
    first = queue.submit(7, 1, [item])
    second = queue.submit(7, 2, [item, item._replace(unique=b"w"), item])
    assert (list(second.ids), list(second.existing)) == ([first.ids[0], 3, first.ids[0]], [0, 2])
    assert list(queue.cancel(first.ids)) == ["cancelled"]
    for _ in range(2):
        repeated = queue.submit(7, 2, [item, item._replace(unique=b"w"), item])
        assert (list(repeated.ids), list(repeated.existing)) == (list(second.ids), [0, 2])
        manager.kill()
        manager = cluster.manager(workers=0)
        queue = cluster.service()


def test_of_many_at_once_one_is_accepted(cluster: Cluster) -> None:
    cluster.manager(workers=0)
    target = named("sleep", unique=Unique())

    def submit(number: int) -> list[tuple[int, bool]]:
        client = cluster.client()
        handles = [client.submit(target, duration=value) for value in range(20)]
        return [(handle.id, handle.existing) for handle in handles]

    with ThreadPoolExecutor(8) as threads:
        found = [pair for pairs in threads.map(submit, range(8)) for pair in pairs]
    assert len({id for id, _ in found}) == 20
    assert sum(not existing for _, existing in found) == 20


def test_keys_say_so_too(cluster: Cluster) -> None:
    cluster.manager(workers=0)
    client = cluster.client()
    handles = [client.submit(named("sleep", key="once"), duration=0) for _ in range(2)]
    assert [handle.existing for handle in handles] == [False, True]
    done = cluster.run("submit", "sleep", "duration=0", "--dedupe-key", "once", "--json")
    assert json.loads(done.stdout) == {"ids": [handles[0].id], "existing": [handles[0].id]}
