"""The monitor's picture, records and exports, without a manager: plain data in, whole texts out."""

from __future__ import annotations

import copy
import io
import json
import threading
from collections.abc import Iterator
from datetime import timezone
from pathlib import Path
from typing import Any

import pytest

from taskq import monitor, records, views
from taskq.clock import FakeClock, SystemClock
from taskq.errors import ManagerUnavailable, TaskqError
from taskq.layout import Column, table
from taskq.queue.task import State
from taskq.queue.task_row import TaskRow, describe
from taskq.queue.terms import NewTask, Terms
from taskq.wire import codec

SNAPSHOT: dict[str, Any] = {
    "schema": "taskq.snapshot/1",
    "taken_at": "2026-03-04T02:31:07Z",
    "manager": {
        "name": "default",
        "version": "0.1.0",
        "address": "127.0.0.1:8275",
        "uptime_s": 8040.0,
        "cpu_percent": 6.2,
        "rss_bytes": 41 * 2**20,
        "store": "sqlite",
        "durable": True,
    },
    "totals": {"submitted": 14_000, "completed": 12_048, "failed": 2, "retried": 31, "cancelled": 0},
    "queues": [
        {
            "name": "default",
            "paused": False,
            "pending": 1180,
            "oldest_pending_s": 2.9,
            "running": 12,
            "scheduled": 3,
            "rate": {"in_per_s": 402.1, "done_per_s": 398.0, "failed_per_s": 0.3},
            "wait_s": {"p50": 1.0, "p95": 3.1, "p99": 3.3},
            "run_s": {"p50": 0.02, "p95": 0.041, "p99": 0.05},
        },
        {
            "name": "mail",
            "paused": True,
            "pending": 24,
            "oldest_pending_s": None,
            "running": 0,
            "scheduled": 0,
            "rate": None,
            "wait_s": {"p95": None},
        },
    ],
    "workers": [
        {
            "id": "mgr-4188/1",
            "state": "running",
            "busy": 4,
            "threads": 4,
            "cpu_percent": 98.0,
            "rss_bytes": 41 * 2**20,
            "completed": 12_048,
            "failed": 31,
            "last_heartbeat_s": 0.4,
            "running": [
                {"id": 3412, "type": "compute", "for_s": 1.2, "attempt": 1},
                {"id": 3415, "type": "sleep", "for_s": 0.1, "attempt": 1},
                {"id": 3416, "type": "sleep", "for_s": 0.1, "attempt": 1},
                {"id": 3417, "type": "sleep", "for_s": 0.1, "attempt": 2},
            ],
        }
    ],
    "recent": [
        {
            "id": 3411,
            "type": "compute",
            "queue": "default",
            "finished_at": "2026-03-04T02:31:07Z",
            "run_s": 0.041,
            "worker": "mgr-4188/1",
            "state": "completed",
        },
        {
            "id": 3398,
            "type": "mail.send",
            "queue": "mail",
            "finished_at": "2026-03-04T02:31:06Z",
            "run_s": 2.1,
            "worker": "node2-97/0",
            "state": "failed",
            "failures": 4,
            "error": {"kind": "error", "type": "SMTPServerDisconnected"},
        },
    ],
    "warnings": [{"code": "type_unserved", "message": 'no worker serves "resize_image" (14 pending)'}],
}


def shown(snapshot: dict[str, Any], width: int = 80, height: int | None = None) -> str:
    return views.to_text(views.render(snapshot, width, height, timezone.utc))


# -- the picture -----------------------------------------------------------------------------------------------------


def test_wide_picture() -> None:
    assert (
        shown(SNAPSHOT, 101)
        == """\
taskq default  127.0.0.1:8275  up 2h14m  cpu 6%  rss 41M  store sqlite, committed   02:31:07
 in 402/s  done 398/s  failed 0.3/s    pending 1,204  oldest 2.9s   running 4/4  failed 2

QUEUE      PENDING  OLDEST  RUNNING  SCHEDULED   IN/s  DONE/s  WAIT p95   RUN p95
default      1,180    2.9s       12          3  402.1   398.0      3.1s      41ms
mail            24       -        0          0      -       -         -         -   PAUSED

WORKER           BUSY     CPU    RSS    DONE  FAILED  BEAT  NOW
mgr-4188/1        4/4     98%    41M  12,048      31  0.4s  compute 3412 (1.2s), sleep 3415 (0.1s) +2

RECENT       TASK  TYPE      QUEUE     TOOK   WORKER      OUTCOME
02:31:07     3411  compute   default   41ms   mgr-4188/1  completed
02:31:06     3398  mail.send mail      2.1s   node2-97/0  failed after 4: SMTPServerDisconnected
! no worker serves "resize_image" (14 pending)
"""
    )


