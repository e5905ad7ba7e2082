"""The room for the frames of all connections: who finds none is told so, asks again, and nothing was done meanwhile."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from cluster import wait_until
from wire_service import KEY, Answers, authenticated, join_of, sealed, serving

from taskq.errors import Busy, TaskqError
from taskq.queue.terms import new_task
from taskq.wire import room
from taskq.wire.client import RemoteQueue
from taskq.wire.codec import pack, unpack
from taskq.wire.frames import HEADER, Channel
from taskq.wire.server import WireServer

MOST = 400 * 1024
LARGE = 300 * 1024
TASKS = [new_task("compute", bytes(LARGE))]


@pytest.fixture(autouse=True)
def _little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_REQUESTS", MOST)
    monkeypatch.setattr(room, "MAX_REPLIES", MOST)


@pytest.fixture
def service() -> Answers:
    return Answers()


@pytest.fixture
def server(service: Answers) -> Iterator[WireServer]:
    with serving(service) as server:
        yield server


def taken(server: WireServer) -> int:
    """Bytes of requests that have their room."""
    return server._server._room.requests


def begin(channel: Channel, request: bytes) -> bytes:
    """Send all but the end of a frame; gives that."""
    frame = sealed(channel, request)
    channel._sock.sendall(frame[:-9])
    return frame[-9:]


def reset(channel: Channel) -> None:
    channel._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    channel.close()


def ask(channel: Channel, *request: Any) -> Any:
    channel.send(pack(request))
    return unpack(channel.receive(10.0))


def test_a_call_that_finds_no_room_is_refused_and_the_connection_goes_on(server: WireServer, service: Answers) -> None:
    with authenticated(server.address) as first, authenticated(server.address) as second:
        rest = begin(first, pack((1, "get", (list(range(60_000, 69_000)), bytes(LARGE)))))
        wait_until(lambda: taken(server) > LARGE, what="the first frame to have its room")
        number, status, (code, message, details) = ask(second, 70_000, "get", (bytes(LARGE),))
        assert (number, status, code) == (70_000, 1, "busy")
        assert "nothing of this call was done" in message and details["retry_after_s"] == room.RETRY_AFTER
        assert ask(second, 70_001, "get", ((5,),))[:2] == (70_001, 0)
        first._sock.sendall(rest)
        assert unpack(first.receive(10.0))[2][0] == "malformed"  # two arguments are too many
        assert ask(second, 70_002, "get", (bytes(LARGE),))[2][0] == "bad_arguments"
        assert service.last == ("get", (5,))
    assert taken(server) == 0


def test_small_calls_need_no_room(server: WireServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_REQUESTS", 0)
    with authenticated(server.address) as channel:
        assert ask(channel, 1, "get", (tuple(range(4_000)),))[:2] == (1, 0)


@pytest.mark.parametrize("how", ["answered", "reset", "wrong seal", "refused and reset"])
def test_the_room_is_given_back(server: WireServer, how: str) -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(authenticated(server.address)) for _ in range(2))
        rest = begin(first, pack((1, "get", (bytes(LARGE),))))
        wait_until(lambda: taken(server) > LARGE, what="the frame to have its room")
        if how == "answered":
            first._sock.sendall(rest)
            first.receive(10.0)
        elif how == "wrong seal":
            first._sock.sendall(bytes(len(rest)))
        elif how == "refused and reset":
            second._sock.sendall(HEADER.pack(LARGE) + bytes(99))
            reset(second)
        if how.endswith("reset"):
            reset(first)
        wait_until(lambda: taken(server) == 0, what="the room to be given back")


def test_a_client_asks_again_until_there_is_room(server: WireServer, service: Answers) -> None:
    queue, found = RemoteQueue(join_of(server.address)), []
    with authenticated(server.address) as other:
        begin(other, pack((1, "get", (bytes(LARGE),))))
        wait_until(lambda: taken(server) > LARGE, what="the other frame to have its room")
        thread = threading.Thread(target=lambda: found.append(queue.submit(1, 2, TASKS)))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive() and service.last == ()
        reset(other)
        thread.join(10.0)
    queue.close()
    assert len(found) == 1 and service.last[:3] == ("submit", 1, 2)


def test_a_client_gives_up_when_the_time_of_a_call_is_over(server: WireServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_REQUESTS", LARGE)
    queue = RemoteQueue(join_of(server.address), call_timeout=0.5)
    with pytest.raises(Busy, match="as much as it can hold"):
        queue.submit(1, 2, TASKS)
    queue.close()


def test_closing_ends_the_wait_for_room(server: WireServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_REQUESTS", LARGE)
    queue, errors = RemoteQueue(join_of(server.address)), []

    def submit() -> None:
        try:
            queue.submit(1, 2, TASKS)
        except TaskqError as error:
            errors.append(error)

    thread = threading.Thread(target=submit)
    thread.start()
    thread.join(0.1)
    queue.close()
    thread.join(2.0)
    assert not thread.is_alive() and len(errors) == 1


def test_who_does_not_take_a_reply_goes_when_others_need_the_room(
    server: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 3 * 1024 * 1024
    monkeypatch.setattr(room, "MAX_REPLIES", 2 * size + 1000)
    waiting = server._server._room._replies
    server._server.listener.socket.setsockopt(
        socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024
    )  # the system takes in less
    with ExitStack() as stack:
        peers = [stack.enter_context(authenticated(server.address, KEY)) for _ in range(3)]
        for number, peer in enumerate(peers[:2], 1):
            peer.send(pack((1, "get", ((-3, size),))))
            wait_until(lambda number=number: len(waiting) == number, what="its reply to wait")
        longest = next(iter(waiting))
        peers[2].send(pack((1, "get", ((-3, size),))))
        wait_until(lambda: longest not in waiting and len(waiting) == 2, what="the third reply to take its place")
        for peer in peers[1:]:
            assert len(unpack(peer.receive(10.0))[2][0]["result"]) == size
        with pytest.raises(EOFError):
            while True:
                peers[0].receive(10.0)
    wait_until(lambda: not waiting and server._server._room._waiting == 0, what="the room to be given back")
