"""Damage to a store's files (T11): none goes unnoticed, no wrong payload is served, what is whole can be saved.

Each case is drawn from a seed that is printed; ``TASKQ_SEED=N`` begins elsewhere, ``TASKQ_DAMAGES=N`` makes more.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster

from taskq.errors import StoreDamaged, TaskqError
from taskq.queue.task import State
from taskq.queue.task_row import TaskChange, TaskRow
from taskq.stores import pages
from taskq.stores.base import AttemptRow, Batch, CallRow, KeyRow, QueueRow, TypeRow, UniqueRow
from taskq.stores.recovery import recover
from taskq.stores.sqlite import SqliteStore

TASKS = 160
SEED = int(os.environ.get("TASKQ_SEED", "11"))
DAMAGES = int(os.environ.get("TASKQ_DAMAGES", "2000"))
PAGE = 4096
Files = dict[str, bytes]
ENDINGS = ("", "-wal", ".commits")


def made(id: int) -> TaskRow:
    """A record as a submit leaves it: most payloads are small, some lie in the row, some on pages of their own."""
    payload = b"%d " % id * {0: 30, 1: 900, 2: 2500}.get(id % 10, 3)
    fields = (id, "t.add", "default", id % 3, 3, 1.0, None, payload, None, f"c{id}", 7, 1.0 + id, 1.0 + id)
    more = '{"result_ttl":5.0}' if id % 9 == 0 else None
    return TaskRow(*fields, 1, 0, 0, 0, False, *[None] * 6, more)


def ended(id: int) -> TaskChange:
    """How every other one of them ends."""
    state = State.FAILED if id % 8 == 0 else State.COMPLETED
    error = ("error", "OSError", "no", "traceback " * 20) if state is State.FAILED else None
    result = None if error else b"r%d " % id * (1000 if id % 20 == 2 else 2)
    return TaskChange(id, 1.0 + id, int(state), 1 << 40 | id, 0, 0, False, "w" * 16, "h/1", 2.0, 3.0, result, error)


def fill(store: SqliteStore) -> None:
    """Tasks in all states, and what else a store keeps."""
    ids = range(1, TASKS + 1)
    calls = [CallRow(5, id // 10, id, 10, b"d" * 16, 1.0) for id in ids if id % 10 == 0]
    keys = [KeyRow(f"key {id}", id, b"k" * 16) for id in ids if id % 7 == 0]
    uniques = [UniqueRow(id, b"u%d" % id, 1.0, None, None) for id in ids if id % 11 == 0]
    store.write(Batch([made(id) for id in ids[1:]], calls=calls, keys=keys, uniques=uniques, next_id=TASKS + 1))
    attempts = [
        AttemptRow(id, 1 << 40 | id, "h/1", 2.0, 3.0, "error", "E", "m", "t", None) for id in ids if id % 8 == 0
    ]
    done = [ended(id) for id in ids if id % 2 == 0]
    types, queues = [TypeRow("t.add", "{}")], [QueueRow("mail", "me", 1.0, 3)]
    for start in range(0, len(done), 20):  # several commits, so that a log has several
        batch = Batch(changed=done[start : start + 20], next_id=TASKS + 1, totals={"submitted": TASKS})
        store.write(batch)
    store.write(Batch(attempts=attempts, types=types, queues=queues, next_id=TASKS + 1))


def opened(folder: Path, **options: Any) -> SqliteStore:
    return SqliteStore(folder / "store.sqlite", free_mark=0, reserve=4096, **options)


def started(store: SqliteStore) -> dict[str, Any]:
    """What a start is given. Raises what it raises."""
    live: list[TaskRow] = []
    start = store.open(lambda opened, rows: live.extend(rows))
    return {
        "live": live,
        "start": (start.store_id, start.totals, start.live, start.final, start.types, start.queues),
    }


def read_live(store: SqliteStore, found: dict[str, Any]) -> dict[str, Any]:
    """What is in the store of the tasks that a start was given."""
    ids = [row.id for row in found["live"]]
    return {"payloads": store.payloads(ids), "whole": store.get(ids)}


def read_all(store: SqliteStore) -> dict[str, Any]:
    """What is read later, through the doors that the queue uses. Raises what they raise."""
    ids = list(range(1, TASKS + 1))
    return {
        "get": store.get(ids),
        "slim": store.slim(ids),
        "failed": store.select(states=[State.FAILED], limit=1000),
        "scan": store.scan([], 0, 1000),
        "attempts": [store.attempts(id) for id in ids[7::8]],
        "calls": [store.find_call(5, seq) for seq in range(TASKS // 10 + 2)],
        "keys": store.find_keys([f"key {id}" for id in ids[6::7]]),
        "uniques": [store.uniques(0.0), store.uniques_of(ids)],
    }


def take(folder: Path) -> Files:
    found = {ending: folder / f"store.sqlite{ending}" for ending in ENDINGS}
    return {ending: path.read_bytes() for ending, path in found.items() if path.exists()}


def put(folder: Path, files: Files) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for ending, data in files.items():
        (folder / f"store.sqlite{ending}").write_bytes(data)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    """The files of a store that was closed, of one whose process died, and of an older copy of the first."""
    folder = tmp_path_factory.mktemp("original")
    store = opened(folder)
    store.open()
    store.write(Batch([made(1)], next_id=2))
    store.close()
    old = take(folder)
    store.open()
    fill(store)
    store.write(Batch(next_id=TASKS + 1, totals={"submitted": TASKS}))
    died = take(folder)
    store.close()
    return {"closed": take(folder), "died": died, "old": old}


@pytest.fixture
def bench() -> Iterator[Path]:
    """A folder for thousands of stores, one after the other: in memory, where there is such a place."""
    folder = Path(tempfile.mkdtemp(prefix="taskq-test-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def flip(files: Files, ending: str, chance: random.Random) -> set[int]:
    """Turn one bit over; gives the numbers of the pages that were hit (of the database)."""
    data = bytearray(files[ending])
    at = chance.randrange(len(data))
    data[at] ^= 1 << chance.randrange(8)
    files[ending] = bytes(data)
    return {at // PAGE + 1}


def zero(files: Files, ending: str, chance: random.Random) -> set[int]:
    at = chance.randrange(max(1, len(files[ending]) // PAGE)) * PAGE
    files[ending] = files[ending][:at] + bytes(PAGE) + files[ending][at + PAGE :]
    return {at // PAGE + 1}


def truncate(files: Files, ending: str, chance: random.Random) -> set[int]:
    before = len(files[ending])
    files[ending] = files[ending][: chance.randrange(before)]
    return set(range(len(files[ending]) // PAGE + 1, before // PAGE + 1))


def swap(files: Files, ending: str, chance: random.Random) -> set[int]:
    one, other = chance.sample(range(len(files[ending]) // PAGE), 2)
    parts = [files[ending][at : at + PAGE] for at in range(0, len(files[ending]), PAGE)]
    parts[one], parts[other] = parts[other], parts[one]
    files[ending] = b"".join(parts)
    return {one + 1, other + 1}


Damage = Callable[[Files, str, random.Random], set[int]]


def outcome(folder: Path, files: Files, expected: dict[str, Any]) -> str:
    """What a start and readers make of these files: refused, whole, or (never) wrong.

    Whatever is wrong with a task that is not final, the start must say it, and not who reads the task later.
    """
    put(folder, files)
    store = opened(folder)
    try:
        found = started(store)
        try:
            found |= read_live(store, found)
        except StoreDamaged as error:
            return f"wrong: the start did not notice it ({error})"
        found |= read_all(store)
    except TaskqError as error:
        return "damage" if isinstance(error, StoreDamaged) else "refused"
    finally:
        store.close()
    wrong = [name for name, value in found.items() if value != expected[name]]
    return f"wrong: {wrong}" if wrong else "whole"


def everything(folder: Path, files: Files) -> dict[str, Any]:
    put(folder, files)
    store = opened(folder)
    try:
        found = started(store)
        return found | read_live(store, found) | read_all(store)
    finally:
        store.close()


def test_no_damage_goes_unnoticed(
    originals: dict[str, Files], bench: Path, record_property: Callable[[str, object], None]
) -> None:
    """Flipped bits, and pages that are zeroed, cut off or swapped, in the database, its log and its counter."""
    expected = everything(bench / "it", originals["closed"])
    assert everything(bench / "it", originals["died"]) == expected
    places = [("closed", ""), ("died", "-wal"), ("died", ""), ("closed", ".commits")]
    counts: Counter[str] = Counter()
    for number in range(DAMAGES + DAMAGES // 10):
        seed = SEED * 1_000_000 + number
        chance = random.Random(seed)
        damage: Damage = flip if number < DAMAGES else chance.choice([zero, truncate, swap])
        kind, ending = chance.choices(places, [6, 4, 1, 1])[0]
        if damage is swap and len(originals[kind][ending]) < 2 * PAGE:
            damage = zero
        files = dict(originals[kind])
        damage(files, ending, chance)
        found = outcome(bench / "it", files, expected)
        counts[found.partition(":")[0]] += 1
        assert not found.startswith("wrong"), (
            f"{damage.__name__} of {kind} {ending!r}: {found}; TASKQ_SEED={SEED}, case {number}"
        )
    print(f"T11: {counts.total()} damages (seed {SEED}): {dict(counts)}, 0 unnoticed")
    record_property("damages", dict(counts))
    assert counts["damage"] > counts.total() / 2


def test_a_lost_log_and_an_old_copy(originals: dict[str, Files], tmp_path: Path) -> None:
    """Files that are whole, but not the newest ones; and how one goes on nevertheless."""
    folder = tmp_path / "it"
    died, old = originals["died"], originals["old"]
    for files in (
        {ending: died[ending] for ending in ("", ".commits")},
        {**originals["closed"], "": old[""]},
        {".commits": died[".commits"]},
    ):
        put(folder, files)
        with pytest.raises(StoreDamaged, match="commits") as raised:
            opened(folder).open()
        assert "--accept-lost-tail" in raised.value.hint
        assert take(folder).get("", b"") == files.get("", b""), "looked at, not changed"
    put(folder, {**originals["closed"], "": old[""]})
    store = opened(folder, accept_lost_tail=True)
    live: list[int] = []
    start = store.open(lambda opened, rows: live.extend(row.id for row in rows))
    assert start.epoch > 100 and start.next_id > TASKS + 100
    assert start.notes and live == [1]
    store.close()
    again = opened(folder)
    assert not again.open().notes, "and only once"
    again.close()


def touched(files: Files, hit: set[int]) -> set[int]:
    """The tasks of which something lies on these pages of the database."""
    now, _ = pages.current(files[""], b"")
    ids: set[int] = set()
    for number in hit & set(now):
        kind = now[number][0]
        on_it = [cell.rowid for cell in pages.cells(now[number], now, first=number == 1) if cell.rowid is not None]
        ids.update(on_it if kind == 13 else ())
        if kind not in (2, 5, 10, 13):  # a page that a record goes on to: those that have any
            ids.update(id for id in range(1, TASKS + 1) if id % 10 in (1, 2) or id % 8 == 0)
    return ids


def test_what_is_whole_is_saved(
    originals: dict[str, Files], bench: Path, record_property: Callable[[str, object], None]
) -> None:
    """Every task of which nothing was hit is in the new store as it was; the others are there or named."""
    folder = bench / "it"
    closed = originals["closed"]
    expected = everything(folder, closed)["get"]
    cases, saved = 0, 0
    for number in range(max(20, DAMAGES // 20)):
        chance = random.Random(SEED * 1_000_000 + number)
        damage: Damage = chance.choice([flip, flip, zero, truncate, swap])
        files = dict(closed)
        hit = damage(files, "", chance)
        put(folder, files)
        try:
            report = recover(folder / "store.sqlite", folder / "saved.sqlite")
        except StoreDamaged:
            assert damage is truncate
            continue
        where = f"{damage.__name__} of pages {sorted(hit)[:5]}; TASKQ_SEED={SEED}, case {number}"
        assert {ending: (folder / f"store.sqlite{ending}").read_bytes() for ending in files} == files, where
        store = SqliteStore(folder / "saved.sqlite", free_mark=0, reserve=4096)
        start = store.open()
        found = store.get(list(expected))
        store.close()
        damaged = touched(closed, hit)
        for id, row in expected.items():
            if id not in damaged:
                assert found.get(id) == row, f"{id}: {where}"
            elif found.get(id) != row:
                assert id in report.lost or id in report.doubtful or damage is truncate, f"{id}: {where}"
        assert start.next_id > TASKS + 1 and not start.notes, where
        cases, saved = cases + 1, saved + report.whole
    print(f"T11: recover after {cases} damages (seed {SEED}): {saved} tasks saved, every undamaged one")
    record_property("recovered", cases)


@pytest.mark.full
def test_many_more_damages(originals: dict[str, Files], bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with 50,000 damages."""
    monkeypatch.setattr("test_corruption.DAMAGES", 50_000)
    test_no_damage_goes_unnoticed(originals, bench, lambda name, value: None)


