"""The queue as everybody calls it: `JobQueue` has all verbs of `taskq.service.QueueService`.

How a verb works is told in `taskq.queue.core`; what it decides, in `taskq.queue.state`.
"""

from __future__ import annotations

import os
from typing import Any

from taskq.config import VERSION
from taskq.queue.client_verbs import ClientVerbs
from taskq.queue.core import DISK_FULL
from taskq.queue.limits import check_number, check_text
from taskq.queue.queue_verbs import QueueVerbs
from taskq.queue.record_verbs import RecordVerbs
from taskq.queue.snapshot import iso, snapshot
from taskq.queue.worker_verbs import WorkerVerbs
from taskq.shapes import BackedUp, Hello, Types


class JobQueue(ClientVerbs, RecordVerbs, QueueVerbs, WorkerVerbs):
    """The queue of one manager.

    ``on_failure`` is called once when a write did not reach the disk; the process must then end. ``local_pool`` is the
    id of the manager's run, known to the pool that it started: pools of other runs are told to drain.
    ``self_report`` gives what only the process knows of itself, for the snapshot.
    """

    def hello(self) -> Hello:
        """Who this manager is."""
        return {
            "name": self.settings.name,
            "version": VERSION,
            "store_id": self._opened.store_id,
            "epoch": self._opened.epoch,
            "durable": self._store.durable,
            "pid": os.getpid(),
            "started_at": self._started_at,
            "max_payload": self.settings.max_payload,
        }

    def types(self) -> Types:
        """The types that were announced, and how many workers offer each now."""
        with self._lock:
            known = self._announced.types(self._state.leases.workers.values())
        return {"types": known, "ever_joined": bool(known)}

    def backup(self, path: str, token: int) -> BackedUp:
        """Write a copy of the store."""
        check_number("token", token)
        check_text("path", path)
        return self._backups.ask(path, token)

    def snapshot(self) -> dict[str, Any]:
        """Figures for the monitor."""
        manager = {
            "name": self.settings.name,
            "version": VERSION,
            "pid": os.getpid(),
            "started_at": iso(self._started_at),
            "uptime_s": self._now().mono - self._started_mono,
            "store": self._store.kind,
            "durable": self._store.durable,
            **self.self_report(),
        }
        with self._lock:
            warnings = []
            if not self._has_space or self._store.strained:
                warnings.append({"code": "storage_full", "message": DISK_FULL, "reserve_used": self._store.strained})
            return snapshot(self._state, self._now(), manager, warnings)
