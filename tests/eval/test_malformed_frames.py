"""Frames that are none: millions in process, and thousands at a live manager, before and after authentication."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

import malformed
import psutil
import pytest
from cluster import Cluster, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_service import authenticated, dial

from taskq.config import Address
from taskq.errors import Malformed
from taskq.wire.codec import unpack
from taskq.wire.frames import HEADER, Channel, ConnectionLost

SEED = int(os.environ.get("TASKQ_TEST_SEED", "") or random.SystemRandom().randrange(2**31))


def _in_process(seconds: float, record_property: Callable[[str, object], None]) -> int:
    commands = [[sys.executable, malformed.__file__, str(seed), str(seconds)] for seed in (SEED, SEED + 1)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate()[0] for process in running]
    assert all(process.returncode == 0 for process in running), f"seed {SEED}: see what was written above"
    found = sum((Counter(json.loads(words)) for words in said), Counter[str]())
    text = ", ".join(f"{count:,} {name}" for name, count in found.items())
    print(f"T15: seed {SEED}: {text}, 0 errors but those that peers are told of")
    for name, count in found.items():
        record_property(name, count)
    return found["inputs"]


def test_malformed_frames_in_process(record_property: Callable[[str, object], None]) -> None:
    assert _in_process(20.0, record_property) > 100_000


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_malformed_frames_in_process_for_long(record_property: Callable[[str, object], None]) -> None:
    assert _in_process(600.0, record_property) > 5_000_000


def test_the_same_seed_makes_the_same_inputs() -> None:
    assert malformed.run(5, 0, count=2_000) == malformed.run(5, 0, count=2_000)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_malformed(data: bytes) -> None:
    try:
        unpack(data)
    except Malformed:
        return


def test_malformed_frames_at_a_live_manager(cluster: Cluster, record_property: Callable[[str, object], None]) -> None:
    """Half of the time strangers send noise, half of the time peers with a key send broken requests."""
    manager = cluster.manager()
    address, key = cluster.join.addresses[0], cluster.join.key
    done, sent = threading.Event(), Counter[str]()
    took: list[float] = []

    def honest() -> None:
        with cluster.client() as client:
            while not done.is_set():
                start = time.monotonic()
                assert client.submit("compute", operation="double", value=21).result(timeout=20) == 42
                took.append(time.monotonic() - start)

    threads = psutil.Process(manager.pid).num_threads() + 4  # those of the honest client's connections
    traffic = threading.Thread(target=honest)
    traffic.start()
    rng = random.Random(SEED)
    give_up = time.monotonic() + 12.0
    try:
        while time.monotonic() < give_up:
            for _ in range(20):
                sent["before"] += _as_a_stranger(rng, address)
            with authenticated(address, key) as channel:
                sent["after"] += _as_a_peer(rng, channel)
    finally:
        done.set()
        traffic.join()
    assert manager.popen.poll() is None
    assert manager.output.count("peer_refused") < 50  # a few kinds of trouble, one line in ten seconds each
    trouble = [line[:3000] for line in manager.output.splitlines() if "internal_error" in line]
    assert not trouble, f"seed {SEED}: {trouble[0]}"
    assert len(took) > 20
    total = sent["before"] + sent["after"]
    print(f"T16: seed {SEED}: {total:,} frames, {len(took):,} honest tasks meanwhile, the slowest {max(took):.2f} s")
    record_property("frames", total)
    assert total > 2_000
    wait_until(lambda: psutil.Process(manager.pid).num_threads() <= threads, what="the threads of broken peers to end")


def _as_a_stranger(rng: random.Random, address: Address) -> int:
    with dial(address) as sock:
        try:
            sock.sendall(HEADER.pack(rng.randrange(200)) + rng.randbytes(rng.randrange(200)))
        except ConnectionError:
            return 1  # it was refused before that
    return 1


def _as_a_peer(rng: random.Random, channel: Channel) -> int:
    """Send broken requests until the manager hangs up; gives their number."""
    for number in range(1, 500):
        data = malformed.mutated(rng, rng.choice(malformed.HONEST[:6]))
        try:
            channel.send(data)
            reply = unpack(channel.receive(25.0))
        except ConnectionLost:
            return number
        assert len(reply) == 3 and reply[1] in (0, 1)
        if reply[0] == 0:
            return number
    return 500
