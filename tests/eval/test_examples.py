"""Every example runs as its text says, against a real manager."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run(cluster: Cluster, folder: str, *words: str, stdin: str = "") -> str:
    """Run a command in an example's folder; gives what it printed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        words,
        cwd=EXAMPLES / folder,
        env=cluster.environment(PATH=path),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.iterdir()} == {
        "own_tasks",
        "bulk_submit",
        "dead_letters",
        "second_machine",
        "python_client",
        "retries",
        "timeouts_and_cancel",
        "uniqueness",
    }


def test_own_tasks(cluster: Cluster) -> None:
    cluster.manager("--tasks", "tasks", PYTHONPATH=os.pathsep.join([str(EXAMPLES / "own_tasks"), str(ROOT)]))
    assert run(cluster, "own_tasks", sys.executable, "main.py").splitlines() == [
        "here and now: {'plain': 1, 'needs': 1, 'queue': 1}",
        "by a worker:  {'function': 1, 'worker': 1}",
        "page 0, got at attempt 2",
        "page 1, got at attempt 2",
        "page 2, got at attempt 2",
    ]


def test_bulk_submit(cluster: Cluster) -> None:
    cluster.manager()
    printed = run(cluster, "bulk_submit", sys.executable, "bulk.py", "2000").splitlines()
    assert printed == [
        "2,000 tasks accepted, from 1 to 2000",
        *(f"{number:,} finished" for number in (500, 1000, 1500, 2000)),
        "all results are right",
    ]
    lines = run(cluster, "bulk_submit", sys.executable, "bulk.py", "300", "--file")
    results = run(cluster, "bulk_submit", "taskq-submit", "--payload-file", "-", "--wait", "60", stdin=lines)
    assert results.split() == [str(2 * number) for number in range(300)]


def test_python_client(cluster: Cluster) -> None:
    cluster.manager(threads=4)
    printed = run(cluster, "python_client", sys.executable, "client.py")
    assert printed.splitlines() == [
        "result: 15511210043330985984000000",
        "again, by id: 15511210043330985984000000 completed",
        "not yet: TimeoutError",
        "later: 0.5",
        "failed: RuntimeError no such customer",
        "cancelled: True cancelled",
        "a cancelled task has no result",
        "the same key, the same task: True",
        "as they finish: [0.1, 0.2, 0.3]",
        'refused: no worker offers "comptue"; did you mean "compute"?',
    ]


def test_second_machine(cluster: Cluster) -> None:
    printed = run(cluster, "second_machine", "./try_here.sh")
    assert "\n2432902008176640000\n" in printed
    assert "node2/0" in printed


def test_uniqueness(cluster: Cluster) -> None:
    cluster.manager("--tasks", "reports", PYTHONPATH=os.pathsep.join([str(EXAMPLES / "uniqueness"), str(ROOT)]))
    assert run(cluster, "uniqueness", sys.executable, "main.py").splitlines() == [
        "the same task: True True - another user's: False",
        "monthly report of user 1 - monthly report of user 2",
        "now that it is done: False",
        "within a minute, though it is done: refused because of the same task: True",
        "the same key: True",
        "for something else: key_conflict",
    ]


def test_timeouts_and_cancel(cluster: Cluster) -> None:
    path = os.pathsep.join([str(EXAMPLES / "timeouts_and_cancel"), str(ROOT)])
    cluster.manager("--tasks", "jobs", "--timeout", "10m", "--queue-timeout", "reports=2s", PYTHONPATH=path)
    assert run(cluster, "timeouts_and_cancel", sys.executable, "main.py").splitlines() == [
        "caught in time: True",
        "gone within 7 s: True; timeout: ran longer than its timeout of 1 s and did not stop; its process was killed",
        "it hung in: ask_somebody_who_never_answers",
        "cancelled at once: False False",
        "the polite one: stopped before page 100000",
        "the deaf one: cancelled",
    ]


def test_retries(cluster: Cluster) -> None:
    cluster.manager("--tasks", "calls", PYTHONPATH=os.pathsep.join([str(EXAMPLES / "retries"), str(ROOT)]))
    assert run(cluster, "retries", sys.executable, "main.py").splitlines() == [
        "by its own policy: 7 answered at attempt 3",
        "never after this error: Refused after 1 attempt(s): not you",
        "by another policy: ConnectionError after 2 attempt(s): the line is busy",
        "for good: Permanent after 1 attempt(s): there is nothing to order",
        "when it says itself: bread after 2 attempt(s)",
        "snoozing: ready at attempt 1",
    ]


def test_dead_letters(cluster: Cluster) -> None:
    cluster.manager("--tasks", "payments", PYTHONPATH=os.pathsep.join([str(EXAMPLES / "dead_letters"), str(ROOT)]))
    assert run(cluster, "dead_letters", sys.executable, "main.py").splitlines() == [
        "Permanent - nothing to pay",
        "ConnectionError - the bank is closed",
        "ConnectionError - the bank is closed",
        "begin anew: 2",
        "paid 100",
        "paid 200",
        "attempts: ['failed', 'completed']",
        "dropped: 1",
    ]
