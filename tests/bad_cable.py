"""A TCP proxy that treats bytes badly: it knows nothing of frames, as a cable, a switch or a firewall does not.

What it does changes while connections are open (`Cable.turn`), in both directions alike.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading

from taskq.config import Address

KINDS = ("slices", "stall", "drop", "flip", "half_close", "reset")
"""``slices``: a byte at a time. ``stall``: nothing goes on until the next turn. ``drop``: bytes get lost out of the
stream. ``flip``: one bit. ``half_close``: the end of one direction. ``reset``: RST to both sides."""
GOOD = "good"
_PIECE = 65_536
_ONE_BY_ONE = 4_000  # bytes of a piece that go one at a time


class Cable:
    """Listens on a free port and passes bytes on to ``target``, more or less."""

    def __init__(self, target: Address, seed: int) -> None:
        self._target = target
        self._rng = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = Address("127.0.0.1", self._listener.getsockname()[1])
        self._changed = threading.Condition()
        self._kind = GOOD
        self._closed = False
        self.struck = dict.fromkeys(KINDS, 0)
        """How many pieces of data each kind has hit."""
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    def turn(self, kind: str) -> None:
        """Treat everything so from now on."""
        with self._changed:
            self._kind = kind
            self._changed.notify_all()

    def close(self) -> None:
        """End everything."""
        self._closed = True
        self.turn("reset")
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _run(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name="cable", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection((self._target.host, self._target.port))
            except OSError:
                near.close()
                continue
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                end.settimeout(0.2)
            self._run(self._serve, near, far)

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
