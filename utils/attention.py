"""Attention: each position looks back at the positions before it.

nano has multi-head attention with a causal mask (Vaswani et al., arXiv 1706.03762, sec. 3.2). k2 has multi-head latent
attention (DeepSeek-V2, arXiv 2405.04434, sec. 2.1; DeepSeek-V3, arXiv 2412.19437, sec. 2.1.1): keys and values of all
heads are read from one narrow latent, and position enters through a few rotated channels beside it (see `positions`).
A cache lets generation compute each position once. Both can be clipped head by head (QK-Clip, see `muonclip`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from utils.config import K2Config, NanoConfig
from utils.norm import RMSNorm
from utils.positions import rope
from utils.record import LayerRecord


class KVCache:
    """What an attention layer keeps of the positions so far, in buffers filled from the front."""

    def __init__(self, capacity: int):
        self.capacity, self.length = capacity, 0
        self.buffers: list[torch.Tensor] = []

    def next_positions(self, n: int, device: torch.device) -> torch.Tensor:
        """(n,) int64, the positions of the next n tokens."""
        return torch.arange(self.length, self.length + n, device=device)

    def append(self, *new: torch.Tensor) -> list[torch.Tensor]:
        """Add tensors (..., T, d) of T new positions; return all S so far, (..., S, d) each.

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

    def mask(self, n_queries: int) -> torch.Tensor | None:
        """(S,) bool, which of the positions that `append` returned exist; None where all do."""
        return None


def causal_mask(n_queries: int, n_keys: int, device: torch.device | None = None) -> torch.Tensor:
    """(T, S) bool, True where a query may look. The queries are the last T of the S positions."""
    ones = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return ones.tril(diagonal=n_keys - n_queries)


def hide_future(logits: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Logits (B, H, T, S) with -inf where a query may not look.

    mask: for a single query, (S,) bool, True for the keys that exist; None for all.
    """
    if logits.shape[-2] > 1:  # the last position looks everywhere
        mask = causal_mask(*logits.shape[-2:], logits.device)
    return logits if mask is None else logits.masked_fill(~mask, -math.inf)


def causal_softmax(logits: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Attention weights (B, H, T, S), in fp32, from logits that have their scale; mask as above."""
    return hide_future(logits, mask).softmax(dim=-1, dtype=torch.float32)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: torch.Tensor | None = None,
    record: LayerRecord | None = None,
) -> torch.Tensor:  # fmt: skip
    """Causal attention: (B, H, T, d), (B, H, S, d), (B, H, S, d_v) -> mixtures (B, H, T, d_v).

    mask: as for `hide_future`. record: takes each head's largest logit of the allowed pairs.
    """
    logits = hide_future(q @ k.mT * scale, mask)  # (B, H, T, S)
    if record is not None:
        record.note_logits(logits.detach().amax(dim=(0, 2, 3)).float())  # (H,)
    return logits.softmax(dim=-1, dtype=torch.float32).type_as(v) @ v


def split_heads(x: torch.Tensor, n_heads: int) -> torch.Tensor:
    """(B, T, H * d) -> (B, H, T, d)."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    """(B, H, T, d) -> (B, T, H * d)."""
    return x.transpose(1, 2).flatten(2)


def rows_of_heads(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """A matrix (H * d, D) as the heads' own matrices (H, d, D), in the same memory."""
    return weight.unflatten(0, (n_heads, -1))


def clip_factors(max_logits: torch.Tensor, tau: float) -> torch.Tensor:
    """(H, 1, 1), what QK-Clip multiplies each head's logits by: tau / S for a largest logit S beyond tau, else 1."""
    return torch.where(max_logits > tau, tau / max_logits, 1.0)[:, None, None]


