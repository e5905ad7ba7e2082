"""Who is let in, and what those hear who are not: wrong keys by the thousand, recordings, relays, tampered frames.

``TRUST_SEED=N python -m pytest tests/eval/test_authentication.py`` repeats a run; ``-m full`` tries more of everything.
"""

from __future__ import annotations

import inspect
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from here import Here
from wire_service import KEY, Answers, dial, join_of, sealed, serving, serving_process, until_end

from taskq.config import ADMIN, ROLES, VERSION, Address, Join
from taskq.errors import AuthenticationFailed, ManagerUnavailable, PermissionDenied, TaskqError
from taskq.roles import accepted, allows, key_of
from taskq.service import PROTOCOL, VERBS, QueueService
from taskq.wire.client import RemoteQueue
from taskq.wire.codec import pack, unpack
from taskq.wire.frames import HEADER, Channel, ConnectionLost
from taskq.wire.handshake import MAGIC, NONCE_BYTES, ClientHandshake, Refused, ServerHandshake, SessionKeys
from taskq.wire.quiet import LINES, QUIET

SEED = int(os.environ.get("TRUST_SEED") or random.SystemRandom().randrange(10**6))
GREETING = 4 + len(MAGIC) + 2 + NONCE_BYTES
"""Bytes: all that a stranger ever hears."""
FORMER = bytes(range(32, 64))

Record = Callable[[str, object], None]


@pytest.fixture
def rng() -> random.Random:
    """Random numbers that the seed gives again."""
    print(f"TRUST_SEED={SEED}")
    return random.Random(SEED)


def proven(sock: socket.socket, key: bytes, role: str = ADMIN, protocol: int = PROTOCOL) -> tuple[bytes, bytes]:
    """What the server said, and the client's answer to it, which was sent."""
    heard = b""
    while len(heard) < GREETING:
        part = sock.recv(GREETING - len(heard))
        if not part:
            raise ConnectionError
        heard += part
    answer = ClientHandshake(key, protocol, VERSION, os.urandom(NONCE_BYTES), role).answer(heard[4:])
    sock.sendall(HEADER.pack(len(answer)) + answer)
    return heard, answer


# -- the door's decision, in process


