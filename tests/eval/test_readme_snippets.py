"""Every snippet of the README runs: its files are written, its commands typed, in the order of the README."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, Process

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
ELSEWHERE = {"bin/demo", "bin/test"}
"""Commands that other tests run, or that run this one."""
FOR_PEOPLE = {"mermaid", "text"}
"""Blocks that are no input for a computer."""

EXPECTED = {
    "python welcome.py": "False True True\nTrue True\n",
    "python tasks.py": "2\n[2, 1, 3]\n",
    "taskq-submit compute operation=double value=21 --wait": "42\n",
    'taskq-submit --payload \'{"type": "compute", "operation": "factorial", "value": 10}\' --wait': "3628800\n",
}
"""What a command prints where the README says or implies it."""


class Reader:
    """Somebody who types what the README says, in an empty folder."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.manager: Process | None = None
        self.typed: list[str] = []
        tools = cluster.folder / "tools"
        tools.mkdir()
        ssh = tools / "ssh"  # the other machine is this one
        ssh.write_text('#!/bin/sh\nshift\nexec "$@"\n')
        ssh.chmod(0o755)
        python = Path(sys.executable).parent
        self.path = os.pathsep.join(map(str, (tools, python, ROOT / "bin", os.environ["PATH"])))

    def type(self, line: str) -> None:
        """One command line, without its comment."""
        words = shlex.split(line, comments=True)
        if not words or words[0] in ELSEWHERE:
            return
        self.typed.append(line)
        if words[0] == "taskq-manager":
            self._start_manager(words[1:])
        elif "| taskq-worker" in line:
            self._attach(line)
        elif words == ["taskq-monitor"]:
            self._look()
        else:
            self._run(shlex.join(words) if "#" in line else line)

    def _start_manager(self, options: list[str]) -> None:
        if self.manager is not None:
            assert self.manager.stop() == 0
        self.manager = self.cluster.start("manager", *options, "--port", 0)
        self.cluster.until_output(self.manager, " ready on ", timeout=30.0)

    def _attach(self, line: str) -> None:
        before = len(self.cluster.snapshot()["workers"])
        pool = subprocess.Popen(
            ["sh", "-c", line],
            cwd=self.cluster.folder,
            env=self.cluster.environment(PATH=self.path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self.cluster.wait_until(lambda: len(self.cluster.snapshot()["workers"]) == before + 4, 30.0, "the pool")
        finally:
            os.killpg(pool.pid, 15)
            pool.wait(30)

    def _look(self) -> None:
        with subprocess.Popen(
            ["taskq-monitor"],
            cwd=self.cluster.folder,
            env=self.cluster.environment(PATH=self.path),
            executable=self._which("taskq-monitor"),
            stdout=subprocess.PIPE,
            text=True,
        ) as looking:
            assert looking.stdout is not None
            assert looking.stdout.readline().startswith("taskq default  ")
            looking.terminate()

    def _which(self, name: str) -> str:
        return next(
            str(Path(folder) / name) for folder in self.path.split(os.pathsep) if (Path(folder) / name).exists()
        )

    def _run(self, line: str) -> None:
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=self.cluster.folder,
            env=self.cluster.environment(PATH=self.path),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        if line in EXPECTED:
            assert done.stdout == EXPECTED[line]


@pytest.fixture
def reader(cluster: Cluster) -> Iterator[Reader]:
    """A reader whose manager is stopped with the cluster."""
    yield Reader(cluster)


def test_everything_in_the_readme_runs_in_its_order(reader: Reader) -> None:
    for language, text in BLOCKS:
        if language == "python":
            name, _, code = text.partition("\n")
            (reader.cluster.folder / name.removeprefix("# ")).write_text(code)
        elif language in ("sh", "console"):
            for line in text.splitlines():
                reader.type(re.sub(r"^\w+\$ +", "", line) if language == "console" else line)
        else:
            assert language in FOR_PEOPLE, f"a block of {language} that nobody runs"
    assert set(EXPECTED) <= set(reader.typed)
    assert any("ssh mgr" in line for line in reader.typed)
    stats = (reader.cluster.folder / "stats.json").read_text()
    assert stats.startswith('{"schema":"taskq.snapshot/1"')


def test_what_the_programs_of_the_readme_print(cluster: Cluster) -> None:
    for language, text in BLOCKS:
        if language == "python":
            name, _, code = text.partition("\n")
            (cluster.folder / name.removeprefix("# ")).write_text(code)
    cluster.manager("--tasks", "jobs", workers=1)
    done = subprocess.run(
        [sys.executable, "use_jobs.py"],
        cwd=cluster.folder,
        env=cluster.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"1 \w+ 28", lines[0])
    assert sorted(lines[1:4]) == ["2 25", "3 25", "4 25"]
    assert lines[4] == "42"
    assert lines[5] == "True cancelled"
    assert lines[6].endswith("RuntimeError: test")
    assert lines[7:] == ["jobs.fetch web"]
