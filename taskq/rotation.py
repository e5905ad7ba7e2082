"""Changes the key of an instance, whether its manager runs or not: ``taskq-manager --rotate-key``."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from taskq import config
from taskq.config import Join, StateDir
from taskq.errors import AuthenticationFailed, ManagerUnavailable, TaskqError
from taskq.keys import KeyFiles, Keys
from taskq.wire.client import RemoteQueue

TAKE_OVER = 10.0
"""Seconds that a manager has to notice its new key; it looks once a second."""


def rotate(state: StateDir, key_file: Path) -> Keys:
    """Make a new key; when this returns a running manager accepts it, and the join file has it.

    Raises `ConfigError`, and `AuthenticationFailed` when a manager runs there that does not take it.
    """
    join = _join(state)
    running = join is not None and _runs(join)
    keys = KeyFiles(key_file).rotate()
    if join is None:
        return keys
    give_up = time.monotonic() + TAKE_OVER
    while running and _key_in(state) != keys.current:
        if time.monotonic() > give_up:
            raise AuthenticationFailed(
                f"the manager at {join.addresses[0]} goes on with its former key; the new one is in {key_file}",
                hint="was it started with another --key-file? it reads this one when it is started with it",
            )
        time.sleep(0.05)
    if not running:
        config.write_private(state.join, dataclasses.replace(join, key=keys.current).to_json() + "\n")
    return keys


def _join(state: StateDir) -> Join | None:
    return config.read_join(state.join) if state.join.exists() else None


def _key_in(state: StateDir) -> bytes | None:
    """The key in the join file, which a running manager writes anew once it accepts the new one."""
    found = _join(state)
    return None if found is None else found.key


def _runs(join: Join) -> bool:
    """Whether a manager answers there."""
    queue = RemoteQueue(join)
    try:
        queue.hello()
    except ManagerUnavailable:
        return False
    except TaskqError:  # it answers, if only with a refusal
        return True
    finally:
        queue.close()
    return True
