"""The tasks that are measured: ordinary ones, as anybody writes them. Workers load this module with ``--tasks``."""

from __future__ import annotations

import time

from taskq.registry import task


@task(name="bench.noop")
def noop(x: object = None) -> None:
    """Nothing."""


@task(name="bench.echo")
def echo(x: object) -> object:
    """What it is given."""
    return x


@task(name="bench.nap")
def nap(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


@task(name="bench.spin")
def spin(seconds: float) -> None:
    """Use so many seconds of processor time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@task(name="bench.swallow")
def swallow(data: bytes | str) -> int:
    """The length of what it is given."""
    return len(data)
