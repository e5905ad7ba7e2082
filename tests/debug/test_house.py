"""The house rules, read off the source: layers, imports, top level, packaging."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "taskq"

# From the ground up; a module may import what stands in its own line or below it.
LAYERS = (
    ("errors", "clock", "layout", "streams", "threads"),
    ("turns",),
    ("config", "logs"),
    ("keys",),
    ("where", "queue.retry", "queue.meters", "queue.terms", "queue.task", "queue.task_row", "queue.lifecycle"),
    ("shapes", "service", "roles", "signature", "stores.base", "pauses"),
    ("registry", "options", "unique", "queue.*", "addresses", "selecting", "queues"),
    ("queue.job_queue", "stores.*", "wire.*"),
    (
        "callbacks",
        "reconnecting",
        "feed",
        "results",
        "catalog",
        "pipeline",
        "client",
        "workers.*",
        "builtin_tasks",
    ),
    ("views", "records", "dead_letters", "entries", "submit", "monitor", "local_pool", "rotation", "backup", "manager"),
    ("bench.*",),
    ("cli.*",),
    ("__main__",),
)

ONLY_IN = {
    "msgpack": ["wire.*"],
    "multiprocessing": ["wire.*", "bench.floors", "bench.plain"],
    "click": ["cli.*", "__main__"],
    "sqlite3": [
        "stores.sqlite",
        "stores.cleaning",
        "stores.inspection",
        "stores.backup",
        "stores.recovery",
        "stores.upgrades",
        "stores.disk",
        "stores.connections",
        "stores.loading",
        "bench.floors",
    ],
    "psutil": ["workers.*", "monitor", "manager", "bench.*"],
    "rich": ["monitor", "views", "cli.monitor"],
}

PURE = (
    *("queue.lifecycle", "queue.retry", "queue.ready", "queue.schedule", "queue.state", "queue.leases"),
    *("queue.terms", "queue.task", "queue.task_row"),
    *(
        "queue.admission",
        "queue.ageing",
        "queue.announced",
        "queue.changes",
        "queue.check",
        "queue.expiry",
        "queue.history",
        "queue.idempotency",
        "queue.limits",
        "queue.moves",
        "queue.places",
        "queue.lots",
        "queue.stopping",
        "queue.timeouts",
        "queue.suspects",
        "queue.uniqueness",
    ),
    *("queue.dispatch", "queue.explain", "stores.sums", "stores.rows", "stores.pages"),
    *("queue.figures", "queue.meters", "queue.snapshot", "wire.codec", "wire.seal"),
    *("where", "dead_letters", "layout", "records", "views", "bench.figures", "workers.overtime", "workers.stacks"),
)
IMPURE = {"threading", "time", "random", "secrets", "logging", "socket", "os", "pathlib", "io", "uuid", "subprocess"}


@cache
def modules() -> dict[str, ast.Module]:
    """Name (without ``taskq.``) -> syntax tree of every module of the package; packages' own files apart."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if path.name != "__init__.py":
            found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imports(name: str) -> set[str]:
    """Full names of what a module imports anywhere, inside functions too; ``from taskq import logs`` is taskq.logs."""
    found = set()
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner.removeprefix("taskq.") in modules() else str(node.module))
    return found


def own_imports(name: str) -> set[str]:
    """The modules of taskq that a module imports; the package itself (``__version__``) is none."""
    return {found.removeprefix("taskq.") for found in imports(name) if found.startswith("taskq.")}


def layer(name: str) -> int:
    """The line of `LAYERS` that a module stands in: the one that names it, else the one with its folder."""
    exact = [number for number, names in enumerate(LAYERS) if name in names]
    by_folder = [number for number, names in enumerate(LAYERS) if any(fnmatch(name, pattern) for pattern in names)]
    assert exact or by_folder, f"taskq.{name} stands in no layer: put it into LAYERS"
    return (exact or by_folder)[0]


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_downward_only(name: str) -> None:
    upward = {other for other in own_imports(name) if layer(other) > layer(name)}
    assert not upward, f"taskq.{name} imports from above: {sorted(upward)}"


