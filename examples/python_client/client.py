"""What a program can do with tasks: wait, give up waiting, hear of failures, cancel, ask by id.

Needs only a running manager: the built-in task types are submitted by name, without importing any code of theirs::

    taskq-manager
    python client.py
"""

from __future__ import annotations

from taskq import Client, TaskCancelled, TaskFailed, UnknownTaskType, named


def main() -> None:
    """Show each of them once."""
    with Client() as q:  # finds the manager as the commands do
        handle = q.submit("compute", operation="factorial", value=25)
        print("result:", handle.result(timeout=30))
        print("again, by id:", q.result(handle.id), q.state(handle.id))

        slow = q.submit("sleep", duration=0.5)
        try:
            slow.result(timeout=0.05)
        except TimeoutError as error:
            print("not yet:", error.__class__.__name__)
        print("later:", slow.result(timeout=30))

        try:
            q.submit(named("fail", max_retries=0), error_message="no such customer").result(timeout=30)
        except TaskFailed as error:
            print("failed:", error.details["type"], error.details["message"])
            assert "Traceback" in error.details["traceback"]

        later = q.submit(named("compute", delay=3600, priority=9), operation="double", value=1)
        print("cancelled:", later.cancel(), later.state())
        try:
            later.result()
        except TaskCancelled:
            print("a cancelled task has no result")

        one = q.submit(named("compute", key=f"order-{handle.id}"), operation="double", value=21)
        same = q.submit(named("compute", key=f"order-{handle.id}"), operation="double", value=21)
        print("the same key, the same task:", one.id == same.id)

        handles = [q.submit("sleep", duration=seconds) for seconds in (0.3, 0.1, 0.2)]
        print("as they finish:", [done.result() for done in q.as_completed(handles, timeout=30)])

        try:
            q.submit("comptue", operation="double", value=1)
        except UnknownTaskType as error:
            print("refused:", error)


if __name__ == "__main__":
    main()
