"""Nothing is said to be done before it is on disk, and a disk that fails is never believed: watched from outside.

``strace`` writes down the manager's system calls in their order, and lets chosen ones fail.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from checker import Step, i11_durability_order, told
from cluster import Cluster, wait_until
from systrace import Call, calls, obstacle, strace
from traces import MODULE, traces, write_module

from taskq.errors import ManagerUnavailable, OutcomeUnknown, ShuttingDown, StorageFull
from taskq.queue.task import State
from taskq.queue.terms import NewTask, new_task
from taskq.shapes import ACK, Submitted, WorkerInfo
from taskq.wire.client import RemoteQueue
from taskq.wire.codec import encode_arguments

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=obstacle())


def steps(found: list[Call], marks: list[str]) -> list[Step]:
    """The writes of these marks to the log, its syncs, and all that tells of a mark, in the order in which they were
    seen: the reply to the request that brought it, and whatever else has it in it."""
    sent = [call for call in found if call.name in ("sendto", "sendmsg")]
    written, replies = [], []
    for mark in marks:
        request = next(call for call in found if call.name == "recvfrom" and mark in call.text)
        reply = next(call for call in sent if call.descriptor == request.descriptor and call.start > request.end)
        assert reply.worked
        writes = [call for call in found if call.name in ("pwrite64", "write") and "-wal>" in call.text]
        written.append(next((call.end for call in writes if mark in call.text and call.start > request.end), None))
        replies.append([reply.start, *(call.start for call in sent if mark in call.text)])
    order = sorted(place for place in written if place is not None)
    commits = [len(order) + 1 if place is None else order.index(place) + 1 for place in written]
    seen = [(place, Step("write", number)) for number, place in enumerate(order, 1)]
    seen += [(sync.end, Step("sync")) for sync in found if _is_sync(sync)]
    seen += [
        (place, Step("reply", commit)) for commit, places in zip(commits, replies, strict=True) for place in places
    ]
    return [step for _, step in sorted(seen, key=lambda pair: pair[0])]


def _is_sync(call: Call) -> bool:
    return call.name in ("fdatasync", "fsync") and "-wal>" in call.text and call.worked


def check_order(found: list[Call], marks: list[str]) -> int:
    """Each mark was written, that was synced, and only then the reply went out, and whatever else tells of it. Gives
    the number of syncs."""
    trace = steps(found, marks)
    assert sum(step.kind == "reply" for step in trace) >= len(marks)
    broken = list(i11_durability_order(trace))
    assert not broken, told(broken)
    return sum(step.kind == "sync" for step in trace)


WATCHED = ("-e", "trace=recvfrom,sendto,sendmsg,write,pwrite64,fsync,fdatasync")


def attach(queue: RemoteQueue) -> int:
    """Be a worker process that runs ``noop`` tasks; gives the session."""
    pool: Any = {"id": "p", "name": "p", "host": "h", "pid": 1, "local": None}
    noop: Any = {
        "name": "noop",
        "parameters": (),
        "queue": "default",
        "max_retries": 0,
        "backoff": 1.0,
        "timeout": None,
    }
    info = WorkerInfo(
        incarnation="i", pool=pool, name="p/0", host="h", pid=2, threads=100, queues=(), types=[{**noop, "workers": 0}]
    )
    return queue.attach(info, ())["session"]


def test_no_submit_is_answered_or_handed_out_before_it_is_synced(cluster: Cluster, tmp_path: Path) -> None:
    """Several clients at once, so that commits are shared, and a worker that waits for each task."""
    manager = cluster.manager(workers=0)
    clients, each = 4, 40
    marks = [[f"mark-{part}-{number:04}-end" for number in range(each)] for part in range(clients)]

    def submit(part: int) -> None:
        queue = RemoteQueue(cluster.join)
        client = secrets.randbits(63)
        for seq, mark in enumerate(marks[part], 1):
            queue.submit(client, seq, [new_task("noop", encode_arguments((mark,), {}))])
        queue.get([1])  # who answers this has gone on since the last of the replies: strace has seen that
        queue.close()

    def reserve() -> None:
        queue = RemoteQueue(cluster.join)
        session = attach(queue)
        left = clients * each
        while left:
            left -= len(queue.reserve("i", session, 100, 0, (), 10.0).tasks)
        queue.close()

    output = tmp_path / "strace"
    with strace(manager, output, *WATCHED), ThreadPoolExecutor(clients + 1) as pool:
        for done in [pool.submit(reserve), *(pool.submit(submit, part) for part in range(clients))]:
            done.result(60)
    syncs = check_order(calls(output), [mark for part in marks for mark in part])
    print(f"{clients * each} submits, {syncs} syncs")
    assert syncs < clients * each, "no commit was shared: the test shows less than it should"


def test_no_report_is_answered_before_it_is_synced(cluster: Cluster, tmp_path: Path) -> None:
    manager = cluster.manager(workers=0)
    queue = cluster.service()
    queue.submit(1, 1, [new_task("noop", encode_arguments((), {}))] * 100)
    session = attach(queue)
    tasks = queue.reserve("i", session, 100, 0, (), 1.0).tasks
    assert len(tasks) == 100
    marks = [f"result-{task.id:04}-end" for task in tasks]
    output = tmp_path / "strace"
    with strace(manager, output, *WATCHED):
        watched = cluster.service()  # a connection that strace sees from its beginning
        for task, mark in zip(tasks, marks, strict=True):
            assert watched.report("i", session, [(ACK, task.id, task.run, mark.encode(), 0.1)]) == ()
    check_order(calls(output), marks)


EARLY = """
from taskq.queue.core import QueueCore
finish = QueueCore._finish
QueueCore._finish = lambda self, changes, durable: finish(self, changes, durable=False)
"""


def test_a_manager_that_answers_before_it_has_synced_is_caught(cluster: Cluster, tmp_path: Path) -> None:
    """The control: the same look at a manager with this mistake, which it is given when its Python starts."""
    (tmp_path / "sitecustomize.py").write_text(EARLY)
    places = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    manager = cluster.manager(workers=0, PYTHONPATH=places)
    marks = [f"mark-{number:04}-end" for number in range(20)]
    output = tmp_path / "strace"
    with strace(manager, output, *WATCHED):
        queue = cluster.service()
        for seq, mark in enumerate(marks, 1):
            queue.submit(1, seq, [new_task("noop", encode_arguments((mark,), {}))])
    assert list(i11_durability_order(steps(calls(output), marks)))


# -- a disk that fails

FAULTS = {
    "every sync fails": "fdatasync,fsync:error=EIO",
    "one sync fails": "fdatasync,fsync:error=EIO:when=1",
    "every write fails": "pwrite64:error=EIO",
    "no space for anything": "pwrite64:error=ENOSPC",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_write_ends_the_manager_and_the_next_one_believes_the_disk(
    cluster: Cluster, tmp_path: Path, fault: str
) -> None:
    write_module(cluster.folder)
    manager = cluster.manager(workers=0)
    pool = cluster.pool("--tasks", MODULE, workers=1, threads=1)
    client = cluster.client()
    before = [handle.id for handle in client.map("quick", range(20))]
    running = client.submit("hold", "a").id
    wait_until(lambda: any(trace.id == running for trace in traces(cluster.folder, "begin")), 15.0, "it to begin")
    waiting = client.submit("quick", 20).id
    client.close()
    wait_until(lambda: state_on_disk(cluster, running) is State.RUNNING, 15.0, "the last commit of the manager's own")

    doubtful = [(secrets.randbits(63), [new_task("quick", encode_arguments((100 + n,), {}))] * 2) for n in range(3)]
    with strace(manager, tmp_path / "strace", "-e", f"inject={FAULTS[fault]}"):
        with ThreadPoolExecutor(len(doubtful)) as callers:
            answers = list(callers.map(lambda call: attempt(cluster, *call), doubtful))
        manager.asked = True
        assert manager.popen.wait(20) == 1
    assert answers.count("unknown") >= 1 and set(answers) <= {"unknown", "too late"}, answers
    assert "the next start believes the disk" in manager.output

    (cluster.folder / "a.go").touch()  # it ends while there is no manager
    cluster.manager(workers=0)
    service = cluster.service()
    first = [service.submit(client, 1, items) for client, items in doubtful]
    assert [service.submit(client, 1, items) for client, items in doubtful] == first, "the answer changed"
    again = [id for reply in first for id in reply.ids]
    everything = [*before, running, waiting, *again]
    assert len(set(everything)) == len(everything), "an id was given twice"
    wait_until(lambda: {one.state for one in service.wait(everything, 0)} == {"completed"}, 30.0, "all tasks")
    assert {one.deaths for one in service.wait(everything, 0)} == {0}
    begun = [trace.id for trace in traces(cluster.folder, "begin")]
    assert sorted(begun) == sorted(everything), "something ran twice, or runs that nobody submitted"
    assert pool.popen.poll() is None


def state_on_disk(cluster: Cluster, id: int) -> State:
    """What a start would find now, read from a copy: a second program at the files would disturb the first."""
    copy = cluster.folder / "copy"
    copy.mkdir(exist_ok=True)
    for name in ("store.sqlite", "store.sqlite-wal"):
        shutil.copy(cluster.state / name, copy)
    with closing(sqlite3.connect(copy / "store.sqlite")) as db:
        return State(db.execute("SELECT state FROM task WHERE id = ?", (id,)).fetchone()[0])


def attempt(cluster: Cluster, client: int, items: list[NewTask]) -> str | Submitted:
    """Make one call once; gives how it ended."""
    queue = RemoteQueue(cluster.join)
    try:
        return queue.submit(client, 1, items)
    except OutcomeUnknown:
        return "unknown"
    except (StorageFull, ShuttingDown, ManagerUnavailable):  # the reserve was used, the manager ending, or at its end
        return "too late"
    finally:
        queue.close()


def test_a_disk_that_is_full_once_is_helped_by_the_reserve(cluster: Cluster, tmp_path: Path) -> None:
    manager = cluster.manager(workers=0)
    reserve = cluster.state / "store.sqlite.reserve"
    assert reserve.stat().st_size > 2**20
    before = reserve.stat().st_ino
    with strace(manager, tmp_path / "strace", "-e", "inject=pwrite64:error=ENOSPC:when=1"):
        reply = cluster.service().submit(1, 1, [new_task("noop", encode_arguments((), {}))])
    assert manager.popen.poll() is None
    wait_until(lambda: reserve.exists() and reserve.stat().st_ino != before, 10.0, "a new reserve")
    assert cluster.service().get(reply.ids)[0]["state"] == "pending"
    manager.kill()
    cluster.manager(workers=0)
    assert cluster.service().get(reply.ids)[0]["state"] == "pending"
