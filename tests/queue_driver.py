"""A client and worker in one that says what it asks for and what it is told: see `promises`.

Each `Driver` has a queue of its own, so it alone decides what becomes of its tasks and can say before each call how it
will leave their records.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from promises import Version, payload, result

from taskq.queue.job_queue import JobQueue
from taskq.queue.terms import new_task
from taskq.shapes import ACK, GIVE_BACK, NACK, SNOOZE, Handout

MAX_RETRIES, MAX_DEATHS = 2, 3
SIZES = (8, 8, 8, 100, 2_000, 9_000)
"""Bytes of payloads and results: in the row of the task, in memory only, and in tables of their own."""
KINDS = {ACK: "ack", NACK: "nack", GIVE_BACK: "give_back", SNOOZE: "snooze"}
LAST = " last"
"""After the kind of a nack: no attempt may follow."""


class Talk:
    """The log: one line, one write, at the end of the file, however many threads there are."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._numbers = itertools.count(1)

    def say(self, at: str, **what: Any) -> None:
        """Say it now."""
        os.write(self._descriptor, json.dumps({"at": at, **what}).encode() + b"\n")

    def begin(self, verb: str, **what: Any) -> int:
        """Say what is asked for; gives the number of the call."""
        number = next(self._numbers)
        self.say("begin", call=number, verb=verb, **what)
        return number


