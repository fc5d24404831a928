"""What a model costs: floating-point operations (FLOPs), bytes, minutes, counted before it runs."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from utils.config import KimiConfig, TrainConfig
from utils.device import autocast
from utils.model import Kimi, count_parameters
from utils.muonclip import NEWTON_SCHULZ_STEPS, muon_parameters

FP32 = 4  # bytes of a number


def forward_flops(model: Kimi, pairs: float) -> float:
    """FLOPs of a forward pass for one token: 2 for each active weight that multiplies, and attention.

    pairs: how many keys a query looks at. Left out are the embeddings, which are looked up, and what is not a matmul.
    """
    config = model.config
    looked_up = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding))
    width = config.qk_head_dim + config.v_head_dim  # query with key, weight with value
    return 2 * (count_parameters(model).active - looked_up) + 2 * config.n_layers * config.n_heads * width * pairs


def training_flops(model: Kimi) -> float:
    """FLOPs to train on one token: once forward and twice backward (PaLM, arXiv 2204.02311, app. B).

    Pairs that the causal mask hides are left out, and so is the optimizer (see `optimizer_flops`).
    """
    return 3 * forward_flops(model, pairs=(model.config.block_size + 1) / 2)


def optimizer_flops(model: Kimi) -> float:
    """FLOPs of one step of MuonClip: Newton-Schulz, which multiplies each matrix 15 times.

    A step of it takes an (n, m) matrix, k the smaller side, to its Gram matrix (2 k n m), squares that (2 k^3) and
    multiplies it back (2 k n m). AdamW multiplies no matrices.
    """
    matrices, _ = muon_parameters(model)
    flops = 0
    for p in matrices:
        small, large = sorted(p.shape[-2:])
        flops += p.shape[:-2].numel() * NEWTON_SCHULZ_STEPS * (4 * small * small * large + 2 * small**3)
    return flops


def n_looks(config: TrainConfig) -> int:
    """How often a run is validated: before its first step, every `eval_interval` steps, and after its last one."""
    return 1 + math.ceil(config.steps / config.eval_interval)


def flops_by_part(model: Kimi, config: TrainConfig) -> dict[str, float]:
    """The FLOPs of a whole run, by what they are for: forward and backward passes, Newton-Schulz, validations."""
    windows = config.batch_size * config.block_size  # tokens of a forward pass
    forward = forward_flops(model, pairs=(config.block_size + 1) / 2) * windows
    steps = config.steps * config.accumulation
    return {
        "forward": steps * forward,
        "backward": 2 * steps * forward,
        "Newton-Schulz": config.steps * optimizer_flops(model) if config.optimizer == "muonclip" else 0.0,
        "validation": n_looks(config) * config.eval_batches * forward,
    }


def weight_bytes(model: Kimi) -> int:
    """Bytes of the weights in fp32, as they are trained."""
    return FP32 * count_parameters(model).total


def optimizer_bytes(model: Kimi, optimizer: str) -> int:
    """Bytes of an optimizer's state: Muon keeps one number for each weight, AdamW two."""
    total = count_parameters(model).total
    muon = sum(p.numel() for p in muon_parameters(model)[0]) if optimizer == "muonclip" else 0
    return FP32 * (muon + 2 * (total - muon))


def cache_bytes(config: KimiConfig, bytes_each: int = 2) -> int:
    """Bytes of the cache for one token in all layers; two for each number in bf16."""
    return bytes_each * config.n_layers * config.cached_per_token


def activation_bytes(model: Kimi, batch_size: int, block_size: int, number_format: str = "fp32") -> int:
    """Bytes that a forward pass of (batch_size, block_size) tokens keeps for its backward pass.

    Measured on one window and on two: some of it is there whatever the batch, such as weights in
    two bytes.
    """
    one, two = (kept_bytes(model, n, block_size, number_format) for n in (1, 2))
    return one + (batch_size - 1) * (two - one)


def kept_bytes(model: Kimi, batch_size: int, block_size: int, number_format: str = "fp32") -> int:
    """`activation_bytes`, by a forward pass of just these tokens."""
    kept = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.zeros(batch_size, block_size, dtype=torch.long, device=model.device)  # (B, T)
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with hooks, autocast(model.device, number_format):
        held = model.loss(x, x)  # until we have counted, nothing may be freed
    for weight in model.parameters():
        kept.pop(weight.untyped_storage().data_ptr(), None)
    del held
    return sum(kept.values())


class Plan(NamedTuple):
    """What a run will take."""

    flops: float  # of all that `flops_by_part` counts
    bytes: int  # weights, gradients and optimizer state; activations not included

    def minutes(self, flops_per_second: float) -> float:
        """At a measured speed."""
        return self.flops / flops_per_second / 60


def plan(model: Kimi, config: TrainConfig) -> Plan:
    """The whole run's operations, and the bytes that it holds all the time."""
    held = 2 * weight_bytes(model) + optimizer_bytes(model, config.optimizer)  # gradients are as large as the weights
    return Plan(sum(flops_by_part(model, config).values()), held)
