"""Causal scaled dot-product attention, softmax(q k^T * scale) v, with the backend that pays (arXiv 1706.03762).

QK-Clip needs each head's largest logit, which fused kernels keep to themselves: on a GPU those logits are made a
second time. On a CPU whole windows are computed by hand, a chunk of queries at a time, where the logits pass by
anyway, in half of the time of torch's fused kernel in bf16.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from utils.device import full_precision

QUERY_CHUNK = 64  # queries whose logits exist at once


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: torch.Tensor | None = None, record=None
) -> torch.Tensor:
    """Causal attention: (B, H, T, d), (B, H, S, d), (B, H, S, d_v) -> (B, H, T, d_v).

    mask: for a single query, (S,) bool, True for the keys that exist; None for all. record: a LayerRecord that takes
    each head's largest logit of the allowed pairs.
    """
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    whole = n_queries == n_keys
    if whole and q.device.type == "cpu":
        with full_precision(q.device):
            mixed, largest = _ChunkedAttention.apply(q, k, v, scale, record is not None)
        if record is not None:
            record.note_logits(largest)
        return mixed
    if record is not None:
        record.note_logits(largest_logits(q, k, scale))
    if n_queries == 1:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[None], scale=scale)
    mask = None if whole else _causal_mask(n_queries, n_keys, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=whole, scale=scale)


def _causal_mask(n_queries: int, n_keys: int, device: torch.device) -> torch.Tensor:
    """(T, S) bool, True where a query may look. The queries are the last T of the S positions."""
    ones = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return ones.tril(diagonal=n_keys - n_queries)


@torch.no_grad()
def largest_logits(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    """Largest input of each head's softmax over the batch and all allowed pairs, in fp32.

    (B, H, T, d), (B, H, S, d) -> (H,); the queries are the last T of the S positions. The logits are made a chunk of
    queries at a time, in the number format of q and k.
    """
    chunks, before = [], k.shape[-2] - q.shape[-2]
    with full_precision(q.device):
        for start, end in _chunks(q.shape[-2]):
            logits = _masked_logits(q[..., start:end, :] * scale, k[..., : before + end, :])  # (B, H, t, before + end)
            chunks.append(logits.amax(dim=(0, 2, 3)))
    return torch.stack(chunks).amax(dim=0).float()


def _chunks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + QUERY_CHUNK, length)) for start in range(0, length, QUERY_CHUNK)]


def _masked_logits(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """(..., t, d) scaled queries, the last t of the positions, and (..., S, d) keys -> (..., t, S)."""
    logits = q @ k.mT
    return logits.masked_fill_(~_causal_mask(*logits.shape[-2:], logits.device), -math.inf)


class _ChunkedAttention(torch.autograd.Function):
    """The textbook's attention and its gradient; of the weights only the allowed half and a chunk's triangle exist."""

    @staticmethod
    def forward(ctx, q, k, v, scale, measure):
        ctx.scale, ctx.shape = scale, q.shape[:2]
        q, k, v = (x.flatten(0, 1) for x in (q * scale, k, v))  # (B * H, T, d), (B * H, T, d), (B * H, T, d_v)
        mixed, kept, largest = torch.empty_like(v), [], []
        for start, end in _chunks(q.shape[1]):
            logits = _masked_logits(q[:, start:end], k[:, :end])  # (B * H, t, end)
            if measure:
                largest.append(logits.amax(dim=(1, 2)))  # (B * H,)
            kept.append(logits.softmax(dim=-1))
            mixed[:, start:end] = kept[-1] @ v[:, :end]
        ctx.save_for_backward(q, k, v, mixed, *kept)
        if not measure:
            return mixed.unflatten(0, ctx.shape), None
        largest = torch.stack(largest).amax(dim=0).unflatten(0, ctx.shape).amax(dim=0).float()  # (H,)
        ctx.mark_non_differentiable(largest)
        return mixed.unflatten(0, ctx.shape), largest

    @staticmethod
    def backward(ctx, grad_mixed, _):
        q, k, v, mixed, *kept = ctx.saved_tensors
        grad_mixed = grad_mixed.flatten(0, 1)  # (B * H, T, d_v)
        # the softmax's gradient is p (g - sum p g), and sum p g = grad . mixed: no sum over the keys is needed
        dot = (grad_mixed * mixed).sum(dim=-1, keepdim=True)  # (B * H, T, 1)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (start, end), weights in zip(_chunks(q.shape[1]), kept, strict=True):
            grad = grad_mixed[:, start:end]  # (B * H, t, d_v)
            grad_v[:, :end].baddbmm_(weights.mT, grad)
            grad_logits = (grad @ v[:, :end].mT).sub_(dot[:, start:end]).mul_(weights)  # (B * H, t, end)
            grad_q[:, start:end] = grad_logits @ k[:, :end]
            grad_k[:, :end].baddbmm_(grad_logits.mT, q[:, start:end])
        grads = (grad_q * ctx.scale, grad_k, grad_v)
        return *(grad.unflatten(0, ctx.shape) for grad in grads), None, None
