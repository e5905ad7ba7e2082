"""Two task types of one's own. Workers import this module; whoever submits may import it too."""

from __future__ import annotations

from collections import Counter

from taskq import Retry, current_task, task


@task
def count_words(text: str, longer_than: int = 0) -> dict[str, int]:
    """How often each word occurs that is longer than so many letters."""
    return dict(Counter(word for word in text.lower().split() if len(word) > longer_than))


@task(max_retries=5, timeout=60, retry_on=(OSError,))
def fetch(page: int) -> str:
    """Get a page from a service that only answers at the second attempt; the first is repeated in 50 ms."""
    job = current_task()
    job.progress(0.5, f"attempt {job.attempt}")
    if job.attempt == 1:
        raise Retry("the service is busy", delay=0.05)
    return f"page {page}, got at attempt {job.attempt}"
