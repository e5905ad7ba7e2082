"""Frames on a socket: four bytes of length (big-endian), after the handshake 16 of `seal`, then the body. Both ends
use it. The seal comes first, so that a long body arrives, and is sent, in one piece.

Sockets stay in blocking mode and the deadlines are the kernel's (SO_RCVTIMEO, SO_SNDTIMEO), because Python's own
timeouts cost a `poll` before every `recv` and `send`. A small request or reply is one `send` and one `recv`.
"""

from __future__ import annotations

import hmac
import socket
import struct
import time

from taskq.errors import FrameTooLarge
from taskq.wire.seal import SEAL_BYTES, Seal

MAX_FRAME = 4 * 1024 * 1024
"""Bytes: longest body after authentication."""
MAX_STRANGER_FRAME = 4 * 1024
"""Bytes: longest body before authentication."""
FRAME_TIMEOUT = 30.0
"""Seconds in which a frame that has begun must have arrived, or been taken by the peer."""

OK, ERROR = 0, 1
"""The status of a reply."""

HEADER = struct.Struct("!I")
_READ = 64 * 1024
_TIMEVAL = struct.Struct("ll")


class ConnectionLost(EOFError):
    """The connection is over: closed, broken, or no longer in step. Nothing more can be read or sent."""


class Ended(ConnectionLost):
    """The peer closed the connection in order, between two frames."""


class TimedOut(ConnectionLost):
    """The connection is over because the peer took too long."""