class Driver:
    """One client with its own queue of tasks, and the one worker process that serves it.

    ``versions``: how each task is now. ``held``: the run of those that it has reserved. ``said``: what `Talk` is for.
    """

    def __init__(self, number: int, seed: int, talk: Talk) -> None:
        self.versions: dict[int, Version] = {}
        self.held: dict[int, int] = {}
        self._queue: JobQueue
        self._number = number
        self._random = random.Random(f"{seed} {number}")
        self._talk = talk
        self._seq = 0
        self._incarnation = ""
        self._session = 0
        self._actions: dict[Callable[[], None], int] = {
            self.submit: 4,
            self.reserve: 5,
            self.report: 6,
            self.cancel: 1,
            self.requeue: 1,
            self.drop: 1,
            self.die: 1,
        }

    def join(self, queue: JobQueue) -> None:
        """Attach to this queue, with everything that is held."""
        self._queue = queue
        self._incarnation = self._incarnation or f"worker-{self._number}-{self._random.randrange(2**40)}"
        noop = {"name": "x", "parameters": (), "queue": "default", "max_retries": 0, "backoff": 1.0, "timeout": None}
        info: Any = {
            "incarnation": self._incarnation,
            "pool": {"id": f"pool-{self._number}", "name": "p", "host": "h", "pid": 1, "local": None},
            **{"name": f"p/{self._number}", "host": "h", "pid": 2, "threads": 4, "queues": (f"q{self._number}",)},
            "types": [{**noop, "workers": 0}],
        }
        reply = queue.attach(info, list(self.held.items()))
        assert not reply["lost"], reply
        self._session = reply["session"]

    def step(self) -> None:
        """Do one thing."""
        choice = self._random.choices(list(self._actions), list(self._actions.values()))
        choice[0]()

    # -- what it does

    def submit(self) -> None:
        """A call of one or some tasks, some with a key."""
        self._seq += 1
        sizes = [self._random.choice(SIZES) for _ in range(self._random.choice((1, 1, 2, 5)))]
        keys = [self._random.choice((None, None, f"{self._number}-{self._seq}-{place}")) for place in range(len(sizes))]
        client, items = self._number, list(zip(sizes, keys, strict=True))
        call = self._talk.begin("submit", client=client, seq=self._seq, items=items)
        reply = self._queue.submit(client, self._seq, [self._item(place, *item) for place, item in enumerate(items)])
        self._talk.say("end", call=call, ids=list(reply.ids))
        self.versions.update((id, Version("live")) for id in reply.ids)

    def _item(self, place: int, size: int, key: str | None) -> Any:
        data = payload(self._number, self._seq, place, size)
        return new_task("x", data, key=key, queue=f"q{self._number}", max_retries=MAX_RETRIES)

    def reserve(self) -> None:
        """Take some tasks."""
        got: Sequence[Handout] = self._queue.reserve(self._incarnation, self._session, 3, 0, (), 0.0).tasks
        for task in got:
            assert task.payload.startswith(f"{self._number}/".encode()), task
            self.held[task.id] = task.run
        if got:
            self._talk.say("given", runs=[(task.id, task.run) for task in got])

    def report(self) -> None:
        """Say what became of all that is held, in one call."""
        changes, reports = {}, []
        for id, run in self.held.items():
            changes[id], report = self._outcome(id, run, self.versions[id])
            reports.append(report)
        if reports:
            self.held.clear()
            call, outcomes = self._queue.report, [KINDS[one[0]] + LAST * (one[4:5] == (-1,)) for one in reports]
            refused = self._change(
                "report", changes, call, self._incarnation, self._session, reports, outcomes=outcomes
            )
            assert not refused, f"{refused} of {reports}"

    def _outcome(self, id: int, run: int, was: Version) -> tuple[Version, tuple[Any, ...]]:
        again = was._replace(kind="cancelled" if was.cancel else "live", run=run)
        match self._random.choice("aaaaannNgs"):
            case "a":
                text = result(id, run, self._random.choice(SIZES))
                return was._replace(kind="completed", run=run, result=text), (ACK, id, run, text.encode(), 0.001)
            case "n":
                failed = was.failures + 1 > MAX_RETRIES
                version = again._replace(failures=was.failures + 1, kind="failed" if failed else again.kind)
                return version, (NACK, id, run, ("error", "E", "no luck", "trace"), 0.0, 0.001)
            case "N":
                version = was._replace(kind="failed", failures=was.failures + 1, run=run)
                return version, (NACK, id, run, ("error", "E", "never", "trace"), -1, 0.001)
            case "g":
                return again, (GIVE_BACK, id, run)
            case _:
                return again, (SNOOZE, id, run, 0.0)

    def cancel(self) -> None:
        """Cancel one task that is not over."""
        for id in self._some("live"):
            running = id in self.held
            version = self.versions[id]._replace(**({"cancel": True} if running else {"kind": "cancelled"}))
            (label,) = self._change("cancel", {id: version}, self._queue.cancel, [id])
            assert label == ("running" if running else "cancelled"), (id, label)

    def requeue(self) -> None:
        """Let one task begin anew."""
        for id in self._some("failed", "cancelled"):
            changes = {id: Version("live", run=self.versions[id].run)}
            assert self._change("requeue", changes, self._queue.requeue, [id]) == ["requeued"]

    def drop(self) -> None:
        """Forget one failed task."""
        for id in self._some("failed"):
            assert self._change("drop", {id: Version("gone")}, self._queue.drop, [id]) == ["dropped"]
            del self.versions[id]

    def die(self) -> None:
        """The worker process is dead, its tasks count a death; another one comes in its place."""
        changes = {}
        for id, run in self.held.items():
            was = self.versions[id]
            kind = "failed" if was.deaths + 1 >= MAX_DEATHS else "cancelled" if was.cancel else "live"
            changes[id] = was._replace(kind=kind, deaths=was.deaths + 1, run=run)
        started, self.held = list(self.held.items()), {}
        pool = f"pool-{self._number}"
        self._change("die", changes, self._queue.child_died, pool, self._incarnation, "signal 9", started, True, {})
        self._incarnation = ""
        self.join(self._queue)

    def purged(self) -> dict[int, Version]:
        """Its tasks that a purge of all that are completed or cancelled deletes."""
        return {id: Version("gone") for id in self._all("completed", "cancelled")}

    def forget(self, ids: Sequence[int]) -> None:
        """They were purged."""
        for id in ids:
            self.versions.pop(id, None)

    # -- how

    def _all(self, *kinds: str) -> list[int]:
        return [id for id, version in self.versions.items() if version.kind in kinds]

    def _some(self, *kinds: str) -> list[int]:
        found = self._all(*kinds)
        return [self._random.choice(found)] if found else []

    def _change(
        self, verb: str, changes: dict[int, Version], call: Callable[..., Any], *arguments: Any, **said: Any
    ) -> Any:
        number = self._talk.begin(verb, to=[(id, *version) for id, version in changes.items()], **said)
        reply = call(*arguments)
        self._talk.say("end", call=number)
        self.versions.update(changes)
        return reply
