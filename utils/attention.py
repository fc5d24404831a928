"""Attention: each position looks back at the positions before it.

The nano part: multi-head attention with a causal mask (Vaswani et al., arXiv 1706.03762, sec. 3.2) and the key/value
cache that lets generation compute each position once.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from utils.config import KimiConfig


class KVCache:
    """What one attention layer remembers of the positions seen so far, in two buffers filled from the front."""

    def __init__(self, capacity: int):
        self.capacity, self.length = capacity, 0
        self.buffers: list[torch.Tensor] = []

    def append(self, *new: torch.Tensor) -> list[torch.Tensor]:
        """Add tensors (..., T, d) of T new positions; return all positions so far, (..., S, d) each.

        Raises ValueError when they do not fit any more.
        """
        end = self.length + new[0].shape[-2]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, {end} were to be kept")
        if not self.buffers:
            self.buffers = [t.new_empty(*t.shape[:-2], self.capacity, t.shape[-1]) for t in new]
        for buffer, tensor in zip(self.buffers, new, strict=True):
            buffer[..., self.length : end, :] = tensor
        self.length = end
        return [buffer[..., :end, :] for buffer in self.buffers]


def causal_mask(n_queries: int, n_keys: int, device: torch.device | None = None) -> torch.Tensor:
    """(T, S) bool, True where a query may look. The queries are the last T of the S positions."""
    ones = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return ones.tril(diagonal=n_keys - n_queries)


class MultiHeadAttention(nn.Module):
    """H heads of scaled dot-product attention, each over its own d = D/H channels; no biases."""

    def __init__(self, config: KimiConfig):
        super().__init__()
        self.n_heads = config.n_heads
        self.w_q, self.w_k, self.w_v, self.w_o = (
            nn.Linear(config.d_model, config.d_model, bias=False) for _ in range(4)
        )

    def forward(self, x: torch.Tensor, cache: KVCache | None = None, return_weights: bool = False):
        """x (B, T, D) -> (B, T, D), and with `return_weights` also the attention weights (B, H, T, S).

        With a cache, x holds the positions that follow the cached ones; S counts both, else S = T.
        """
        q, k, v = (self._split(w(x)) for w in (self.w_q, self.w_k, self.w_v))  # (B, H, T, d) each
        if cache is not None:
            k, v = cache.append(k, v)  # (B, H, S, d)
        if return_weights:
            weights = self.weights(q, k)  # (B, H, T, S)
            return self._merge(weights.to(v.dtype) @ v), weights
        n_queries, n_keys = q.shape[-2], k.shape[-2]
        whole = n_queries == n_keys
        mask = None if whole or n_queries == 1 else causal_mask(n_queries, n_keys, x.device)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=whole)  # (B, H, T, d)
        return self._merge(mixed)

    @staticmethod
    def weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """softmax(q kT / sqrt(d)) under the causal mask: (B, H, T, d), (B, H, S, d) -> (B, H, T, S), in fp32."""
        scores = (q @ k.transpose(-2, -1)).float() / math.sqrt(q.shape[-1])  # (B, H, T, S)
        mask = causal_mask(q.shape[-2], k.shape[-2], q.device)
        return scores.masked_fill(~mask, -math.inf).softmax(dim=-1)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, T, D) -> (B, H, T, d)

    def _merge(self, x: torch.Tensor) -> torch.Tensor:
        return self.w_o(x.transpose(1, 2).flatten(2))  # (B, H, T, d) -> (B, T, D)
