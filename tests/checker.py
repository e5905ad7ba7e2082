"""The checker: holds the history of a test against the store that is left, and says which promises were broken.

Each promise is one pure function, ``i1_nothing_lost`` to ``i13_side_counter``; `check` asks all that a test names.
None of them knows how the test was made: real processes, a simulation or a list written by hand. Nothing is excused
by there having been *some* fault: a second run of a task needs one that hit its first run.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import NamedTuple

from history import Record, content, digest
from observed import RUNS_PER_EPOCH, Observed, Run, observe

from taskq.queue.task import FINAL, State
from taskq.queue.task_row import TaskRow
from taskq.stores import schema
from taskq.stores.base import Store
from taskq.stores.rows import whole_row

MAX_DEATHS = 3
SLACK = 0.05
"""Seconds by which two processes may see the same instant apart."""
TRANSIENT = {"queue_full", "storage_full", "shutting_down", "manager_unavailable", "outcome_unknown", "busy"}
"""Codes of refusals that say nothing of the call itself: the same call may succeed later."""


class Violation(NamedTuple):
    """A broken promise. ``task``: the id, where it is about one."""

    promise: str
    what: str
    task: int | None = None


class Step(NamedTuple):
    """For `i11_durability_order`. ``kind``: ``write`` (a commit's bytes), ``sync`` (of the log), ``reply`` (that
    depends on the commit); ``commit``: its number, of no meaning for a sync."""

    kind: str
    commit: int = 0


@dataclass
class Stored:
    """What the store says in the end. ``keys``: the task that each known key stands for.

    Only where a test has asked: ``calls``, (first id, size) of each submit call (client, seq), None if it is not known;
    ``epoch``, in which runs are given from now on; ``next_id``.
    """

    tasks: dict[int, TaskRow]
    keys: dict[str, int] = field(default_factory=dict)
    calls: dict[tuple[int, int], tuple[int, int] | None] = field(default_factory=dict)
    epoch: int | None = None
    next_id: int | None = None

    @cached_property
    def contents(self) -> dict[int, str]:
        """The content of each record; nothing that was submitted, where the payload or the type is gone."""
        return {id: content(str(row.type), row.payload or b"") for id, row in self.tasks.items()}


# -- stores


def read_sqlite(path: Path) -> Stored:
    """The record in the file of a manager that has stopped or was killed; the look changes nothing."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        for ending in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{ending}", f"{copy}{ending}")
        with contextlib.closing(sqlite3.connect(copy)) as db:
            rows = [whole_row(row) for row in db.execute(f"{schema.SELECT} ORDER BY t.id")]
            keys = dict(db.execute("SELECT key, id FROM key"))
    return Stored({row.id: row for row in rows}, keys)


def read_store(store: Store, keys: Iterable[str] = ()) -> Stored:
    """The record in a store that is open. ``keys``: those to ask for."""
    rows = store.select(limit=10**9)
    known = store.find_keys(sorted({*keys, *(row.key for row in rows if row.key is not None)}))
    return Stored({row.id: row for row in reversed(rows)}, {key: row.id for key, row in known.items()})


# -- the promises


def i1_nothing_lost(seen: Observed, stored: Stored) -> Iterator[Violation]:
    """What was acknowledged is in the record: submits with what was submitted, outcomes, cancels."""
    gone = seen.gone()
    for one in seen.acknowledged("submit"):
        for id, name, _ in one.pairs():
            if id not in stored.tasks:
                if id not in gone:
                    yield Violation("I1", "acknowledged and not in the record", id)
            elif stored.contents[id] != name:
                yield Violation("I1", "acknowledged, and another task in the record", id)
        if stored.next_id is not None and stored.next_id <= max(one.reply["ids"]):
            yield Violation("I1", f"its id may be given again: the next one is {stored.next_id}", max(one.reply["ids"]))
    yield from _outcomes_lost(seen, stored, gone)


def _outcomes_lost(seen: Observed, stored: Stored, gone: set[int]) -> Iterator[Violation]:
    again = seen.requeued() | gone
    for task, runs in seen.runs.items():
        row = stored.tasks.get(task)
        acked = any(run.accepted("ack") for run in runs.values())
        if acked and task not in gone and (row is None or row.state != State.COMPLETED):
            yield Violation("I1", "its outcome was acknowledged and is not in the record", task)
    for one in seen.acknowledged("cancel"):
        for id, label in one.labels():
            row = stored.tasks.get(id)
            if label == "cancelled" and id not in again and (row is None or row.state != State.CANCELLED):
                yield Violation("I1", "its cancel was acknowledged and is not in the record", id)


