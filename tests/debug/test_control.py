"""The lines that a worker process has from its parent."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from taskq.workers import control


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe, closed at the end if they are still open."""
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


def test_lines_until_the_end(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"one\ntw")
    lines = control.lines(reader)
    assert next(lines) == "one"
    os.write(writer, b"o\nthr")
    os.close(writer)
    assert list(lines) == ["two"]


def test_a_closed_descriptor_is_the_end(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"one\n")
    lines = control.lines(reader)
    assert next(lines) == "one"
    os.close(reader)
    assert list(lines) == []


def test_who_got_the_number_of_a_closed_descriptor_loses_nothing(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"one\n")
    lines = control.lines(reader)
    assert next(lines) == "one"
    other_reader, other_writer = os.pipe()
    os.dup2(other_reader, reader)
    os.write(other_writer, b"not for you\n")
    assert list(lines) == []
    assert os.read(other_reader, 99) == b"not for you\n"
    os.close(other_reader)
    os.close(other_writer)
