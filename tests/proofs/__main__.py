"""python -m tests.proofs NAME: try to lose or break a run, many times, and print what happened. Status 1: it broke."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.proofs import damage, disk, folders, harmful, kills, mutants, options, pairs, soak

PROOFS = {  # name: (what is tried, how often, how often among the tests, where it is quick enough)
    "kills": (kills.prove, 25, 2),
    "damage": (damage.prove, 2000, 150),
    "harmful": (harmful.prove, 1, 1),
    "options": (options.prove, 1000, 12),
    "pairs": (pairs.prove, 50, 2),
    "disk": (disk.prove, 1, 1),
    "soak": (soak.prove, 30, 0),
    "folders": (folders.prove, 200, 20),
    "mutants": (mutants.prove, 30, 0),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proofs", description=__doc__)
    parser.add_argument("name", choices=PROOFS)
    parser.add_argument("--n", type=int, help="how often, or for how many minutes (soak)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    prove, usual, _ = PROOFS[args.name]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kimi-proof-") as folder:
        found = prove(Path(folder), args.n or usual, args.seed)
    print(f"{args.name}: {found.summary} in {(time.monotonic() - started) / 60:.1f} minutes")
    for problem in found.problems[:20]:
        print(f"  {problem}")
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
