"""The models that `python -m tests.bench` measures, and batches for them."""

from __future__ import annotations

import torch

from utils.config import KimiConfig
from utils.presets import PRESETS

VOCAB = 8000


def shape(name: str, **changes) -> KimiConfig:
    """nano: the published size. k2: as wide and deep. laptop: the preset. sparse: 32 narrow experts, 4 for a token."""
    wide = dict(
        block_size=256, d_model=512, n_heads=8, n_layers=6, q_lora_rank=192, kv_lora_rank=64, qk_nope_head_dim=64,
        qk_rope_head_dim=32, v_head_dim=64, dense_ff=1536, d_ff=512, n_experts=8, top_k=2,
    )  # fmt: skip
    sparse = dict(n_experts=32, top_k=4, d_ff=256)
    if name == "nano":
        return KimiConfig.nano(**{"vocab_size": VOCAB, **changes})
    fields = {"k2": wide, "sparse": wide | sparse, "laptop": PRESETS["k2"]["laptop"].model}[name]
    return KimiConfig.k2_mini(**{"vocab_size": VOCAB, **fields, **changes})


def tokens(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) inputs and (B, T) targets, drawn evenly."""
    drawn = torch.randint(VOCAB, (batch, length + 1), generator=torch.Generator().manual_seed(0))
    return drawn[:, :-1], drawn[:, 1:]
