"""Two processes on one run folder: the second is refused or waits, and what stays is the checkpoint of one run."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.proofs.found import Found
from tests.proofs.kills import first_difference
from utils.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
RATES = ("0.01", "0.02")  # by which the two runs are told apart


def command(run: Path, rate: str, how: str | None) -> list[str]:
    words = (
        "train --preset smoke --source builtin --stories 100 --steps 40 --checkpoint-minutes 0.00001 --number-format"
    )
    line = [sys.executable, "-m", "utils", *words.split(), "fp32", "--lr", rate, "--run", str(run)]
    return [*line, how] if how else line


def prove(folder: Path, n: int, seed: int) -> Found:
    """`n` pairs that are started, resumed or overwritten at random, the second up to two seconds after the first."""
    chance, problems, endings = random.Random(seed), [], Counter()
    alone = {}
    for rate in RATES:
        subprocess.run(command(folder / rate, rate, None), cwd=ROOT, check=True, capture_output=True)
        alone[rate] = load_checkpoint(folder / rate)
    for i in range(n):
        run, processes = folder / f"pair-{i}", []
        for rate in RATES:
            how = chance.choice([None, "--resume", "--overwrite"]) if processes else None
            processes.append(subprocess.Popen(
                command(run, rate, how), cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            ))  # fmt: skip
            time.sleep(chance.uniform(0, 2))
        said = [process.communicate()[1] for process in processes]
        statuses = [process.returncode for process in processes]
        if any("Traceback" in text for text in said) or not set(statuses) <= {0, 1}:
            problems.append(f"pair {i}: {statuses}, {said[0][-200:]} | {said[1][-200:]}")
        refused = [text.splitlines()[-1].partition(": ")[2][:200] for text in said if "error: " in text]
        for text in refused:
            named = ("is in use by process", "holds another run", "there is no checkpoint", "leave out", "to continue")
            if not any(words in text for words in named):
                problems.append(f"pair {i}: {text}")
        state = load_checkpoint(run)
        whole = alone[str(state["training"]["config"]["lr"])]
        if state["step"] == whole["step"] and (difference := first_difference(state, whole)):
            problems.append(f"pair {i}: {difference} is of neither run")
        endings["both ended" if statuses == [0, 0] else "one was refused" if 0 in statuses else "neither ended"] += 1
        if statuses == [1, 1]:
            problems.append(f"pair {i}: both were refused: {said}")
    return Found(f"{n} pairs: " + ", ".join(f"{number} x {name}" for name, number in endings.items()), problems)
