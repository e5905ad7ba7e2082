"""Tasks of one's own, submitted by function.

Start the manager in this folder, so that its workers find ``tasks.py``, then this program::

    taskq-manager --tasks tasks
    python main.py
"""

from __future__ import annotations

from tasks import count_words, fetch

from taskq import Client


def main() -> None:
    """Run some tasks and print their results."""
    print("here and now:", count_words("a plain call needs no queue", longer_than=4))
    with Client() as q:
        handle = q.submit(count_words, "the queue runs the same function on a worker", longer_than=5)
        print("by a worker: ", handle.result(timeout=30))
        for page in q.map(fetch, range(3)):
            print(page.result(timeout=30))


if __name__ == "__main__":
    main()
