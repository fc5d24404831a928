"""RMSNorm with its gradient in closed form: half of the passes over memory that autograd would take."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """w * x / sqrt(mean(x^2) + eps) over the last dimension, computed in fp32: (..., D) -> (..., D)."""
    if torch.is_grad_enabled():
        return _RMSNorm.apply(x, weight, eps)
    return _normed_and_scale(x, weight, eps)[0]


def _normed_and_scale(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The normed x and 1 / its size, (..., D) and (..., 1)."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale).mul_(weight).type_as(x), scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        y, scale = _normed_and_scale(x, weight, eps)
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
