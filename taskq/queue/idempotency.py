"""What makes a repeated submit give the same ids: digests, and which calls are known. PURE.

A call is known by (client, sequence number), a task by its caller's own key. The store has the truth about both; this
module remembers the newest calls and keys, so that a repetition that arrives while the first is being written, or that
is new for certain, needs no look into the store.
"""

from __future__ import annotations

import marshal
from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

from taskq.queue.task import NewTask
from taskq.stores.base import CallRow, KeyRow

K = TypeVar("K")
V = TypeVar("V")

KEPT = 10_000
"""How many clients, calls and keys are remembered."""

_PLAIN = 2
"""The marshal format without references: equal values give equal bytes."""


def content_digest(item: NewTask) -> bytes:
    """Digest of what a task is: not when it is to run, and not the id of its log lines."""
    kept = item._replace(key=None, delay=0.0, correlation_id="")
    return blake2b(marshal.dumps(tuple(kept), _PLAIN), digest_size=16).digest()


def call_digest(items: Sequence[NewTask]) -> bytes:
    """Digest of a whole submit call."""
    return blake2b(marshal.dumps([tuple(item) for item in items], _PLAIN), digest_size=16).digest()


class Recent:
    """The newest calls and keys.

    A client that is not known here may have calls in the store; of one that is known, calls above its highest number
    are new. An entry is only dropped when `KEPT` newer ones have come, long after its own commit.
    """

    def __init__(self) -> None:
        self._highest: dict[int, int] = {}
        self._calls: dict[tuple[int, int], CallRow] = {}
        self._keys: dict[str, KeyRow] = {}

    def knows(self, client: int) -> bool:
        """Whether `is_new` can tell for this client."""
        return client in self._highest

    def learn(self, client: int, highest: int) -> None:
        """What the store says is the highest sequence number of this client."""
        self._highest[client] = max(highest, self._highest.get(client, 0))
        _trim(self._highest)

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
        self._calls[call.client, call.seq] = call
        _trim(self._calls)
        for row in keys:
            self._keys[row.key] = row
        _trim(self._keys)


def _trim(entries: dict[K, V]) -> None:
    while len(entries) > KEPT:
        del entries[next(iter(entries))]
