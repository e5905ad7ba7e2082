"""Who may call what: the roles of keys, and the verbs that each of them allows.

A key belongs to one role. The admin key is the one in the key file; those of the other roles are made of it, so that
there is one secret to keep, and nobody who has one of theirs can find another (`key_of`).
"""

from __future__ import annotations

import hmac
from typing import NamedTuple

from taskq.config import ADMIN, ROLES
from taskq.errors import PermissionDenied

_ANYBODY = "submit work monitor"
_CLIENTS = "submit work"

MATRIX: dict[str, str] = {
    "hello": _ANYBODY,
    "types": _ANYBODY,
    # What one does with tasks whose ids one has. Tasks submit tasks, so that workers may what submitters may.
    "submit": _CLIENTS,
    "finished": _CLIENTS,
    "cancel": _CLIENTS,
    "wait": _ANYBODY,
    "result": _ANYBODY,
    "history": _ANYBODY,
    "explain": _ANYBODY,
    # What shows everything that there is, with the arguments of tasks.
    "snapshot": "monitor",
    "get": "monitor",
    "list_tasks": "monitor",
    "find": "monitor",
    # What changes or deletes other people's work.
    "requeue": "",
    "drop": "",
    "purge": "",
    "pause_queue": "",
    "resume_queue": "",
    "limit_queue": "",
    "purge_queue": "",
    "backup": "",
    # Pools and worker processes.
    "beat": "work",
    "child_died": "work",
    "to_cancel": "work",
    "leave": "work",
    "attach": "work",
    "reserve": "work",
    "report": "work",
    "drain": "work",
    "detach": "work",
}
"""Verb -> the roles that may call it, besides admin, which may call everything."""


class RoleKey(NamedTuple):
    """A key and what it is for. ``role``: one of `taskq.config.ROLES`."""

    role: str
    key: bytes


def allows(role: str, verb: str) -> bool:
    """Whether this role may call this verb.

    >>> allows("submit", "cancel"), allows("submit", "purge"), allows("admin", "purge")
    (True, False, True)
    """
    return role == ADMIN or role in MATRIX.get(verb, "").split()


def denied(role: str, verb: str) -> PermissionDenied:
    """The error of a call that the role does not allow."""
    able = [*(other for other in ROLES if other != ADMIN and allows(other, verb)), ADMIN]
    return PermissionDenied(
        f"the key of the role {role} does not allow {verb}",
        hint=f"it takes that of {' or '.join(able)}; the manager's machine has it: "
        f"taskq-manager --print-join --role {able[0]}",
        details={"role": role, "verb": verb},
    )


def key_of(role: str, admin_key: bytes) -> bytes:
    """The key of a role."""
    return admin_key if role == ADMIN else hmac.digest(admin_key, b"taskq role " + role.encode("ascii"), "sha256")


def accepted(admin_key: bytes, former: bytes | None = None) -> tuple[RoleKey, ...]:
    """The keys of all roles, of this admin key and of the one before it."""
    return tuple(RoleKey(role, key_of(role, key)) for key in (admin_key, former) if key is not None for role in ROLES)
