"""A mutex that goes round: nobody has it twice while another one waits.

A plain `threading.Lock` goes to whoever comes first after its release, and that is mostly the thread that has just
released it. Next to a thread that does one piece of work after the other, all others would starve.
"""

from __future__ import annotations

from types import TracebackType

from taskq import threads


class Turns:
    """A lock for `with`. Who waits for it keeps the place next to it, where a thread that comes back finds no room."""

    def __init__(self) -> None:
        self._next = threads.lock()
        self._lock = threads.lock()

    def __enter__(self) -> None:
        with self._next:
            self._lock.acquire()

    def give_way(self) -> None:
        """Let who waits for it have it in between."""
        self._lock.release()
        self.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
