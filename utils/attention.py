"""Attention: each position looks back at the positions before it.

nano has multi-head attention with a causal mask (Vaswani et al., arXiv 1706.03762, sec. 3.2). k2 has multi-head latent
attention (DeepSeek-V2, arXiv 2405.04434, sec. 2.1; DeepSeek-V3, arXiv 2412.19437, sec. 2.1.1): keys and values of all
heads are read from one narrow latent, and position enters through a few rotated channels beside it. A cache lets
generation compute each position once. Both record the largest logit of each head for QK-Clip (see `muonclip`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from utils.config import KimiConfig
from utils.norm import RMSNorm
from utils.sdpa import attend, attend_and_measure, causal_softmax


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
            self.buffers = [t.new_zeros(*t.shape[:-2], self.capacity, t.shape[-1]) for t in new]
        for buffer, tensor in zip(self.buffers, new, strict=True):
            buffer[..., self.length : end, :] = tensor
        self.length = end
        return [buffer[..., :end, :] for buffer in self.buffers]

    def rows_of_next(self, table: torch.Tensor, n: int) -> torch.Tensor:
        """From a table with a row for each position, those of the next n: (capacity, ...) -> (n, ...)."""
        return table[self.length : self.length + n]

    def mask(self, n_queries: int) -> torch.Tensor | None:
        """(S,) bool, which of the positions that `append` returned exist; None where all do."""
        return None


class FixedKVCache(KVCache):
    """A cache whose steps of one position all do the same on the same tensors, so that a CUDA graph can repeat them.

    Such a step writes at `position`, (1,) int64 on the device, and returns the whole buffers; the mask says what of
    them exists. Whoever repeats a step sets `position` before it and `length` after it. Longer pieces are appended as
    in `KVCache`.
    """

    def __init__(self, capacity: int, position: torch.Tensor):
        super().__init__(capacity)
        self.position = position

    def append(self, *new: torch.Tensor) -> list[torch.Tensor]:
        if not self.buffers or new[0].shape[-2] > 1:
            super().append(*new)
            return self.buffers if new[0].shape[-2] == 1 else [b[..., : self.length, :] for b in self.buffers]
        for buffer, tensor in zip(self.buffers, new, strict=True):
            buffer.index_copy_(buffer.ndim - 2, self.position, tensor)
        return self.buffers

    def rows_of_next(self, table: torch.Tensor, n: int) -> torch.Tensor:
        return table.index_select(0, self.position) if n == 1 else super().rows_of_next(table, n)

    def mask(self, n_queries: int) -> torch.Tensor | None:
        if n_queries > 1:
            return None
        return torch.arange(self.capacity, device=self.position.device) <= self.position


class ClippedAttention(nn.Module):
    """Keeps each head's largest logit over the forwards of one training step, and rescales the heads beyond tau."""

    def __init__(self, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.max_logits = torch.full((n_heads,), -math.inf)  # (H,) of the last training step
        self._step_is_over = True

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cache: KVCache | None) -> torch.Tensor:
        """The heads' mixtures (B, H, T, v); in training with a note of each head's largest logit."""
        if cache is not None:
            return attend(q, k, v, self.scale, cache.mask(q.shape[-2]))
        if not self.training:
            return attend(q, k, v, self.scale)
        mixed, largest = attend_and_measure(q, k, v, self.scale)
        self._record(largest)
        return mixed

    def _record(self, largest: torch.Tensor) -> None:
        """The largest logits (H,) of a training forward; those of a step's micro-batches make one maximum."""
        self.max_logits = largest if self._step_is_over else torch.maximum(self.max_logits, largest)
        self._step_is_over = False

    @torch.no_grad()
    def qk_clip_(self, tau: float) -> None:
        """QK-Clip (Kimi K2 report, sec. 2.1 and algorithm 1), after the optimizer's update.

        A head whose largest logit S of this step is beyond tau has its query and key weights rescaled so that all its
        logits shrink by tau / S. The other heads keep every bit, and so does everything that heads share.
        """
        if not self._step_is_over:
            gamma = torch.where(self.max_logits > tau, tau / self.max_logits, 1.0)  # (H,)
            self._scale_logits_(gamma[:, None, None])
        self.end_step_()

    def end_step_(self) -> None:
        """The next training forward begins to look for the largest logits anew; `max_logits` stays until then."""
        self._step_is_over = True

    def _heads(self, weight: torch.Tensor) -> torch.Tensor:
        """The rows of a weight by head, as a view: (H * d, n) -> (H, d, n)."""
        return weight.unflatten(0, (self.n_heads, -1))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, T, H * d) -> (B, H, T, d)

    def _merge(self, x: torch.Tensor) -> torch.Tensor:
        return self.w_o(x.transpose(1, 2).flatten(2))  # (B, H, T, d) -> (B, T, D)


