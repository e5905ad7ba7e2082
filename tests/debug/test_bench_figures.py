"""The figures of ``taskq bench``, what it shows of them, and how it reads samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from taskq.bench import floors, report
from taskq.bench.figures import Row, median, percentile
from taskq.bench.profile import Profile, top
from taskq.bench.runner import Report, machine
from taskq.bench.settings import Settings
from taskq.bench.workloads import WORKLOADS
from taskq.cli.bench import command
from taskq.cli.output import EXIT_USAGE, run


def test_median_and_percentiles() -> None:
    assert median([5, 1, 9]) == 5
    assert median([1, 2, 3, 10]) == 2.5
    assert [percentile(range(1, 201), percent) for percent in (0, 50, 99, 100)] == [1, 100, 198, 200]
    assert percentile([7.0], 99) == 7.0


@pytest.mark.parametrize(
    ("at_most", "limit", "passed"), [(False, 2.0, True), (False, 2.1, False), (True, 2.0, True), (True, 1.9, False)]
)
def test_the_median_is_held_against_the_bar(at_most: bool, limit: float, passed: bool) -> None:
    row = Row("P1", "live", "s", (9.0, 1.0, 2.0), limit=limit, at_most=at_most)
    assert row.passed is passed
    found = row.as_json()
    assert (found["median"], found["lowest"], found["highest"], found["passed"]) == (2.0, 1.0, 9.0, passed)


def test_a_bar_without_a_number_is_neither_passed_nor_missed() -> None:
    assert Row("P1", "live", "s", (1.0,), bar="see README").passed is None


def test_the_table_fits_and_says_what_was_missed() -> None:
    found = Report(Settings(runs=2, scale=0.5), {**machine(), "disk": "tmpfs"})
    found.rows = [
        Row("P1", "live", "tasks/s", (61_000.0, 63_000.0), bar="see README"),
        Row("P4", "p99", "ms", (3.0, 3.5), bar="<= 2 ms", limit=2.0, at_most=True, note="busy"),
        Row("P10", "of the rate without them", "x", (0.9, 0.8), bar=">= 0.80", limit=0.8),
    ]
    found.left_out, found.failed = [("P2", "it needs a manager of its own")], [("P3", "lost the manager")]
    found.profile = Profile(10, 5.0, {"manager": 12.0}, {"manager": [("wire.frames." + "x" * 120, 0.5)]}, "no more")
    lines = report.lines(found)
    assert max(map(len, lines)) <= report.WIDTH or lines[0].startswith(found.machine["system"])
    text = "\n".join(lines)
    assert "62,000 tasks/s" in text and "MISSED  <= 2 ms" in text and "ok      >= 0.80" in text
    assert "--scale 0.5" in text and "TMPDIR" in text
    assert "P2 left out: it needs" in text and "P3 could not be measured: lost" in text
    assert "manager 12.0" in text and " 50.0%  wire.frames.xxx" in text
    assert json.loads(json.dumps(found.as_json()))["rows"][2]["passed"] is True


def test_samples_count_for_the_function_of_taskq_that_was_at_work() -> None:
    door = "loop (/x/taskq/wire/door.py:9)"
    raw = (
        f"{door};send (/x/taskq/wire/frames.py:7) 3\n{door};wait (/lib/threading.py:1) 2\nidle (/lib/threading.py:1) 1"
    )
    shares = [("wire.frames.send", 3 / 6), ("wire.door.loop > threading.wait", 2 / 6), ("threading.idle", 1 / 6)]
    assert top(raw) == shares
    assert top(raw, 1) == shares[:1]
    assert top("") == []


def test_floors_are_real_figures() -> None:
    durable = floors.commits(20)
    assert 0 < durable.median <= durable.p99 <= durable.worst < 10
    assert 0 < floors.loopback(50) < 0.1
    assert floors.insert_rate(10_240, 60) > 1
    assert 0 < floors.msgpack(100) < 0.01


def test_workloads_are_listed_and_unknown_ones_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "taskq bench", ["--list", "--json"]) == 0
    assert [found["id"] for found in json.loads(capsys.readouterr().out)] == list(WORKLOADS)
    assert run(command, "taskq bench", ["P1", "P99"]) == EXIT_USAGE
    assert '"P99" is none of P1, P2' in capsys.readouterr().err


def test_scale_makes_workloads_smaller_but_never_empty() -> None:
    settings = Settings(scale=0.001, join=Path("somewhere"))
    assert (settings.count(100_000), settings.count(10)) == (100, 20)
