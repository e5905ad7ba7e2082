"""What is done after a failed attempt, through real processes: by type, option, file and command, over restarts."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from cluster import Cluster, wait_until

from taskq import Retry, named

TASKS = """
import os
import time
from pathlib import Path

from taskq import Permanent, Retry, Snooze, current_task, task

HERE = Path(__file__).parent


def note(name):
    with (HERE / name).open("a") as file:
        file.write(f"{time.time()}\\n")


@task(name="stubborn", retry=Retry(max_retries=3, backoff=0.5, factor=3.0, jitter=False))
def stubborn(name, good_from):
    note(name)
    if current_task().attempt < good_from:
        raise OSError("not yet")
    return current_task().attempt


@task(name="picky", retry=Retry(backoff=0.05, retry_on=(LookupError,), never_on=(KeyError,)))
def picky(error):
    raise {"key": KeyError, "index": IndexError, "value": ValueError}[error]("no")


@task(name="hopeless", max_retries=5)
def hopeless():
    raise Permanent("for good")


@task(name="sleepy", max_retries=0)
def sleepy(name):
    note(name)
    if len((HERE / name).read_text().splitlines()) == 1:
        raise Snooze(1.5)
    return current_task().attempt


@task(name="impatient", retry=Retry(backoff=3600.0))
def impatient():
    if current_task().attempt == 1:
        raise Retry("at once", delay=0.0)
    return current_task().attempt
"""


def write_tasks(cluster: Cluster) -> None:
    (cluster.folder / "stubborn.py").write_text(TASKS)


def times(path: Path) -> list[float]:
    """When the task that notes them here began its attempts."""
    return [float(line) for line in path.read_text().splitlines()] if path.exists() else []


def shown(cluster: Cluster, id: int) -> dict[str, Any]:
    """What ``task show`` says."""
    done = cluster.run("monitor", "task", "show", id, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_pauses_are_those_of_the_policy_whatever_becomes_of_the_manager(cluster: Cluster) -> None:
    write_tasks(cluster)
    manager = cluster.manager("--tasks", "stubborn")
    handle = cluster.client().submit("stubborn", name="times", good_from=4)
    path = cluster.folder / "times"
    wait_until(lambda: handle.state() == "scheduled" and len(times(path)) == 2, what="the second pause")
    manager.kill()
    cluster.manager("--tasks", "stubborn")
    assert cluster.client().handle(handle.id).result(timeout=30) == 4
    began = times(path)
    pauses = [after - before for before, after in pairwise(began)]
    assert [pause >= least for pause, least in zip(pauses, (0.5, 1.5, 4.5), strict=True)] == [True] * 3, pauses
    assert pauses[2] < 4.5 + 3, pauses
    wait_until(lambda: len(cluster.worker_processes()) == 2, what="the end of the first manager's workers")
    record = shown(cluster, handle.id)
    assert (record["state"], record["failures"]) == ("completed", 3)
    assert record["retry"] == {
        **{"max_retries": 3, "backoff": 0.5, "factor": 3.0, "max_delay": 3600.0, "jitter": False},
        **{"retry_on": None, "never_on": None},
    }


def test_a_policy_is_the_same_from_python_from_a_file_and_on_the_command_line(cluster: Cluster) -> None:
    write_tasks(cluster)
    manager = cluster.manager("--tasks", "stubborn", workers=0)
    client = cluster.client()
    retry = Retry(max_retries=2, backoff=0.05, max_delay=60.0)
    value = [client.submit(named("picky", retry=retry), error="value").id]  # the type's: never tried again
    options = named("picky", retry=Retry(max_retries=2, backoff=0.05, retry_on=(ValueError,)))
    value.append(client.submit(options, error="value").id)
    entries = [
        {"payload": {"type": "picky", "error": "index"}, "retry": "2:50ms:1m"},
        {"payload": {"type": "picky", "error": "index"}, "retry": {"max_retries": 2, "never_on": ["LookupError"]}},
        {"payload": {"type": "picky", "error": "key"}, "retry": {"max_retries": 1, "backoff": "50ms", "never_on": []}},
    ]
    done = cluster.run("submit", "--allow-unknown", "--payload-file", "-", stdin=json.dumps(entries))
    assert done.returncode == 0, done.stderr
    from_file = [int(line) for line in done.stdout.split()]
    from_command = cluster.submit({"type": "picky", "error": "index"}, "--retry", "2:50ms:1m", "--allow-unknown")
    manager.kill()
    cluster.manager("--tasks", "stubborn")
    ids = [*value, *from_file, *from_command]
    other = cluster.client()
    assert not other.wait([other.handle(id) for id in ids], timeout=30).not_done
    records = {id: shown(cluster, id) for id in ids}
    assert {record["state"] for record in records.values()} == {"failed"}
    assert [record["failures"] for record in records.values()] == [1, 3, 3, 1, 2, 3]
    assert records[from_file[0]]["retry"] == records[from_command[0]]["retry"] == records[value[0]]["retry"]
    of_the_code = [records[value[0]]["retry"][name] for name in ("retry_on", "never_on")]
    assert of_the_code == [["builtins.LookupError"], ["builtins.KeyError"]]
    assert records[value[1]]["retry"]["retry_on"] == ["builtins.ValueError"]
    assert records[from_file[1]]["retry"]["never_on"] == ["LookupError"]
    people = cluster.run("monitor", "task", "show", from_file[1]).stdout
    assert "up to 2, 1.0s after the first failure, x2 after each further one" in people
    assert "; never LookupError" in people


def test_what_a_task_says_itself_holds(cluster: Cluster) -> None:
    write_tasks(cluster)
    manager = cluster.manager("--tasks", "stubborn")
    client = cluster.client()
    hopeless, impatient = client.submit("hopeless"), client.submit("impatient")
    sleepy = client.submit("sleepy", name="naps")
    assert impatient.result(timeout=30) == 2, "its own delay, and not the hour of its policy"
    error = hopeless.exception(timeout=30)
    assert error is not None and (error.details["type"], error.details["failures"]) == ("Permanent", 1)
    wait_until(lambda: sleepy.state() == "scheduled", what="the nap")
    manager.kill()
    cluster.manager("--tasks", "stubborn")
    assert cluster.client().handle(sleepy.id).result(timeout=30) == 1, "a nap uses no attempt"
    first, second = times(cluster.folder / "naps")
    assert second - first >= 1.5
    wait_until(lambda: len(cluster.worker_processes()) == 2, what="the end of the first manager's workers")
    assert shown(cluster, sleepy.id)["failures"] == 0


def test_a_bad_policy_is_refused_before_anything_is_submitted(cluster: Cluster) -> None:
    cluster.manager(workers=0)
    done = cluster.run("submit", "compute", "operation=double", "value=1", "--retry", "five")
    assert done.returncode == 2 and "retries:backoff:max_delay" in done.stderr
    entry = {"payload": {"type": "compute", "operation": "double", "value": 1}, "retry": {"factor": 0}}
    done = cluster.run("submit", "--payload-file", "-", stdin=json.dumps([entry]))
    assert done.returncode == 2 and "entry 1: factor must be a number from 1 to 100" in done.stderr
    assert cluster.snapshot()["totals"]["submitted"] == 0
