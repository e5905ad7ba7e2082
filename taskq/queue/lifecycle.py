"""The life of a task as one table. PURE.

Theory of operation. A task changes its state only by an event, and only as `TRANSITIONS` says; a pair that is not in
the table raises `InvalidTransition` and changes nothing. Nobody but `taskq.queue.moves` applies events. What an event
does to counters and timestamps is said in `state`; which of two events an outcome is (``retry`` or ``fail``, ``death``
or ``poison``) is decided there too, so that the table stays a plain function of state and event.

The README's diagram is printed from this table.
"""

from __future__ import annotations

import enum

from taskq.errors import InvalidTransition
from taskq.queue.task import FINAL, State


class Event(enum.Enum):
    """What can happen to a task."""

    SUBMIT = "submit"
    SUBMIT_LATER = "submit with a delay"
    DUE = "due"
    RESERVE = "reserve"
    ACK = "ack"
    RETRY = "nack, retries left"
    FAIL = "nack, none left or permanent"
    GIVE_BACK = "give back"
    SNOOZE = "snooze"
    DEATH = "worker died or lease expired"
    POISON = "worker died or lease expired, for the last time"
    READOPT = "worker re-attached with it"
    CANCEL = "cancel"
    CANCELLED = "attempt over, cancel requested"
    EXPIRE = "expire"
    REQUEUE = "requeue"

    __hash__ = object.__hash__  # that of `enum.Enum` is written in Python, and each change of state looks an event up


TRANSITIONS: dict[Event, dict[State | None, State]] = {
    Event.SUBMIT: {None: State.PENDING},
    Event.SUBMIT_LATER: {None: State.SCHEDULED},
    Event.DUE: {State.SCHEDULED: State.PENDING},
    Event.RESERVE: {State.PENDING: State.RUNNING},
    Event.ACK: {State.RUNNING: State.COMPLETED},
    Event.RETRY: {State.RUNNING: State.SCHEDULED},
    Event.FAIL: {State.RUNNING: State.FAILED},
    Event.GIVE_BACK: {State.RUNNING: State.PENDING},
    Event.SNOOZE: {State.RUNNING: State.SCHEDULED},
    Event.DEATH: {State.RUNNING: State.SCHEDULED},
    Event.POISON: {State.RUNNING: State.FAILED},
    # A hand-out that a crash of the manager kept from the disk: the record says pending, the worker knows better.
    Event.READOPT: {State.PENDING: State.RUNNING, State.SCHEDULED: State.RUNNING},
    Event.CANCEL: {
        State.PENDING: State.CANCELLED,
        State.SCHEDULED: State.CANCELLED,
        State.RUNNING: State.RUNNING,
    },
    Event.CANCELLED: {State.RUNNING: State.CANCELLED},
    Event.EXPIRE: {State.PENDING: State.FAILED, State.SCHEDULED: State.FAILED},
    Event.REQUEUE: {State.FAILED: State.PENDING, State.CANCELLED: State.PENDING},
}


def next_state(state: State | None, event: Event) -> State:
    """The state that ``event`` leads to from ``state`` (None: the task does not exist yet).

    >>> next_state(State.RUNNING, Event.ACK).label
    'completed'
    >>> next_state(State.COMPLETED, Event.ACK)
    Traceback (most recent call last):
        ...
    taskq.errors.InvalidTransition: a completed task cannot take "ack"
    """
    try:
        return TRANSITIONS[event][state]
    except KeyError:
        was = "new" if state is None else state.label
        raise InvalidTransition(f'a {was} task cannot take "{event.value}"') from None


def mermaid() -> str:
    """The table as a Mermaid state diagram: what the README shows."""
    lines = ["stateDiagram-v2"]
    for event, moves in TRANSITIONS.items():
        for source, target in moves.items():
            lines.append(f"    {'[*]' if source is None else source.label} --> {target.label}: {event.value}")
    lines += [f"    {state.label} --> [*]: purge" for state in sorted(FINAL)]
    return "\n".join(lines)