def i2_nothing_unexpected(seen: Observed, stored: Stored) -> Iterator[Violation]:
    """Everything in the record was submitted, and is there no more often than it was."""
    attempted: Counter[str] = Counter()
    for tries in seen.calls().values():
        attempted.update(name for name, _ in tries[0].arguments["items"])
    found = Counter(stored.contents.values())
    for id, name in stored.contents.items():
        if found[name] > attempted[name]:
            yield Violation("I2", f"in the record {found[name]} times, submitted {attempted[name]} times", id)
    for task in seen.runs.keys() - stored.tasks.keys() - seen.gone():
        yield Violation("I2", "a run of a task that is not in the record", task)


def i3_one_record_a_key(seen: Observed, stored: Stored) -> Iterator[Violation]:
    """One record a key, every reply for a key names it, and other content under it is refused."""
    rows = Counter(row.key for row in stored.tasks.values() if row.key is not None)
    for key, count in rows.items():
        if count > 1:
            yield Violation("I3", f"{count} records with the key {key}")
    ids, names = defaultdict(set), defaultdict(set)
    for one in seen.acknowledged("submit"):
        for id, name, key in one.pairs():
            if key is not None:
                ids[key].add(id)
                names[key].add(name)
    for key, found in ids.items():
        if len(found) > 1:
            yield Violation("I3", f"the key {key} was answered with the tasks {sorted(found)}")
        if len(names[key]) > 1:
            yield Violation("I3", f"the key {key} was accepted with different contents", min(found))
        if key in stored.keys and stored.keys[key] not in found:
            yield Violation("I3", f"the key {key} stands for another task than was answered", stored.keys[key])


def i4_one_completion(seen: Observed, stored: Stored) -> Iterator[Violation]:
    """At most one completion a task, and the result in the record is that of the run in the record."""
    for task, runs in seen.runs.items():
        if sum(len(run.accepted("ack")) for run in runs.values()) > 1:
            yield Violation("I4", "completed twice", task)
    for row in stored.tasks.values():
        if row.state != State.COMPLETED or row.id not in seen.runs:
            continue
        run = seen.runs[row.id].get(row.run)
        if run is None or run.end is None:
            yield Violation("I4", f"completed by run {row.run}, which never came to its end", row.id)
        elif row.result is not None and digest(row.result) != run.result:
            yield Violation("I4", "the result in the record is not that of its run", row.id)


def i5_runs_rise(seen: Observed, stored: Stored) -> Iterator[Violation]:
    """Runs rise for each task, none is given twice, and one that is over changes nothing."""
    for task, runs in seen.runs.items():
        leases = seen.leases(task)
        for before, after in pairwise(leases):
            hit = after.leased == inf and any(_hits(fault, after) for fault in seen.faults)  # it woke up, and started
            if after.run < before.run and not hit:
                yield Violation("I5", f"run {after.run} after {before.run}", task)
        for run in leases:
            if any(later.run > run.run and later.at < one["since"] for one in run.accepted() for later in leases):
                yield Violation("I5", f"an outcome of run {run.run} was taken when a later run was there", task)
        row = stored.tasks.get(task)
        if row is not None and row.state == State.COMPLETED and row.run < max(runs):
            yield Violation("I5", f"completed by run {row.run}, when run {max(runs)} was there", task)
    given = Counter(run.run for runs in seen.runs.values() for run in runs.values())
    for run, times in given.items():
        if times > 1:
            yield Violation("I5", f"run {run} was given to {times} tasks")
    if stored.epoch is not None and max(given, default=0) // RUNS_PER_EPOCH >= stored.epoch:
        yield Violation("I5", f"runs may be given again: epoch {stored.epoch} begins after run {max(given)}")


def i6_leases_apart(seen: Observed, stored: Stored) -> Iterator[Violation]:
    """A task is handed out again only once its run is over, proved dead, or expired; and never after its end."""
    cancelled = {
        id: one.end for one in seen.acknowledged("cancel") for id, label in one.labels() if label == "cancelled"
    }
    again = seen.requeued()
    for task in seen.runs:
        leases = seen.by_run(task)
        for before, after in pairwise(leases):
            reason = any(_takes_away(fault, before, after) for fault in seen.faults)
            if after.at < before.over and not (reason or _two_managers_died(before, after)):
                yield Violation("I6", f"run {after.run} began while run {before.run} was under way", task)
        if task in again:
            continue
        acked = min([one["at"] for run in leases for one in run.accepted("ack")], default=inf)
        if any(run.at > min(acked, cancelled.get(task, inf)) + SLACK for run in leases):
            yield Violation("I6", "handed out after its end", task)


def _takes_away(fault: Record, before: Run, after: Run) -> bool:
    """Whether this fault gave the manager a reason, in time, to take ``before`` for over."""
    return _hits(fault, before) and fault["at"] + fault.get("grace", 0.0) <= after.at + SLACK


