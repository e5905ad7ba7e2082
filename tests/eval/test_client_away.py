"""The Python client while its manager is away, or comes back: the waiting takes its time."""

from __future__ import annotations

import threading
import time

import pytest
from cluster import wait_until
from here import Here

from taskq import errors
from taskq.builtin_tasks import compute, sleep
from taskq.client import Client
from taskq.results import TaskHandle
from taskq.wire.client import RemoteQueue


def test_handles_survive_a_restart_of_the_manager(here: Here) -> None:
    here.worker()
    q, other = here.client(), here.client()
    handles = q.map(sleep, [0.01] * 100)
    foreign = other.handle(handles[-1].id)
    done: list[TaskHandle[float]] = []
    threads = [
        threading.Thread(target=lambda: done.extend(q.as_completed(handles, 60))),
        threading.Thread(target=lambda: foreign.result(60)),
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: any(handle.outcome for handle in handles))
    here.end()
    here.begin()
    more = q.submit(compute, "double", 3)
    for thread in threads:
        thread.join()
    assert len(done) == 100
    assert foreign.result(0) == 0.01
    assert more.result(20) == 6


def test_waiting_for_a_manager_that_is_away_is_patient(here: Here) -> None:
    attempts = []

    def connect() -> RemoteQueue:
        attempts.append(time.monotonic())
        return RemoteQueue(here.join)

    here.end()
    with Client.over(connect) as q, pytest.raises(TimeoutError):
        q.handle(1).result(1.0)
    assert len(attempts) < 30
    here.begin()


def test_result_waits_through_the_managers_absence_until_its_own_timeout(here: Here) -> None:
    q = here.client(connect_timeout=0.2)
    handle = q.submit(sleep, 60)
    other = here.client(connect_timeout=0.2).handle(handle.id)
    with pytest.raises(TimeoutError):
        handle.result(0.05)
    here.end()
    with pytest.raises(TimeoutError):
        handle.result(0.2)
    with pytest.raises(TimeoutError):
        other.result(0.2)
    with pytest.raises(errors.ManagerUnavailable):
        q.submit(sleep, 1)
    here.begin()
    assert handle.state() == "pending"