def test_there_are_no_import_cycles() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(own_imports(name)):
                visit(other, (*path, name))
            done.add(name)

    for name in modules():
        visit(name, ())


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_are_imported_only_where_they_belong(library: str) -> None:
    users = [name for name in modules() if any(found.split(".")[0] == library for found in imports(name))]
    assert users, f"nobody imports {library}"
    strangers = [name for name in users if not any(fnmatch(name, allowed) for allowed in ONLY_IN[library])]
    assert not strangers


def test_submitting_does_not_import_what_it_does_not_need() -> None:
    code = "import sys, taskq.cli.submit, taskq.client; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    heavy = {"multiprocessing.managers", "sqlite3", "psutil", "rich", "asyncio", "platformdirs", "taskq.manager"}
    assert not loaded & heavy


def test_what_calls_itself_pure_is_held_to_it() -> None:
    saying = {name for name, tree in modules().items() if "PURE" in str(ast.get_docstring(tree))}
    assert saying == set(PURE)


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_import_nothing_impure(name: str) -> None:
    outside = {found.split(".")[0] for found in imports(name)} & IMPURE
    assert not outside
    impure_own = own_imports(name) & {"clock", "logs", "queue.job_queue", "stores.sqlite", "stores.memory"}
    assert not impure_own


@pytest.mark.parametrize("name", sorted(modules()))
def test_every_public_thing_has_a_docstring(name: str) -> None:
    tree = modules()[name]
    assert ast.get_docstring(tree), f"taskq.{name} does not say what it is for"
    places = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))]
    bare = [
        node.name
        for place in places
        for node in place.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and not any("overload" in ast.dump(decorator) for decorator in node.decorator_list)
    ]
    assert not bare, f"taskq.{name}: no docstring on {bare}"


def test_no_silencing_comments() -> None:
    for path in PACKAGE.rglob("*.py"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            where = f"{path.name}:{number}"
            assert "pragma: no cover" not in line, where
            assert not any(word in line for word in ("TODO", "FIXME", "XXX")), where
            if "type: ignore" in line:
                assert "#" in line.split("type: ignore", 1)[1], f"{where}: say why the type is ignored"


def test_top_level_is_exactly_what_it_should_be() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    top = {name.split("/")[0] for name in listed if not name.startswith(".")}
    assert top <= {"taskq", "bin", "tests", "examples", "setup.cfg", "pyproject.toml", "README.md"}


def console_scripts() -> list[str]:
    found = importlib.metadata.distribution("taskq").entry_points
    return sorted(point.name for point in found if point.group == "console_scripts")


def test_every_console_script_is_in_bin() -> None:
    assert console_scripts() == ["taskq", "taskq-manager", "taskq-monitor", "taskq-submit", "taskq-worker"]
    for name in [*console_scripts(), "demo", "test"]:
        assert os.access(ROOT / "bin" / name, os.X_OK), f"bin/{name}"


@pytest.mark.parametrize("name", console_scripts())
def test_every_command_runs_from_a_checkout_and_from_any_folder(name: str, tmp_path: Path) -> None:
    for trap in ("queue.py", "random.py", "taskq.py"):  # modules of the user's that must not get in the way
        (tmp_path / trap).write_text("raise SystemExit('the wrong module')")
    (tmp_path / "link").symlink_to(ROOT / "bin" / name)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [ROOT / "bin" / name, "--version"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [name, importlib.metadata.version("taskq")]


def test_the_wheel_has_types_and_the_protocol(tmp_path: Path) -> None:
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "setup.cfg", "README.md"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(PACKAGE, copy / "taskq", ignore=shutil.ignore_patterns("__pycache__"))
    code = "import setuptools.build_meta as backend; backend.build_wheel('.')"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=copy, check=True, capture_output=True)
    [wheel] = copy.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"taskq/py.typed", "taskq/wire/PROTOCOL.md", "taskq/queue/job_queue.py"} <= set(names)
    assert not [name for name in names if not name.startswith(("taskq/", "taskq-"))]
