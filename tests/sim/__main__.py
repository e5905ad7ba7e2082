"""Play seeds of the simulation: ``python -m tests.sim SEED [--count N] [--steps N] [--trace]``."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.sim.bugs import BUGS
from tests.sim.run import replay, run


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim")
    parser.add_argument("seed", type=int)
    parser.add_argument("--count", type=int, default=1, help="so many seeds from this one on")
    parser.add_argument("--steps", type=int, default=1_000, help="delivered events before the faults end")
    parser.add_argument("--trace", action="store_true", help="print every step")
    parser.add_argument("--json", action="store_true", help="print the sum of all figures")
    parser.add_argument("--hashes", action="store_true", help="print the hash of each trace only")
    parser.add_argument("--bug", choices=sorted(BUGS), help="plant a bug")
    parser.add_argument("--first", action="store_true", help="end with the first seed that breaks a promise")
    return parser.parse_args()


def line(found: dict[str, Any]) -> str:
    """The figures of one seed."""
    rate, share = found["steps"] / found["real_s"], found["changed"] / found["steps"]
    text = f"seed {found['seed']}: {found['steps']} steps, {rate:,.0f}/s, {share:.0%} change a record, "
    text += f"{found['virtual_s']:.0f} s virtual = {found['virtual_s'] / found['real_s']:,.0f}:1, "
    return text + f"{found['acknowledged']} acknowledged, {found['faults']} faults, {found['trace']}"


def main() -> int:
    """Play them; gives the exit code."""
    given = arguments()
    if given.bug:
        BUGS[given.bug]()
    total: Counter[str] = Counter()
    wrong: list[str] = []
    for seed in range(given.seed, given.seed + given.count):
        found = run(seed, given.steps, given.trace)
        total.update({name: found[name] for name in FIGURES})
        total["seeds"] += 1
        if given.hashes:
            print(found["trace"])
        elif found["violations"] or given.count == 1:
            print(line(found))
        if found["violations"]:
            wrong.append("\n".join([f"seed {seed}:", *found["violations"], replay(seed, given.steps)]))
            print(wrong[-1])
            if given.first:
                break
    if given.json:
        print(json.dumps({**total, "violations": wrong}))
    elif not given.hashes:
        print(f"{total['seeds']} seeds, {total['steps']:,} steps, {len(wrong)} seeds with violations")
    return 1 if wrong else 0


FIGURES = ("steps", "changed", "virtual_s", "real_s", "acknowledged", "managers", "faults", "real_stores")

if __name__ == "__main__":
    sys.exit(main())
