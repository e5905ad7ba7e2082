"""The Python client against a real queue over the real wire, in this process."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cluster import wait_until
from here import Here

from taskq import errors, registry
from taskq.builtin_tasks import compute, fail, http_request, sleep
from taskq.client import Client
from taskq.config import Address, Join
from taskq.pipeline import batches
from taskq.queue.terms import new_task
from taskq.registry import current_task, named, task
from taskq.results import RemoteTraceback, TaskHandle
from taskq.service import MAX_BATCH, MAX_BATCH_BYTES
from taskq.shapes import Submitted, TypeInfo
from taskq.wire.client import RemoteQueue


@pytest.fixture(autouse=True)
def _registry_as_before() -> Iterator[None]:
    before = dict(registry._types)
    yield
    registry._types.clear()
    registry._types.update(before)


# -- results ---------------------------------------------------------------------------------------------------------


def test_submit_gives_a_handle_with_the_result(here: Here) -> None:
    here.worker()
    q = here.client()
    handle = q.submit(compute, "factorial", value=10)
    assert handle.result(timeout=10) == 3_628_800
    assert handle.result() == 3_628_800, "reading does not consume"
    assert (handle.state(), handle.done(), handle.exception()) == ("completed", True, None)


def test_by_name_without_the_code(here: Here) -> None:
    here.worker()
    q = here.client()
    assert q.submit("compute", operation="double", value=21).result(10) == 42
    assert q.submit(named("compute", priority=5), operation="double", value=10**5000).result(10) == 2 * 10**5000


def test_none_is_a_result_and_large_ones_arrive_whole(here: Here) -> None:
    @task(name="my.echo")
    def echo(value: Any) -> Any:
        return value

    here.worker("my.echo")
    q = here.client()
    assert q.submit(echo, None).result(10) is None
    text = "x" * 300_000
    large = q.submit(echo, text)
    assert large.result(10) == text
    assert large.result(0) == text
    assert q.submit(echo, (1, [2.5, b"3", {"k": None}])).result(10) == [1, [2.5, b"3", {"k": None}]]


def test_a_failed_task_raises_with_the_remote_traceback(here: Here) -> None:
    here.worker()
    handle = here.client().submit(fail.options(max_retries=0), "oh no")
    with pytest.raises(errors.TaskFailed) as caught:
        handle.result(10)
    error = caught.value
    assert error.message == f"task {handle.id} failed after 1 attempt on here/0: RuntimeError: oh no"
    assert error.details["kind"] == "error"
    assert (error.details["type"], error.details["message"], error.details["worker"]) == (
        "RuntimeError",
        "oh no",
        "here/0",
    )
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "Traceback of the worker" in "".join(traceback.format_exception(error))
    again = handle.exception()
    assert again is not None
    assert again.message == error.message
    assert handle.state() == "failed"


def test_a_cancelled_task_raises_task_cancelled(here: Here) -> None:
    q = here.client()
    handle = q.submit(sleep, 60)
    assert (handle.state(), handle.done()) == ("pending", False)
    assert handle.cancel()
    assert handle.state() == "cancelled"
    for ask in (handle.result, handle.exception):
        with pytest.raises(errors.TaskCancelled, match=f"task {handle.id} was cancelled"):
            ask(5)


def test_cancelling_a_finished_task_is_false(here: Here) -> None:
    here.worker()
    handle = here.client().submit(compute, "double", 1)
    assert handle.result(10) == 2
    assert not handle.cancel()
    assert handle.result() == 2


def test_timeout_is_the_builtin_timeout_error(here: Here) -> None:
    q = here.client()
    handle = q.submit(sleep, 60)
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match=f"task {handle.id} has not finished within 0.1 s"):
        handle.result(0.1)
    with pytest.raises(TimeoutError):
        handle.result(0)
    with pytest.raises(TimeoutError, match="1 of 1 tasks"):
        list(q.as_completed([handle], 0.1))
    assert time.monotonic() - begin < 5


def test_unknown_ids_raise_task_not_found(here: Here) -> None:
    q = here.client()
    for ask in (q.state, q.cancel, lambda id: q.result(id, 5), lambda id: q.handle(id).exception(5)):
        with pytest.raises(errors.TaskNotFound, match="there is no task 12345"):
            ask(12345)


def test_a_purged_large_result_is_expired(here: Here) -> None:
    here.worker()
    q = here.client()
    handle = q.submit("compute", operation="double", value=10**20_000)
    assert list(q.as_completed([handle], 10)) == [handle]
    assert here.service().purge(["completed"], 0.0) == 1
    with pytest.raises(errors.ResultExpired, match=f"the result of task {handle.id}"):
        handle.result(5)
    with pytest.raises(errors.TaskNotFound):
        q.result(handle.id, 5)


# -- many ------------------------------------------------------------------------------------------------------------


def test_map_gives_handles_in_order(here: Here) -> None:
    here.worker()
    q = here.client()
    handles = q.map(compute, ["double"] * 1_500, range(1_500))
    assert [handle.id for handle in handles] == list(range(handles[0].id, handles[0].id + 1_500))
    assert [handle.result(30) for handle in handles[:50]] == [2 * n for n in range(50)]
    done = list(q.as_completed(handles, 60))
    assert sorted(handle.id for handle in done) == [handle.id for handle in handles]
    assert handles[-1].result(0) == 2 * 1_499


def test_map_stops_with_the_shortest_and_takes_names(here: Here) -> None:
    q = here.client()
    assert len(q.map("sleep", [1, 2, 3])) == 3
    assert len(q.map(compute.options(priority=1), ["double"] * 5, range(2))) == 2
    assert q.map(sleep, []) == []


def test_map_says_what_was_accepted_before_an_error(here: Here) -> None:
    q = here.client()
    with pytest.raises(errors.BadArguments) as caught:
        q.map(compute, ["double"] * 1_500, [*range(1_200), "no"])
    assert len(caught.value.details["ids"]) == MAX_BATCH
    with pytest.raises(errors.BadArguments, match="key"):
        q.map(sleep.options(key="k"), [1, 2])


def test_as_completed_yields_as_they_finish_once_each(here: Here) -> None:
    q = here.client()
    slow = q.submit(sleep, 60)
    quick = q.submit(sleep, 0)
    slow.cancel()
    here.worker()
    assert {handle.id for handle in q.as_completed([slow, quick, slow], 10)} == {slow.id, quick.id}
    assert list(q.as_completed([], 0)) == []


def test_batches_are_cut_at_items_and_bytes() -> None:
    def sizes(lengths: list[int]) -> list[int]:
        return [len(batch) for batch in batches(new_task("t", b"x" * length) for length in lengths)]

    assert sizes([1] * 2_001) == [1_000, 1_000, 1]
    assert sizes([MAX_BATCH_BYTES * 2, 1, 1]) == [1, 2]
    assert sizes([1, MAX_BATCH_BYTES * 2, 1]) == [1, 1, 1]
    assert sizes([]) == []
    assert max(sizes([40_000] * 100)) == 6


# -- tasks of others -------------------------------------------------------------------------------------------------


def test_any_task_by_its_id(here: Here) -> None:
    mine, yours = here.client(), here.client()
    handle = mine.submit(compute, "double", 4)
    assert mine.handle(handle.id) is handle
    other = yours.handle(handle.id)
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(other.result(20)))
    waiting.start()
    here.worker()
    waiting.join()
    assert got == [8]
    assert yours.result(handle.id) == 8
    assert yours.state(handle.id) == "completed"
    mixed = [yours.handle(handle.id), yours.submit(compute, "double", 5)]
    assert {one.id for one in yours.as_completed(mixed, 10)} == {one.id for one in mixed}


def test_same_key_gives_the_same_task(here: Here) -> None:
    mine, yours = here.client(), here.client()
    first = mine.submit(compute.options(key="k1"), "double", 4)
    again = mine.submit(compute.options(key="k1"), "double", 4)
    other = yours.submit(compute.options(key="k1"), "double", 4)
    assert first.id == again.id == other.id
    here.worker()
    assert [one.result(10) for one in (first, again, other)] == [8, 8, 8]
    with pytest.raises(errors.KeyConflict):
        mine.submit(compute.options(key="k1"), "double", 5)


# -- what is refused before it is sent -------------------------------------------------------------------------------


def test_arguments_are_checked_before_sending(here: Here) -> None:
    here.worker()
    q = here.client()
    with pytest.raises(errors.BadArguments, match=r'compute\(operation, value\) got an unexpected argument "z"'):
        q.submit(compute, operation="double", value=1, z=2)  # type: ignore[call-overload]  # the wrong call is tested
    with pytest.raises(errors.BadArguments, match="at most 20,000"):
        q.submit("compute", operation="factorial", value=20_001)
    with pytest.raises(errors.NotEncodable, match=r'kwargs\["value"\]'):
        q.submit(_announced(here), value=object())
    with pytest.raises(errors.BadArguments, match="is no task"):
        q.submit(print, 1)  # type: ignore[call-overload]  # the wrong call is tested
    assert here.service().snapshot()["totals"]["submitted"] == 0


def _announced(here: Here) -> str:
    """A type that only a worker knows: registered, announced, and forgotten here."""

    @task(name="my.elsewhere", queue="away", max_retries=7, backoff=3, timeout=9)
    def elsewhere(value: Any, extra: int = 1) -> None: ...

    here.worker("my.elsewhere")
    del registry._types["my.elsewhere"]
    return "my.elsewhere"


def test_by_name_the_announced_signature_and_defaults_count(here: Here) -> None:
    name = _announced(here)
    q = here.client()
    with pytest.raises(errors.BadArguments, match=r'my\.elsewhere\(value, extra\) is missing the argument "value"'):
        q.submit(name, extra=2)
    offer = q.catalog.template(name).terms
    assert (offer.queue, offer.max_retries, offer.backoff, offer.timeout) == ("away", 7, 3, 9)


def test_unknown_types_are_refused_once_a_worker_has_joined(
    here: Here, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskq.catalog.ASK_AGAIN", 0.05)
    q = here.client()
    with caplog.at_level(logging.WARNING, "taskq.client"):
        q.submit("comptue", value=1)
    assert "no worker has joined yet" in caplog.text
    here.worker()
    with pytest.raises(errors.UnknownTaskType, match=r'no worker offers "comptue"; did you mean "compute"\?'):
        here.client().submit("comptue", value=1)
    with pytest.raises(errors.UnknownTaskType):
        wait_until(lambda: q.submit("comptue", value=1) and False, 5.0, "the types to be asked for again")
    assert here.client(allow_unknown=True).submit("comptue", value=1).state() == "pending"


def test_a_type_that_nobody_offers_now_is_accepted_with_a_warning(here: Here, caplog: pytest.LogCaptureFixture) -> None:
    worker = here.worker()
    worker.stop()
    here.service().leave(worker.pool)
    q = here.client()
    with caplog.at_level(logging.WARNING, "taskq.client"):
        q.submit(compute, "double", 1)
        q.submit(compute, "double", 2)
    assert caplog.text.count('no worker offers "compute" at the moment') == 1


def test_a_type_of_a_worker_that_joined_later_is_found(here: Here) -> None:
    here.worker()
    q = here.client()
    with pytest.raises(errors.UnknownTaskType):
        q.submit("my.elsewhere", value=1)
    name = _announced(here)
    wait_until(lambda: _accepted(q, name), 5.0, "the type to be known")


def _accepted(q: Client, name: str) -> bool:
    try:
        return q.submit(name, value=1).id > 0
    except errors.UnknownTaskType:
        return False


def test_several_signatures_one_has_to_fit(here: Here) -> None:
    q = here.client()
    old = TypeInfo(
        name="my.two", parameters=(("a", 1, True),), queue="q", max_retries=1, backoff=1, timeout=None, workers=1
    )
    new: TypeInfo = {**old, "parameters": (("b", 1, True),)}
    q.catalog._ask = lambda: {"types": (old, new), "ever_joined": True}
    assert q.submit("my.two", a=1).id
    assert q.submit("my.two", b=1).id
    with pytest.raises(errors.BadArguments, match=r'my\.two\(a\) got an unexpected argument "c"'):
        q.submit("my.two", c=1)


def test_too_large_payloads_are_not_sent() -> None:
    here = Here(max_payload=1_000)
    try:
        with pytest.raises(errors.PayloadTooLarge, match=r"the manager accepts 1,000"):
            here.client().submit(http_request, "https://" + "x" * 1_000)
    finally:
        here.close()


# -- within a task ---------------------------------------------------------------------------------------------------


def test_the_correlation_id_is_inherited(here: Here) -> None:
    q = here.client()

    @task(name="my.parent")
    def parent() -> list[Any]:
        return [current_task().correlation_id, q.submit(sleep, 0).id]

    def correlation(id: int) -> Any:
        (record,) = here.service().get([id])
        assert record is not None
        return record["correlation_id"]

    here.worker("my.parent", "sleep")
    first, second = q.submit(parent), q.submit(sleep, 0)
    own, child = first.result(10)
    assert own
    assert correlation(first.id) == correlation(child) == own
    assert correlation(second.id) != own
    one, two = q.map(sleep, [0, 0])
    assert correlation(one.id) == correlation(two.id) != own


# -- the way to the manager ------------------------------------------------------------------------------------------


def test_nobody_listens(here: Here) -> None:
    nowhere = Join((Address("127.0.0.1", 1),), here.key)
    with Client(nowhere) as q, pytest.raises(errors.ManagerUnavailable, match=r"no manager at 127\.0\.0\.1:1"):
        q.submit(sleep, 1)


class LosesReplies(RemoteQueue):
    """A connection that breaks between a submit and its reply, each time once."""

    lost = 0

    def submit(self, client: int, seq: int, items: Any) -> Submitted:
        reply = super().submit(client, seq, items)
        if LosesReplies.lost < seq:
            LosesReplies.lost = seq
            raise errors.ManagerUnavailable("lost the reply")
        return reply


def test_a_submit_whose_reply_is_lost_is_not_doubled(here: Here) -> None:
    LosesReplies.lost = 0
    client = Client.over(lambda: LosesReplies(here.join))
    with client as q:
        q.hello()
        ids = [q.submit(sleep, 1).id for _ in range(3)]
    assert LosesReplies.lost == 3
    assert len(set(ids)) == 3
    assert here.service().snapshot()["totals"]["submitted"] == 3


class SlowReplies(RemoteQueue):
    """A connection on which the reply to a submit is read only when the test lets it."""

    gate = threading.Event()

    def submit(self, client: int, seq: int, items: Any) -> Submitted:
        reply = super().submit(client, seq, items)
        assert SlowReplies.gate.wait(20)
        return reply


@pytest.mark.parametrize("feed_runs_before", [True, False])
def test_news_that_overtakes_the_reply_of_its_submit_is_kept(here: Here, feed_runs_before: bool) -> None:
    here.worker()
    SlowReplies.gate = threading.Event()
    SlowReplies.gate.set()
    with Client.over(lambda: SlowReplies(here.join)) as q:
        first = q.submit(compute, "double", 1)
        if feed_runs_before:
            first.result(10)
        SlowReplies.gate.clear()
        handles: list[TaskHandle[int]] = []
        thread = threading.Thread(target=lambda: handles.append(q.submit(compute, "double", 2)))
        thread.start()
        service = here.service()
        wait_until(lambda: service.wait([first.id + 1], 0)[0].state == "completed")
        if feed_runs_before:
            wait_until(lambda: q._feed._unclaimed)
        else:
            first.result(10)  # starts the feed, which begins after the news
        SlowReplies.gate.set()
        thread.join()
        assert handles[0].result(10) == 4
        assert not q._feed._unclaimed


def test_close_ends_whoever_waits(here: Here) -> None:
    q = here.client()
    own = q.submit(sleep, 60)
    foreign = here.client().handle(own.id)
    other = foreign._results
    caught: list[str] = []

    def wait(handle: TaskHandle[Any]) -> None:
        try:
            handle.result()
        except errors.TaskqError as error:
            caught.append(error.message)

    threads = [threading.Thread(target=wait, args=(handle,)) for handle in (own, foreign)]
    for thread in threads:
        thread.start()
    wait_until(lambda: q._feed._lags and other._used)
    q.close()
    other.close()
    for thread in threads:
        thread.join()
    assert caught == ["this client is closed"] * 2
    with pytest.raises(errors.TaskqError, match="this client is closed"):
        q.submit(sleep, 1)


def test_close_does_not_wait_for_a_manager_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        q = Client(Join((Address(*silent.getsockname()),), bytes(32)), connect_timeout=20.0)
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(q.hello), pool.submit(q.handle(1).result)]
            accepted = [silent.accept()[0] for _ in waiting]
            begin = time.monotonic()
            q.close()
            for call in waiting:
                assert isinstance(call.exception(5), errors.TaskqError)
            assert time.monotonic() - begin < 2
            for sock in accepted:
                sock.close()


def test_threads_may_share_a_client(here: Here) -> None:
    here.worker()
    q = here.client()
    got: list[int] = []

    def work(number: int) -> None:
        for n in range(20):
            got.append(q.submit(compute, "double", number * 100 + n).result(30))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(2 * (number * 100 + n) for number in range(6) for n in range(20))


def test_the_environment_says_where_the_manager_is(here: Here, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "join.json"
    file.touch(mode=0o600)
    file.write_text(here.join.to_json())
    with Client(file) as q:
        assert q.hello()["name"] == "default"
    monkeypatch.setenv("TASKQ_STATE_DIR", str(tmp_path))
    with Client() as q:
        assert q.hello()["pid"] > 0
    monkeypatch.setenv("TASKQ_PORT", "1")
    with Client() as q, pytest.raises(errors.ManagerUnavailable):
        q.hello()
    monkeypatch.setenv("TASKQ_PORT", "one")
    with pytest.raises(errors.ConfigError, match="TASKQ_PORT"):
        Client()


FORKS = """
import os, sys
from taskq import Client, TaskqError, named

