"""What arguments a task type takes: their names and kinds, checked without the function itself.

The same check serves a function that is at hand and a type that only workers have, which announce their parameters
(`taskq.shapes.TypeInfo`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from taskq.errors import BadArguments

# The numbers of `inspect.Parameter.kind`.
_POSITIONAL_ONLY, _POSITIONAL, _VAR_POSITIONAL, _KEYWORD_ONLY, _VAR_KEYWORD = range(5)


class Signature:
    """What arguments a type takes: their names and kinds, not their annotations.

    ``parameters`` as in `TypeInfo`. Knows no default values, only which arguments may be left out.

    >>> str(Signature("compute", [("operation", 1, True), ("value", 1, True)]))
    'compute(operation, value)'
    """

    __slots__ = ("_fewest", "_keywords", "_most", "_positional", "_required", "name", "parameters")

    def __init__(self, name: str, parameters: Sequence[tuple[str, int, bool]]) -> None:
        self.name = name
        self.parameters = tuple((str(parameter), int(kind), bool(required)) for parameter, kind, required in parameters)
        kinds = {kind for _, kind, _ in self.parameters}
        self._positional = [p for p, kind, _ in self.parameters if kind in (_POSITIONAL_ONLY, _POSITIONAL)]
        self._most = sys.maxsize if _VAR_POSITIONAL in kinds else len(self._positional)
        named = {p for p, kind, _ in self.parameters if kind in (_POSITIONAL, _KEYWORD_ONLY)}
        self._keywords = None if _VAR_KEYWORD in kinds else named
        self._required = [p for p, _, required in self.parameters if required]
        # With this many positional arguments and no keyword nothing can be missing: the common case needs no sets.
        last = max((i for i, p in enumerate(self._positional) if p in self._required), default=-1)
        required_by_name = any(kind == _KEYWORD_ONLY and required for _, kind, required in self.parameters)
        self._fewest = sys.maxsize if required_by_name else last + 1

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise `BadArguments` unless a call with these arguments would be accepted."""
        if not kwargs and self._fewest <= len(args) <= self._most:
            return
        if len(args) > self._most:
            raise BadArguments(f"{self} takes {_count(self._most, 'positional argument')}, got {len(args)}")
        positional_only = {p for p, kind, _ in self.parameters if kind == _POSITIONAL_ONLY}
        by_position = self._positional[: len(args)]
        for name in kwargs:
            if self._keywords is not None and name not in self._keywords:
                raise BadArguments(f'{self} got an unexpected argument "{name}"')
            if name in by_position and name not in positional_only:
                raise BadArguments(f'{self} got two values for "{name}"')
        for name in self._required:
            if name not in by_position and (name not in kwargs or name in positional_only):
                raise BadArguments(f'{self} is missing the argument "{name}"')

    def __str__(self) -> str:
        parts = []
        before = -1
        for name, kind, _ in self.parameters:
            if before == _POSITIONAL_ONLY != kind:
                parts.append("/")
            if kind == _KEYWORD_ONLY and before not in (_VAR_POSITIONAL, _KEYWORD_ONLY):
                parts.append("*")
            parts.append({_VAR_POSITIONAL: "*", _VAR_KEYWORD: "**"}.get(kind, "") + name)
            before = kind
        if before == _POSITIONAL_ONLY:
            parts.append("/")
        return f"{self.name}({', '.join(parts)})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
