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
        if torch.is_grad_enabled():
            return _RMSNorm.apply(x, self.weight, self.eps)
        return _rms_norm(x, self.weight, self.eps)[0]


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The normed x and 1 / its size, (..., D) and (..., 1)."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale).mul_(weight).type_as(x), scale


class _RMSNorm(torch.autograd.Function):
    """The formula, with its gradient in closed form: half of the passes over memory that autograd would take."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        y, scale = _rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        normed, grad = x.float() * scale, grad.float()  # (..., D) each
        grad_weight = (grad * normed).sum_to_size(weight.shape).type_as(weight)
        # what would change the size of x is taken out, for the norm undoes it
        grad = grad * weight
        along = (grad * normed).mean(dim=-1, keepdim=True)  # (..., 1)
        return grad.addcmul_(normed, along, value=-1).mul_(scale).type_as(x), grad_weight, None
