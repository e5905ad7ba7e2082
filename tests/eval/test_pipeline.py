"""`Client.pipeline` against a real queue over the real wire: what is accepted, and what an error leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import wait_until
from here import Here

from taskq import errors
from taskq.builtin_tasks import compute, sleep
from taskq.client import Client
from taskq.clock import FakeClock
from taskq.pipeline import AHEAD, Pipeline
from taskq.registry import named
from taskq.results import TaskHandle
from taskq.service import MAX_BATCH
from taskq.shapes import Submitted
from taskq.wire.client import RemoteQueue


def accepted(here: Here) -> int:
    """How many tasks the manager has accepted so far."""
    total: int = here.service().snapshot()["totals"]["submitted"]
    return total


def names_of_threads() -> set[str]:
    """The threads of this process."""
    return {thread.name for thread in threading.enumerate()}


class Gated(RemoteQueue):
    """A connection that sends a submit only when the test lets it."""

    gate = threading.Event()

    def submit(self, client: int, seq: int, items: Any) -> Submitted:
        assert self.gate.wait(20)
        return super().submit(client, seq, items)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Closed; no submit of a `Gated` connection goes out before it is set."""
    Gated.gate = threading.Event()
    yield Gated.gate
    Gated.gate.set()  # also after a failure: whoever waits there is to end


def gated(here: Here) -> Client:
    """A client for which no time passes: after a second it would ask for the types anew, and stand at the gate too."""
    return Client.over(lambda: Gated(here.join), clock=FakeClock())


# -- what is accepted ------------------------------------------------------------------------------------------------


def test_all_is_accepted_in_order_when_the_block_is_left(here: Here) -> None:
    q = here.client()
    with q.pipeline() as p:
        handles = [p.submit(compute, "double", number) for number in range(2 * MAX_BATCH + 5)]
    assert [handle.id for handle in handles] == list(range(1, 2 * MAX_BATCH + 6))
    assert accepted(here) == len(handles)
    here.worker()
    assert [handle.result(30) for handle in handles[-3:]] == [
        2 * n for n in range(2 * MAX_BATCH + 2, 2 * MAX_BATCH + 5)
    ]
    assert len(list(q.as_completed(handles, 60))) == len(handles)


def test_types_names_and_options_may_be_mixed(here: Here) -> None:
    here.worker()
    q = here.client()
    first = q.submit(compute.options(key="k"), "double", 1)
    with q.pipeline() as p:
        mixed = [
            p.submit(sleep, 0),
            p.submit("compute", operation="double", value=2),
            p.submit(named("compute", priority=5), operation="double", value=3),
            p.submit(compute.options(key="k"), "double", 1),
        ]
    assert [handle.result(10) for handle in mixed] == [0, 4, 6, 2]
    assert mixed[3].id == first.id
    ids = here.service().get([handle.id for handle in mixed])
    assert len({record["correlation_id"] for record in ids if record}) == 4


def test_before_that_a_handle_has_no_id(here: Here) -> None:
    q = here.client()
    with q.pipeline() as p:
        handle = p.submit(compute, "double", 4)
        assert repr(handle) == "<TaskHandle without id>"
        for ask in (
            lambda: handle.id,
            handle.result,
            handle.state,
            handle.cancel,
            lambda: list(q.as_completed([handle])),
        ):
            with pytest.raises(errors.TaskqError, match="this task has no id") as caught:
                ask()
            assert "leave the block" in caught.value.hint
        assert accepted(here) == 0
    assert handle.state() == "pending"


def test_an_empty_block_and_a_single_batch_need_no_thread(here: Here) -> None:
    with here.client().pipeline():
        pass
    with here.client().pipeline() as p:
        for _ in range(MAX_BATCH):
            p.submit(sleep, 0)
        assert "taskq-pipeline" not in names_of_threads()
        p.submit(sleep, 0)
        assert "taskq-pipeline" in names_of_threads()
    assert "taskq-pipeline" not in names_of_threads()
    assert accepted(here) == MAX_BATCH + 1


def test_batches_leave_during_the_block_and_few_are_waiting(here: Here, gate: threading.Event) -> None:
    made: list[TaskHandle[float]] = []

    def fill(p: Pipeline) -> None:
        for _ in range(10 * MAX_BATCH):
            made.append(p.submit(sleep, 0))

    with gated(here) as q, q.pipeline() as p:
        filling = threading.Thread(target=fill, args=(p,))
        filling.start()
        full = (AHEAD + 2) * MAX_BATCH  # one on its way, those that wait, and the one that is filled
        try:
            wait_until(lambda: len(made) == full)
            time.sleep(0.05)
            assert len(made) == full
        finally:
            gate.set()
            filling.join()
        assert accepted(here) >= 10 * MAX_BATCH - full  # the last one is still being filled
    assert accepted(here) == len(made) == 10 * MAX_BATCH


