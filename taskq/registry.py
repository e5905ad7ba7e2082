"""Task types: what `task` makes of a function, and where a worker finds the function again by the type's name.

A type is known by its name alone; no code ever travels. The registry is one dictionary a process, filled by
importing modules: a worker imports `taskq.builtin_tasks` and then what its user named (`load`).
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar, overload

from taskq import logs
from taskq.errors import ConfigError, Retry
from taskq.options import Options, error_terms, is_name, policy_of, problem, retry_terms
from taskq.queue.limits import MAX_NAME
from taskq.queue.terms import Terms
from taskq.shapes import TypeInfo
from taskq.signature import Signature
from taskq.unique import Unique

P = ParamSpec("P")
R = TypeVar("R")

_types: dict[str, TaskType[..., Any]] = {}
_lock = threading.Lock()


class Prepared(Generic[P, R]):
    """A task type together with `Options`: submit it as you would submit the type."""

    def __init__(self, target: TaskType[P, R] | str, options: Options) -> None:
        self.target = target
        self.options_given = options


# -- task types ------------------------------------------------------------------------------------------------------


class TaskType(Generic[P, R]):
    """A function that workers run, under a name. Calling it runs the function here and now.

    ``queue``, ``retry``, ``timeout`` (seconds), ``ignore_result`` and ``result_ttl`` are defaults for submits, see
    `Options`. ``max_retries``, ``backoff`` and ``retry_on`` stand for those parts of ``retry``: an exception that is
    not an instance of ``retry_on`` fails the task for good.
    """

    def __init__(  # noqa: PLR0913  (as many as there are settings)
        self,
        function: Callable[P, R],
        name: str,
        queue: str = "default",
        max_retries: int | None = None,
        backoff: float | None = None,
        timeout: float | None = None,
        retry_on: tuple[type[Exception] | str, ...] | None = None,
        retry: Retry | None = None,
        ignore_result: bool = False,
        result_ttl: float | None = None,
    ) -> None:
        if not callable(function):
            raise ConfigError(f"@task goes on a function, not on {function!r}")
        kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
        if any(is_kind(function) for is_kind in kinds):
            raise ConfigError(f"{name} must be a plain function: neither async nor a generator")
        if not is_name(name):
            raise ConfigError(f"a task's name is a text without spaces of 1 to {MAX_NAME} characters, not {name!r}")
        policy = policy_of(retry, max_retries=max_retries, backoff=backoff, retry_on=retry_on)
        if wrong := problem(queue, timeout, retry, policy, ignore_result, result_ttl):
            raise ConfigError(f"{name}: {wrong}")
        functools.update_wrapper(self, function)
        self.function = function
        self.name = name
        self.queue = queue
        own = retry_terms(policy._replace(retry_on=None, never_on=None))  # these its workers have as classes
        self.terms = Terms(name, queue, timeout=timeout, ignore_result=ignore_result, result_ttl=result_ttl, **own)
        self.retry_on: tuple[type[Exception] | str, ...] = (Exception,) if policy.retry_on is None else policy.retry_on
        self.never_on: tuple[type[Exception] | str, ...] = policy.never_on or ()
        self._errors = {"retry_on": None, "never_on": None, **error_terms(policy)}
        self.signature = Signature(name, _parameters(function))
        self._extra_check: Callable[..., None] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<TaskType {self.signature}>"

    def options(  # noqa: PLR0913  (as many as there are options)
        self,
        *,
        queue: str | None = None,
        priority: int = 0,
        max_retries: int | None = None,
        delay: float = 0.0,
        key: str | None = None,
        backoff: float | None = None,
        timeout: float | None = None,
        retry: Retry | None = None,
        ignore_result: bool | None = None,
        result_ttl: float | None = None,
        at: datetime | None = None,
        expires: float | datetime | None = None,
        unique: Unique | None = None,
    ) -> Prepared[P, R]:
        """This type with other options for one submit, see `Options`. Raises `BadArguments`."""
        retried, kept = (max_retries, delay, key, backoff, timeout, retry), (ignore_result, result_ttl)
        return Prepared(self, Options(queue, priority, *retried, *kept, at, expires, unique))

    def check(self, function: Callable[P, None]) -> Callable[P, None]:
        """Decorator: ``function`` gets the arguments before a submit and raises `BadArguments` to refuse them."""
        self._extra_check = function
        return function

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise `BadArguments` unless the function, and its extra check, accept these arguments."""
        self.signature.check(args, kwargs)
        if self._extra_check is not None:
            self._extra_check(*args, **kwargs)

    def describe(self) -> TypeInfo:
        """What a worker announces of this type."""
        return TypeInfo(
            name=self.name,
            parameters=self.signature.parameters,
            queue=self.terms.queue,
            max_retries=self.terms.max_retries,
            backoff=self.terms.backoff,
            timeout=self.terms.timeout,
            more=self.terms.more,
            retry_on=self._errors["retry_on"],
            never_on=self._errors["never_on"],
            workers=0,
        )


