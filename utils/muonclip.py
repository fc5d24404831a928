"""Optimisers, by hand. First half: AdamW and clipping by the global gradient norm.

(The original notebook calls such a pair "MuonClip". The real one is Muon with QK-Clip, Kimi K2 report sec. 2.1.)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2).

    Only the bookkeeping of parameter groups and state dicts comes from torch's base class.
    """

    def __init__(self, params, lr: float = 1e-3, betas=(0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.1):
        for name, value, holds in (
            ("lr", lr, lr >= 0), ("betas", betas, all(0 <= b < 1 for b in betas)), ("eps", eps, eps > 0),
            ("weight_decay", weight_decay, weight_decay >= 0),
        ):  # fmt: skip
            if not holds:
                allowed = {"betas": "in [0, 1) each", "eps": "above 0"}.get(name, "0 or more")
                raise ValueError(f"AdamW's {name} is {value!r}, it must be {allowed}")
        super().__init__(params, dict(lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)

    def _update(self, p: torch.Tensor, group: dict) -> None:
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
        state["step"] += 1
        p.mul_(1 - group["lr"] * group["weight_decay"])  # decay by the raw rate, not through the gradient
        state["mean"].lerp_(p.grad, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
        # both averages start at zero, so early ones are divided by the weight they have gathered
        mean_weight, square_weight = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
        root = state["square"].sqrt().div_(square_weight**0.5).add_(group["eps"])
        p.addcdiv_(state["mean"], root, value=-group["lr"] / mean_weight)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups for AdamW: matrices decay, vectors (norms) do not. Every parameter is in exactly one."""
    params = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]


@torch.no_grad()
def clip_gradients_(params: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scale all gradients by one factor so that their global 2-norm is at most `max_norm`; return the norm before."""
    grads = [p.grad for p in params if p.grad is not None]
    norm = torch.stack([g.norm() for g in grads]).norm()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # stays on the device: no wait for the GPU
    for g in grads:
        g.mul_(scale)
    return norm