class MultiHeadAttention(nn.Module):
    """H heads of scaled dot-product attention, each over its own d = D/H channels; no biases."""

    def __init__(self, config: NanoConfig):
        super().__init__()
        self.n_heads = config.n_heads
        self.scale = config.qk_head_dim**-0.5
        self.w_q = nn.Linear(config.d_model, config.d_model, bias=False)
        self.w_k = nn.Linear(config.d_model, config.d_model, bias=False)
        self.w_v = nn.Linear(config.d_model, config.d_model, bias=False)
        self.w_o = nn.Linear(config.d_model, config.d_model, bias=False)
        self.attend = attend

    def forward(
        self, x: torch.Tensor, angles: torch.Tensor | None = None, cache: KVCache | None = None,
        record: LayerRecord | None = None, return_weights: bool = False,
    ):  # fmt: skip
        """x (B, T, D) -> (B, T, D), and with `return_weights` also weights (B, H, T, S).

        With a cache, x holds the positions that follow the cached ones; S counts both, else S = T.
        angles are not used: x knows its positions already.
        """
        q = split_heads(self.w_q(x), self.n_heads)  # (B, H, T, d)
        k = split_heads(self.w_k(x), self.n_heads)  # (B, H, T, d)
        v = split_heads(self.w_v(x), self.n_heads)  # (B, H, T, d)
        mask = None
        if cache is not None:
            k, v = cache.append(k, v)  # (B, H, S, d)
            mask, record = cache.mask(x.shape[1]), None  # the logits of generation are not recorded
        if return_weights:
            weights = causal_softmax(q @ k.mT * self.scale)  # (B, H, T, S)
            return self.w_o(merge_heads(weights.type_as(v) @ v)), weights
        return self.w_o(merge_heads(self.attend(q, k, v, self.scale, mask, record)))

    @torch.no_grad()
    def qk_clip_(self, max_logits: torch.Tensor, tau: float) -> None:
        """QK-Clip (Kimi K2 report, sec. 2.1 and algorithm 1), after the optimizer's update.

        A head whose largest logit, of max_logits (H,), is beyond tau gets smaller query and key
        weights, so that all its logits shrink by tau / S. The other heads keep every bit.
        """
        gamma = clip_factors(max_logits, tau)  # (H, 1, 1)
        rows_of_heads(self.w_q.weight, self.n_heads).mul_(gamma.sqrt())
        rows_of_heads(self.w_k.weight, self.n_heads).mul_(gamma.sqrt())


