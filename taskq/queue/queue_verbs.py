"""The verbs about queues as such, and the one that explains: pause, resume, limit, purge, explain."""

from __future__ import annotations

from collections.abc import Sequence

from taskq.errors import BadArguments, QueueNotFound, TaskNotFound
from taskq.queue.core import PURGE_STEP, QueueCore
from taskq.queue.explain import Cause, explain, explain_final
from taskq.queue.limits import MAX_NUMBER, check_number, check_text
from taskq.queue.task import FINAL, PENDING, SCHEDULED, Task
from taskq.queue.task_row import from_row
from taskq.shapes import Explained, PurgedQueue, QueueInfo
from taskq.stores.base import QueueRow

PURGE_TIME = 1.0
"""Seconds that one call of `QueueVerbs.purge_queue` takes, about."""


class QueueVerbs(QueueCore):
    """What clients may do with queues; see `taskq.service.QueueService` for what each verb promises."""

    def pause_queue(self, queue: str, by: str) -> QueueInfo:
        """Hand out nothing of this queue any more."""
        check_text("a queue's name", queue)
        check_text("by", by)
        with self._lock:
            rules = self._state.rules.of(queue)
            if rules.paused_at is None:
                rules = rules._replace(paused_by=by, paused_at=self._now().wall)
                self._lay_down(rules)
            else:
                self._commit.settle(self._commit.mark)  # it may be a repetition of the call that is being written
        return _info(rules)

    def resume_queue(self, queue: str) -> QueueInfo:
        """Hand out again."""
        with self._lock:
            self._refuse_unknown(queue)
            rules = self._state.rules.of(queue)
            self._lay_down(rules._replace(paused_by=None, paused_at=None))
        return _info(rules)

    def limit_queue(self, queue: str, running: int | None) -> QueueInfo:
        """Let at most so many tasks run at once."""
        check_text("a queue's name", queue)
        if running is not None and (type(running) is not int or not 0 < running <= MAX_NUMBER):
            raise BadArguments(
                "a limit is a number of tasks, 1 or more", hint="to hold all tasks back, pause the queue"
            )
        with self._lock:
            rules = self._state.rules.of(queue)._replace(max_running=running)
            self._lay_down(rules)
        return _info(rules)

    def _lay_down(self, rules: QueueRow) -> None:
        """These are the rules of a queue from now on; on disk when this returns. Wakes who may take its tasks now."""
        self._state.rules.put(rules)
        self._commit.settle(self._commit.add_queue(rules))
        ready = {(shelf.queue, shelf.type): shelf.pending for shelf in self._state.places.ready.of_queue(rules.name)}
        self._wake(ready)
        self._housekeeper.expect(
            0.0
        )  # a worker process may have to be kept free, or no longer, for tasks of this queue

    def _refuse_unknown(self, queue: str) -> None:
        if queue not in self._state.figures.queues and queue not in self._state.rules.rows:
            raise QueueNotFound(
                f'there is no queue "{queue}"', hint='"taskq-monitor queue list" shows those that there are'
            )

    def purge_queue(self, queue: str, below: int) -> PurgedQueue:
        """Cancel a part of what waits in this queue."""
        check_number("below", below)
        give_up = self._clock.monotonic() + PURGE_TIME
        with self._lock:
            self._refuse_if_shut()
            self._refuse_unknown(queue)
            below = below or self._state.next_id
        cancelled, done = 0, False
        while not done and self._clock.monotonic() < give_up:
            with self._lock:
                piece = [
                    task for place in self._state.places.shelves() for task in place.front(queue, PURGE_STEP, below)
                ]
                cancelled += self._cancel_all(piece[:PURGE_STEP])
                done = not piece
        scheduled = self._scheduled_in(queue, below) if done else []
        while scheduled and self._clock.monotonic() < give_up:
            piece, scheduled = scheduled[:PURGE_STEP], scheduled[PURGE_STEP:]
            with self._lock:
                cancelled += self._cancel_all(piece)
        return PurgedQueue(cancelled, below, not done or bool(scheduled))

    def _scheduled_in(self, queue: str, below: int) -> list[Task]:
        """What is scheduled in this queue; looked for without the lock, so it may be so no longer."""
        with self._lock:
            if not self._state.figures.queues[queue].counts[SCHEDULED]:
                return []
            heap = self._state.places.schedule.copy()
        return [task for _, _, _, task in heap if task.id < below and task.queue == queue and task.state is SCHEDULED]

    def _cancel_all(self, tasks: Sequence[Task]) -> int:
        """Cancel those of these tasks that still wait; on disk when this returns. Gives their number."""
        now, count = self._now(), 0
        for task in tasks:
            if task.state in (PENDING, SCHEDULED) and self._state.tasks.get(task.id) is task:
                self._record(self._state.cancel(task.id, now)[1])
                count += 1
        self._commit.settle(self._commit.mark)
        return count

    def explain(self, id: int) -> Explained:
        """Why a task does not run now."""
        check_number("id", id)
        with self._lock:
            if self._commit.is_dirty(id):
                self._commit.settle_all()
            task = self._state.tasks.get(id)
            if task is not None and task.state not in FINAL:
                return _explained(task, explain(self._state, task, self._now(), self._announced.names()))
        row = self._store.get([id]).get(id)
        if row is None:
            raise TaskNotFound(f"there is no task {id}", hint="finished tasks are kept for a day, failed ones for 30")
        stored = from_row(row)
        return _explained(stored, explain_final(stored, self._now()))


def _explained(task: Task, causes: Sequence[Cause]) -> Explained:
    return {"id": task.id, "type": task.type, "queue": task.queue, "state": task.state.label, "causes": causes}


def _info(rules: QueueRow) -> QueueInfo:
    return {
        "name": rules.name,
        "paused_at": rules.paused_at,
        "paused_by": rules.paused_by,
        "limit": rules.max_running,
    }
