"""The manager's end of the wire: a `BaseManager` whose server withstands strangers, slow peers and broken requests.

What is kept of `multiprocessing.managers`: the manager object with its registered serializer, the server with its table
of exposed objects, one thread for each connection. What is replaced, because the stock server is made for trusted
children of one program: how connections are accepted and authenticated (`door`), what a request is (an id, a verb
and its arguments, see ``PROTOCOL.md``; nothing is ever unpickled), what an error says (a code, never a traceback), and
which methods there are (the verbs of `QueueService`; no create, shutdown, incref, debug_info or ``#GETVALUE``).
"""

from __future__ import annotations

import ctypes
import errno
import inspect
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import managers
from multiprocessing.managers import BaseManager
from typing import Any, NamedTuple, NoReturn

from taskq.config import ADMIN, ROLES, Address
from taskq.errors import ConfigError, FrameTooLarge, Malformed, PermissionDenied, TaskqError, to_wire
from taskq.logs import event
from taskq.queue.lots import tasks
from taskq.queue.terms import NewTask
from taskq.roles import RoleKey, accepted, allows, denied
from taskq.service import MAX_BATCH, VERBS, QueueService
from taskq.wire import arguments, codec
from taskq.wire.door import Door, Guest
from taskq.wire.frames import ERROR, MAX_FRAME, OK, ConnectionLost, NotAFrame
from taskq.wire.handshake import check_key
from taskq.wire.room import Crowded, Room, RoomChannel, busy

SERIALIZER = "msgpack"
IDENT = "queue"
BACKLOG = 1024
_ORDERLY = 2.0
"""Seconds that requests under way have to get their replies out at the end."""

# From malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_LARGE_BLOCK = 3 * 1024 * 1024
_KEPT = 4 * 1024 * 1024
_HEAPS = 2

_log = logging.getLogger(__name__)


