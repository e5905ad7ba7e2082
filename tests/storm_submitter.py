"""One submitter of the crash storm: submits its share, whatever happens to the manager, and notes what was accepted.

A call without an answer is repeated as the same call (same client, same number) until there is one. Everything that was
acknowledged is in the file of acknowledgements, one JSON line a call.
"""

from __future__ import annotations

import json
import random
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from taskq.config import read_join
from taskq.errors import ManagerUnavailable, OutcomeUnknown, QueueFull, ShuttingDown
from taskq.queue.task import NewTask, new_task
from taskq.service import Submitted
from taskq.wire.client import RemoteQueue
from taskq.wire.codec import encode_arguments

SHARED = 50
"""Tasks that all submitters submit, each under a key that they share; their numbers are negative."""
PATIENCE = 150.0
"""Seconds for everything."""


def batches(part: int, count: int, rng: random.Random) -> Iterator[list[tuple[int, NewTask]]]:
    """This submitter's tasks with their numbers, in the batches in which they are submitted."""
    numbers = [*range(part * count, (part + 1) * count), *range(-SHARED, 0)]
    rng.shuffle(numbers)
    while numbers:
        size = rng.choice([1, 1, 5, 20, 60])
        yield [(number, make(number, part, rng)) for number in numbers[:size]]
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


def submit(queue: RemoteQueue, client: int, seq: int, items: list[NewTask], counts: dict[str, int]) -> Submitted:
    """Make one call until it is answered."""
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            return queue.submit(client, seq, items)
        except QueueFull:
            counts["full"] += 1
        except (ManagerUnavailable, OutcomeUnknown, ShuttingDown):
            counts["unanswered"] += 1
        if time.monotonic() > give_up:
            raise TimeoutError(f"call {seq} had no answer")
        time.sleep(0.03)


def main(folder: Path, part: int, count: int, seed: int) -> None:
    """Submit ``count`` tasks of one's own, and the shared ones."""
    rng = random.Random(seed * 1_000 + part)
    queue = RemoteQueue(read_join(folder / "state" / "join.json"), connect_timeout=2.0)
    client = secrets.randbits(63)
    counts = {"full": 0, "unanswered": 0}
    with (folder / f"accepted-{part}").open("w") as file:
        for seq, batch in enumerate(batches(part, count, rng), 1):
            reply = submit(queue, client, seq, [item for _, item in batch], counts)
            entry = {"numbers": [number for number, _ in batch], "ids": reply.ids, "existing": reply.existing}
            file.write(json.dumps(entry) + "\n")
            file.flush()
    queue.close()
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
