"""`Unique`: what must not be there twice, and the value that stands for it.

The manager never looks into arguments. So the submitter makes of type, queue and the named arguments one value, which
the manager compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from taskq.errors import BadArguments
from taskq.queue.limits import MAX_NAME, MAX_WITHIN, UNIQUE_IN, shown

_BY_POSITION = 1
"""Kinds of `inspect.Parameter` up to this one can be passed by position."""


@dataclass(frozen=True)
class Unique:
    """One submit at a time: where a task of the same type, queue and arguments is there already, that one is given.

    ``by``: the arguments that are compared, as they were passed (a default that is left out is not filled in);
    empty: all. Tasks are compared with those that were submitted with the same ``by``. A task that is there counts
    in the states ``while_in`` (of ``pending``, ``scheduled``, ``running``), and for ``within`` seconds after its
    submit whatever became of it. ``on_conflict``: ``return`` gives its handle, with ``existing`` true; ``raise``
    raises `NotUnique`.

    Raises `BadArguments` for values that make no sense.
    """

    by: Sequence[str] = ()
    while_in: Sequence[str] = ("pending", "scheduled", "running")
    within: float = 0.0
    on_conflict: Literal["return", "raise"] = "return"

    def __post_init__(self) -> None:
        for name in ("by", "while_in"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(word, str) for word in value):
                raise BadArguments(f"unique: {name} is a list of names, not {shown(value)}")
            object.__setattr__(self, name, tuple(value))
        if not all(0 < len(name) <= MAX_NAME for name in self.by):
            raise BadArguments(f"unique: the name of an argument has 1 to {MAX_NAME} characters")
        if wrong := [word for word in self.while_in if word not in UNIQUE_IN]:
            raise BadArguments(f'unique: while_in may name {", ".join(UNIQUE_IN)}, not "{wrong[0]}"')
        if type(self.within) not in (int, float) or not 0 <= self.within <= MAX_WITHIN:
            raise BadArguments(f"unique: within is a number of seconds from 0 to {MAX_WITHIN:,.0f}")
        if not self.while_in and not self.within:
            raise BadArguments("unique: without while_in and within, no task would ever count")
        if self.on_conflict not in ("return", "raise"):
            raise BadArguments(f"unique: on_conflict is return or raise, not {shown(self.on_conflict)}")

    def terms(self) -> dict[str, Any]:
        """What it means as fields of `taskq.queue.terms.Terms`."""
        raises = self.on_conflict == "raise"
        return {"unique_in": tuple(self.while_in), "unique_within": self.within, "unique_raises": raises}

    def compared(
        self,
        type: str,
        queue: str,
        parameters: Sequence[tuple[str, int, bool]],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> list[Any]:
        """What is compared of a call, as plain data in one fixed order.

        ``parameters``: as in `TypeInfo`, empty where they are not known. Raises `BadArguments` where an argument of
        ``by`` cannot be one of this type, or cannot be found among ones without names.
        """
        names = [name for name, kind, _ in parameters if kind <= _BY_POSITION]
        given = {**dict(zip(map(str, range(len(args))), args)), **kwargs}  # noqa: B905  (as many as there are)
        for position, name in enumerate(names[: len(args)]):
            given[name] = given.pop(str(position))
        if self.by:
            known = {name for name, _, _ in parameters}
            open_ended = not parameters or any(kind == _VAR_KEYWORD for _, kind, _ in parameters)
            for name in self.by:
                if name not in known and not (open_ended and (name in given or not args)):
                    raise BadArguments(f'unique: {type} has no argument "{name}" to compare by')
            given = {name: given[name] for name in self.by if name in given}
        return [type, queue, sorted(self.by), [[name, _in_order(given[name])] for name in sorted(given)]]


_VAR_KEYWORD = 4


def _in_order(value: Any) -> Any:
    """The same value with the keys of all its objects sorted, so that equal ones give equal bytes."""
    if isinstance(value, dict):
        return {key: _in_order(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, (list, tuple)):
        return [_in_order(item) for item in value]
    return value
