"""Group commit by leader and followers: many changes, one transaction.

Theory of operation. Whoever changes records says so here (`add`), still under the queue's lock, and gets a *mark*. Who
needs its change on disk calls `settle` with the mark. If no transaction is under way, that thread becomes the leader:
it copies all changed records, lets go of the lock, writes them in one transaction and releases everybody whose mark it
covered. Who comes meanwhile waits, and is in the next one: of those only one is woken, to lead it, since to wake a
thread costs more than its part of the transaction. With one caller there is no hand-over to another thread,
which would cost more than the SQL; with many, batches form by themselves (DeWitt et al., "Implementation Techniques for
Main Memory Database Systems", 1984, for the idea of group commit).

Nobody waits for a hand-out, and a task that ends soon after it need not be written twice: hand-outs are kept apart
(`hand_out`) until they end, and only those that still run after two calls of `ripen` become changes like others.

Memory is never rolled back. When a write fails, every waiting caller gets `OutcomeUnknown`, nothing is accepted any
more, and the manager ends: its next start believes the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from taskq import threads
from taskq.errors import OutcomeUnknown, StoreFailed
from taskq.queue.task import FINAL, Task
from taskq.queue.task_row import TaskRow, to_changes, to_rows
from taskq.stores.base import (
    INLINE_PAYLOAD,
    AttemptRow,
    Batch,
    CallRow,
    KeyRow,
    QueueRow,
    ResultEnd,
    Store,
    TypeRow,
    UniqueRow,
    WorkerRow,
)


@dataclass
class _Unwritten:
    tasks: dict[int, Task] = field(default_factory=dict)
    calls: list[CallRow] = field(default_factory=list)
    keys: list[KeyRow] = field(default_factory=list)
    uniques: list[UniqueRow] = field(default_factory=list)
    types: list[TypeRow] = field(default_factory=list)
    joined: list[WorkerRow] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    queues: list[QueueRow] = field(default_factory=list)
    attempts: list[AttemptRow] = field(default_factory=list)
    result_ends: list[ResultEnd] = field(default_factory=list)


class GroupCommit:
    """What is not on disk yet, and the way there. All methods are called with the queue's lock held.

    ``head()`` gives (next id, totals) as they are now; ``settled`` gets the final records of each transaction, with
    the lock held; ``failed`` is called once, without it, when a write failed.
    """

    def __init__(
        self,
        lock: threads.Lock,
        store: Store,
        *,
        stored_below: int,
        head: Callable[[], tuple[int, dict[str, int]]],
        settled: Callable[[list[Task]], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._lock = lock
        self._store = store
        self._head = head
        self._settled = settled
        self._failed = failed
        self._under_way = threads.condition(lock)
        self._next = threads.condition(lock)
        self._unwritten = _Unwritten()
        self._writing: dict[int, Task] = {}
        self._handed_out: dict[int, Task] = {}
        self._ripening: dict[int, Task] = {}
        self._mark = 0
        self._covered = 0
        self._leading = False
        self._leads_to = (0, stored_below)
        self.stored_below = stored_below
        """Tasks with lower ids are in the store."""
        self.broken = False

    @property
    def mark(self) -> int:
        """The mark that covers every change until now."""
        return self._mark

    @property
    def covered(self) -> int:
        """The mark up to which everything is on disk."""
        return self._covered

    @property
    def idle(self) -> bool:
        """Whether everything is on disk."""
        return self._covered == self._mark and not self._handed_out and not self._ripening

    def add(self, tasks: Collection[Task]) -> int:
        """Records have changed; gives the mark to wait for."""
        ids = [task.id for task in tasks]
        self._unwritten.tasks.update(zip(ids, tasks, strict=True))
        for waiting in (self._handed_out, self._ripening):
            if waiting:
                for id in ids:
                    waiting.pop(id, None)
        self._mark += 1
        return self._mark

    def hand_out(self, tasks: Iterable[Task]) -> None:
        """Tasks have begun to run: to be written by the second `ripen` from now, if they still do."""
        unwritten = self._unwritten.tasks
        for task in tasks:
            if task.id not in unwritten:  # else the next commit takes it along as it is then
                self._handed_out[task.id] = task

    def ripen(self) -> int:
        """Hand-outs get older; gives the mark that covers those of the time before the last call."""
        due, self._ripening, self._handed_out = self._ripening, self._handed_out, {}
        return self.add(due.values()) if due else 0

    def add_call(self, call: CallRow, keys: Iterable[KeyRow], uniques: Iterable[UniqueRow] = ()) -> None:
        """A submit call, with keys and unique values of its tasks; followed by `add` of the tasks, if there are any."""
        self._mark += 1
        self._unwritten.calls.append(call)
        self._unwritten.keys.extend(keys)
        self._unwritten.uniques.extend(uniques)

    def add_worker(self, worker: WorkerRow, types: Iterable[TypeRow]) -> None:
        """A worker process has joined with these types; followed by `add`."""
        self._unwritten.joined.append(worker)
        self._unwritten.types.extend(types)

    def add_left(self, incarnations: Iterable[str]) -> None:
        """Worker processes have left; followed by `add`."""
        self._unwritten.left.extend(incarnations)

    def add_queue(self, rules: QueueRow) -> int:
        """The rules of a queue have changed; gives the mark to wait for."""
        self._unwritten.queues.append(rules)
        self._mark += 1
        return self._mark

    def add_attempts(self, attempts: Iterable[AttemptRow]) -> None:
        """Attempts are over; followed by `add` of their tasks."""
        self._unwritten.attempts.extend(attempts)

    def add_result_ends(self, ends: Iterable[ResultEnd]) -> None:
        """Results have a time of their own; followed by `add` of their tasks."""
        self._unwritten.result_ends.extend(ends)

    def is_dirty(self, task_id: int) -> bool:
        """Whether this task has a change that is not on disk yet."""
        places = (self._unwritten.tasks, self._writing, self._handed_out, self._ripening)
        return any(task_id in place for place in places)

    def settle(self, mark: int) -> None:
        """Return when everything up to ``mark`` is on disk. Raises `OutcomeUnknown`."""
        while self._covered < mark:
            self._step(mark <= self._leads_to[0])

    def settle_all(self) -> None:
        """Return when everything until now is on disk, hand-outs too. Raises `OutcomeUnknown`."""
        self.ripen()
        self.ripen()
        self.settle(self._mark)

    def settle_submits(self, task_id: int) -> None:
        """Return when the submit of this task, and all before it, are on disk. Raises `OutcomeUnknown`."""
        while self.stored_below <= task_id:
            self._step(task_id < self._leads_to[1])

    def _step(self, under_way: bool) -> None:
        """Lead a transaction, or wait: for the one that is ``under_way`` if that is enough, else for one to lead."""
        if self.broken:
            raise OutcomeUnknown(
                "a write did not reach the disk, and the manager stops",
                hint="repeat the same call when it is back: it gives the one truth",
            )
        if self._leading:
            (self._under_way if under_way else self._next).wait()
        else:
            self._lead()

    def _lead(self) -> None:
        mark, unwritten = self._mark, self._unwritten
        next_id, totals = self._head()
        batch = _batch(unwritten, self.stored_below, next_id, totals)
        final = [task for task in unwritten.tasks.values() if task.state in FINAL]
        self._unwritten = _Unwritten()  # not before: what goes wrong up to here must not lose a change
        self._writing = unwritten.tasks
        self._leading = True
        self._leads_to = (mark, next_id)
        self._under_way, self._next = self._next, self._under_way  # nobody waits in the latter any more
        self._lock.release()
        failure: BaseException | None = None
        try:
            self._store.write(batch)
        except BaseException as error:
            failure = error
            if not isinstance(error, StoreFailed):
                raise
        finally:
            self._lock.acquire()
            self._leading = False
            self._next.notify()  # first: it keeps the disk busy
            self._under_way.notify_all()
            if failure is not None:
                self._next.notify_all()
                self._break(failure)
        if self.broken:
            return
        self._covered = mark
        self._writing = {}
        self.stored_below = next_id
        _rest_payloads(unwritten.tasks, batch.new)
        self._settled(final)

    def give_up(self, error: StoreFailed) -> None:
        """The store has failed outside of a transaction: as after a write that did."""
        self._under_way.notify_all()
        self._next.notify_all()
        self._break(error)

    def _break(self, error: BaseException) -> None:
        if not self.broken:
            self.broken = True
            self._lock.release()
            try:
                self._failed(error)
            finally:
                self._lock.acquire()


def _batch(unwritten: _Unwritten, stored_below: int, next_id: int, totals: dict[str, int]) -> Batch:
    tasks = unwritten.tasks.values()
    return Batch(
        to_rows(task for task in tasks if task.id >= stored_below),
        to_changes(task for task in tasks if task.id < stored_below),
        unwritten.calls,
        unwritten.keys,
        unwritten.types,
        unwritten.joined,
        unwritten.left,
        unwritten.queues,
        unwritten.attempts,
        unwritten.result_ends,
        next_id,
        dict(totals),
        unwritten.uniques,
    )


def _rest_payloads(tasks: dict[int, Task], new: list[TaskRow]) -> None:
    """Larger payloads rest in the store until their task is handed out."""
    for row in new:
        if row.payload is not None and len(row.payload) > INLINE_PAYLOAD:
            tasks[row.id].payload = None
