"""Slow and silent peers, all kinds at once: they hold up nobody, take next to nothing, and are soon gone."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import psutil
import pytest
from cluster import Cluster, wait_until
from honest import calling, percentile
from wire_service import authenticated, dial, sealed

from taskq.config import Join
from taskq.wire.codec import pack
from taskq.wire.frames import HEADER

SILENT, DRIPPING, UNREAD, VANISHED = 1_000, 200, 200, 50
WAVES = 3
"""Times that strangers come; those that do not read come once and stay."""
GONE_WITHIN = 6.0
"""Seconds: five for the handshake, and one."""
DRIP = 0.3
"""Seconds between two bytes of a dripping one."""
UNREAD_GONE_WITHIN = 40.0
HONEST_P99 = 0.050
CONNECT_P99 = 0.250
MEMORY = 30 * 2**20
REPLAY = "replay: pytest tests/eval/test_slow_peers.py -s"
_TCP_REPAIR = 19

pytestmark = [pytest.mark.speed, pytest.mark.usefixtures("many_descriptors")]


def vanish(sock: socket.socket) -> None:
    """Close without a word to the other side, as a machine that lost its power does.

    A socket that is closed under repair sends nothing. That takes root on Linux; elsewhere it closes as usual.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    sock.close()


def drip(socks: list[socket.socket]) -> None:
    """One byte each, again and again, until the other side has ended all of them."""
    message = HEADER.pack(100) + bytes(100)
    left, number = list(socks), 0
    while left:
        for sock in left[:]:
            try:
                sock.send(message[number : number + 1])
            except OSError:
                left.remove(sock)
        number += 1
        time.sleep(DRIP)


def hear_the_end(sock: socket.socket, deadline: float) -> None:
    """Read until the other side has ended the connection; fail if it has not by then. (`select` ends at 1,024.)"""
    try:
        while True:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            if not sock.recv(1024):
                return
    except ConnectionError:
        return
    except TimeoutError:
        pytest.fail(f"a silent stranger is still there after {GONE_WITHIN:g} s")


def wave(join: Join) -> float:
    """Silent ones, dripping ones and ones that vanish before they proved themselves; gives how long the last stayed."""
    longest = 0.0
    with ExitStack() as stack:
        dripping = [stack.enter_context(dial(join.addresses[0])) for _ in range(DRIPPING)]
        feeder = threading.Thread(target=drip, args=(dripping,))
        feeder.start()
        came = time.monotonic()
        silent = [stack.enter_context(dial(join.addresses[0])) for _ in range(SILENT)]
        for _ in range(VANISHED):
            vanish(stack.enter_context(dial(join.addresses[0])))
        latest = time.monotonic()
        for sock in silent:
            hear_the_end(sock, latest + GONE_WITHIN)
        feeder.join(max(came + GONE_WITHIN + DRIP - time.monotonic(), 0.0))
        longest = time.monotonic() - came
        assert not feeder.is_alive(), f"dripping strangers are still there after {longest:.1f} s"
    return longest


def do_not_read(join: Join, stack: ExitStack) -> None:
    """Peers that have the key, ask a lot and never take a reply; and some that vanish after their handshake."""
    request = pack((1, "snapshot", ()))
    for _ in range(UNREAD):
        channel = stack.enter_context(authenticated(join.addresses[0], join.key))
        channel._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        channel._sock.setblocking(False)
        channel._sock.send(b"".join(sealed(channel, request) for _ in range(50)))
    for _ in range(VANISHED):
        vanish(stack.enter_context(authenticated(join.addresses[0], join.key))._sock)


def watch(process: psutil.Process, over: threading.Event, most: dict[str, int]) -> None:
    """Keep the most memory and threads that a process has until it is over."""
    while not over.wait(0.1):
        most["rss"] = max(most["rss"], process.memory_info().rss)
        most["threads"] = max(most["threads"], process.num_threads())


def back(what: str, now: Callable[[], int], base: int) -> int:
    """Wait until a count is what it was, give or take two; gives the difference."""
    wait_until(lambda: abs(now() - base) <= 2, UNREAD_GONE_WITHIN, f"{what} to be {base} again")
    return now() - base


def test_slow_and_silent_peers_all_at_once(cluster: Cluster, record_property: Callable[[str, object], None]) -> None:
    print(REPLAY)
    manager = cluster.manager(workers=0)
    process, join = psutil.Process(manager.pid), cluster.join
    with calling(cluster.state / "join.json", 4, 0.02) as times, ExitStack() as stack:
        over, most = threading.Event(), {"rss": 0, "threads": 0}
        base_threads, base_descriptors, base_memory = (
            process.num_threads(),
            process.num_fds(),
            process.memory_info().rss,
        )
        watcher = threading.Thread(target=watch, args=(process, over, most))
        watcher.start()
        try:
            do_not_read(join, stack)
            stayed = max(wave(join) for _ in range(WAVES))
            threads = back("threads", process.num_threads, base_threads)
            descriptors = back("descriptors", process.num_fds, base_descriptors)
        finally:
            over.set()
            watcher.join()
    more = most["rss"] - base_memory
    figures = (
        f"T12: {WAVES} x ({SILENT:,} silent, {DRIPPING} dripping, {VANISHED} vanished), {UNREAD} that do not read, "
        f"{VANISHED} vanished after their handshake; {len(times['lease']):,} honest leases p99 "
        f"{percentile(times['lease'], 0.99) * 1e3:.1f} ms, {len(times['echo']):,} echoes p99 "
        f"{percentile(times['echo'], 0.99) * 1e3:.1f} ms, {len(times['connect']):,} new connections p99 "
        f"{percentile(times['connect'], 0.99) * 1e3:.1f} ms; strangers gone after {stayed:.1f} s; memory "
        f"{more / 2**20:+.0f} MiB; threads {threads:+d}, descriptors {descriptors:+d}"
    )
    print(figures)
    record_property("T12", figures)
    assert len(times["lease"]) > 200
    assert percentile(times["lease"], 0.99) <= HONEST_P99
    assert percentile(times["echo"], 0.99) <= HONEST_P99
    assert percentile(times["connect"], 0.99) <= CONNECT_P99
    assert more <= MEMORY
    assert most["threads"] <= base_threads + UNREAD + VANISHED + 2, "a stranger was given a thread"
