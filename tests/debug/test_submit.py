"""``taskq-submit``, as its user sees it: what it reads, refuses, prints and exits with."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cluster import wait_until
from here import Here

from taskq import entries
from taskq.cli.output import run
from taskq.cli.submit import command
from taskq.errors import BadArguments
from taskq.options import Options
from taskq.submit import NOTE_COUNTS

DOUBLE = {"type": "compute", "operation": "double", "value": 4}


class Done(NamedTuple):
    code: int
    out: str
    err: str


Submit = Callable[..., Done]


@pytest.fixture
def submit(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Submit:
    """Run the command against `here`, in this process."""
    state = tmp_path / "state"
    state.mkdir()
    monkeypatch.setenv("TASKQ_STATE_DIR", str(state))
    write_join(state, here)

    def submit(*words: object, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        code = run(command, "taskq-submit", [str(word) for word in words])
        return Done(code, *capfd.readouterr())

    return submit


def write_join(state: Path, here: Here) -> None:
    file = state / "join.json"
    file.touch(mode=0o600)
    file.write_text(here.join.to_json())


def record(here: Here, id: int) -> dict[str, Any]:
    (found,) = here.service().get([id])
    assert found is not None
    return found


def submitted(here: Here) -> int:
    return int(here.service().snapshot()["totals"]["submitted"])


# -- what it prints --------------------------------------------------------------------------------------------------


def test_ids_one_a_line(submit: Submit, here: Here) -> None:
    here.worker()
    assert submit("--payload", json.dumps(DOUBLE)) == Done(0, "1\n", "")
    assert submit("-q", "compute", "operation=double", "value=4") == Done(0, "2\n", "")
    assert submit("--json", "compute", "operation=double", "value=4") == Done(0, '{"ids": [3], "existing": []}\n', "")


def test_wait_prints_results_as_json_in_order(submit: Submit, here: Here) -> None:
    here.worker()
    assert (
        submit("--payload", json.dumps({**DOUBLE, "operation": "factorial", "value": 10}), "--wait").out == "3628800\n"
    )
    several = json.dumps([{**DOUBLE, "value": n} for n in range(5)])
    assert submit("--payload-file", "-", "--wait", "30", stdin=several) == Done(0, "0\n2\n4\n6\n8\n", "")
    assert submit("http_request", "url=https://example.com", "--wait").out.startswith('{"url": "https://example.com"')
    assert submit("--wait", "compute", "operation=double", "value=1") == Done(0, "2\n", "")


def test_big_integers_in_full_both_ways(submit: Submit, here: Here) -> None:
    here.worker()
    number = "9" * 6_000
    limit = sys.get_int_max_str_digits()
    try:
        done = submit("--payload", f'{{"type": "compute", "operation": "double", "value": {number}}}', "--wait")
    finally:
        sys.set_int_max_str_digits(limit)
    assert done == Done(0, "1" + "9" * 5_999 + "8\n", "")
    assert submit("compute", "operation=double", f"value={number}").code == 0


def test_a_failed_task(submit: Submit, here: Here) -> None:
    here.worker()
    done = submit("fail", "error_message=oh no", "--max-retries", 0, "--wait")
    assert done == Done(
        1, "", "Traceback of the worker\nerror: task 1 failed after 1 attempt on here/0: RuntimeError: oh no\n"
    )
    several = f'[{json.dumps(DOUBLE)}, {{"type": "fail"}}, {json.dumps(DOUBLE)}]'
    done = submit("--payload-file", "-", "--max-retries", 0, "--wait", stdin=several)
    assert (done.code, done.out) == (1, "8\n8\n")
    done = submit("--payload-file", "-", "--max-retries", 0, "--wait", "--json", stdin=several)
    assert done.code == 1
    value = json.loads(done.out)
    assert value["ids"] == [5, 6, 7]
    assert [one["state"] for one in value["results"]] == ["completed", "failed", "completed"]
    assert value["results"][1]["error"]["type"] == "RuntimeError"
    assert json.loads(done.err)["error"]["code"] == "task_failed"


def test_wait_that_runs_out_of_time(submit: Submit, here: Here) -> None:
    done = submit("sleep", "duration=60", "--wait", "0.1")
    assert (done.code, done.out) == (124, "")
    assert "error: task 1 has not finished within 0.1 s" in done.err
    assert record(here, 1)["state"] == "pending"
    done = submit("--payload-file", "-", "--wait=100ms", stdin='{"type": "sleep", "duration": 60}\n' * 2)
    assert "2 of 2 tasks have not finished" in done.err


def test_a_cancelled_task_is_a_failure(submit: Submit, here: Here) -> None:
    timer = threading.Thread(
        target=lambda: (wait_until(lambda: submitted(here) == 1), here.service().cancel([1])), args=()
    )
    timer.start()
    done = submit("sleep", "duration=60", "--wait", "30")
    timer.join()
    assert done.code == 1
    assert done.err.endswith("error: task 1 was cancelled\n")


# -- options ---------------------------------------------------------------------------------------------------------


def test_options_reach_the_record(submit: Submit, here: Here) -> None:
    submit(
        "sleep",
        "duration=0",
        "--max-retries",
        7,
        "--queue",
        "slow",
        "--priority",
        -3,
        "--delay",
        "1h",
        "--dedupe-key",
        "k",
    )
    found = record(here, 1)
    assert (found["max_retries"], found["queue"], found["priority"], found["key"]) == (7, "slow", -3, "k")
    assert found["state"] == "scheduled"
    assert 3_590 < found["due_at"] - found["submitted_at"] <= 3_600
    submit("sleep", "duration=0")
    found = record(here, 2)
    assert (found["max_retries"], found["queue"], found["priority"], found["key"]) == (3, "default", 0, None)


def test_entries_have_their_own_options_and_take_the_others_from_the_command(submit: Submit, here: Here) -> None:
    text = json.dumps([{"payload": DOUBLE, "priority": 9, "delay": "5s", "dedupe_key": "a"}, DOUBLE])
    assert submit("--payload-file", "-", "--priority", 1, "--max-retries", 0, stdin=text).code == 0
    first, second = record(here, 1), record(here, 2)
    assert (first["priority"], first["max_retries"], first["key"], first["state"]) == (9, 0, "a", "scheduled")
    assert (second["priority"], second["max_retries"], second["state"]) == (1, 0, "pending")


def test_times_are_read_as_people_write_them(submit: Submit, here: Here) -> None:
    submit("sleep", "duration=0", "--at", "2090-01-31T08:00+01:00", "--expires", "2090-01-31T08:00Z")
    submit("sleep", "duration=0", "--at", "+90m", "--expires", "2h")
    first, second = record(here, 1), record(here, 2)
    assert (first["due_at"], first["expires_at"]) == (3_789_529_200.0, 3_789_532_800.0)
    assert second["due_at"] - second["submitted_at"] == pytest.approx(5_400)
    assert second["expires_at"] - second["submitted_at"] == pytest.approx(7_200)
    text = json.dumps([{"payload": DOUBLE, "at": "+5s", "expires": 60}, {"payload": DOUBLE, "delay": 5}, DOUBLE])
    assert submit("--payload-file", "-", "--at", "2090-01-31T08:00Z", stdin=text).code == 0
    found = [record(here, id) for id in (3, 4, 5)]
    assert [one["due_at"] - one["submitted_at"] < 6 for one in found] == [True, True, False]
    assert [one["expires"] for one in found] == [60, None, None]


def test_a_unique_submit_says_whether_the_task_was_there(submit: Submit, here: Here) -> None:
    done = submit("sleep", "duration=1", "--unique")
    assert done.out == "1\n" and "already" not in done.err
    done = submit("--unique", "sleep", "duration=1")
    assert done.out == "1\n" and done.err.endswith("task 1 was there already\n")
    assert submit("sleep", "duration=1", "timeout=9", "--unique", "-q").out == "3\n", "other arguments"
    assert submit("sleep", "duration=1", "timeout=7", "--unique=duration").out == "4\n", "no such value yet"
    done = submit("sleep", "duration=1", "timeout=8", "--unique=duration", "--json")
    assert json.loads(done.out) == {"ids": [4], "existing": [4]}
    done = submit("sleep", "duration=1", "--unique=duration", "--on-conflict", "raise", "--json")
    error = json.loads(done.err)["error"]
    assert (done.code, error["code"]) == (5, "not_unique") and "task 4 (sleep) is there" in error["message"]
    text = json.dumps([{"payload": DOUBLE, "unique": True}, {"payload": DOUBLE, "unique": {"within": "1m"}}])
    done = submit("--payload-file", "-", stdin=text)
    assert done.out == "6\n6\n" and done.err.endswith("task 6 was there already\n")
    assert record(here, 6)["unique_in"] == ("pending", "scheduled", "running")


def test_the_same_dedupe_key_gives_the_same_task(submit: Submit, here: Here) -> None:
    assert submit("sleep", "duration=1", "--dedupe-key", "k").out == "1\n"
    assert submit("sleep", "duration=1", "--dedupe-key", "k").out == "1\n"
    done = submit("sleep", "duration=2", "--dedupe-key", "k")
    assert done.code == 2
    assert submit("--payload-file", "-", "--dedupe-key", "k", stdin=json.dumps([DOUBLE, DOUBLE])).code == 2


def test_dry_run_submits_nothing(submit: Submit, here: Here) -> None:
    text = json.dumps([DOUBLE, {"payload": DOUBLE, "priority": 3}])
    done = submit("--payload-file", "-", "--dry-run", stdin=text)
    assert (done.code, [json.loads(line) for line in done.out.splitlines()]) == (0, json.loads(text))
    assert "2 tasks would be submitted\n" in done.err
    assert submit("compute", "operation=double", "--dry-run").code == 2
    assert submitted(here) == 0


def test_random_tasks_of_all_types_the_same_for_a_seed(submit: Submit, here: Here) -> None:
    first = submit("--random", "--count", 200, "--seed", 7, "--dry-run").out
    assert first == submit("--random", "--count", 200, "--seed", 7, "--dry-run").out
    assert first != submit("--random", "--count", 200, "--seed", 8, "--dry-run").out
    types = [json.loads(line)["type"] for line in first.splitlines()]
    assert set(types) == {"compute", "sleep", "http_request", "fail"}
    assert 0 < types.count("fail") < 30
    assert all(json.loads(line).get("duration", 0) <= 0.2 for line in first.splitlines())
    assert len(submit("--random").out.split()) == 10


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "what to submit?"),
        (["--payload", "{}", "--random"], "give one of"),
        (["--count", "3", "sleep", "duration=1"], "go with --random"),
        (["--seed", "3", "sleep", "duration=1"], "go with --random"),
        (["--keep-going", "sleep", "duration=1"], "--keep-going goes with --payload-file"),
        (["--random", "--wait", "--dry-run"], "--dry-run submits nothing"),
        (["--random", "--dedupe-key", "k"], "--dedupe-key stands for one task"),
        (["--random", "--count", "0"], "--count"),
        (["sleep", "duration=1", "--wait=soon"], '"soon" is not a duration'),
        (["sleep", "duration=1", "--max-retries", "-1"], "--max-retries"),
        (["sleep", "duration=1", "--delay", "-1s"], "--delay"),
        (["sleep", "duration=1", "--at", "tomorrow"], '"tomorrow" is not a time'),
        (["sleep", "duration=1", "--at", "2030-01-31T08:00"], "has no time zone"),
        (["sleep", "duration=1", "--at", "+1s", "--delay", "1s"], "not both"),
        (["sleep", "duration=1", "--expires", "1s", "--delay", "1s"], "expire before it is due"),
        (["sleep", "duration=1", "--unique-within", "1s"], "go with --unique"),
        (["sleep", "duration=1", "--unique=z"], 'sleep has no argument "z"'),
        (["sleep", "duration=1", "--unique", "--unique-while", "failed"], 'not "failed"'),
        (["sleep", "duration=1", "--unique", "--dedupe-key", "k"], "not both"),
        (["--payload", '{"payload": {"type": "sleep"}, "unique": "duration"}'], "not a text"),
        (["--payload", '{"payload": {"type": "sleep"}, "unique": {"fields": []}}'], 'there is no part "fields"'),
        (["--payload", '{"payload": {"type": "sleep"}, "expires": "never"}'], 'expires: "never" is not a time'),
        (["sleep", "duration"], '"duration" is not name=value'),
        (["sleep", "duration=1", "duration=2"], '"duration" is given twice'),
        (["sleep", "duration=1", "--queue", "a b"], "a queue's name"),
        (["sleep", "duration=1", "--priority", "99999999999"], "priority must be"),
        (["--payload", "[1]"], "a payload is an object with a type, not an array"),
        (["--payload", '{"value": 1}'], 'the payload has no "type"'),
        (["--payload", '{"type": 7}'], 'the payload has no "type"'),
        (["--payload", '{"payload": {"type": "sleep"}, "prio": 1}'], 'there is no option "prio"'),
        (["--payload", '{"payload": {"type": "sleep"}, "delay": "soon"}'], 'delay: "soon" is not a duration'),
        (["--payload", '{"payload": 3}'], "not a number"),
        (["--payload", '{"type": "compute", "operation": "double", "value": NaN}'], "NaN is no JSON"),
        (["--payload", "[" * 100_000], "nested too deeply"),
        (["--payload-file", "no-such-file"], "cannot read no-such-file: no such file or directory"),
        (["--payload-file", "-"], "standard input is empty"),
        (["compute", "operation=double", "value=-1"], "value must be an integer from 0 on"),
        (["sleep", "duration=1", "z=2"], 'sleep(duration, timeout) got an unexpected argument "z"'),
    ],
)
def test_bad_usage_is_exit_code_2_and_submits_nothing(submit: Submit, here: Here, words: list[str], text: str) -> None:
    done = submit(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert text in done.err
    assert submitted(here) == 0
    assert json.loads(submit("--json", *words).err)["error"]["message"]


def test_an_empty_payload_has_no_place_to_show(submit: Submit) -> None:
    done = submit("--payload", " ")
    assert done.code == 2
    assert done.err == "error: --payload is empty\nhint: in a shell, put single quotes around it: '{\"type\": …}'\n"


def test_bad_json_shows_the_place(submit: Submit) -> None:
    done = submit("--payload", '{"type": compute}')
    assert done == Done(
        2,
        "",
        "error: --payload is not valid JSON: line 1 column 10: Expecting value\n"
        '  {"type": compute}\n'
        "           ^\n"
        "hint: in a shell, put single quotes around it: '{\"type\": …}'\n",
    )
    long = '{"type": "' + "x" * 500 + '", oops, "' + "y" * 500 + '": 1}'
    _, line, caret, _ = submit("--payload", long).err.splitlines()
    assert len(line) <= 80
    assert line[len(caret) - 1] == "o"


def test_a_bad_entry_stops_the_whole_file(submit: Submit, here: Here, tmp_path: Path) -> None:
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps([DOUBLE] * 16 + [{**DOUBLE, "z": 1}] + [DOUBLE]))
    done = submit("--payload-file", file)
    assert done.code == 2
    assert done.err == (
        f'error: {file}: entry 17: compute(operation, value) got an unexpected argument "z"; nothing was submitted\n'
    )
    assert submitted(here) == 0
    file.write_text("\n".join([json.dumps(DOUBLE), "", '{"type": }', json.dumps(DOUBLE)]))
    done = submit("--payload-file", file)
    assert f"error: {file}: line 3: not valid JSON: column 10: Expecting value; nothing was submitted\n" in done.err
    assert submitted(here) == 0


def test_keep_going_skips_bad_entries_and_counts_them(submit: Submit, here: Here) -> None:
    text = "\n".join([json.dumps(DOUBLE), '{"type": }', json.dumps({**DOUBLE, "value": -1}), json.dumps(DOUBLE)])
    done = submit("--payload-file", "-", "--keep-going", stdin=text)
    assert (done.code, done.out) == (0, "1\n2\n")
    assert "warning: skipped: standard input: line 2: " in done.err
    assert "warning: skipped: standard input: line 3: compute: value must be" in done.err
    assert "2 bad skipped, 2 tasks to submit" in done.err
    done = submit("--payload-file", "-", "--keep-going", stdin='[{"type": "sleep"}]')
    assert done.code == 2


def test_unknown_types(submit: Submit, here: Here) -> None:
    done = submit("comptue", "value=1")
    assert (done.code, done.out) == (0, "1\n")
    assert done.err == "warning: no worker has joined yet: the task waits until one does\n"
    here.worker()
    done = submit("comptue", "value=1")
    assert done == Done(
        6,
        "",
        'error: no worker offers "comptue"; did you mean "compute"?\nhint: --allow-unknown queues it anyway\n',
    )
    assert submit("comptue", "value=1", "--allow-unknown").out == "2\n"


def test_no_manager(submit: Submit, here: Here) -> None:
    done = submit("--host", "127.0.0.1", "--port", 1, "sleep", "duration=1")
    assert done.code == 3
    assert done.err.startswith("error: no manager at 127.0.0.1:1 (connection refused)\nhint: start one with")


# -- a queue that is full, and other breaks --------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Here]:
    """A queue that holds 2,500 pending tasks."""
    made = Here(max_pending=2_500)
    yield made
    made.close()


def test_a_file_that_fills_the_queue_half_way_can_be_given_again(submit: Submit, small: Here, tmp_path: Path) -> None:
    state = tmp_path / "state"
    write_join(state, small)
    file = tmp_path / "jobs.jsonl"
    file.write_text("".join(json.dumps({"type": "sleep", "duration": 0, "timeout": n}) + "\n" for n in range(3_200)))
    done = submit("--payload-file", file)
    assert done.code == 5
    assert done.out.split() == [str(n) for n in range(1, 2_001)]
    assert 'queue "default" is full' in done.err
    assert "2,000 of 3,200 were accepted" in done.err
    assert "hint: the same command again adds only the rest" in done.err
    assert len(list((state / "submits").iterdir())) == 1

    again = submit("--payload-file", file)
    assert (again.code, again.out) == (5, done.out), "it is still full"
    service = small.service()
    assert service.cancel([*range(1, 1_001)]) == ("cancelled",) * 1_000
    assert service.cancel([*range(1_001, 2_001)]) == ("cancelled",) * 1_000
    small.end()
    small.begin()

    rest = submit("--payload-file", file)
    assert (rest.code, rest.out.split()) == (0, [str(n) for n in range(1, 3_201)])
    assert submitted(small) == 3_200
    assert list((state / "submits").iterdir()) == []
    assert submit("--payload-file", file, "--dry-run").code == 0

    other = submit("--payload-file", file, "--priority", 1)
    assert other.out.split()[0] == "3201", "other options: another submission"


def test_a_queue_that_is_full_at_once_leaves_no_note(submit: Submit, small: Here, tmp_path: Path) -> None:
    write_join(tmp_path / "state", small)
    assert submit("--payload-file", "-", stdin="\n".join([json.dumps(DOUBLE)] * 2_500)).code == 0
    done = submit("--payload-file", "-", stdin=json.dumps([DOUBLE] * 2))
    assert (done.code, done.out) == (5, "")
    assert done.err.startswith('error: queue "default" is full (2,500 pending')
    assert list((tmp_path / "state" / "submits").iterdir()) == []


def test_a_note_that_is_too_old_or_broken_does_not_count(submit: Submit, here: Here, tmp_path: Path) -> None:
    from taskq.clock import SystemClock
    from taskq.submit import Note

    folder = tmp_path / "submits"
    note = Note(folder, [], 1)
    assert note.begin(7) == 7
    assert note.begin(8) == 7
    assert Note(folder, [], 2).begin(9) == 9, "another store: another note"
    (path,) = [path for path in folder.iterdir() if '"client": 7' in path.read_text()]
    path.write_text(json.dumps({"client": 7, "at": SystemClock().wall() - NOTE_COUNTS - 1}))
    assert note.begin(8) == 8
    path.write_text("not JSON")
    assert note.begin(9) == 9
    assert note.begin(10) == 9
    note.remove()
    assert note.begin(11) == 11


def test_a_state_folder_that_cannot_be_written_is_no_obstacle(submit: Submit, here: Here, tmp_path: Path) -> None:
    (tmp_path / "state" / "submits").write_text("a file where the folder would be")
    assert submit("--payload-file", "-", stdin=json.dumps([DOUBLE])).code == 0


# -- as a process ----------------------------------------------------------------------------------------------------


def test_ctrl_c_while_waiting(submit: Submit, here: Here, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "taskq", "submit", "sleep", "duration=60", "--wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TASKQ_STATE_DIR": str(tmp_path / "state")},
    ) as process:
        try:
            wait_until(lambda: here.queue._feeds._feeds, what="the feed to begin")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=5)
        finally:
            process.kill()
    assert (process.returncode, out) == (130, "")
    assert "interrupted; 1 task not finished: it goes on" in err
    assert record(here, 1)["state"] == "pending"


# -- entries ---------------------------------------------------------------------------------------------------------


def read(text: str) -> list[entries.Entry | entries.BadEntry]:
    return list(entries.read_file(text, "f", {}))


def test_the_three_forms_of_a_file() -> None:
    one = entries.Entry("", "compute", {"operation": "double", "value": 4}, Options())
    text = json.dumps(DOUBLE)
    assert read(text) == [one]
    assert read(json.dumps(DOUBLE, indent=4)) == [one]
    assert read(f"[{text}, {text}]") == [one._replace(where="entry 1"), one._replace(where="entry 2")]
    assert read(f"{text}\n\n{text}\r\n") == [one._replace(where="line 1"), one._replace(where="line 3")]
    assert read("\ufeff" + text) == [one]


def test_a_payload_may_have_an_argument_named_payload() -> None:
    (entry,) = read('{"type": "t", "payload": {"a": 1}}')
    assert isinstance(entry, entries.Entry)
    assert (entry.type, entry.arguments) == ("t", {"payload": {"a": 1}})


@pytest.mark.parametrize("text", ["", "  \n", "[]"])
def test_files_without_entries(text: str) -> None:
    with pytest.raises(BadArguments, match=r"empty|no entries"):
        read(text)


def test_words_are_json_or_text() -> None:
    entry = entries.read_words("t", ["a=1", "b=x=y", 'c={"d": [true]}', "e=", 'f="1"', "g=null"], {})
    assert isinstance(entry, entries.Entry)
    assert entry.arguments == {"a": 1, "b": "x=y", "c": {"d": [True]}, "e": "", "f": "1", "g": None}


def test_what_as_json_writes_can_be_read_again() -> None:
    timed = {"at": "2090-01-31T08:00+01:00", "expires": "2091-01-31T08:00Z", "unique": ["value"]}
    others = {"priority": 3, "key": "k", "delay": 5, "queue": "q", "expires": "10m"}
    for entry in read(json.dumps([DOUBLE, {"payload": DOUBLE, **others}, {"payload": DOUBLE, **timed}])):
        assert isinstance(entry, entries.Entry)
        (again,) = read(json.dumps(entries.as_json(entry)))
        assert again == entry._replace(where="")
