"""Mixture of experts: a router picks a few experts for each token, and only those compute.

nano has the `SoftmaxRouter`, which weighs the chosen experts by a softmax over the K chosen logits (Mixtral's form,
arXiv 2401.04088) and keeps them busy by a loss. k2 has the `SigmoidRouter`, which keeps them busy by a bias
(DeepSeek-V3, arXiv 2412.19437, sec. 2.1.2), and an expert that every token visits. `Experts` holds all expert weights
in stacked tensors and runs one matmul per expert.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from utils.config import KimiConfig
from utils.grouped import LOOP_TILE, count_choices, gather, group_by_expert, grouped_linear, pick_form
from utils.swiglu import FeedForward, swiglu


class SoftmaxRouter(nn.Module):
    """Chooses K of E experts for each token and how much each counts.

    After a forward pass `chosen` holds the choice, `load` (E,) says how many tokens went to each expert, and in
    training `balance_loss` is the differentiable load-balancing loss of the Switch Transformer (arXiv 2101.03961,
    sec. 2.2), 1 at perfect balance.
    """

    def __init__(self, d_model: int, n_experts: int, top_k: int):
        super().__init__()
        self.n_experts, self.top_k = n_experts, top_k
        self.gate = nn.Linear(d_model, n_experts, bias=False)
        self.chosen = torch.zeros(0, top_k, dtype=torch.long)
        self.load = torch.zeros(n_experts, dtype=torch.long)
        self.balance_loss = torch.zeros(())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x (..., D) -> weights (..., K), which sum to 1 for every token, and chosen experts (..., K)."""
        logits = self.gate(x).float()  # (..., E)
        top, chosen = logits.topk(self.top_k, dim=-1)  # (..., K)
        weights = top.softmax(dim=-1)  # over the K experts of one token, never over tokens
        self.chosen, self.load = chosen, count_choices(chosen, self.n_experts)  # (..., K), (E,)
        if self.training:
            share = self.load / chosen.numel()  # (E,) sums to 1, carries no gradient
            mean = logits.softmax(dim=-1).flatten(0, -2).mean(dim=0)  # (E,)
            self.balance_loss = self.n_experts * (share * mean).sum()
        return weights, chosen


class SigmoidRouter(nn.Module):
    """Chooses K of E experts by score + bias and weighs them by the scores alone, all in fp32.

    The bias carries no gradient: `update_bias_` moves it once per optimizer step, up for experts that got fewer tokens
    than the mean and down for the others (arXiv 2408.15664). Where experts are in groups, a token first keeps the
    groups whose two best biased scores are largest. After a forward pass `chosen` holds the choice, `load` (E,) says
    how many tokens went to each expert, and in training `balance_loss` is the sequence-level loss of DeepSeek-V3
    (sec. 2.1.2), 1 at perfect balance.
    """

    def __init__(self, config: KimiConfig):
        super().__init__()
        self.n_experts, self.top_k, self.scaling = config.n_experts, config.top_k, config.routed_scaling_factor
        self.n_group, self.topk_group, self.bias_rate = config.n_group, config.topk_group, config.bias_rate
        self.gate = nn.Linear(config.d_model, config.n_experts, bias=False)
        self.register_buffer("expert_bias", torch.zeros(config.n_experts))
        self.chosen = torch.zeros(0, config.top_k, dtype=torch.long)
        self.load = torch.zeros(config.n_experts, dtype=torch.long)
        self.step_load = torch.zeros(config.n_experts, dtype=torch.long)  # since the last update of the bias
        self.balance_loss = torch.zeros(())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x (..., T, D) -> weights, which sum to `routed_scaling_factor`, and chosen experts, (..., T, K) each."""
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(x.float(), self.gate.weight.float()).sigmoid()  # (..., T, E)
        chosen = self._choose(scores.detach() + self.expert_bias)  # (..., T, K)
        weights = scores.gather(-1, chosen)
        weights = self.scaling * weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        self.chosen, self.load = chosen, count_choices(chosen, self.n_experts)  # (..., K), (E,)
        if self.training:
            self.step_load = self.step_load.to(self.load.device) + self.load
            self.balance_loss = self._balance_loss(scores, chosen)
        return weights, chosen

    def _choose(self, biased: torch.Tensor) -> torch.Tensor:
        """Biased scores (..., T, E) -> chosen experts (..., T, K)."""
        if self.n_group > 1:
            groups = biased.unflatten(-1, (self.n_group, -1))  # (..., T, groups, E / groups)
            best = groups.topk(2, dim=-1).values.sum(dim=-1).topk(self.topk_group, dim=-1).indices
            kept = torch.zeros(groups.shape[:-1], dtype=torch.bool, device=biased.device).scatter(-1, best, True)
            # -inf, not 0: biased scores may be negative
            biased = groups.masked_fill(~kept[..., None], -math.inf).flatten(-2)  # (..., T, E)
        return biased.topk(self.top_k, dim=-1).indices

    def _balance_loss(self, scores: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """The mean over sequences of sum_i f_i P_i: an expert's share of the choices, times E, and of the scores."""
        counts = torch.zeros_like(scores).scatter(-1, chosen, 1.0).mean(dim=-2)  # (..., E)
        share = scores / scores.sum(dim=-1, keepdim=True)  # (..., T, E)
        return (self.n_experts / self.top_k * counts * share.mean(dim=-2)).sum(dim=-1).mean()

    @torch.no_grad()
    def update_bias_(self) -> None:
        """Move the bias by the loads of all training forwards since the last update, and begin to count anew."""
        load = self.step_load.to(self.expert_bias)  # (E,)
        self.expert_bias += self.bias_rate * (load.mean() - load).sign()
        self.step_load = torch.zeros_like(self.step_load)

    def _apply(self, fn, recurse=True):
        """`.to(bfloat16)` and its kind: the bias moves along but stays fp32, for steps of 0.001 vanish in bf16."""
        bias = self.expert_bias
        super()._apply(fn, recurse)
        if self.expert_bias.dtype != bias.dtype:
            self.expert_bias = bias.to(self.expert_bias.device)
        return self


