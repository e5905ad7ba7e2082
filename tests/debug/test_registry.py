"""Task types: the decorator, the registry, signatures and the running task."""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from taskq import registry
from taskq.errors import BadArguments, ConfigError
from taskq.options import Options
from taskq.queue.terms import Terms
from taskq.registry import TaskContext, TaskType, current_task, load, lookup, named, task
from taskq.shapes import TypeInfo
from taskq.signature import Signature
from taskq.unique import Unique


@pytest.fixture(autouse=True)
def _registry_as_before() -> Iterator[None]:
    before, path, modules = dict(registry._types), list(sys.path), set(sys.modules)
    yield
    registry._types.clear()
    registry._types.update(before)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("my_"):
            del sys.modules[name]


def add(x: int, y: int = 1) -> int:
    """Adds."""
    return x + y


def test_decorator_makes_a_type_that_still_is_the_function() -> None:
    made = task(add)
    assert isinstance(made, TaskType)
    assert made(2) == 3
    assert made.name == f"{__name__}.add"
    assert (made.__doc__, made.__name__) == ("Adds.", "add")
    assert lookup(made.name) is made
    assert made in registry.all_types()


def test_decorator_takes_the_settings_of_a_type() -> None:
    made = task(name="my.add", queue="q", max_retries=7, backoff=2.5, timeout=60, retry_on=(OSError,))(add)
    assert made.retry_on == (OSError,)
    assert made.describe() == TypeInfo(
        name="my.add",
        parameters=(("x", 1, True), ("y", 1, False)),
        queue="q",
        max_retries=7,
        backoff=2.5,
        timeout=60,
        more=None,
        retry_on=("builtins.OSError",),
        never_on=None,
        workers=0,
    )


def test_attributes_of_the_function_do_not_hide_those_of_the_type() -> None:
    def tagged() -> None: ...

    tagged.name = "other"  # type: ignore[attr-defined]  # any attribute may be set on a function
    assert task(name="my.tagged")(tagged).name == "my.tagged"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"name": "two words"}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"max_retries": -1}, "max_retries must be"),
        ({"max_retries": 1_000_001}, "max_retries must be"),
        ({"max_retries": True}, "max_retries must be"),
        ({"max_retries": 1.5}, "max_retries must be"),
        ({"backoff": float("nan")}, "backoff must be"),
        ({"timeout": -1}, "timeout must be"),
        ({"timeout": float("inf")}, "timeout must be"),
        ({"queue": ""}, "queue's name"),
        ({"queue": "a\nb"}, "queue's name"),
        ({"retry_on": OSError}, "retry_on must be"),
        ({"retry_on": (KeyboardInterrupt,)}, "retry_on must be"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        task(**settings)(add)


def test_only_plain_functions_can_be_tasks() -> None:
    async def later() -> None: ...

    def many() -> Iterator[int]:
        yield 1

    async def many_later() -> AsyncIterator[int]:
        yield 1

    for function in (later, many, many_later):
        with pytest.raises(ConfigError, match="plain function"):
            task(function)
    with pytest.raises(ConfigError, match="goes on a function"):
        TaskType(3, "my.three")  # type: ignore[arg-type]  # the wrong call is what is tested


@pytest.mark.parametrize("function", [max, dict, getattr])
def test_what_does_not_tell_its_arguments_cannot_be_a_task(function: Any) -> None:
    with pytest.raises(ConfigError, match="does not tell its arguments"):
        task(name="my.c")(function)


@pytest.mark.parametrize("function", [functools.partial(add, 1), "a".upper, str.upper, operator.itemgetter(1)])
def test_what_has_no_name_must_be_given_one(function: Any) -> None:
    with pytest.raises(ConfigError, match="has no name of its own"):
        task(function)


def test_two_functions_under_one_name_are_refused() -> None:
    task(name="my.same")(add)
    with pytest.raises(ConfigError, match=r'two tasks are named "my\.same"'):
        task(name="my.same")(lambda x: x)
    again = task(name="my.same")(add)
    assert lookup("my.same") is again


# -- signatures ------------------------------------------------------------------------------------------------------


def every_kind(a: int, /, b: int, *more: int, c: int, d: int = 1, **others: int) -> None: ...


def only_by_name(a: int, /, *, b: int = 2) -> None: ...


def signature(function: Any, name: str = "f") -> Signature:
    return TaskType(function, name).signature


def test_signatures_read_like_the_function() -> None:
    assert str(signature(add)) == "f(x, y)"
    assert str(signature(every_kind)) == "f(a, /, b, *more, c, d, **others)"
    assert str(signature(only_by_name)) == "f(a, /, *, b)"
    assert str(signature(lambda a, /: None)) == "f(a, /)"


@pytest.mark.parametrize("function", [add, every_kind, only_by_name, lambda: None, lambda *a: None, lambda **k: None])
def test_check_agrees_with_python(function: Any) -> None:
    checked = signature(function)
    names = ["a", "b", "c", "d", "x", "y", "zz"]
    for count in range(4):
        for bits in range(1 << len(names)):
            args = list(range(count))
            kwargs = {name: 0 for i, name in enumerate(names) if bits >> i & 1}
            try:
                function(*args, **kwargs)
            except TypeError:
                with pytest.raises(BadArguments):
                    checked.check(args, kwargs)
            else:
                checked.check(args, kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {"x": 1, "z": 2}, 'f(x, y) got an unexpected argument "z"'),
        ((), {"y": 2}, 'f(x, y) is missing the argument "x"'),
        ((1,), {"x": 2}, 'f(x, y) got two values for "x"'),
        ((1, 2, 3), {}, "f(x, y) takes 2 positional arguments, got 3"),
    ],
)
def test_errors_name_the_type_its_arguments_and_the_wrong_one(
    args: tuple[int, ...], kwargs: dict[str, int], text: str
) -> None:
    with pytest.raises(BadArguments) as caught:
        signature(add).check(args, kwargs)
    assert caught.value.message == text


