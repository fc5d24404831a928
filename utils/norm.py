"""RMSNorm: every position is scaled to size 1, without moving its mean (Zhang and Sennrich, arXiv 1910.07467)."""

from __future__ import annotations

import torch
from torch import nn


class RMSNorm(nn.Module):
    """w * x / sqrt(mean(x^2) + eps) over the last dimension, (..., D) -> (..., D), computed in fp32, no bias."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        size = wide.square().mean(dim=-1, keepdim=True)  # (..., 1)
        return (self.weight * (wide * torch.rsqrt(size + self.eps))).type_as(x)
