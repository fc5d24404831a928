"""What equal seconds of training reach, in bits per byte of the text: python -m tests.bench.seconds STUDY --source PATH

STUDY: `tokenizers`, words against byte-pair encoding of three sizes, all with the same number of parameters; or
`experts`, k2 against a dense model of the same active size. Each contestant gets as many steps as fit into the seconds,
by its own pace, and its whole learning-rate schedule in them. Writes STUDY.md, STUDY.json and STUDY.png.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch

from utils.bpe import BPETokenizer
from utils.config import KimiConfig, TrainConfig
from utils.data import TokenData
from utils.device import keep_freed_memory
from utils.dropped import Dropped
from utils.evaluate import read_validation
from utils.model import Kimi, count_parameters
from utils.plots import BLUE, ORANGE, STYLE, save_figure
from utils.presets import PRESETS
from utils.recipe import load_split
from utils.tokenizer import WordTokenizer
from utils.training import train

LAPTOP = PRESETS["k2"]["laptop"]
TRAINING = dict(batch_size=16, block_size=128, lr=LAPTOP.training.lr)
PACE_STEPS = 30  # by which the pace is found
Texts = tuple[list[str], list[str]]


class Contestant(NamedTuple):
    name: str
    make_tokenizer: Callable[[list[str]], WordTokenizer | BPETokenizer]
    shape: dict  # fields of K2Config


class Result(NamedTuple):
    """One run of a contestant."""

    seed: int
    steps: int
    seconds: float  # of training, without validation
    epochs: float
    loss: float  # nats per token
    bits_per_byte: float
    dropped: float  # of them, what words leave out


def words(texts: list[str]) -> WordTokenizer:
    return WordTokenizer.train(texts, min_count=LAPTOP.min_count)


def pieces(size: int) -> Callable[[list[str]], BPETokenizer]:
    return lambda texts: BPETokenizer.train(texts, size, "kimi")


def of_tokenizers(texts: list[str]) -> list[Contestant]:
    """Words, and byte-pair encoding: where the tables take more, the experts get less, until the sums are equal."""
    made = {"words": words(texts), **{f"bpe {size:,}": pieces(size)(texts) for size in (2048, 4096, 8192)}}
    most = max(parameters(len(tok), LAPTOP.model) for tok in made.values())
    return [
        Contestant(f"{name} ({len(tok):,})", lambda _, tok=tok: tok, widened(len(tok), LAPTOP.model, most))
        for name, tok in made.items()
    ]


def of_experts(texts: list[str]) -> list[Contestant]:
    """k2, and the same with one expert as wide as those that are chosen there, which every token visits."""
    tok = words(texts)
    chosen = (LAPTOP.model["top_k"] + 1) * LAPTOP.model["d_ff"]  # and the shared one
    dense = {**LAPTOP.model, "n_experts": 1, "top_k": 1, "d_ff": chosen // 2}  # half of it is the shared expert
    return [Contestant("k2", lambda _: tok, LAPTOP.model), Contestant("dense", lambda _: tok, dense)]


STUDIES = {"tokenizers": of_tokenizers, "experts": of_experts}


def parameters(vocab_size: int, shape: dict) -> int:
    return sizes(KimiConfig.k2_mini(vocab_size, **shape))[0]


def sizes(config: KimiConfig) -> tuple[int, int]:
    """(parameters, those that are active for each token)."""
    with torch.device("meta"):
        return count_parameters(Kimi(config))


def widened(vocab_size: int, shape: dict, total: int) -> dict:
    """The shape with experts so wide that its parameters come closest to `total`."""
    widths = range(shape["d_ff"], 4 * shape["d_ff"], 8)
    width = min(widths, key=lambda d_ff: abs(parameters(vocab_size, {**shape, "d_ff": d_ff}) - total))
    return {**shape, "d_ff": width}


def run(model: Kimi, data: TokenData, steps: int, seed: int):
    """Train without a word; returns the history."""
    config = TrainConfig(steps=steps, eval_interval=steps, eval_batches=1, seed=seed, **TRAINING)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return train(model, data, config)


def measure(one: Contestant, texts: Texts, seconds: float, seeds: int) -> dict:
    """The contestant's sizes, and a `Result` for each seed."""
    training, validation = texts
    tok = one.make_tokenizer(training)
    data = TokenData.from_stories(training, tok, validation=validation)
    rest = None if tok.keeps_spaces else Dropped(tok, training)
    dropped = sum(map(rest.bits, validation)) / data.n_bytes["val"] if rest else 0.0
    config = KimiConfig.k2_mini(len(tok), **one.shape)
    pace = run(Kimi(config, seed=0), data, PACE_STEPS, 0).rows[-1]["seconds"] / PACE_STEPS
    steps, results = round(seconds / pace), []
    for seed in range(seeds):
        model = Kimi(config, seed=seed)
        history = run(model, data, steps, seed)
        loss = read_validation(model, data).loss
        bits = loss / math.log(2) * len(data.split("val")) / data.n_bytes["val"] + dropped
        epochs = steps * TRAINING["batch_size"] * TRAINING["block_size"] / data.n_train
        results.append(Result(seed, steps, history.rows[-1]["seconds"], epochs, loss, bits, dropped))
        print(f"{one.name}, seed {seed}: {bits:.4f} bits per byte after {results[-1].seconds:.0f} s", flush=True)
    total, active = sizes(config)
    return {"name": one.name, "total": total, "active": active, "d_ff": config.d_ff, "runs": results}


