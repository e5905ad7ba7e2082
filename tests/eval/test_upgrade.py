"""Stores of other versions (T20): older ones are led up with nothing lost, newer ones are refused."""

from __future__ import annotations

import importlib.util
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from taskq.errors import ConfigError
from taskq.stores import schema
from taskq.stores.base import CallRow
from taskq.stores.sqlite import SqliteStore

FIXTURES = Path(__file__).parent / "fixtures"


def maker() -> ModuleType:
    """The module that made the stores."""
    spec = importlib.util.spec_from_file_location("make_store", FIXTURES / "make_store.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("version", [2, 3])
def test_a_store_of_each_version_is_read(
    version: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    path = tmp_path / "store.sqlite"
    shutil.copy(FIXTURES / f"store-{version}.sqlite", path)
    made = maker()
    expected = {id: made.task(id) for id in range(1, made.TASKS + 1)}
    for epoch in (2, 3):
        store = SqliteStore(path, reserve=0)
        live: list[int] = []
        start = store.open(lambda opened, rows, live=live: live.extend(row.id for row in rows))  # type: ignore[misc]
        if version == 2 and epoch == 2:
            assert (start.epoch, start.next_id, start.notes) == (2, made.TASKS + 1, [])
        assert start.totals == {"submitted": made.TASKS}
        assert live == [id for id, row in expected.items() if row.state not in made.FINAL_STATES]
        assert store.get(list(expected)) == expected
        assert store.find_call(7, 1) == CallRow(7, 1, 1, made.TASKS, b"d" * 16, 100.0)
        assert store.find_keys(["k5"])["k5"].id == 5
        assert [row.value for row in store.uniques_of([1])] == [b"u"]
        assert [row.max_running for row in start.queues] == [4]
        store.close()
    print(f"T20: store of version {version}: {len(expected)} tasks read, 0 lost")
    record_property("tasks", len(expected))


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    shutil.copy(FIXTURES / "store-3.sqlite", path)
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="made by a newer taskq") as raised:
        SqliteStore(path).open()
    assert raised.value.hint and path.read_bytes() == before
