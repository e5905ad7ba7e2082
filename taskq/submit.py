"""What ``taskq-submit`` does, without its options: check entries, send them all, wait for their results.

A submission from a file leaves a note in the state folder until all of it is accepted. The note holds the number of the
client that sent it: the same content again goes out under the same numbers, so that what the manager has already is
only looked up and the rest is added. A note counts for as long as the manager remembers calls.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from taskq.catalog import Offer
from taskq.client import Client
from taskq.clock import SystemClock
from taskq.config import write_private
from taskq.entries import BadEntry, Entry
from taskq.errors import BadArguments, NotEncodable, PayloadTooLarge, TaskqError, UnknownTaskType
from taskq.pipeline import batches
from taskq.queue.terms import NewTask
from taskq.reconnecting import PASSING
from taskq.results import TaskHandle

NOTE_COUNTS = 24 * 3600.0
"""Seconds that a note counts: as long as the manager remembers a submit call."""

REFUSED = (BadArguments, NotEncodable, PayloadTooLarge, UnknownTaskType)
"""What may be wrong with one entry."""


def check(
    client: Client,
    entries: Iterable[Entry | BadEntry],
    source: str,
    skip: Callable[[str, TaskqError], None] | None = None,
) -> list[tuple[Entry, NewTask]]:
    """All entries, ready to be sent. The first bad one raises; with ``skip`` it is told of each bad one instead."""
    ready: list[tuple[Entry, NewTask]] = []
    offers: dict[str, Offer] = {}
    for entry in entries:
        try:
            if isinstance(entry, BadEntry):
                raise entry.error
            offer = offers.get(entry.type)
            if offer is None:
                offer = offers[entry.type] = client.catalog.offer(entry.type)
            template = offer.with_options(entry.options)
            ready.append((entry, client.prepare(template, (), entry.arguments, "")))
        except REFUSED as error:
            place = f"{source}: {entry.where}: " if entry.where else ""
            if skip is not None:
                skip(place, error)
                continue
            first, newline, excerpt = error.message.partition("\n")
            nothing = "; nothing was submitted" if entry.where else ""
            raise _reworded(error, f"{place}{first}{nothing}{newline}{excerpt}", _hint(error)) from None
    return ready


def _hint(error: TaskqError) -> str:
    return "--allow-unknown queues it anyway" if isinstance(error, UnknownTaskType) else error.hint


def _reworded(error: TaskqError, message: str, hint: str) -> TaskqError:
    return type(error)(message, hint=hint, details=error.details)


def send(
    client: Client, items: Sequence[NewTask], notes: Path | None, progress: Callable[[int], None]
) -> list[TaskHandle[Any]]:
    """Submit everything, in batches; ``progress`` is told the size of each that was accepted.

    ``notes``: the folder for the note, None for none. An error that comes after some were accepted says so, and has
    their ids in ``details["ids"]``.
    """
    note = Note(notes, items, client.hello()["store_id"]) if notes is not None else None
    if note is not None:
        client.continue_as(note.begin(client.id))
    correlation_id = f"{client.id:016x}"[-12:]  # the same again after a break: it is part of the call
    handles: list[TaskHandle[Any]] = []
    try:
        for batch in batches(item._replace(correlation_id=correlation_id) for item in items):
            handles += client.send(batch)
            progress(len(batch))
    except TaskqError as error:
        if note is not None and not handles and not isinstance(error, PASSING):
            note.remove()  # for certain nothing of it was accepted
        if not handles:
            raise
        error.details["ids"] = [handle.id for handle in handles]
        hint = "the same command again adds only the rest" if note is not None else error.hint
        raise _reworded(error, f"{error.message}; {len(handles):,} of {len(items):,} were accepted", hint) from None
    if note is not None:
        note.remove()
    return handles


class Note:
    """What is remembered of a submission until all of it is accepted. ``store``: id of the manager's store."""

    def __init__(self, folder: Path, items: Sequence[NewTask], store: int) -> None:
        from hashlib import blake2b  # slow to import, and a single payload has no note

        digest = blake2b(f"{store}\n".encode(), digest_size=16)
        for item in items:
            digest.update(repr(item).encode("utf-8", "surrogatepass"))
        self._path = folder / f"{digest.hexdigest()}.json"
        self._clock = SystemClock()

    def begin(self, client: int) -> int:
        """The number of the client that began this submission; ``client`` if it was none. Written down before use."""
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
            if 0 <= self._clock.wall() - known["at"] < NOTE_COUNTS:
                return int(known["client"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # no note, or none that can be read: a submission of its own
        with suppress(OSError):  # a folder that cannot be written costs the resuming, not the submission
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self._path, json.dumps({"client": client, "at": self._clock.wall()}))
        return client

    def remove(self) -> None:
        """All of it is accepted, or nothing."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def outcomes(
    handles: Sequence[TaskHandle[Any]], timeout: float | None
) -> Iterator[tuple[TaskHandle[Any], Any, TaskqError | None]]:
    """(handle, result, error) of each task, in order. Raises `TimeoutError` after ``timeout`` seconds in all."""
    clock = SystemClock()
    end = None if timeout is None else clock.monotonic() + timeout
    for handle in handles:
        error: TaskqError | None = None
        value = None
        try:
            value = handle.result(None if end is None else max(0.0, end - clock.monotonic()))
        except TaskqError as problem:
            if handle.outcome is None:
                raise  # it says nothing of the task: the way to the manager is gone for good
            error = problem
        yield handle, value, error
