"""How much memory the frames of all connections together may take in the manager, and what happens beyond it.

Requests: a frame longer than `SMALL` takes its room before it is read, and gives it back when it is answered or its
connection is over. A frame for which there is no room is read to its end and thrown away in small pieces, and the call
is answered `Busy`: nothing of it was done, and the client asks again after a pause. Frames of over half of the longest
length may fill three quarters of the room only, so that a flood of them leaves the last one to ordinary batches.

Replies: one that is longer than `SMALL` takes its room until the peer has taken it. As it tells of what was done, it is
never put off: where there is no room, the connection that has not taken its reply for the longest time is ended.
"""

from __future__ import annotations

import hmac
import socket
import threading
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

from taskq.errors import Busy
from taskq.wire import codec
from taskq.wire.frames import FRAME_TIMEOUT, MAX_FRAME, Channel, ConnectionLost, NotAFrame, TimedOut

MAX_REQUESTS = 64 * 1024 * 1024
"""Bytes of the requests of all connections that are being received or wait for their answers."""
MAX_REPLIES = 64 * 1024 * 1024
"""Bytes of the replies to all connections that wait to be taken."""
SMALL = 16 * 1024
"""Bytes: shorter frames are not counted; of each connection there is at most one."""
RETRY_AFTER = 0.2
"""Seconds after which a client that was answered `Busy` may ask again; it doubles that each time."""
LONG = MAX_FRAME // 2
"""Bytes: longer frames may take three quarters of the room."""
_CHUNK = 16 * 1024
_BEGINNING = 32


class Refused(NamedTuple):
    """A frame for which there is no room, its seal as far as it has come, and the bytes that are still to come."""

    beginning: bytes
    seal: blake2b
    sealed: bytes
    missing: int


class Crowded(Exception):
    """There is no room for the frame that has begun; `RoomChannel.throw_away` must read the rest of it."""

    def __init__(self, refused: Refused) -> None:
        super().__init__("no room for a frame")
        self.refused = refused


class Room:
    """The room that requests and replies take, shared by all channels of a server. From any thread.

    ``say`` is told, each time, that it was not enough.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._lock = threading.Lock()
        self.requests = 0
        """Bytes of requests that have their room."""
        self._replies: dict[RoomChannel, int] = {}  # in the order in which they began to wait
        self._waiting = 0

    def take(self, size: int) -> bool:
        """Take room for a request; False: there is none."""
        most = MAX_REQUESTS if size <= LONG else MAX_REQUESTS - MAX_REQUESTS // 4
        with self._lock:
            there_is = self.requests + size <= most
            if there_is:
                self.requests += size
        if not there_is:
            self._say(f"calls refused: requests of {MAX_REQUESTS >> 20} MiB are being received or answered")
        return there_is

    def give_back(self, size: int) -> None:
        """A request is answered, or over."""
        with self._lock:
            self.requests -= size

    def begin_reply(self, channel: RoomChannel, size: int) -> None:
        """A reply begins to wait for its peer. Those that have waited longest end where there is no room for it."""
        longest = []
        with self._lock:
            while self._replies and self._waiting + size > MAX_REPLIES:
                one = next(iter(self._replies))
                self._waiting -= self._replies.pop(one)
                longest.append(one)
            self._replies[channel] = size
            self._waiting += size
        for one in longest:
            self._say(f"connections ended that do not take their replies: those are more than {MAX_REPLIES >> 20} MiB")
            one.shut()

    def end_reply(self, channel: RoomChannel) -> None:
        """It was taken, or its connection is over."""
        with self._lock:
            self._waiting -= self._replies.pop(channel, 0)


class RoomChannel(Channel):
    """A channel of the manager, whose long frames must find room."""

    __slots__ = ("_held", "_room")

    def __init__(self, sock: socket.socket, room: Room) -> None:
        super().__init__(sock, at_once=SMALL)
        self._room = room
        self._held = 0

    def _receive_body(self, seal: bytes, begun: bytes, size: int, deadline: float) -> bytes:
        """See `Channel`. Raises `Crowded` when there is no room for it."""
        if size > SMALL:
            if not self._room.take(size):
                assert self._receive_seal is not None
                refused = self._receive_seal.begin()
                refused.update(begun)
                raise Crowded(Refused(begun[:_BEGINNING], refused, seal, size - len(begun)))
            self._held = size
        return super()._receive_body(seal, begun, size, deadline)

    def throw_away(self, refused: Refused) -> int:
        """Read the rest of a frame that has no room; gives the id of its request. Raises `ConnectionLost`."""
        beginning, seal, sealed, missing = refused
        deadline = time.monotonic() + FRAME_TIMEOUT
        while missing > 0:
            if time.monotonic() > deadline:
                raise TimedOut("did not send a message in time")
            try:
                part = self._sock.recv(min(missing, _CHUNK))
            except BlockingIOError:
                raise TimedOut("did not send a message in time") from None
            except OSError as error:
                raise ConnectionLost((error.strerror or "connection lost").lower()) from None
            if not part:
                raise ConnectionLost("connection closed in the middle of a frame")
            seal.update(part)
            missing -= len(part)
            if len(beginning) < _BEGINNING:
                beginning += part[:_BEGINNING]
        if not hmac.compare_digest(seal.digest(), sealed):
            raise NotAFrame("a frame has not the seal that it must have here")
        return codec.request_id(beginning)

    def answer(self, reply: bytes) -> None:
        """Send the reply to the last request, which gives back its room. Raises as `send`."""
        self._give_back()
        if len(reply) <= SMALL:
            self.send(reply)
            return
        self._room.begin_reply(self, len(reply))
        try:
            self.send(reply)
        finally:
            self._room.end_reply(self)

    def close(self) -> None:
        """See `Channel`."""
        self._give_back()
        super().close()

    def _give_back(self) -> None:
        if self._held:
            self._room.give_back(self._held)
            self._held = 0


def busy() -> Busy:
    """The error of a call for which there was no room."""
    return Busy(
        f"the manager is receiving as much as it can hold ({MAX_REQUESTS >> 20} MiB); nothing of this call was done",
        hint="try again a little later, or send less at once",
        details={"retry_after_s": RETRY_AFTER},
    )
