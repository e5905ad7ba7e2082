"""How both sides prove to each other that they have the key: three messages, as bytes. No socket, clock or randomness.

    server                                              client
      |  magic, protocol, nonce                            |
      | -------------------------------------------------> |
      |  role, protocol, nonce, release, proof "C"         |
      | <------------------------------------------------- |
      |  release, proof "S"                                |
      | -------------------------------------------------> |

A proof is HMAC-SHA256 under the role's key over its letter and everything that was said before it, so that a proof
cannot be used again (fresh nonces), sent back (letters), or moved to another role or version (they are in it). The
client proves itself first: a stranger hears nothing but the first message, and after a wrong proof nothing at all. The
layout of these messages does not change with the protocol's version, so that the two sides can tell each other which
they speak. Under two more letters all that was said gives the keys for the seals of the frames that follow: whoever
only passed the messages on has not got them. See ``PROTOCOL.md``.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence
from typing import NamedTuple

from taskq.config import ADMIN, ROLES
from taskq.errors import ConfigError
from taskq.roles import RoleKey

MAGIC = b"taskq\x01"
NONCE_BYTES = 32
PROOF_BYTES = 32
KEY_BYTES = 32
MAX_RELEASE = 64

_GREETING = struct.Struct(f"!{len(MAGIC)}sH{NONCE_BYTES}s")
_ANSWER = struct.Struct(f"!BH{NONCE_BYTES}s")


class Refused(Exception):
    """The other side's message is no proof; ``args[0]`` says why (for the log, not for the peer)."""


class NotTaskq(Exception):
    """The other side does not speak this handshake at all."""


class SessionKeys(NamedTuple):
    """The keys for the seals of one connection, one for each direction."""

    of_client: bytes
    of_server: bytes


def check_key(key: bytes) -> None:
    """Raise `ConfigError` for a key that could be guessed."""
    if len(key) < KEY_BYTES:
        raise ConfigError(f"a key must have at least {KEY_BYTES} bytes")


def fingerprint(key: bytes) -> str:
    """Four hex digits by which people can tell two keys apart, and which tell nothing else about them."""
    return hmac.digest(key, b"taskq fingerprint", "sha256").hex()[:4]


class ServerHandshake:
    """The server's side of one handshake. ``keys``: all that are accepted. ``nonce``: `NONCE_BYTES` random bytes, never
    used before.

    After `finish`: ``proven``, the key that the client has, its ``protocol`` and ``release``, and ``session``.
    """

    def __init__(self, keys: Sequence[RoleKey], protocol: int, release: str, nonce: bytes) -> None:
        self._keys = keys
        self._release = release.encode("ascii")
        self.greeting = _GREETING.pack(MAGIC, protocol, nonce)
        self.protocol = 0
        self.release = ""

    def finish(self, answer: bytes) -> bytes:
        """The last message, given the client's. Raises `Refused`."""
        said, proof = answer[:-PROOF_BYTES], answer[-PROOF_BYTES:]
        if not _ANSWER.size <= len(said) <= _ANSWER.size + MAX_RELEASE:
            raise Refused("no answer to the greeting")
        role, self.protocol, _ = _ANSWER.unpack_from(said)
        if role >= len(ROLES):
            raise Refused("unknown role")
        self.proven = self._prove(ROLES[role], said, proof)
        self.release = _release(said[_ANSWER.size :])
        key = self.proven.key
        last = self._release + _digest(key, b"S", self.greeting, answer, self._release)
        self.session = _session(key, self.greeting, answer, last)
        return last

    def _prove(self, role: str, said: bytes, proof: bytes) -> RoleKey:
        """The key of this role under which this is the proof. Raises `Refused`."""
        for found in self._keys:
            if found.role == role and hmac.compare_digest(proof, _digest(found.key, b"C", self.greeting, said)):
                return found
        raise Refused("wrong key")


class ClientHandshake:
    """The client's side of one handshake. After `answer`: ``protocol``; after `finish`: ``release`` of the server, and
    ``session``."""

    def __init__(self, key: bytes, protocol: int, release: str, nonce: bytes, role: str = ADMIN) -> None:
        self._key = key
        self._said = _ANSWER.pack(ROLES.index(role), protocol, nonce) + release.encode("ascii")
        self._before = b""
        self.protocol = 0
        self.release = ""

    def answer(self, greeting: bytes) -> bytes:
        """The client's message, given the server's first. Raises `NotTaskq`."""
        if len(greeting) != _GREETING.size or not greeting.startswith(MAGIC):
            raise NotTaskq
        self.protocol = _GREETING.unpack(greeting)[1]
        answer = self._said + _digest(self._key, b"C", greeting, self._said)
        self._before = greeting + answer
        return answer

    def finish(self, last: bytes) -> None:
        """Check the server's proof. Raises `Refused`."""
        said, proof = last[:-PROOF_BYTES], last[-PROOF_BYTES:]
        if not hmac.compare_digest(proof, _digest(self._key, b"S", self._before, said)):
            raise Refused("the server did not prove that it has the key")
        self.release = _release(said)
        self.session = _session(self._key, self._before, last)


def _session(key: bytes, *said: bytes) -> SessionKeys:
    return SessionKeys(_digest(key, b"c", *said), _digest(key, b"s", *said))


def _digest(key: bytes, letter: bytes, *said: bytes) -> bytes:
    return hmac.digest(key, letter + b"".join(said), "sha256")


def _release(said: bytes) -> str:
    """The release as text, harmless to print even if the peer is not."""
    text = said[:MAX_RELEASE].decode("ascii", errors="replace")
    return "".join(character if character.isalnum() or character in ".+-" else "?" for character in text)