def test_picture_of_80_columns() -> None:
    assert (
        shown(SNAPSHOT)
        == """\
taskq default  127.0.0.1:8275  up 2h14m  cpu 6%  rss 41M   02:31:07
 store sqlite, committed    in 402/s  done 398/s  failed 0.3/s
 pending 1,204  oldest 2.9s   running 4/4  failed 2

QUEUE   PENDING OLDEST RUNNING SCHEDULED  IN/s DONE/s WAIT p95 RUN p95
default   1,180   2.9s      12         3 402.1  398.0     3.1s    41ms
mail         24      -       0         0     -      -        -       -   PAUSED

WORKER     BUSY CPU RSS   DONE FAILED BEAT  NOW
mgr-4188/1  4/4 98% 41M 12,048     31 0.4s  compute 3412 (1.2s) +3

RECENT   TASK TYPE      QUEUE   TOOK WORKER     OUTCOME
02:31:07 3411 compute   default 41ms mgr-4188/1 completed
02:31:06 3398 mail.send mail    2.1s node2-97/0 failed after 4: SMTPServerDisco…
! no worker serves "resize_image" (14 pending)
"""
    )


EMPTY = {"manager": {"name": "default"}, "queues": [], "workers": [], "recent": [], "warnings": []}


def test_picture_of_nothing_says_what_to_run() -> None:
    assert (
        shown(EMPTY)
        == """\
taskq default  -  up -  cpu -  rss -   -
 store -    in 0/s  done 0/s  failed 0/s
 pending 0  oldest -   running 0/0  failed -

QUEUE  PENDING  OLDEST  RUNNING  SCHEDULED  IN/s  DONE/s  WAIT p95  RUN p95
 no tasks yet; try "taskq-submit --random --count 20"

WORKER           BUSY     CPU    RSS    DONE  FAILED  BEAT  NOW
 no workers; start some with "taskq-worker"

RECENT       TASK  TYPE      QUEUE     TOOK   WORKER      OUTCOME
 nothing has finished yet
"""
    )


def test_a_manager_that_was_started_again_does_not_say_that_there_never_was_anything() -> None:
    text = shown({**EMPTY, "totals": {"submitted": 7, "completed": 7}})
    assert ' nothing waits or runs; "taskq-monitor task list" shows what was done before\n' in text
    assert " nothing has finished since the manager started\n" in text


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        yield (*path, name)
        yield from _paths(child, (*path, name))


@pytest.mark.parametrize("path", list(_paths(SNAPSHOT)), ids=lambda path: ".".join(map(str, path)))
def test_any_field_may_be_unknown_or_missing(path: tuple[Any, ...]) -> None:
    for change in ("none", "absent"):
        snapshot = copy.deepcopy(SNAPSHOT)
        parent = snapshot
        for name in path[:-1]:
            parent = parent[name]
        if isinstance(parent, list):
            del parent[path[-1]]
        elif change == "none":
            parent[path[-1]] = None
        else:
            del parent[path[-1]]
        text = shown(snapshot)
        assert "QUEUE" in text
        assert max(map(len, text.splitlines())) <= 80


def test_no_line_is_wider_than_asked_whatever_the_names() -> None:
    snapshot = copy.deepcopy(SNAPSHOT)
    long = "a-very-long-name." * 6
    snapshot["manager"]["address"] = long
    snapshot["queues"][0] |= {"name": long, "pending": 10**9, "scheduled": 10**9, "running": 10**9}
    snapshot["workers"][0]["id"] = long
    snapshot["workers"][0]["running"][0]["type"] = long
    snapshot["recent"][1] |= {"id": 10**12, "type": long, "queue": long, "worker": long}
    for width in (40, 60, 80, 100, 140, 300):
        assert max(map(len, shown(snapshot, width).splitlines())) <= width
    assert "…" in shown(snapshot, 80)
    assert long in shown(snapshot, 400)