def set_options(sock: socket.socket) -> None:
    """What every connection needs: no delay of small frames, and notice within about 11 s of a peer that vanished."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # macOS calls the first one TCP_KEEPALIVE and has no user timeout.
    for names, value in (
        (("TCP_KEEPIDLE", "TCP_KEEPALIVE"), 5),
        (("TCP_KEEPINTVL",), 2),
        (("TCP_KEEPCNT",), 3),
        (("TCP_USER_TIMEOUT",), 10_000),
    ):
        option = next((getattr(socket, name) for name in names if hasattr(socket, name)), None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    set_timeout(sock, socket.SO_SNDTIMEO, FRAME_TIMEOUT)


def set_timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """Set SO_RCVTIMEO or SO_SNDTIMEO (``option``) to ``seconds``, at least a millisecond."""
    microseconds = max(int(seconds * 1_000_000), 1_000)
    sock.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(*divmod(microseconds, 1_000_000)))


class NotAFrame(ConnectionLost):
    """The connection is over because the peer sent something else than frames, a frame that is too long, or one with
    the seal of another."""


class Channel:
    """A connected socket that sends and receives whole frames. One thread at a time; `shut` from any.

    ``limit``: bytes of the longest body that is accepted.
    """

    __slots__ = ("_at_once", "_head", "_receive_seal", "_receive_timeout", "_rest", "_send_seal", "_sock", "limit")

    def __init__(self, sock: socket.socket, limit: int = MAX_FRAME, at_once: int = MAX_FRAME) -> None:
        self._sock = sock
        self.limit = limit
        self._at_once = at_once  # a body of up to so many bytes that came whole is not given to `_receive_body`
        self._rest = b""
        self._receive_timeout = 0.0
        self._head = HEADER.size
        self._send_seal: Seal | None = None
        self._receive_seal: Seal | None = None

    def seal(self, sending: bytes, receiving: bytes) -> None:
        """From now on every frame has a seal; with the keys of either direction. Frames may be as long as any."""
        self._send_seal, self._receive_seal = Seal(sending), Seal(receiving)
        self._head = HEADER.size + SEAL_BYTES
        self.limit = MAX_FRAME

    def receive(self, timeout: float | None) -> bytes:
        """The next body. ``timeout``: seconds to wait for it; None = as long as it takes for it to begin.

        Raises `ConnectionLost`, `TimedOut`.
        """
        seconds = FRAME_TIMEOUT if timeout is None else timeout
        head = self._head
        try:
            if seconds != self._receive_timeout:
                set_timeout(self._sock, socket.SO_RCVTIMEO, seconds)
                self._receive_timeout = seconds
            data = self._rest or self._begin(wait=timeout is None)
            if len(data) >= head:
                size = HEADER.unpack_from(data)[0]
                if len(data) == size + head and size <= self._at_once and size <= self.limit:  # usual: one came whole
                    self._rest = b""
                    return self._checked(data[4:head], data[head:])
            return self._complete(data, time.monotonic() + seconds)
        except BlockingIOError:
            raise TimedOut(f"did not answer within {seconds:g} s") from None
        except OSError as error:
            raise ConnectionLost((error.strerror or "connection lost").lower()) from None

    def _checked(self, seal: bytes, body: bytes) -> bytes:
        """The body, if this is its seal."""
        if self._receive_seal is not None and not hmac.compare_digest(self._receive_seal.next(body), seal):
            raise NotAFrame("a frame has not the seal that it must have here")
        return body

    def _begin(self, *, wait: bool) -> bytes:
        """The first bytes of a frame. ``wait``: run out of time as often as need be."""
        while True:
            try:
                data = self._sock.recv(_READ)
            except BlockingIOError:
                if not wait:
                    raise
            else:
                if not data:
                    raise Ended("connection closed")
                return data

    def _complete(self, data: bytes, deadline: float) -> bytes:
        """The body of the frame that begins with ``data``; what follows it is kept for the next one."""
        head = self._head
        data = self._extend(data, head, deadline)
        size = HEADER.unpack_from(data)[0]
        if size > self.limit:
            raise NotAFrame(f"a frame of {size:,} bytes is too large")
        self._rest = data[size + head :]
        return self._receive_body(data[4:head], data[head : size + head], size, deadline)

    def _receive_body(self, seal: bytes, begun: bytes, size: int, deadline: float) -> bytes:
        """The body of ``size`` bytes that begins with ``begun``."""
        return self._checked(seal, self._extend(begun, size, deadline))

    def _extend(self, data: bytes, size: int, deadline: float) -> bytes:
        """``data`` and what comes after it, ``size`` bytes in all (or more, if it was more). Memory that is kept ready
        for what has not come yet costs nothing: the system gives it when it is written to."""
        parts, missing = [data], size - len(data)
        while missing > 0:
            if time.monotonic() > deadline:
                raise BlockingIOError
            part = self._sock.recv(missing, socket.MSG_WAITALL)
            if not part:
                raise ConnectionLost("connection closed in the middle of a frame")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts) if len(parts) > 1 else data

    def send(self, body: bytes) -> None:
        """Send one frame. Raises `FrameTooLarge` before anything is sent, `ConnectionLost`, `TimedOut`."""
        size = len(body)
        if size > MAX_FRAME:
            raise FrameTooLarge(f"a message of {size:,} bytes is larger than the {MAX_FRAME:,} that can be sent")
        head = HEADER.pack(size) if self._send_seal is None else HEADER.pack(size) + self._send_seal.next(body)
        try:
            if size <= _READ:
                data = head + body
                sent = self._sock.send(data)
            else:  # not worth a copy
                data = body
                sent = self._sock.sendmsg((head, body)) - len(head)
                if sent < 0:  # not even the head went out whole
                    data, sent = head + body, sent + len(head)
            if sent < len(data):
                self._send_rest(data, sent)
        except BlockingIOError:
            raise TimedOut("did not take a message in time") from None
        except OSError as error:
            raise ConnectionLost((error.strerror or "connection lost").lower()) from None

    def _send_rest(self, data: bytes, sent: int) -> None:
        deadline = time.monotonic() + FRAME_TIMEOUT
        view = memoryview(data)
        while sent < len(view):
            if time.monotonic() > deadline:
                raise BlockingIOError
            sent += self._sock.send(view[sent:])

    def shut(self, how: int = socket.SHUT_RDWR) -> None:
        """End the connection in one or both directions, from any thread; whoever waits in it wakes up."""
        try:
            self._sock.shutdown(how)
        except OSError:
            return  # it had ended by itself

    def close(self) -> None:
        """Give the descriptor back. Only by the thread that uses the channel, or when there is none."""
        self._rest = b""
        try:
            self._sock.close()
        except OSError:
            return  # somebody closed the descriptor behind our back, such as a task that closes all there are
