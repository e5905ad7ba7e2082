"""A task that is not worth having twice in the queue."""

from __future__ import annotations

import time

from taskq import task


@task
def build_report(user_id: int, kind: str = "monthly") -> str:
    """Takes a while, and gives the same for everybody who asks meanwhile."""
    time.sleep(1.0)
    return f"{kind} report of user {user_id}"