def test_names_cannot_send_control_codes_to_the_terminal() -> None:
    snapshot = copy.deepcopy(SNAPSHOT)
    snapshot["queues"][0]["name"] = "\x1b[2Jq\n"
    snapshot["recent"][1]["error"]["type"] = "\x1b]0;title\x07"
    snapshot["warnings"][0]["message"] = "a\r\nb"
    text = shown(snapshot, 120)
    assert all(char.isprintable() or char == "\n" for char in text)
    assert len(text.splitlines()) == len(shown(SNAPSHOT, 120).splitlines())


def test_a_low_terminal_gets_shorter_lists_and_keeps_the_warnings() -> None:
    snapshot = copy.deepcopy(SNAPSHOT)
    snapshot["recent"] = snapshot["recent"] * 10
    text = shown(snapshot, 80, 24)
    assert len(text.splitlines()) == 24
    assert text.splitlines()[-2:] == [" … 10 more", '! no worker serves "resize_image" (14 pending)']
    assert len(shown(snapshot, 80, 200).splitlines()) == 33


def test_failed_rows_and_warnings_are_marked_for_colour() -> None:
    kinds = [line.kind for line in views.render(SNAPSHOT, 101)]
    assert kinds == [
        *["title", "title", "space", "head", "row", "row", "space", "head", "row"],
        *["space", "head", "row", "failed", "warning"],
    ]
    assert set(kinds) <= set(monitor.STYLES)


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ({"state": "completed"}, "completed"),
        ({"state": "cancelled"}, "cancelled"),
        ({"state": "failed", "failures": 1, "error": {"kind": "timeout", "type": ""}}, "failed after 1: timeout"),
        ({"state": "failed", "deaths": 3, "error": {"kind": "poisoned"}}, "failed after 3 deaths"),
        ({"state": "failed"}, "failed"),
    ],
)
def test_outcomes_in_words(task: dict[str, Any], text: str) -> None:
    assert views.outcome(task) == text


def test_a_task_that_tells_how_far_it_is() -> None:
    running = [{"id": 7, "type": "fetch", "for_s": 4.0, "progress": 0.5, "note": "half way"}]
    snapshot = SNAPSHOT | {"workers": [{"id": "mgr-1/0", "running": running}]}
    assert " fetch 7 (4.0s, 50%)\n" in shown(snapshot)


def test_workers_are_in_the_order_of_their_pools_and_numbers() -> None:
    names = ["mgr-1/10", "mgr-1/2", "node", "alpha-3/0", "mgr-1/0"]
    snapshot = SNAPSHOT | {"workers": [{"id": name} for name in names]}
    lines = shown(snapshot).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("WORKER"))
    listed = [line.split()[0] for line in lines[start + 1 : start + 6]]
    assert listed == ["node", "alpha-3/0", "mgr-1/0", "mgr-1/2", "mgr-1/10"]


def test_a_worker_that_is_not_well_says_so_in_capitals() -> None:
    snapshot = copy.deepcopy(SNAPSHOT)
    snapshot["workers"][0] |= {"state": "silent", "running": []}
    assert shown(snapshot, 101).splitlines()[8].endswith("  0.4s  SILENT")


def test_health_is_every_warning_and_the_lack_of_workers() -> None:
    healthy = SNAPSHOT | {"warnings": []}
    assert views.unhealthy(healthy) == []
    assert views.in_short(healthy) == "1 worker, 4 threads, 1,204 pending, 12 running"
    assert views.unhealthy(SNAPSHOT) == ['no worker serves "resize_image" (14 pending)']
    assert views.unhealthy(healthy | {"workers": []}) == ["no workers"]
    assert views.unhealthy({}) == ["no workers"]


def test_pools_without_a_sign_of_life_are_warnings() -> None:
    workers = [
        {"id": "mgr-1/0", "state": "running", "last_heartbeat_s": 0.5},
        {"id": "node2-97/0", "state": "silent", "last_heartbeat_s": 24.0},
        {"id": "node2-97/1", "state": "silent", "last_heartbeat_s": 25.4},
        {"id": "node3-5/0", "state": "stopped", "last_heartbeat_s": 0.5},
    ]
    snapshot = SNAPSHOT | {"workers": workers, "warnings": []}
    assert views.warnings(snapshot) == [
        "node2-97: 2 workers silent, no heartbeat for 25s",
        "node3-5: 1 worker suspended (stopped by a signal)",
    ]
    assert views.unhealthy(snapshot) == views.warnings(snapshot)
    assert shown(snapshot).splitlines()[-1] == "! node3-5: 1 worker suspended (stopped by a signal)"


