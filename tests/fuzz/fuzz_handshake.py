"""Fuzz target: the handshake. The first byte says who is spoken to, and whether the speaker has the key of a role."""

from __future__ import annotations

import hmac

import fuzzing

with fuzzing.watched():
    from taskq.config import ROLES
    from taskq.roles import RoleKey, key_of
    from taskq.wire.handshake import MAX_RELEASE, ClientHandshake, NotTaskq, Refused, ServerHandshake

ADMIN_KEY = bytes(range(32))
KEYS = [RoleKey(role, key_of(role, ADMIN_KEY)) for role in ROLES]
PROTOCOL, RELEASE, NONCE = 3, "1.2.3", bytes(32)


def one_input(data: bytes) -> None:
    """Without a key nobody comes in; with one, whatever is signed is taken or refused, and is harmless to print."""
    way, said = data[:1], data[1:]
    if way == b"c":
        _client(said)
    elif way in (b"0", b"1", b"2", b"3"):
        _signed(KEYS[int(way)], said)
    else:
        try:
            _server().finish(said)
        except Refused:
            return
        raise AssertionError("a proof without the key")


def _server() -> ServerHandshake:
    return ServerHandshake(KEYS, PROTOCOL, RELEASE, NONCE)


def _signed(key: RoleKey, said: bytes) -> None:
    server = _server()
    proof = hmac.digest(key.key, b"C" + server.greeting + said, "sha256")
    try:
        server.finish(said + proof)
    except Refused:
        return
    assert server.proven == key and ROLES[said[0]] == key.role, "another role than that of the key"
    assert len(server.release) <= MAX_RELEASE and server.release.isprintable()
    assert server.session.of_client != server.session.of_server


def _client(said: bytes) -> None:
    client = ClientHandshake(ADMIN_KEY, PROTOCOL, RELEASE, NONCE)
    size = len(_server().greeting)
    try:
        client.answer(said[:size])
        client.finish(said[size:])
    except (NotTaskq, Refused):
        return
    raise AssertionError("a server without the key")


if __name__ == "__main__":
    fuzzing.main(one_input)