def _parameters(function: Callable[..., Any]) -> list[tuple[str, int, bool]]:
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some of what is written in C
        raise ConfigError(
            f"{function!r} does not tell its arguments", hint="put @task on a function of your own that calls it"
        ) from None
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [(p.name, int(p.kind), p.default is p.empty and p.kind not in variable) for p in found]


@overload
def task(function: Callable[P, R], /) -> TaskType[P, R]: ...


@overload
def task(
    *,
    name: str | None = None,
    queue: str = "default",
    max_retries: int | None = None,
    backoff: float | None = None,
    timeout: float | None = None,
    retry_on: tuple[type[Exception] | str, ...] | None = None,
    retry: Retry | None = None,
    ignore_result: bool = False,
    result_ttl: float | None = None,
) -> Callable[[Callable[P, R]], TaskType[P, R]]: ...


def task(function: Callable[..., Any] | None = None, /, *, name: str | None = None, **settings: Any) -> Any:
    """Decorator: make a function a task type and register it under ``name``, by default ``<module>.<function>``.

    The other settings are those of `TaskType`. Raises `ConfigError` when a setting is no good or the name is taken.
    """

    def register(function: Callable[..., Any]) -> TaskType[..., Any]:
        made: TaskType[..., Any] = TaskType(function, name or _default_name(function), **settings)
        with _lock:
            known = _types.get(made.name)
            if known is not None and not _same_source(known.function, function):
                raise ConfigError(f'two tasks are named "{made.name}": give one of them another @task(name=…)')
            _types[made.name] = made
        return made

    return register if function is None else register(function)


def _default_name(function: Callable[..., Any]) -> str:
    """``<module>.<function>``. A module that runs as a script is named as a worker would import it."""
    module = getattr(function, "__module__", "")
    if module == "__main__":
        main = sys.modules["__main__"]
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name if spec is not None else Path(file).stem if file else module
    name = getattr(function, "__qualname__", "")
    if not (module and name):
        raise ConfigError(f"{function!r} has no name of its own", hint="give it one: @task(name=…)")
    return f"{module}.{name.replace('<locals>.', '')}"


