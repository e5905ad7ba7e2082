"""Clients: the real `Client` with all that it does to be sure, and a program that submits, waits and cancels."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from taskq.client import Client
from taskq.errors import TaskqError
from taskq.reconnecting import PASSING
from taskq.registry import named
from taskq.unique import Unique
from taskq.wire.client import RemoteQueue

from .network import SimDialer
from .processes import JOIN
from .scheduler import Process

ALONE = Unique()
UNKNOWN = ("manager_unavailable", "outcome_unknown")


class Told(RemoteQueue):
    """The real connection of a client; it writes down what was asked and answered."""

    system: Any

    def submit(self, client: int, seq: int, items: Any) -> Any:
        """See `RemoteQueue`."""
        self.system.journal[client, seq] = items
        named = [(item.terms.type, item.payload, item.key) for item in items]
        call = self.system.history.submit(client, seq, named)
        reply = self._told(call, lambda: super(Told, self).submit(client, seq, items))
        self.system.history.ok(call, ids=list(reply.ids), existing=list(reply.existing))
        self.system.acknowledged += len(reply.ids)
        return reply

    def cancel(self, ids: Any) -> Any:
        """See `RemoteQueue`."""
        call = self.system.history.call("cancel", ids=list(ids))
        labels = self._told(call, lambda: super(Told, self).cancel(ids))
        self.system.history.ok(call, labels=list(labels))
        return labels

    def requeue(self, ids: Any) -> Any:
        """See `RemoteQueue`."""
        call = self.system.history.call("requeue", ids=list(ids))
        labels = self._told(call, lambda: super(Told, self).requeue(ids))
        self.system.history.ok(call, labels=list(labels))
        return labels

    def _told(self, call: int, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except TaskqError as error:
            if error.code in UNKNOWN:
                self.system.history.unknown(call, error.code)
            else:
                self.system.history.refused(call, error.code)
            raise


class Program:
    """One client process."""

    def __init__(self, system: Any, name: str, number: int) -> None:
        self.system, self.name = system, name
        self.rng = random.Random(number)
        self.process = Process(system.world, name, system.clocks[name])
        self.handles: list[Any] = []
        self.stopping = self.done = False
        self.id = number
        self.process.at_end.append(lambda: system.client_died(self))
        system.world.spawn(self.process, "main", self._main)

    def connect(self) -> Told:
        """A connection."""
        queue = Told(JOIN, dialer=SimDialer(self.system.network, self.process))  # type: ignore[arg-type]
        queue.system = self.system
        return queue

    def _main(self) -> None:
        system, rng = self.system, self.rng
        patience = rng.choice((0.5, 5.0, 60.0))
        self.client = client = Client.over(
            self.connect,
            patience=patience,
            allow_unknown=True,
            warn=lambda text: None,
            clock=self.process.clock,
            id=self.id,
        )
        system.clients.append(client)
        while not self.stopping:
            system.world.step(f"{self.name} acts")
            try:
                rng.choices(ACTIONS, system.plan.actions)[0](self)
            except (*PASSING, TaskqError, TimeoutError):
                system.refusals += 1
            system.world.wait(rng.expovariate(1.0) * system.plan.pause)
        self._wait_for_all()
        self.done = True

    def _wait_for_all(self) -> None:
        """Everything that was accepted comes to its end, and its client hears of it."""
        for handle in self.handles:
            missed = 0
            while True:
                try:
                    handle.exception(timeout=60.0)
                    break
                except PASSING:
                    self.system.world.wait(0.5)
                except TimeoutError:
                    missed = 0 if self.system.is_live(handle.id) else missed + 1
                    if missed > 1:
                        self.system.late.append(handle.id)
                        break
                except TaskqError:  # cancelled, for one
                    break

    # -- what it does

    def _prepared(self) -> tuple[Any, tuple[Any, ...]]:
        plan, rng = self.system.plan, self.rng
        how = rng.choices(("ok", "flaky", "permanent", "crash", "snooze"), plan.hows)[0]
        options: dict[str, Any] = {
            "queue": rng.choice(plan.queues),
            "priority": rng.choice(plan.priorities),
            "max_retries": 3,
            "retry": None,
        }
        if rng.random() < plan.keys:
            number = rng.randrange(20)
            how = "ok"
            options |= {"key": f"key-{number}", "queue": plan.queues[0], "priority": 0}
        else:
            number = 1000 + self.system.world.number()
        if "key" not in options and rng.random() < plan.uniques:
            number, how = 500 + rng.randrange(6), "ok"
            options |= {"unique": ALONE, "queue": plan.queues[0], "priority": 0}
        if rng.random() < plan.delays and "key" not in options:
            options["delay"] = rng.random() * 20
        if rng.random() < plan.expiries and "key" not in options:
            options["expires"] = rng.choice((2.0, 30.0))
        if rng.random() < plan.timeouts:
            options["timeout"] = 2.0
        seconds = rng.expovariate(1.0) * plan.run_s if number >= 1000 else 0.1
        if "key" in options:
            options.pop("timeout", None)
        if 500 <= number < 1000:
            seconds = plan.run_s
        return named(rng.choice(plan.types) if number >= 1000 else "job", **options), (number, seconds, how)

    def submit(self) -> None:
        """Submit one."""
        target, args = self._prepared()
        self.handles.append(self.client.submit(target, *args))

    def submit_many(self) -> None:
        """Submit some at once."""
        with self.client.pipeline() as pipeline:
            made = [pipeline.submit(target, *args) for target, args in (self._prepared() for _ in range(8))]
        self.handles += made

    def read(self) -> None:
        """Wait for a result."""
        if self.handles:
            self.rng.choice(self.handles).exception(timeout=self.rng.choice((0.5, 5.0)))

    def cancel(self) -> None:
        """Cancel one."""
        if self.handles:
            self.rng.choice(self.handles[-5:]).cancel()

    def requeue(self) -> None:
        """Let some begin anew."""
        ids = [one.id for one in self.handles[-20:] if one.outcome is not None and one.outcome.state != "completed"]
        if ids:
            self.client.requeue(*ids[:3])

    def drop(self) -> None:
        """Delete some that have failed."""
        ids = [one.id for one in self.handles[-20:] if one.outcome is not None and one.outcome.state == "failed"]
        if ids:
            self.client.drop(*ids[:3])

    def purge(self) -> None:
        """Delete what is over for a while."""
        queue = self.connect()
        try:
            queue.purge([self.rng.choice(("completed", "failed", "cancelled"))], self.rng.choice((5.0, 20.0)))
        finally:
            queue.close()

    def look(self) -> None:
        """Ask around."""
        if self.handles:
            handle = self.rng.choice(self.handles)
            self.client.explain(handle.id)
            self.client.state(handle.id)

    def rule(self) -> None:
        """Pause a queue, or limit it, and let it go again."""
        queue = self.rng.choice(self.system.plan.queues)
        if self.rng.random() < 0.5:
            self.client.pause(queue)
            self.system.world.wait(self.rng.random() * 3)
            self.client.resume(queue)
        else:
            self.client.limit(queue, self.rng.choice((1, 3, None)))


ACTIONS = (
    Program.submit,
    Program.submit_many,
    Program.read,
    Program.cancel,
    Program.requeue,
    Program.look,
    Program.rule,
    Program.drop,
    Program.purge,
)