with Client() as q:
    before = q.submit(named("sleep", delay=3600), duration=0)
    try:
        before.result(0.05)  # so that the results thread runs, and holds its locks
    except TimeoutError:
        pass
    child = os.fork()
    ids = [q.submit("sleep", duration=0).id for _ in range(5)]
    if child:
        assert os.waitpid(child, 0)[1] == 0
    else:
        assert len(list(q.as_completed(map(q.handle, ids), 20))) == 5
        try:
            before.result(5)
        except TaskqError as error:
            assert "forked" in error.message
        else:
            os._exit(1)
        assert q.handle(before.id).state() in ("scheduled", "cancelled")
    q.cancel(before.id)
    os.write(1, " ".join(map(str, ["", before.id, *ids])).encode())
    if not child:
        os._exit(0)
"""


def test_a_forked_child_is_a_client_of_its_own(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "join.json"
    file.touch(mode=0o600)
    file.write_text(here.join.to_json())
    here.worker()
    monkeypatch.setenv("TASKQ_JOIN", str(file))
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    ids = [int(word) for word in done.stdout.split()]
    assert len(ids) == 12
    assert len(set(ids)) == 11
    assert here.service().snapshot()["totals"]["submitted"] == 11


def test_handles_of_another_client_are_waited_for_by_id(here: Here) -> None:
    mine, yours = here.client(), here.client()
    handles = [mine.submit(sleep, 0.0), yours.submit(sleep, 0.0)]
    here.worker()
    assert set(mine.as_completed(handles, 10)) == set(handles)
