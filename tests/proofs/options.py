"""Command lines with random options at their edges: a user's mistake is a sentence, no traceback and no long wait."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.proofs.found import Found
from utils.commands import COMMANDS
from utils.options import build_parser

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = ["0", "-1", "1", "2", "3", "7", "1e-46", "1e-300", "1e20", "1e39", "inf", "-inf", "nan", "9" * 30, str(2**31),
           str(2**63), str(2**64), "0.5", "-0.0", "1.0000001", "abc", "", "½", "1_000"]  # fmt: skip
WORDS = ["", " ", "x", "..", "/", "/dev/null", "/dev/stdin", "/proc/self/mem", "a\nb", "\x1b[31m", "🐸" * 50,
         "n" * 5000, "builtin", "hub:", "hub:nobody", "*.none", "~nobody/x", "-", "utf-7", "none", "line"]  # fmt: skip
SILENCE = 10  # seconds after which a mistake must have been told


def actions() -> dict[str, list[argparse.Action]]:
    """The options of each command."""
    commands = next(a for a in build_parser(COMMANDS)._actions if isinstance(a, argparse._SubParsersAction))
    return {
        name: [a for a in parser._actions if a.option_strings and a.dest != "help"]
        for name, parser in commands.choices.items()
    }


def random_line(folder: Path, options: dict[str, list[argparse.Action]], chance: random.Random) -> list[str]:
    command = chance.choice([*options, "train", "train", "generate"])
    line = [command]
    if command == "train":
        line += ["--preset", "smoke", "--source", "builtin", "--stories", "60", "--steps", "2"]
        line += ["--run", str(folder / chance.choice(["run", *(f"new {chance.random()}" for _ in range(3))]))]
    else:
        line += ["--run", str(folder / "run")]
        line += {"export": ["--to", str(folder / "hf")], "evaluate": ["--stories", "1"]}.get(command, [])
        line += {"generate": ["--max-new-tokens", "5"]}.get(command, [])
    for action in chance.sample(options[command], min(len(options[command]), chance.randint(1, 3))):
        line.append(chance.choice(action.option_strings))
        if action.nargs == 0:
            continue
        values = NUMBERS if action.type in (int, float) else [*WORDS, *NUMBERS[:4], *(action.choices or [])]
        line.append(chance.choice(values))
    return line


def prove(folder: Path, n: int, seed: int) -> Found:
    """`n` random lines on a small run."""
    chance, problems, statuses, longest = random.Random(seed), [], Counter(), 0.0
    smoke = [sys.executable, "-m", "utils", "train", "--preset", "smoke", "--source", "builtin", "--stories", "60"]
    subprocess.run([*smoke, "--steps", "2", "--run", str(folder / "run")], cwd=ROOT, check=True, capture_output=True)
    options = actions()
    here = folder / "here"  # relative paths end here
    here.mkdir()
    known = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-m", "tests.proofs.lines"], cwd=here, env=known, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as runner:  # fmt: skip
        for i in range(n):
            line = random_line(folder, options, chance)
            runner.stdin.write(json.dumps(line) + "\n")
            runner.stdin.flush()
            status, said, seconds = json.loads(runner.stdout.readline())
            longest = max(longest, seconds)
            is_training = status is None and "step/s" in said  # a thousand layers take their time, and show it
            statuses["still training" if is_training else status] += 1
            if is_training:
                continue
            if status not in (0, 1, 2) or "Traceback" in said:
                problems.append(f"{i}: status {status}: {line}: {said[-300:]}")
            elif status == 1 and sum(row.startswith("error: ") for row in said.splitlines()) != 1:
                problems.append(f"{i}: not one sentence: {line}: {said[-300:]}")
            elif status and seconds > SILENCE:
                problems.append(f"{i}: refused after {seconds:.0f} s: {line}")
        runner.stdin.close()
    told = ", ".join(f"{number} x status {status}" for status, number in sorted(statuses.items(), key=str))
    return Found(f"{n} lines: {told}; the longest {longest:.0f} s", problems)
