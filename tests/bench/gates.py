"""What a gate buys in a language model: python -m tests.bench.gates

Eight feed-forward layers with the same number of weights take turns in a small nano model that reads The Wonderful
Wizard of Oz: each of four bends (none, ReLU, GELU, SiLU) without a gate and with one. For each kind a sweep finds the
learning rate, continued beyond an end of the range that is best; then other seeds judge at that rate. Batches and all
weights outside the layer depend on the seed alone, so that seeds can be compared one by one.

Writes gates.json. The full study takes 11 minutes on one CPU thread, --quick 1. Chapter 4 shows the result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from tests.bench.measure import machine
from utils.bpe import BPETokenizer
from utils.config import KimiConfig
from utils.course.texts import wizard_of_oz
from utils.data import TokenData, split_text
from utils.evaluate import windows
from utils.model import Kimi
from utils.swiglu import FeedForward

OUT = Path(__file__).parent / "results" / "gates.json"


class Plain(nn.Module):
    """Two matrices and a bend between them, no gate: (..., D) -> (..., D)."""

    def __init__(self, d_model: int, d_ff: int, bend: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.bend = bend
        self.w_up = nn.Parameter(torch.randn(d_ff, d_model) * d_model**-0.5)
        self.w_down = nn.Parameter(torch.randn(d_model, d_ff) * d_ff**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(self.bend(F.linear(x, self.w_up)), self.w_down)


def gated(d_model: int, d_ff: int, bend: Callable[[torch.Tensor], torch.Tensor]) -> FeedForward:
    """The course's layer, with a bend of its gate and two thirds of d_ff: as many weights as a plain layer of d_ff."""

    def value_times_gate(x):
        value, gate = x.chunk(2, dim=-1)
        return value * bend(gate)

    layer = FeedForward(d_model, 2 * d_ff // 3)
    layer.swiglu = value_times_gate
    return layer


def no_bend(x: torch.Tensor) -> torch.Tensor:
    return x


KINDS = {  # class of the layer and bend
    "linear": (Plain, no_bend), "ReLU": (Plain, F.relu), "GELU": (Plain, F.gelu), "SiLU": (Plain, F.silu),
    "bilinear": (gated, no_bend), "ReGLU": (gated, F.relu), "GEGLU": (gated, F.gelu), "SwiGLU": (gated, F.silu),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Everything that a run depends on but its kind, rate and seed."""

    d_model: int = 96
    n_layers: int = 1
    n_heads: int = 4
    vocab_size: int = 512
    block_size: int = 64
    batch_size: int = 8
    steps: int = 640
    warmup: int = 40
    evaluate_every: int = 80
    clip_norm: float = 1.0
    rates: tuple[float, ...] = (0.004, 0.006, 0.009)  # continued where an end is best
    sweep_seeds: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)


QUICK = Plan(steps=60, sweep_seeds=(0,), seeds=(1, 2))


def read_book(plan: Plan) -> TokenData:
    """The first nine tenths of the book to train on, the last to validate, in pieces of words learned on the former."""
    training, validation = split_text(wizard_of_oz())
    tok = BPETokenizer.train(training, plan.vocab_size)
    return TokenData.from_stories(training, tok, validation=validation)


def build(kind: str, seed: int, plan: Plan) -> Kimi:
    """A nano model whose feed-forward layers are of one kind."""
    shape = dict(d_model=plan.d_model, n_heads=plan.n_heads, n_layers=plan.n_layers, block_size=plan.block_size)
    model = Kimi(KimiConfig.nano(plan.vocab_size, dropout=0.0, **shape), seed=seed)
    torch.manual_seed(seed)
    for block in model.blocks:
        layer, bend = KINDS[kind]
        block.ffn = layer(plan.d_model, 4 * plan.d_model, bend)
    return model


@torch.no_grad()
def validate(model: Kimi, data: TokenData, plan: Plan) -> tuple[float, float | None]:
    """(loss on the last tenth of the book in nats per token, share of a plain layer's units that it never opens)."""
    is_open = [torch.zeros(block.ffn.w_up.shape[-2], dtype=torch.bool) for block in model.blocks]

    def note(layer, args, output):  # which units any token opens
        i = [block.ffn for block in model.blocks].index(layer)
        is_open[i] |= (F.linear(args[0], layer.w_up) > 0).flatten(0, -2).any(dim=0)

    plain = isinstance(model.blocks[0].ffn, Plain)
    hooks = [block.ffn.register_forward_hook(note) for block in model.blocks if plain]
    total, n = 0.0, 0
    for x, y in windows(data, plan.block_size, batch_size=64):
        counted = (y != -100).sum().item()
        total += counted * model.loss(x, y).item()
        n += counted
    for hook in hooks:
        hook.remove()
    return total / n, 1 - torch.cat(is_open).float().mean().item() if plain else None


def run(kind: str, rate: float, seed: int, data: TokenData, plan: Plan) -> dict:
    """Train one model: AdamW, a rate that rises for `warmup` steps and then falls to 0 in a straight line."""
    model, draws = build(kind, seed, plan), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    rows = []
    for step in range(1, plan.steps + 1):
        optimizer.param_groups[0]["lr"] = rate * min(step / plan.warmup, 1 - (step - 1) / plan.steps)
        x, y = data.batch("train", plan.batch_size, plan.block_size, draws)  # (B, T) each
        loss = model.loss(x, y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), plan.clip_norm)
        optimizer.step()
        if step % plan.evaluate_every == 0 or step == plan.steps:
            rows.append((step, *validate(model, data, plan)))
    steps, losses, dead = zip(*rows, strict=True)
    return {"kind": kind, "rate": rate, "seed": seed, "steps": steps, "losses": losses, "dead": dead}


def mean_end(runs: list[dict]) -> float:
    return statistics.mean(r["losses"][-1] for r in runs)


def sweep(kind: str, data: TokenData, plan: Plan) -> tuple[float, list[dict]]:
    """(the best rate, which is not the lowest nor the highest that was tried; all runs)."""
    runs: dict[float, list[dict]] = {}
    wanted = list(plan.rates)
    while wanted:
        for rate in wanted:
            runs[rate] = [run(kind, rate, seed, data, plan) for seed in plan.sweep_seeds]
        best = min(runs, key=lambda rate: mean_end(runs[rate]))
        wanted = [round(1.5 * best, 6)] if best == max(runs) else [round(best / 1.5, 6)] if best == min(runs) else []
    return best, [r for rate in sorted(runs) for r in runs[rate]]


def study(plan: Plan) -> dict:
    started, data = time.monotonic(), read_book(plan)
    result = {
        "machine": machine("fp32"), "plan": asdict(plan), "training_tokens": data.n_train,
        "validation_tokens": len(data.split("val")), "weights": {}, "best_rate": {}, "sweep": [], "runs": [],
    }  # fmt: skip
    for kind in KINDS:
        result["weights"][kind] = sum(p.numel() for p in build(kind, 0, plan).parameters())
        result["best_rate"][kind], runs = sweep(kind, data, plan)
        result["sweep"] += runs
        final = [run(kind, result["best_rate"][kind], seed, data, plan) for seed in plan.seeds]
        result["runs"] += final
        ends = [r["losses"][-1] for r in final]
        tried = {rate: round(mean_end([r for r in runs if r["rate"] == rate]), 3) for rate in {r["rate"] for r in runs}}
        print(f"{kind:8} rates {dict(sorted(tried.items()))}: {mean_end(final):.3f} ± {statistics.stdev(ends):.3f}, "
              f"{(time.monotonic() - started) / 60:.1f} minutes so far", flush=True)  # fmt: skip
    assert len(set(result["weights"].values())) == 1
    return result | {"minutes": (time.monotonic() - started) / 60}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gates", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="1 minute: short runs, few seeds, nothing written")
    parser.add_argument("--out", type=Path, help=f"file of the result (default: {OUT})")
    args = parser.parse_args()
    torch.set_num_threads(1)  # models as small as these gain nothing from more
    result = study(QUICK if args.quick else Plan())
    out = args.out or (None if args.quick else OUT)
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
