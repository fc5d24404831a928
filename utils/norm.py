"""RMSNorm: every position is scaled to size 1, without moving its mean (Zhang and Sennrich, arXiv 1910.07467)."""

from __future__ import annotations

import torch
from torch import nn


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension, in fp32: (..., D) -> (..., D)."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)  # (..., 1)
    return (wide * scale * weight).type_as(x)


class RMSNorm(nn.Module):
    """`rms_norm` with a learned weight for each channel and no bias: (..., D) -> (..., D)."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.rms_norm = rms_norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rms_norm(x, self.weight, self.eps)
