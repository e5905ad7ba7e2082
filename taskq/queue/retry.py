"""Whether an error leads to another attempt, and how long to wait before it. PURE."""

from __future__ import annotations

from collections.abc import Sequence

from taskq.errors import RetryPolicy

DEFAULT = RetryPolicy()
DEFAULT_MAX_RETRIES = DEFAULT.max_retries
DEFAULT_BACKOFF = DEFAULT.backoff
DEFAULT_FACTOR = DEFAULT.factor
DEFAULT_MAX_DELAY = DEFAULT.max_delay
MAX_FACTOR = 100.0
"""Largest factor; the power below stays within what a float holds."""
MAX_DEATHS = 3

_MASK = 2**64 - 1


def unit_hash(number: int, salt: int) -> float:
    """A number in [0, 1) that looks random and depends on nothing but its two arguments.

    The mixing is that of splitmix64 (Steele, Lea, Flood 2014), so that jitter needs neither a generator nor its state.

    >>> unit_hash(1, 1) == unit_hash(1, 1), unit_hash(1, 1) != unit_hash(2, 1)
    (True, True)
    """
    mixed = (number * 0x9E3779B97F4A7C15 + salt * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((mixed ^ (mixed >> 31)) >> 11) / 2**53


def retry_delay(
    task_id: int,
    failures: int,
    backoff: float,
    factor: float = DEFAULT_FACTOR,
    max_delay: float = DEFAULT_MAX_DELAY,
    jitter: bool = True,
) -> float:
    """Seconds until the next attempt after the ``failures``-th failure (1, 2, …).

    ``backoff`` after the first failure, ``factor`` times as long after each further one, at most ``max_delay``. With
    ``jitter`` evenly spread over the upper half of that, so that tasks that failed together come back apart
    ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015).

    >>> [retry_delay(7, n, 2.0, 3.0, 60.0, jitter=False) for n in (1, 2, 3, 4, 999)]
    [2.0, 6.0, 18.0, 54.0, 60.0]
    >>> all(2.0 <= retry_delay(n, 3, 1.0) <= 4.0 for n in range(100))
    True
    >>> retry_delay(7, 60, 1.0) <= DEFAULT_MAX_DELAY
    True
    """
    delay = min(max_delay, backoff * factor ** min(failures - 1, 62))
    return delay / 2 + delay / 2 * unit_hash(task_id, failures) if jitter else delay


def death_delay(deaths: int) -> float:
    """Seconds before a task runs again whose worker process died under it for the ``deaths``-th time.

    >>> [death_delay(n) for n in (1, 2, 3)]
    [1.0, 2.0, 4.0]
    """
    return min(DEFAULT_MAX_DELAY, 2.0 ** (deaths - 1))


def error_name(listed: type[BaseException] | str) -> str:
    """How a class of exceptions is called where classes cannot travel; a name stays as it is.

    >>> error_name(OSError), error_name("requests.Timeout")
    ('builtins.OSError', 'requests.Timeout')
    """
    return listed if isinstance(listed, str) else f"{listed.__module__}.{listed.__qualname__}"


def is_listed(error: type[BaseException], listed: Sequence[type[BaseException] | str]) -> bool:
    """Whether an exception of this class is an instance of one of these: of a class, or of one that is named so.

    >>> is_listed(FileNotFoundError, (OSError,)), is_listed(FileNotFoundError, ("OSError", "builtins.KeyError"))
    (True, True)
    >>> is_listed(ValueError, (OSError, "FileNotFoundError"))
    False
    """
    names = {name for base in error.__mro__ for name in (base.__name__, error_name(base))}
    return any(one in names if isinstance(one, str) else issubclass(error, one) for one in listed)
