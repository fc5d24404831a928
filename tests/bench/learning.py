"""What learns faster, at the same stories, tokens and active parameters: python -m tests.bench.learning

Five ways to train: (a) nano + AdamW, (b) nano + MuonClip, (c) k2 + AdamW, (d) k2 + Muon, (e) k2 + MuonClip. Each gets
its learning rate by a sweep over short runs on its own, then runs with each seed; (e) once more with its whole schedule
in half of the steps. Writes learning.json, learning.md and learning.png. The full run takes 45 minutes on 2 cores,
--quick 5.

QK-Clip in (e) has a lower tau than Kimi K2's 100, which so small a model never reaches in so short a run: with 100 (e)
would be (d) to the last bit.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from utils.config import KimiConfig, TrainConfig
from utils.data import TokenData, split_stories
from utils.evaluate import validation_loss
from utils.model import Kimi, count_parameters
from utils.plots import BLUE, GREEN, ORANGE, SKY, STYLE, VERMILION
from utils.presets import PRESETS
from utils.stories import NoValidationSplit, load_stories
from utils.tokenizer import WordTokenizer
from utils.training import History, train

SHAPES = {  # the same active parameters within 1 %
    "nano": dict(block_size=128, d_model=224, n_heads=8, n_layers=2, d_ff=216, dropout=0.0),
    "k2": PRESETS["k2"]["laptop"].model,
}
RATES = {"adamw": (1e-3, 2e-3, 4e-3), "muonclip": (2.5e-3, 5e-3, 1e-2)}  # continued beyond an end that is best


@dataclass(frozen=True)
class Contestant:
    name: str
    architecture: str
    optimizer: str
    tau: float
    colour: str


CONTESTANTS = [
    Contestant("(a) nano + AdamW", "nano", "adamw", math.inf, BLUE),
    Contestant("(b) nano + MuonClip", "nano", "muonclip", 100.0, SKY),
    Contestant("(c) k2 + AdamW", "k2", "adamw", math.inf, ORANGE),
    Contestant("(d) k2 + Muon", "k2", "muonclip", math.inf, GREEN),
    Contestant("(e) k2 + MuonClip", "k2", "muonclip", 10.0, VERMILION),
]


@dataclass(frozen=True)
class Plan:
    steps: int
    sweep_steps: int
    seeds: tuple[int, ...]
    validations: int  # in one run


PLANS = {"full": Plan(800, 300, (0, 1), 32), "quick": Plan(120, 40, (0,), 12)}


@dataclass(frozen=True)
class Stories:
    data: TokenData
    vocab_size: int


def run(one: Contestant, stories: Stories, steps: int, lr: float, seed: int, validations: int) -> tuple[Kimi, History]:
    """Train one model. The batches depend on the seed alone, so all contestants see the same tokens."""
    model = Kimi(KimiConfig.small(one.architecture, stories.vocab_size, **SHAPES[one.architecture]), seed=seed)
    config = TrainConfig(
        steps=steps, batch_size=16, block_size=128, lr=lr, optimizer=one.optimizer, tau=one.tau, warmup=0.02,
        decay=0.5, eval_interval=max(1, steps // validations), eval_batches=8, seed=seed,
    )  # fmt: skip
    return model, train(model, stories.data, config)


def best_rate(one: Contestant, stories: Stories, plan: Plan) -> tuple[float, dict[float, float]]:
    """(the best rate, validation loss of each that was tried)."""
    losses: dict[float, float] = {}
    wanted = list(RATES[one.optimizer])
    while wanted:
        for rate in wanted:
            _, history = run(one, stories, plan.sweep_steps, rate, seed=0, validations=1)
            losses[rate] = history.rows[-1]["val_loss"]
        best = min(losses, key=losses.get)
        wanted = [2 * best] if best == max(losses) else [best / 2] if best == min(losses) else []
    return best, losses


def reached(history: History, loss: float) -> tuple[int, float] | None:
    """(step, seconds of training) of the first validation at or below `loss`."""
    return next(((row["step"], row["seconds"]) for row in history.rows if row["val_loss"] <= loss), None)


def measure(stories: Stories, plan: Plan) -> list[dict]:
    """One entry for each contestant: its rate, its sweep and its runs."""
    entries = []
    for one in CONTESTANTS:
        rate, sweep = best_rate(one, stories, plan)
        print(f"{one.name}: rate {rate:g} out of {sweep}", flush=True)
        runs = []
        for seed in plan.seeds:
            model, history = run(one, stories, plan.steps, rate, seed, plan.validations)
            total, active = count_parameters(model)
            loss = validation_loss(model, stories.data)
            rows = [{name: row[name] for name in ("step", "val_loss", "seconds", "max_logits")} for row in history.rows]
            runs.append({"seed": seed, "loss": loss, "total": total, "active": active, "rows": rows})
            print(f"{one.name}, seed {seed}: {loss:.3f} after {rows[-1]['seconds']:.0f} s", flush=True)
        sweep = {f"{tried:g}": loss for tried, loss in sorted(sweep.items())}
        entries.append({"name": one.name, "rate": rate, "sweep": sweep, "runs": runs})
    last, entry = CONTESTANTS[-1], entries[-1]
    entry["half"] = []
    for seed in plan.seeds:
        model, history = run(last, stories, plan.steps // 2, entry["rate"], seed, validations=1)
        loss, seconds = validation_loss(model, stories.data), history.rows[-1]["seconds"]
        entry["half"].append({"seed": seed, "loss": loss, "seconds": seconds, "steps": plan.steps // 2})
    return entries


def table(entries: list[dict], header: str) -> str:
    """The result as Markdown."""
    lines = [
        header, "",
        "| | rate | final validation loss, each seed | mean | active parameters | ms per step "
        "| steps to (a)'s final loss | seconds to it |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    targets = [r["rows"][-1]["val_loss"] for r in entries[0]["runs"]]
    for entry in entries:
        losses = [r["loss"] for r in entry["runs"]]
        ends = [r["rows"][-1] for r in entry["runs"]]
        pace = sum(end["seconds"] / end["step"] for end in ends) / len(ends)
        hits = [reached(History(rows=r["rows"]), t) for r, t in zip(entry["runs"], targets, strict=True)]
        steps, seconds = (
            ", ".join("never" if hit is None else f"{hit[i]:.0f}" for hit in hits) for i in range(2)
        )  # fmt: skip
        lines.append(
            f"| {entry['name']} | {entry['rate']:g} | {', '.join(f'{loss:.3f}' for loss in losses)} "
            f"| {sum(losses) / len(losses):.3f} | {entry['runs'][0]['active']:,} | {1000 * pace:.0f} "
            f"| {steps} | {seconds} |"
        )
    for r in entries[-1]["half"]:
        lines += ["", f"{entries[-1]['name']}, all of its schedule in {r['steps']} steps, seed {r['seed']}: "
                  f"{r['loss']:.3f} after {r['seconds']:.0f} s"]  # fmt: skip
    lines += ["", "Largest head logit (median of the validations, largest of all), each seed:", ""]
    for entry in entries:
        shown = []
        for r in entry["runs"]:
            largest = sorted(largest_logit(row) for row in r["rows"] if row["max_logits"])
            shown.append(f"{largest[len(largest) // 2]:.1f}, {largest[-1]:.1f}")
        lines.append(f"- {entry['name']}: {'; '.join(shown)}")
    lines += ["", "Sweep (rate: validation loss): ", ""]
    for entry in entries:
        lines.append(f"- {entry['name']}: " + ", ".join(f"{r}: {loss:.3f}" for r, loss in entry["sweep"].items()))
    return "\n".join(lines) + "\n"


def largest_logit(row: dict) -> float:
    return max(map(max, row["max_logits"]))


def figure(entries: list[dict]) -> plt.Figure:
    """Validation loss against steps and against seconds, and the largest head logit of (d) and (e)."""
    with plt.rc_context(STYLE):
        drawn, (by_step, by_time, logits) = plt.subplots(1, 3, figsize=(13, 4))
        for entry, one in zip(entries, CONTESTANTS, strict=True):
            for i, r in enumerate(entry["runs"]):
                style = dict(color=one.colour, lw=1.2, alpha=1 if i == 0 else 0.5, label=one.name if i == 0 else None)
                losses = [row["val_loss"] for row in r["rows"]]
                by_step.plot([row["step"] for row in r["rows"]], losses, **style)
                by_time.plot([row["seconds"] for row in r["rows"]], losses, **style)
                if entry["name"][:3] in ("(d)", "(e)"):
                    rows = [row for row in r["rows"] if row["max_logits"]]
                    logits.plot([row["step"] for row in rows], [largest_logit(row) for row in rows], **style)
        top = min(r["rows"][2]["val_loss"] for entry in entries for r in entry["runs"]) + 0.8
        for axes, label in ((by_step, "step"), (by_time, "seconds of training")):
            axes.set(xlabel=label, ylabel="validation loss (nats per word)", ylim=(None, top))
        logits.set(xlabel="step", ylabel="largest head logit", ylim=(0, None))
        by_step.legend(fontsize=8)
        logits.legend(fontsize=8)
        drawn.tight_layout()
    return drawn


def load(source: str | None) -> Stories:
    stories = load_stories(100_000, "train", source)
    try:
        training, validation = stories, load_stories(10_000, "validation", stories.source)
    except NoValidationSplit:
        training, validation = split_stories(stories)
    tok = WordTokenizer.train(training, min_count=3)
    return Stories(TokenData.from_stories(training, tok, validation=validation), len(tok))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.learning", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="5 minutes: short runs, one seed")
    parser.add_argument("--source", help="stories, as for python -m utils train (default: $TINYSTORIES_PATH, ...)")
    parser.add_argument("--out", default="runs/learning", help="folder of the results (default: runs/learning)")
    args = parser.parse_args()
    plan, folder = PLANS["quick" if args.quick else "full"], Path(args.out)
    started, stories = time.monotonic(), load(args.source)
    entries = measure(stories, plan)
    minutes = (time.monotonic() - started) / 60
    header = (
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}: {plan.steps:,} steps of 16 x 128 tokens, {stories.vocab_size:,} words, "
        f"{stories.data.n_train:,} training tokens, all in {minutes:.0f} minutes. tau of (e): {CONTESTANTS[-1].tau:g}."
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "learning.json").write_text(json.dumps({"header": header, "entries": entries}, indent=1))
    (folder / "learning.md").write_text(table(entries, header))
    figure(entries).savefig(folder / "learning.png")
    print(table(entries, header))


if __name__ == "__main__":
    main()