# -- errors ----------------------------------------------------------------------------------------------------------


def test_an_error_in_the_block_leaves_whole_batches_accepted(here: Here) -> None:
    handles = []
    with pytest.raises(KeyError), here.client().pipeline() as p:
        for number in range(MAX_BATCH + 100):
            handles.append(p.submit(sleep, number))
        raise KeyError
    assert accepted(here) == MAX_BATCH
    assert handles[MAX_BATCH - 1].state() == "pending"
    with pytest.raises(errors.TaskqError, match="no id"):
        handles[MAX_BATCH].result()


def test_arguments_that_are_refused_do_not_end_the_pipeline(here: Here) -> None:
    q = here.client()
    with q.pipeline() as p:
        p.submit(sleep, 1)
        with pytest.raises(errors.NotEncodable):
            p.submit("my.any", object())
        with pytest.raises(errors.BadArguments):
            p.submit(compute, "double", 1, 2)  # type: ignore[call-arg]  # the wrong call is tested
        p.submit(sleep, 2)
    assert accepted(here) == 2
    with pytest.raises(errors.BadArguments) as caught, q.pipeline() as p:
        for number in range(MAX_BATCH + 1):
            p.submit(sleep, number)
        p.submit(sleep, "soon")  # type: ignore[arg-type]  # the wrong call is tested
    assert caught.value.details["ids"] == list(range(3, MAX_BATCH + 3))


@pytest.mark.parametrize("more", [0, 8 * MAX_BATCH])
def test_a_refused_batch_raises_in_the_block_or_at_its_end_and_is_the_last(more: int) -> None:
    here = Here(max_pending=MAX_BATCH + 500)
    try:
        q = here.client()
        made = 0
        with pytest.raises(errors.QueueFull) as caught, q.pipeline() as p:
            for number in range(2 * MAX_BATCH + more):
                p.submit(sleep, number)
                made += 1
        assert made < 8 * MAX_BATCH
        assert caught.value.details["ids"] == list(range(1, MAX_BATCH + 1))
        assert accepted(here) == MAX_BATCH
        with q.pipeline() as p:
            p.submit(sleep, 1)
        assert accepted(here) == MAX_BATCH + 1, "the client is as good as before"
    finally:
        here.close()


class LosesReplies(RemoteQueue):
    """A connection that breaks after each submit, once, before its reply."""

    heard: list[int]

    def submit(self, client: int, seq: int, items: Any) -> Submitted:
        reply = super().submit(client, seq, items)
        self.heard.append(seq)
        if self.heard.count(seq) == 1:
            raise errors.ManagerUnavailable("lost the reply")
        return reply


def test_lost_replies_double_nothing(here: Here) -> None:
    LosesReplies.heard = []
    with Client.over(lambda: LosesReplies(here.join)) as q, q.pipeline() as p:
        handles = [p.submit(sleep, 0) for _ in range(3 * MAX_BATCH)]
    assert LosesReplies.heard == [1, 1, 2, 2, 3, 3]
    assert [handle.id for handle in handles] == list(range(1, 3 * MAX_BATCH + 1))
    assert accepted(here) == 3 * MAX_BATCH


def test_an_interrupt_is_answered_at_once_and_nothing_more_is_sent(here: Here, gate: threading.Event) -> None:
    with gated(here) as q:
        with pytest.raises(KeyboardInterrupt), q.pipeline() as p:
            for number in range(3 * MAX_BATCH):
                p.submit(sleep, number)
            raise KeyboardInterrupt
        assert not gate.is_set(), "the manager was not waited for"
        gate.set()
        wait_until(lambda: "taskq-pipeline" not in names_of_threads())
    assert accepted(here) <= MAX_BATCH


def test_outside_of_its_block_a_pipeline_takes_nothing(here: Here) -> None:
    p = here.client().pipeline()
    with pytest.raises(errors.TaskqError, match="within its block only"):
        p.submit(sleep, 1)
    with p:
        p.submit(sleep, 1)
    with pytest.raises(errors.TaskqError, match="within its block only"):
        p.submit(sleep, 1)
    assert accepted(here) == 1


FORKS = """
import os
from taskq import Client, TaskqError

with Client() as q, q.pipeline() as p:
    p.submit("sleep", duration=1)
    child = os.fork()
    if not child:
        try:
            p.__exit__(None, None, None)
        except TaskqError as error:
            os._exit(0 if "forked" in error.message else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_child_does_not_submit_its_parents_tasks(here: Here, tmp_path: Path) -> None:
    file = tmp_path / "join.json"
    file.touch(mode=0o600)
    file.write_text(here.join.to_json())
    environment = {**os.environ, "TASKQ_JOIN": str(file)}
    done = subprocess.run([sys.executable, "-c", FORKS], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert accepted(here) == 1
