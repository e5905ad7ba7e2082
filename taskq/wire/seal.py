"""The seal of a frame: 16 bytes that only the two ends of this connection can make, and only for this frame. PURE.

Each direction has a key of its own, made of the handshake (`taskq.wire.handshake`), and counts its frames. A seal is
BLAKE2b, keyed, over the number of the frame and its body. A frame that was changed, left out, said twice, moved, sent
back or taken from another connection therefore has the wrong seal, and the connection ends.
"""

from __future__ import annotations

from hashlib import blake2b

SEAL_BYTES = 16


class Seal:
    """The seals of one direction, one after the other; sender and receiver have each their own."""

    __slots__ = ("_count", "_keyed")

    def __init__(self, key: bytes) -> None:
        self._keyed = blake2b(key=key, digest_size=SEAL_BYTES)
        self._count = 0

    def next(self, body: bytes) -> bytes:
        """The seal of the next frame.

        >>> one, other = Seal(b"k" * 32), Seal(b"k" * 32)
        >>> one.next(b"hello") == other.next(b"hello"), one.next(b"hello") == other.next(b"HELLO")
        (True, False)
        """
        seal = self.begin()
        seal.update(body)
        return seal.digest()

    def begin(self) -> blake2b:
        """The seal of the next frame without its body, which is to be added in pieces."""
        seal = self._keyed.copy()  # a third cheaper than to begin with the key each time
        seal.update(self._count.to_bytes(8, "big"))
        self._count += 1
        return seal
