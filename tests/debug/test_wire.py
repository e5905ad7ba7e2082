"""The queue over a socket: the same answers as in process, errors that say what to do, lost connections that return."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster import wait_until
from wire_service import HANDOUT, KEY, OUTCOME, Answers, authenticated, dial, join_of, sealed, serving, until_end

from taskq.config import ADMIN, VERSION, Address, Join
from taskq.errors import (
    ERRORS,
    AuthenticationFailed,
    ConfigError,
    FrameTooLarge,
    Malformed,
    ManagerUnavailable,
    NotEncodable,
    ProtocolMismatch,
    QueueFull,
    TaskNotFound,
    TaskqError,
    from_wire,
)
from taskq.queue.terms import NewTask, new_task
from taskq.roles import RoleKey
from taskq.service import PROTOCOL, VERBS
from taskq.shapes import Finished, Outcome, Reserved, Submitted
from taskq.wire import client as wire_client
from taskq.wire.client import RemoteQueue
from taskq.wire.codec import pack, unpack
from taskq.wire.frames import HEADER, MAX_FRAME
from taskq.wire.handshake import NONCE_BYTES, ServerHandshake
from taskq.wire.server import QueueManager, WireServer

POOL = {"id": "p", "name": "n", "host": "h", "pid": 1, "local": None}
CALLS: dict[str, tuple[Any, ...]] = {
    "hello": (),
    "types": (),
    "snapshot": (),
    "submit": (2**62, 3, [new_task("compute", b"\x92\x90\x80"), new_task("sleep", b"", key="k", timeout=1.5)]),
    "finished": (2**62, 4, 0.5),
    "wait": ([1, 2], 0.0),
    "result": (9,),
    "get": ([1, 2],),
    "list_tasks": (None, "compute", None, 50),
    "find": ("type=compute", ["failed"], 9),
    "pause_queue": ("a", "ann@host"),
    "resume_queue": ("a",),
    "limit_queue": ("a", 3),
    "purge_queue": ("a", 0),
    "backup": ("/there/copy.sqlite", 77),
    "explain": (9,),
    "cancel": ([1],),
    "history": (1,),
    "requeue": ([1],),
    "drop": ([1],),
    "purge": (["completed"], 3600.0),
    "beat": (POOL, [{"incarnation": "i", "pid": 2, "stopped": False, "running": [(1, 2**40, "t", 0.5)]}]),
    "child_died": ("p", "i", "signal 9", [(1, 2**40)], True, {"rss": [(0.5, 1)], "stderr": "no"}, []),
    "to_cancel": ("p",),
    "leave": ("p",),
    "attach": (
        {"incarnation": "i", "pool": POOL, "name": "n", "host": "h", "pid": 1, "threads": 1, "queues": [], "types": []},
        [(1, 2**40)],
    ),
    "reserve": ("i", 1, 2, 0, ["compute"], 0.5),
    "report": ("i", 1, [(0, 1, 2**40, b"r", 0.5)]),
    "drain": ("i", 1),
    "detach": ("i", 1),
}


@pytest.fixture
def service() -> Answers:
    return Answers()


@pytest.fixture
def server(service: Answers) -> Iterator[WireServer]:
    with serving(service) as running:
        yield running
        service.go.set()


@pytest.fixture
def queue(server: WireServer) -> Iterator[RemoteQueue]:
    remote = RemoteQueue(join_of(server.address))
    yield remote
    remote.close()


def _tuples(value: Any) -> Any:
    """``value`` with tuples for lists, as everything arrives."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


@contextmanager
def listening(serve: Callable[[socket.socket], object]) -> Iterator[Address]:
    """Something else than a manager at a port: ``serve`` is given each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                with sock:
                    serve(sock)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield Address("127.0.0.1", listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def free_port() -> Iterator[int]:
    """A port at which nothing listens, kept free of others by a socket that is bound to it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


# -- calls


def test_every_verb_has_a_call() -> None:
    assert set(CALLS) == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_a_call_means_the_same_over_the_wire(verb: str, service: Answers, queue: RemoteQueue) -> None:
    args = CALLS[verb]
    direct = getattr(service, verb)(*args)
    heard = service.last
    service.last = ()
    remote = getattr(queue, verb)(*args)
    assert _tuples(remote) == _tuples(direct)
    assert type(remote) is type(direct) or isinstance(remote, tuple)
    assert _tuples(service.last) == _tuples(heard)


