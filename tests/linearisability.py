"""Whether a history of concurrent calls can be explained by one queue that does one thing at a time. PURE.

Theory of operation. A call takes effect at one moment between its beginning and its end. The search tries, one after
the other, every call that may be the next one (no other call had ended before it began), lets a sequential model
(`Model`) say whether its reply fits, and goes back when it gets stuck: Wing and Gong, "Testing and Verifying Concurrent
Objects", 1993. What was seen already (the calls done so far, and the model's state) is not tried again: Lowe, "Testing
for Linearizability", 2017. A call without a reply may have happened at any time after its beginning, or never.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple


class Op(NamedTuple):
    """One call. ``reply``: what was answered; None with ``end`` infinite: no answer came. Times only compare."""

    client: int
    verb: str
    args: tuple[Any, ...]
    reply: Any
    start: float
    end: float = inf


LABELS = {"stopping": "running", "unused": "unknown"}
"""How the states of a `Model` are told that have no name of their own."""


class Model(NamedTuple):
    """A queue of one priority: tasks have the numbers 1, 2, … in the order of their submits, and go out in that order.

    ``tasks``: (state, run) of each; one that was asked to stop is ``stopping``, an id that no task got is ``unused``.
    ``keys``: (key, id). ``last_run``: the highest run that was given.
    """

    tasks: tuple[tuple[str, int], ...] = ()
    keys: tuple[tuple[str, int], ...] = ()
    last_run: int = 0

    def after(self, op: Op) -> Model | None:
        """The queue after this call, or None where the reply does not fit."""
        return getattr(self, f"_{op.verb}")(op.reply, *op.args)  # type: ignore[no-any-return]

    def _with(self, id: int, state: str, run: int) -> Model:
        return self._replace(tasks=(*self.tasks[: id - 1], (state, run), *self.tasks[id:]))

    def _submit(self, reply: Any, key: str | None) -> Model | None:
        """Reply: (id, whether it was there). A repeated key uses up the id that it would have had."""
        known = dict(self.keys).get(key) if key is not None else None
        new = len(self.tasks) + 1
        if reply is not None and reply != ((new, False) if known is None else (known, True)):
            return None
        tasks = (*self.tasks, ("pending" if known is None else "unused", 0))
        keys = self.keys if key is None or known is not None else (*self.keys, (key, new))
        return self._replace(tasks=tasks, keys=keys)

    def _reserve(self, reply: Any) -> Model | None:
        """Reply: (id, run), or () when nothing waits."""
        first = next((id for id, (state, _) in enumerate(self.tasks, 1) if state == "pending"), None)
        if first is None or not reply:
            return self if first is None and reply == () else None
        id, run = reply
        if id != first or run <= self.last_run:
            return None
        return self._with(id, "running", run)._replace(last_run=run)

    def _ack(self, reply: Any, id: int, run: int) -> Model | None:
        """Reply: whether it was accepted."""
        return self._over(reply, id, run, "completed", "completed")

    def _give_back(self, reply: Any, id: int, run: int) -> Model | None:
        """Reply: whether it was accepted."""
        return self._over(reply, id, run, "pending", "cancelled")

    def _over(self, reply: Any, id: int, run: int, then: str, when_stopping: str) -> Model | None:
        state, current = self.tasks[id - 1]
        holds = state in ("running", "stopping") and current == run
        if reply is not None and reply is not holds:
            return None
        return self._with(id, when_stopping if state == "stopping" else then, run) if holds else self

    def _cancel(self, reply: Any, id: int) -> Model | None:
        """Reply: what it is now."""
        state, run = self.tasks[id - 1] if id <= len(self.tasks) else ("unused", 0)
        now = {"pending": "cancelled", "running": "stopping"}.get(state, state)
        if reply is not None and reply != LABELS.get(now, now):
            return None
        return self if now == state else self._with(id, now, run)

    def _state(self, reply: Any, id: int) -> Model | None:
        """Reply: what it is."""
        state = self.tasks[id - 1][0] if id <= len(self.tasks) else "unused"
        return self if reply in (None, LABELS.get(state, state)) else None


def explain(history: Sequence[Op], model: Model | None = None) -> list[Op] | None:
    """An order of the calls in which one queue would give these replies; None when there is none."""
    ops = sorted(history, key=lambda op: op.start)
    must = sum(1 << place for place, op in enumerate(ops) if op.end < inf)
    done, state = 0, model if model is not None else Model()
    seen = {(done, state)}
    path: list[tuple[int, Model, list[int]]] = [(done, state, _next(ops, done))]
    order: list[int] = []
    while path:
        done, state, choices = path[-1]
        if done & must == must:
            return [ops[place] for place in order]
        if not choices:
            path.pop()
            if order:
                order.pop()
            continue
        place = choices.pop()
        after = state.after(ops[place])
        now = done | 1 << place
        if after is None or (now, after) in seen:
            continue
        seen.add((now, after))
        order.append(place)
        path.append((now, after, _next(ops, now)))
    return None


def _next(ops: Sequence[Op], done: int) -> list[int]:
    """The calls that may come next, the one that ended first at the end of the list (it is tried first)."""
    found: list[int] = []
    first_end = inf
    for place, op in enumerate(ops):
        if op.start > first_end:
            break
        if not done >> place & 1:
            found.append(place)
            first_end = min(first_end, op.end)
    return sorted(found, key=lambda place: -ops[place].end)
