"""The task types that every worker offers: `compute`, `sleep`, `http_request` and `fail`.

For trying taskq out, for demonstrations and for tests. Importing this module registers them.
"""

from __future__ import annotations

import math
import time
import zlib

from taskq.clock import SystemClock
from taskq.errors import BadArguments, TaskTimeout
from taskq.registry import task

FACTORIAL_LIMIT = 20_000
FIBONACCI_LIMIT = 100_000
METHODS = {"GET": 200, "HEAD": 200, "POST": 201, "PUT": 200, "PATCH": 200, "DELETE": 204}
"""What `http_request` answers to each method."""

_SLICE = 0.05
"""Seconds: a timeout reaches Python code only, so that a long sleep is made of short ones."""

_clock = SystemClock()


def _sleep_until(end: float) -> None:
    while (left := end - _clock.monotonic()) > 0:
        time.sleep(min(left, _SLICE))


@task(name="compute")
def compute(operation: str, value: int) -> int:
    """``factorial``, ``fibonacci`` or ``double`` of ``value``, exact at any size."""
    if operation == "factorial":
        return math.factorial(value)
    if operation == "fibonacci":
        return _fibonacci(value)
    return 2 * value


@compute.check
def _check_compute(operation: str, value: int) -> None:
    limits = {"factorial": FACTORIAL_LIMIT, "fibonacci": FIBONACCI_LIMIT, "double": None}
    if not isinstance(operation, str) or operation not in limits:
        raise BadArguments(f"compute: operation must be one of {', '.join(limits)}, not {operation!r}")
    if type(value) is not int or value < 0:
        raise BadArguments(f"compute: value must be an integer from 0 on, not {_short(value)}")
    limit = limits[operation]
    if limit is not None and value > limit:
        raise BadArguments(f"compute: value must be at most {limit:,} for {operation}, not {_short(value)}")


def _fibonacci(n: int) -> int:
    """The n-th Fibonacci number, F(0) = 0, by doubling: F(2k) and F(2k+1) from F(k) and F(k+1), bit by bit."""
    a, b = 0, 1
    for bit in bin(n)[2:]:
        a, b = a * (2 * b - a), a * a + b * b
        if bit == "1":
            a, b = b, a + b
    return a


@task(name="sleep")
def sleep(duration: float, timeout: float | None = None) -> float:
    """Sleep for ``duration`` seconds and return it; over ``timeout`` seconds it fails with a timeout."""
    start = _clock.monotonic()
    if timeout is not None and duration > timeout:
        _sleep_until(start + timeout)
        raise TaskTimeout(f"a sleep of {duration:g} s is over its timeout of {timeout:g} s")
    _sleep_until(start + duration)
    return duration


@sleep.check
def _check_sleep(duration: float, timeout: float | None = None) -> None:
    if not _is_seconds(duration):
        raise BadArguments(f"sleep: duration must be a number of seconds from 0 on, not {_short(duration)}")
    if timeout is not None and not _is_seconds(timeout):
        raise BadArguments(f"sleep: timeout must be a number of seconds from 0 on, not {_short(timeout)}")


@task(name="http_request")
def http_request(url: str, method: str = "GET") -> dict[str, str | int | float]:
    """A pretended request, no network: status by method, latency (5 to 50 ms, really waited for) by address."""
    latency = 0.005 + zlib.crc32(f"{method.upper()} {url}".encode()) % 1000 * 0.000045
    _sleep_until(_clock.monotonic() + latency)
    return {"url": url, "method": method.upper(), "status": METHODS[method.upper()], "latency_s": round(latency, 6)}


@http_request.check
def _check_http_request(url: str, method: str = "GET") -> None:
    if not isinstance(url, str) or not url.lower().startswith(("http://", "https://")):
        raise BadArguments(f"http_request: url must begin with http:// or https://, not {_short(url)}")
    if not isinstance(method, str) or method.upper() not in METHODS:
        raise BadArguments(f"http_request: method must be one of {', '.join(METHODS)}, not {_short(method)}")


@task(name="fail")
def fail(error_message: str = "failed on purpose") -> None:
    """Raise a `RuntimeError` with this message."""
    raise RuntimeError(error_message)


@fail.check
def _check_fail(error_message: str = "failed on purpose") -> None:
    if not isinstance(error_message, str):
        raise BadArguments(f"fail: error_message must be a text, not {_short(error_message)}")


def _is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e9


def _short(value: object) -> str:
    """``value`` for a message; Python refuses to print integers of over 4,300 digits."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"{'-' if value < 0 else ''}about 10^{int(value.bit_length() * 0.30103)}"
    text = repr(value)
    return text if len(text) <= 100 else text[:99] + "…"