def table(entries: list[dict], header: str) -> str:
    """The result as Markdown."""
    lines = [
        header,
        "",
        "| | bits per byte, each seed | mean | what words leave out | nats per token | parameters | active | steps "
        "| seconds | epochs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        runs = entry["runs"]
        mean = {name: statistics.mean(getattr(r, name) for r in runs) for name in Result._fields}
        each = ", ".join(f"{r.bits_per_byte:.3f}" for r in runs)
        lines.append(
            f"| {entry['name']} | {each} | {mean['bits_per_byte']:.3f} | {mean['dropped']:.3f} | {mean['loss']:.3f} "
            f"| {entry['total']:,} | {entry['active']:,} | {runs[0].steps:,} | {mean['seconds']:.0f} "
            f"| {mean['epochs']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def figure(entries: list[dict]) -> plt.Figure:
    """Bits per byte of each contestant: the mean, and every seed as a dot."""
    with plt.rc_context(STYLE):
        drawn, axes = plt.subplots(figsize=(7, 0.8 + 0.6 * len(entries)), layout="constrained")
        names = [entry["name"] for entry in entries]
        left_out = [entry["runs"][0].dropped for entry in entries]
        means = [statistics.mean(r.bits_per_byte for r in entry["runs"]) for entry in entries]
        tokens = [mean - dropped for mean, dropped in zip(means, left_out, strict=True)]
        axes.barh(names, tokens, 0.5, color=BLUE, label="the tokens")
        bars = axes.barh(names, left_out, 0.5, left=tokens, color=ORANGE, label="what words leave out")
        axes.bar_label(bars, [f"{mean:.3f}" for mean in means], padding=8)
        for row, entry in enumerate(entries):
            axes.plot([r.bits_per_byte for r in entry["runs"]], [row] * len(entry["runs"]), "k.", ms=5)
        axes.invert_yaxis()
        axes.set(xlabel="bits per byte of the text", xlim=(0, 1.15 * max(means)))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=2)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.seconds", description=__doc__.partition("\n")[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--source", required=True, help="stories, as for python -m utils train")
    parser.add_argument("--seconds", type=float, default=300, help="of training for each run (default: 300)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each contestant (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("runs/seconds"), help="folder of the results")
    args = parser.parse_args()
    keep_freed_memory()
    texts = load_split({"stories": 100_000, "source": args.source})
    entries = [measure(one, texts, args.seconds, args.seeds) for one in STUDIES[args.study](texts[0])]
    header = (
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}: {args.seconds:.0f} seconds of training each, {len(texts[0]):,} stories, "
        f"{len(texts[1]):,} to validate, windows of {TRAINING['batch_size']} x {TRAINING['block_size']} tokens a step."
    )
    args.out.mkdir(parents=True, exist_ok=True)
    state = {"header": header, "entries": [{**e, "runs": [r._asdict() for r in e["runs"]]} for e in entries]}
    (args.out / f"{args.study}.json").write_text(json.dumps(state, indent=1))
    (args.out / f"{args.study}.md").write_text(table(entries, header))
    save_figure(figure(entries), args.out / f"{args.study}.png")
    print(table(entries, header))


if __name__ == "__main__":
    main()
