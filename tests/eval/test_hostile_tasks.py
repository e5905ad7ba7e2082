"""Tasks that do their worst, fourteen kinds at once among good ones: the good ones are all done, each of the others
ends as it must, and the manager does not grow.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from cluster import Cluster, wait_until

from taskq.queue.terms import NewTask, new_task
from taskq.wire.codec import encode_arguments

GROWTH = 10 * 2**20
"""Bytes by which the manager may grow."""
TASKS = '''
import ctypes, os, signal, sys, time
from taskq import task

@task(name="good")
def good(number):
    time.sleep(0.01)
    return number

@task(name="segfault", max_retries=0)
def segfault(number):
    ctypes.string_at(0)

@task(name="vanish", max_retries=0)
def vanish(number):
    os._exit(0)

@task(name="killed", max_retries=0)
def killed(number):
    """As the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)

@task(name="spin", max_retries=0, timeout=1.0)
def spin(number):
    while True:
        pass

@task(name="hold_gil", max_retries=0, timeout=1.0)
def hold_gil(number):
    ctypes.PyDLL(None).sleep(600)

@task(name="sleep_long", max_retries=0, timeout=1.0)
def sleep_long(number):
    time.sleep(3600)

@task(name="stop_itself", max_retries=0, timeout=1.0)
def stop_itself(number):
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)

@task(name="fork_bomb", max_retries=0)
def fork_bomb(number):
    children = []
    for _ in range(50):
        pid = os.fork()
        if pid == 0:
            time.sleep(0.5)
            os._exit(0)
        children.append(pid)
    return sum(os.waitpid(pid, 0)[0] == pid for pid in children)

@task(name="flood", max_retries=0)
def flood(number):
    for _ in range(200):
        print("x" * 99_999)

@task(name="close_everything", max_retries=0)
def close_everything(number):
    os.closerange(0, 200)

@task(name="no_result", max_retries=0)
def no_result(number):
    return object()

@task(name="huge_result", max_retries=0)
def huge_result(number):
    return bytes(10_000_000)

@task(name="recursion", max_retries=0)
def recursion(number):
    return recursion_(number)

def recursion_(number):
    return recursion_(number + 1)

@task(name="leave", max_retries=0)
def leave(number):
    sys.exit(3)
'''
POISONED = {"segfault", "vanish", "killed"}
ENDS = {
    **dict.fromkeys(POISONED, "poisoned"),
    **dict.fromkeys(("spin", "hold_gil", "sleep_long", "stop_itself"), "timeout"),
    **dict.fromkeys(("no_result", "huge_result", "recursion", "leave"), "error"),
}
"""The kind of the error with which a task of each type fails. The others end in some way, or complete."""
OTHERS = ("fork_bomb", "flood", "close_everything")


FINAL = ("completed", "failed", "cancelled")
AT_ONCE = 500
"""Tasks of one call."""


@pytest.mark.timeout(200)
def test_the_worst_tasks_harm_nobody_else(cluster: Cluster, record_property: Callable[[str, object], None]) -> None:
    run(cluster, record_property, rounds=1, good=400, copies=2)


@pytest.mark.full
@pytest.mark.timeout(3_600)
def test_the_worst_tasks_harm_nobody_else_for_long(
    cluster: Cluster, record_property: Callable[[str, object], None]
) -> None:
    run(cluster, record_property, rounds=20, good=1_000, copies=1)


def run(
    cluster: Cluster, record_property: Callable[[str, object], None], *, rounds: int, good: int, copies: int
) -> None:
    """In each round mix so many copies of the hostile tasks into so many good ones, and see how each of them ends."""
    (cluster.folder / "hostile.py").write_text(TASKS)
    manager = cluster.manager("--tasks", "hostile", workers=4, threads=2)
    service, began = cluster.service(), time.monotonic()
    wait_until(lambda: service.types()["ever_joined"], 20.0, "workers")
    before = psutil.Process(manager.pid).memory_info().rss
    rows: list[Any] = []
    for number in range(rounds):
        rows += ended(service, number, mix(service, good, copies))
    grown = psutil.Process(manager.pid).memory_info().rss - before
    found: dict[str, set[tuple[str, str | None, int]]] = defaultdict(set)
    for row in rows:
        if row["type"] != "good":
            found[row["type"]].add((row["state"], (row["error"] or {}).get("kind"), row["deaths"]))
    done = Counter(row["state"] for row in rows if row["type"] == "good")
    deaths = sum(row["deaths"] for row in rows)
    hostile = len(rows) - done.total()
    text = f"T8: {hostile} hostile tasks, {rounds * good:,} good ones: {dict(done)}; {deaths} deaths counted; manager "
    print(text + f"{grown / 2**20:+.1f} MiB; {time.monotonic() - began:.0f} s; {dict(found)}")
    record_property("hostile", str(found))
    assert done == {"completed": rounds * good}
    for name, kind in ENDS.items():
        assert {end[:2] for end in found[name]} == {("failed", kind)}, name
        # one death of the others may be a neighbour's doing; from then on they run alone
        assert {end[2] for end in found[name]} <= ({3} if name in POISONED else {0, 1}), name
    assert {end[:2] for end in found["fork_bomb"] | found["flood"]} == {("completed", None)}
    assert grown < GROWTH


def mix(service: Any, good: int, copies: int) -> list[NewTask]:
    """The tasks of one round, hostile ones evenly among good ones."""
    types = {info["name"]: info for info in service.types()["types"]}
    items = [
        # a neighbour that closes all descriptors leaves none to print to
        new_task(
            name, encode_arguments((number,), {}), max_retries=3 * (name == "flood"), timeout=types[name]["timeout"]
        )
        for number, name in enumerate([*ENDS, *OTHERS] * copies)
    ]
    nice = [new_task("good", encode_arguments((number,), {})) for number in range(good)]
    step = good // len(items)
    mixed = [one for nth, item in enumerate(items) for one in (item, *nice[nth * step : (nth + 1) * step])]
    return mixed + nice[len(items) * step :]


def ended(service: Any, number: int, items: list[NewTask]) -> list[Any]:
    """Submit them, wait until they are over, and give their records."""
    ids: list[int] = []
    for first in range(0, len(items), AT_ONCE):
        ids += service.submit(1, 100 * number + len(ids) // AT_ONCE + 1, items[first : first + AT_ONCE]).ids
    parts = [ids[first : first + AT_ONCE] for first in range(0, len(ids), AT_ONCE)]
    wait_until(
        lambda: all(one.state in FINAL for part in parts for one in service.wait(part, 0.0)), 120.0, "the end of all"
    )
    return [row for first in range(0, len(ids), 100) for row in service.get(ids[first : first + 100]) if row]
