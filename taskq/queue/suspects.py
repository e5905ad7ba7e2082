"""Tasks under which a worker process has died: each runs next alone in one, so that only its own crash counts. PURE.

Theory of operation. Pending suspects stand on shelves of their own (`Suspects`), apart from all others. A worker
process that holds nothing takes one of them before anything else, and then nothing more until that is over. Since a
busy process may never be empty by itself, one that serves them is chosen to become so (`Worker.alone`): the one that
runs the least. It gets nothing new until it has taken a suspect, or until there is none left for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from taskq.queue.leases import Worker
from taskq.queue.ready import Ready, Shelf
from taskq.queue.retry import MAX_DEATHS
from taskq.queue.task import Task, TaskError


class Suspects(Ready):
    """The shelves of pending suspects, and who is kept free for them."""

    def next_for(self, worker: Worker, shelves: Sequence[Shelf], wall: float) -> list[Task]:
        """The next one on these shelves for a worker process that holds nothing; it takes nothing else until that is
        over."""
        taken = self.take(shelves, 1, wall)
        worker.alone = bool(taken) or worker.alone
        return taken

    def keep(self, workers: Iterable[Worker], able: Callable[[Worker], bool], shelves: Sequence[Shelf]) -> list[Worker]:
        """Choose who is to become empty, and let go of those who need not; gives those for whom something has changed.

        ``able``: whether a worker process may be given tasks at all. ``shelves``: those of suspects that may be handed
        out.
        """
        there = list(workers)
        changed = [one for one in there if one.alone and not _is_needed(one, shelves)]
        for worker in changed:
            worker.alone = False
        for shelf in shelves:
            serving = [worker for worker in there if able(worker) and _serves(worker, shelf)]
            if serving and not any(worker.alone for worker in serving):
                chosen = min(serving, key=lambda worker: len(worker.running))
                chosen.alone = True
                changed.append(chosen)
        return changed


def _is_needed(worker: Worker, shelves: Iterable[Shelf]) -> bool:
    return any(task.deaths for task in worker.running.values()) or any(_serves(worker, shelf) for shelf in shelves)


def _serves(worker: Worker, shelf: Shelf) -> bool:
    return shelf.type in worker.types and (not worker.queues or shelf.queue in worker.queues)


def verdict(task: Task, worker: Worker, death: dict[str, Any]) -> TaskError:
    """The error of a task that has just been counted a death; ``death``: what is known of the process's end."""
    crash = str(death.get("crash", ""))
    if task.deaths < MAX_DEATHS:
        return TaskError("died", "", f"worker process {worker.name} ended by {death['how']}", crash)
    return TaskError(
        "poisoned",
        "",
        f"its worker process died {task.deaths} times under it, the last time by {death['how']}",
        crash,
    )
