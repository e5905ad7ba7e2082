"""What may come in from a peer, and what is refused before anything changes."""

from __future__ import annotations

from typing import Any

import pytest

from taskq.errors import BadArguments, PayloadTooLarge
from taskq.queue.limits import check_reports, check_worker, checked
from taskq.queue.task import NewTask, new_task
from taskq.service import ACK, GIVE_BACK, MAX_BATCH, MAX_RESULT, NACK, PROGRESS, SNOOZE

GOOD = new_task("x", b"p")
ERROR = ("error", "E", "m", "t")


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
    with pytest.raises(BadArguments, match="report 2 is not of a known form; nothing was taken"):
        check_reports([(GIVE_BACK, 1, 2), report])


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
