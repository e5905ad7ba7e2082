"""Fuzz target: what is handed to ``taskq-submit``: a file of entries, one payload, or words."""

from __future__ import annotations

import json

import fuzzing

with fuzzing.watched():
    from taskq.entries import BadEntry, Entry, all_digits, as_json, read_file, read_payload, read_words
    from taskq.errors import BadArguments


def one_input(data: bytes) -> None:
    """Whatever is read can be written; the rest is a `BadEntry` or `BadArguments`."""
    text = data.decode("utf-8", "surrogateescape")
    first, *words = text.split("\n")
    for read in (
        lambda: list(read_file(text, "tasks.json", {"priority": 1})),
        lambda: [read_payload(text, "-", {})],
        lambda: [read_words(first, words, {})],
    ):
        try:
            entries = read()
        except BadArguments:
            continue
        for entry in entries:
            _written(entry)


def _written(entry: Entry | BadEntry) -> None:
    if isinstance(entry, Entry):
        with all_digits():
            json.dumps(as_json(entry))


if __name__ == "__main__":
    fuzzing.main(one_input)
