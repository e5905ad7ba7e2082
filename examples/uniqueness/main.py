"""Submits that find the task that is there already.

Start the manager in this folder, so that its workers find ``reports.py``, then this program::

    taskq-manager --tasks reports
    python main.py
"""

from __future__ import annotations

from reports import build_report

from taskq import Client, KeyConflict, Unique
from taskq.errors import NotUnique

ONE_A_USER = Unique(by=("user_id",), while_in=("pending", "running"))
ONCE = Unique(within=60, on_conflict="raise")


def main() -> None:
    """Ask for reports, some of them twice."""
    with Client() as q:
        first = q.submit(build_report.options(unique=ONE_A_USER), 1)
        again = q.submit(build_report.options(unique=ONE_A_USER), 1, kind="yearly")
        other = q.submit(build_report.options(unique=ONE_A_USER), 2)
        print("the same task:", again.id == first.id, again.existing, "- another user's:", other.existing)
        print(again.result(timeout=30), "-", other.result(timeout=30))
        print("now that it is done:", q.submit(build_report.options(unique=ONE_A_USER), 1).existing)

        once = q.submit(build_report.options(unique=ONCE), 3)
        once.result(timeout=30)
        try:
            q.submit(build_report.options(unique=ONCE), 3)
        except NotUnique as error:
            print(
                "within a minute, though it is done: refused because of the same task:", error.details["id"] == once.id
            )

        keyed = q.submit(build_report.options(key="user 4 in May"), 4)
        print("the same key:", q.submit(build_report.options(key="user 4 in May"), 4).id == keyed.id)
        try:
            q.submit(build_report.options(key="user 4 in May"), 5)
        except KeyConflict as error:
            print("for something else:", error.code)


if __name__ == "__main__":
    main()
