"""A queue that only answers, behind the real server: what the tests of the wire talk to, in process or as a program.

As a program, ``python wire_service.py`` prints its address and serves until its stdin ends. ``--descriptors N`` limits
its descriptors before it starts to serve; ``--lost-descriptors N`` does so afterwards, as if the rest were in use
elsewhere; ``--memory BYTES`` limits what it may map beyond what it has then.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from taskq.config import ADMIN, VERSION, Address, Join
from taskq.errors import TaskqError
from taskq.queue.terms import NewTask
from taskq.service import PROTOCOL, QueueService
from taskq.shapes import (
    BackedUp,
    Explained,
    Finished,
    Found,
    Handout,
    Hello,
    Outcome,
    PurgedQueue,
    QueueInfo,
    Reserved,
    Submitted,
)
from taskq.wire.frames import HEADER, Channel
from taskq.wire.handshake import NONCE_BYTES, ClientHandshake
from taskq.wire.server import WireServer, bound_kept_memory

KEY = bytes(range(32))
OUTCOME = Outcome(7, "failed", None, ("error", "ValueError", "no", "Traceback …"), 3, 0, "host-1/0")
HANDOUT = Handout(7, 2**40 + 1, "compute", b"\x92\x90\x80", "default", 1, None, "c1", 1_700_000_000.5)


class Answers(QueueService):
    """Answers each verb at once with something of the right shape, and remembers the last call.

    ``get``, which takes any numbers, is the tests' own: ``get([-1])`` raises `failure`, ``get([-2])`` waits for `go`,
    ``get([-3, N])`` gives N bytes.
    """

    def __init__(self) -> None:
        self.last: tuple[Any, ...] = ()
        self.failure: BaseException = TaskqError("nothing wrong")
        self.go = threading.Event()
        self.waiting = threading.Event()
        self.calls = 0

    def hello(self) -> Hello:
        self.calls += 1
        self.last = ("hello",)
        return Hello(
            name="tests",
            version=VERSION,
            store_id=5,
            epoch=2,
            durable=False,
            pid=os.getpid(),
            started_at=1.5,
            max_payload=99,
        )

    def snapshot(self) -> dict[str, Any]:
        self.last = ("snapshot",)
        return {"schema": "taskq.snapshot/1", "queues": [{"name": "default", "pending": 3}]}

    def submit(self, client: int, seq: int, items: Sequence[NewTask]) -> Submitted:
        self.last = ("submit", client, seq, items)
        return Submitted(list(range(len(items))), [0])

    def finished(self, client: int, cursor: int, timeout: float) -> Finished:
        self.last = ("finished", client, cursor, timeout)
        return Finished(cursor + 1, True, [OUTCOME])

    def wait(self, ids: Sequence[int], timeout: float) -> Sequence[Outcome]:
        self.last = ("wait", ids, timeout)
        return [OUTCOME._replace(id=number) for number in ids]

    def result(self, id: int) -> Outcome:
        self.last = ("result", id)
        return Outcome(id, "completed", b"r" * 100, None, 0, 0, None)

    def get(self, ids: Sequence[int]) -> Sequence[dict[str, Any] | None]:
        self.last = ("get", ids)
        self.calls += 1
        if ids and ids[0] == -1:
            raise self.failure
        if ids and ids[0] == -2:
            self.waiting.set()
            self.go.wait(20)
        if ids and ids[0] == -3:
            return [{"result": bytes(ids[1])}]
        return [{"id": number, "state": "pending"} for number in ids]

    def find(self, where: str, states: Sequence[str], below: int) -> Found:
        self.last = ("find", where, states, below)
        return Found([{"id": 8, "type": "compute"}], 8)

    def pause_queue(self, queue: str, by: str) -> QueueInfo:
        self.last = ("pause_queue", queue, by)
        return QueueInfo(name=queue, paused_at=1.5, paused_by=by, limit=None)

    def resume_queue(self, queue: str) -> QueueInfo:
        self.last = ("resume_queue", queue)
        return QueueInfo(name=queue, paused_at=None, paused_by=None, limit=None)

    def limit_queue(self, queue: str, running: int | None) -> QueueInfo:
        self.last = ("limit_queue", queue, running)
        return QueueInfo(name=queue, paused_at=None, paused_by=None, limit=running)

    def purge_queue(self, queue: str, below: int) -> PurgedQueue:
        self.last = ("purge_queue", queue, below)
        return PurgedQueue(4, 9, True)

    def backup(self, path: str, token: int) -> BackedUp:
        self.last = ("backup", path, token)
        return BackedUp(False, 4096, 8192)

    def explain(self, id: int) -> Explained:
        self.last = ("explain", id)
        return Explained(id=id, type="compute", queue="a", state="pending", causes=[{"code": "next", "text": "…"}])

    def cancel(self, ids: Sequence[int]) -> Sequence[str]:
        self.last = ("cancel", ids)
        return ["cancelled" for _ in ids]

    def purge(self, states: Sequence[str], older_s: float) -> int:
        self.last = ("purge", states, older_s)
        return 3

    def reserve(
        self, incarnation: str, session: int, slots: int, extra: int, fast: Sequence[str], timeout: float
    ) -> Reserved:
        self.last = ("reserve", incarnation, session, slots, extra, fast, timeout)
        self.calls += 1
        if incarnation == "waits":
            self.waiting.set()
            self.go.wait(20)
        return Reserved([HANDOUT] * slots, False)

    def report(self, incarnation: str, session: int, reports: Sequence[Any]) -> Sequence[int]:
        self.last = ("report", incarnation, session, reports)
        return [1]


@contextmanager
def serving(service: QueueService, host: str = "127.0.0.1", port: int = 0, key: bytes = KEY) -> Iterator[WireServer]:
    """A server in this process."""
    server = WireServer(service, host, port, key)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@dataclass
class Served:
    """A server in a process of its own."""

    process: psutil.Process
    address: Address
    log: Path

    def cpu_share(self, seconds: float) -> float:
        """Which part of one core it uses in the next seconds."""
        self.process.cpu_percent()
        time.sleep(seconds)
        return self.process.cpu_percent() / 100


@contextmanager
def serving_process(log: Path, *options: object) -> Iterator[Served]:
    """Start one; at the end it must still be there, and stop in order when asked to."""
    command = [sys.executable, __file__, *map(str, options)]
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True) as popen,
    ):
        assert popen.stdin is not None and popen.stdout is not None
        try:
            yield Served(psutil.Process(popen.pid), Address.parse(popen.stdout.readline()), log)
            assert popen.poll() is None, "the server has ended"
            popen.stdin.close()
            assert popen.wait(10) == 0
        finally:
            popen.kill()


def join_of(address: Address, key: bytes = KEY) -> Join:
    """What a client needs."""
    return Join((address,), key, source="join.json")


def dial(address: Address, timeout: float = 10.0) -> socket.socket:
    """A plain connection, as a stranger makes it."""
    return socket.create_connection((address.host, address.port), timeout)


@contextmanager
def authenticated(address: Address, key: bytes = KEY, role: str = ADMIN) -> Iterator[Channel]:
    """A channel after the handshake, for requests that no honest client sends."""
    sock = dial(address)
    sock.settimeout(None)
    channel = Channel(sock)
    try:
        shake = ClientHandshake(key, PROTOCOL, VERSION, os.urandom(NONCE_BYTES), role)
        channel.send(shake.answer(channel.receive(5.0)))
        shake.finish(channel.receive(5.0))
        channel.seal(shake.session.of_client, shake.session.of_server)
        yield channel
    finally:
        channel.close()


def sealed(channel: Channel, body: bytes) -> bytes:
    """The next frame of an authenticated channel, for tests that send it in their own way."""
    assert channel._send_seal is not None
    return HEADER.pack(len(body)) + channel._send_seal.next(body) + body


def until_end(sock: socket.socket, timeout: float = 10.0) -> bytes:
    """Everything that still comes, until the other side ends the connection; fails when it does not."""
    give_up = time.monotonic() + timeout
    heard = b""
    while True:
        ready, _, _ = select.select([sock], [], [], max(give_up - time.monotonic(), 0))
        assert ready, f"the connection was still open after {timeout:g} s"
        try:
            data = sock.recv(65536)
        except ConnectionError:
            return heard
        if not data:
            return heard
        heard += data


def _main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--descriptors", "--lost-descriptors", "--memory"):
        parser.add_argument(name, type=int)
    options = parser.parse_args()
    logging.basicConfig(format="%(levelname)s %(message)s")
    sys.setswitchinterval(0.0005)
    bound_kept_memory()
    if options.descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (options.descriptors, options.descriptors))
    server = WireServer(Answers(), "127.0.0.1", 0, KEY)
    server.start()
    if options.lost_descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (options.lost_descriptors, options.lost_descriptors))
    if options.memory:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + options.memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(server.address, flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    _main()
