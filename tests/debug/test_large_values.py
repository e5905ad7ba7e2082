"""Large arguments and results: replies are cut so that they fit into a frame, and nothing is lost by that."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from taskq.queue.terms import new_task
from taskq.service import MAX_BATCH_BYTES
from taskq.shapes import ACK, NACK, Handout
from taskq.wire.client import RemoteQueue

LARGE = 900_000
COUNT = 8


class Worker:
    """A worker process as the manager sees it, by its bare calls."""

    def __init__(self, queue: RemoteQueue) -> None:
        self.queue = queue
        self.incarnation = secrets.token_hex(8)
        pool: Any = {"id": "pool", "name": "pool", "host": "here", "pid": 1, "local": None}
        offered: Any = {"name": "noop", "parameters": (), "queue": "default", "max_retries": 0, "backoff": 1.0}
        info: Any = {"incarnation": self.incarnation, "pool": pool, "name": "pool/0", "host": "here", "pid": 2}
        types = [{**offered, "timeout": None, "workers": 0}]
        self.session = queue.attach({**info, "threads": 8, "queues": (), "types": types}, ())["session"]

    def reserve(self, slots: int) -> list[Handout]:
        """Take tasks that are there."""
        return list(self.queue.reserve(self.incarnation, self.session, slots, 0, (), 0.0).tasks)

    def report(self, *reports: tuple[Any, ...]) -> None:
        """Report outcomes, none of which may be refused."""
        assert list(self.queue.report(self.incarnation, self.session, reports)) == []


@pytest.fixture
def queue(here: Any) -> Iterator[RemoteQueue]:
    """The verbs, over the wire."""
    remote = RemoteQueue(here.join)
    yield remote
    remote.close()


def submit(queue: RemoteQueue, *sizes: int) -> list[int]:
    client = secrets.randbits(62)
    calls = [queue.submit(client, seq, [new_task("noop", bytes(size))]) for seq, size in enumerate(sizes, start=1)]
    return [call.ids[0] for call in calls]


def test_a_handout_is_cut_and_the_rest_goes_back_in_order(queue: RemoteQueue) -> None:
    ids = submit(queue, *[LARGE] * COUNT)
    worker = Worker(queue)
    taken: list[int] = []
    for _ in range(COUNT):
        (handout,) = worker.reserve(8)
        assert len(handout.payload) == LARGE
        taken.append(handout.id)
        worker.report((ACK, handout.id, handout.run, b"\xc0", 0.01))
    assert taken == ids
    assert worker.reserve(8) == []
    assert all(record is not None and record["failures"] == record["deaths"] == 0 for record in queue.get(ids))


def test_a_handout_takes_what_fits(queue: RemoteQueue) -> None:
    half = MAX_BATCH_BYTES // 2
    ids = submit(queue, half, half, 1, LARGE, 1)
    worker = Worker(queue)
    rounds = [[handout.id for handout in worker.reserve(8)] for _ in range(4)]
    assert rounds == [ids[:2], ids[2:3], ids[3:4], ids[4:]]


def test_long_lists_leave_large_parts_out_and_say_so(queue: RemoteQueue) -> None:
    ids = submit(queue, *[LARGE] * COUNT)
    worker = Worker(queue)
    for _ in range(COUNT):
        (handout,) = worker.reserve(1)
        if handout.id == ids[0]:
            error = ("error", "OSError", "x" * 1000, "Traceback")
            worker.report((NACK, handout.id, handout.run, error, -1, 0.01))
        else:
            worker.report((ACK, handout.id, handout.run, bytes(LARGE), 0.01))
    first, *others = queue.list_tasks(None, None, None, 50)
    assert (first["id"], first["cut"], len(first["payload"]), len(first["result"])) == (ids[-1], False, LARGE, LARGE)
    assert [(one["cut"], one["payload"], one["result"]) for one in others] == [(True, None, None)] * (COUNT - 1)
    assert others[-1]["error"] == {"kind": "error", "type": "OSError", "message": "x" * 200, "traceback": ""}
    alike = queue.get([0, *reversed(ids)])
    assert alike == (None, first, *others)
    for task_id in ids:
        (whole,) = queue.get([task_id])
        assert whole is not None
        assert (whole["cut"], len(whole["payload"])) == (False, LARGE)


def test_small_records_are_all_whole(queue: RemoteQueue) -> None:
    submit(queue, *[10] * 50)
    assert [one["cut"] for one in queue.list_tasks(None, None, None, 50)] == [False] * 50