class MultiHeadLatentAttention(nn.Module):
    """Attention whose keys and values come from one latent of C channels, beside one rotated key.

    A head's query and key have n channels without and R with rotation, its value v; the R of the
    key are the same for all heads. Queries have their own latent, unless q_lora_rank is 0. Training
    and prefill expand the latent to keys and values (naive form). A decoding step works on latents,
    the expansion moved to query and output (absorbed form): the cache has C + R numbers a position.
    """

    def __init__(self, config: K2Config):
        super().__init__()
        self.config, self.n_heads = config, config.n_heads
        stretch = 0.1 * math.log(config.yarn_factor) + 1  # YaRN: longer contexts get sharper attention
        self.scale = config.qk_head_dim**-0.5 * stretch**2
        heads, latent = config.n_heads, config.kv_lora_rank
        q_latent = config.q_lora_rank or config.d_model  # with a q_lora_rank of 0, the queries are read from x itself
        self.w_q_down = nn.Linear(config.d_model, q_latent, bias=False) if config.q_lora_rank else nn.Identity()
        self.q_norm = RMSNorm(q_latent) if config.q_lora_rank else nn.Identity()
        self.w_q_up = nn.Linear(q_latent, heads * config.qk_head_dim, bias=False)  # a head's rows: n, then R
        self.w_kv_down = nn.Linear(config.d_model, latent + config.qk_rope_head_dim, bias=False)  # rows: C, then R
        self.kv_norm = RMSNorm(latent)
        key_and_value = config.qk_nope_head_dim + config.v_head_dim  # a head's rows: n for its key, then v
        self.w_kv_up = nn.Linear(latent, heads * key_and_value, bias=False)
        self.w_o = nn.Linear(heads * config.v_head_dim, config.d_model, bias=False)
        self.attend = attend

    def forward(
        self, x: torch.Tensor, angles: torch.Tensor, cache: KVCache | None = None,
        record: LayerRecord | None = None, return_weights: bool = False,
    ):  # fmt: skip
        """x (B, T, D), angles (T, R/2) of its positions -> (B, T, D).

        With a cache, x holds the positions that follow the cached ones; S counts both, else S = T.
        With `return_weights` also the weights (B, H, T, S).
        """
        config = self.config
        q = split_heads(self.w_q_up(self.q_norm(self.w_q_down(x))), self.n_heads)  # (B, H, T, n + R)
        q_n, q_r = q.split((config.qk_nope_head_dim, config.qk_rope_head_dim), dim=-1)
        q_r = rope(q_r, angles)  # (B, H, T, R)
        latent, k_r = self.w_kv_down(x)[:, None].split((config.kv_lora_rank, config.qk_rope_head_dim), dim=-1)
        key = torch.cat([self.kv_norm(latent), rope(k_r, angles)], dim=-1)  # (B, 1, T, C + R)
        mask = None
        if cache is not None:
            (key,) = cache.append(key)  # (B, 1, S, C + R)
            mask, record = cache.mask(x.shape[1]), None  # the logits of generation are not recorded
            if x.shape[1] == 1 and not return_weights:
                return self.w_o(merge_heads(self.absorbed(q_n, q_r, key, mask)))
        q = torch.cat([q_n, q_r], dim=-1)  # (B, H, T, n + R)
        k, v = self.expand(key)  # (B, H, S, n + R), (B, H, S, v)
        if return_weights:
            weights = causal_softmax(q @ k.mT * self.scale)  # (B, H, T, S)
            return self.w_o(merge_heads(weights.type_as(v) @ v)), weights
        return self.w_o(merge_heads(self.attend(q, k, v, self.scale, mask, record)))

    def expand(self, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is cached, (B, 1, S, C + R) -> keys (B, H, S, n + R) and values (B, H, S, v)."""
        config = self.config
        latent, k_r = key.split((config.kv_lora_rank, config.qk_rope_head_dim), dim=-1)
        kv = split_heads(self.w_kv_up(latent.squeeze(1)), self.n_heads)  # (B, H, S, n + v)
        k_n, v = kv.split((config.qk_nope_head_dim, config.v_head_dim), dim=-1)
        return torch.cat([k_n, k_r.expand(-1, self.n_heads, -1, -1)], dim=-1), v

    def absorbed(
        self, q_n: torch.Tensor, q_r: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The heads' mixtures (B, H, T, v), without expanding the keys.

        q_n (B, H, T, n) and q_r (B, H, T, R) are the queries, key (B, 1, S, C + R) is what the
        cache holds, mask (S,) what of it exists (None: all). Both matrices move out of the sum over
        keys: q_n . (W_k c) = (W_k^T q_n) . c, and sum p (W_v c) = W_v sum p c.
        """
        config = self.config
        w = rows_of_heads(self.w_kv_up.weight, self.n_heads)  # (H, n + v, C), whole: taking W_k or W_v out copies it
        q_latent = F.pad(q_n, (0, config.v_head_dim)) @ w  # (B, H, T, C)
        q = torch.cat([q_latent, q_r], dim=-1)  # (B, H, T, C + R)
        # all heads share the key, so their queries are rows of one product
        logits = q.flatten(1, 2) @ key.squeeze(1).mT * self.scale  # (B, H * T, S)
        weights = causal_softmax(logits.unflatten(1, q.shape[1:3]), mask).type_as(key)  # (B, H, T, S)
        mixed = weights.flatten(1, 2) @ key.squeeze(1)[..., : config.kv_lora_rank]  # (B, H * T, C)
        return (mixed.unflatten(1, q.shape[1:3]) @ w.mT)[..., config.qk_nope_head_dim :]  # (B, H, T, v)

    @torch.no_grad()
    def qk_clip_(self, max_logits: torch.Tensor, tau: float) -> None:
        """QK-Clip (Kimi K2 report, sec. 2.1, algorithm 1) after the optimizer's update.

        A logit is q_n.k_n + q_r.k_r; max_logits (H,). The first product gets sqrt(gamma) from
        either side; the second all of gamma from the query, for the rotated key belongs to every
        head. What heads share keeps every bit.
        """
        gamma = clip_factors(max_logits, tau)  # (H, 1, 1)
        nope, rotated = self.config.qk_nope_head_dim, self.config.qk_rope_head_dim
        q_n, q_r = rows_of_heads(self.w_q_up.weight, self.n_heads).split((nope, rotated), dim=1)
        k_n = rows_of_heads(self.w_kv_up.weight, self.n_heads)[:, :nope]
        q_n.mul_(gamma.sqrt())
        q_r.mul_(gamma)
        k_n.mul_(gamma.sqrt())
