"""One submitter of the crash storm: submits its share, whatever happens to the manager, and notes what was accepted.

A call without an answer is repeated as the same call (same client, same number) until there is one. What it asked and
heard is in its history (see `history`), each try of each call.
"""

from __future__ import annotations

import random
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from history import History, HistoryFile

from taskq.config import read_join
from taskq.errors import AuthenticationFailed, ManagerUnavailable, OutcomeUnknown, QueueFull, ShuttingDown
from taskq.queue.terms import NewTask, new_task
from taskq.wire.client import RemoteQueue
from taskq.wire.codec import encode_arguments

SHARED = 50
"""Tasks that all submitters submit, each under a key that they share; their numbers are negative."""
PATIENCE = 150.0
"""Seconds for everything."""


def batches(part: int, count: int, rng: random.Random) -> Iterator[list[NewTask]]:
    """This submitter's tasks, in the batches in which they are submitted."""
    numbers = [*range(part * count, (part + 1) * count), *range(-SHARED, 0)]
    rng.shuffle(numbers)
    while numbers:
        size = rng.choice([1, 1, 5, 20, 60])
        yield [make(number, part, rng) for number in numbers[:size]]
        del numbers[:size]


def make(number: int, part: int, rng: random.Random) -> NewTask:
    """The task with this number: mostly a quick one, some slower, some that fail, some with a key."""
    if number < 0:
        return new_task("quick", encode_arguments((number,), {}), key=f"shared{number}")
    key = f"own-{part}-{number}" if rng.random() < 0.1 else None
    kind = rng.random()
    if kind < 0.80:
        return new_task("quick", encode_arguments((number,), {}), key=key)
    if kind < 0.95:
        return new_task("nap", encode_arguments((number, rng.uniform(0.005, 0.06)), {}), key=key)
    return new_task("flaky", encode_arguments((number,), {}), backoff=0.2, key=key)


def submit(queue: RemoteQueue, history: History, client: int, seq: int, items: list[NewTask]) -> None:
    """Make one call until it is answered."""
    give_up = time.monotonic() + PATIENCE
    while True:
        call = history.submit(client, seq, [(item.terms.type, item.payload, item.key) for item in items])
        try:
            reply = queue.submit(client, seq, items)
        except (QueueFull, ShuttingDown) as error:
            history.refused(call, error.code)
        except (ManagerUnavailable, OutcomeUnknown, AuthenticationFailed) as error:  # a bad cable spoils keys too
            history.unknown(call, error.code)
        else:
            history.ok(call, ids=list(reply.ids), existing=list(reply.existing))
            return
        if time.monotonic() > give_up:
            raise TimeoutError(f"call {seq} had no answer")
        time.sleep(0.03)


def main(folder: Path, part: int, count: int, seed: int) -> None:
    """Submit ``count`` tasks of one's own, and the shared ones."""
    rng = random.Random(seed * 1_000 + part)
    queue = RemoteQueue(read_join(folder / "state" / "join.json"), connect_timeout=2.0)
    client = secrets.randbits(63)
    history = HistoryFile(folder, f"submitter{part}")
    for seq, batch in enumerate(batches(part, count, rng), 1):
        submit(queue, history, client, seq, batch)
    history.close()
    queue.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
