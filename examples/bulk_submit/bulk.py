"""Many tasks at once: from Python with a pipeline or ``map``, and from a file with ``taskq-submit``.

With a manager running::

    python bulk.py              # 10,000 tasks, submitted in batches; progress as they finish
    python bulk.py 500          # another number
    python bulk.py 500 --file | taskq-submit --payload-file - --wait    # the same tasks as JSON lines

A file is checked as a whole before anything is submitted. If the queue fills up half way, the same command again adds
only the rest.
"""

from __future__ import annotations

import json
import sys

from taskq import Client


def write_lines(count: int) -> None:
    """Print a payload a line, as ``taskq-submit --payload-file`` reads it."""
    for number in range(count):
        print(json.dumps({"type": "compute", "operation": "double", "value": number}))


def submit(count: int) -> None:
    """Submit the tasks and wait until all have finished."""
    with Client() as q:
        with q.pipeline() as p:  # here the same as: handles = q.map("compute", ["double"] * count, range(count))
            handles = [p.submit("compute", operation="double", value=number) for number in range(count)]
        print(f"{count:,} tasks accepted, from {handles[0].id} to {handles[-1].id}")
        for number, _ in enumerate(q.as_completed(handles, timeout=300), 1):
            if number % max(1, count // 4) == 0:
                print(f"{number:,} finished")
        assert [handle.result() for handle in handles] == [2 * number for number in range(count)]
        print("all results are right")


if __name__ == "__main__":
    numbers = [word for word in sys.argv[1:] if word.isdigit()]
    chosen = int(numbers[0]) if numbers else 10_000
    write_lines(chosen) if "--file" in sys.argv else submit(chosen)
