"""The door: accepts connections and lets in who has the key.

Theory of operation. One thread holds the listening socket and every connection that has not proved itself yet, in one
`select`. A stranger therefore costs a descriptor and nothing more, can hold up nobody, and is shut out when the
handshake's deadline has passed, whatever it sends. Strangers are kept in the order of their coming: at the cap the
oldest goes, so that silent ones cannot keep an honest one out. Only whoever has proved to have the key gets a thread.

The loop survives everything: no free descriptor (the oldest stranger gives up its own; if there is none, the loop looks
away from the listener for a moment instead of spinning), no free thread, no memory.
"""

from __future__ import annotations

import errno
import os
import resource
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence

from taskq.config import VERSION
from taskq.roles import RoleKey
from taskq.service import PROTOCOL
from taskq.wire.frames import HEADER, MAX_STRANGER_FRAME, set_options
from taskq.wire.handshake import NONCE_BYTES, Refused, ServerHandshake
from taskq.wire.quiet import QuietLog

HANDSHAKE_TIMEOUT = 5.0
"""Seconds that a connection has to prove itself."""
MAX_STRANGERS = 256
"""Most connections that have not proved themselves, fewer where descriptors are scarce."""
MAX_CONNECTIONS = 4096
"""Most connections in all, fewer where descriptors are scarce."""
SPARE_DESCRIPTORS = 64
"""Descriptors for the store, logs and whatever else the process opens."""
PAUSE = 0.05
"""Seconds of looking away from the listener after a failed accept."""