def _hits(fault: Record, run: Run) -> bool:
    """Whether a fault hit a run: its worker or its task, while it could have been under way."""
    if run.worker not in fault["workers"] and run.task not in fault["tasks"]:
        return False
    over = min([one["at"] for one in run.accepted()], default=inf)
    return fault["at"] <= over + SLACK and run.at <= fault.get("until", fault["at"]) + SLACK


def _two_managers_died(before: Run, after: Run) -> bool:
    """Whether a manager ended before its workers could come back to it: the next one knows nothing of ``before``."""
    return after.epoch - before.epoch > 1


def i7_side_effects(seen: Observed, stored: Stored) -> Iterator[Violation]:
    """One side effect a run; a further run only where the one before failed, gave back, or was hit by a fault."""
    for row in stored.tasks.values():
        if row.state == State.COMPLETED and not seen.runs.get(row.id):
            yield Violation("I7", "completed without a side effect", row.id)
    again = seen.requeued()
    for task in seen.runs:
        begun = [run for run in seen.by_run(task) if run.starts]
        for run in begun:
            if len(run.starts) > 1:
                yield Violation("I7", f"run {run.run} had {len(run.starts)} side effects", task)
        for before, after in pairwise(begun):
            hit = any(_hits(fault, before) and fault["at"] <= after.at + SLACK for fault in seen.faults)
            reason = hit or _went_wrong(before)
            if not (reason or _two_managers_died(before, after) or task in again):
                yield Violation("I7", f"run {after.run} without need: no fault hit run {before.run}", task)


def _went_wrong(run: Run) -> bool:
    return run.failed is not None or bool(run.reported("nack", "give_back", "snooze"))


def i8_attempts(seen: Observed, stored: Stored) -> Iterator[Violation]:
    """Failures and deaths in the record are those that happened; the last attempt is the last; pauses are kept."""
    deaths = {(task, run): False for fault in seen.faults for task, run in fault["deaths"]}
    deaths.update({(task, run): True for fault in seen.faults if fault.get("sure") for task, run in fault["deaths"]})
    possible = Counter(task for task, _ in deaths)
    sure = Counter(task for (task, _), certain in deaths.items() if certain)
    again = seen.requeued()
    for row in stored.tasks.values():
        runs = list(seen.runs.get(row.id, {}).values())
        if row.id in again or not runs:
            continue
        told = sum(len(run.accepted("nack")) for run in runs)
        most = sum(run.failed is not None or bool(run.reported("nack")) for run in runs)
        if not told <= row.failures <= most and not row.cancel_requested:
            yield Violation("I8", f"{row.failures} failures in the record, {told} to {most} happened", row.id)
        if not min(sure[row.id], MAX_DEATHS) <= row.deaths <= possible[row.id]:
            text = f"{row.deaths} deaths in the record, {sure[row.id]} to {possible[row.id]} happened"
            yield Violation("I8", text, row.id)
        yield from _limits(row, runs)
    for task in seen.runs.keys() - again:
        yield from _pauses(seen.by_run(task))


def _limits(row: TaskRow, runs: Sequence[Run]) -> Iterator[Violation]:
    """Whether a task ended exactly at its limits. In the record a limit is passed only by what ended the task."""
    kind = row.error[0] if row.state == State.FAILED and row.error is not None else None
    if (kind == "poisoned") != (row.deaths >= MAX_DEATHS) or row.deaths > MAX_DEATHS:
        yield Violation("I8", f"{State(row.state).label} ({kind}) with {row.deaths} deaths", row.id)
    last = any(one.get("last") for run in runs for one in run.reported("nack"))
    if kind in ("error", "timeout") and row.failures <= row.max_retries and not last:
        yield Violation("I8", f"given up after {row.failures} failures of {row.max_retries + 1}", row.id)
    if row.failures > row.max_retries + (kind in ("error", "timeout")) and not row.cancel_requested:
        yield Violation("I8", f"{row.failures} failures, {row.max_retries} retries allowed", row.id)


def _pauses(leases: Sequence[Run]) -> Iterator[Violation]:
    for before, after in pairwise(leases):
        for one in before.accepted("nack"):
            if one.get("last"):
                yield Violation("I8", f"run {after.run} after the last attempt", before.task)
            elif after.at < one["since"] + one.get("pause", 0.0) - SLACK:
                early = one["since"] + one["pause"] - after.at
                yield Violation("I8", f"tried again {early:.2f} s before its pause was over", before.task)


