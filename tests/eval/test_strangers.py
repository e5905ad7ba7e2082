"""What strangers and broken peers can do to a live server: next to nothing, and never for long."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgpack
import pytest
from cluster import Cluster, wait_until
from wire_service import Served, authenticated, dial, join_of, sealed, serving_process, until_end

from taskq.errors import ManagerUnavailable
from taskq.service import PROTOCOL
from taskq.wire.client import RemoteQueue
from taskq.wire.codec import pack, unpack
from taskq.wire.frames import HEADER, MAX_FRAME, MAX_STRANGER_FRAME
from taskq.wire.handshake import MAGIC, NONCE_BYTES

ROOT = Path(__file__).resolve().parents[2]
GREETING = 4 + len(MAGIC) + 2 + NONCE_BYTES
"""Bytes: all that a stranger ever hears."""

pytestmark = pytest.mark.usefixtures("many_descriptors")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with serving_process(tmp_path / "server.log") as served, calling(served):
        yield served
        check_honest(served)


@contextmanager
def calling(served: Served) -> Iterator[RemoteQueue]:
    """A client that has connected."""
    queue = RemoteQueue(join_of(served.address))
    try:
        queue.hello()
        yield queue
    finally:
        queue.close()


def check_honest(served: Served, timeout: float = 1.0) -> float:
    """An honest client connects and is answered; gives the seconds that took."""
    start = time.monotonic()
    with calling(served):
        took = time.monotonic() - start
    assert took < timeout
    return took


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[int(len(values) * part)]


def test_slow_strangers_are_cut_off_on_time(server: Served) -> None:
    with ExitStack() as stack:
        socks = [stack.enter_context(dial(server.address)) for _ in range(50)]
        start = time.monotonic()
        message = iter(HEADER.pack(100) + bytes(100))
        left = list(socks)
        while left:
            byte = bytes([next(message)])
            for sock in left[:]:
                try:
                    sock.send(byte)
                except ConnectionError:
                    left.remove(sock)
            check_honest(server)
            assert time.monotonic() - start < 6.5
            time.sleep(0.2)
        assert time.monotonic() - start > 4.0  # an honest peer on a slow line has that long


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        HEADER.pack(99) + bytes(99),
        HEADER.pack(99) + os.urandom(99),
        HEADER.pack(MAX_STRANGER_FRAME + 1),
        HEADER.pack(2**31),
        HEADER.pack(0) * 2000,
        HEADER.pack(10) + pack((1, "hello", ())),
        os.urandom(100_000),
        b"\x80\x04\x95" * 50,
    ],
    ids=["silence", "http", "zeros", "noise", "long", "huge", "empty", "request", "flood", "pickle"],
)
def test_a_stranger_hears_magic_version_and_nonce(words: bytes, server: Served) -> None:
    with dial(server.address) as sock:
        heard = b""
        try:
            sock.sendall(words)
            heard = until_end(sock, 6.0)
        except ConnectionError:
            pytest.skip("it hung up even before that") if not words else None
    if heard:
        assert heard[: GREETING - NONCE_BYTES] == HEADER.pack(GREETING - 4) + MAGIC + PROTOCOL.to_bytes(2, "big")
        assert len(heard) == GREETING


@pytest.mark.parametrize("size", [MAX_FRAME + 1, 2**31 - 1, 2**32 - 1])
def test_an_oversized_frame_ends_the_connection_without_a_word(size: int, server: Served) -> None:
    with authenticated(server.address) as channel:
        channel._sock.sendall(HEADER.pack(size) + bytes(1000))
        assert until_end(channel._sock) == b""


def test_announced_bytes_take_no_memory_until_they_come(server: Served) -> None:
    before = server.process.memory_info().rss
    with ExitStack() as stack:
        for _ in range(50):
            channel = stack.enter_context(authenticated(server.address))
            channel._sock.sendall(HEADER.pack(MAX_FRAME) + bytes(100))
        check_honest(server)
        assert server.process.memory_info().rss < before + 20 * 2**20


@pytest.mark.parametrize("verb", ["shutdown", "create", "#GETVALUE", "__repr__", "_private", "debug_info", "decref"])
def test_what_the_stock_server_offers_is_refused(verb: str, server: Served) -> None:
    with authenticated(server.address) as channel:
        channel.send(pack((1, verb, ())))
        _, status, (code, message, _) = unpack(channel.receive(5.0))
        assert (status, code, message) == (1, "malformed", f"there is no verb {verb!r}")
        stock = ("0", verb, (), {})  # a request in the form of `multiprocessing.managers`
        channel.send(msgpack.packb(stock))
        assert unpack(channel.receive(5.0))[:2] == (0, 1)
        assert until_end(channel._sock) == b""


def test_peers_that_do_not_read_are_dropped(server: Served) -> None:
    """Ten ask for 4 MiB each, again and again, and never read: they hold one reply each, for some ten seconds."""
    base = server.process.num_threads()
    before = server.process.memory_info().rss
    request = pack((1, "get", ([-3, MAX_FRAME - 1000],)))
    with ExitStack() as stack:
        for _ in range(10):
            channel = stack.enter_context(authenticated(server.address))
            channel._sock.setblocking(False)
            channel._sock.send(b"".join(sealed(channel, request) for _ in range(20)))
        wait_until(lambda: server.process.num_threads() == base + 10)
        for _ in range(50):
            check_honest(server)
        wait_until(lambda: server.process.num_threads() <= base, timeout=40.0, what="their threads to end")
    assert server.process.memory_info().rss < before + 8 * 2**20


def test_broken_frames_by_the_thousand(server: Served) -> None:
    rng = random.Random(5)
    good = pack((1, "result", (5,)))
    for _ in range(1500):
        with dial(server.address) as sock:
            sock.sendall(HEADER.pack(rng.randrange(200)) + rng.randbytes(rng.randrange(200)))
    for _ in range(1500):
        with authenticated(server.address) as channel:
            body = bytearray(good)
            for _ in range(rng.randrange(4)):
                body[rng.randrange(len(body))] = rng.randrange(256)
            channel.send(bytes(body))
            reply = unpack(channel.receive(5.0))
            assert len(reply) == 3 and reply[1] in (0, 1)
    assert len(server.log.read_bytes()) < 20_000  # lines for a few kinds of trouble, not for each peer


def test_a_whole_manager_goes_on_working_among_strangers(cluster: Cluster) -> None:
    manager = cluster.manager()
    join = cluster.join
    address = join.addresses[0]
    took = []
    with ExitStack() as strangers:
        for _ in range(20):
            for _ in range(15):
                strangers.enter_context(dial(address)).sendall(os.urandom(50))
            with authenticated(address, join.key) as channel:
                for verb in ("shutdown", "#GETVALUE", "_commit", "close"):
                    channel.send(pack((1, verb, ())))
                    assert unpack(channel.receive(5.0))[2][0] == "malformed"
                start = time.monotonic()
                with cluster.client() as client:
                    assert client.submit("compute", operation="double", value=21).result(timeout=5) == 42
                took.append(time.monotonic() - start)
    assert manager.popen.poll() is None
    assert percentile(took, 0.9) < 0.5


# -- when the server itself has nothing left


def test_strangers_cannot_use_up_the_descriptors(tmp_path: Path) -> None:
    with serving_process(tmp_path / "server.log", "--descriptors", 64) as served, ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(dial(served.address))
        assert served.process.num_fds() < 40
        check_honest(served)


def test_known_peers_cannot_use_them_up_either(tmp_path: Path) -> None:
    with serving_process(tmp_path / "server.log", "--descriptors", 64) as served:
        with ExitStack() as stack:
            for _ in range(32):
                stack.enter_context(calling(served)).hello()
            with pytest.raises(ManagerUnavailable, match="hangs up"):
                check_honest(served)
            assert served.process.num_fds() < 44
        wait_until(lambda: served.process.num_fds() < 12)
        check_honest(served)


def test_no_free_descriptor_and_strangers_at_the_door(tmp_path: Path) -> None:
    with serving_process(tmp_path / "server.log", "--lost-descriptors", 40) as served, ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(dial(served.address))
        wait_until(lambda: served.process.num_fds() >= 40)
        check_honest(served)
        assert served.cpu_share(1.0) < 0.1


def test_no_free_descriptor_at_all(tmp_path: Path) -> None:
    with serving_process(tmp_path / "server.log", "--lost-descriptors", 40) as served:
        with ExitStack() as stack:
            while served.process.num_fds() < 40:
                stack.enter_context(authenticated(served.address))
            with dial(served.address) as waiting:
                assert served.cpu_share(2.0) < 0.1
                assert "cannot accept connections: Too many open files" in served.log.read_text(encoding="utf-8")
                stack.close()
                waiting.settimeout(2.0)
                assert len(waiting.recv(100)) == GREETING
        check_honest(served)


def test_no_free_thread(tmp_path: Path) -> None:
    with serving_process(tmp_path / "server.log", "--memory", 150 * 2**20) as served:
        with ExitStack() as stack:
            for _ in range(200):
                queue = RemoteQueue(join_of(served.address))
                stack.callback(queue.close)
                try:
                    queue.hello()
                except ManagerUnavailable:
                    break
            else:
                pytest.fail("memory was never short")
        assert "connections refused: " in served.log.read_text(encoding="utf-8")

        def served_again() -> bool:
            try:
                check_honest(served)
            except ManagerUnavailable:
                return False
            return True

        wait_until(served_again, timeout=2.0, what="the server to have threads again")


# -- the other side may be another Python


def _other_pythons() -> list[str]:
    """Interpreters of other versions that this machine has."""
    found = {shutil.which(f"python3.{minor}") for minor in range(10, 15)}
    for root in (os.environ.get("PYENV_ROOT", "~/.pyenv"), "/root/.pyenv"):
        found |= {str(path) for path in Path(root).expanduser().glob("versions/3.1[0-4].*/bin/python")}
    ask = "import sys; print(*sys.version_info[:2], sep='.')"
    here = ".".join(map(str, sys.version_info[:2]))
    versions: dict[str, str] = {}
    for path in sorted(path for path in found if path):
        done = subprocess.run([path, "-c", ask], capture_output=True, text=True, timeout=30)
        if done.returncode == 0 and done.stdout.strip() != here:
            versions[done.stdout.strip()] = path
    return list(versions.values())


PROGRAM = """
import sys
from taskq.config import Address, Join
from taskq.queue.terms import NewTask, new_task
from taskq.wire.client import RemoteQueue
queue = RemoteQueue(Join((Address.parse(sys.argv[1]),), bytes(range(32))))
assert queue.hello()["name"] == "tests"
assert queue.submit(2**62, 1, [new_task("t", bytes(300_000))] * 3).ids == (0, 1, 2)
assert len(queue.get([-3, 2_000_000])[0]["result"]) == 2_000_000
print("fine")
"""


def test_a_client_in_another_python(server: Served, tmp_path: Path) -> None:
    """msgpack's compiled part is of this Python; there its slower twin in plain Python does the same."""
    pythons = _other_pythons()
    if not pythons:
        pytest.skip("this machine has one Python only")
    (tmp_path / "msgpack").symlink_to(Path(msgpack.__file__).parent)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    for python in pythons:
        done = subprocess.run(
            [python, "-c", PROGRAM, str(server.address)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.stdout, done.returncode) == ("fine\n", 0), f"{python}: {done.stderr}"
