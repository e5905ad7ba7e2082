"""What the fuzz targets share: coverage of taskq for the fuzzer, the corpus, running one from the command line.

    python tests/fuzz/fuzz_where.py                  fuzz until Ctrl-C or a finding, which is written to a file here
    python tests/fuzz/fuzz_where.py FILE…            try these inputs only; it needs no fuzzer
    python tests/fuzz/fuzz_where.py -seed=5 -runs=1000 …    options of libFuzzer

The fuzzer is atheris, which has wheels for Linux on x86_64 only.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
LIMITS = ("-max_len=8192", "-timeout=10", "-rss_limit_mb=1024")
"""Bytes of an input, seconds and MiB that it may take."""

sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]


def watched() -> AbstractContextManager[Any]:
    """What is imported within has its coverage seen by the fuzzer, where inputs are to be found by it."""
    if _files():
        return nullcontext()
    import atheris

    found: AbstractContextManager[Any] = atheris.instrument_imports(include=["taskq"])
    return found


def main(one_input: Callable[[bytes], None]) -> None:
    """Try the files that the command line names, or fuzz. An exception of ``one_input`` is a finding."""
    files = _files()
    for file in files:
        print(file)
        one_input(file.read_bytes())
    if not files:
        import atheris

        seeds = CORPUS / Path(sys.argv[0]).stem.removeprefix("fuzz_")
        # What is new goes to the first folder.
        folders = [] if _folders() else [tempfile.mkdtemp(prefix="taskq-fuzz-"), str(seeds)]
        atheris.Setup([sys.argv[0], *LIMITS, *sys.argv[1:], *folders], one_input)
        atheris.Fuzz()


def _files() -> list[Path]:
    return [Path(word) for word in sys.argv[1:] if Path(word).is_file()]


def _folders() -> bool:
    return any(Path(word).is_dir() for word in sys.argv[1:])
