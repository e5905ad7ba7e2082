"""Tasks that take too long or are cancelled, and what they make of it."""

from __future__ import annotations

import time

from taskq import TaskTimeout, current_task, task


@task(max_retries=0)
def add_up(numbers: int) -> int:
    """Give what there is when the time is over: an exception of the timeout may be caught."""
    total = 0
    try:
        for number in range(numbers):
            total += number
            time.sleep(0.01)
    except TaskTimeout:
        pass
    return total


@task(max_retries=0)
def hang() -> None:
    """Wait in a call that never ends: no exception reaches it, so that its process is killed."""
    ask_somebody_who_never_answers()


def ask_somebody_who_never_answers() -> None:
    """Stand for a library without timeouts."""
    time.sleep(3600)


@task
def crawl(pages: int) -> str:
    """Look now and then whether the work is still wanted."""
    for page in range(pages):
        if current_task().cancelled:
            return f"stopped before page {pages}"
        current_task().progress(page / pages)
        time.sleep(0.01)
    return "all pages"


@task
def count_for_ever() -> None:
    """Never look: the exception ends it."""
    while True:
        pass
