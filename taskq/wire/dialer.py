"""Makes connections to a manager: tries its addresses, proves the key, and says in plain words why it did not work."""

from __future__ import annotations

import errno
import os
import socket
import time

from taskq.config import ADMIN, FROM_STDIN, VERSION, Address, Join
from taskq.errors import AuthenticationFailed, ManagerUnavailable, ProtocolMismatch, TaskqError
from taskq.service import PROTOCOL
from taskq.wire.frames import (
    FRAME_TIMEOUT,
    MAX_STRANGER_FRAME,
    Channel,
    ConnectionLost,
    Ended,
    NotAFrame,
    TimedOut,
    set_options,
    set_timeout,
)
from taskq.wire.handshake import NONCE_BYTES, ClientHandshake, NotTaskq, Refused, fingerprint

ADDRESS_TIMEOUT = 2.0
"""Seconds for each address when there are several."""
_ATTEMPTS = 8
"""How often an address is tried that hangs up in the middle of the handshake."""
_PAUSE = 0.03

_START = 'start one with "taskq-manager", or point elsewhere with --host and --port (TASKQ_HOST, TASKQ_PORT)'
_SILENT = "is the port open, or used by another service?"
_COPY = "copy its join file: ssh {} taskq-manager --print-join"
_OTHER_KEY = "is it a manager with another state folder? then point there with --state-dir, --name or --join"
_CHANGED_KEY = "was the key changed? get the new one: taskq-manager --print-join"
_PIPED_KEY = (
    "was the key changed? start this program again with what this prints: {}taskq-manager --print-join --role {}"
)


def _where_to_get_it(host: str, join: Join) -> str:
    """What to do about a rejected key."""
    here = host in ("localhost", "::1") or host.startswith("127.")
    role = join.role
    if join.source == FROM_STDIN:
        return _PIPED_KEY.format("" if here else f"ssh {host} ", role)
    if role == ADMIN:
        return _OTHER_KEY if here else _COPY.format(host)
    return f"{_CHANGED_KEY if here else _COPY.format(host)} --role {role}"


class _TurnedAway(Exception):
    """The other side hung up in the middle of the handshake; with luck it has more room in a moment."""


class _Rejected(Exception):
    """The other side hung up after our proof."""


class Dialer:
    """Connects; `cancel` ends that from another thread, for good."""

    def __init__(self) -> None:
        self._cancelled = False
        self._sock: socket.socket | None = None

    def cancel(self) -> None:
        """Let a `connect` under way, and every later one, raise `ManagerUnavailable` soon."""
        self._cancelled = True
        sock = self._sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # not connected yet, or no longer

    def connect(self, join: Join, timeout: float) -> tuple[Channel, str]:
        """A channel on which both sides have proved themselves, and the address that it leads to.

        ``timeout``: seconds for all of it. Raises `ManagerUnavailable`, `AuthenticationFailed`, `ProtocolMismatch`.
        """
        deadline = time.monotonic() + timeout
        share = timeout if len(join.addresses) == 1 else ADDRESS_TIMEOUT
        errors: list[TaskqError] = []
        for address in join.addresses:
            seconds = min(share, deadline - time.monotonic())
            if seconds <= 0 or self._cancelled:
                break
            try:
                return self._reach(address, join, seconds), str(address)
            except (ManagerUnavailable, AuthenticationFailed, ProtocolMismatch) as error:
                errors.append(error)
            finally:
                self._sock = None
        if self._cancelled or not errors:
            raise ManagerUnavailable("the connection to the manager was closed")
        raise _most_telling(errors)

    def _reach(self, address: Address, join: Join, timeout: float) -> Channel:
        """A connection to one address. Being turned away is retried: a flood of strangers may be at the door."""
        deadline = time.monotonic() + timeout
        rejected = turned_away = 0
        while turned_away < _ATTEMPTS:
            try:
                return self._shake_hands(address, join, self._open(address, deadline, timeout), deadline, timeout)
            except _Rejected:
                # Once may be a manager that died at this very moment.
                rejected += 1
                if rejected > 1:
                    source = f" from {join.source}" if join.source else ""
                    kind = "key" if join.role == ADMIN else f"{join.role} key"
                    raise AuthenticationFailed(
                        f"the manager at {address} rejected the {kind}{source} (fingerprint {fingerprint(join.key)})",
                        hint=_where_to_get_it(address.host, join),
                    ) from None
            except _TurnedAway:
                turned_away += 1
            pause = _PAUSE * (0.5 + os.urandom(1)[0] / 256)
            if self._cancelled or time.monotonic() + pause > deadline:
                break
            time.sleep(pause)
        raise ManagerUnavailable(f"{address} hangs up before it has said who it is", hint=_SILENT)

    def _open(self, address: Address, deadline: float, timeout: float) -> socket.socket:
        """A TCP connection. Raises `ManagerUnavailable`."""
        try:
            found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise ManagerUnavailable(f"cannot find the host of {address} ({_reason(error)})", hint=_START) from None
        problem: Exception = TimeoutError()
        for family, kind, protocol, _, where in found:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            sock = self._sock = socket.socket(family, kind, protocol)
            try:
                set_options(sock)
                set_timeout(sock, socket.SO_SNDTIMEO, remaining)  # `connect` obeys it
                sock.connect(where)
                if _met_itself(sock):
                    raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
                set_timeout(sock, socket.SO_SNDTIMEO, FRAME_TIMEOUT)
            except OSError as error:
                sock.close()
                problem = TimeoutError() if isinstance(error, BlockingIOError) else error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        if isinstance(problem, TimeoutError):
            raise _silent(address, timeout)
        raise ManagerUnavailable(f"no manager at {address} ({_reason(problem)})", hint=_START)

    def _shake_hands(
        self, address: Address, join: Join, sock: socket.socket, deadline: float, timeout: float
    ) -> Channel:
        channel = Channel(sock, MAX_STRANGER_FRAME)
        try:
            _authenticate(channel, address, join, deadline)
        except (NotAFrame, NotTaskq):
            channel.close()
            text = f"something listens at {address} but it is not a taskq manager"
            raise ManagerUnavailable(text, hint=_SILENT) from None
        except TimedOut:
            channel.close()
            raise _silent(address, timeout) from None
        except ConnectionLost:
            channel.close()
            raise _TurnedAway from None
        except BaseException:
            channel.close()
            raise
        return channel