def wrong_answers(rng: random.Random, greeting: bytes, earlier: list[bytes], last: bytes) -> Iterator[bytes]:
    """Answers to a greeting by somebody who has not the key of the role that is claimed, one of each kind."""
    role = rng.choice(ROLES)
    good = ClientHandshake(key_of(role, KEY), PROTOCOL, VERSION, rng.randbytes(32), role).answer(greeting)
    claimed = rng.choice([other for other in ROLES if other != role])
    almost = bytearray(key_of(role, KEY))
    almost[rng.randrange(32)] ^= 1 << rng.randrange(8)
    for key in (
        rng.randbytes(32),
        bytes(almost),
        b"",
        key_of(rng.choice(ROLES[1:]), key_of(rng.choice(ROLES[1:]), KEY)),
    ):
        yield ClientHandshake(key, PROTOCOL, VERSION, rng.randbytes(32), role).answer(greeting)
    yield ClientHandshake(key_of(role, KEY), PROTOCOL, VERSION, rng.randbytes(32), claimed).answer(greeting)
    changed = bytearray(good)
    changed[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
    yield bytes(changed)
    yield bytes([(good[0] + rng.randrange(1, 256)) % 256]) + good[1:]  # another role than the one that was proved
    yield good[:1] + rng.randrange(PROTOCOL).to_bytes(2, "big") + good[3:]  # an older protocol than it was
    yield good[: rng.randrange(len(good))]
    yield good + rng.randbytes(rng.randrange(1, 100))
    yield rng.randbytes(rng.randrange(200))
    yield rng.choice(earlier)  # recorded from somebody who had the key
    yield last  # the server's own proof, sent back
    yield good[:-32] + last[-32:]


def try_wrong_answers(rng: random.Random, count: int) -> int:
    """Offer so many; gives how many were accepted."""
    keys = accepted(KEY, FORMER)
    earlier: list[bytes] = []
    tried = let_in = 0
    while tried < count:
        honest = ServerHandshake(keys, PROTOCOL, VERSION, rng.randbytes(NONCE_BYTES))
        answer = ClientHandshake(KEY, PROTOCOL, VERSION, rng.randbytes(32)).answer(honest.greeting)
        earlier = [*earlier[-50:], answer]
        last = honest.finish(answer)
        greeting = ServerHandshake(keys, PROTOCOL, VERSION, rng.randbytes(NONCE_BYTES)).greeting
        for wrong in wrong_answers(rng, greeting, earlier, last):
            tried += 1
            server = ServerHandshake(keys, PROTOCOL, VERSION, greeting[-NONCE_BYTES:])
            try:
                server.finish(wrong)
            except Refused:
                assert not hasattr(server, "session")
            else:
                let_in += 1
    return let_in


@pytest.mark.parametrize("count", [10_000, pytest.param(200_000, marks=pytest.mark.full)])
def test_wrong_answers_by_the_thousand(count: int, rng: random.Random, record_property: Record) -> None:
    assert try_wrong_answers(rng, count) == 0
    record_property("T14", f"{count:,} wrong answers, accepted 0")
    print(f"T14: {count:,} wrong answers in process, accepted 0")


@pytest.mark.parametrize("role", ROLES)
def test_no_proof_of_one_side_is_one_of_the_other(role: str, rng: random.Random) -> None:
    """Reflection: the server's proof is sent back to it, in front of it what it was made over, which has the form of an
    answer; and a client's proof over the same is shown to a client. The nonces are those of the first time, so that
    nothing but the letters keeps the two sides apart."""
    key, nonce = key_of(role, KEY), rng.randbytes(NONCE_BYTES)
    honest = ServerHandshake(accepted(KEY), PROTOCOL, VERSION, nonce)
    client = ClientHandshake(key, PROTOCOL, VERSION, rng.randbytes(NONCE_BYTES), role)
    answer = client.answer(honest.greeting)
    last = honest.finish(answer)
    for sent_back in (answer + last, answer + last[-32:], answer[:-32] + last[-32:], last, last + answer):
        with pytest.raises(Refused):
            ServerHandshake(accepted(KEY), PROTOCOL, VERSION, nonce).finish(sent_back)
    other = ClientHandshake(key, PROTOCOL, VERSION, nonce, role)
    for said in (answer + last[:-32], answer, answer[:-32], last[:-32]):
        other._said = said  # whatever it could be brought to prove
        with pytest.raises(Refused):
            client.finish(last[:-32] + other.answer(honest.greeting)[-32:])
    client.finish(last)


# -- a live server


def log_lines_allowed(seconds: float) -> int:
    """How many lines about peers there may be after so many seconds."""
    return LINES * (1 + int(seconds / QUIET) + 1)


@pytest.mark.parametrize("count", [6_000, pytest.param(60_000, marks=pytest.mark.full)])
def test_a_flood_of_wrong_keys(count: int, tmp_path: Path, rng: random.Random, record_property: Record) -> None:
    """Strangers with keys of the wrong kind, four at a time, while an honest client connects again and again."""
    with serving_process(tmp_path / "server.log") as served:
        honest_client(served.address)
        before = served.process.memory_info().rss
        seeds = [rng.randrange(2**32) for _ in range(4)]
        heard: list[int] = []
        threads = [
            threading.Thread(target=flood, args=(served.address, seed, count // 4, heard, KEY)) for seed in seeds
        ]
        start = time.monotonic()
        for thread in threads:
            thread.start()
        took = []
        while any(thread.is_alive() for thread in threads):
            took.append(honest_client(served.address))
            time.sleep(0.002)
        seconds = time.monotonic() - start
        more = served.process.memory_info().rss - before
        assert len(heard) == count and set(heard) == {GREETING}
        p99 = sorted(took)[int(len(took) * 0.99)]
        assert len(took) >= 100 and p99 <= 0.25
        assert more <= 5 * 2**20
        lines = served.log.read_text(encoding="utf-8").count("\n")
        assert 0 < lines <= log_lines_allowed(seconds)
    figures = f"{count:,} wrong keys in {seconds:.1f} s, accepted 0, told each {GREETING} bytes"
    figures += f", {len(took)} honest handshakes p99 {p99 * 1000:.1f} ms, memory +{more / 2**20:.1f} MiB, {lines} lines"
    record_property("T14", figures)
    print(f"T14: {figures}")


def honest_client(address: Address) -> float:
    """Seconds until somebody with the key is connected and answered."""
    start = time.monotonic()
    queue = RemoteQueue(join_of(address))
    try:
        queue.hello()
    finally:
        queue.close()
    return time.monotonic() - start


def flood(address: Address, seed: int, count: int, heard: list[int], key: bytes) -> None:
    """Offer wrong keys over connections; note how many bytes were told each time."""
    rng = random.Random(seed)
    for _ in range(count):
        role = rng.choice(ROLES)
        wrong = rng.choice((rng.randbytes(32), key_of(rng.choice([other for other in ROLES if other != role]), key)))
        with dial(address) as sock:
            told, _ = proven(sock, wrong, role)
            heard.append(len(told) + len(until_end(sock)))


@pytest.mark.parametrize("count", [1_000, pytest.param(20_000, marks=pytest.mark.full)])
def test_recorded_handshakes_are_worth_nothing(count: int, rng: random.Random, record_property: Record) -> None:
    """All that honest clients sent is sent again, handshake and requests; and on the connection that it was meant for
    the requests are sent twice."""
    service = Answers()
    with serving(service) as server:
        recorded = []
        for number in range(count):
            with dial(server.address) as sock:
                words = honest_words(sock)
                if number % 20 == 0:
                    sock.sendall(words[-1])
                    assert until_end(sock) == b""
            recorded.append(b"".join(words))
        service.last = ()
        for told in rng.sample(recorded, count):
            with dial(server.address) as sock:
                sock.sendall(told)
                assert len(until_end(sock)) in (0, GREETING)
        assert service.last == ()
        honest_client(server.address)
    record_property("T14", f"{count:,} recorded handshakes with their requests, accepted 0")
    print(f"T14: {count:,} recorded handshakes and requests sent again, accepted 0")


def honest_words(sock: socket.socket) -> list[bytes]:
    """Shake hands and call a verb, which is answered; gives all that was sent."""
    sock.settimeout(None)
    channel = Channel(sock)
    shake = ClientHandshake(KEY, PROTOCOL, VERSION, os.urandom(NONCE_BYTES))
    answer = shake.answer(channel.receive(5.0))
    channel.send(answer)
    shake.finish(channel.receive(5.0))
    channel.seal(shake.session.of_client, shake.session.of_server)
    request = sealed(channel, pack((1, "cancel", ([7],))))
    sock.sendall(request)
    assert unpack(channel.receive(5.0))[1] == 0
    return [HEADER.pack(len(answer)) + answer, request]


def test_who_passes_a_handshake_on_can_say_nothing(record_property: Record) -> None:
    """The relay: both sides prove themselves to each other through it, and then it speaks for the client, says its
    requests once more, or answers for the server."""
    service = Answers()
    tried = 0
    with serving(service) as server:
        for role in ROLES:
            for forged in ("unsealed", "seal of zeros", "seal of the greeting"):
                with dial(server.address) as near:
                    victim = ClientHandshake(key_of(role, KEY), PROTOCOL, VERSION, os.urandom(NONCE_BYTES), role)
                    greeting = near.recv(GREETING)
                    answer = victim.answer(greeting[4:])
                    near.sendall(HEADER.pack(len(answer)) + answer)
                    last = near.recv(4096)
                    victim.finish(last[4:])  # it believes that it speaks to the manager, and it does
                    body = pack((1, "cancel", ([7],)))
                    seal = {"unsealed": b"", "seal of zeros": bytes(16)}.get(forged, greeting[-16:])
                    service.last = ()
                    near.sendall(HEADER.pack(len(body)) + seal + body + bytes(16))
                    assert until_end(near) == b"" and service.last == ()
                    tried += 1
    record_property("T14", f"{tried} relays, said 0")
    print(f"T14: {tried} relayed handshakes, requests accepted from the relay 0")


@pytest.mark.parametrize("protocol", [0, 1, PROTOCOL - 1, PROTOCOL + 1, 65535])
def test_another_protocol_is_told_of_and_not_spoken(protocol: int) -> None:
    """A client that has the key and offers another version: it gets the proof, and nothing after it."""
    service = Answers()
    with serving(service) as server, dial(server.address) as sock:
        _, answer = proven(sock, KEY, protocol=protocol)
        body = pack((1, "cancel", ([7],)))
        sock.sendall(HEADER.pack(len(body)) + body)
        told = until_end(sock)
        assert len(told) == 0 or len(told) == 4 + len(VERSION) + 32
        assert service.last == () and len(answer) < 200


# -- every verb of a real queue, with the key of every role


def test_the_whole_matrix(here: Here, record_property: Record) -> None:
    refused = passed = 0
    for role in ROLES:
        queue = RemoteQueue(Join((here.server.address,), key_of(role, here.key), role=role))
        try:
            for verb in VERBS:
                arity = len(inspect.signature(getattr(QueueService, verb)).parameters) - 1
                with pytest.raises(TaskqError) as caught:
                    queue._call(verb, *([1] * (arity + 1)))  # never the right number of arguments
                if allows(role, verb):
                    assert caught.value.code == "malformed"
                    passed += 1
                else:
                    assert isinstance(caught.value, PermissionDenied)
                    refused += 1
            for claimed in ROLES:
                if claimed != role:
                    other = RemoteQueue(Join((here.server.address,), key_of(role, here.key), role=claimed))
                    with pytest.raises(AuthenticationFailed):
                        other.hello()
                    other.close()
        finally:
            queue.close()
    assert passed + refused == len(ROLES) * len(VERBS) and refused > 40
    assert here.queue.snapshot()["totals"]["submitted"] == 0
    record_property("T14", f"{len(ROLES)} roles x {len(VERBS)} verbs")
    print(f"T14: {len(ROLES)} roles x {len(VERBS)} verbs: {passed} allowed, {refused} refused, none wrongly")


# -- frames between the two ends


def tampered(rng: random.Random, frames: list[bytes], others: list[bytes]) -> list[bytes]:
    """The frames as somebody on the way could pass them on; always something else than they were."""
    at = rng.randrange(len(frames))
    kind = rng.randrange(9)
    before, frame, after = frames[:at], frames[at], frames[at + 1 :]
    if kind == 0:  # one byte is another
        changed = bytearray(frame)
        changed[rng.randrange(len(frame))] ^= rng.randrange(1, 256)
        return [*before, bytes(changed), *after]
    if kind == 1:  # left out, with something after it
        return [*before, *after, rng.choice(others)]
    if kind == 2:  # said twice
        return [*before, frame, frame, *after]
    if kind == 3:  # another order
        to = rng.choice([index for index in range(len(frames)) if index != at])
        rest = before + after
        return [*rest[:to], frame, *rest[to:]]
    if kind == 4:  # of the other direction, or of another connection
        return [*before, rng.choice(others), *after]
    if kind == 5:  # cut short, what was cut off is gone
        return [*before, frame[: rng.randrange(1, len(frame))]]
    if kind == 6:  # cut short, with a length that fits
        size = len(frame) - 20
        shorter = rng.randrange(size)
        return [*before, HEADER.pack(shorter) + frame[4 : 20 + shorter], *after]
    if kind == 7:  # longer
        return [*before, HEADER.pack(len(frame) - 20 + 5) + frame[4:] + rng.randbytes(5), *after]
    return [*before, HEADER.pack(40) + rng.randbytes(16 + 40), *after]  # made up


def session(rng: random.Random) -> SessionKeys:
    """The keys of a connection, always of the same client to the same manager."""
    server = ServerHandshake(accepted(KEY), PROTOCOL, VERSION, rng.randbytes(NONCE_BYTES))
    client = ClientHandshake(KEY, PROTOCOL, VERSION, rng.randbytes(NONCE_BYTES))
    client.finish(server.finish(client.answer(server.greeting)))
    assert client.session == server.session
    return client.session


def received(data: bytes, sending: bytes, receiving: bytes) -> list[bytes]:
    """The bodies that the receiving end takes from these bytes, until the connection is over for it."""
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    channel.seal(sending, receiving)
    taken = []
    with ours:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        try:
            while True:
                taken.append(channel.receive(5.0))
        except ConnectionLost:
            return taken
        finally:
            channel.close()


@pytest.mark.parametrize("count", [3_000, pytest.param(100_000, marks=pytest.mark.full)])
def test_what_arrives_is_the_beginning_of_what_was_sent(
    count: int, rng: random.Random, record_property: Record
) -> None:
    """Frames that were changed on the way: up to there they arrive, and then the connection is over."""

    def sender(key: bytes, bodies: list[bytes]) -> list[bytes]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            channel = Channel(ours)
            channel.seal(key, b"-" * 32)
            return [sealed(channel, body) for body in bodies]

    for _ in range(count):
        (key, back), (other, _) = session(rng), session(rng)
        bodies = [rng.randbytes(rng.choice((1, 9, 100, 3000))) for _ in range(rng.randrange(2, 6))]
        frames = sender(key, bodies)
        foreign = [rng.randbytes(9) for _ in bodies]
        others = sender(back, foreign) + sender(other, foreign)
        taken = received(b"".join(tampered(rng, frames, others)), back, key)
        assert taken == bodies[: len(taken)]
    record_property("T14", f"{count:,} tampered connections, wrong frames taken 0")
    print(f"T14: {count:,} connections with changed, missing, repeated, moved or foreign frames, wrong ones taken 0")


# -- somebody else at the manager's address


def test_an_impostor_learns_nothing_that_it_can_use(rng: random.Random) -> None:
    """A process that took the port: it hears the client's proof and can do nothing with it, now or later."""
    with serving(Answers()) as server:
        with dial(server.address) as sock:
            greeting, answer = proven(sock, KEY)
            last = sock.recv(4096)
        heard: list[bytes] = []
        for reply in (
            lambda told: last,  # recorded from the true manager
            lambda told: told,  # the client's own words
            lambda told: HEADER.pack(37) + told[-37:],
            lambda told: HEADER.pack(37) + rng.randbytes(37),
            lambda told: HEADER.pack(37) + VERSION.encode() + bytes(32),
        ):
            with impostor(greeting, reply, heard) as address, pytest.raises(AuthenticationFailed, match="not prove"):
                RemoteQueue(join_of(address)).hello()
        for told in [*heard, HEADER.pack(len(answer)) + answer]:
            with dial(server.address) as sock:
                sock.sendall(told)
                assert len(until_end(sock)) in (0, GREETING)


@contextmanager
def impostor(greeting: bytes, reply: Callable[[bytes], bytes], heard: list[bytes]) -> Iterator[Address]:
    """Says this greeting, and ``reply`` of what it hears."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(greeting)
                heard.append(sock.recv(4096))
                sock.sendall(reply(heard[-1]))
                until_end(sock)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Address("127.0.0.1", listener.getsockname()[1])
        thread.join()


def test_a_reply_that_was_changed_is_no_reply() -> None:
    """Through a proxy that changes one byte of each reply: the client gets errors, and never a wrong value."""
    with serving(Answers()) as server:
        for at in (0, 3, 4, 19, 20, 21, 40):
            with _changing_proxy(server.address, at) as address:
                queue = RemoteQueue(join_of(address))
                with pytest.raises(ManagerUnavailable):
                    queue.result(9)
                queue.close()


@contextmanager
def _changing_proxy(target: Address, at: int) -> Iterator[Address]:
    """Passes a handshake on, then changes the byte at this place of the first reply and ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            near, _ = listener.accept()
            with near, dial(target) as far:
                near.sendall(far.recv(4096))
                far.sendall(near.recv(4096))
                near.sendall(far.recv(4096))
                far.sendall(near.recv(4096))
                reply = bytearray(far.recv(65536))
                reply[at] ^= 1
                near.sendall(bytes(reply))

        thread = threading.Thread(target=serve)
        thread.start()
        yield Address("127.0.0.1", listener.getsockname()[1])
        thread.join()
