"""What may come in from a peer, and what is refused before anything changes."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest

from taskq.errors import BadArguments, PayloadTooLarge
from taskq.queue.limits import check_reports, check_seconds, check_worker, checked, fitting_evidence
from taskq.queue.terms import NewTask, Terms, new_task
from taskq.service import MAX_BATCH, MAX_RESULT
from taskq.shapes import ACK, GIVE_BACK, NACK, PROGRESS, SNOOZE
from taskq.wire.arguments import check

GOOD = new_task("x", b"p")
ERROR = ("error", "E", "m", "t")
NO_NUMBERS = (float("nan"), float("inf"), float("-inf"))
FLOATS = [
    name for kind in (Terms, NewTask) for name, hint in get_type_hints(kind).items() if hint in (float, float | None)
]


@pytest.mark.parametrize(
    "item",
    [
        GOOD,
        new_task("x", b"p", queue="q" * 200, priority=-1000, max_retries=0, backoff=0, delay=1, timeout=0.5, key="k"),
        new_task("x", b"p", priority=1000, correlation_id="c" * 200),
    ],
)
def test_what_fits_comes_in_as_it_is(item: NewTask) -> None:
    assert checked([item], 100) == [item]
    assert checked([item], 100)[0].terms is checked([item._replace(key="other")], 100)[0].terms


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": ""},
        {"type": 5},
        {"type": "x" * 201},
        {"payload": "text"},
        {"queue": ""},
        {"queue": None},
        {"priority": 1001},
        {"priority": 1.0},
        {"priority": 2**70},
        {"max_retries": -1},
        {"max_retries": True},
        {"backoff": None},
        {"backoff": float("nan")},
        {"factor": 0.9},
        {"factor": 101},
        {"max_delay": -1.0},
        {"jitter": 1},
        {"retry_on": "OSError"},
        {"never_on": ("E",) * 51},
        {"never_on": ("E", 5)},
        {"ignore_result": None},
        {"result_ttl": 0},
        {"delay": float("inf")},
        {"delay": -1.0},
        {"timeout": -1},
        {"key": ""},
        {"key": "k" * 501},
        {"correlation_id": None},
    ],
)
def test_one_wrong_item_refuses_the_call_and_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadArguments, match=r"entry 2: .*; nothing was accepted"):
        checked([GOOD, new_task(**{"type": "x", "payload": b"p", **wrong})], 100)


def test_items_of_another_shape_and_calls_of_another_size_are_refused() -> None:
    for items in ([], [GOOD] * (MAX_BATCH + 1), [("x",)], [(*GOOD, 1)], [GOOD._replace(terms=("x",))], [5]):
        with pytest.raises(BadArguments):
            checked(items, 100)  # type: ignore[arg-type]  # what a faulty peer might send
    with pytest.raises(PayloadTooLarge, match="take 101 bytes, 100 are allowed"):
        checked([GOOD._replace(payload=b"p" * 101)], 100)


def test_reports_of_every_known_form_are_taken() -> None:
    check_reports([])
    check_reports([(ACK, 1, 2, b"r", 0), (ACK, 2, 3, b"", 3e8), (ACK, 3, 4, b"r" * MAX_RESULT, 3e8)])
    check_reports(
        [
            (ACK, 1, 2, b"r", 0.5),
            (NACK, 1, 2, ERROR, None, 0),
            (NACK, 1, 2, ERROR, -1, 0.5),
            (NACK, 1, 2, ERROR, 60.0, 0.5),
            (GIVE_BACK, 1, 2),
            (SNOOZE, 1, 2, 3.0),
            (PROGRESS, 1, 2, 0.5, "half"),
        ]
    )


@pytest.mark.parametrize(
    "report",
    [
        (),
        (9, 1, 2),
        (ACK, 1, 2),
        (ACK, 1, 2, "text", 0.5),
        (ACK, 1, 2, b"r" * (MAX_RESULT + 1), 0.5),
        (ACK, 1, 2, b"r", float("nan")),
        (ACK, "1", 2, b"r", 0.5),
        (ACK, 1, True, b"r", 0.5),
        (ACK, 1, 2, b"r", -0.5),
        (ACK, 1, 2, b"r", 1e300),
        (ACK, 1, 2, b"r", 0.5, None),
        (NACK, 1, 2, ERROR, float("nan"), 0.5),
        (NACK, 1, 2, ("error", "E", "m"), None, 0.5),
        (NACK, 1, 2, ("error", "E", b"m", "t"), None, 0.5),
        (NACK, 1, 2, ERROR, -2, 0.5),
        (GIVE_BACK, 1, 2, 3),
        (SNOOZE, 1, 2, float("inf")),
        (PROGRESS, 1, 2, "half", ""),
        (["unhashable"], 1, 2),
    ],
)
def test_a_report_of_another_form_is_refused_with_all_of_its_call(report: tuple[Any, ...]) -> None:
    for before, after in (((GIVE_BACK, 1, 2), []), ((ACK, 1, 2, b"r", 0.5), [(ACK, 3, 4, b"r", 1)])):
        with pytest.raises(BadArguments, match="report 2 is not of a known form; nothing was taken"):
            check_reports([before, report, *after])


@pytest.mark.parametrize(
    ("wrong", "held"),
    [
        ({"pid": 2**64}, []),
        ({"threads": 0}, []),
        ({"incarnation": ""}, []),
        ({"queues": ("",)}, []),
        ({"types": [{"name": ""}]}, []),
        ({}, [(1, 2**63)]),
        ({}, [(-1, 5)]),
    ],
)
def test_a_worker_that_cannot_be_stored_does_not_join(wrong: dict[str, Any], held: list[tuple[int, int]]) -> None:
    pool = {"id": "p", "name": "p", "host": "h", "pid": 1, "local": None}
    worker: Any = {
        **{"incarnation": "i", "pool": pool, "name": "w", "host": "h", "pid": 2, "threads": 4},
        **{"queues": (), "types": [{"name": "x"}]},
    }
    check_worker(worker, [(1, 2)])
    with pytest.raises(BadArguments):
        check_worker({**worker, **wrong}, held)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", NO_NUMBERS)
def test_no_time_of_a_submit_is_nan_or_infinite(name: str, value: float) -> None:
    wrong = {name: value}
    item = GOOD._replace(terms=GOOD.terms._replace(**wrong)) if name in Terms._fields else GOOD._replace(**wrong)
    with pytest.raises(BadArguments, match=f"entry 1: {name} is a number"):
        checked([item], 100)


def test_the_times_of_a_submit_are_all_looked_at() -> None:
    rules = {"backoff", "timeout", "factor", "max_delay", "result_ttl", "expires", "expires_by", "unique_within"}
    assert set(FLOATS) == rules | {"delay", "at"}


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_no_time_of_a_report_is_nan_or_infinite(value: float) -> None:
    reports: list[Any] = [
        (ACK, 1, 2, b"r", value),
        (NACK, 1, 2, ERROR, value, 0.5),
        (NACK, 1, 2, ERROR, 60.0, value),
        (SNOOZE, 1, 2, value),
        (PROGRESS, 1, 2, value, ""),
    ]
    for report in reports:
        with pytest.raises(BadArguments, match="report 1 is not of a known form"):
            check_reports([report, (ACK, 3, 4, b"r", 0.5)])


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_nothing_else_that_a_pool_says_is_nan_or_infinite(value: float) -> None:
    for pair in ((value, 5), (1.0, value)):
        with pytest.raises(BadArguments, match="rss "):
            fitting_evidence({"rss": [pair]})
    pool = {"id": "p", "name": "p", "host": "h", "pid": 1, "local": None}
    child = {"incarnation": "i", "stopped": False, "cpu_percent": 1.0, "running": ((1, 2, "x", 0.5),)}
    check("beat", (pool, (child,)))
    for wrong in ({"cpu_percent": value}, {"running": ((1, 2, "x", value),)}):
        with pytest.raises(BadArguments, match="argument 2 of beat"):
            check("beat", (pool, ({**child, **wrong},)))
    if not value > 0:  # for ever is a time to wait: it is cut to the longest one
        with pytest.raises(BadArguments, match="timeout is a number"):
            check_seconds("timeout", value)
