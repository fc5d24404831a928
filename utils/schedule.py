"""The learning rate of each step."""

from __future__ import annotations

import math

from utils.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of `step` (from 0): linear warm-up, peak, at the end a cosine down to `final_lr` of it.

    Kimi K2's (report, sec. 2.5), in shares of the run: warm-up 0.002, decay 0.355, final_lr 0.1.
    """
    warmup_steps = round(config.warmup * config.steps)
    decay_steps = round(config.decay * config.steps)
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps
    progress = (step + 1 - (config.steps - decay_steps)) / max(1, decay_steps)  # <= 0 before the decay, 1 at the end
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
    return config.lr * (config.final_lr + (1 - config.final_lr) * cosine)