def test_the_heading_counts_the_failed_tasks_that_are_kept() -> None:
    assert " failed 5\n" in shown(SNAPSHOT | {"kept": {"completed": 9, "failed": 5}}, 101)


def test_a_warning_of_a_newer_manager_is_shown_with_its_fields() -> None:
    assert views.describe_warning({"code": "clock_jumped", "by_s": 3.5}) == "clock jumped by_s=3.5"


def test_a_table_takes_the_fullest_wording_that_fits() -> None:
    columns = (Column("NAME", 6, right=False, cuttable=True), Column("N", 1), Column("", 0, right=False))
    rows, tails = [("abc", "1")], [["a long explanation", "short"]]
    assert table(columns, rows, tails, 40) == ["NAME    N", "abc     1  a long explanation"]
    assert table(columns, rows, tails, 14) == ["NAME N", "abc  1  short"]
    assert table(columns, [("abcdefghijkl", "1")], tails, 16) == ["NAME     N", "abcdefg… 1  sho…"]


# -- watching --------------------------------------------------------------------------------------------------------


class Script:
    """A source that answers with what it was given, one after the other; an exception is raised."""

    def __init__(self, *answers: dict[str, Any] | TaskqError) -> None:
        self.answers = list(answers)
        self.opened = 0
        self.closed = 0

    def connect(self) -> Script:
        self.opened += 1
        return self

    def snapshot(self) -> dict[str, Any]:
        answer = self.answers.pop(0)
        if isinstance(answer, TaskqError):
            raise answer
        return answer

    def close(self) -> None:
        self.closed += 1


def test_a_watch_goes_on_while_the_manager_is_away() -> None:
    away = ManagerUnavailable("no manager at 127.0.0.1:8275 (connection refused)")
    script = Script({"n": 1}, away, away, {"n": 2})
    clock = FakeClock()
    samples = monitor.Watch(script.connect, 0.0, clock).samples()
    assert next(samples) == monitor.Sample({"n": 1}, 1000.0)
    clock.advance(5)
    assert next(samples) == monitor.Sample({"n": 1}, 1000.0, 1_700_000_005.0, away.message)
    clock.advance(5)
    assert next(samples) == monitor.Sample({"n": 1}, 1000.0, 1_700_000_005.0, away.message)
    assert next(samples) == monitor.Sample({"n": 2}, 1010.0)
    assert (script.opened, script.closed) == (3, 2)


def test_a_manager_that_was_never_there_is_an_error() -> None:
    script = Script(ManagerUnavailable("no manager"))
    with pytest.raises(ManagerUnavailable, match="no manager"):
        next(monitor.Watch(script.connect, 1.0, SystemClock()).samples())
    assert script.closed == 1


