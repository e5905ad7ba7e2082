"""Inputs found by coverage: each fuzz target for some seconds, and all inputs of the corpus through each again."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

FUZZ = Path(__file__).resolve().parents[1] / "fuzz"
TARGETS = ("frames", "handshake", "where", "entries", "join")
SEED = int(os.environ.get("TASKQ_TEST_SEED", "") or random.SystemRandom().randrange(1, 2**31))

needs_fuzzer = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris, the fuzzer, has wheels for CPython 3.10 to 3.13 on Linux on x86_64 only",
)


class Found(NamedTuple):
    """What one target was shown: inputs, and edges of taskq's code that they reached."""

    inputs: int
    edges: int


@pytest.mark.parametrize("target", TARGETS)
def test_every_input_of_the_corpus_is_taken_or_refused(target: str) -> None:
    files = sorted((FUZZ / "corpus" / target).iterdir())
    assert len(files) >= 3
    done = _start(target, [str(file) for file in files], FUZZ)
    assert done.returncode == 0, done.stdout[-4000:]
    assert done.stdout.splitlines() == [str(file) for file in files]


@needs_fuzzer
@pytest.mark.timeout(120)
def test_fuzz_targets(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    _fuzz(tmp_path, 7, record_property)


@pytest.mark.full
@needs_fuzzer
@pytest.mark.timeout(3000)
def test_fuzz_targets_for_long(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    _fuzz(tmp_path, 600, record_property)


def _fuzz(folder: Path, seconds: int, record_property: Callable[[str, object], None]) -> None:
    """Each target in a process of its own, two at a time; a finding fails with the input and how to try it again."""
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(TARGETS, pool.map(lambda target: _one(target, seconds, folder), TARGETS), strict=True))
    text = ", ".join(f"{name} {one.inputs:,} ({one.edges:,} edges)" for name, one in found.items())
    total = sum(one.inputs for one in found.values())
    print(f"T17: seed {SEED}: {total:,} inputs, 0 crashes: {text}")
    record_property("inputs", total)
    for name, one in found.items():
        record_property(f"edges of {name}", one.edges)
        assert one.inputs > 500 and one.edges > 20, f"{name} got nowhere: {one}"


def _one(target: str, seconds: int, folder: Path) -> Found:
    grown = folder / target  # new inputs go here, and into the corpus only by hand
    grown.mkdir()
    words = [f"-seed={SEED}", f"-max_total_time={seconds}", str(grown), str(FUZZ / "corpus" / target)]
    done = _start(target, words, folder)
    crash = re.search(r"Test unit written to (\S+)", done.stdout)
    again = f"python tests/fuzz/fuzz_{target}.py {folder / crash[1] if crash else ''}"
    assert done.returncode == 0, f"seed {SEED}: {again}\n{done.stdout[-4000:]}"
    runs = re.search(r"Done (\d+) runs", done.stdout)
    edges = re.findall(r"cov: (\d+)", done.stdout)
    assert runs and edges, done.stdout[-4000:]
    return Found(int(runs[1]), int(edges[-1]))


def _start(target: str, words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FUZZ / f"fuzz_{target}.py"), *words]
    return subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
