"""Tasks that fail in different ways, and say what is to be done then."""

from __future__ import annotations

import time

from taskq import Permanent, Retry, Snooze, current_task, task


class Refused(Exception):
    """What the other side says when asking again is of no use."""


@task(retry=Retry(max_retries=4, backoff=0.1, factor=3.0, max_delay=1.0, never_on=(Refused,)))
def call(number: int) -> str:
    """Call somebody: after a failure again in 0.1 s, 0.3 s, 0.9 s and 1 s at most, but never after a refusal."""
    attempt = current_task().attempt
    if number == 13:
        raise Refused("not you")
    if attempt < 3:
        raise ConnectionError("the line is busy")
    return f"{number} answered at attempt {attempt}"


@task
def order(item: str) -> str:
    """Order something: what has no name is never tried again, what is busy says itself when to come back."""
    if not item:
        raise Permanent("there is nothing to order")
    if item == "bread" and current_task().attempt == 1:
        raise Retry("still in the oven", delay=0.2)
    return f"{item} after {current_task().attempt} attempt(s)"


@task(max_retries=0)
def poll(ready_at: float) -> str:
    """Wait for something without holding a thread: a snooze is no failure, and uses no attempt."""
    if time.time() < ready_at:
        raise Snooze(0.1)
    return f"ready at attempt {current_task().attempt}"
