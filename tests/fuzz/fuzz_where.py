"""Fuzz target: the conditions of ``--where``, and whether a record meets those that the manager judges."""

from __future__ import annotations

import fuzzing

with fuzzing.watched():
    from taskq.errors import BadArguments
    from taskq.where import parse

RECORD = {
    "id": 7,
    "type": "mail.send",
    "queue": "default",
    "state": "failed",
    "priority": 0,
    "error": {"kind": "error", "type": "Timeout", "message": "no route"},
    "worker_name": None,
    "submitted_at": 1.0,
    "finished_at": 2.0,
}


def one_input(data: bytes) -> None:
    """A text is understood or refused with `BadArguments`; patterns are not matched here, they may take for ever."""
    try:
        where = parse(data.decode("utf-8", "surrogateescape"))
    except BadArguments:
        return
    for condition in where.plain:
        assert condition.holds(RECORD, 3.0) in (True, False)


if __name__ == "__main__":
    fuzzing.main(one_input)
