"""Callbacks for tasks of other clients: whoever comes while one settles is called too."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from taskq.callbacks import Callbacks, Others


def test_a_callback_that_comes_while_its_handle_settles_is_called() -> None:
    called: list[str] = []
    last = threading.Event()

    class Settling(Callbacks):
        def settled(self, handle: Any) -> None:
            super().settled(handle)
            if not called_late:
                called_late.append(True)
                others.add(handle, late, wait_any)

    def late(handle: Any) -> None:
        called.append(f"late {handle}")
        last.set()

    def wait_any(handles: Sequence[Any], seconds: float) -> Sequence[Any]:
        return handles

    called_late: list[bool] = []
    callbacks = Settling()
    others = Others(callbacks)
    others.add("task", lambda handle: called.append(f"early {handle}"), wait_any)
    assert last.wait(10)
    callbacks.end()
    assert called == ["early task", "late task"]
