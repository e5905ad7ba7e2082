"""The slot table: written by one process, read by another, at any moment and after a death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from taskq.workers.slots import _SLOT, NAME_BYTES, SlotTable


@pytest.fixture
def table() -> Iterator[SlotTable]:
    made = SlotTable.create(3)
    yield made
    made.close()


@pytest.fixture
def reader(table: SlotTable) -> Iterator[SlotTable]:
    """The same table, mapped a second time, as the parent has it."""
    made = SlotTable(os.dup(table.descriptor), 3)
    yield made
    made.close()


def test_reader_sees_what_the_writer_does(table: SlotTable, reader: SlotTable) -> None:
    assert reader.running() == []
    table.own(1)
    table.begin(1, 42, 2**40 + 7, 12.5, b"mail.send", 15.0, False)
    (seen,) = reader.running()
    assert seen == (42, 2**40 + 7, 12.5, "mail.send", threading.get_ident(), 15.0, False)
    table.end(1)
    assert reader.running() == []


def test_slots_are_independent(table: SlotTable, reader: SlotTable) -> None:
    for slot in range(3):
        table.begin(slot, slot + 10, slot + 100, 0.0, b"x")
    table.end(1)
    assert [(one.id, one.run) for one in reader.running()] == [(10, 100), (12, 102)]


def test_a_slot_written_half_counts_as_free(table: SlotTable, reader: SlotTable) -> None:
    table.begin(0, 1, 1000, 0.0, b"x")
    offset = table._offset(0)
    table._map[offset : offset + 8] = (1001).to_bytes(8, sys.byteorder)  # the writer died after the first field
    assert reader.running() == []


def test_the_readers_copy_is_never_mixed(table: SlotTable, reader: SlotTable) -> None:
    """A writer in a process of its own, as fast as it can; every copy must be of one task."""
    code = f"""
from taskq.workers.slots import SlotTable
table, n = SlotTable({table.descriptor}, 3), 0
while True:
    n += 1
    table.begin(0, n, n + 1, float(n), str(n).encode())
    table.end(0)
"""
    writer = subprocess.Popen([sys.executable, "-c", code], pass_fds=[table.descriptor])
    try:
        seen: set[int] = set()
        while len(seen) < 300:
            for one in reader.running():
                assert (one.run, one.started, one.type) == (one.id + 1, float(one.id), str(one.id))
                seen.add(one.id)
    finally:
        writer.kill()
        writer.wait()


def test_long_names_are_cut_between_characters(table: SlotTable, reader: SlotTable) -> None:
    name = "é" * 40 + "x"
    table.begin(0, 1, 1, 0.0, name.encode()[: NAME_BYTES - 1])
    assert reader.running()[0].type == "é" * 31


def test_leave_is_marked(table: SlotTable, reader: SlotTable) -> None:
    assert not reader.left
    table.set_left()
    assert reader.left


def test_the_table_is_as_large_as_it_says(table: SlotTable) -> None:
    last = table._offset(2) + _SLOT.size + 8
    assert os.fstat(table.descriptor).st_size == last


CRASH = """
import ctypes, faulthandler, sys, threading, time
from taskq.workers.slots import SlotTable
table = SlotTable(int(sys.argv[1]), 3)
faulthandler.enable(table.crash_descriptor())

def innocent(slot):
    table.own(slot)
    table.begin(slot, slot, 100 + slot, 0.0, b"good")
    ready.release()
    time.sleep(60)

def guilty_function(slot):
    table.own(slot)
    table.begin(slot, slot, 100 + slot, 0.0, b"bad")
    ctypes.string_at(0)

ready = threading.Semaphore(0)
for slot in (0, 2):
    threading.Thread(target=innocent, args=(slot,), daemon=True).start()
    ready.acquire()
threading.Thread(target=guilty_function, args=(1,)).start()
"""


def test_a_crash_names_the_task_that_caused_it(table: SlotTable) -> None:
    done = subprocess.run([sys.executable, "-c", CRASH, str(table.descriptor)], pass_fds=[table.descriptor], timeout=20)
    assert done.returncode == -signal.SIGSEGV
    assert [one.id for one in table.running()] == [0, 1, 2]
    assert [(one.id, one.type) for one in table.guilty()] == [(1, "bad")]
    assert "guilty_function" in table.crash()
    assert "innocent" not in table.crash()


def test_without_a_crash_report_all_running_tasks_are_suspect(table: SlotTable) -> None:
    table.begin(0, 1, 1, 0.0, b"x")
    table.begin(2, 3, 3, 0.0, b"x")
    assert table.crash() == ""
    assert [one.id for one in table.guilty()] == [1, 3]
