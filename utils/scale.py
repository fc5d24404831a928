"""What a run takes on several GPUs: bytes that each holds and sends, minutes; counted before there is one.

Three forms: a copy in each (DDP), a part of each matrix (FSDP2), and the one that Kimi K2 was trained in (report,
sec. 2.4): layers in stages, the experts of a stage over several GPUs, optimizer states over all of them (ZeRO-1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from utils.config import KimiConfig, TrainConfig
from utils.cost import FP32, optimizer_bytes, plan
from utils.model import Kimi, count_parameters
from utils.moe import Experts
from utils.muonclip import muon_parameters

BF16 = 2  # bytes of a number


class Needs(NamedTuple):
    """What one of the GPUs of a form holds and sends."""

    held: float  # bytes of weights, gradients and optimizer
    sent: float | None  # bytes in a step; None where it depends on how stages take turns


def on_meta(config: KimiConfig) -> Kimi:
    """A model of which only the shapes exist: Kimi K2's take no memory."""
    with torch.device("meta"):
        return Kimi(config)


def parameters_by_kind(model: Kimi) -> dict[str, int]:
    """How many parameters are routed experts, in blocks beside them, and outside of the blocks."""
    routed = sum(p.numel() for m in model.modules() if isinstance(m, Experts) for p in m.parameters())
    in_blocks = sum(p.numel() for p in model.blocks.parameters())
    return {"experts": routed, "blocks": in_blocks - routed, "outside": count_parameters(model).total - in_blocks}


def cut_matrices(model: nn.Module) -> int:
    """Numbers in matrices that FSDP2 cuts into rows and Muon needs whole; stacks are cut between whole matrices."""
    return sum(p.numel() for p in muon_parameters(model)[0] if p.ndim == 2)


def ddp(model: Kimi, config: TrainConfig, n: int, muon_bytes: int = FP32) -> Needs:
    """A copy in each of n GPUs, as `parallel` trains it.

    A ring all-reduce of gradients sends each number 2 (n - 1) / n times (Patarasuk and Yuan, JPDC 69, 2009), an
    all-gather of the directions of Muon (n - 1) / n times. muon_bytes: of a number of these.
    """
    total, others = count_parameters(model).total, (n - 1) / n
    directions = sum(p.numel() for p in muon_parameters(model)[0]) if config.optimizer == "muonclip" else 0
    sent = others * (2 * FP32 * total + muon_bytes * directions)
    return Needs(2 * FP32 * total + optimizer_bytes(model, config.optimizer), sent)


def fsdp(model: Kimi, config: TrainConfig, n: int) -> Needs:
    """A part of each matrix in each of n GPUs, as `parallel` trains it.

    The weights of a block are gathered for its forward and again for its backward pass, those outside of blocks once,
    gradients scattered once, for each forward pass; Muon's matrices travel to one GPU and back.
    """
    kinds, others = parameters_by_kind(model), (n - 1) / n
    total = sum(kinds.values())
    gathered = config.accumulation * FP32 * (2 * (total - kinds["outside"]) + kinds["outside"])
    directions = 2 * FP32 * cut_matrices(model) / n if config.optimizer == "muonclip" else 0
    held = (2 * FP32 * total + optimizer_bytes(model, config.optimizer)) / n
    return Needs(held, others * (gathered + FP32 * total + directions))


def stages_and_experts(model: Kimi, stages: int, over: int, n: int, weight_bytes: int = BF16) -> Needs:
    """Layers in `stages`, the experts of each over `over` GPUs, optimizer states over all n GPUs.

    Weights of weight_bytes each with gradients in fp32, as Kimi K2 (report, sec. 2.4). What is no expert stands on
    every GPU of its stage. The optimizer keeps the weights in fp32 and an average.
    """
    kinds = parameters_by_kind(model)
    here = (kinds["blocks"] + kinds["outside"]) / stages + kinds["experts"] / (stages * over)
    return Needs((weight_bytes + FP32) * here + 2 * FP32 * sum(kinds.values()) / n, None)


def tokens_sent(model: Kimi, tokens: int, over: int) -> float:
    """Bytes that a GPU sends in a step when its tokens travel to experts over `over` GPUs, and back.

    In bf16, forward and backward, each token to each of its top_k experts in each layer that has some.
    """
    config = model.config
    visits = tokens * config.top_k * len(model.layers_with_experts())
    return 4 * BF16 * (over - 1) / over * visits * config.d_model


def weights_sent(model: Kimi, passes: int, over: int) -> float:
    """Bytes that a GPU sends in a step when the experts travel instead: in each forward pass gathered, in its backward
    again, in bf16, and gradients scattered once, in fp32."""
    return (2 * BF16 * passes + FP32) * (over - 1) / over * parameters_by_kind(model)["experts"]


def seconds(model: Kimi, config: TrainConfig, n: int, flops_per_second: float, share: float) -> float:
    """Seconds on n GPUs of which each reaches a share of its flops_per_second (model FLOPs utilisation)."""
    return plan(model, config).flops / (n * flops_per_second * share)
