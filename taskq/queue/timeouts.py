"""How long a task may run: its own timeout, else that of its queue, else the manager's. PURE."""

from __future__ import annotations

from taskq.config import QueueSettings
from taskq.queue.terms import Terms


def timeout_of(terms: Terms, settings: QueueSettings) -> float | None:
    """Seconds, None for no limit. A timeout of 0, wherever it stands, means no limit; a task without one has None.

    >>> settings = QueueSettings(timeout=60.0, queue_timeouts={"mail": 5.0, "slow": 0.0})
    >>> [timeout_of(Terms("t", queue), settings) for queue in ("web", "mail", "slow")]
    [60.0, 5.0, None]
    >>> [timeout_of(Terms("t", "mail", timeout=given), settings) for given in (7.0, 0.0)]
    [7.0, None]
    """
    seconds = terms.timeout
    if seconds is None:
        seconds = settings.queue_timeouts.get(terms.queue, settings.timeout)
    return seconds or None