def i9_everything_ends(seen: Observed, stored: Stored, limit: float = inf) -> Iterator[Violation]:
    """After the faults everything comes to its end, within ``limit`` seconds (as far as phases were recorded)."""
    for row in stored.tasks.values():
        if row.state not in FINAL:
            yield Violation("I9", f"still {State(row.state).label} in the end", row.id)
    began, ended = seen.phases.get("faults over"), seen.phases.get("idle")
    if began is not None and ended is not None and ended - began > limit:
        yield Violation("I9", f"everything was at its end after {ended - began:.1f} s, allowed were {limit:.1f}")


def i10_order(seen: Observed, stored: Stored) -> Iterator[Violation]:
    """Within a queue and a priority, first runs begin in the order of the ids.

    For runs without faults, one worker, and tasks that are due when they are submitted. What is requeued stands
    behind.
    """
    lines: dict[tuple[str, int], list[tuple[float, int]]] = defaultdict(list)
    for task in seen.runs.keys() - seen.requeued():
        row = stored.tasks.get(task)
        if row is not None:
            lines[row.queue, row.priority].append((seen.leases(task)[0].at, task))
    for line in lines.values():
        line.sort(key=lambda pair: pair[0])
        for (_, before), (_, after) in pairwise(line):
            if after < before:
                yield Violation("I10", f"handed out after task {before}", after)


def i11_durability_order(trace: Iterable[Step]) -> Iterator[Violation]:
    """In the system calls, no reply leaves before a sync has followed the bytes of the commit that it depends on."""
    written, synced = 0, 0
    for step in trace:
        if step.kind == "write":
            written = max(written, step.commit)
        elif step.kind == "sync":
            synced = written
        elif step.commit > synced:
            yield Violation("I11", f"a reply left before commit {step.commit} was synced")


def i12_unknown_resolves(seen: Observed, stored: Stored) -> Iterator[Violation]:
    """The same call always has the same answer, whatever was heard of it at first; and the last try has one."""
    for (client, seq), tries in seen.calls().items():
        definite = [one for one in tries if one.ok or (one.outcome == "fail" and one.reply["error"] not in TRANSIENT)]
        answers = {tuple(one.reply["ids"]) if one.ok else one.reply["error"] for one in definite}
        if len(answers) > 1:
            yield Violation("I12", f"call {seq} of client {client} had the answers {sorted(map(str, answers))}")
        if not definite and any(one.end < inf for one in tries) and tries[-1].end < inf:
            yield Violation("I12", f"call {seq} of client {client} never had an answer, in {len(tries)} tries")
        if (client, seq) in stored.calls:
            ids = range(0) if (row := stored.calls[client, seq]) is None else range(row[0], row[0] + row[1])
            if answers - {tuple(ids)}:
                yield Violation("I12", f"call {seq} of client {client} had {answers}, and would have {tuple(ids)} now")


def i13_side_counter(crashes: Iterable[tuple[int, int]]) -> Iterator[Violation]:
    """After each crash (side counter, commits found): the counter is not ahead of the commits."""
    for counter, commits in crashes:
        if counter > commits:
            yield Violation("I13", f"the side file counts {counter} commits, {commits} were found")


# -- all of them

PROMISES: dict[str, Callable[[Observed, Stored], Iterator[Violation]]] = {
    "I1": i1_nothing_lost,
    "I2": i2_nothing_unexpected,
    "I3": i3_one_record_a_key,
    "I4": i4_one_completion,
    "I5": i5_runs_rise,
    "I6": i6_leases_apart,
    "I7": i7_side_effects,
    "I8": i8_attempts,
    "I9": i9_everything_ends,
    "I10": i10_order,
    "I12": i12_unknown_resolves,
}
STORM = ("I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I12")
"""What holds in any run, whatever the faults; the order of hand-outs only in some."""


def check(
    history: Iterable[Record] | Observed,
    stored: Stored,
    promises: Sequence[str] = STORM,
    *,
    limit: float = inf,
    trace: Iterable[Step] | None = None,
    crashes: Iterable[tuple[int, int]] | None = None,
) -> list[Violation]:
    """Every violation of these promises.

    ``limit``: of `i9_everything_ends`. ``trace``, ``crashes``: what I11 and I13 look at; without it they are not asked.
    """
    seen = history if isinstance(history, Observed) else observe(history)
    found = []
    for name in promises:
        found += i9_everything_ends(seen, stored, limit) if name == "I9" else PROMISES[name](seen, stored)
    if trace is not None:
        found += i11_durability_order(trace)
    if crashes is not None:
        found += i13_side_counter(crashes)
    return found


def told(violations: Sequence[Violation], most: int = 20) -> str:
    """Violations as text, the first ones of each promise."""
    counts = Counter(one.promise for one in violations)
    lines = [f"{one.promise} task {one.task}: {one.what}" for one in violations[:most]]
    return "\n".join([f"{len(violations)} violations {dict(counts)}", *lines])
