"""Which running tasks are to be cancelled, for those who run them. PURE."""

from __future__ import annotations

from taskq.queue.task import RUNNING, Task


class Stopping:
    """Running tasks whose cancellation was asked for. One that is over is dropped when somebody looks."""

    def __init__(self) -> None:
        self._tasks: dict[int, Task] = {}

    def add(self, task: Task) -> None:
        """A running task is to be cancelled."""
        self._tasks[task.id] = task

    def tasks(self) -> list[Task]:
        """Those that still run."""
        self._tasks = {id: task for id, task in self._tasks.items() if task.state is RUNNING and task.cancel_requested}
        return list(self._tasks.values())
