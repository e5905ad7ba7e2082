"""A TCP proxy that treats bytes badly: it knows nothing of frames, as a cable, a switch or a firewall does not.

What it does changes while connections are open (`Cable.turn`), in both directions alike.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading

from relay import Relay

from taskq.config import Address

KINDS = ("slices", "stall", "drop", "flip", "half_close", "reset")
"""``slices``: a byte at a time. ``stall``: nothing goes on until the next turn. ``drop``: bytes get lost out of the
stream. ``flip``: one bit. ``half_close``: the end of one direction. ``reset``: RST to both sides."""
GOOD = "good"
_PIECE = 65_536
_ONE_BY_ONE = 4_000  # bytes of a piece that go one at a time


class Cable(Relay):
    """Listens on a free port and passes bytes on to ``target``, more or less."""

    def __init__(self, target: Address, seed: int) -> None:
        super().__init__(target)
        self._rng = random.Random(seed)
        self._changed = threading.Condition()
        self._kind = GOOD
        self._closed = False
        self.struck = dict.fromkeys(KINDS, 0)
        """How many pieces of data each kind has hit."""
        self.start()

    def turn(self, kind: str) -> None:
        """Treat everything so from now on."""
        with self._changed:
            self._kind = kind
            self._changed.notify_all()

    def close(self) -> None:
        """End everything."""
        self._closed = True
        self.turn("reset")
        self.end()

    def connected(self, near: socket.socket, far: socket.socket) -> None:
        """See `Relay.connected`."""
        for end in (near, far):
            end.settimeout(0.2)
        self.run(self._serve, near, far)

    def _serve(self, near: socket.socket, far: socket.socket) -> None:
        """Both directions; the ends are closed when both are over."""
        back = threading.Thread(target=self._pass_on, args=(far, near), name="cable", daemon=True)
        back.start()
        self._pass_on(near, far)
        back.join()
        near.close()
        far.close()

    def _pass_on(self, source: socket.socket, drain: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not self._closed:
                try:
                    data = source.recv(_PIECE)
                except TimeoutError:
                    if self._kind == "reset":
                        break
                    continue
                if not data or not self._treat(data, source, drain):
                    break
        for end in (source, drain):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _treat(self, data: bytes, source: socket.socket, drain: socket.socket) -> bool:
        """Pass a piece on, or not; gives whether the connection goes on."""
        kind = self._kind
        if kind != GOOD:
            self.struck[kind] += 1
        if kind == "slices":
            for byte in data[:_ONE_BY_ONE]:
                drain.sendall(bytes([byte]))
            data = data[_ONE_BY_ONE:]
        elif kind == "stall":
            with self._changed:
                self._changed.wait_for(lambda: self._kind != "stall")
        elif kind == "drop":
            start = self._rng.randrange(len(data))
            data = data[:start] + data[start + self._rng.randrange(1, 50) :]
        elif kind == "flip":
            place = self._rng.randrange(len(data))
            data = data[:place] + bytes([data[place] ^ 1 << self._rng.randrange(8)]) + data[place + 1 :]
        elif kind == "half_close":
            drain.shutdown(socket.SHUT_WR)
            return True
        elif kind == "reset":
            for end in (source, drain):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        drain.sendall(data)
        return True
