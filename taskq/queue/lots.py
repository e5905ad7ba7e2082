"""Tasks of one call as lots: what they have in common is said once. PURE.

A lot is ``(terms, payloads, delays, keys, correlation_ids, ats, uniques)``, its terms as in `Terms.short`. Its payloads
are a tuple; of the other five each is one value that holds for all of them, or a tuple as long as that of the payloads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, repeat
from operator import itemgetter
from typing import Any

from taskq.queue.terms import NewTask, Terms, as_new_task

_terms = itemgetter(0)


def lots(items: Iterable[NewTask]) -> list[tuple[Any, ...]]:
    """These tasks as lots, in their order."""
    return [(terms.short, *_columns(group)) for terms, group in groupby(items, _terms)]


def _columns(group: Iterator[NewTask]) -> tuple[Any, ...]:
    _, payloads, *others = zip(*group)  # noqa: B905  (all are as long as a `NewTask`)
    return (payloads, *(values[0] if values.count(values[0]) == len(values) else values for values in others))


def tasks(lots: Sequence[Sequence[Any]], limit: int) -> list[NewTask]:
    """The tasks of these lots. Raises `ValueError` and `TypeError` for what are no lots, or more than ``limit`` tasks.

    What is in the fields is not looked at.
    """
    if sum(len(lot[1]) for lot in lots) > limit:
        raise ValueError(f"more than {limit:,} tasks")
    found: list[NewTask] = []
    for terms, payloads, *others in lots:
        columns = [_each(values, len(payloads)) for values in others]
        if len(columns) != len(NewTask._fields) - 2:
            raise ValueError(f"a lot has {len(NewTask._fields)} fields")
        found.extend(map(as_new_task, zip(repeat(Terms.of(terms)), payloads, *columns)))
    return found


def _each(values: Any, size: int) -> Iterable[Any]:
    if type(values) is not tuple:
        return repeat(values, size)
    if len(values) != size:
        raise ValueError("its columns differ in length")
    return values