def test_a_signature_survives_the_wire() -> None:
    info = task(name="my.kinds")(every_kind).describe()
    arrived = [list(parameter) for parameter in info["parameters"]]
    assert str(Signature(info["name"], arrived)) == str(signature(every_kind, "my.kinds"))  # type: ignore[arg-type]


def test_extra_check_sees_the_arguments_after_the_signature() -> None:
    made = task(name="my.checked")(add)

    @made.check
    def small(x: int, y: int = 1) -> None:
        if x > 10:
            raise BadArguments("too large")

    made.bind((3,), {"y": 2})
    with pytest.raises(BadArguments, match="too large"):
        made.bind((11,), {})
    with pytest.raises(BadArguments, match="unexpected"):
        made.bind((11,), {"z": 1})


NOON = datetime(2030, 1, 31, 12, tzinfo=timezone.utc)


# -- options ---------------------------------------------------------------------------------------------------------


def test_options_travel_with_the_type_or_the_name() -> None:
    made = task(name="my.optional")(add)
    prepared = made.options(priority=9, delay=30, key="u1")
    assert prepared.target is made
    assert prepared.options_given == Options(priority=9, delay=30, key="u1")
    assert named("compute", queue="fast").target == "compute"


@pytest.mark.parametrize(
    "options",
    [
        {"priority": 1.5},
        {"priority": 1_001},
        {"priority": 10**5_000},
        {"timeout": 10**5_000},
        {"delay": -(10**5_000)},
        {"max_retries": 10**5_000},
        {"delay": -1},
        {"delay": float("nan")},
        {"delay": "10"},
        {"key": ""},
        {"key": "k" * 501},
        {"key": 7},
        {"max_retries": -1},
        {"timeout": -1},
        {"backoff": True},
        {"queue": "a b"},
        {"at": 5.0},
        {"at": datetime(2030, 1, 31)},
        {"expires": 0},
        {"expires": True},
        {"expires": "10"},
        {"expires": datetime(2030, 1, 31)},
        {"unique": True},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(BadArguments, match=name):
        Options(**options)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"at": NOON, "delay": 5}, "not both"),
        ({"delay": 60, "expires": 60}, "expire before it is due"),
        ({"at": NOON, "expires": NOON}, "expire before it is due"),
        ({"key": "k", "unique": Unique()}, "not both"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadArguments, match=complaint):
        Options(**options)


def test_times_and_twins_become_terms() -> None:
    terms = Options(expires=NOON, unique=Unique(by=("a",), within=5, on_conflict="raise")).on(Terms("x"))
    assert (terms.expires, terms.expires_by) == (None, NOON.timestamp())
    assert (terms.unique_in, terms.unique_within) == (("pending", "scheduled", "running"), 5)
    assert terms.unique_raises and terms.expiring
    assert Options(expires=60).on(Terms("x")) == Terms("x", expires=60)


# -- loading ---------------------------------------------------------------------------------------------------------


def test_load_imports_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_jobs.py").write_text("from taskq import task\n\n@task\ndef hello() -> str:\n    return 'hi'\n")
    monkeypatch.chdir(tmp_path)
    load(["my_jobs"])
    found = lookup("my_jobs.hello")
    assert found is not None
    assert found() == "hi"


def test_a_module_that_is_not_there_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load(["my_nothing.tasks"])
    assert caught.value.message.startswith(
        "cannot import \"my_nothing.tasks\": No module named 'my_nothing' (looked in "
    )
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("\n1 / 0", "ZeroDivisionError: division by zero (my_broken.py, line 2)", ""),
        ("raise SystemExit(3)", "SystemExit: 3 (my_broken.py, line 1)", ""),
        ("\n\ndef", "SyntaxError: invalid syntax (my_broken.py, line 3)", ""),
        ("import my_nothing", "No module named 'my_nothing' (my_broken.py, line 1)", "install what it needs"),
    ],
)
def test_a_module_that_fails_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str, hint: str
) -> None:
    (tmp_path / "my_broken.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load(["my_broken"])
    assert caught.value.message == f'cannot import "my_broken": {said}'
    assert caught.value.hint.startswith(hint) and bool(caught.value.hint) == bool(hint)


def test_a_path_in_place_of_a_module_says_what_to_write() -> None:
    with pytest.raises(ConfigError, match="is a file") as caught:
        load(["my_app/tasks.py"])
    assert "my_app.tasks" in caught.value.hint


def test_a_script_and_its_module_register_one_type(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "my_script.py").write_text(
        "from taskq import task\n\n@task\ndef hello() -> None: ...\n\n"
        "if __name__ == '__main__':\n    import my_script\n    print(hello.name, my_script.hello.name)\n"
    )
    done = subprocess.run([sys.executable, "my_script.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["my_script.hello", "my_script.hello"]


# -- the running task ------------------------------------------------------------------------------------------------


def test_current_task_is_what_the_worker_set_and_harmless_outside() -> None:
    outside = current_task()
    assert (outside.id, outside.correlation_id) == (0, "")
    outside.progress(0.5, "nobody listens")
    heard: list[tuple[float, str]] = []
    context = TaskContext(7, 9, 2, "t", "q", "c", lambda *said: heard.append(said))
    token = registry.CURRENT.set(lambda: context)
    try:
        assert (current_task().id, current_task().run, current_task().attempt) == (7, 9, 2)
        current_task().progress(1.5, "done")
        current_task().progress(-1)
    finally:
        registry.CURRENT.reset(token)
    assert heard == [(1.0, "done"), (0.0, "")]
