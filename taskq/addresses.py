"""Under which addresses a manager can be reached: for commands on its own machine, and for other machines."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence

from taskq.config import ADMIN, Address, Join, StateDir, read_join
from taskq.errors import ConfigError
from taskq.roles import key_of

_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}
"""An address that means "all of them" -> where this machine finds it."""


def reachable(bind: str, port: int, advertise: Sequence[str]) -> tuple[Address, ...]:
    """What goes into the join file of a manager that listens on ``bind``.

    First where commands on this machine find it, then the advertised ones, then, where it listens on all addresses,
    this machine's own.
    """
    found = [Address(_LOOPBACK_OF.get(bind, bind), port), *(_advertised(text, port) for text in advertise)]
    if bind in _LOOPBACK_OF:
        found += [Address(host, port) for host in _own_hosts(socket.AF_INET6 if ":" in bind else socket.AF_INET)]
    return tuple(dict.fromkeys(found))


def join_for_others(state: StateDir, role: str | None = None) -> Join:
    """What another machine needs to join the manager that was last started with this state folder, with the key of a
    role (None: admin).

    Raises `ConfigError` when there is none, or when it listens for this machine only and no role was named: programs on
    the same machine may be given less than the admin key too.
    """
    if not state.join.exists():
        raise ConfigError(
            f"no manager was ever started with the state folder {state.path}",
            hint='start one with "taskq-manager --bind 0.0.0.0", or point elsewhere with --state-dir',
        )
    join = read_join(state.join)
    others = tuple(address for address in join.addresses if not is_loopback(address.host))
    if not others and role is None:
        raise ConfigError(
            f"the manager listens on {join.addresses[0].host} only, where no other machine can reach it",
            hint='start it with "taskq-manager --bind 0.0.0.0", and --advertise HOST if others know it by a name',
        )
    role = role or ADMIN
    return Join(others or join.addresses, key_of(role, join.key), join.name, role=role)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _advertised(text: str, port: int) -> Address:
    if re.fullmatch(r"(\[[^\]]+\]|[^:\[\]]+):\d+", text):  # it brings a port of its own: behind a forwarding router
        return Address.parse(text)
    return Address(text.strip("[]"), port)


def _own_hosts(family: socket.AddressFamily) -> list[str]:
    """The address that this machine uses towards others; its name where it has no way out.

    Connecting a datagram socket sends nothing, it only asks the system for the route (192.0.2.1 and 2001:db8::1 are
    reserved for documentation).
    """
    target = "2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1"
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))
            return [str(probe.getsockname()[0])]
        except OSError:
            return [socket.gethostname()]