def _same_source(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether this is one function that came twice: as script and as module, reloaded, or entered again by hand."""
    first, second = getattr(one, "__code__", None), getattr(other, "__code__", None)
    if first is None or second is None:
        return False
    by_hand = one.__module__ == other.__module__ == "__main__" and not hasattr(sys.modules["__main__"], "__file__")
    return by_hand or (first.co_filename, first.co_firstlineno) == (second.co_filename, second.co_firstlineno)


def named(  # noqa: PLR0913  (as many as there are options)
    name: str,
    *,
    queue: str | None = None,
    priority: int = 0,
    max_retries: int | None = None,
    delay: float = 0.0,
    key: str | None = None,
    backoff: float | None = None,
    timeout: float | None = None,
    retry: Retry | None = None,
    ignore_result: bool | None = None,
    result_ttl: float | None = None,
    at: datetime | None = None,
    expires: float | datetime | None = None,
    unique: Unique | None = None,
) -> Prepared[..., Any]:
    """A task type by its name, with options for one submit, see `Options`: for code that cannot be imported here."""
    retried, kept = (max_retries, delay, key, backoff, timeout, retry), (ignore_result, result_ttl)
    return Prepared(name, Options(queue, priority, *retried, *kept, at, expires, unique))


def lookup(name: str) -> TaskType[..., Any] | None:
    """The type that was registered under ``name`` in this process."""
    return _types.get(name)


def all_types() -> list[TaskType[..., Any]]:
    """All types that are registered in this process, by name."""
    with _lock:
        return sorted(_types.values(), key=lambda found: found.name)


def load(modules: Sequence[str]) -> None:
    """Import the modules that hold a user's tasks; the current folder is on the path for it.

    Raises `ConfigError` when one cannot be imported or its name is a path.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    for module in modules:
        if "/" in module or module.endswith(".py"):
            raise ConfigError(
                f'"{module}" is a file, not a module',
                hint=f'name it as "import" would: {module.removesuffix(".py").strip("./").replace("/", ".")}',
            )
        try:
            importlib.import_module(module)
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:  # the module is the user's code and may do anything
            raise _not_imported(module, error, here) from error


def _not_imported(module: str, error: BaseException, here: str) -> ConfigError:
    """Why an import failed, and where: the module is not there, or something goes wrong in it."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file != __file__ and "importlib" not in file:
            place = f"{file.removeprefix(here + os.sep)}, line {trace.tb_lineno}"
        trace = trace.tb_next
    missing = isinstance(error, ImportError)
    text = f'cannot import "{module}": {error if missing else f"{type(error).__name__}: {error}"}'
    if missing and not place:
        looked = f" (looked in {here} and the rest of sys.path)"
        return ConfigError(text + looked, hint="start from the folder that holds it, or set PYTHONPATH")
    hint = f"install what it needs for this Python, {sys.executable}" if missing else ""
    return ConfigError(f"{text} ({place})" if place else text, hint=hint)  # a SyntaxError names the place itself


# -- the task that is running ----------------------------------------------------------------------------------------


def _ignore(fraction: float, note: str) -> None:
    """What `TaskContext.progress` does where no worker listens."""


class TaskContext(NamedTuple):
    """What a running task can know of itself, and say.

    ``attempt`` counts from 1. ``correlation_id`` is handed on to the tasks that this one submits.
    """

    id: int = 0
    run: int = 0
    attempt: int = 1
    type: str = ""
    queue: str = ""
    correlation_id: str = ""
    on_progress: Callable[[float, str], None] = _ignore

    @property
    def cancelled(self) -> bool:
        """Whether this task is asked to stop. A second after that `TaskCancelled` is raised in it."""
        return self.run in STOPPING

    def progress(self, fraction: float, note: str = "") -> None:
        """Say how far the task is: ``fraction`` from 0 to 1, and a few words."""
        self.on_progress(min(1.0, max(0.0, float(fraction))), str(note))

    def log_fields(self) -> dict[str, Any]:
        """What the lines that are logged inside the task say of it; nothing outside of one."""
        if not self.id:
            return {}
        return {
            "task_id": self.id,
            "task_type": self.type,
            "queue": self.queue,
            "attempt": self.attempt,
            "correlation_id": self.correlation_id,
        }


CURRENT: ContextVar[Callable[[], TaskContext]] = ContextVar("taskq_current_task", default=TaskContext)
"""Set by the worker around each run: makes the context when somebody asks for it, which few tasks do."""
STOPPING: set[int] = set()
"""Runs of this process that are asked to stop; kept by the worker."""
logs.ask(lambda: CURRENT.get()().log_fields())


def current_task() -> TaskContext:
    """The task that runs in this thread. Outside of one its id is 0 and progress goes nowhere, so that a plain call of
    a task's function works."""
    return CURRENT.get()()


def correlation_id() -> str:
    """For a task that is submitted now: that of the task that submits it, else a new one."""
    return CURRENT.get()().correlation_id or os.urandom(6).hex()
