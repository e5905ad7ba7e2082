"""What makes a repeated submit give the same ids: digests, and which calls are known. PURE.

A call is known by (client, sequence number), a task by its caller's own key. The store has the truth about both; this
module remembers the newest calls and keys, so that a repetition that arrives while the first is being written, or that
is new for certain, needs no look into the store.
"""

from __future__ import annotations

import marshal
from collections.abc import Sequence
from hashlib import blake2b
from typing import Generic, TypeVar

from taskq.queue.lots import lots
from taskq.queue.terms import NewTask
from taskq.stores.base import CallRow, KeyRow

K = TypeVar("K")
V = TypeVar("V")

KEPT = 10_000
"""About how many clients, calls and keys are remembered."""

_PLAIN = 2
"""The marshal format without references: equal values give equal bytes."""


def content_digest(item: NewTask) -> bytes:
    """Digest of what a task is: not when it is to run, and not the id of its log lines."""
    terms = item.terms._replace(expires=None, expires_by=None) if item.terms.expiring else item.terms
    return blake2b(marshal.dumps((terms.short, item.payload), _PLAIN), digest_size=16).digest()


def call_digest(items: Sequence[NewTask]) -> bytes:
    """Digest of a whole submit call."""
    return blake2b(marshal.dumps(lots(items), _PLAIN), digest_size=16).digest()


class Newest(Generic[K, V]):
    """The entries of the last two `turn` calls at least."""

    def __init__(self) -> None:
        self._new: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._new)

    def get(self, key: K) -> V | None:
        """The entry, if it is among the newest."""
        return self._new.get(key) or self._old.get(key)

    def put(self, key: K, value: V) -> None:
        """Add an entry."""
        self._new[key] = value

    def turn(self) -> None:
        """What was new is old, what was old is forgotten."""
        self._old, self._new = self._new, {}


class Recent:
    """The newest calls and keys: all that are not on disk yet, and some that are.

    A client that is not known here may have calls in the store; of one that is known, calls above its highest number
    are new. ``turns`` counts how often something was forgotten: who looked into the store before, and finds nothing
    here, knows by it whether to look again.
    """

    def __init__(self) -> None:
        self._highest: dict[int, int] = {}
        self._calls: Newest[tuple[int, int], CallRow] = Newest()
        self._keys: Newest[str, KeyRow] = Newest()
        self._old_mark = 0
        self.turns = 0

    def knows(self, client: int) -> bool:
        """Whether `is_new` can tell for this client."""
        return client in self._highest

    def learn(self, client: int, highest: int) -> None:
        """What the store says is the highest sequence number of this client."""
        self._highest[client] = max(highest, self._highest.pop(client, 0))
        while len(self._highest) > KEPT:
            del self._highest[next(iter(self._highest))]

    def is_new(self, client: int, seq: int) -> bool:
        """Whether this call cannot have been made before."""
        return client in self._highest and seq > self._highest[client]

    def call(self, client: int, seq: int) -> CallRow | None:
        """The call, if it is among the newest."""
        return self._calls.get((client, seq))

    def key(self, key: str) -> KeyRow | None:
        """The key, if it is among the newest."""
        return self._keys.get(key)

    def add(self, call: CallRow, keys: Sequence[KeyRow]) -> None:
        """Remember a call that was accepted just now, and its keys."""
        self.learn(call.client, call.seq)
        self._calls.put((call.client, call.seq), call)
        for row in keys:
            self._keys.put(row.key, row)

    def is_large(self) -> bool:
        """Whether it is time for a `turn`."""
        return max(len(self._calls), len(self._keys)) > KEPT

    def turn(self, mark: int, covered: int) -> None:
        """Forget the older half, if all of it is on disk; from there on the store, which also knows when keys expire,
        is asked about it. ``mark`` covers what was added until now, and up to ``covered`` everything is on disk.
        """
        if self._old_mark <= covered:
            self._calls.turn()
            self._keys.turn()
            self._old_mark = mark
            self.turns += 1
