"""Sizes of the whole job: how many stories, which words, which model, which run."""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import TrainConfig


@dataclass(frozen=True)
class Preset:
    """One size of the whole job: how many stories, which words, which model, which run."""

    stories: int  # stories to train on, at most
    min_count: int  # words rarer than this in the training stories become <unk>
    model: dict  # fields of KimiConfig other than vocab_size
    training: TrainConfig


ADAMW = dict(optimizer="adamw", warmup=0.05, decay=0.95)  # how nano was trained before there was MuonClip
NANO = {
    # Seconds on any machine: the tests and a first look.
    "smoke": Preset(
        stories=2_000,
        min_count=1,
        model=dict(block_size=64, d_model=64, n_heads=4, n_layers=2, d_ff=128, dropout=0.0),
        training=TrainConfig(
            steps=100, batch_size=8, block_size=64, lr=3e-3, eval_interval=50, eval_batches=2, **ADAMW
        ),
    ),
    # Minutes on two CPU cores: the main job of the README.
    "laptop": Preset(
        stories=20_000,
        min_count=3,
        model=dict(block_size=128, d_model=256, n_heads=4, n_layers=2, d_ff=256, dropout=0.0),
        training=TrainConfig(steps=2500, batch_size=8, block_size=128, lr=2e-3, **ADAMW),
    ),
    # The published size, for a Colab GPU. The rates of both are the best of five in runs of 400 steps on real stories.
    "colab": Preset(stories=100_000, min_count=3, model={}, training=TrainConfig(lr=1e-3, **ADAMW)),
}

K2 = {
    "smoke": Preset(
        stories=2_000,
        min_count=1,
        model=dict(
            block_size=64, d_model=64, n_heads=4, n_layers=2, q_lora_rank=32, kv_lora_rank=16, qk_nope_head_dim=16,
            qk_rope_head_dim=8, v_head_dim=16, dense_ff=192, d_ff=64, n_experts=4, top_k=2,
        ),
        training=TrainConfig(
            steps=100, batch_size=8, block_size=64, lr=1e-2, eval_interval=50, eval_batches=2
        ),
    ),
    # A CPU pays for every expert: few and wide ones, as many active parameters as in k2_mini.
    "laptop": Preset(
        stories=20_000,
        min_count=3,
        model=dict(block_size=128, n_layers=2, kv_lora_rank=32, d_ff=192, n_experts=8, top_k=2),
        training=TrainConfig(steps=1250, batch_size=16, block_size=128, lr=4e-3),
    ),
    # Kimi K2 at 1/16 of its widths, for a Colab GPU.
    "colab": Preset(
        stories=100_000,
        min_count=3,
        model=dict(
            d_model=448, n_heads=16, n_layers=6, q_lora_rank=96, kv_lora_rank=32, dense_ff=1152, d_ff=384, n_experts=8,
            top_k=2,
        ),
        training=TrainConfig(lr=4e-3),
    ),
}  # fmt: skip

PRESETS = {"nano": NANO, "k2": K2}
