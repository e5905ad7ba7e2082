"""An honest program beside whatever else a test does to a manager: it calls at an even pace and takes the time of it.

``python honest.py JOIN_FILE CONNECTIONS PAUSE`` says "ready" when each connection has made its first call, calls on
until its stdin ends, and prints the seconds of every call: of ``hello``, by all connections; of ``reserve`` with a task
that waits, by the first one; and of a new connection with its ``hello``, by the second. A process of its own, so that
its times are not those of the test.
"""

from __future__ import annotations

import json
import random
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskq.config import Join, read_join
from taskq.queue.terms import new_task
from taskq.shapes import ACK, WorkerInfo
from taskq.wire.client import RemoteQueue
from taskq.wire.codec import encode

Times = dict[str, list[float]]
"""Call -> seconds of each."""


def percentile(values: list[float], part: float) -> float:
    """The value that ``part`` of them do not pass."""
    return sorted(values)[int(len(values) * part)]


@contextmanager
def calling(join_file: Path, connections: int, pause: float) -> Iterator[Times]:
    """An honest program for as long as the block runs; its times are there afterwards.

    ``pause``: seconds between two calls of a connection, on average.
    """
    found: Times = {}
    command = [sys.executable, __file__, str(join_file), str(connections), str(pause)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        try:
            assert program.stdout.readline() == "ready\n"
            yield found
            said, _ = program.communicate(timeout=30.0)
            assert program.returncode == 0, "a call of the honest program failed"
            found.update(json.loads(said))
        finally:
            program.kill()


class _Leases:
    """A worker with one slot: submits a task, reserves it and completes it."""

    def __init__(self, queue: RemoteQueue) -> None:
        self._queue = queue
        self._client, self._seq = secrets.randbits(60), 0
        self._incarnation = secrets.token_hex(8)
        pool = {"id": secrets.token_hex(8), "name": "honest", "host": "localhost", "pid": 1, "local": None}
        info = WorkerInfo(
            incarnation=self._incarnation,
            pool=pool,  # type: ignore[typeddict-item]  # its text is shorter than the class's
            name="honest/0",
            host="localhost",
            pid=1,
            threads=1,
            queues=(),
            queue_order="",
            types=[{"name": "honest"}],
        )
        self._session = queue.attach(info, ())["session"]

    def take(self) -> float:
        """Seconds that a `reserve` took while a task was waiting."""
        self._seq += 1
        self._queue.submit(self._client, self._seq, [new_task("honest", encode(((), {})))])
        began = time.perf_counter()
        got = self._queue.reserve(self._incarnation, self._session, 1, 0, (), 10.0)
        took = time.perf_counter() - began
        task = got.tasks[0]
        self._queue.report(self._incarnation, self._session, [(ACK, task.id, task.run, encode(None), 0.001)])
        return took


def _connect(join: Join) -> float:
    """Seconds until a new connection has made its first call."""
    began = time.perf_counter()
    queue = RemoteQueue(join)
    queue.hello()
    took = time.perf_counter() - began
    queue.close()
    return took


def _call(join: Join, number: int, pause: float, met: threading.Barrier, over: threading.Event, times: Times) -> None:
    queue = RemoteQueue(join)
    queue.hello()
    leases = _Leases(queue) if number == 0 else None
    met.wait()
    while not over.wait(random.uniform(0.5, 1.5) * pause):
        began = time.perf_counter()
        queue.hello()
        times["echo"].append(time.perf_counter() - began)
        if leases is not None:
            times["lease"].append(leases.take())
        if number == 1:
            times["connect"].append(_connect(join))
    queue.close()


def _main(join_file: str, connections: int, pause: float) -> int:
    sys.setswitchinterval(0.0005)
    times: Times = {"echo": [], "lease": [], "connect": []}
    met, over = threading.Barrier(connections + 1), threading.Event()
    failed: list[object] = []
    threading.excepthook = lambda raised: (failed.append(raised), met.abort(), print(raised, file=sys.stderr))[0]
    arguments = (read_join(Path(join_file)), pause, met, over, times)
    threads = [
        threading.Thread(target=_call, args=(arguments[0], number, *arguments[1:])) for number in range(connections)
    ]
    for thread in threads:
        thread.start()
    met.wait(20.0)
    print("ready", flush=True)
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    print(json.dumps(times))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
