"""What the command `plan` does: say what a run takes before there is a machine for it."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

from utils.config import KimiConfig, TrainConfig
from utils.cost import flops_by_part, plan
from utils.model import Kimi, count_parameters
from utils.options import option
from utils.presets import PRESETS
from utils.recipe import MODEL_FIELDS, TRAIN_FIELDS
from utils.scale import Needs, ddp, fsdp, on_meta, seconds, stages_and_experts, tokens_sent, weights_sent
from utils.units import duration, size

# Kimi K2 as it was trained: 15.5 T tokens in steps of 67 M, windows of 4,096 (report, sec. 2.5). How many windows a
# forward pass has is not said there: here 256, one for each GPU of a model-parallel group.
PUBLISHED = TrainConfig(steps=231_000, batch_size=256, accumulation=64, block_size=4_096)
VOCABULARY = 8_000  # words, where none are counted


def plan_command(args: argparse.Namespace) -> int:
    """Print the plan of a configuration on several GPUs."""
    for name in ("gpus", "stages", "experts_over", "peak", "mfu"):
        if not 0 < getattr(args, name) < math.inf:
            raise ValueError(f"{option(name)} is {getattr(args, name)}, it must be above 0")
    model, config = planned(args)
    tokens = config.batch_size * config.block_size * config.accumulation
    (total, active), flops = count_parameters(model), plan(model, config).flops
    share = flops_by_part(model, config)["Newton-Schulz"] / flops
    reached = f"{args.mfu:.0%} of {args.peak / 1e12:,.0f} TFLOP/s"
    print(f"{args.model}: {total:,} parameters, {active:,} active for each token")
    print(f"{config.steps:,} steps of {tokens:,} tokens: {flops:.2e} FLOPs, {share:.0%} of them Newton-Schulz")
    takes = seconds(model, config, args.gpus, args.peak, args.mfu)
    print(f"{duration(takes)} where each of {args.gpus} GPUs reaches {reached}")

    print(f"\n{f'on {args.gpus} GPUs':45}{'each holds':>14}{'sends in a step':>18}")
    line("a copy of the model (ddp)", ddp(model, config, args.gpus))
    line("a part of each matrix (fsdp)", fsdp(model, config, args.gpus))
    if args.stages * args.experts_over > 1:
        needs = stages_and_experts(model, args.stages, args.experts_over, args.gpus)
        line(f"{args.stages} stages, experts over {args.experts_over} (not built here)", needs)
    over = max(args.experts_over, 2)
    to_experts, to_tokens = (
        tokens_sent(model, tokens // args.gpus, over),
        weights_sent(model, config.accumulation, over),
    )
    print(f"\nexperts over {over} GPUs, bytes in a step: {size(to_experts)} where tokens travel to the experts, "
          f"{size(to_tokens)} where experts travel to the tokens")  # fmt: skip
    return 0


def planned(args: argparse.Namespace) -> tuple[Kimi, TrainConfig]:
    """The model, of which only the shapes exist, and its training."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    shape = {name: value for name, value in given.items() if name in MODEL_FIELDS}
    training = {name: value for name, value in given.items() if name in TRAIN_FIELDS}
    if args.model == "kimi-k2":
        return on_meta(KimiConfig.k2(**shape)), replace(PUBLISHED, **training)
    preset = PRESETS[args.model][args.preset]
    config = KimiConfig.small(args.model, args.vocab_size or VOCABULARY, **{**preset.model, **shape})
    return on_meta(config), replace(preset.training, **training)


def line(form: str, needs: Needs) -> None:
    print(f"{form:45}{size(needs.held):>14}{size(needs.sent) if needs.sent is not None else 'not counted':>18}")
