"""A TCP proxy between clients and a manager that understands frames, so that a test can lose exactly the one it means.

A *trap* waits for one request or reply; the first that matches is swallowed and its connection cut on both sides, as
when a cable is pulled at that very moment. All else passes as it is.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from relay import Relay

from taskq.config import Address
from taskq.wire.codec import unpack
from taskq.wire.seal import SEAL_BYTES

GREETINGS = {"request": 1, "reply": 2}
"""How many frames each side sends before requests and replies begin."""


@dataclass
class Trap:
    """Waits for a frame of this ``verb``; ``when`` looks at its value: the arguments, or what the reply says."""

    side: Literal["request", "reply"]
    verb: str
    when: Callable[[Any], bool]
    sprung: threading.Event = field(default_factory=threading.Event)
    caught: Any = None

    def wait(self, timeout: float = 20.0) -> Any:
        """Wait until a frame was swallowed and its connection cut; gives its value."""
        assert self.sprung.wait(timeout), f"no {self.side} of {self.verb} came by"
        return self.caught


class Proxy(Relay):
    """Listens on a free port and passes everything on to ``target``."""

    def __init__(self, target: Address) -> None:
        super().__init__(target)
        self._lock = threading.Lock()
        self._traps: list[Trap] = []
        self._connections: set[_Connection] = set()
        self._refusing = False
        self.start()

    def lose_reply(self, verb: str, when: Callable[[Any], bool] = lambda value: True) -> Trap:
        """Swallow the next reply to ``verb`` that matches: the manager has done it, nobody hears of it."""
        return self._set(Trap("reply", verb, when))

    def lose_request(self, verb: str, when: Callable[[Any], bool] = lambda value: True) -> Trap:
        """Swallow the next request of ``verb`` that matches: the manager never hears of it."""
        return self._set(Trap("request", verb, when))

    def unanswered(self, verb: str) -> int:
        """How many requests of ``verb`` have passed and have no reply yet."""
        with self._lock:
            return sum(list(connection.verbs.values()).count(verb) for connection in self._connections)

    def cut(self) -> None:
        """Cut every connection and refuse new ones until `mend`."""
        with self._lock:
            self._refusing = True
            connections = list(self._connections)
        for connection in connections:
            connection.cut()

    def mend(self) -> None:
        """Let connections through again."""
        self._refusing = False

    def close(self) -> None:
        """End everything."""
        self.cut()
        self.end()

    def _set(self, trap: Trap) -> Trap:
        with self._lock:
            self._traps.append(trap)
        return trap

    def connected(self, near: socket.socket, far: socket.socket) -> None:
        """See `Relay.connected`."""
        connection = _Connection(near, far)
        with self._lock:
            self._connections.add(connection)
            refused = self._refusing
        if refused:
            connection.cut()
        self.run(self._serve, connection)

    def _serve(self, connection: _Connection) -> None:
        """Both directions of one connection: requests in this thread, replies in one of their own."""
        replies = threading.Thread(target=self._pass_on, args=(connection, "reply"), name="proxy", daemon=True)
        replies.start()
        self._pass_on(connection, "request")
        replies.join()
        with self._lock:
            self._connections.discard(connection)
        connection.close()

    def _pass_on(self, connection: _Connection, side: Literal["request", "reply"]) -> None:
        source, drain = connection.ends(side)
        number = 0
        with contextlib.suppress(OSError, EOFError):
            while True:
                header = _read(source, 4 if number < GREETINGS[side] else 4 + SEAL_BYTES)
                body = _read(source, struct.unpack_from("!I", header)[0])
                number += 1
                if number > GREETINGS[side] and self._is_trapped(connection, side, body):
                    break
                drain.sendall(header + body)
        connection.cut()

    def _is_trapped(self, connection: _Connection, side: str, body: bytes) -> bool:
        """Whether a trap takes this frame; the connection is cut before its owner can notice."""
        number, first, second = unpack(body)
        if side == "request":
            connection.verbs[number] = verb = first
        else:
            verb = connection.verbs.pop(number)
        with self._lock:
            trap = next((t for t in self._traps if (t.side, t.verb) == (side, verb) and t.when(second)), None)
            if trap is None:
                return False
            self._traps.remove(trap)
        connection.cut()
        trap.caught = second
        trap.sprung.set()
        return True


class _Connection:
    """One connection of a client (near) and its continuation to the manager (far)."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self._near = near
        self._far = far
        self.verbs: dict[int, str] = {}

    def ends(self, side: str) -> tuple[socket.socket, socket.socket]:
        """(where to read, where to write) for requests or replies."""
        return (self._near, self._far) if side == "request" else (self._far, self._near)

    def cut(self) -> None:
        """Cut both ends, from any thread."""
        for end in (self._near, self._far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptors back."""
        self._near.close()
        self._far.close()


def _read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data
