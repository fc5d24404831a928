"""How `python -m tests.bench` measures: ours and the peer in turn, medians, ratios pair by pair."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, in `unit`, by us and by the peer, and how often better we are."""

    name: str
    peer_name: str
    unit: str
    ours: float
    peer: float
    ratio: float  # above 1 we are better, whether the unit is a rate or a cost
    bar: str = ""

    def line(self) -> str:
        ours, peer = (f"{shown(value)} {self.unit}" for value in (self.ours, self.peer))
        return f"| {self.name} | {self.peer_name} | {ours} | {peer} | {self.ratio:.2f} x | {self.bar} |"

    def to_dict(self) -> dict:
        return asdict(self)


def shown(value: float) -> str:
    """Three digits or all before the point."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


HEADER = "| what | peer | ours | peer | ratio | bar |\n|---|---|---|---|---|---|"


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def in_turn(
    ours: Callable[[], object], peer: Callable[[], object], pairs: int, warm_up: int = 2, ours_a_pair: int = 1
) -> tuple[float, float, float]:
    """(median seconds of ours, of the peer, median of peer / ours pair by pair), the first `warm_up` pairs left out.

    Where the peer takes far longer, ours runs `ours_a_pair` times for each of its runs, and their median counts.
    """
    times = [
        (statistics.median(seconds(ours) for _ in range(ours_a_pair)), seconds(peer)) for _ in range(warm_up + pairs)
    ][warm_up:]
    mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    return mine, theirs, statistics.median(b / a for a, b in times)


def rate(name, peer_name, amount, unit, ours, peer, pairs, bar="", warm_up=2, ours_a_pair=1) -> Row:
    """A row in `amount` per second, such as tokens/s."""
    mine, theirs, ratio = in_turn(ours, peer, pairs, warm_up, ours_a_pair)
    return Row(name, peer_name, unit, amount / mine, amount / theirs, ratio, bar)


def cost(name, peer_name, ours, peer, pairs, bar="", warm_up=2) -> Row:
    """A row in milliseconds."""
    mine, theirs, ratio = in_turn(ours, peer, pairs, warm_up)
    return Row(name, peer_name, "ms", mine * 1000, theirs * 1000, ratio, bar)


def child(module: str, *arguments: str, **settings: str) -> float:
    """The number that `python -m module arguments` prints last: a measurement that needs a process of its own.

    settings: environment variables for it.
    """
    run = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), **settings}
    done = subprocess.run(run, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def memory(which: str) -> int:
    """This process's memory in bytes, from Linux: VmRSS now or VmHWM, the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {which}: memory is measured on Linux only")


def machine(number_format: str) -> str:
    name = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    return (
        f"{time.strftime('%Y-%m-%d')}, {name}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}; matmuls in {number_format} where no other format is named"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
