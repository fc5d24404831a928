"""The published run: both models in their `colab` size on real stories. python -m tests.bench.published SOURCE

For each model a few learning rates are tried in short runs, with their whole schedule; the best trains for 2,000 steps
of 32 x 256 tokens. Everything goes through the command line, as a reader would do it. Writes published.md (what the
runs took and reached, and the first five stories of each, none picked), published.json and published.png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from tests.bench.measure import PROJECT, machine
from utils.device import pick_device, pick_number_format
from utils.history import History
from utils.plots import COLOUR, STYLE, save_figure

RATES = {"nano": (3e-4, 6e-4, 1e-3, 2e-3, 4e-3), "k2": (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)}
SAMPLES = 5
MEASURED = "measured:"  # the last line of a process that trains


def train(arguments: list[str]) -> None:
    """`python -m utils train ...`, and then what only the process itself knows: its memory at the peak."""
    from tests.bench.measure import memory
    from utils.__main__ import main as utils

    status = utils(["train", *arguments])
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory("VmHWM")
    print(MEASURED, peak, flush=True)
    sys.exit(status)


def run(*arguments: str) -> str:
    """What a Python command prints; an error with its last lines where it fails."""
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=PROJECT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}:\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def command(architecture: str, args: argparse.Namespace, steps: int, rate: float, folder: Path) -> list[str]:
    """The options of a run."""
    options = {"--model": architecture, "--preset": "colab", "--source": args.source, "--steps": steps, "--lr": rate}
    listed = [str(part) for option in options.items() for part in option]
    return [*listed, *args.more, "--run", str(folder), "--overwrite"]


def sweep(args: argparse.Namespace) -> dict[str, dict[float, float]]:
    """Validation loss of a short run at each rate."""
    tried = [(name, rate) for name in args.models for rate in RATES[name]]

    def one(name: str, rate: float) -> float:
        folder = args.out / "sweep" / f"{name}-{rate:g}"
        try:
            run("utils", "train", *command(name, args, args.sweep_steps, rate, folder))
        except RuntimeError as error:
            print(f"{name} at {rate:g}: {error}", flush=True)
            return float("inf")
        loss = History.load(folder / "history.json").rows[-1]["val_loss"]
        print(f"{name} at {rate:g}: {loss:.3f} after {args.sweep_steps} steps", flush=True)
        return loss

    with ThreadPoolExecutor(args.at_once) as pool:
        losses = list(pool.map(lambda pair: one(*pair), tried))
    found = {name: {} for name in args.models}
    for (name, rate), loss in zip(tried, losses, strict=True):
        found[name][rate] = loss
    return found


def published(name: str, rate: float, args: argparse.Namespace) -> dict:
    """One whole run: what it took, what it reached, its first stories."""
    folder = args.out / name
    options = command(name, args, args.steps, rate, folder)
    started = time.monotonic()
    said = run("tests.bench.published", "--train", *options)
    minutes = (time.monotonic() - started) / 60
    history = History.load(folder / "history.json")
    print(said, flush=True)
    with ThreadPoolExecutor(SAMPLES) as pool:
        told = (["generate", "--run", str(folder), "--seed", str(seed)] for seed in range(SAMPLES))
        stories = [story.strip() for story in pool.map(lambda options: run("utils", *options), told)]
    return {
        "name": name,
        "rate": rate,
        "command": f"python -m utils train {' '.join(part for part in options if part != '--overwrite')}",
        "said": [line for line in said.splitlines() if line.startswith(("number format", "data", "model", "plan"))],
        "minutes": minutes,
        "training_seconds": history.rows[-1]["seconds"],
        "peak_bytes": int(said.split(MEASURED)[1]),
        "rows": history.rows,
        "stories": stories,
    }


def markdown(header: str, rates: dict, runs: list[dict], table: str) -> str:
    """The result to read."""
    lines = [header, ""]
    for name, losses in rates.items():
        tried = ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in losses.items())
        lines.append(f"- rates tried with {name}, validation loss of a short run: {tried}")
    lines += [
        "",
        "| | rate | minutes in all | training | tokens/s | memory | command |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in runs:
        speed = one["rows"][-1]["tokens"] / one["training_seconds"]
        lines.append(
            f"| {one['name']} | {one['rate']:g} | {one['minutes']:.1f} | {one['training_seconds']:.0f} s "
            f"| {speed:,.0f} | {one['peak_bytes'] / 1e9:.2f} GB | `{one['command']}` |"
        )
    lines += ["", "```text", table.strip(), "```", ""]
    for one in runs:
        lines += [f"## {one['name']}, the first {SAMPLES} stories (seeds 0 to {SAMPLES - 1})", ""]
        lines += [f"{seed}. {' '.join(story.split())}" for seed, story in enumerate(one["stories"])]
        lines.append("")
    return "\n".join(lines)


def figure(runs: list[dict]) -> plt.Figure:
    """Training and validation loss of each run."""
    with plt.rc_context(STYLE):
        drawn, axes = plt.subplots(layout="constrained")
        for one in runs:
            colour, rows = COLOUR[one["name"]], one["rows"]
            steps = [row["step"] for row in rows]
            axes.plot(steps[1:], [row["loss"] for row in rows[1:]], color=colour, alpha=0.4)
            axes.plot(steps, [row["val_loss"] for row in rows], "o-", ms=3, color=colour, label=one["name"])
        axes.set(xlabel="step", ylabel="loss (nats per token)", title="Validation loss, and paler that of training")
        axes.legend()
    return drawn


def main() -> None:
    if sys.argv[1:2] == ["--train"]:
        train(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m tests.bench.published", description=__doc__.partition("\n")[0])
    parser.add_argument("source", help="stories, as for python -m utils train")
    parser.add_argument("--models", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--sweep-steps", type=int, default=300)
    parser.add_argument("--at-once", type=int, default=1, help="short runs at a time (default: 1)")
    parser.add_argument("--rate", nargs="+", type=float, help="one for each model: nothing is tried")
    parser.add_argument("--only-sweep", action="store_true", help="try the rates, nothing more")
    parser.add_argument("--told", default="200", help="stories to judge (default: 200)")
    parser.add_argument("--out", type=Path, default=Path("runs/published"))
    args, args.more = parser.parse_known_args()  # what is left goes to `python -m utils train`
    args.out.mkdir(parents=True, exist_ok=True)
    number_format, _ = pick_number_format(pick_device())
    header = machine(number_format) + (f"; on {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "")
    rates = {} if args.rate else sweep(args)
    (args.out / "rates.json").write_text(json.dumps(rates))
    if args.only_sweep:
        return
    best = args.rate or [min(losses, key=losses.get) for losses in rates.values()]
    runs = [published(name, rate, args) for name, rate in zip(args.models, best, strict=True)]
    listed = [part for one in runs for part in ("--run", str(args.out / one["name"]))]
    found = args.out / "evaluated.json"
    said = run("utils", "evaluate", *listed, "--stories", args.told, "--json", str(found))
    table = said[said.index("\n\n") :]  # after what is said of the stories
    result = {"header": header, "rates": rates, "runs": runs, "evaluated": json.loads(found.read_text())}
    (args.out / "published.json").write_text(json.dumps(result, indent=1))
    (args.out / "published.md").write_text(markdown(header, rates, runs, table))
    save_figure(figure(runs), args.out / "published.png")


if __name__ == "__main__":
    main()
