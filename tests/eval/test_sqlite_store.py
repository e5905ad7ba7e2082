"""What only the SQLite store promises: locks, damage, durability, a full disk, errors of the disk."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_disks import fill, mounted

from taskq.errors import ConfigError, StoreDamaged, StoreFailed, StoreLocked
from taskq.queue.task import FINAL, State
from taskq.queue.task_row import TaskRow
from taskq.stores import cleaning, schema, upgrades
from taskq.stores.base import Batch
from taskq.stores.sqlite import SqliteStore

MIB = 2**20
# Commits one task after the other, and says so after each: "open", then "1", "2", …
WRITER = """
import sys
from pathlib import Path
from taskq.errors import StoreFailed
from taskq.queue.task_row import TaskRow
from taskq.stores.base import Batch
from taskq.stores.sqlite import SqliteStore

def say(word):
    print(word, flush=True)

store = SqliteStore(Path(sys.argv[1]))
opened = store.open()
say("open")
try:
    for id in range(opened.next_id, opened.next_id + int(sys.argv[2])):
        fields = [id, "t", "q", 0, 3, 1.0, None, b"x" * 200, None, "c", 7, 1.0, 1.0, 1, 0, 0, 0, False] + [None] * 7
        store.write(Batch(new=[TaskRow(*fields)], next_id=id + 1))
        say(id)
except StoreFailed as error:
    say(f"failed: {error}")
    try:
        store.write(Batch())
    except StoreFailed:
        say("refused")