def test_the_protocol_names_every_verb_with_its_arguments_and_every_code() -> None:
    text = (Path(wire_client.__file__).parent / "PROTOCOL.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \| ", text, re.MULTILINE))
    for verb in VERBS:
        assert len(rows[verb].split(" · ")) == len(CALLS[verb]) or (rows[verb], CALLS[verb]) == ("-", ()), verb
    never_sent = {"config", "store_locked", "store_damaged", "store_failed", "manager_unavailable", "store_changed"}
    never_sent |= {"authentication_failed", "protocol_mismatch", "not_encodable", "task_failed", "task_cancelled"}
    never_sent |= {"retry", "permanent", "snooze", "task_timeout"}
    assert set(re.findall(r"`(\w+)`", text)) >= set(ERRORS) - never_sent


def test_replies_and_tasks_have_their_types(service: Answers, queue: RemoteQueue) -> None:
    assert queue.submit(1, 2, [new_task("t", b"")]) == Submitted((0,), (0,))
    assert type(service.last[3][0]) is NewTask
    finished = queue.finished(1, 5, 0.0)
    assert (type(finished), finished.cursor, finished.lagged) == (Finished, 6, True)
    assert type(finished.outcomes[0]) is Outcome and finished.outcomes[0] == OUTCOME
    reserved = queue.reserve("i", 1, 2, 0, [], 0.0)
    assert type(reserved) is Reserved and list(reserved.tasks) == [HANDOUT] * 2


def test_many_threads_share_one_client(queue: RemoteQueue) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: queue.result(number).id, range(400)))
    assert answers == list(range(400))


def test_large_requests_and_replies(service: Answers, queue: RemoteQueue) -> None:
    for size in (1, 65_500, 65_530, 65_540, 300_000, MAX_FRAME - 100):
        assert queue.get([-3, size]) == ({"result": bytes(size)},)
        queue.submit(1, 1, [new_task("t", bytes(size - 50 if size > 50 else size))])
    assert len(service.last[3][0].payload) == MAX_FRAME - 150


@pytest.mark.parametrize("size", [0, 16_000, 17_000, 40_000, 70_000])
def test_no_size_of_a_call_waits_for_an_acknowledgement(size: int, queue: RemoteQueue) -> None:
    """Without TCP_NODELAY some of them take 40 to 90 ms."""
    tasks = [new_task("t", bytes(size))]

    def seconds() -> float:
        start = time.perf_counter()
        queue.submit(1, 1, tasks)
        queue.get([-3, size])
        return time.perf_counter() - start

    assert sorted(seconds() for _ in range(20))[10] < 0.02


def test_both_ends_notice_a_peer_that_vanished(server: WireServer, queue: RemoteQueue) -> None:
    queue.hello()
    (there,) = server._server._connections
    assert queue._channel is not None
    for channel in (there, queue._channel):
        sock = channel._sock
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if sys.platform == "linux":
            names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            values = [sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]
            assert values == [5, 2, 3, 10_000]


def test_too_large_a_request_or_reply_is_an_error_and_the_connection_goes_on(
    service: Answers, queue: RemoteQueue
) -> None:
    queue.hello()
    with pytest.raises(FrameTooLarge, match="larger than the 4,194,304"):
        queue.submit(1, 1, [new_task("t", bytes(MAX_FRAME))])
    with pytest.raises(FrameTooLarge, match="reply to get has"):
        queue.get([-3, MAX_FRAME])
    assert queue.hello()["name"] == "tests"


def test_what_cannot_be_sent_is_refused_here(queue: RemoteQueue) -> None:
    with pytest.raises(NotEncodable):
        queue.get([object()])  # type: ignore[list-item]
    assert queue.hello()["name"] == "tests"


