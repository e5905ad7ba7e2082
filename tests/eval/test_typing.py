"""What type checkers make of a user's code: right calls pass ``mypy --strict``, each wrong one is an error."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CALLS = """\
from collections.abc import Iterator

from taskq import Client, Retry, TaskHandle, TaskType, current_task, named, task


@task
def add(x: int, y: int = 1) -> int:
    return x + y


@task(max_retries=5, timeout=60, retry_on=(OSError,))
def fetch(url: str, *, tries: int = 1) -> bytes:
    current_task().progress(0.5, "half way")
    return b""


@task(name="double")
def double(x: float) -> float:
    return 2 * x


@double.check
def check_double(x: float) -> None: ...


@task(retries=3)  # error
def wrong(x: int) -> int:
    return x


def plain(x: int) -> int:
    return x


total: int = add(2, 3)
text: str = add(2, 3)  # error
add("2")  # error

with Client() as q:
    h: TaskHandle[int] = q.submit(add, 2, 3)
    n: int = h.result(timeout=10)
    h.add_done_callback(lambda handle: print(handle.result() + 1))
    h.add_done_callback(lambda: None)  # error
    over, left = q.wait([h], timeout=1, return_when="FIRST_COMPLETED")
    s: str = q.submit(add, 2, 3).result()  # error
    q.submit(add, "1")  # error
    q.submit(add)  # error
    q.submit(add, 1, z=2)  # error
    q.submit(fetch, "https://…", tries=2)
    q.submit(fetch, "https://…", 2)  # error
    b: bytes = q.submit(fetch.options(priority=9, delay=30, key="u1"), "https://…").result()
    q.submit(fetch.options(retry=Retry(max_retries=2, never_on=(KeyError, "Refused")), result_ttl=60), "https://…")
    q.submit(fetch.options(retry=3), "https://…")  # error
    q.submit(fetch.options(priority=9), 7)  # error
    q.submit(fetch.options(prio=9), "https://…")  # error
    q.submit(plain, 1)  # error
    q.submit("compute", operation="double", value=21)
    q.submit(named("compute", queue="fast"), operation="double", value=21)
    many: list[TaskHandle[int]] = q.map(add, range(10))
    q.map(add, range(10), [1, 2])
    q.map(plain, [1])  # error
    q.map(add.options(queue="x"), [1])
    q.map("compute", ["double"], [1])
    with q.pipeline() as p:
        piped: TaskHandle[int] = p.submit(add, 2, y=3)
        p.submit(fetch.options(priority=9), "https://…", tries=2)
        p.submit("compute", operation="double", value=21)
        p.submit(named("compute", queue="fast"), operation="double", value=21)
        p.submit(add, "1")  # error
        p.submit(add)  # error
        p.submit(fetch.options(priority=9), 7)  # error
        p.submit(plain, 1)  # error
        lines: TaskHandle[str] = p.submit(add, 1)  # error
    done: Iterator[TaskHandle[int]] = q.as_completed(many, timeout=5)
    for one in q.as_completed(many):
        i: int = one.result()
        bad: str = one.result()  # error
    e: Exception | None = h.exception()
    state: str = h.state()
    ok: bool = h.cancel() or h.done()
    kind: TaskType[[float], float] = double
"""


def test_mypy_finds_exactly_the_wrong_calls(tmp_path: Path) -> None:
    file = tmp_path / "calls.py"
    file.write_text(CALLS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", str(file)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    found = {int(line) for line in re.findall(r"calls\.py:(\d+): error:", done.stdout)}
    wanted = {number for number, line in enumerate(CALLS.splitlines(), 1) if line.endswith("# error")}
    assert found == wanted, done.stdout + done.stderr


def test_at_most_25_public_names_and_each_is_there() -> None:
    import taskq

    assert len(taskq.__all__) <= 25
    assert taskq.__all__ == sorted(taskq.__all__, key=str)
    for name in taskq.__all__:
        assert getattr(taskq, name).__module__.startswith("taskq."), name
    assert not hasattr(taskq, "nothing_like_this")


def test_import_loads_nothing_heavy() -> None:
    code = "import sys, taskq; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert [name for name in loaded if name.split(".")[0] in {"taskq", "msgpack", "click", "rich"}] == ["taskq"]


def test_submit_command_loads_no_library_that_it_does_not_need() -> None:
    code = "import sys, taskq.cli.submit, taskq.client, taskq.wire.client; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"rich", "psutil", "sqlite3", "multiprocessing", "difflib", "asyncio"}