sys.stdin.read()
store.close()
"""


def row(id: int, **others: object) -> TaskRow:
    """A pending record."""
    fields = (id, "t", "q", 0, 3, 1.0, None, b"p%d" % id, None, "c", 7, 1.0, 1.0, 1, 0, 0, 0, False, *[None] * 7)
    return TaskRow(*fields)._replace(**others)  # type: ignore[arg-type]


def done(id: int, result: bytes = b"") -> TaskRow:
    """A completed record, as the queue hands it over."""
    return row(id, payload=None, state=int(State.COMPLETED), run=id, finished_at=2.0, result=result)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store is."""
    return tmp_path / "store.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    """A new store, opened."""
    made = SqliteStore(path)
    made.open()
    yield made
    made.close()


def writer(path: Path, count: int, *before: str) -> subprocess.Popen[str]:
    """A process that commits ``count`` tasks and then holds the store until its stdin ends."""
    command = [*before, sys.executable, "-c", WRITER, str(path), str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def reap(process: subprocess.Popen[str]) -> None:
    """Kill, and close the pipes."""
    process.kill()
    process.communicate(timeout=10)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder, the lock's apart."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".lock"}


# -- files ------------------------------------------------------------------------------------------------------------


def test_only_this_user_can_read_the_files(store: SqliteStore, path: Path) -> None:
    store.write(Batch(new=[row(1)]))
    assert {file.name for file in path.parent.iterdir()} == {
        "store.sqlite",
        "store.sqlite-wal",
        "store.sqlite.commits",
        "store.sqlite.lock",
        "store.sqlite.reserve",
    }
    for name in ("store.sqlite", "store.sqlite-wal", "store.sqlite.commits", "store.sqlite.lock"):
        assert path.with_name(name).stat().st_mode & 0o077 == 0, name


def test_settings_that_durability_depends_on(store: SqliteStore) -> None:
    def ask(name: str) -> object:
        return store._read(f"PRAGMA {name}")[0][0]

    assert [ask(name) for name in ("journal_mode", "synchronous", "locking_mode", "auto_vacuum")] == [
        "wal",
        2,
        "exclusive",
        2,
    ]
    assert 0 < int(str(ask("wal_autocheckpoint"))) < 10_000


def test_the_log_is_gone_after_close_and_bounded_before(store: SqliteStore, path: Path) -> None:
    log = path.with_name("store.sqlite-wal")
    for start in range(1, 60_000, 1000):
        store.write(Batch(new=[row(id, payload=bytes(900)) for id in range(start, start + 1000)]))
    assert log.stat().st_size < 24 * MIB
    store.close()
    assert not log.exists()
    assert path.stat().st_size > 50 * MIB


def test_a_purged_file_gets_smaller_in_short_pieces(store: SqliteStore, path: Path) -> None:
    """By itself, and not only when it is closed; what stays is less than what may lie idle."""
    for start in range(1, 40_001, 1000):
        ids = range(start, start + 1000)
        store.write(Batch(new=[row(id, payload=bytes(900)) for id in ids]))
        store.write(Batch(changed=[done(id).change() for id in ids if id % 40]))
    while store.purge(FINAL, 9.0, 1000, 9.0):
        pass
    assert path.stat().st_size > 38 * MIB
    sizes = [path.stat().st_size]
    took = []
    more = True
    while more:
        began = time.thread_time()  # a busy machine makes no piece longer
        more = store.shrink()
        took.append(time.thread_time() - began)
        sizes.append(path.stat().st_size)
    assert not store.shrink()
    assert sizes[-1] < 1.5 * MIB + 4096 * cleaning.UNUSED
    assert max(before - after for before, after in itertools.pairwise(sizes)) < 24 * MIB
    assert sorted(took)[len(took) * 9 // 10] < 0.05
    assert set(store.get(range(1, 81))) == {40, 80}


# -- one process only -------------------------------------------------------------------------------------------------


def test_a_second_process_learns_who_has_the_store(path: Path) -> None:
    process = writer(path, 1)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(StoreLocked, match=f"^the store is locked by pid {process.pid}$"):
            SqliteStore(path).open()
    finally:
        reap(process)
    killed = SqliteStore(path)
    assert killed.open().epoch == 2, "the lock dies with its holder"
    killed.close()


def test_a_child_does_not_inherit_the_lock(store: SqliteStore) -> None:
    """Else the lock would live as long as the last worker process."""
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        store.close()
        store.open()
    finally:
        child.kill()
        child.wait()


def test_another_program_with_the_file_open_is_a_lock(store: SqliteStore, path: Path) -> None:
    store.close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(StoreLocked, match="another program"):
            store.open()
    finally:
        other.close()
    store.open()


# -- files that cannot be used ----------------------------------------------------------------------------------------


def refuse(path: Path, error: type[Exception], match: str) -> None:
    """Opening fails, leaves the files as they are, and leaves no lock behind."""
    before = contents(path.parent)
    for _ in range(2):
        with pytest.raises(error, match=match):
            SqliteStore(path).open()
        assert contents(path.parent) == before


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_bytes(b"hello, I am a text\n" * 1000)
    refuse(path, StoreDamaged, "not a database")


def test_a_file_that_is_cut_off(store: SqliteStore, path: Path) -> None:
    store.write(Batch(new=[row(id, payload=bytes(1000)) for id in range(1, 1000)]))
    store.close()
    os.truncate(path, path.stat().st_size // 2)
    refuse(path, StoreDamaged, "damaged")


def test_pages_that_are_overwritten(store: SqliteStore, path: Path) -> None:
    store.write(Batch(new=[row(id, payload=bytes(1000)) for id in range(1, 1000)]))
    store.close()
    with path.open("r+b") as file:
        file.seek(40 * 4096)
        file.write(b"\xa5" * 8 * 4096)
    refuse(path, StoreDamaged, "damaged")


def test_damage_beside_a_log_that_was_not_copied_yet(path: Path) -> None:
    process = writer(path, 1600)
    assert process.stdout is not None
    while process.stdout.readline() != "1600\n":
        pass
    reap(process)
    assert path.with_name("store.sqlite-wal").stat().st_size > 0
    with path.open("r+b") as file:  # pages that the log does not replace
        file.seek(20 * 4096)
        file.write(b"\xa5" * 20 * 4096)
    refuse(path, StoreDamaged, "damaged")


def test_a_store_of_a_newer_taskq(store: SqliteStore, path: Path) -> None:
    store.close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    db.close()
    refuse(path, ConfigError, "made by a newer taskq")


def test_a_database_of_another_program(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE bookmark (url)")
    db.close()
    refuse(path, ConfigError, "another program")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or directory"):
        SqliteStore(tmp_path / "missing" / "store.sqlite").open()


def test_an_older_store_is_led_up(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(Batch(new=[row(1)]))
    store.close()
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 2)
    steps = {
        schema.VERSION - 2: lambda db: db.execute("CREATE TABLE one AS SELECT 5 AS x"),
        schema.VERSION - 1: lambda db: db.execute("CREATE TABLE two AS SELECT x + 1 AS y FROM one"),
    }
    monkeypatch.setattr(upgrades, "UPGRADES", steps)
    assert store.open().live == 1
    assert store._read("SELECT y FROM two") == [(6,)]
    store.close()
    assert store.open().epoch == 3, "and only once"


FIRST = (
    "CREATE TABLE store (id INTEGER PRIMARY KEY, store_id INT, epoch INT, next_id INT, totals TEXT)",
    "CREATE TABLE task (id INTEGER PRIMARY KEY, type TEXT, queue TEXT, payload BLOB, priority INT, max_retries INT,"
    " backoff REAL, timeout REAL, key TEXT, correlation_id TEXT, client INT, submitted_at REAL, due_at REAL, state INT,"
    " run INT, failures INT, deaths INT, cancel_requested INT, worker TEXT, worker_name TEXT, started_at REAL,"
    " finished_at REAL, result BLOB, error TEXT)",
    "CREATE INDEX live ON task (id) WHERE state < 4",
    "CREATE INDEX final ON task (state, finished_at) WHERE state >= 4",
    "CREATE TABLE payload (id INTEGER PRIMARY KEY, data BLOB)",
    "CREATE TABLE result (id INTEGER PRIMARY KEY, data BLOB)",
    "CREATE TABLE call (client INT, seq INT, first_id INT, size INT, digest BLOB, at REAL,"
    " PRIMARY KEY (client, seq)) WITHOUT ROWID",
    "CREATE INDEX call_at ON call (at)",
    "CREATE TABLE key (key TEXT PRIMARY KEY, id INT, digest BLOB, expires REAL) WITHOUT ROWID",
    "CREATE INDEX key_expires ON key (expires) WHERE expires IS NOT NULL",
    "CREATE TABLE worker (incarnation TEXT PRIMARY KEY, pool TEXT, name TEXT, host TEXT, pid INT)",
    "CREATE TABLE type (name TEXT, info TEXT, PRIMARY KEY (name, info))",
    "INSERT INTO store VALUES (1, 77, 4, 10, '{}')",
    "INSERT INTO task VALUES (7, 'x', 'q', x'9290', 2, 3, 1.0, NULL, NULL, 'c', 1, 5.0, 5.0, 1,"
    " NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
    f"PRAGMA application_id = {schema.APPLICATION_ID}",
    "PRAGMA user_version = 1",
)
"""The tables of version 1, with a task that waits."""


def test_a_store_of_the_first_version_has_the_same_tables_as_a_new_one(tmp_path: Path) -> None:
    old, new = tmp_path / "old.sqlite", tmp_path / "new.sqlite"
    with sqlite3.connect(old) as db:
        for statement in FIRST:
            db.execute(statement)
    db.close()
    columns = {}
    for path in (old, new):
        store = SqliteStore(path)
        live: list[TaskRow] = []
        store.open(lambda opened, rows, live=live: live.extend(rows))  # type: ignore[misc]
        if path == old:
            [found] = live
            assert (found.id, found.type, found.queue, found.payload, found.priority) == (7, "x", "q", b"\x92\x90", 2)
        tables = store._read("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        columns[path] = {
            name: sorted(tuple(column[1:3]) for column in store._read(f"PRAGMA table_info({name})"))
            for (name,) in tables
        }
        store.close()
    assert columns[old] == columns[new]


def test_a_process_that_died_while_it_made_the_file(path: Path) -> None:
    path.touch()
    empty = SqliteStore(path)
    assert empty.open().epoch == 1
    empty.close()
    path.unlink()
    with sqlite3.connect(path) as db:  # the file has its first page, but no tables yet
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
    db.close()
    assert path.stat().st_size
    assert empty.open().epoch == 1
    empty.close()


# -- plans: nothing that is asked often reads through the table -------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        (schema.OLDEST, (4, 1.0, 10)),
        (schema.COUNT_LIVE, ()),
        (schema.COUNT_FINAL, ()),
        (schema.LIVE, ()),
        (schema.LIVE_OTHERS, (0, 10)),
        (schema.LIVE_PAYLOADS, (0, 10)),
        (schema.GET, ("[1]",)),
        (schema.PAYLOADS, ("[1]",)),
        (schema.LARGE_PAYLOADS, ("[1]",)),
        (schema.EXPIRE_KEYS, (1.0, "[1]", "[1]")),
        (schema.DELETES[0], ("[1]",)),
        (schema.OLD_CALLS, (1.0, 10)),
        (schema.OLD_KEYS, (1.0, 10)),
        (schema.selection([4], "t", "q")[0], ("t", "q", 1, 2, 3)),
    ],
)
def test_statements_search_and_never_scan(store: SqliteStore, sql: str, parameters: tuple[object, ...]) -> None:
    plan = [step[-1] for step in store._read(f"EXPLAIN QUERY PLAN {sql}", parameters)]
    scans = [step for step in plan if step.startswith("SCAN")]
    allowed = ("INDEX live", "INDEX final", "INDEX key_expires", "json_each", "(subquery", "SUBQUERY")
    assert not [step for step in scans if not any(word in step for word in allowed)], plan
    assert not [step for step in plan if "TEMP B-TREE" in step], plan


# -- durability -------------------------------------------------------------------------------------------------------


def test_what_was_acknowledged_outlives_kill_9(path: Path) -> None:
    acknowledged = 0
    for wait_for in (1, 40, 150):
        process = writer(path, 1_000_000)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        for _ in range(wait_for):
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        said = process.communicate(timeout=10)[0].split()  # what it had said before it died, and we had not read
        acknowledged = int(said[-1]) if said else acknowledged
    store = SqliteStore(path)
    live: list[int] = []
    opened = store.open(lambda opened, rows: live.extend(row.id for row in rows))
    assert opened.epoch == 4
    assert opened.next_id > acknowledged >= 191
    assert live == list(range(1, opened.next_id))
    store.close()


def test_a_row_that_cannot_be_written_leaves_nothing_of_its_batch(store: SqliteStore) -> None:
    store.write(Batch(new=[row(1)]))
    with pytest.raises(StoreFailed, match="cannot write"):
        store.write(Batch(new=[row(2), row(3, client=2**64)]))
    assert set(store.get([1, 2, 3])) == {1}, "it can still be read"
    with pytest.raises(StoreFailed, match="takes no more writes"):
        store.write(Batch(new=[row(4)]))
    with pytest.raises(StoreFailed, match="takes no more writes"):
        store.purge(FINAL, 9.0, 9, 9.0)
    store.close()
    assert store.open().live == 1, "the next start believes the disk"


def test_many_rows_are_few_steps(store: SqliteStore) -> None:
    """Each step of a statement gives the GIL away, which is dear in a busy process (see `schema`)."""
    steps: list[str] = []
    assert store._db is not None
    store._db.set_trace_callback(steps.append)
    store.write(Batch(new=[row(id) for id in range(1, 1_501)]))
    store.write(Batch(changed=[done(id).change() for id in range(1, 1_501)]))
    assert len(steps) == 2 * len(("BEGIN", "1000 rows", "500 rows", "UPDATE store", "COMMIT"))


@pytest.mark.skipif(shutil.which("strace") is None, reason="errors of the disk are injected with strace")
@pytest.mark.parametrize(
    "fault", ["fdatasync:error=EIO:when=40", "pwrite64:error=EIO:when=150", "fdatasync:error=EIO:when=60+"]
)
def test_an_error_of_the_disk_ends_writing(path: Path, fault: str) -> None:
    calls = fault.split(":")[0]
    process = writer(
        path, 200, "strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={fault}"
    )
    said = process.communicate(timeout=30)[0].splitlines()
    if not said:
        pytest.skip("strace is not allowed to trace here")
    assert said[0] == "open"
    assert said[-2].startswith("failed: cannot write to")
    assert said[-1] == "refused"
    acknowledged = len(said) - 3
    store = SqliteStore(path)
    assert store.open().live in (acknowledged, acknowledged + 1), "nobody knows of the last, all others are there"
    store.close()


# -- a full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 32 MiB."""
    with mounted(tmp_path / "disk", 32) as folder:
        yield folder


