"""What TCP proxies have in common: they listen on a free port and connect each caller with a target."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from taskq.config import Address


class Relay:
    """Accepts connections from `start` on; a subclass says in `connected` what passes between the two ends."""

    def __init__(self, target: Address) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = Address("127.0.0.1", self._listener.getsockname()[1])
        self._threads: list[threading.Thread] = []

    def connected(self, near: socket.socket, far: socket.socket) -> None:
        """A caller (near) has come, and this is its continuation to the target (far)."""
        raise NotImplementedError

    def start(self) -> None:
        """Accept connections."""
        self.run(self._accept)

    def run(self, target: Callable[..., None], *arguments: object) -> None:
        """Do this in a thread; `end` waits for it."""
        thread = threading.Thread(target=target, args=arguments, name="relay", daemon=True)
        self._threads.append(thread)
        thread.start()

    def end(self) -> None:
        """Accept nothing more, and wait for the threads, whose connections have been ended."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection((self._target.host, self._target.port))
            except OSError:
                near.close()
                continue
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connected(near, far)