class MultiHeadAttention(ClippedAttention):
    """H heads of scaled dot-product attention, each over its own d = D/H channels; no biases."""

    def __init__(self, config: KimiConfig):
        super().__init__(config.n_heads)
        self.scale = (config.d_model // config.n_heads) ** -0.5
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
            weights = causal_softmax(q @ k.transpose(-2, -1) * self.scale)  # (B, H, T, S)
            return self._merge(weights.to(v.dtype) @ v), weights
        return self._merge(self._attend(q, k, v, cache))

    def _scale_logits_(self, gamma: torch.Tensor) -> None:
        for weight in (self.w_q.weight, self.w_k.weight):
            self._heads(weight).mul_(gamma.sqrt())


def rotary_frequencies(config: KimiConfig) -> torch.Tensor:
    """(R/2,) turns of each channel pair in radians per position, fp32: theta^(-2i/R), and with YaRN the slow ones less.

    YaRN (arXiv 2309.00071, sec. 3.2): pairs that turn more than beta_fast times in the original context stay, those
    that turn less than beta_slow times are slowed down by the factor, with a linear ramp between.
    """
    width = config.qk_rope_head_dim
    pair = torch.arange(width // 2, dtype=torch.float32)
    frequencies = config.rope_theta ** (-2 * pair / width)
    if config.yarn_factor == 1:
        return frequencies

    def pair_with(turns: float) -> float:
        return width * math.log(config.yarn_original / (2 * math.pi * turns)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_with(config.yarn_beta_fast)), 0)
    high = min(math.ceil(pair_with(config.yarn_beta_slow)), width - 1)
    ramp = ((pair - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequencies * (1 - ramp) + frequencies / config.yarn_factor * ramp


def rope(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Turn each channel pair (2i, 2i+1) of position t by angles[t, i] (RoFormer, arXiv 2104.09864, sec. 3.4).

    x (..., T, R), angles (T, R/2) -> (..., T, R). The product of a turned query and a turned key depends on the
    distance of their positions alone.
    """
    turns = torch.polar(torch.ones_like(angles), angles)  # (T, R/2) complex: e^(i angle)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # (..., T, R/2): 2i is real, 2i + 1 imaginary
    return torch.view_as_real(pairs * turns).flatten(-2).type_as(x)


class MultiHeadLatentAttention(ClippedAttention):
    """Attention whose keys and values come from one latent of C channels, plus one rotated key that all heads share.

    Each head's query and key have n channels without and R with rotation, its value v channels. Training and prefill
    expand the latent to keys and values (naive form). A decoding step works on the latents themselves, with the
    expansion moved to the query and the output (absorbed form): the cache holds C + R numbers for each position.
    """

    def __init__(self, config: KimiConfig):
        super().__init__(config.n_heads)
        self.config = config
        self.widths = (config.qk_nope_head_dim, config.qk_rope_head_dim)  # (n, R)
        stretch = 0.1 * math.log(config.yarn_factor) + 1  # YaRN: longer contexts get sharper attention
        self.scale = config.qk_head_dim**-0.5 * stretch**2
        heads, latent = config.n_heads, config.kv_lora_rank
        self.w_q_down = nn.Linear(config.d_model, config.q_lora_rank, bias=False)
        self.q_norm = RMSNorm(config.q_lora_rank)
        self.w_q_up = nn.Linear(config.q_lora_rank, heads * config.qk_head_dim, bias=False)  # a head's rows: n, then R
        self.w_kv_down = nn.Linear(config.d_model, latent + config.qk_rope_head_dim, bias=False)  # rows: C, then R
        self.kv_norm = RMSNorm(latent)
        key_and_value = config.qk_nope_head_dim + config.v_head_dim  # a head's rows: n for its key, then v
        self.w_kv_up = nn.Linear(latent, heads * key_and_value, bias=False)
        self.w_o = nn.Linear(heads * config.v_head_dim, config.d_model, bias=False)
        self._angles: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, cache: KVCache | None = None, return_weights: bool = False):
        """x (B, T, D) -> (B, T, D), and with `return_weights` also the attention weights (B, H, T, S).

        With a cache, x holds the positions that follow the cached ones; S counts both, else S = T.
        """
        n_queries = x.shape[1]
        if cache is None:
            angles = self.angles(n_queries, x.device)  # (T, R/2)
        else:
            angles = cache.rows_of_next(self.angles(cache.capacity, x.device), n_queries)
        q = self._split(self.w_q_up(self.q_norm(self.w_q_down(x))))  # (B, H, T, n + R)
        q_n, q_r = q.split(self.widths, dim=-1)
        q_r = rope(q_r, angles)  # (B, H, T, R)
        latent, k_r = self.w_kv_down(x)[:, None].split((self.config.kv_lora_rank, self.widths[1]), dim=-1)
        key = torch.cat([self.kv_norm(latent), rope(k_r, angles)], dim=-1)  # (B, 1, T, C + R)
        if cache is not None:
            (key,) = cache.append(key)  # (B, 1, S, C + R)
            if n_queries == 1 and not return_weights:
                return self._merge(self.absorbed(q_n, q_r, key, cache.mask(1)))
        q = torch.cat([q_n, q_r], dim=-1)  # (B, H, T, n + R)
        k, v = self.expand(key)  # (B, H, S, n + R), (B, H, S, v)
        if return_weights:
            weights = causal_softmax(q @ k.transpose(-2, -1) * self.scale)  # (B, H, T, S)
            return self._merge(weights.to(v.dtype) @ v), weights
        return self._merge(self._attend(q, k, v, cache))

    def expand(self, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the cache holds, (B, 1, S, C + R), as the heads' keys (B, H, S, n + R) and values (B, H, S, v)."""
        latent, k_r = key.split((self.config.kv_lora_rank, self.widths[1]), dim=-1)
        kv = self._split(self.w_kv_up(latent.squeeze(1)))  # (B, H, S, n + v)
        k_n, v = kv.split((self.widths[0], self.config.v_head_dim), dim=-1)
        return torch.cat([k_n, k_r.expand(-1, self.n_heads, -1, -1)], dim=-1), v

    def absorbed(
        self, q_n: torch.Tensor, q_r: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The heads' mixtures (B, H, T, v), without expanding the keys.

        q_n (B, H, T, n) and q_r (B, H, T, R) are the queries, key (B, 1, S, C + R) is what the cache holds,
        mask (S,) what of it exists (None: all).
        q_n . (W_k c) = (W_k^T q_n) . c, and sum p (W_v c) = W_v sum p c: both matrices move out of the sum over keys.
        """
        w = self._heads(self.w_kv_up.weight)  # (H, n + v, C), used whole: to take W_k or W_v out would copy it
        q_latent = F.pad(q_n, (0, self.config.v_head_dim)) @ w  # (B, H, T, C)
        q = torch.cat([q_latent, q_r], dim=-1)  # (B, H, T, C + R)
        # all heads share the key, so their queries are rows of one product
        logits = q.flatten(1, 2) @ key.squeeze(1).transpose(-2, -1) * self.scale  # (B, H * T, S)
        weights = causal_softmax(logits.unflatten(1, q.shape[1:3]), mask).type_as(key)  # (B, H, T, S)
        mixed = weights.flatten(1, 2) @ key.squeeze(1)[..., : self.config.kv_lora_rank]  # (B, H * T, C)
        return (mixed.unflatten(1, q.shape[1:3]) @ w.mT)[..., self.widths[0] :]  # (B, H, T, v)

    def angles(self, length: int, device: torch.device) -> torch.Tensor:
        """(length, R/2) angles of the positions from 0, made once."""
        if self._angles is None or len(self._angles) < length or self._angles.device != device:
            frequencies = rotary_frequencies(self.config).to(device)
            positions = torch.arange(max(length, self.config.block_size), device=device)
            self._angles = torch.outer(positions.float(), frequencies)
        return self._angles[:length]

    def _scale_logits_(self, gamma: torch.Tensor) -> None:
        # A logit is q_n.k_n + q_r.k_r. The first product gets sqrt(gamma) from either side; the second all of it from
        # the query, for the rotated key belongs to every head.
        q_n, q_r = self._heads(self.w_q_up.weight).split(self.widths, dim=1)
        k_n = self._heads(self.w_kv_up.weight)[:, : self.widths[0]]
        for part, factor in ((q_n, gamma.sqrt()), (q_r, gamma), (k_n, gamma.sqrt())):
            part.mul_(factor)