# -- errors of the verbs


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_every_error_crosses_the_wire(code: str, service: Answers, queue: RemoteQueue) -> None:
    service.failure = from_wire(code, "what happened", {"hint": "what next", "count": 3, "list": ["a"]})
    with pytest.raises(TaskqError) as caught:
        queue.get([-1])
    assert type(caught.value) is ERRORS[code]
    assert (caught.value.message, caught.value.hint) == ("what happened", "what next")
    assert caught.value.details == {"hint": "what next", "count": 3, "list": ("a",)}


def test_an_unexpected_error_is_logged_there_and_named_here(
    service: Answers, server: WireServer, queue: RemoteQueue, caplog: pytest.LogCaptureFixture
) -> None:
    service.failure = ZeroDivisionError("secret detail")
    for _ in range(3):
        with pytest.raises(TaskqError) as caught:
            queue.get([-1])
    assert type(caught.value) is TaskqError and caught.value.code == "error"
    assert "ZeroDivisionError" in caught.value.message and "secret" not in caught.value.message
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]  # not one for each call
    assert "get failed unexpectedly" in record.getMessage()
    assert "wire_service.py" in record.taskq_fields["error"]  # type: ignore[attr-defined]
    assert queue.hello()["name"] == "tests"


def test_an_error_that_cannot_travel_goes_without_its_details(service: Answers, queue: RemoteQueue) -> None:
    service.failure = QueueFull("full", details={"what": object()})
    with pytest.raises(QueueFull, match=r"^full$"):
        queue.get([-1])
    service.failure = QueueFull("x" * MAX_FRAME)
    with pytest.raises(QueueFull, match=r"^x{1000}$"):
        queue.get([-1])


# -- requests that no honest client sends

PRIVATE = [
    "shutdown",
    "create",
    "#GETVALUE",
    "__repr__",
    "__str__",
    "__init__",
    "__class__",
    "debug_info",
    "incref",
    "",
]


@pytest.mark.parametrize("verb", [*PRIVATE, "accept_connection", "dummy", "last", "go", "_is_protocol"])
def test_only_verbs_can_be_called(verb: str, server: WireServer) -> None:
    with authenticated(server.address) as channel:
        channel.send(pack((1, verb, ())))
        assert unpack(channel.receive(5.0))[:2] == (1, 1)
        channel.send(pack((2, "hello", ())))
        assert unpack(channel.receive(5.0))[:2] == (2, 0)


@pytest.mark.parametrize(
    ("verb", "args"),
    [("hello", (1,)), ("get", ()), ("get", ((1,), 2)), ("submit", (1, 2, 3)), ("submit", (1, 2, (("t",), ("t", b""))))],
)
def test_wrong_arguments_are_refused(verb: str, args: tuple[Any, ...], server: WireServer) -> None:
    with authenticated(server.address) as channel:
        channel.send(pack((1, verb, args)))
        reply_id, status, (code, _, _) = unpack(channel.receive(5.0))
        assert (reply_id, status, code) == (1, 1, Malformed.code)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        pack(None),
        pack((1, "hello")),
        pack(("1", "hello", ())),
        pack((True, "hello", ())),
        pack((0, "hello", ())),
        pack((1, "hello", {})),
        pack({"id": 1}),
        b"\xd4\x01x",
    ],
)
def test_what_is_no_request_is_answered_once_and_ends_the_connection(body: bytes, server: WireServer) -> None:
    with authenticated(server.address) as channel:
        channel.send(body)
        reply_id, status, (code, message, _) = unpack(channel.receive(5.0))
        assert (reply_id, status, code) == (0, 1, Malformed.code)
        assert "Traceback" not in message
        assert until_end(channel._sock) == b""


def test_requests_may_come_in_pieces_or_together(server: WireServer) -> None:
    with authenticated(server.address) as channel:
        request = pack((1, "result", (5,)))
        for byte in sealed(channel, request):
            channel._sock.send(bytes([byte]))
        assert unpack(channel.receive(5.0))[2][0] == 5
        several = [pack((number, "result", (number,))) for number in range(1, 60)]
        data = b"".join(sealed(channel, body) for body in several)
        channel._sock.sendall(data[:-3])
        for number in range(1, 59):
            assert unpack(channel.receive(5.0))[2][0] == number
        channel._sock.sendall(data[-3:])
        assert unpack(channel.receive(5.0))[2][0] == 59


# -- connections that end


