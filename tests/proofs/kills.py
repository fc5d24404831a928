"""Runs that are killed at random moments and resumed end as those that nobody disturbed, to the last bit."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from tests.proofs.found import Found
from utils.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60
SHAPES = {
    "k2": "--tau 0.5 --bias-rate 0.05 --lr 0.02",  # so that QK-Clip acts in most steps, and the bias moves in each
    "nano": "--dropout 0.2",
}


def command(run: Path, model: str, seed: int, resume: bool) -> list[str]:
    words = f"train --preset smoke --model {model} --source builtin --stories 200 --steps {STEPS} --accumulation 2 "
    words += f"--checkpoint-minutes 0.00001 --number-format fp32 --seed {seed} {SHAPES[model]} --run"
    again = ["train", "--run", str(run), "--resume"]
    return [sys.executable, "-m", "utils", *(again if resume else [*words.split(), str(run)])]


def prove(folder: Path, n: int, seed: int) -> Found:
    """Kill `n` runs, each up to four times. Checkpoints are written after every step, so many kills hit one."""
    chance, problems, n_kills, n_writing = random.Random(seed), [], 0, 0
    whole = {}
    for model in SHAPES:
        subprocess.run(command(folder / model, model, seed, False), cwd=ROOT, check=True, capture_output=True)
        whole[model] = load_checkpoint(folder / model)
    for i in range(n):
        model = chance.choice(sorted(SHAPES))
        run = folder / f"killed-{i}"
        for _ in range(chance.randint(1, 4)):
            process = subprocess.Popen(
                command(run, model, seed, (run / "checkpoint.safetensors").is_file()), cwd=ROOT,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            wait_for_first_save(run, process)
            time.sleep(chance.uniform(0, 1.5))
            process.send_signal(signal.SIGKILL)
            process.wait()
            n_kills += process.returncode == -signal.SIGKILL
            n_writing += any(run.glob("*.partial"))
        done = subprocess.run(command(run, model, seed, True), cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            problems.append(f"run {i} ({model}) did not go on: {done.stderr[-300:]}")
        elif difference := first_difference(load_checkpoint(run), whole[model]):
            problems.append(f"run {i} ({model}): {difference} is another one")
        print(f"{i + 1} of {n}, {n_kills} kills", file=sys.stderr, flush=True)
    equal = n - len(problems)
    return Found(f"{equal} of {n} runs equal to the bit after {n_kills} kills, {n_writing} in a write", problems)


def wait_for_first_save(run: Path, process: subprocess.Popen) -> None:
    while process.poll() is None and not (run / "checkpoint.safetensors").is_file():
        time.sleep(0.05)


def first_difference(one: dict, other: dict) -> str | None:
    """The first tensor or value in which two checkpoints differ, times apart."""
    for part in ("model", "tensors"):
        for name in one[part].keys() | other[part].keys():
            if name not in one[part] or name not in other[part] or not torch.equal(one[part][name], other[part][name]):
                return name
    for name in ("step", "config", "tokenizer"):
        if one[name] != other[name]:
            return name
    rows = [[without_times(row) for row in state["training"]["rows"]] for state in (one, other)]
    return None if rows[0] == rows[1] else "a row of the history"


def without_times(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in ("seconds", "tokens_per_second")}