class Experts(nn.Module):
    """E gated feed-forward layers, stored as two stacked tensors, run only on the tokens sent to them."""

    def __init__(self, n_experts: int, d_model: int, d_ff: int):
        super().__init__()
        self.w_up = nn.Parameter(torch.empty(n_experts, 2, d_ff, d_model))  # value and gate of each
        self.w_down = nn.Parameter(torch.empty(n_experts, d_model, d_ff))
        for weight in (self.w_up, self.w_down):
            nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[-1]))

    def forward(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """x (N, D), weights (N, K), chosen (N, K) -> (N, D), the weighted sum of each token's chosen experts."""
        if len(x) == 1 and x.device.type == "cpu":
            return self._one_token(x, weights, chosen)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        # In bf16, a CPU's oneDNN prepares a kernel for every new shape: multiples of a tile are few, again and again.
        loop_tile = 1 if dtype == torch.float32 else LOOP_TILE
        groups = group_by_expert(chosen, len(self.w_up), pick_form(x, dtype), loop_tile)
        rows = gather(x.to(dtype), groups)  # (M, D), those of expert 0 first
        hidden = swiglu(grouped_linear(rows, self.w_up.flatten(1, 2), groups))  # (M, F)
        rows = grouped_linear(hidden, self.w_down, groups)  # (M, D)
        outputs = rows.index_select(0, groups.row).unflatten(0, chosen.shape)  # (N, K, D)
        return (outputs * weights[..., None].type_as(outputs)).sum(dim=1).type_as(x)  # (N, D)

    def _one_token(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """The same for N = 1, a step of generation: nothing to group."""
        outputs = [self._expert(x, e) for e in chosen[0].tolist()]
        return (torch.cat(outputs) * weights.mT.type_as(outputs[0])).sum(dim=0, keepdim=True).type_as(x)  # (1, D)

    def _expert(self, x: torch.Tensor, e: int) -> torch.Tensor:
        return F.linear(swiglu(F.linear(x, self.w_up[e].flatten(0, 1))), self.w_down[e])  # (N, D)


class MoE(nn.Module):
    """Router, experts and in k2 the shared expert together: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: KimiConfig):
        super().__init__()
        is_k2 = config.architecture == "k2"
        router = SigmoidRouter(config) if is_k2 else SoftmaxRouter(config.d_model, config.n_experts, config.top_k)
        self.router = router
        self.experts = Experts(config.n_experts, config.d_model, config.d_ff)
        n_shared = config.n_shared_experts if is_k2 else 0
        self.shared = FeedForward(config.d_model, n_shared * config.d_ff) if n_shared else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router(x)  # (B, T, K) each
        y = self.experts(x.flatten(0, 1), weights.flatten(0, 1), chosen.flatten(0, 1)).view_as(x)
        return y if self.shared is None else y + self.shared(x)
