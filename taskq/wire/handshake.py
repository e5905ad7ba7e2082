"""How both sides prove to each other that they have the key: three messages, as bytes. No socket, clock or randomness.

    server                                              client
      |  magic, protocol, nonce                            |
      | -------------------------------------------------> |
      |  role, protocol, nonce, release, proof "C"         |
      | <------------------------------------------------- |
      |  release, proof "S"                                |
      | -------------------------------------------------> |

A proof is HMAC-SHA256 under the key over its letter and everything that was said before it, so that a proof cannot be
used again (fresh nonces), sent back (letters), or moved to another role or version (they are in it). The client proves
itself first: a stranger hears nothing but the first message, and after a wrong proof nothing at all. The layout of
these messages does not change with the protocol's version, so that the two sides can tell each other which they speak.
See ``PROTOCOL.md``.
"""

from __future__ import annotations

import hmac
import struct

from taskq.errors import ConfigError

MAGIC = b"taskq\x01"
NONCE_BYTES = 32
PROOF_BYTES = 32
KEY_BYTES = 32
ROLE_ANY = 0
"""The one role there is for now: everything that the protocol offers."""
MAX_RELEASE = 64

_GREETING = struct.Struct(f"!{len(MAGIC)}sH{NONCE_BYTES}s")
_ANSWER = struct.Struct(f"!BH{NONCE_BYTES}s")


class Refused(Exception):
    """The other side's message is no proof; ``args[0]`` says why (for the log, not for the peer)."""


class NotTaskq(Exception):
    """The other side does not speak this handshake at all."""


def check_key(key: bytes) -> None:
    """Raise `ConfigError` for a key that could be guessed."""
    if len(key) < KEY_BYTES:
        raise ConfigError(f"a key must have at least {KEY_BYTES} bytes")


def fingerprint(key: bytes) -> str:
    """Four hex digits by which people can tell two keys apart, and which tell nothing else about them."""
    return hmac.digest(key, b"taskq fingerprint", "sha256").hex()[:4]


class ServerHandshake:
    """The server's side of one handshake. ``nonce``: `NONCE_BYTES` random bytes, never used before.

    After `finish`: ``role`` and ``protocol`` and ``release`` of the client.
    """

    def __init__(self, key: bytes, protocol: int, release: str, nonce: bytes) -> None:
        self._key = key
        self._release = release.encode("ascii")
        self.greeting = _GREETING.pack(MAGIC, protocol, nonce)
        self.role = ROLE_ANY
        self.protocol = 0
        self.release = ""

    def finish(self, answer: bytes) -> bytes:
        """The last message, given the client's. Raises `Refused`."""
        said, proof = answer[:-PROOF_BYTES], answer[-PROOF_BYTES:]
        if not _ANSWER.size <= len(said) <= _ANSWER.size + MAX_RELEASE:
            raise Refused("no answer to the greeting")
        if not hmac.compare_digest(proof, _proof(self._key, b"C", self.greeting, said)):
            raise Refused("wrong key")
        self.role, self.protocol, _ = _ANSWER.unpack_from(said)
        if self.role != ROLE_ANY:
            raise Refused(f"unknown role {self.role}")
        self.release = _release(said[_ANSWER.size :])
        return self._release + _proof(self._key, b"S", self.greeting, answer, self._release)


class ClientHandshake:
    """The client's side of one handshake. After `answer`: ``protocol``, after `finish`: ``release`` of the server."""

    def __init__(self, key: bytes, protocol: int, release: str, nonce: bytes, role: int = ROLE_ANY) -> None:
        self._key = key
        self._said = _ANSWER.pack(role, protocol, nonce) + release.encode("ascii")
        self._before = b""
        self.protocol = 0
        self.release = ""

    def answer(self, greeting: bytes) -> bytes:
        """The client's message, given the server's first. Raises `NotTaskq`."""
        if len(greeting) != _GREETING.size or not greeting.startswith(MAGIC):
            raise NotTaskq
        self.protocol = _GREETING.unpack(greeting)[1]
        answer = self._said + _proof(self._key, b"C", greeting, self._said)
        self._before = greeting + answer
        return answer

    def finish(self, last: bytes) -> None:
        """Check the server's proof. Raises `Refused`."""
        said, proof = last[:-PROOF_BYTES], last[-PROOF_BYTES:]
        if not hmac.compare_digest(proof, _proof(self._key, b"S", self._before, said)):
            raise Refused("the server did not prove that it has the key")
        self.release = _release(said)


def _proof(key: bytes, letter: bytes, *said: bytes) -> bytes:
    return hmac.digest(key, letter + b"".join(said), "sha256")


def _release(said: bytes) -> str:
    """The release as text, harmless to print even if the peer is not."""
    text = said[:MAX_RELEASE].decode("ascii", errors="replace")
    return "".join(character if character.isalnum() or character in ".+-" else "?" for character in text)
