"""Long training and many stories: memory and the time of a step stay flat, nothing is left open."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import statistics
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tests.proofs.found import Found
from utils.generation import tell_stories
from utils.interrupt import StopRequest
from utils.plots import LossFigure, plt
from utils.recipe import build, new_recipe
from utils.training import train

STORIES = 2_000
WARM_UP = 5 / 30  # of the time
FLAT = 0.02


class Seen(NamedTuple):
    """What one look at the training saw."""

    now: float  # seconds since the start
    memory: int  # bytes
    handles: int
    threads: int
    figures: int
    computed: float  # CPU seconds of the process before its figure was drawn
    drawn: float  # and after


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def prove(folder: Path, n: int, seed: int) -> Found:
    """`n` minutes of training, then 2,000 stories."""
    recipe = new_recipe("k2", "smoke", "builtin", steps=10**6, eval_interval=200, checkpoint_minutes=0.2, seed=seed)
    with contextlib.redirect_stdout(io.StringIO()):
        model, data, config = build(recipe)
    stop = StopRequest()
    figure, started, seen = LossFigure(folder / "loss.png"), time.monotonic(), []

    def watch(history) -> None:
        computed = time.process_time()  # not the clock: other processes must not decide
        figure(history)
        now, handles = time.monotonic() - started, len(os.listdir("/proc/self/fd"))
        seen.append(Seen(now, resident(), handles, threading.active_count(), len(plt.get_fignums()), computed,
                         time.process_time()))  # fmt: skip
        if now > 60 * n:
            stop.number = signal.SIGINT  # as Ctrl-C asks, also where a shell has made this process ignore it

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        history = train(model, data, config, folder / "run", recipe=recipe, show=watch, stop=stop)
        tell_stories(model, STORIES, seed=seed)
    told = resident()
    late = [entry for entry in seen if entry.now > 60 * n * WARM_UP]
    half = len(late) // 2
    problems = []
    memory = [statistics.median(entry.memory for entry in part) for part in (late[:half], late[half:])]
    seconds = [b.computed - a.drawn for a, b in pairwise(late)]
    steps = [statistics.median(part) for part in (seconds[:half], seconds[half:])]
    for name, (before, after) in {"memory": memory, "the time of a step": steps}.items():
        if after > before * (1 + FLAT):
            problems.append(f"{name} grew by {after / before - 1:.1%}")
    for name in ("handles", "threads", "figures"):
        before, after = getattr(late[0], name), getattr(late[-1], name)
        if after > before:
            problems.append(f"{name}: {before}, then {after}")
    last = late[-1]
    return Found(
        f"{history.step:,} steps in {n} minutes, {memory[0] / 1e6:.0f} then {memory[1] / 1e6:.0f} MB, a step "
        f"{1e3 * steps[0] / 200:.2f} then {1e3 * steps[1] / 200:.2f} ms, {last.handles} handles, {last.threads} "
        f"threads; {told / 1e6:.0f} MB after {STORIES:,} stories",
        problems,
    )
