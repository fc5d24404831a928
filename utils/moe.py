"""Mixture of experts: a router picks a few experts for each token, and only those compute.

nano has the `SoftmaxRouter`, which weighs the chosen experts by a softmax over the K chosen logits (Mixtral's form,
arXiv 2401.04088) and keeps them busy by a loss. k2 has the `SigmoidRouter`, which keeps them busy by a bias
(DeepSeek-V3, arXiv 2412.19437, sec. 2.1.2), and an expert that every token visits. `Experts` holds all expert weights
in stacked tensors.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from utils.config import K2Config, KimiConfig
from utils.device import full_precision
from utils.record import LayerRecord, count_choices
from utils.swiglu import FeedForward, swiglu

SMALLEST = torch.finfo(torch.float32).tiny  # what a sum of scores is at least: tiny scores still make whole weights


class SoftmaxRouter(nn.Module):
    """Chooses K of E experts for each token and weighs them by a softmax over their K logits.

    Where the configuration weighs a balance loss, the record gets that of the Switch Transformer
    (arXiv 2101.03961, sec. 2.2), 1 at perfect balance.
    """

    def __init__(self, config: KimiConfig):
        super().__init__()
        self.config = config
        self.gate = nn.Linear(config.d_model, config.n_experts, bias=False)

    def forward(self, x: torch.Tensor, record: LayerRecord | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """x (..., D) -> weights (..., K), which sum to 1 for a token, and experts (..., K)."""
        logits = self.gate(x).float()  # (..., E)
        top, chosen = logits.topk(self.config.top_k, dim=-1)  # (..., K)
        weights = top.softmax(dim=-1)  # over the K experts of one token, never over tokens
        if record is not None:
            record.note_choice(chosen, self.config.n_experts)
            if self.config.balance_coef:
                record.balance_loss = self.balance_loss(logits, chosen)
        return weights, chosen

    def balance_loss(self, logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """E times the sum over experts of the share of the choices times the mean probability."""
        share = count_choices(chosen, self.config.n_experts) / chosen.numel()  # (E,) sums to 1, carries no gradient
        mean = logits.softmax(dim=-1).flatten(0, -2).mean(dim=0)  # (E,)
        return self.config.n_experts * (share * mean).sum()


class Fp32Buffers(nn.Module):
    """A module whose buffers move with it and stay fp32 when it is cast: in bf16, steps of 0.001 would vanish."""

    def _apply(self, fn, recurse=True):
        """What `.to(bfloat16)` and its kind call."""
        buffers = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in buffers.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self


class SigmoidRouter(Fp32Buffers):
    """Chooses K of E experts by score + bias and weighs them by the scores alone, all in fp32.

    The bias carries no gradient: `update_bias_` moves it once per optimizer step, up for experts
    that got fewer tokens than the mean and down for the others (arXiv 2408.15664). Where experts
    are in groups, a token first keeps the groups whose two best biased scores are largest. Where
    the configuration weighs a balance loss, the record gets the sequence-level loss of DeepSeek-V3
    (arXiv 2412.19437, sec. 2.1.2), 1 at perfect balance.
    """

    def __init__(self, config: K2Config):
        super().__init__()
        self.config = config
        self.gate = nn.Linear(config.d_model, config.n_experts, bias=False)
        self.register_buffer("expert_bias", torch.zeros(config.n_experts))

    def forward(self, x: torch.Tensor, record: LayerRecord | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """x (..., T, D) -> weights (..., T, K), whose sum is the scaling factor, and experts."""
        with full_precision(x.device):
            scores = F.linear(x.float(), self.gate.weight.float()).sigmoid()  # (..., T, E)
        chosen = self.choose(scores.detach() + self.expert_bias)  # (..., T, K)
        weights = scores.gather(-1, chosen)  # (..., T, K)
        total = weights.sum(dim=-1, keepdim=True).clamp(min=SMALLEST)  # (..., T, 1)
        weights = self.config.routed_scaling_factor * weights / total
        if record is not None:
            record.note_choice(chosen, self.config.n_experts)
            if self.config.balance_coef:
                record.balance_loss = self.balance_loss(scores, chosen)
        return weights, chosen

    def choose(self, biased: torch.Tensor) -> torch.Tensor:
        """Biased scores (..., T, E) -> chosen experts (..., T, K)."""
        config = self.config
        if config.n_group > 1:  # DeepSeek-V3; Kimi K2 has one group
            biased = only_best_groups(biased, config.n_group, config.topk_group)
        return biased.topk(config.top_k, dim=-1).indices

    def balance_loss(self, scores: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Mean over sequences of sum_e f_e P_e: E times its share of choices, share of scores."""
        counts = torch.zeros_like(scores).scatter(-1, chosen, 1.0).mean(dim=-2)  # (..., E)
        share = scores / scores.sum(dim=-1, keepdim=True).clamp(min=SMALLEST)  # (..., T, E)
        relative = self.config.n_experts / self.config.top_k * counts  # (..., E) 1 where all have the same
        return (relative * share.mean(dim=-2)).sum(dim=-1).mean()

    @torch.no_grad()
    def update_bias_(self, load: torch.Tensor) -> None:
        """Move the bias by the load (E,) of one step: how many tokens went to each expert."""
        load = load.to(self.expert_bias)  # (E,)
        self.expert_bias += self.config.bias_rate * (load.mean() - load).sign()


