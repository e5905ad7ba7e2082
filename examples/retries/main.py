"""What becomes of tasks that fail, by their own policy and by another one for a single submit.

Start the manager in this folder, so that its workers find ``calls.py``, then this program::

    taskq-manager --tasks calls
    python main.py
"""

from __future__ import annotations

import time

from calls import call, order, poll

from taskq import Client, Retry, TaskFailed, TaskHandle


def outcome(handle: TaskHandle[str]) -> str:
    """What a task came to, in one line."""
    try:
        return handle.result(timeout=30)
    except TaskFailed as error:
        return f"{error.details['type']} after {error.details['failures']} attempt(s): {error.details['message']}"


def main() -> None:
    """Run tasks that fail, and say what came of them."""
    impatient = Retry(max_retries=1, backoff=0.05, jitter=False)
    with Client() as q:
        handles = {
            "by its own policy": q.submit(call, 7),
            "never after this error": q.submit(call, 13),
            "by another policy": q.submit(call.options(retry=impatient), 7),
            "for good": q.submit(order, ""),
            "when it says itself": q.submit(order, "bread"),
            "snoozing": q.submit(poll, time.time() + 0.5),
        }
        for name, handle in handles.items():
            print(f"{name}: {outcome(handle)}")


if __name__ == "__main__":
    main()
