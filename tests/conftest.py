"""What all tests share: the `cluster` and `here` fixtures, and the check that nothing is left running.

No test touches anything of the user's: the environment is emptied of taskq's variables, and the home and state folders
are temporary ones. No test uses the default port.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import order
import psutil
import pytest
from cluster import Cluster
from here import Here
from hypothesis import Phase, settings
from turn import turn

ROOT = Path(__file__).resolve().parent.parent

# To explain a failure hypothesis traces every line of every example, which takes longer than the examples; and a signal
# that comes while a line is traced, as that of a test's timeout does, may hang Python 3.11.
settings.register_profile("untraced", phases=[phase for phase in Phase if phase is not Phase.explain])
settings.load_profile("untraced")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The seed of the order."""
    parser.addoption("--order-seed", type=int, default=None, help="run the tests in the order that this number gives")


def pytest_configure(config: pytest.Config) -> None:
    """Choose a seed where none was given."""
    if is_one_of_several(config):
        config.option.order_seed = config.workerinput["order_seed"]  # type: ignore[attr-defined]  # pytest-xdist's
    elif config.option.order_seed is None:
        config.option.order_seed = random.SystemRandom().randrange(10**6)


def is_one_of_several(config: pytest.Config) -> bool:
    """Whether this process runs tests while others do (``pytest -n``)."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """All processes that run tests need the same order."""
    node.workerinput["order_seed"] = node.config.option.order_seed


def pytest_report_header(config: pytest.Config) -> str:
    """Tell the seed, so that an order can be had again."""
    return f"order: shuffled, --order-seed {config.option.order_seed} repeats it"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Modules that the tests share hold no tests; they are not to be imported a second time in search of doctests."""
    inside = collection_path.suffix == ".py" and ROOT / "tests" in collection_path.parents
    return True if inside and not collection_path.name.startswith("test_") else None


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Shuffle; then pytest puts those together that share a parameter of a fixture; then what measures goes last."""
    items[:], out = order.without_full(items, config.option.markexpr)
    if out:
        config.hook.pytest_deselected(items=out)
    items[:] = order.shuffled(items, config.option.order_seed)
    yield
    items[:] = order.speed_last(items)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    """What measures speed runs alone, where tests run side by side; no time limit runs while it waits."""
    if not is_one_of_several(item.config):
        return (yield)
    folder = Path(item.config.option.basetemp).parent
    with turn(folder, alone=item.get_closest_marker("speed") is not None):
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def _nothing_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An environment without settings of the user's, and with a home folder of its own."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("TASKQ_") or name in ("STATE_DIRECTORY", "NO_COLOR", "FORCE_COLOR", "LINES"):
                patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("XDG_STATE_HOME", str(home / "state"))
        patch.setenv("TERM", "dumb")
        patch.setenv("COLUMNS", "100")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
        yield


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal() -> Iterator[None]:
    """Signals that a background job ignores (``nohup bin/test &``) would be ignored by all that the tests start.

    A handler that does nothing is, unlike SIG_IGN, not inherited.
    """
    ignored = [number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda *_: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """As many descriptors for this process as it can have, up to 8,192; what it starts has them too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192 if hard == resource.RLIM_INFINITY else min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Fail a test that leaves a thread or a child process behind."""
    threads = set(threading.enumerate())
    children = _children()
    yield

    def left() -> list[object]:
        more = [thread for thread in threading.enumerate() if thread not in threads and thread.is_alive()]
        return [*more, *(_children() - children)]

    give_up = time.monotonic() + 5.0
    while (found := left()) and time.monotonic() < give_up:
        time.sleep(0.02)
    assert not found, "the test left something running"


def _children() -> set[psutil.Process]:
    """Everything that this process started, directly or not. Most tests start nothing, and are not to pay for it."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # only looks
    except ChildProcessError:
        return set()
    return set(psutil.Process().children(recursive=True))


@pytest.fixture
def cluster(tmp_path: Path, _nothing_left: None) -> Iterator[Cluster]:
    """A `Cluster` with nothing in it yet."""
    made = Cluster(tmp_path, tmp_path / "state")
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def here(_nothing_left: None) -> Iterator[Here]:
    """A queue in this process, without workers."""
    made = Here()
    try:
        yield made
    finally:
        made.close()
