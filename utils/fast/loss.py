"""Cross-entropy of a language model without ever holding the logits of a whole batch.

Logits are the largest tensor of a small model: 2,048 tokens times 8,000 words in fp32 are 64 MB, and softmax and its
gradient walk over them several times. Cut into chunks of tokens they stay in the processor's cache, and since the
gradient of the cross-entropy is known in closed form (softmax minus one-hot) it is taken in the same pass.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from utils.device import compute_dtype, full_precision

CHUNK = 256  # tokens: 256 x 8,000 logits in fp32 are 8 MB
IGNORED = -100  # torch's mark of a target that does not count


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, dtype, learning):
        h, w = hidden.to(dtype), weight.to(dtype)  # (N, D), (V, D)
        loss = hidden.new_zeros((), dtype=torch.float32)
        if learning:
            grad_hidden, grad_weight = torch.empty_like(h), torch.zeros_like(weight)
        ignored = (targets == IGNORED)[:, None]  # (N, 1)
        n_counted = len(targets) - ignored.sum()  # stays on the device: no wait for the GPU
        for start in range(0, len(h), CHUNK):
            part = slice(start, start + CHUNK)
            logits = F.linear(h[part], w).float()  # (n, V)
            log_sum = logits.logsumexp(dim=-1, keepdim=True)  # (n, 1)
            out = ignored[part]  # (n, 1)
            target = targets[part, None].masked_fill(out, 0)  # (n, 1)
            loss += (log_sum - logits.gather(1, target)).masked_fill_(out, 0).sum()
            if learning:
                grad = logits.sub_(log_sum.masked_fill_(out, math.inf)).exp_()  # (n, V): softmax, 0 where ignored
                grad.scatter_add_(1, target, out.float().sub_(1))  # minus one-hot
                grad = grad.to(dtype)
                grad_hidden[part] = grad @ w
                grad_weight += (grad.T @ h[part]).to(weight.dtype)
        if learning:
            ctx.save_for_backward(grad_hidden, grad_weight, n_counted)
            ctx.hidden_dtype = hidden.dtype
        return loss / n_counted

    @staticmethod
    def backward(ctx, grad_loss):
        grad_hidden, grad_weight, n_counted = ctx.saved_tensors
        scale = grad_loss / n_counted
        # in place, for a copy of the largest gradient would be made where memory is scarcest
        return grad_hidden.mul_(scale).to(ctx.hidden_dtype), grad_weight.mul_(scale), None, None, None


def cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the logits hidden @ weight.T in nats, and its gradients, chunk by chunk.

    hidden (..., D), weight (V, D), targets (...) int64 -> scalar, in fp32. A target of -100 does not count, and the
    mean is over the others.
    """
    dtype = compute_dtype(hidden)
    with full_precision(hidden.device):
        hidden, targets = hidden.flatten(0, -2), targets.flatten()
        return _ChunkedCrossEntropy.apply(hidden, weight, targets, dtype, torch.is_grad_enabled())
