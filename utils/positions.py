"""How a model knows where a token stands: nano adds a learned vector, k2 turns queries and keys (RoPE, YaRN).

Both take the embedded tokens and their positions, once for the whole model, and give (x, angles): x with what is added
to it, and the angles that each attention layer turns by, None where it turns nothing.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from utils.config import K2Config, NanoConfig


class LearnedPositions(nn.Embedding):
    """A learned vector for each position of the block, added to the embedding."""

    def __init__(self, config: NanoConfig):
        super().__init__(config.block_size, config.d_model)

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, None]:
        """x (B, T, D), positions (T,) int64 -> x plus their vectors (B, T, D), and no angles."""
        return x + super().forward(positions), None


class RotaryPositions(nn.Module):
    """The angles by which `rope` turns the channel pairs of queries and keys; nothing is added, nothing is learned."""

    def __init__(self, config: K2Config):
        super().__init__()
        self.config = config
        self.table: torch.Tensor | None = None  # (block_size, R/2) fp32, no buffer: `.to(bfloat16)` must not touch it

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x (B, T, D), positions (T,) int64 -> x as it is, the positions' angles (T, R/2)."""
        if self.table is None or self.table.device != x.device:
            every = torch.arange(self.config.block_size, dtype=torch.float32, device="cpu")
            self.table = torch.outer(every, rotary_frequencies(self.config)).to(x.device)
        return x, self.table[positions]


def rotary_frequencies(config: K2Config) -> torch.Tensor:
    """(R/2,) radians per position of each channel pair, fp32: theta^(-2i/R), and with YaRN less.

    YaRN (arXiv 2309.00071, sec. 3.2): pairs that turn more than beta_fast times in the original
    context stay, those that turn less than beta_slow times are slowed down by the factor, with a
    linear ramp between.
    """
    width = config.qk_rope_head_dim
    pair = torch.arange(width // 2, dtype=torch.float32, device="cpu")
    frequencies = config.rope_theta ** (-2 * pair / width)
    if config.yarn_factor == 1:
        return frequencies

    def pair_with(turns: float) -> float:
        return width * math.log(config.yarn_original / (2 * math.pi * turns)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_with(config.yarn_beta_fast)), 0)
    high = min(math.ceil(pair_with(config.yarn_beta_slow)), width - 1)
    # as in DeepSeek's and transformers' code, wherever the two ends come to lie: models were trained with it
    ramp = ((pair - low) / (high - low or 0.001)).clamp(0, 1)
    return frequencies * (1 - ramp) + frequencies / config.yarn_factor * ramp


def rope(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Turn each channel pair (2i, 2i+1) of position t by angles[t, i].

    x (..., T, R), angles (T, R/2) -> (..., T, R). The product of a turned query and a turned key
    depends on the distance of their positions alone (RoFormer, arXiv 2104.09864, sec. 3.4).
    """
    turns = torch.polar(torch.ones_like(angles), angles)  # (T, R/2) complex: e^(i angle)
    return torch.view_as_real(complex_pairs(x) * turns).flatten(-2).type_as(x)


def complex_pairs(x: torch.Tensor) -> torch.Tensor:
    """(..., R) -> (..., R/2) complex, fp32: channel 2i is the real part, 2i + 1 the imaginary one.

    A view where memory allows it: a complex number begins at an even place, which next to a latent of odd width it does
    not. torch.compile sees no places in memory, so it copies as well.
    """
    pairs = x.float().unflatten(-1, (-1, 2))  # (..., R/2, 2)
    if torch.compiler.is_compiling() or pairs.storage_offset() % 2 or any(s % 2 for s in pairs.stride()[:-1]):
        pairs = pairs.clone(memory_format=torch.contiguous_format)
    return torch.view_as_complex(pairs)
