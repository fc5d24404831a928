"""Mixture of experts: a router picks a few experts for each token, and only those compute.

The nano part: `SoftmaxRouter` weighs the chosen experts by a softmax over the K chosen logits (Mixtral's form,
arXiv 2401.04088), `Experts` holds all expert weights in stacked tensors and runs one matmul per expert.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from utils.config import KimiConfig
from utils.swiglu import swiglu

TILE = 64  # rows


class SoftmaxRouter(nn.Module):
    """Chooses K of E experts for each token and how much each counts.

    After a forward pass `load` (E,) says how many tokens went to each expert, and in training `balance_loss` is the
    differentiable load-balancing loss of the Switch Transformer (arXiv 2101.03961, sec. 2.2), 1 at perfect balance.
    """

    def __init__(self, d_model: int, n_experts: int, top_k: int):
        super().__init__()
        self.n_experts, self.top_k = n_experts, top_k
        self.gate = nn.Linear(d_model, n_experts, bias=False)
        self.load = torch.zeros(n_experts, dtype=torch.long)
        self.balance_loss = torch.zeros(())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x (N, D) -> weights (N, K), which sum to 1 for every token, and chosen experts (N, K)."""
        logits = self.gate(x).float()  # (N, E)
        top, chosen = logits.topk(self.top_k, dim=-1)  # (N, K)
        weights = top.softmax(dim=-1)  # over the K experts of one token, never over tokens
        self.load = torch.bincount(chosen.flatten(), minlength=self.n_experts)  # (E,)
        if self.training:
            share = self.load / chosen.numel()  # (E,) sums to 1, carries no gradient
            self.balance_loss = self.n_experts * (share * logits.softmax(dim=-1).mean(dim=0)).sum()
        return weights, chosen


class Experts(nn.Module):
    """E gated feed-forward layers, stored as two stacked tensors, run only on the tokens sent to them."""

    def __init__(self, n_experts: int, d_model: int, d_ff: int):
        super().__init__()
        self.w_up = nn.Parameter(torch.empty(n_experts, 2 * d_ff, d_model))  # value rows, then gate rows
        self.w_down = nn.Parameter(torch.empty(n_experts, d_model, d_ff))
        for weight in (self.w_up, self.w_down):
            nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[-1]))

    def forward(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """x (N, D), weights (N, K), chosen (N, K) -> (N, D), the weighted sum of each token's chosen experts."""
        expert, order = chosen.flatten().sort(stable=True)  # (N*K,) slots, those of expert 0 first
        token = order // chosen.shape[1]  # (N*K,) the token of each slot
        counts = torch.bincount(expert, minlength=len(self.w_up))  # (E,)
        # Each expert's rows are filled up with zeros to a multiple of TILE: matmul libraries prepare a kernel for
        # every new shape, and so meet a few shapes again and again instead of new ones in every step. The few rows
        # of a decoding step stay as they are.
        tile = TILE if len(expert) > TILE * len(counts) else 1
        rooms = (counts + tile - 1) // tile * tile  # (E,)
        shift = (rooms - counts).cumsum(0) - (rooms - counts)  # (E,) zeros before each expert's rows
        row = torch.arange(len(expert), device=x.device) + shift[expert]  # (N*K,)
        sizes = rooms.tolist()
        gathered = x.new_zeros(sum(sizes), x.shape[1]).index_copy(0, row, x.index_select(0, token))
        # unbind, not [e]: its backward stacks the E gradients once instead of E times
        experts = zip(gathered.split(sizes), self.w_up.unbind(), self.w_down.unbind(), strict=True)
        outputs = [F.linear(swiglu(F.linear(group, up)), down) for group, up, down in experts]  # (n_e, D) each
        weighted = torch.cat(outputs).index_select(0, row) * weights.flatten()[order, None]  # (N*K, D)
        return weighted.new_zeros(x.shape).index_add(0, token, weighted)  # (N, D)


class MoE(nn.Module):
    """Router and experts together: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: KimiConfig):
        super().__init__()
        self.router = SoftmaxRouter(config.d_model, config.n_experts, config.top_k)
        self.experts = Experts(config.n_experts, config.d_model, config.d_ff)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(0, 1)  # (B*T, D)
        weights, chosen = self.router(tokens)  # (B*T, K) each
        return self.experts(tokens, weights, chosen).view_as(x)