def _met_itself(sock: socket.socket) -> bool:
    """Whether both ends are this one: a port of this machine at which nobody listens, and which the system chose for
    our own end too. TCP connects us to ourselves then, and the manager would find its port taken."""
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:  # the other end has hung up already, as the handshake will find out
        return False


def _authenticate(channel: Channel, address: Address, join: Join, deadline: float) -> None:
    """The handshake; what follows is sealed. Raises `ConnectionLost`, `NotTaskq`, `_Rejected`, `AuthenticationFailed`,
    `ProtocolMismatch`."""
    shake = ClientHandshake(join.key, PROTOCOL, VERSION, os.urandom(NONCE_BYTES), join.role)
    channel.send(shake.answer(channel.receive(_remaining(deadline))))
    try:
        last = channel.receive(_remaining(deadline))
    except Ended:
        raise _Rejected from None
    try:
        shake.finish(last)
    except Refused:
        raise AuthenticationFailed(
            f"{address} could not prove that it has the key (fingerprint {fingerprint(join.key)})",
            hint="something else than the manager may have taken its port",
        ) from None
    if shake.protocol != PROTOCOL:
        older = "this side" if shake.protocol > PROTOCOL else "the manager"
        raise ProtocolMismatch(
            f"manager speaks protocol {shake.protocol} (taskq {shake.release}), this side {PROTOCOL} ({VERSION})",
            hint=f"upgrade {older}",
        )
    channel.seal(shake.session.of_client, shake.session.of_server)


def _remaining(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)


def _silent(address: Address, timeout: float) -> ManagerUnavailable:
    return ManagerUnavailable(f"{address} did not answer within {timeout:.2g} s", hint=_SILENT)


def _reason(error: Exception) -> str:
    """``connection refused`` and the like."""
    return (getattr(error, "strerror", None) or str(error) or "error").lower()


def _most_telling(errors: list[TaskqError]) -> TaskqError:
    """Somebody who answered tells more than nobody; among equals the first address counts."""
    for kind in (ProtocolMismatch, AuthenticationFailed):
        for error in errors:
            if isinstance(error, kind):
                return error
    if len(errors) == 1:
        return errors[0]
    return ManagerUnavailable("; ".join(error.message for error in errors), hint=errors[0].hint)
