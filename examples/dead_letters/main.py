"""What to do with tasks that have failed: look at them, let them begin anew, or drop them.

Start the manager in this folder, so that its workers find ``payments.py``, then this program::

    taskq-manager --tasks payments
    python main.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from payments import pay

from taskq import Client


def main() -> None:
    """Pay before the bank is open, then again."""
    with tempfile.TemporaryDirectory() as folder, Client() as q:
        bank = Path(folder) / "bank"
        handles = q.map(pay, [100, 200, 0], [str(bank)] * 3)
        q.wait(handles, timeout=30)
        for record in q.failed("type=payments.pay"):
            print(record["error"]["type"], "-", record["error"]["message"].replace(str(bank), "the bank"))

        bank.touch()
        print("begin anew:", len(q.requeue(where="error=ConnectionError")))
        for handle in handles[:2]:
            print(q.handle(handle.id).result(timeout=30))
        print("attempts:", [attempt["outcome"] for attempt in q.history(handles[0].id)])
        print("dropped:", len(q.drop(where='message="nothing to pay"')))


if __name__ == "__main__":
    main()
