"""Conditions that say which tasks are meant, and the search for them through a whole store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taskq import where
from taskq.clock import FakeClock
from taskq.config import QueueSettings
from taskq.errors import BadArguments
from taskq.queue.job_queue import JobQueue
from taskq.queue.terms import new_task
from taskq.selecting import matching
from taskq.stores.base import Store
from taskq.stores.memory import MemoryStore
from taskq.stores.sqlite import SqliteStore

WALL = 1_000_000.0


def record(**others: Any) -> dict[str, Any]:
    """A failed task, as the manager describes it."""
    error = {"kind": "error", "type": "SMTPTimeout", "message": 'no "route" to host', "traceback": ""}
    fields = {"id": 42, "type": "mail.send", "queue": "mail", "state": "failed", "priority": 3, "error": error}
    return {**fields, "worker_name": "node-1/0", "submitted_at": WALL - 7200, "finished_at": WALL - 3600, **others}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "type=mail.send",
        "type!=mail  queue=mail state=failed",
        "error~=Time worker~=^node",
        'message~="\\"route\\" to"',
        "message~='no \"route'",
        "id=42 id>41 id<43 priority>2 priority!=4",
        "age>59m age<1h1s",
        r"message~=\broute\b",
    ],
)
def test_what_is_meant(text: str) -> None:
    wanted = where.parse(text)
    assert wanted.admits(record(), WALL) and wanted.matches(record())


@pytest.mark.parametrize(
    "text",
    [
        "type=mail",
        "type=mail.send state=pending",
        "error~=^time",
        "message=''",
        "priority<3",
        "age>1h1s",
        "worker=node-1",
    ],
)
def test_what_is_not(text: str) -> None:
    wanted = where.parse(text)
    assert not (wanted.admits(record(), WALL) and wanted.matches(record()))


def test_a_task_without_exception_is_filed_under_what_ended_it() -> None:
    poisoned = record(error={"kind": "poisoned", "type": "", "message": "", "traceback": ""})
    assert where.parse("error=poisoned").admits(poisoned, WALL)


def test_the_age_of_a_task_that_is_not_over_counts_from_its_submit() -> None:
    assert where.parse("age>119m").admits(record(finished_at=None), WALL)


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("speed>3", 1, 'no field "speed"'),
        ("type=a  >3", 9, "a field is expected"),
        ("type =a", 5, "an operator is expected after type"),
        ("type>3", 5, 'type does not go with ">"'),
        ("type==a", 5, '"=="'),
        ("age=3h", 4, "age does not go with"),
        ("type=a age>soon", 12, "not a duration"),
        ("id=x", 4, "whole number"),
        ("error~=(", 8, "regular expression"),
        ('type=a message="b', 16, "quote is not closed"),
        ('message="b"c', 9, "text follows it"),
        ("type=", 6, "a value is expected"),
    ],
)
def test_what_cannot_be_read_is_shown_with_its_place(text: str, place: int, says: str) -> None:
    with pytest.raises(BadArguments) as caught:
        where.parse(text)
    assert says in caught.value.message
    assert caught.value.message.endswith(f"at character {place} of: {text}")


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_search_gives_everything_once_however_many_calls_it_takes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskq.queue.record_verbs.PIECES", 1)
    monkeypatch.setattr("taskq.queue.record_verbs.MAX_BATCH_BYTES", 9_000)
    monkeypatch.setattr("taskq.stores.reading._SCAN", 40)
    store: Store = MemoryStore() if kind == "memory" else SqliteStore(tmp_path / "store.sqlite")
    queue = JobQueue(store, FakeClock(), QueueSettings())
    queue.open()
    for seq in range(3):
        items = [new_task("abc"[number % 3], b"x" * 2_000, priority=number % 2) for number in range(100)]
        queue.submit(1, seq, items)
    queue.cancel([1, 300])
    found = [one["id"] for one in matching(queue, "type~=a|b priority=1")]
    assert found == [number for number in range(300, 0, -1) if (number - 1) % 100 % 3 < 2 and (number - 1) % 2 == 1]
    assert [one["id"] for one in matching(queue, "", ["cancelled"])] == [300, 1]
    assert all(one["payload"] is None for one in matching(queue, "id<9"))
    with pytest.raises(BadArguments):
        matching(queue, "nonsense")
    with pytest.raises(BadArguments):
        list(matching(queue, "", ["nowhere"]))
    queue.close()
