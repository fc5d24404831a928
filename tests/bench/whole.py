"""Time, memory and disk that tokenising needs: python -m tests.bench.whole N [SOURCE ...] [--tokenizer word]

Tokenises up to N texts of the sources (default: builtin) as `python -m utils train --stories N` does, in a process of
its own, then starts once more on what is there. Memory is the sum over all processes at its peak, of the proportional
set size (Linux: pages that several share count once). For builtin, the time that telling the stories takes alone too.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from utils.corpus import Corpus

ROOT = Path(__file__).resolve().parents[2]
# utils.__main__ is imported for what the command line holds in memory meanwhile
LOAD = """
import sys, utils.__main__
from utils.recipe import load_tokens, new_recipe
n, home, tokenizer, *sources = sys.argv[1:]
load_tokens(new_recipe("k2", "laptop", sources, stories=int(n), tokens=home, tokenizer=tokenizer))
"""


def processes(root: int) -> set[int]:
    """`root` and all that it began, and those that they began."""
    parent = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parent[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):  # it has ended
                continue
    found = {root}
    while more := {pid for pid, above in parent.items() if above in found} - found:
        found |= more
    return found


def held(pid: int) -> int:
    """Proportional set size in bytes, 0 for a process that has ended."""
    try:
        return 1024 * int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[1])
    except (OSError, TypeError):
        return 0


def measured(command: list[str]) -> tuple[float, int]:
    """(seconds, bytes of memory at the peak) of a command, start of Python included."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, cwd=ROOT) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(held, processes(process.pid))))
            time.sleep(0.1)
    if process.returncode:
        sys.exit(process.returncode)
    return time.perf_counter() - start, peak


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.whole", description=__doc__.splitlines()[0])
    parser.add_argument("n", type=int, help="texts, at most")
    parser.add_argument("sources", nargs="*", default=["builtin"], help="as --source takes them (default: builtin)")
    parser.add_argument("--tokenizer", default="auto", help="auto, word or bpe (default: auto)")
    args = parser.parse_args()
    sources = [source if source == "builtin" else str(Path(source).resolve()) for source in args.sources]
    if sources == ["builtin"]:
        start = time.perf_counter()
        for _ in Corpus(args.n, "train", "builtin"):
            pass
        print(f"the stories alone: {time.perf_counter() - start:.1f} s")
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-c", LOAD, str(args.n), home, args.tokenizer, *sources]
        for what in ("tokenised", "next start"):
            seconds, peak = measured(command)
            disk = sum(file.stat().st_size for file in Path(home).rglob("*") if file.is_file())
            print(f"{what}: {seconds:.1f} s, {peak / 1e6:.0f} MB of memory, {disk / 1e6:.0f} MB on disk", flush=True)


if __name__ == "__main__":
    main()