def test_a_full_disk_takes_outcomes_but_no_new_tasks(small_disk: Path) -> None:
    store = SqliteStore(small_disk / "store.sqlite", free_mark=8 * MIB, reserve=4 * MIB)
    reserve = small_disk / "store.sqlite.reserve"
    store.open()
    store.write(Batch(new=[row(id) for id in range(1, 101)]))
    assert store.has_space()
    assert reserve.stat().st_blocks * 512 >= 4 * MIB
    filler = fill(small_disk, leave=MIB)
    assert not store.has_space()
    for id in range(1, 101):
        store.write(Batch(changed=[done(id, bytes(8000)).change()], next_id=101))
    assert not reserve.exists()
    assert not store.has_space()
    filler.unlink()
    assert store.has_space()
    assert reserve.stat().st_blocks * 512 >= 4 * MIB
    store.close()
    opened = store.open()
    assert (opened.live, opened.final) == (0, {State.COMPLETED: 100})
    assert store.get([100])[100].result == bytes(8000)
    store.close()


def test_a_disk_that_stays_full_ends_writing(small_disk: Path) -> None:
    store = SqliteStore(small_disk / "store.sqlite", free_mark=8 * MIB, reserve=4 * MIB)
    store.open()
    store.write(Batch(new=[row(id) for id in range(1, 2001)]))
    filler = fill(small_disk, leave=MIB)
    acknowledged = 0
    with pytest.raises(StoreFailed, match="full"):
        for id in range(1, 2001):
            store.write(Batch(changed=[done(id, bytes(8000)).change()]))
            acknowledged = id
    with pytest.raises(StoreFailed):
        store.write(Batch())
    store.close()
    filler.unlink()
    opened = store.open()
    assert opened.final == {State.COMPLETED: acknowledged}
    assert acknowledged > 100, "the reserve was used first"
    store.close()


def test_a_start_on_a_full_disk_uses_the_reserve(small_disk: Path) -> None:
    store = SqliteStore(small_disk / "store.sqlite", free_mark=8 * MIB, reserve=4 * MIB)
    store.open()
    store.write(Batch(new=[row(1)]))
    store.close()
    fill(small_disk, leave=0)
    assert store.open().live == 1
    store.write(Batch(changed=[done(1).change()]))
    store.close()