def test_an_interrupted_call_leaves_no_reply_behind(service: Answers, queue: RemoteQueue) -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    queue.hello()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Interrupted):
            queue.get([-2])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    service.go.set()
    assert queue.result(77).id == 77


def test_a_lost_call_is_an_error_is_not_repeated_and_the_next_one_connects(service: Answers) -> None:
    with serving(service) as first:
        queue = RemoteQueue(join_of(first.address))
        queue.hello()
    with serving(service, port=first.address.port):
        service.calls = 0
        with pytest.raises(ManagerUnavailable, match=r"^lost the manager at 127\.0\.0\.1:\d+ \(.*\)$"):
            queue.reserve("i", 1, 1, 0, [], 0.0)
        assert service.calls == 0
        assert len(queue.reserve("i", 1, 1, 0, [], 0.0).tasks) == 1
        queue.close()


def test_close_wakes_a_call_under_way(service: Answers, queue: RemoteQueue) -> None:
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(queue.reserve, "waits", 1, 1, 0, [], 20.0)
        assert service.waiting.wait(5)
        start = time.monotonic()
        queue.close()
        with pytest.raises(ManagerUnavailable, match="was closed"):
            call.result(5)
        assert time.monotonic() - start < 1
    with pytest.raises(ManagerUnavailable, match="was closed"):
        queue.hello()
    queue.close()


@contextmanager
def _silent() -> Iterator[Address]:
    """Accepts, and says nothing."""
    with listening(lambda sock: until_end(sock, 20)) as address:
        yield address


@contextmanager
def _dropping() -> Iterator[Address]:
    """Does not even accept, because its backlog is full."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = Address("127.0.0.1", full.getsockname()[1])
        with dial(address):
            yield address


@pytest.mark.parametrize("host", [_silent, _dropping])
def test_close_wakes_a_call_that_is_still_connecting(host: Callable[[], Any]) -> None:
    with host() as address:
        queue = RemoteQueue(join_of(address), connect_timeout=15.0)
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(queue.hello)
            wait_until(lambda: queue._dialer._sock is not None)
            time.sleep(0.05)  # let it begin to wait
            start = time.monotonic()
            queue.close()
            with pytest.raises(ManagerUnavailable, match="was closed"):
                call.result(5)
            assert time.monotonic() - start < 1


def test_a_forked_process_has_a_connection_of_its_own(server: WireServer) -> None:
    program = (
        "import os, sys\n"
        "from taskq.config import Address, Join\n"
        "from taskq.wire.client import RemoteQueue\n"
        "queue = RemoteQueue(Join((Address.parse(sys.argv[1]),), bytes(range(32))))\n"
        "queue.hello()\n"
        "child = os.fork()\n"
        "for number in range(300):\n"
        "    wanted = number if child else -number - 10\n"
        "    assert queue.result(wanted).id == wanted\n"
        "if child: assert os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", program, str(server.address)], check=True, timeout=30)


# -- what errors of the connection say


def test_nothing_listens() -> None:
    with free_port() as port, pytest.raises(ManagerUnavailable) as caught:
        RemoteQueue(join_of(Address("127.0.0.1", port))).hello()
    assert caught.value.message == f"no manager at 127.0.0.1:{port} (connection refused)"
    assert caught.value.hint == (
        'start one with "taskq-manager", or point elsewhere with --host and --port (TASKQ_HOST, TASKQ_PORT)'
    )


def test_a_connection_to_itself_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who tries a port again and again at which nobody listens gets that very port for its own end some day."""

    class Unlucky(socket.socket):
        def connect(self, address: Any) -> None:
            self.bind(address)
            super().connect(address)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = Address(*taken.getsockname())
    monkeypatch.setattr(socket, "socket", Unlucky)
    with pytest.raises(ManagerUnavailable, match="connection refused"):
        RemoteQueue(join_of(address), connect_timeout=1.0).hello()


