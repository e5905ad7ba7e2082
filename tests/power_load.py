"""The process whose writes are traced: a durable queue under load, with several lives, checkpoints, purges, shrinking.

``python tests/power_load.py FOLDER LOG SEED STEPS [NORMAL]``. What takes gigabytes in earnest is made small, so that
all of it happens within some thousand writes. With ``NORMAL`` commits are not synced: the control run, which must lose.
"""

from __future__ import annotations

import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from queue_driver import Driver, Talk

from taskq.clock import SystemClock
from taskq.config import QueueSettings
from taskq.queue.job_queue import JobQueue
from taskq.stores import cleaning, schema, sqlite
from taskq.stores.sqlite import SqliteStore

DRIVERS, LIVES, PHASES = 4, 3, 2


def set_small(synchronous: str) -> None:
    """Checkpoints every 150 pages and not every 4,000; a file that shrinks although it is small."""
    changed = {"wal_autocheckpoint": "150", "synchronous": synchronous}
    kept = tuple(one for one in schema.PRAGMAS if not any(name in one for name in changed))
    schema.PRAGMAS = (*kept, *(f"PRAGMA {name} = {value}" for name, value in changed.items()))
    cleaning.UNUSED = 10
    sqlite._CUT_OFF = 20


def live(folder: Path, talk: Talk, drivers: list[Driver], steps: int) -> None:
    """One life of a manager, from its start to an orderly end."""
    queue = JobQueue(SqliteStore(folder / "store.sqlite", free_mark=0, reserve=65536), SystemClock(), QueueSettings())
    queue.open()
    queue.start()
    hello = queue.hello()
    talk.say("opened", epoch=hello["epoch"], store_id=hello["store_id"])
    for driver in drivers:
        driver.join(queue)
    with ThreadPoolExecutor(DRIVERS) as pool:
        for _ in range(PHASES):
            list(pool.map(lambda driver: [driver.step() for _ in range(steps)], drivers))
            gone = {id: version for driver in drivers for id, version in driver.purged().items()}
            call = talk.begin("purge", to=[(id, *version) for id, version in gone.items()])
            count = queue.purge(["completed", "cancelled"], 0.0)
            assert count == len(gone), (count, len(gone))
            talk.say("end", call=call)
            for driver in drivers:
                driver.forget(list(gone))
            while queue.clean():
                pass
    queue.close()


def main(folder: str, log: str, seed: str, steps: str, synchronous: str = "FULL") -> None:
    """Live some lives."""
    sys.setswitchinterval(0.0005)
    set_small(synchronous)
    random.seed(int(seed))
    talk = Talk(Path(log))
    drivers = [Driver(number, int(seed), talk) for number in range(1, DRIVERS + 1)]
    for _ in range(LIVES):
        live(Path(folder), talk, drivers, int(steps))
    assert threading.active_count() == 1


if __name__ == "__main__":
    main(*sys.argv[1:])
