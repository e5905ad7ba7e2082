"""What is done after a failed attempt, as one value: how it is written, where it travels, what it leads to."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest

from taskq import Retry, records
from taskq.catalog import Catalog
from taskq.config import QueueSettings
from taskq.entries import Entry, as_json, read_payload, read_retry
from taskq.errors import BadArguments, ConfigError
from taskq.options import Options
from taskq.queue.leases import Moment
from taskq.queue.state import QueueState
from taskq.queue.task import State
from taskq.queue.task_row import describe, from_row, to_row
from taskq.queue.terms import Terms, new_task
from taskq.registry import TaskType, named
from taskq.shapes import NACK, Types

START = Moment(100.0, 5_000.0)
POOL = {"id": "pool", "name": "pool", "host": "h", "pid": 1, "local": None}
ERROR = ("error", "ValueError", "no", "")
POLICY = Retry(max_retries=5, backoff=2.0, factor=3.0, max_delay=20.0, jitter=False, retry_on=(OSError, "my.Error"))


def nothing() -> None:
    """Does nothing."""


def test_it_is_a_value_and_an_exception() -> None:
    assert Retry(max_retries=5) == Retry(max_retries=5) != Retry()
    assert {Retry(backoff=2.0), Retry(backoff=2.0)} == {Retry(backoff=2.0)}
    assert copy.deepcopy(POLICY) == POLICY and pickle.loads(pickle.dumps(POLICY)) == POLICY
    assert repr(POLICY) == (
        "Retry(max_retries=5, backoff=2.0, factor=3.0, max_delay=20.0, jitter=False,"
        f" retry_on=({OSError!r}, 'my.Error'))"
    )
    with pytest.raises(Retry, match="not yet") as raised:
        raise Retry("not yet", delay=0.1)
    assert raised.value.delay == 0.1


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"max_retries": -1}, "max_retries must be"),
        ({"backoff": float("nan")}, "backoff must be"),
        ({"factor": 0.5}, "factor must be"),
        ({"factor": 101}, "factor must be"),
        ({"max_delay": -1}, "max_delay must be"),
        ({"jitter": 1}, "jitter must be"),
        ({"retry_on": OSError}, "retry_on must be"),
        ({"never_on": (KeyboardInterrupt,)}, "never_on must be"),
        ({"never_on": ("",)}, "never_on must be"),
    ],
)
def test_values_out_of_range_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(BadArguments, match=message):
        Options(retry=Retry(**parts))
    with pytest.raises(ConfigError, match=f"x: {message}"):
        TaskType(nothing, "x", retry=Retry(**parts))


def test_what_is_no_policy_is_refused() -> None:
    with pytest.raises(BadArguments, match="retry must be a Retry"):
        Options(retry=5)  # type: ignore[arg-type]


def terms(target: TaskType[..., Any], **options: Any) -> Terms:
    catalog = Catalog(lambda: Types(types=[target.describe()], ever_joined=True), print, allow_unknown=False)
    return catalog.template(target.options(**options)).terms


def test_a_submit_has_the_policy_of_its_type_or_its_own() -> None:
    own = TaskType(nothing, "x", retry=POLICY, backoff=4.0)
    assert terms(own) == Terms("x", max_retries=5, backoff=4.0, factor=3.0, max_delay=20.0, jitter=False)
    assert own.retry_on == (OSError, "my.Error") and own.never_on == ()
    assert terms(own, max_retries=1).max_retries == 1
    assert terms(own, retry=Retry(never_on=(KeyError,))) == Terms("x", never_on=("builtins.KeyError",))
    assert terms(own, retry=Retry(max_retries=9), max_retries=7).max_retries == 7


def test_by_name_it_is_that_which_a_worker_announced() -> None:
    announced = TaskType(nothing, "away", retry=POLICY, ignore_result=True, result_ttl=60.0).describe()
    catalog = Catalog(lambda: Types(types=[announced], ever_joined=True), print, allow_unknown=False)
    rest = {"factor": 3.0, "max_delay": 20.0, "jitter": False, "ignore_result": True, "result_ttl": 60.0}
    expected = Terms("away", max_retries=5, backoff=2.0, **rest)  # type: ignore[arg-type]
    assert catalog.template("away").terms == expected
    assert catalog.template(named("away", ignore_result=False)).terms == expected._replace(ignore_result=False)
    older: Any = {name: value for name, value in announced.items() if name != "more"}
    catalog = Catalog(lambda: Types(types=[older], ever_joined=True), print, allow_unknown=False)
    assert catalog.template("away").terms == Terms("away", max_retries=5, backoff=2.0)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("5", Retry(max_retries=5)),
        ("5:2s", Retry(max_retries=5, backoff=2.0)),
        ("0:250ms:1h", Retry(max_retries=0, backoff=0.25, max_delay=3600.0)),
        ({"backoff": "1m", "factor": 1, "jitter": False}, Retry(backoff=60.0, factor=1, jitter=False)),
        ({"retry_on": ["OSError"], "max_delay": 5}, Retry(retry_on=("OSError",), max_delay=5)),
    ],
)
def test_in_a_file_and_on_the_command_line(written: Any, meant: Retry) -> None:
    assert read_retry(written) == meant
    entry = read_payload(json.dumps({"payload": {"type": "x"}, "retry": written}), "--payload", {})
    assert isinstance(entry, Entry) and entry.options.retry == meant
    assert read_payload(json.dumps(as_json(entry)), "--payload", {}) == entry


@pytest.mark.parametrize(
    "written", ["", "five", "-1", "5:soon", "5:1s:2s:3s", 5, [], {"times": 5}, {"factor": "2"}, {"retry_on": "OSError"}]
)
def test_what_is_badly_written_is_refused(written: Any) -> None:
    with pytest.raises(BadArguments, match=r"retry|factor|backoff"):
        read_retry(written)


def test_terms_that_are_not_as_usual_go_through_a_store_and_to_the_worker() -> None:
    given = new_task("x", b"\x92\x90\x80", factor=3.0, never_on=("KeyError",), ignore_result=True, result_ttl=5.0)
    state = QueueState(QueueSettings())
    (task,) = state.submit(1, [given], {}, START).changes.written
    row = to_row(task)
    assert json.loads(row.terms_more or "") == {
        **{"factor": 3.0, "never_on": ["KeyError"], "ignore_result": True, "result_ttl": 5.0}
    }
    assert from_row(row).terms == given.terms
    assert given.terms.rules == {"never_on": ("KeyError",), "ignore_result": True}
    shown = records.public(describe(row))
    assert (shown["retry"]["factor"], shown["retry"]["never_on"]) == (3.0, ("KeyError",))
    assert (shown["ignore_result"], shown["result_ttl"]) == (True, 5.0)
    words = "\n".join(records.detail_lines(shown, json.dumps))
    assert "up to 3, 1.0s after the first failure, x3 after each further one, at most 1h00m; never KeyError" in words


def test_the_usual_terms_are_as_short_as_ever() -> None:
    plain = Terms("x", timeout=5.0)
    assert plain.short == plain.usual == ("x", "default", 0, 3, 1.0, 5.0) and (plain.more, plain.rules) == (None, None)
    assert Terms.of(Terms("x", factor=3.0).short) == Terms("x", factor=3.0)


def test_the_manager_computes_the_pause() -> None:
    state = QueueState(QueueSettings())
    parts = {"max_retries": 5, "backoff": 2.0, "factor": 3.0, "max_delay": 20.0, "jitter": False}
    state.submit(1, [new_task("x", b"p", **parts)], {}, START)
    info: Any = {
        **{"incarnation": "w", "pool": POOL, "name": "w", "host": "h", "pid": 2, "threads": 1},
        **{"queues": (), "types": [{"name": "x"}]},
    }
    worker = state.attach(info, [], START)[0]
    now, pauses = START, []
    while True:
        (task,) = state.reserve(worker, 1, 0, (), 0, now)[0]
        state.report(worker, [(NACK, task.id, task.run, ERROR, None, 0.0)], now)
        if task.state is State.FAILED:
            break
        pauses.append(task.due_at - now.wall)
        now = Moment(now.mono + pauses[-1], now.wall + pauses[-1])
        state.leases.beat(POOL, [{"incarnation": "w", "stopped": False}], now.mono)
        state.tick(now)
    assert pauses == [2.0, 6.0, 18.0, 20.0, 20.0] and task.failures == 6


def test_what_is_left_to_the_code_is_shown_as_workers_announced_it() -> None:
    info = TaskType(nothing, "x", retry=Retry(never_on=(KeyError, "Refused"))).describe()
    task = QueueState(QueueSettings()).submit(1, [new_task("x", b"\x92\x90\x80")], {}, START).changes.written[0]
    record = describe(to_row(task))
    assert records.public(record)["retry"]["never_on"] is None
    shown = records.public(record, records.by_name([info]))["retry"]
    assert (shown["retry_on"], shown["never_on"]) == (None, ("builtins.KeyError", "Refused"))
    record["never_on"] = ()
    assert records.public(record, records.by_name([info]))["retry"]["never_on"] == (), "the submit said otherwise"
