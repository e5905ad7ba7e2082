"""The built-in types: what they give, and which arguments they refuse before anything is sent."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from taskq import registry
from taskq.builtin_tasks import compute, fail, http_request, sleep
from taskq.errors import BadArguments, TaskTimeout
from taskq.wire.codec import decode, encode


def test_names() -> None:
    assert {found.name for found in (compute, sleep, http_request, fail)} == {
        "compute",
        "sleep",
        "http_request",
        "fail",
    }
    assert registry.lookup("compute") is compute


def test_compute_is_exact_at_any_size() -> None:
    assert compute("factorial", 10) == 3_628_800
    assert compute("factorial", 20_000) == math.factorial(20_000)
    assert compute("double", 10**5000) == 2 * 10**5000
    a, b = 0, 1
    for n in range(300):
        assert compute("fibonacci", n) == a
        a, b = b, a + b
    large = compute("fibonacci", 100_000)
    assert large.bit_length() == 69_424
    assert decode(encode(large)) == large


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"operation": "factorial", "value": 20_001}, "at most 20,000 for factorial"),
        ({"operation": "fibonacci", "value": 100_001}, "at most 100,000 for fibonacci"),
        ({"operation": "factorial", "value": -1}, "integer from 0 on"),
        ({"operation": "double", "value": 1.5}, "integer from 0 on"),
        ({"operation": "double", "value": True}, "integer from 0 on"),
        ({"operation": "double", "value": "7"}, "integer from 0 on"),
        ({"operation": "factorial", "value": 10**6000}, "about 10"),
        ({"operation": "cube", "value": 1}, "one of factorial, fibonacci, double"),
        ({"operation": ["factorial"], "value": 1}, "one of factorial, fibonacci, double"),
        ({"operation": "double"}, 'compute(operation, value) is missing the argument "value"'),
        ({"operation": "double", "value": 1, "z": 2}, 'compute(operation, value) got an unexpected argument "z"'),
    ],
)
def test_compute_refuses(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(BadArguments) as caught:
        compute.bind((), arguments)
    assert text in caught.value.message


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (sleep, {"duration": -1}),
        (sleep, {"duration": "1"}),
        (sleep, {"duration": float("nan")}),
        (sleep, {"duration": 1, "timeout": -1}),
        (http_request, {"url": "example.com"}),
        (http_request, {"url": "https://example.com", "method": "BREW"}),
        (http_request, {"url": 7}),
        (fail, {"error_message": None}),
    ],
)
def test_others_refuse(kind: registry.TaskType[..., Any], arguments: dict[str, Any]) -> None:
    with pytest.raises(BadArguments, match=kind.name):
        kind.bind((), arguments)


def test_sleep_sleeps_or_times_out() -> None:
    begin = time.monotonic()
    assert sleep(0.06) == 0.06
    assert time.monotonic() - begin >= 0.06
    begin = time.monotonic()
    with pytest.raises(TaskTimeout, match="over its timeout"):
        sleep(30, timeout=0.02)
    assert 0.02 <= time.monotonic() - begin < 5


def test_http_request_is_the_same_each_time_and_needs_no_network() -> None:
    once = http_request("https://nowhere.invalid/a", "post")
    assert once == http_request("https://nowhere.invalid/a", "POST")
    assert once["status"] == 201
    assert 0.005 <= float(once["latency_s"]) <= 0.05


def test_fail_says_what_it_was_given() -> None:
    with pytest.raises(RuntimeError, match="oh no"):
        fail("oh no")
