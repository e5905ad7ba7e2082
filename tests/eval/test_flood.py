"""Large frames on thousands of connections at once: they cannot take the manager's memory, and clients get through."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psutil
import pytest
from cluster import Cluster, wait_until
from wire_service import authenticated

from taskq import Client
from taskq.config import Join
from taskq.queue.terms import new_task
from taskq.wire.client import RemoteQueue
from taskq.wire.codec import pack
from taskq.wire.frames import HEADER, MAX_FRAME, Channel
from taskq.wire.room import MAX_REQUESTS
from taskq.wire.seal import SEAL_BYTES

MIB = 2**20
BESIDE = 100
"""Tasks that a client submits beside the flood."""
PAYLOAD = 50_000
TALKERS = 8
"""Connections that send one whole large frame after the other, as fast as they can."""
MEMORY = MAX_REQUESTS + 160 * MIB
"""Bytes that the manager may take for it, its thousands of threads included."""
LARGEST_WITHIN = 20.0
"""Seconds until a call of nearly the longest frame is done once the flood is over."""
REPLAY = "replay: pytest tests/eval/test_flood.py -s"

pytestmark = [pytest.mark.speed, pytest.mark.usefixtures("many_descriptors")]


@contextmanager
def watched(process: psutil.Process) -> Iterator[dict[str, int]]:
    """The most memory that a process has meanwhile, beyond what it has now."""
    base, most, over = process.memory_info().rss, {"rss": 0}, threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            most["rss"] = max(most["rss"], process.memory_info().rss - base)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        over.set()
        watcher.join()


def stand(join: Join, stack: ExitStack, count: int) -> list[Channel]:
    """Connections each of which has sent a frame of 4 MiB, all but its last byte, and leaves it at that."""
    frame = memoryview(HEADER.pack(MAX_FRAME) + bytes(SEAL_BYTES) + bytes(MAX_FRAME - 1))
    channels = [stack.enter_context(authenticated(join.addresses[0], join.key)) for _ in range(count)]

    def send(some: list[Channel]) -> None:
        for channel in some:
            channel._sock.sendall(frame)

    threads = [threading.Thread(target=send, args=(channels[part::4],)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return channels


def talk(join: Join, over: threading.Event, answers: list[str]) -> None:
    """Send whole large frames that the manager refuses once it has read them, until it is over."""
    request = pack((1, "hello", (bytes(MAX_FRAME - 100),)))
    with authenticated(join.addresses[0], join.key) as channel:
        while not over.is_set():
            channel.send(request)
            answers.append("busy" if b"busy" in channel.receive(30.0)[:10] else "malformed")


def reset(channel: Channel) -> None:
    """End a connection in the middle of its frame."""
    channel._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    channel.close()


@pytest.mark.parametrize("count", [400, pytest.param(2_000, marks=pytest.mark.full)])
def test_a_flood_of_large_frames(cluster: Cluster, count: int, record_property: Callable[[str, object], None]) -> None:
    print(REPLAY)
    manager = cluster.manager(workers=0)
    over, answers, ids = threading.Event(), list[str](), list[int]()
    largest = [new_task("compute", bytes(MIB)) for _ in range(3)]
    queue = RemoteQueue(cluster.join)
    with watched(psutil.Process(manager.pid)) as most, ExitStack() as stack:
        channels = stand(cluster.join, stack, count)
        talkers = [threading.Thread(target=talk, args=(cluster.join, over, answers)) for _ in range(TALKERS)]
        for talker in talkers:
            talker.start()
        wait_until(lambda: "busy" in answers, what="a call to be refused")
        began = time.monotonic()
        with Client(join=cluster.join) as client:
            handles = [client.submit("noop", "x" * PAYLOAD) for _ in range(BESIDE)]
        beside = time.monotonic() - began
        waiting = threading.Thread(target=lambda: ids.extend(queue.submit(1, 1, largest).ids))
        waiting.start()
        refused = answers.count("busy")
        wait_until(lambda: answers.count("busy") >= refused + TALKERS, what="more calls to be refused")
        assert not ids, "there was room for a flood and the longest call"
        over.set()
        for talker in talkers:
            talker.join()
        for channel in channels:
            reset(channel)
        began = time.monotonic()
        waiting.join(LARGEST_WITHIN + 10.0)
        took = time.monotonic() - began
    queue.close()
    figures = (
        f"S22: {count:,} connections, each with a frame of 4 MiB under way, and {TALKERS} that sent {len(answers):,} "
        f"more, {answers.count('busy'):,} answered busy; memory +{most['rss'] / MIB:.0f} MiB; {len(handles)} tasks "
        f"submitted beside it in {beside:.1f} s; a call of 3 MiB done {took:.1f} s after the connections were reset"
    )
    print(figures)
    record_property("S22", figures)
    assert len(set(handles)) == BESIDE
    assert len(ids) == len(largest), "room was not given back"
    assert took <= LARGEST_WITHIN
    assert most["rss"] <= MEMORY
