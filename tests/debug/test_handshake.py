"""The handshake as bytes: who has the key gets in, nobody else does, and nothing can be used twice or elsewhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from taskq.config import ADMIN, ROLES
from taskq.errors import ConfigError
from taskq.roles import RoleKey, accepted, key_of
from taskq.service import PROTOCOL
from taskq.wire import handshake
from taskq.wire.codec import pack
from taskq.wire.handshake import (
    MAGIC,
    NONCE_BYTES,
    ClientHandshake,
    NotTaskq,
    Refused,
    ServerHandshake,
    check_key,
    fingerprint,
)
from taskq.wire.seal import Seal

KEY = bytes(range(32))
OTHER = bytes(range(1, 33))


def _server(key: bytes = KEY, protocol: int = 1) -> ServerHandshake:
    return ServerHandshake(accepted(key), protocol, "0.1.0", os.urandom(NONCE_BYTES))


def _client(key: bytes = KEY, protocol: int = 1, role: str = ADMIN) -> ClientHandshake:
    return ClientHandshake(key, protocol, "0.2.0rc1", os.urandom(NONCE_BYTES), role)


def test_both_sides_agree() -> None:
    server, client = _server(protocol=3), _client(protocol=2)
    client.finish(server.finish(client.answer(server.greeting)))
    assert (client.protocol, client.release) == (3, "0.1.0")
    assert (server.protocol, server.release, server.proven) == (2, "0.2.0rc1", RoleKey(ADMIN, KEY))
    assert client.session == server.session and client.session.of_client != client.session.of_server


def test_a_stranger_hears_magic_version_and_nonce_and_nothing_else() -> None:
    nonce = os.urandom(NONCE_BYTES)
    assert ServerHandshake(accepted(KEY), 258, "0.1.0", nonce).greeting == MAGIC + b"\x01\x02" + nonce


def test_the_examples_in_the_protocol_are_what_is_sent() -> None:
    server = ServerHandshake(accepted(KEY), PROTOCOL, "0.1.0", b"S" * NONCE_BYTES)
    client = ClientHandshake(KEY, PROTOCOL, "0.1.0", b"C" * NONCE_BYTES)
    answer = client.answer(server.greeting)
    sent = [server.greeting, answer, server.finish(answer)]
    text = (Path(handshake.__file__).parent / "PROTOCOL.md").read_text(encoding="utf-8")
    assert re.findall(r"^[123]  ([0-9a-f]+)$", text, re.MULTILINE) == [message.hex() for message in sent]
    body = pack((1, "hello", ()))
    frame = [len(body).to_bytes(4, "big"), Seal(server.session.of_client).next(body), body]
    found = re.findall(r"^(?:length|seal  |body  )  ([0-9a-f]+)$", text, re.MULTILINE)
    assert found == [part.hex() for part in frame]


def test_a_wrong_key_is_refused_by_either_side() -> None:
    server = _server()
    with pytest.raises(Refused, match="wrong key"):
        server.finish(_client(OTHER).answer(server.greeting))
    client = _client()
    answer = client.answer(server.greeting)
    with pytest.raises(Refused):
        impostor = _server(OTHER)
        impostor.greeting = server.greeting
        impostor.finish(answer)
    with pytest.raises(Refused):
        client.finish(b"0.1.0" + os.urandom(32))


def test_every_bit_of_the_clients_message_counts() -> None:
    server, client = _server(), _client()
    answer = client.answer(server.greeting)
    for bit in range(len(answer) * 8):
        damaged = bytearray(answer)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Refused):
            server.finish(bytes(damaged))


def test_every_bit_of_the_servers_messages_counts() -> None:
    server, client = _server(), _client()
    answer = client.answer(server.greeting)
    last = server.finish(answer)
    for bit in range(len(last) * 8):
        damaged = bytearray(last)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Refused):
            client.finish(bytes(damaged))
    for bit in range(len(MAGIC) * 8, len(server.greeting) * 8):
        damaged = bytearray(server.greeting)
        damaged[bit // 8] ^= 1 << bit % 8
        fooled = _client()
        with pytest.raises(Refused):
            server.finish(fooled.answer(bytes(damaged)))


@pytest.mark.parametrize("length", [*range(0, 110, 7), 200, 4096])
def test_answers_of_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(Refused):
        _server().finish(bytes(length))


def test_a_recorded_answer_is_of_no_use_later() -> None:
    first = _server()
    recorded = _client().answer(first.greeting)
    first.finish(recorded)
    with pytest.raises(Refused):
        _server().finish(recorded)


def test_a_proof_sent_back_is_no_proof() -> None:
    server, client = _server(), _client()
    answer = client.answer(server.greeting)
    with pytest.raises(Refused):
        client.finish(answer)
    with pytest.raises(Refused):
        client.finish(answer[-32:])
    with pytest.raises(Refused):
        _server().finish(server.finish(answer))


def test_a_role_that_does_not_exist_is_refused() -> None:
    server = _server()
    answer = bytearray(_client().answer(server.greeting))
    answer[0] = len(ROLES)
    with pytest.raises(Refused, match="unknown role"):
        server.finish(bytes(answer))


@pytest.mark.parametrize("role", ROLES)
def test_each_role_has_a_key_of_its_own(role: str) -> None:
    for claimed in ROLES:
        server = _server()
        answer = _client(key_of(role, KEY), role=claimed).answer(server.greeting)
        if claimed == role:
            server.finish(answer)
            assert server.proven == RoleKey(role, key_of(role, KEY))
        else:
            with pytest.raises(Refused, match="wrong key"):
                server.finish(answer)


def test_the_key_before_the_last_rotation_is_accepted_and_no_older_one() -> None:
    oldest, old, new = (bytes([number]) * 32 for number in range(3))
    for key, good in ((new, True), (old, True), (oldest, False)):
        for role in ROLES:
            server = ServerHandshake(accepted(new, old), 1, "0.1.0", os.urandom(NONCE_BYTES))
            answer = _client(key_of(role, key), role=role).answer(server.greeting)
            if good:
                server.finish(answer)
            else:
                with pytest.raises(Refused):
                    server.finish(answer)


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-OpenSSH_9.2", b"\0" * 40, MAGIC, MAGIC + b"\0" * 35])
def test_another_service_is_told_apart(greeting: bytes) -> None:
    with pytest.raises(NotTaskq):
        _client().answer(greeting)


def test_a_release_is_harmless_to_print() -> None:
    server = _server()
    client = ClientHandshake(KEY, 1, "1.0\x1b[2J\n", os.urandom(NONCE_BYTES))
    server.finish(client.answer(server.greeting))
    assert server.release == "1.0??2J?"


def test_short_keys_are_refused() -> None:
    for length in (0, 1, 31):
        with pytest.raises(ConfigError, match="at least 32 bytes"):
            check_key(bytes(length))
    check_key(bytes(32))


def test_fingerprints_tell_keys_apart() -> None:
    assert fingerprint(KEY) != fingerprint(OTHER)
    assert len(fingerprint(KEY)) == 4
    assert fingerprint(KEY) not in KEY.hex()