class Hanging:
    """A source whose call lasts until it is closed."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.cut = threading.Event()

    def snapshot(self) -> dict[str, Any]:
        self.asked.set()
        assert self.cut.wait(10)
        raise ManagerUnavailable("closed")

    def close(self) -> None:
        self.cut.set()


def test_closing_a_watch_cuts_off_a_call_that_hangs() -> None:
    source = Hanging()
    watch = monitor.Watch(lambda: source, 1.0, SystemClock())
    seen: list[Any] = []

    def follow() -> None:
        with pytest.raises(ManagerUnavailable):
            seen.extend(watch.samples())

    thread = threading.Thread(target=follow)
    thread.start()
    assert source.asked.wait(10)
    watch.close()
    thread.join(10)
    assert not thread.is_alive()
    assert seen == []


def test_an_old_picture_says_how_old_it_is() -> None:
    sample = monitor.Sample(SNAPSHOT, 100.0)
    current = monitor.picture(sample, 101.0, 80, None, 1.0)
    assert current == views.render(SNAPSHOT)
    silent = monitor.picture(sample, 110.0, 80, None, 1.0)
    assert silent == [views.Line("warning", "! no answer for 10 s, waiting"), *current]
    away = monitor.picture(sample._replace(away_since=0.0, problem="refused"), 110.0, 80, None)
    assert away[0].text.startswith("! manager away since ")
    assert away[0].text.endswith(", retrying (refused)")
    assert away[1:] == current


def test_jsonl_is_one_snapshot_a_line_and_none_while_the_manager_is_away() -> None:
    away = ManagerUnavailable("no manager")
    script = Script({"n": 1}, away, away, {"n": 2}, away, {"n": "é\n"})
    watch = monitor.Watch(script.connect, 0.0, FakeClock())
    lines: list[str] = []
    warned: list[str] = []

    def write(line: str) -> None:
        lines.append(line)
        if len(lines) == 3:
            watch.close()

    monitor.export_lines(watch, write, warned.append)
    assert [json.loads(line) for line in lines] == [{"n": 1}, {"n": 2}, {"n": "é\n"}]
    assert all("\n" not in line for line in lines)
    assert warned == ["no manager; retrying", "no manager; retrying"]


def test_without_a_terminal_the_pictures_are_printed_one_after_the_other() -> None:
    watch = monitor.Watch(Script(SNAPSHOT, SNAPSHOT).connect, 0.0, FakeClock())
    printed = io.StringIO()

    def write(text: str) -> None:
        if printed.tell():
            watch.close()
        printed.write(text + "\n")

    monitor.print_forever(watch, FakeClock(), 0.0, write)
    once = views.to_text(views.render(SNAPSHOT))
    assert printed.getvalue() == f"{once}\n" * 2


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "stats.json"
    monitor.write_atomically(target, "old")
    with target.open() as reader:
        monitor.write_atomically(target, "new")
        assert reader.read() == "old\n"
    assert target.read_text() == "new\n"
    monitor.append(target, "more")
    assert target.read_text() == "new\nmore\n"
    assert [path.name for path in tmp_path.iterdir()] == ["stats.json"]


@pytest.mark.parametrize("write", [monitor.write_atomically, monitor.append])
def test_a_file_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path, write: Any) -> None:
    with pytest.raises(TaskqError, match=r"cannot write to .*/stats.json: no such file or directory"):
        write(tmp_path / "nowhere" / "stats.json", "x")


# -- records ---------------------------------------------------------------------------------------------------------


def record(**changes: Any) -> dict[str, Any]:
    row = TaskRow(
        id=42,
        type="compute",
        queue="default",
        payload=codec.encode_arguments((), {"operation": "factorial", "value": 10}),
        priority=0,
        max_retries=3,
        backoff=1.0,
        timeout=None,
        terms_more=None,
        key=None,
        correlation_id="c-1",
        client=7,
        submitted_at=1_700_000_000.25,
        due_at=1_700_000_000.25,
        state=State.COMPLETED,
        run=2**40 + 5,
        failures=0,
        deaths=0,
        cancel_requested=False,
        worker="f00d",
        worker_name="mgr-4188/1",
        started_at=1_700_000_001.0,
        finished_at=1_700_000_001.041,
        result=codec.encode(3_628_800),
        error=None,
    )
    return describe(row._replace(**changes))


SHOWN = {
    "id": 42,
    "type": "compute",
    "queue": "default",
    "state": "completed",
    "priority": 0,
    "retry": {
        **{"max_retries": 3, "backoff": 1.0, "factor": 2.0, "max_delay": 3600.0, "jitter": True},
        **{"retry_on": None, "never_on": None},
    },
    "payload": {"type": "compute", "operation": "factorial", "value": 10},
    "submitted_at": "2023-11-14T22:13:20.250Z",
    "due_at": "2023-11-14T22:13:20.250Z",
    "expires_at": None,
    "started_at": "2023-11-14T22:13:21.000Z",
    "finished_at": "2023-11-14T22:13:21.041Z",
    "failures": 0,
    "deaths": 0,
    "timeout": None,
    "cancel_requested": False,
    "worker": "mgr-4188/1",
    "result": 3_628_800,
    "ignore_result": False,
    "result_ttl": None,
    "error": None,
    "correlation_id": "c-1",
    "key": None,
    "unique": None,
}

TYPES: Any = {"tasks.add": {"name": "tasks.add", "parameters": [("x", 1, True), ("y", 1, False), ("rest", 2, False)]}}


def test_a_record_is_shown_with_these_fields() -> None:
    assert list(records.public(record()).items()) == list(SHOWN.items())


def test_times_and_twins_of_a_record_are_shown() -> None:
    terms = '{"expires":60,"unique_in":["pending"],"unique_within":5.0}'
    shown = records.public(record(terms_more=terms))
    assert shown["expires_at"] == "2023-11-14T22:14:20.250Z"
    assert shown["unique"] == {"while_in": ["pending"], "within": 5.0}
    assert records.public(record(terms_more='{"expires_by":1700000000.0}'))["expires_at"] == "2023-11-14T22:13:20.000Z"


@pytest.mark.parametrize(
    ("args", "kwargs", "payload"),
    [
        ((1, 2), {}, {"x": 1, "y": 2}),
        ((1,), {"y": 2}, {"x": 1, "y": 2}),
        ((), {}, {}),
        ((1, 2, 3), {}, {"args": [1, 2, 3]}),
        ((1,), {"type": "t"}, {"args": [1], "kwargs": {"type": "t"}}),
    ],
)
def test_arguments_by_position_get_the_names_that_workers_announced(
    args: tuple[Any, ...], kwargs: dict[str, Any], payload: dict[str, Any]
) -> None:
    given = record(type="tasks.add", payload=codec.encode_arguments(args, kwargs))
    assert records.public(given, TYPES)["payload"] == {"type": "tasks.add", **payload}


def test_arguments_of_a_type_that_nobody_announced_are_listed() -> None:
    given = record(type="gone", payload=codec.encode_arguments((1, "a"), {}))
    assert records.public(given, TYPES)["payload"] == {"type": "gone", "args": [1, "a"]}


def test_what_cannot_be_decoded_is_shown_as_it_is() -> None:
    shown = records.public(record(payload=b"\xc1", result=b"\xc1"))
    assert shown["payload"] == {"type": "compute", "encoded": b"\xc1"}
    assert shown["result"] == b"\xc1"


def test_unfinished_and_failed_records() -> None:
    error = ("error", "OSError", "no route", 'Traceback:\n  File "x"\nOSError: no route')
    failed = record(state=State.FAILED, failures=4, result=None, error=error)
    assert records.public(failed)["error"] == dict(zip(("kind", "type", "message", "traceback"), error, strict=True))
    now = failed["submitted_at"] + 60
    assert records.list_row(failed, now, timezone.utc) == (
        *(42, "failed", "compute", "default", "22:13:20", "41ms", "mgr-4188/1", "failed after 4: OSError"),
    )
    waiting = record(state=State.SCHEDULED, failures=1, finished_at=None, worker_name=None, error=error)
    assert records.list_row(waiting, now + 86_400, timezone.utc) == (
        *(42, "scheduled", "compute", "default", "2023-11-14 22:13", "-", "-", "failed 1 so far: OSError"),
    )


def test_details_for_people() -> None:
    failed = records.public(record(state=State.FAILED, result=None, error=("error", "OSError", "no", "Trace\n  back")))
    assert "\n".join(records.detail_lines(failed, json.dumps)) == (
        "id                42\n"
        "type              compute\n"
        "queue             default\n"
        "state             failed\n"
        "priority          0\n"
        "retry             up to 3, 1.0s after the first failure, x2 after each further one, at most 1h00m\n"
        'payload           {"type": "compute", "operation": "factorial", "value": 10}\n'
        "submitted_at      2023-11-14T22:13:20.250Z\n"
        "due_at            2023-11-14T22:13:20.250Z\n"
        "expires_at        -\n"
        "started_at        2023-11-14T22:13:21.000Z\n"
        "finished_at       2023-11-14T22:13:21.041Z\n"
        "failures          0\n"
        "deaths            0\n"
        "timeout           -\n"
        "cancel_requested  false\n"
        "worker            mgr-4188/1\n"
        "result            -\n"
        "ignore_result     false\n"
        "result_ttl        -\n"
        "error             error: OSError: no\n"
        "correlation_id    c-1\n"
        "key               -\n"
        "unique            -\n"
        "\n"
        "Trace\n"
        "  back"
    )
    nothing = records.public(record(result=codec.encode(None)))
    assert "result            null" in records.detail_lines(nothing, json.dumps)


def test_answers_to_cancel_in_words() -> None:
    assert records.cancelled_line(7, "cancelled") == "task 7 cancelled"
    assert records.cancelled_line(7, "completed") == "task 7 had completed already"
    assert records.cancelled_line(7, "unknown") == "task 7 is not there"


def test_a_new_task_has_the_fields_that_a_record_shows() -> None:
    assert {"type", "queue", "priority", "payload", "correlation_id"} <= {*NewTask._fields, *Terms._fields} & {*SHOWN}
