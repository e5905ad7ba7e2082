"""What becomes of tasks that run for too long, and of those that are cancelled while they run.

Start the manager in this folder, so that its workers find ``jobs.py``, then this program::

    taskq-manager --tasks jobs --timeout 10m --queue-timeout reports=2s
    python main.py
"""

from __future__ import annotations

import time

from jobs import add_up, count_for_ever, crawl, hang

from taskq import Client, TaskCancelled, TaskHandle


def until_running(handle: TaskHandle[object]) -> None:
    """Wait until a worker has begun the task."""
    while handle.state() != "running":
        time.sleep(0.05)


def main() -> None:
    """Run such tasks, and say what came of them."""
    with Client() as q:
        part = q.submit(add_up.options(timeout=0.5), 100_000)
        by_queue = q.submit(add_up.options(queue="reports"), 100_000)
        stuck = q.submit(hang.options(timeout=1))
        begun = time.monotonic()
        print("caught in time:", part.result(timeout=30) < by_queue.result(timeout=30))

        failed = stuck.exception(timeout=30)
        assert failed is not None
        print(f"gone within 7 s: {time.monotonic() - begun < 7}; {failed.details['kind']}: {failed.details['message']}")
        print("it hung in:", failed.details["traceback"].splitlines()[-1].split(", in ")[1])

        polite, deaf = q.submit(crawl, 100_000), q.submit(count_for_ever)
        until_running(polite)
        until_running(deaf)
        print("cancelled at once:", polite.cancel(), deaf.cancel())
        print("the polite one:", polite.result(timeout=30))
        try:
            deaf.result(timeout=30)
        except TaskCancelled:
            print("the deaf one:", deaf.state())


if __name__ == "__main__":
    main()