def test_a_peer_that_hangs_up_at_once_has_hung_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first look at the connection."""

    class Late(socket.socket):
        def connect(self, address: Any) -> None:
            super().connect(address)
            wait_until(self.is_reset)

        def is_reset(self) -> bool:
            try:
                return not self.getpeername()
            except OSError:
                return True

    def reset(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with listening(reset) as address:
        monkeypatch.setattr(socket, "socket", Late)
        with pytest.raises(ManagerUnavailable, match="hangs up"):
            RemoteQueue(join_of(address), connect_timeout=1.0).hello()
        monkeypatch.undo()


@pytest.mark.parametrize("host", [_silent, _dropping])
def test_a_host_that_does_not_answer(host: Callable[[], Any]) -> None:
    with host() as address, pytest.raises(ManagerUnavailable) as caught:
        RemoteQueue(join_of(address), connect_timeout=0.2).hello()
    assert caught.value.message == f"{address} did not answer within 0.2 s"
    assert caught.value.hint == "is the port open, or used by another service?"


@pytest.mark.parametrize(
    "greeting", [b"SSH-2.0-OpenSSH_9.2p1\r\n", b"220 mail ESMTP\r\n", b"\0\0\0\x05hello", b"\0\0\x20\0" + b"x" * 100]
)
def test_not_a_manager(greeting: bytes) -> None:
    def serve(sock: socket.socket) -> None:
        sock.sendall(greeting)
        until_end(sock)

    with listening(serve) as address, pytest.raises(ManagerUnavailable) as caught:
        RemoteQueue(join_of(address)).hello()
    assert caught.value.message == f"something listens at {address} but it is not a taskq manager"


def test_a_service_that_hangs_up() -> None:
    with listening(lambda sock: None) as address, pytest.raises(ManagerUnavailable, match="hangs up"):
        RemoteQueue(join_of(address)).hello()


def test_a_wrong_key(server: WireServer, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(AuthenticationFailed) as caught:
        RemoteQueue(join_of(server.address, bytes(32))).hello()
    found = caught.value.message
    assert found.startswith(f"the manager at {server.address} rejected the key from join.json (fingerprint ")
    assert "another state folder" in caught.value.hint
    not_loopback_by_name = Address("0.0.0.0", server.address.port)
    with pytest.raises(AuthenticationFailed) as caught:
        RemoteQueue(join_of(not_loopback_by_name, bytes(32))).hello()
    assert caught.value.hint == "copy its join file: ssh 0.0.0.0 taskq-manager --print-join"
    assert "connections refused: wrong key (from 127.0.0.1)" in caplog.text


@contextmanager
def _other_manager(key: bytes, protocol: int) -> Iterator[Address]:
    """A manager that shakes hands with another key or protocol."""

    def serve(sock: socket.socket) -> None:
        shake = ServerHandshake([RoleKey(ADMIN, KEY)], protocol, "0.4.0", os.urandom(NONCE_BYTES))
        sock.sendall(HEADER.pack(len(shake.greeting)) + shake.greeting)
        answer = sock.recv(4096)[4:]
        last = shake.finish(answer)
        if key != KEY:
            last = last[:-32] + os.urandom(32)
        sock.sendall(HEADER.pack(len(last)) + last)
        until_end(sock)

    with listening(serve) as address:
        yield address


@pytest.mark.parametrize(
    ("protocol", "hint"), [(PROTOCOL + 1, "upgrade this side"), (PROTOCOL - 1, "upgrade the manager")]
)
def test_another_protocol(protocol: int, hint: str) -> None:
    with _other_manager(KEY, protocol) as address, pytest.raises(ProtocolMismatch) as caught:
        RemoteQueue(join_of(address)).hello()
    assert caught.value.message == (
        f"manager speaks protocol {protocol} (taskq 0.4.0), this side {PROTOCOL} ({VERSION})"
    )
    assert caught.value.hint == hint


def test_an_impostor() -> None:
    with _other_manager(bytes(32), PROTOCOL) as address, pytest.raises(AuthenticationFailed, match="could not prove"):
        RemoteQueue(join_of(address)).hello()


def test_an_unknown_host() -> None:
    with pytest.raises(ManagerUnavailable, match=r"^cannot find the host of nowhere\.invalid:8275 \("):
        RemoteQueue(join_of(Address("nowhere.invalid", 8275))).hello()


def test_addresses_are_tried_in_order(server: WireServer) -> None:
    with free_port() as port:
        dead = Address("127.0.0.1", port)
        queue = RemoteQueue(Join((dead, server.address), KEY))
        assert queue.hello()["name"] == "tests"
        queue.close()
        with pytest.raises(ManagerUnavailable) as caught:
            RemoteQueue(Join((dead, Address("nowhere.invalid", 1)), KEY)).hello()
        assert str(dead) in caught.value.message and "nowhere.invalid:1" in caught.value.message
        with pytest.raises(AuthenticationFailed):
            RemoteQueue(Join((dead, server.address), bytes(32))).hello()


# -- the server's own life


def test_a_port_in_use(server: WireServer, service: Answers) -> None:
    with pytest.raises(ConfigError, match=rf"^{server.address} is in use$"):
        WireServer(service, "127.0.0.1", server.address.port, KEY)


def test_an_address_of_another_machine(service: Answers) -> None:
    with pytest.raises(ConfigError, match=r"^cannot listen on 192\.0\.2\.1:0: cannot assign requested address$"):
        WireServer(service, "192.0.2.1", 0, KEY)


def test_a_short_key_is_refused(service: Answers) -> None:
    with pytest.raises(ConfigError, match="32 bytes"):
        WireServer(service, "127.0.0.1", 0, b"k" * 31)


def test_ipv6(service: Answers) -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serving(service, "::1") as server:
        assert str(server.address).startswith("[::1]:")
        queue = RemoteQueue(join_of(server.address))
        assert queue.hello()["name"] == "tests"
        queue.close()


def test_the_stock_ways_in_are_closed() -> None:
    manager = QueueManager(("127.0.0.1", 0), KEY)
    with pytest.raises(TypeError):
        manager.start()
    with pytest.raises(TypeError):
        manager.connect()


def test_a_server_that_never_started_can_be_stopped(service: Answers) -> None:
    server = WireServer(service, "127.0.0.1", 0, KEY)
    server.stop()
    with serving(service, port=server.address.port):
        pass


def test_stop_lets_replies_under_way_out(service: Answers) -> None:
    with serving(service) as server:
        queue = RemoteQueue(join_of(server.address))
        with ThreadPoolExecutor(2) as pool:
            call = pool.submit(queue.get, [-2])
            assert service.waiting.wait(5)
            stopping = pool.submit(server.stop)
            time.sleep(0.1)
            assert not call.done() and not stopping.done()
            service.go.set()
            assert call.result(5) == ({"id": -2, "state": "pending"},)
            stopping.result(5)
        queue.close()


def test_a_closed_listener_keeps_its_connections(server: WireServer, queue: RemoteQueue) -> None:
    queue.hello()
    server.close_listener()
    server.close_listener()

    def refused() -> bool:
        try:
            dial(server.address).close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:  # it was in the queue of the listener when that was closed
            return False
        return False

    wait_until(refused)
    assert queue.result(3).id == 3


def test_a_waiting_connection_holds_no_memory(server: WireServer) -> None:
    with authenticated(server.address) as channel:
        channel.send(pack((1, "hello", ())))
        channel.receive(5.0)
        tracemalloc.start()
        try:
            channel.send(pack((2, "submit", (1, 1, [new_task("t", bytes(3_000_000))]))))
            channel.receive(5.0)
            channel.send(pack((3, "get", ([-3, 3_000_000],))))
            channel.receive(5.0)
            wait_until(lambda: tracemalloc.get_traced_memory()[0] < 4_000_000)  # one payload is in ``service.last``
            channel.send(pack((4, "hello", ())))
            channel.receive(5.0)
            wait_until(lambda: tracemalloc.get_traced_memory()[0] < 500_000)
        finally:
            tracemalloc.stop()


def test_the_client_is_cheap_to_import() -> None:
    program = "import sys, taskq.wire.client; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=30)
    modules = set(done.stdout.split())
    assert not modules & {
        "multiprocessing.managers",
        "multiprocessing.connection",
        "asyncio",
        "click",
        "rich",
        "sqlite3",
    }


def test_task_not_found_is_what_callers_catch(service: Answers, queue: RemoteQueue) -> None:
    service.failure = TaskNotFound("no task 7")
    with pytest.raises(TaskNotFound, match=r"^no task 7$"):
        queue.get([-1])
