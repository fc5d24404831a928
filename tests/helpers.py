"""What several test files share: a model small enough to run in milliseconds, and tokens for it."""

import torch

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