def test_a_manager_does_not_start_on_damage(cluster: Cluster, originals: dict[str, Files]) -> None:
    """Exit code 65, and what to do next."""
    cluster.state.mkdir(mode=0o700, exist_ok=True)
    files = dict(originals["closed"])
    zero(files, "", random.Random(3))
    for ending, data in files.items():
        (cluster.state / f"store.sqlite{ending}").write_bytes(data)
    done = cluster.run("manager", "--port", "0", "--workers", "0")
    assert done.returncode == 65, done.stderr
    assert f'"taskq recover {cluster.state / "store.sqlite"}"' in done.stderr
    assert (cluster.state / "store.sqlite").read_bytes() == files[""]


def test_what_is_left_of_a_damaged_store_starts_again(cluster: Cluster, originals: dict[str, Files]) -> None:
    """The command, its words, and a manager on what it wrote in the place of the damaged store."""
    cluster.state.mkdir(mode=0o700, exist_ok=True)
    leaf = next(at for at in range(0, len(originals["closed"][""]), PAGE) if originals["closed"][""][at] == 13 and at)
    files = dict(originals["closed"])
    data = bytearray(files[""])
    data[leaf + PAGE - 9] ^= 4
    files[""] = bytes(data)
    for ending, content in files.items():
        (cluster.state / f"store.sqlite{ending}").write_bytes(content)
    done = cluster.run("recover", "--state-dir", cluster.state)
    saved = cluster.state / "store.sqlite.recovered"
    assert saved.exists() and "tasks as they were" in done.stderr, done.stderr
    assert done.returncode == (1 if done.stdout else 0)
    saved.replace(cluster.state / "store.sqlite")
    cluster.manager(workers=0)
    assert sum(queue["pending"] for queue in cluster.snapshot()["queues"]) >= TASKS // 2 - 20
