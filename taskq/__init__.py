"""taskq: a distributed task queue for Python with no broker to install.

These are the public names; the other errors are in `taskq.errors`. They are imported when first used, so that
``import taskq`` costs nothing that is not needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskq.client import Client
    from taskq.errors import (
        AuthenticationFailed,
        BadArguments,
        KeyConflict,
        ManagerUnavailable,
        NotEncodable,
        OutcomeUnknown,
        Permanent,
        QueueFull,
        ResultExpired,
        Retry,
        Snooze,
        StorageFull,
        TaskCancelled,
        TaskFailed,
        TaskNotFound,
        TaskqError,
        TaskTimeout,
        UnknownTaskType,
    )
    from taskq.registry import TaskType, current_task, named, task
    from taskq.results import TaskHandle
    from taskq.unique import Unique

__version__ = "0.1.0"

__all__ = [
    "AuthenticationFailed",
    "BadArguments",
    "Client",
    "KeyConflict",
    "ManagerUnavailable",
    "NotEncodable",
    "OutcomeUnknown",
    "Permanent",
    "QueueFull",
    "ResultExpired",
    "Retry",
    "Snooze",
    "StorageFull",
    "TaskCancelled",
    "TaskFailed",
    "TaskHandle",
    "TaskNotFound",
    "TaskTimeout",
    "TaskType",
    "TaskqError",
    "Unique",
    "UnknownTaskType",
    "current_task",
    "named",
    "task",
]

_HOMES = {
    "Client": "taskq.client",
    "TaskHandle": "taskq.results",
    "TaskType": "taskq.registry",
    "Unique": "taskq.unique",
    "current_task": "taskq.registry",
    "named": "taskq.registry",
    "task": "taskq.registry",
}
"""Where a public name is defined, if not in `taskq.errors`."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(_HOMES.get(name, "taskq.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
