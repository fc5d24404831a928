"""What several test files share: a model small enough to run in milliseconds, and tokens for it."""

import torch
import torch.nn.functional as F

from utils.config import KimiConfig
from utils.model import Kimi

TINY = dict(block_size=16, d_model=32, n_heads=4, n_layers=2, d_ff=48, n_experts=4, top_k=2, dropout=0.0)


def tiny_config(vocab_size=50, **changes) -> KimiConfig:
    return KimiConfig.nano(vocab_size, **{**TINY, **changes})


def tiny_model(vocab_size=50, seed=0, **changes) -> Kimi:
    """A model with weights large enough that every part of it shows in the logits."""
    model = Kimi(tiny_config(vocab_size, **changes), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(std=0.2, generator=generator)
    return model


def random_tokens(batch, length, vocab_size=50, seed=0) -> torch.Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def every_expert_on_every_token(experts, x, weights, chosen):
    """The published notebook's form, right but E/K times too expensive: each expert runs on all tokens."""
    y = torch.zeros_like(x)
    for e in range(len(experts.w_up)):
        value, gate = F.linear(x, experts.w_up[e]).chunk(2, dim=-1)
        out = F.linear(value * F.silu(gate), experts.w_down[e])
        y = y + out * (weights * (chosen == e)).sum(-1, keepdim=True)
    return y
