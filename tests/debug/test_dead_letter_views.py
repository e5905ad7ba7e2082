"""What is shown of failed tasks and of their attempts."""

from __future__ import annotations

from datetime import timezone
from typing import Any

from taskq import dead_letters

NOW = 1_700_000_000.0


def failed(id: int, error: str, at: float = NOW, message: str = "no", type: str = "mail.send") -> dict[str, Any]:
    described = {"kind": "error", "type": error, "message": message, "traceback": ""}
    return {"id": id, "type": type, "error": described, "finished_at": at, "submitted_at": NOW - 60}


def test_groups_are_by_error_and_type_the_largest_first() -> None:
    records = [failed(9, "OSError", message="new\x1b[31m " * 20), failed(8, "KeyError"), failed(7, "OSError", NOW - 50)]
    records += [failed(id, "OSError", type="other") for id in range(30, 10, -1)]
    other, mail, key = dead_letters.grouped(records)
    assert (other["count"], other["ids"]) == (20, list(range(30, 20, -1)))
    assert (mail["ids"], mail["newest_at"], mail["oldest_at"]) == ([9, 7], NOW, NOW - 50)
    assert dead_letters.public_group(key)["newest_at"] == "2023-11-14T22:13:20.000Z"
    count, error, type, newest, when, message = dead_letters.group_row(mail, NOW, timezone.utc)
    assert (count, error, type, newest, when) == (2, "OSError", "mail.send", 9, "22:13:20")
    assert len(str(message)) == dead_letters.MESSAGE_WIDTH and "\x1b" not in str(message)


def test_an_attempt_that_a_process_died_under_is_told_in_full() -> None:
    died = {"id": 1, "run": 5, "worker": "node/0", "started_at": NOW - 3, "ended_at": NOW, "outcome": "died"}
    died |= {"type": "", "message": "worker process node/0 ended by signal 9 (SIGKILL)", "traceback": ""}
    died["death"] = {"how": "signal 9 (SIGKILL)", "rss": [(50.0, 2**25), (1.0, 2**30)], "stderr": "one\ntwo \x1b[0m\n"}
    running = {**died, "ended_at": None, "outcome": "running", "message": "", "death": None}
    assert dead_letters.attempt_lines([], NOW) == []
    assert dead_letters.attempt_lines([died, running], NOW, timezone.utc) == [
        "",
        "history: 2 attempts",
        "  22:13:17  node/0  died after 3.0s  worker process node/0 ended by signal 9 (SIGKILL)",
        "    worker process ended by signal 9 (SIGKILL)",
        "    rss 32M 50s before, 1.0G at last, 1.0G at most",
        "    last lines on stderr:",
        "      one",
        "      two  [0m",
        "  22:13:17  node/0  running",
    ]
    shown = dead_letters.public_attempt(died)
    assert shown["death"]["rss"][0] == {"before_end_s": 50.0, "rss_bytes": 2**25}
    assert "id" not in shown and dead_letters.public_attempt(running)["ended_at"] is None


def test_answers_in_words() -> None:
    assert dead_letters.answer_line(7, "requeued") == "task 7 begins anew"
    assert dead_letters.answer_line(7, "running") == "task 7 is running: left as it is"