def ask_for_descriptors() -> None:
    """Raise this process's soft limit of descriptors, often 1,024, to what `MAX_CONNECTIONS` need, or to the hard one.

    To be called before a `Door` is made, which takes no more connections than there are descriptors for.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_DESCRIPTORS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Guest:
    """A connection that has not proved itself yet. ``deadline``: monotonic seconds."""

    __slots__ = ("buffer", "deadline", "handshake", "peer", "sock")

    def __init__(self, sock: socket.socket, peer: str, handshake: ServerHandshake, deadline: float) -> None:
        self.sock = sock
        self.peer = peer
        self.handshake = handshake
        self.deadline = deadline
        self.buffer = b""


class Door:
    """Listens at a socket until it is closed. ``admit(guest)`` takes a connection over and may raise anything to
    refuse it; ``inside()`` says how many it has. ``keys``: those that are accepted; they may be replaced at any time.
    """

    def __init__(
        self,
        listener: socket.socket,
        keys: Sequence[RoleKey],
        admit: Callable[[Guest], None],
        inside: Callable[[], int],
    ) -> None:
        self._listener = listener
        self.keys = keys
        self._admit = admit
        self._inside = inside
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if descriptors == resource.RLIM_INFINITY:
            descriptors = 1 << 20
        self._max_connections = min(MAX_CONNECTIONS, max(descriptors - SPARE_DESCRIPTORS, descriptors // 2))
        self._max_strangers = min(MAX_STRANGERS, max(self._max_connections // 4, 8))
        self._guests: dict[socket.socket, Guest] = {}
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        self._close_lock = threading.Lock()
        self._closing = False
        self._paused_until = 0.0
        self.say = QuietLog().say

    def close(self) -> None:
        """End `run` soon; from any thread, any number of times."""
        with self._close_lock:
            if not self._closing:
                self._wake_in.send(b"x")  # first, because `run` closes this socket once it sees the flag
                self._closing = True

    def run(self) -> None:
        """Accept until `close`; then the listener and all strangers are closed."""
        self._listener.setblocking(False)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        while not self._closing:
            try:
                self._round()
            except Exception as error:
                self.say("the door stumbled, and goes on", "", error)
                time.sleep(PAUSE)
        self._listener.close()
        for guest in list(self._guests.values()):
            self._turn_away(guest)
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()

    def _round(self) -> None:
        """Wait for something to happen and deal with all of it."""
        now = time.monotonic()
        for key, _ in self._selector.select(self._next_deadline(now)):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.data, Guest):
                self._hear(key.data)
        now = time.monotonic()
        while self._guests:
            oldest = next(iter(self._guests.values()))
            if oldest.deadline > now:
                break
            self._turn_away(oldest)
            self.say("connections refused: no proof of the key in time", oldest.peer)
        if self._paused_until and now >= self._paused_until:
            self._paused_until = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _next_deadline(self, now: float) -> float | None:
        """Seconds until something has to be done unasked."""
        times = [next(iter(self._guests.values())).deadline] if self._guests else []
        if self._paused_until:
            times.append(self._paused_until)
        return max(min(times) - now, 0.0) if times else None

    def _accept(self) -> None:
        """Accept one connection. One only, since `accept` without a free descriptor fails even if nobody waits."""
        try:
            sock, address = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            if self._guests and error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away(next(iter(self._guests.values())))
                return
            self.say(f"cannot accept connections: {error.strerror}", "")
            self._selector.unregister(self._listener)
            self._paused_until = time.monotonic() + PAUSE
        else:
            self._greet(sock, str(address[0]))

    def _greet(self, sock: socket.socket, peer: str) -> None:
        """Make room if need be, and send the first message."""
        if len(self._guests) >= self._max_strangers or len(self._guests) + self._inside() >= self._max_connections:
            if not self._guests:
                self.say(f"connections refused: there are {self._max_connections} already", peer)
                _reset(sock)
                return
            self._turn_away(next(iter(self._guests.values())))
        handshake = ServerHandshake(self.keys, PROTOCOL, VERSION, os.urandom(NONCE_BYTES))
        guest = Guest(sock, peer, handshake, time.monotonic() + HANDSHAKE_TIMEOUT)
        self._guests[sock] = guest
        try:
            set_options(sock)
            self._selector.register(sock, selectors.EVENT_READ, guest)
            sock.send(HEADER.pack(len(handshake.greeting)) + handshake.greeting, socket.MSG_DONTWAIT)
        except OSError:
            self._turn_away(guest)

    def _hear(self, guest: Guest) -> None:
        """Take what a stranger says; let it in, or out, when that is its whole answer."""
        if guest.sock not in self._guests:
            return  # it was turned away in this very round
        try:
            data = guest.sock.recv(4 + MAX_STRANGER_FRAME, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        guest.buffer += data
        size = HEADER.unpack_from(guest.buffer)[0] if len(guest.buffer) >= 4 else 0
        if not data or size > MAX_STRANGER_FRAME or len(guest.buffer) > 4 + MAX_STRANGER_FRAME:
            self._turn_away(guest)
        elif size and len(guest.buffer) >= 4 + size:
            self._judge(guest, guest.buffer[4:])

    def _judge(self, guest: Guest, answer: bytes) -> None:
        try:
            last = guest.handshake.finish(answer)
        except Refused as error:
            self.say(f"connections refused: {error}", guest.peer)
            self._forget(guest)
            guest.sock.close()  # in order, so that an honest client with an old key is told by the end of the stream
            return
        self._forget(guest)
        try:
            guest.sock.send(HEADER.pack(len(last)) + last, socket.MSG_DONTWAIT)
            if guest.handshake.protocol != PROTOCOL:
                self.say(f"connections refused: protocol {guest.handshake.protocol}, here {PROTOCOL}", guest.peer)
                guest.sock.close()
            else:
                self._admit(guest)
        except (OSError, RuntimeError, MemoryError) as error:
            self.say(f"connections refused: {error}", guest.peer)
            _reset(guest.sock)

    def _turn_away(self, guest: Guest) -> None:
        """End a connection that did not prove itself; its peer sees a reset, not an orderly end."""
        self._forget(guest)
        _reset(guest.sock)

    def _forget(self, guest: Guest) -> None:
        del self._guests[guest.sock]
        try:
            self._selector.unregister(guest.sock)
        except KeyError:
            return  # it was not registered yet


def _reset(sock: socket.socket) -> None:
    """Close so that the peer sees a reset: "try again", as opposed to the end of the stream after a wrong key."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass  # it is gone already
    finally:
        sock.close()
