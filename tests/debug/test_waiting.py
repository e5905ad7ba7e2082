"""Waiting for many tasks at once, and being called when they are done."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest
from cluster import wait_until
from here import Here

from taskq import TaskHandle, errors, named
from taskq.builtin_tasks import compute, fail, sleep
from taskq.stores.memory import MemoryStore

WHEN = ("FIRST_COMPLETED", "FIRST_EXCEPTION", "ALL_COMPLETED")


@pytest.fixture
def here() -> Iterator[Here]:
    """A running manager."""
    made = Here()
    yield made
    made.close()


def test_the_conditions_are_those_of_concurrent_futures(here: Here) -> None:
    assert tuple(getattr(concurrent.futures, name) for name in WHEN) == WHEN
    q = here.client()
    with pytest.raises(errors.BadArguments, match="return_when is one of ALL_COMPLETED"):
        q.wait([], return_when="NEVER")
    assert [q.wait([], return_when=when) for when in WHEN] == [(set(), set())] * 3


@pytest.mark.parametrize("own", [True, False])
def test_wait_gives_those_that_are_done_and_the_others(here: Here, own: bool) -> None:
    q = here.client()
    submitted = [q.submit(compute, "double", 1), q.submit(fail.options(max_retries=0), "no"), q.submit(sleep, 60)]
    good, bad, slow = submitted if own else map(here.client().handle, [handle.id for handle in submitted])
    assert q.wait([good, bad, slow], 0) == (set(), {good, bad, slow})
    here.worker("compute")
    assert q.wait([good, bad, slow], 10, "FIRST_COMPLETED") == ({good}, {bad, slow})
    assert q.wait([good, slow], 0.05, "FIRST_EXCEPTION") == ({good}, {slow}), "the time is over"
    here.worker("fail")
    waited = q.wait([good, bad, slow, slow], 10, "FIRST_EXCEPTION")
    assert (waited.done, waited.not_done) == ({good, bad}, {slow})
    assert slow.cancel()
    assert q.wait(iter([good, bad, slow]), 10).not_done == set()


def test_without_time_wait_knows_what_is_done_already(here: Here) -> None:
    here.worker()
    q = here.client()
    handle = q.submit(compute, "double", 2)
    assert here.client().handle(handle.id).result(10) == 4
    assert q.wait([handle], 0) == ({handle}, set())


@pytest.mark.parametrize("own", [True, False])
def test_callbacks_are_called_once_when_a_task_is_done_whatever_became_of_it(here: Here, own: bool) -> None:
    q = here.client()
    called: SimpleQueue[tuple[str, TaskHandle[Any], str]] = SimpleQueue()

    def note(name: str) -> Any:
        return lambda handle: called.put((name, handle, handle.exception(1) and "failed"))

    submitted = [q.submit(compute, "double", 1), q.submit(fail.options(max_retries=0), "no")]
    good, bad = submitted if own else map(here.client().handle, [handle.id for handle in submitted])
    good.add_done_callback(note("first"))
    good.add_done_callback(note("second"))
    bad.add_done_callback(note("bad"))
    here.worker("compute")
    assert [called.get(timeout=10) for _ in range(2)] == [("first", good, None), ("second", good, None)]
    here.worker("fail")
    assert called.get(timeout=10) == ("bad", bad, "failed")
    good.add_done_callback(note("late"))
    assert called.get_nowait() == ("late", good, None), "in the calling thread"
    assert called.empty()


def test_a_cancelled_task_calls_back_even_if_its_handle_is_forgotten(here: Here) -> None:
    q = here.client()
    called: SimpleQueue[int] = SimpleQueue()
    id = q.submit(sleep, 60).id
    q.submit(named("sleep", key="k"), 60).add_done_callback(lambda handle: called.put(handle.id))
    other = q.submit(named("sleep", key="k"), 60)  # the same task
    assert other.cancel()
    assert called.get(timeout=10) == other.id != id


def test_a_callback_may_wait_for_another_task_and_may_fail(here: Here, caplog: pytest.LogCaptureFixture) -> None:
    here.worker()
    q = here.client()
    called: SimpleQueue[Any] = SimpleQueue()
    handle = q.submit(sleep, 0.05)
    handle.add_done_callback(lambda handle: called.put(q.submit(compute, "double", 4).result(10)))
    handle.add_done_callback(lambda handle: 1 / 0)
    handle.add_done_callback(lambda handle: called.put("third"))
    with caplog.at_level(logging.ERROR, "taskq.client"):
        assert (called.get(timeout=10), called.get(timeout=10)) == (8, "third")
    assert "ZeroDivisionError" in caplog.text and f"TaskHandle {handle.id}" in caplog.text


@pytest.mark.parametrize("own", [True, False])
def test_another_store_is_told_to_callbacks_too(here: Here, own: bool) -> None:
    q = here.client()
    called: SimpleQueue[BaseException] = SimpleQueue()

    def ask(handle: TaskHandle[Any]) -> None:
        try:
            handle.result(0)
        except errors.TaskqError as error:
            called.put(error)

    handle = q.submit(sleep, 60)
    watched = handle if own else here.client().handle(handle.id)
    watched.add_done_callback(ask)
    here.end()
    here.store = MemoryStore()
    here.begin()
    known = (errors.StoreChanged,) if own else (errors.StoreChanged, errors.TaskNotFound)  # it may not know the first
    assert isinstance(called.get(timeout=10), known)


def test_a_closed_client_calls_nobody_back_and_ends_its_threads(here: Here) -> None:
    before = set(threading.enumerate())
    q, other = here.client(), here.client()
    called: list[object] = []
    for handle in (q.submit(sleep, 60), q.handle(other.submit(sleep, 60).id)):
        handle.add_done_callback(called.append)
    done = q.submit(compute, "double", 1)
    done.add_done_callback(called.append)
    here.worker("compute")
    assert done.result(10) == 2
    q.close()
    other.close()
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("taskq-") and thread.name != "taskq-worker":
            thread.join(5)
            assert not thread.is_alive(), thread.name
    assert called in ([], [done])
    with pytest.raises(errors.TaskqError, match="this client is closed"):
        q.handle(1).add_done_callback(called.append)


def test_a_result_whose_time_is_over_is_expired_and_its_task_still_completed(here: Here) -> None:
    here.worker()
    q = here.client()
    short = q.submit(compute.options(result_ttl=0.2), "double", 1)
    assert (short.result(10), short.result(10)) == (2, 2), "who has read it keeps it"
    service = here.service()
    wait_until(lambda: service.result(short.id).result is None)
    another = here.client().handle(short.id)
    with pytest.raises(errors.ResultExpired, match=f"the result of task {short.id} is no longer kept"):
        another.result(10)
    assert another.state() == "completed"
