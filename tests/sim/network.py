"""The network: frames between channels, late, lost, doubled, out of order; connections that break or go silent."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from taskq.errors import ManagerUnavailable
from taskq.wire.frames import ConnectionLost, TimedOut

from .scheduler import Process, SimThread, World

NOTICED = 11.0
"""Seconds until keepalive notices that the other side is not there."""


@dataclass
class Weather:
    """What happens to frames: chances for each, and seconds."""

    latency: float = 0.002
    slow: float = 0.0
    drop: float = 0.0
    double: float = 0.0
    reorder: float = 0.0
    reset: float = 0.0
    silent: float = 0.0


class SimChannel:
    """One end of a connection, as `taskq.wire.frames.Channel`."""

    def __init__(self, network: Network, process: Process, name: str) -> None:
        self._network, self._world, self.process = network, network.world, process
        self.name = name
        self.peer: SimChannel
        self.limit = 4 * 1024 * 1024
        self.inbox: deque[bytes] = deque()
        self.sent = self.got = 0
        self.reader: SimThread | None = None
        self.over = self.mute = False
        self.last = 0.0
        process.channels[self] = None

    def send(self, body: bytes) -> None:
        """Send one frame. Raises `ConnectionLost`."""
        self._world.alive()
        if self.over:
            raise ConnectionLost("connection lost")
        self._network.carry(self, body)

    def receive(self, timeout: float | None) -> bytes:
        """The next frame. Raises `ConnectionLost`, `TimedOut`."""
        end = None if timeout is None else self.process.clock.monotonic() + timeout
        while not self.inbox:
            if self.over:
                raise ConnectionLost("connection closed")
            left = None if end is None else end - self.process.clock.monotonic()
            if left is not None and left <= 0:
                raise TimedOut("did not answer in time")
            self.reader = self._world.thread()
            self._world.wait(left)
            self.reader = None
        self._world.alive()
        return self.inbox.popleft()

    def put(self, number: int, body: bytes) -> None:
        """A frame arrives. One that is not the next is not sealed as such, which ends the connection."""
        if not self.over and self.process.alive:
            if number != self.got:
                self._world.step(f"{self.name} got frame {number}, not {self.got}")
                return self.shut()
            self.got += 1
            self._world.step(f"{self.name} got {len(body)}")
            self.inbox.append(body)
            self._call()

    def _call(self) -> None:
        if self.reader is not None:
            self._world.wake(self.reader)

    def lose(self) -> None:
        """This end learns that the connection is over."""
        if not self.over:
            self.over = True
            self.process.channels.pop(self, None)
            self._call()

    def shut(self, how: int = 2) -> None:
        """End the connection; the other end hears of it, unless the way there is silent."""
        if not self.over:
            self.lose()
            self._world.at(self._network.delay() if not self.mute else NOTICED, self.peer.lose)

    close = shut


class Network:
    """Connects processes with the manager that listens."""

    def __init__(self, world: World, weather: Weather) -> None:
        self.world, self.weather = world, weather
        self.cut: dict[str, float] = {}
        """Process -> until when it reaches nobody."""
        self.listener: Any = None
        self.faults = dict.fromkeys(("drop", "double", "reorder", "reset", "silent", "cut"), 0)

    def delay(self) -> float:
        """Seconds on the way."""
        rng, weather = self.world.rng, self.weather
        seconds = weather.latency * (0.5 + rng.random())
        return seconds + (rng.random() * 3.0 if weather.slow and rng.random() < weather.slow else 0.0)

    def carry(self, sender: SimChannel, body: bytes) -> None:
        """A frame on its way."""
        world, rng, weather, receiver = self.world, self.world.rng, self.weather, sender.peer
        until = max(self.cut.get(sender.process.name, 0.0), self.cut.get(receiver.process.name, 0.0))
        number = sender.sent
        sender.sent += 1
        if sender.mute:
            return
        chance = rng.random()
        for kind in ("drop", "silent", "reset"):
            chance -= getattr(weather, kind)
            if chance < 0:
                self.faults[kind] += 1
                world.step(f"{kind} {sender.name}")
                if kind == "reset":
                    sender.lose()
                    world.at(self.delay(), receiver.lose)
                elif kind == "silent":
                    sender.mute = True
                    for end in (sender, receiver):
                        world.at(NOTICED * (1 + rng.random()), end.lose)
                return
        at = max(world.now, until) + self.delay()
        if weather.reorder and rng.random() < weather.reorder:
            self.faults["reorder"] += 1
        else:
            sender.last = at = max(at, sender.last)
        world.at(at - world.now, receiver.put, number, body)
        if weather.double and rng.random() < weather.double:
            self.faults["double"] += 1
            world.at(at - world.now + self.delay(), receiver.put, number, body)

    def part(self, process: Process, seconds: float) -> None:
        """Nobody reaches this process for a while; after `NOTICED` seconds its connections are over."""
        self.faults["cut"] += 1
        self.cut[process.name] = self.world.now + seconds
        if seconds > NOTICED:
            for channel in list(process.channels):
                for end in (channel, channel.peer):
                    self.world.at(NOTICED + self.world.rng.random(), end.lose)

    def connect(self, process: Process, timeout: float) -> SimChannel:
        """A connection to the manager. Raises `ManagerUnavailable`."""
        world = self.world
        world.wait(3 * self.delay())
        listener = self.listener
        end = world.now + timeout / process.clock.rate
        if listener is None:
            raise ManagerUnavailable("nobody listens there")
        while listener.process.paused or max(self.cut.get(process.name, 0), self.cut.get("manager", 0)) > world.now:
            if world.now >= end:
                raise ManagerUnavailable("no answer")
            world.wait(0.5)
        if self.listener is not listener:
            raise ManagerUnavailable("nobody listens there any more")
        number = world.number()
        ours = SimChannel(self, process, f"{process.name}#{number}")
        theirs = SimChannel(self, listener.process, f"manager#{number}")
        ours.peer, theirs.peer = theirs, ours
        world.spawn(listener.process, "wire", listener.serve, theirs)
        return ours


class SimDialer:
    """As `taskq.wire.dialer.Dialer`."""

    def __init__(self, network: Network, process: Process) -> None:
        self._network, self._process, self._cancelled = network, process, False

    def cancel(self) -> None:
        """No more connections."""
        self._cancelled = True

    def connect(self, join: Any, timeout: float) -> tuple[Any, str]:
        """A channel. Raises `ManagerUnavailable`."""
        if self._cancelled:
            raise ManagerUnavailable("the connection to the manager was closed")
        return self._network.connect(self._process, timeout), "manager"