def only_best_groups(biased: torch.Tensor, n_group: int, topk_group: int) -> torch.Tensor:
    """Biased scores (..., T, E) with -inf for every expert that is outside of the token's best groups."""
    groups = biased.unflatten(-1, (n_group, -1))  # (..., T, groups, E / groups)
    best = groups.topk(2, dim=-1).values.sum(dim=-1).topk(topk_group, dim=-1).indices  # (..., T, kept)
    kept = torch.zeros(groups.shape[:-1], dtype=torch.bool, device=biased.device).scatter(-1, best, True)
    # -inf, not 0: biased scores may be negative
    return groups.masked_fill(~kept[..., None], -math.inf).flatten(-2)  # (..., T, E)


def run_experts(
    x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, w_up: torch.Tensor, w_down: torch.Tensor
) -> torch.Tensor:
    """Each token's weighted sum of experts: x (N, D), weights and chosen (N, K) -> (N, D).

    w_up (E, 2, F, D), value and gate, and w_down (E, D, F) are the experts' matrices. Each expert
    runs once, on the tokens that chose it and no others.
    """
    y = torch.zeros_like(x)  # (N, D)
    for e in range(len(w_up)):
        token, slot = (chosen == e).nonzero(as_tuple=True)  # (n,) each: who chose expert e, and as which of its K
        hidden = swiglu(F.linear(x[token], w_up[e].flatten(0, 1)))  # (n, F)
        y[token] += weights[token, slot, None] * F.linear(hidden, w_down[e])  # (n, D)
    return y


class Experts(nn.Module):
    """E gated feed-forward layers in two stacked tensors, run only on the tokens sent to them."""

    def __init__(self, config: KimiConfig):
        super().__init__()
        self.w_up = nn.Parameter(torch.empty(config.n_experts, 2, config.d_ff, config.d_model))  # value and gate
        self.w_down = nn.Parameter(torch.empty(config.n_experts, config.d_model, config.d_ff))
        for weight in (self.w_up, self.w_down):
            nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[-1]))
        self.run_experts = run_experts

    def forward(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """x (N, D), weights and chosen (N, K) -> (N, D), each token's weighted sum of experts."""
        return self.run_experts(x, weights, chosen, self.w_up, self.w_down)


class MoE(nn.Module):
    """Router, experts and in k2 the shared expert together: (B, T, D) -> (B, T, D)."""

    def __init__(self, router: nn.Module, experts: Experts, shared: FeedForward | None = None):
        super().__init__()
        self.router = router
        self.experts = experts
        self.shared = shared

    def forward(self, x: torch.Tensor, record: LayerRecord | None = None) -> torch.Tensor:
        weights, chosen = self.router(x, record)  # (B, T, K) each
        y = self.experts(x.flatten(0, 1), weights.flatten(0, 1), chosen.flatten(0, 1)).view_as(x)  # (B, T, D)
        return y if self.shared is None else y + self.shared(x)
