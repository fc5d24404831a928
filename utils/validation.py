"""What is measured of a run while it trains: a row of its history."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import torch

from utils.device import autocast, fork_rng
from utils.model import Kimi
from utils.record import Record
from utils.run_state import RunState, TrainingDiverged
from utils.schedule import learning_rate


@torch.no_grad()
def validate(run: RunState, record: Record | None, watch: Callable[[Kimi], dict] | None, attempt: Callable) -> None:
    """Add a row to the history: validation loss over the same batches every time, and how the run goes.

    record: of the last training step, None before the first. attempt: of `Accessories`. Raises TrainingDiverged where
    the loss is not finite.
    """
    fixed, device = torch.Generator().manual_seed(run.config.seed + 1), run.model.device
    with run.form.eval_form() as view:
        with autocast(device, run.number_format):
            losses = [view.loss(*run.batch("val", fixed)) for _ in range(run.config.eval_batches)]
        val_loss = run.ranks.mean(torch.stack(losses).mean()).item()
        if not math.isfinite(val_loss):
            raise TrainingDiverged(f"the validation loss became {val_loss} at step {run.step}; {run.advice()}")
        with fork_rng(device):
            found = attempt("its watcher", lambda: plain_values(watch(view)), {}) if watch else {}
    since = run.history.rows[-1]["step"] if run.history.rows else 0
    recent = run.history.losses[since:]
    run.history.rows.append({
        "step": run.step,
        "tokens": run.step * run.tokens_per_step,
        "loss": sum(recent) / len(recent) if recent else None,
        "val_loss": val_loss,
        "lr": learning_rate(max(0, run.step - 1), run.config),
        "expert_load": record and record.expert_load().tolist(),
        "dead_experts": record and record.dead_experts(),
        "max_logits": record and record.max_logits().tolist(),
        "tokens_per_second": run.tokens_per_second,
        "seconds": run.seconds,
        **found,
    })  # fmt: skip


def plain_values(found: dict) -> dict:
    """What a watcher found, as it will be read back from a checkpoint. Raises TypeError for what JSON has not."""
    return json.loads(json.dumps(found))