def bound_kept_memory() -> None:
    """Let the C library keep a few MiB of what requests and replies took, and give the rest back to the system.

    Left alone, glibc keeps it: it takes a size that was freed once for usual and serves the next such block from a heap
    of the calling thread, which hardly ever shrinks, and there are many heaps. To give all of it back at once would be
    no better: to have memory anew, page by page, takes longer than to copy a large payload into it. Other libraries
    have no such switches and need none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _HEAPS)  # more would be for threads that allocate at the same time, and there is the GIL
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


class Listener:
    """A listening socket; what the stock server expects of ``multiprocessing.connection.Listener``."""

    def __init__(self, address: tuple[str, int], backlog: int = BACKLOG) -> None:
        wanted = Address(*address)
        try:
            found = socket.getaddrinfo(
                wanted.host or None, wanted.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, kind, protocol, _, where = found[0]
            self.socket = socket.socket(family, kind, protocol)
        except OSError as error:
            raise ConfigError(f"cannot listen on {wanted}: {(error.strerror or 'error').lower()}") from None
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(where)
            self.socket.listen(max(backlog, BACKLOG))
        except OSError as error:
            self.socket.close()
            if error.errno == errno.EADDRINUSE:
                hint = "another manager? stop it, or choose another port with --port"
                raise ConfigError(f"{wanted} is in use", hint=hint) from None
            raise ConfigError(f"cannot listen on {wanted}: {(error.strerror or 'error').lower()}") from None
        self.bound = Address(wanted.host, self.socket.getsockname()[1])
        self.address = (self.bound.host, self.bound.port)

    def close(self) -> None:
        """Stop listening."""
        self.socket.close()


def _no_client(*args: object, **kwargs: object) -> NoReturn:
    raise TypeError("taskq.wire.client.RemoteQueue is the client of a QueueManager")


managers.listener_client[SERIALIZER] = (Listener, _no_client)  # type: ignore[attr-defined]  # absent from typeshed


class Server(managers.Server):
    """Serves one object, the queue, under a fixed name; see the module's text for what differs from its base."""

    listener: Listener
    public: list[str] = []  # noqa: RUF012  (overrides the base's list: no request is answered before authentication)
    fallback_mapping: dict[str, Callable[..., Any]] = {}  # noqa: RUF012

    def __init__(self, registry: dict[str, Any], address: tuple[str, int], authkey: bytes, serializer: str) -> None:
        check_key(authkey)
        super().__init__(registry, address, authkey, serializer)
        service = registry[IDENT][0]()
        self.id_to_obj = {IDENT: (service, set(VERBS), {})}
        self.stop_event = threading.Event()
        self._verbs = _Verbs(service, lambda *line: self._door.say(*line))
        self._room = Room(lambda text: self._door.say(text, ""))
        self._lock = threading.Lock()
        self._connections: dict[RoomChannel, _Inside] = {}
        self._door = Door(self.listener.socket, accepted(bytes(authkey)), self._admit, lambda: len(self._connections))

    def accepter(self) -> None:
        """Accept connections until `close_listener`."""
        self._door.run()

    def close_listener(self) -> None:
        """Take no more connections; those that are there go on."""
        self._door.close()

    def serve_forever(self) -> None:
        """Accept until `close_listener`, and serve until `stop_event` is set too. Unlike the base's, it returns, does
        not end the process, and needs no further thread, which may be not to be had."""
        self.accepter()
        self.stop_event.wait()
        self._end_connections()

    def accept_keys(self, key: bytes, former: bytes | None) -> None:
        """From now on accept the keys that are made of these two. Connections of any other key end."""
        check_key(key)
        with self._lock:
            keys = self._door.keys = accepted(key, former)
            gone = [channel for channel, inside in self._connections.items() if inside.proven not in keys]
        for channel in gone:
            channel.shut()

    def _end_connections(self) -> None:
        """Let requests under way get their replies out, then cut what is left."""
        for how in (socket.SHUT_RD, socket.SHUT_RDWR):
            with self._lock:
                connections = list(self._connections.items())
            for channel, _ in connections:
                channel.shut(how)
            deadline = time.monotonic() + _ORDERLY
            for _, inside in connections:
                inside.thread.join(max(deadline - time.monotonic(), 0.0))
        if self._connections:
            text = f"{len(self._connections)} requests were still under way when the port was closed"
            event(_log, logging.WARNING, "internal_error", text)

    def _admit(self, guest: Guest) -> None:
        """Give an authenticated connection its thread. Raises `RuntimeError` when there is none to be had."""
        channel = RoomChannel(guest.sock, self._room)
        proven, session = guest.handshake.proven, guest.handshake.session
        channel.seal(session.of_server, session.of_client)
        args = (channel, proven.role, guest.peer)
        thread = threading.Thread(target=self.handle_request, args=args, name="wire", daemon=True)
        with self._lock:
            if proven not in self._door.keys:
                raise RuntimeError("the key was changed meanwhile")
            self._connections[channel] = _Inside(thread, proven)
        try:
            thread.start()
        except BaseException:
            with self._lock:
                del self._connections[channel]
            raise

    def handle_request(self, conn: RoomChannel, role: str, peer: str) -> None:  # type: ignore[override]  # not the base's
        """The life of one connection's thread. ``role``: what its key is for; ``peer``: its address."""
        try:
            self.serve_client(conn, role, peer)
        except NotAFrame as error:
            self._door.say(f"connection ended: {error}", peer)
        except ConnectionLost as error:
            _log.debug("connection ended: %s", error)
        finally:
            with self._lock:
                del self._connections[conn]
            conn.close()

    def serve_client(self, conn: RoomChannel, role: str, peer: str) -> None:  # type: ignore[override]  # see handle_request
        """Answer the requests of one connection until it ends. Raises `ConnectionLost`.

        Nothing of a request or reply outlives its turn: a connection that waits holds no memory.
        """
        answer = self._verbs.answer
        receive, send = conn.receive, conn.answer
        while not self.stop_event.is_set():
            refused = None
            try:
                reply, understood = answer(receive(None), role, peer)
            except Crowded as crowded:
                refused = crowded.refused
            if refused is not None:  # only here, where nothing is left of what has come of it
                request_id = conn.throw_away(refused)
                reply, understood = _pack_error(request_id, *to_wire(busy())), request_id != 0
            send(reply)
            del reply
            if not understood:
                raise NotAFrame("it sent what is no request")


class _Inside(NamedTuple):
    """What is known of an authenticated connection: its thread, and the key that it has proved."""

    thread: threading.Thread
    proven: RoleKey


