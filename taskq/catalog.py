"""Which types of task may be submitted, with which arguments: what workers announced, and what is registered here.

Asked of the manager once a connection, and again when a type is missed: a worker may have joined since.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import taskq.builtin_tasks  # noqa: F401  (registers the types that every worker offers)
from taskq import threads
from taskq.clock import Clock, SystemClock
from taskq.errors import BadArguments, UnknownTaskType
from taskq.options import Options
from taskq.queue.terms import Terms, terms_of
from taskq.registry import Prepared, TaskType, lookup
from taskq.shapes import TypeInfo, Types
from taskq.signature import Signature

ASK_AGAIN = 1.0
"""Seconds: for types that are accepted though nobody offers them, the manager is not asked more often than this."""

_PLAIN = Options()


class Offer(NamedTuple):
    """A type that may be submitted: the check of its arguments (raises `BadArguments`), and its default terms."""

    check: Callable[[Sequence[Any], Mapping[str, Any]], None]
    terms: Terms
    parameters: Sequence[tuple[str, int, bool]] = ()

    def with_options(self, options: Options) -> Template:
        """What a submit with these options sends: the type's defaults where they say nothing."""
        terms, unique = options.on(self.terms), options.unique
        return Template(
            self.check,
            terms,
            options.delay,
            options.key,
            None if options.at is None else options.at.timestamp(),
            None if unique is None else partial(unique.compared, terms.type, terms.queue, self.parameters),
        )


class Template(NamedTuple):
    """What a submit sends, but for the arguments; ``check`` raises `BadArguments` when they do not fit.

    ``compared``: what of the arguments may be there once only, for a submit that is unique.
    """

    check: Callable[[Sequence[Any], Mapping[str, Any]], None]
    terms: Terms
    delay: float
    key: str | None
    at: float | None
    compared: Callable[[Sequence[Any], Mapping[str, Any]], list[Any]] | None


class Catalog:
    """The types known to one client. ``ask`` asks the manager; ``warn`` is told what the submitter should know.

    With ``allow_unknown`` no type is refused.
    """

    def __init__(
        self, ask: Callable[[], Types], warn: Callable[[str], None], allow_unknown: bool, clock: Clock | None = None
    ) -> None:
        self._ask = ask
        self._warn = warn
        self._allow_unknown = allow_unknown
        self._clock = clock or SystemClock()
        self._lock = threads.lock()
        self._types: dict[str, list[TypeInfo]] = {}
        self._served: dict[str, list[TypeInfo]] = {}
        """Those of `_types` that some live worker offered when the manager was asked: no more to ask, or to say."""
        self._ever_joined = False
        self._asked_at = float("-inf")
        self._warned: set[str] = set()
        self._plain: dict[TaskType[..., Any], Template] = {}

    def forget(self) -> None:
        """A new connection: what was known of the manager's types may be wrong."""
        self._asked_at = float("-inf")
        self._types = {}
        self._served = {}
        self._ever_joined = False

    def template(self, target: TaskType[..., Any] | Prepared[..., Any] | str) -> Template:
        """What a submit of ``target`` sends. Raises `UnknownTaskType`, `BadArguments`."""
        if isinstance(target, Prepared):
            return self.offer(target.target).with_options(target.options_given)
        if isinstance(target, str):
            return self.offer(target).with_options(_PLAIN)
        if not isinstance(target, TaskType):
            raise BadArguments(f"{target!r} is no task", hint="put @task above the function")
        if target not in self._plain:
            self._plain[target] = self.offer(target).with_options(_PLAIN)
        self._announced(target.name)
        return self._plain[target]

    def offer(self, target: TaskType[..., Any] | str) -> Offer:
        """What may be submitted under this name, or as this type. Raises `UnknownTaskType`."""
        local = lookup(target) if isinstance(target, str) else target
        announced = self._announced(target if isinstance(target, str) else target.name)
        if local is not None:
            return Offer(local.bind, local.terms, local.signature.parameters)
        if announced:
            found = announced[0]
            signatures = [Signature(info["name"], info["parameters"]) for info in announced]
            usual = (found["name"], found["queue"], 0, found["max_retries"], found["backoff"], found["timeout"])
            return Offer(
                lambda args, kwargs: _check_any(signatures, args, kwargs),
                terms_of(*usual, found.get("more")),
                found["parameters"],
            )
        return Offer(lambda args, kwargs: None, Terms(str(target)))

    def _announced(self, name: str) -> list[TypeInfo]:
        if served := self._served.get(name):
            return served
        with self._lock:
            found = self._types.get(name, [])
            old = self._clock.monotonic() >= self._asked_at + ASK_AGAIN
            refused = not found and self._ever_joined and not self._allow_unknown
            if refused or old:
                self._refresh()
                found = self._types.get(name, [])
            if name in self._served:
                return found
            if not found and self._ever_joined and not self._allow_unknown:
                raise self._unknown(name)
            if name not in self._warned:
                self._warned.add(name)
                who = f'no worker offers "{name}" at the moment' if self._ever_joined else "no worker has joined yet"
                self._warn(f"{who}: the task waits until one does")
            return found

    def _refresh(self) -> None:
        reply = self._ask()
        self._types = {}
        for info in reply["types"]:
            self._types.setdefault(info["name"], []).append(info)
        self._served = {name: infos for name, infos in self._types.items() if any(info["workers"] for info in infos)}
        self._ever_joined = reply["ever_joined"]
        self._asked_at = self._clock.monotonic()

    def _unknown(self, name: str) -> UnknownTaskType:
        import difflib  # needed for this error only, and slow to import

        near = difflib.get_close_matches(name, self._types, 1)
        asked = f'; did you mean "{near[0]}"?' if near else ""
        return UnknownTaskType(
            f'no worker offers "{name}"{asked}',
            hint='start one with "taskq-worker --tasks MODULE"; Client(allow_unknown=True) queues it anyway',
            details={"type": name, "near": near},
        )


def _check_any(signatures: Sequence[Signature], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise `BadArguments` unless one of the signatures fits: workers may have different versions of the code."""
    refused: BadArguments | None = None
    for signature in signatures:
        try:
            return signature.check(args, kwargs)
        except BadArguments as error:
            refused = refused or error
    if refused is not None:
        raise refused
