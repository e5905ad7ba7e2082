"""Tasks of one call travel as lots, which say once what they have in common."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq.queue.lots import lots, tasks
from taskq.queue.terms import NewTask, Terms, new_task
from taskq.wire import codec

ITEMS = st.builds(
    new_task,
    st.sampled_from("xy"),
    st.binary(max_size=3),
    priority=st.integers(0, 1),
    timeout=st.sampled_from([None, 2.5]),
    delay=st.sampled_from([0.0, 5.0]),
    key=st.sampled_from([None, "a", "b"]),
    correlation_id=st.sampled_from(["", "c"]),
    at=st.sampled_from([None, 5.0]),
    unique=st.sampled_from([None, b"u"]),
)


USUAL = Terms("x").short


@settings(max_examples=50)
@given(st.lists(ITEMS, max_size=12))
def test_whatever_is_sent_arrives_in_its_order(items: list[NewTask]) -> None:
    assert tasks(codec.unpack(codec.pack(lots(items))), 12) == items


def test_what_is_common_is_said_once() -> None:
    many = lots([new_task("x", b"%d" % number, correlation_id="c") for number in range(5)])
    assert many == [(("x", "default", 0, 3, 1.0, None), (b"0", b"1", b"2", b"3", b"4"), 0.0, None, "c", None, None)]


@pytest.mark.parametrize(
    "wrong",
    [
        5,
        [5],
        [()],
        [(USUAL, (b"p",), 0.0, None, "")],
        [(USUAL, (b"p",), 0.0, None, "", None, None, 1)],
        [(USUAL[:5], (b"p",), 0.0, None, "", None, None)],
        [((*Terms("x"), 7), (b"p",), 0.0, None, "", None, None)],
        [(USUAL, (b"p", b"q"), (0.0,), None, "", None, None)],
        [(USUAL, (b"p",) * 13, 0.0, None, "", None, None)],
    ],
)
def test_what_is_no_lot_is_refused(wrong: Any) -> None:
    with pytest.raises((ValueError, TypeError, IndexError)):
        tasks(wrong, 12)