class _Verbs:
    """Turns the bytes of a request into a call and its outcome into the bytes of the reply."""

    def __init__(self, service: QueueService, say: Callable[[str, str, Exception | None], None]) -> None:
        self._say = say
        verbs = {verb: (getattr(service, verb), _arity(verb)) for verb in VERBS}
        self._verbs = {role: {verb: verbs[verb] for verb in VERBS if allows(role, verb)} for role in ROLES}
        """Role -> what it may call."""

    def answer(self, data: bytes, role: str, peer: str) -> tuple[bytes, bool]:
        """The reply to a request, and whether it was one at all."""
        request_id, verb = 0, ""
        try:
            request_id, verb, args = _parse(data)
            reply = codec.pack((request_id, OK, self._call(role, verb, args)))
            if len(reply) > MAX_FRAME:
                raise FrameTooLarge(f"the reply to {verb} has {len(reply):,} bytes; ask for less at once")
        except TaskqError as error:
            if isinstance(error, PermissionDenied):
                self._say(f"request refused: {error.message}", peer, None)
            reply = _pack_error(request_id, *to_wire(error))
        except Exception as error:
            self._say(f"{verb} failed unexpectedly", "", error)
            reply = _pack_error(request_id, TaskqError.code, f"{type(error).__name__} in the manager; see its log", {})
        return reply, request_id != 0

    def _call(self, role: str, verb: str, args: tuple[Any, ...]) -> Any:
        """Call a verb. Raises `Malformed`, `PermissionDenied`, and what the verb raises."""
        try:
            method, arity = self._verbs[role][verb]
        except KeyError:
            if verb in self._verbs[ADMIN]:
                raise denied(role, verb) from None
            raise Malformed(f"there is no verb {verb!r:.50}") from None
        if len(args) != arity:
            raise Malformed(f"{verb} takes {arity} arguments, not {len(args)}")
        arguments.check(verb, args)
        if verb == "submit":
            client, seq, lots = args
            return method(client, seq, _tasks(lots))
        return method(*args)


def _pack_error(request_id: int, code: str, message: str, details: dict[str, Any]) -> bytes:
    """An error as a reply; without its details where these cannot travel."""
    try:
        reply = codec.pack((request_id, ERROR, (code, message, details)))
    except TaskqError:
        reply = b""
    if not 0 < len(reply) <= MAX_FRAME:
        reply = codec.pack((request_id, ERROR, (code, message[:1000], {})))
    return reply


def _arity(verb: str) -> int:
    """How many arguments a verb takes."""
    return len(inspect.signature(getattr(QueueService, verb)).parameters) - 1


def _parse(data: bytes) -> tuple[int, str, tuple[Any, ...]]:
    """The id, verb and arguments of a request. Raises `Malformed`."""
    request = codec.unpack(data)
    if type(request) is tuple and len(request) == 3:
        request_id, verb, args = request
        if type(request_id) is int and request_id > 0 and type(verb) is str and type(args) is tuple:
            return request_id, verb, args
    raise Malformed("not a request: it must be an id, a verb and its arguments")


def _tasks(lots: Any) -> Sequence[NewTask]:
    """The tasks of a submit call, which travel in lots. Raises `Malformed`."""
    try:
        return tasks(lots, MAX_BATCH)
    except (TypeError, ValueError, LookupError) as error:
        raise Malformed(f"not the tasks of a submit call: {error}") from None


class QueueManager(BaseManager):
    """The manager object: `get_server` gives the hardened server. Nobody connects to it by proxies."""

    _Server = Server

    def __init__(self, address: tuple[str, int], authkey: bytes) -> None:
        super().__init__(address, authkey, serializer=SERIALIZER)

    def get_server(self) -> Server:
        """The server, bound to its port. Raises `ConfigError`: the port is taken, the key too short."""
        base: Any = self  # the type stubs leave out what the base class keeps
        return self._Server(base._registry, base._address, base._authkey, SERIALIZER)

    def start(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not offered: it would pickle the queue into another process."""
        raise TypeError("the queue is served in the manager's own process: use get_server()")

    def connect(self) -> NoReturn:
        """Not offered: the stock proxies never recover from a restart."""
        _no_client()


class WireServer:
    """Serves a queue on a TCP port. Raises `ConfigError` when the port is taken."""

    def __init__(
        self, service: QueueService, host: str, port: int, key: bytes, former_key: bytes | None = None
    ) -> None:
        class Manager(QueueManager):
            """A class of its own, because `register` writes into the class."""

        Manager.register(IDENT, callable=lambda: service, exposed=VERBS)
        self._server = Manager((host, port), key).get_server()
        if former_key is not None:
            self._server.accept_keys(key, former_key)
        self._thread = threading.Thread(target=self._server.serve_forever, name="wire-server", daemon=True)

    @property
    def address(self) -> Address:
        """Where it listens; the port is a real one even if 0 was asked for."""
        return self._server.listener.bound

    def accept_keys(self, key: bytes, former: bytes | None) -> None:
        """From now on accept these two admin keys and what is made of them; connections of other keys end."""
        self._server.accept_keys(key, former)

    def start(self) -> None:
        """Accept connections from now on; returns at once."""
        self._thread.start()

    def close_listener(self) -> None:
        """First step of an orderly stop: no new connections, while those that are there go on."""
        self._server.close_listener()

    def stop(self) -> None:
        """End everything: no new connections, replies under way go out, all threads end (within about 4 s).

        Calls that wait inside the service must be woken by the service first.
        """
        self._server.stop_event.set()
        self._server.close_listener()
        if self._thread.ident is None:  # never started: this only closes
            self._server.serve_forever()
        else:
            self._thread.join()
