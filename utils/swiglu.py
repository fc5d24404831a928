"""SwiGLU, the gated activation inside every expert (Shazeer, arXiv 2002.05202).

One convention everywhere: the first half of the channels is the value, the second half the gate that gets SiLU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """value * SiLU(gate) of the two halves of the last dimension: (..., 2F) -> (..., F)."""
    value, gate = x.chunk(2, dim=-1)  # (..., F) each
    return value * F.silu(gate)


class SwiGLU(nn.Module):
    """`swiglu` as a layer: (..., 2F) -> (..., F). An odd last dimension raises ValueError."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] % 2:
            raise ValueError(f"SwiGLU splits the last dimension in two, it is {x.shape[-1]} and must be even")
        return swiglu(x)


class FeedForward(nn.Module):
    """One dense feed-forward layer with a gate: down(swiglu(up(x))), (..., D) -> (..., D)."""

    def __init__(self, d_model: int, d_ff: int):
        super().__init__()
        self.w_up = nn.Parameter(torch.empty(2, d_ff, d_model))  # value and gate
        self.w_down = nn.Parameter(torch.empty(d_model, d_ff))
        for weight in (self.w_up, self.w_down):
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
        self.swiglu = swiglu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.swiglu(F.linear(x, self.w_up.flatten(0, 1)))  # (..., F)
        return F.linear(hidden, self.w_down)  # (..., D)
