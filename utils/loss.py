"""Cross-entropy: how surprised the model is by the tokens that really come next."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the logits hidden @ weight.T in nats, in fp32.

    hidden (..., D), weight (V, D), targets (...) int64 -> scalar. A target of -100 does not count, and the mean is over
    the others.
    """
    logits = F.linear(hidden, weight).flatten(0, -2)  # (N, V)
    return F.cross_entropy(logits.float(), targets.flatten())
