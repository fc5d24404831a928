"""The training loop: batches in, better weights out, and nothing lost when it is cut off."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm

from utils.checkpoint import FILE_NAME, checkpoint_file, load_checkpoint
from utils.config import TrainConfig
from utils.data import TokenData
from utils.device import autocast, fork_rng, pick_number_format
from utils.fast.newton_schulz import orthogonalise
from utils.files import refuse_unwritable
from utils.interrupt import StopRequest
from utils.model import Kimi, eval_view
from utils.muonclip import AdamW, MuonClip, decay_groups
from utils.record import Record
from utils.run_state import History, RunState, TrainingDiverged

__all__ = ["History", "TrainingDiverged", "learning_rate", "make_optimizer", "refuse_other_run", "train"]


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


def make_optimizer(model: Kimi, config: TrainConfig, number_format: str = "fp32") -> AdamW | MuonClip:
    """The optimizer that `config` names, for all parameters. Newton-Schulz computes in bf16 where the run does."""
    if config.optimizer == "muonclip":
        fast = partial(orthogonalise, dtype=torch.bfloat16 if number_format == "bf16" else None)
        return MuonClip(model, config.lr, config.weight_decay, config.tau, config.clip_norm, orthogonalise=fast)
    return AdamW(decay_groups(model, config.weight_decay), config.lr, clip_norm=config.clip_norm)


class Due:
    """What is due after a step: a look at the losses, a validation, a checkpoint."""

    FIRST_SAVE_SECONDS = 20  # the first checkpoint comes early: a folder that cannot be written is found out at once
    READ_EVERY = 10  # steps between two looks at the losses, which make the CPU wait for a GPU

    def __init__(self, config: TrainConfig, saves: bool):
        self.config, self.saves = config, saves
        self.saved_at = time.perf_counter()

    def validation(self, step: int) -> bool:
        return step % self.config.eval_interval == 0 or step == self.config.steps

    def checkpoint(self, saved_step: int) -> bool:
        wait = 60 * self.config.checkpoint_minutes
        wait = wait if saved_step else min(wait, self.FIRST_SAVE_SECONDS)
        return self.saves and time.perf_counter() - self.saved_at > wait

    def losses(self, step: int) -> bool:
        return step % self.READ_EVERY == 0


def train(
    model: Kimi,
    data: TokenData,
    config: TrainConfig,
    out_dir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    recipe: dict | None = None,
    watch: Callable[[Kimi], dict] | None = None,
    show: Callable[[History], None] | None = None,
) -> History:
    """Train `model` in place, on the device where it is, and return what happened.

    out_dir: folder for checkpoint.pt and history.json; None keeps nothing.
    resume: continue the run in out_dir with its next batch, if there is one; overwrite: replace it.
    recipe: what the run is made of (see `recipe`), plain values to keep in the checkpoint.
    watch: is given the model, in eval mode, at each validation; the plain values that it returns join that row.
    show: is given the history after each validation, to draw it for example.
    Raises FileExistsError when out_dir holds a run and neither is set, OSError when it cannot be written to, ValueError
    when that run had another model, configuration or data, or the data are less than a block, TrainingDiverged when the
    loss is not finite. Ctrl-C ends the run after the current step.
    """
    folder = None if out_dir is None else Path(out_dir)
    refuse_other_run(folder, resume, overwrite)
    if config.block_size > model.config.block_size:
        limit = model.config.block_size
        raise ValueError(f"TrainConfig.block_size is {config.block_size}, the model's is {limit}: at most that")
    data.refuse_block(config.block_size)
    saved = load_run(folder, model.device) if resume and folder and checkpoint_file(folder).is_file() else None
    wanted = saved["training"]["number_format"] if saved else config.number_format
    number_format, reason = pick_number_format(model.device, wanted)
    print(f"number format: {number_format} ({'as the run began' if saved else reason})")
    run = RunState(model, data, config, number_format, make_optimizer(model, config, number_format), recipe)
    optimizer, scaler = run.optimizer, run.scaler

    with fork_rng(model.device), train_mode(model), StopRequest() as stop:
        torch.manual_seed(config.seed)  # dropout
        if saved:
            run.restore(saved)
        elif overwrite and folder:
            checkpoint_file(folder).unlink(missing_ok=True)  # from here on there is no run to resume but the new one
        due = Due(config, saves=folder is not None)
        with tqdm(total=config.steps, initial=run.step, unit="step", desc="training", mininterval=1.0) as bar:
            if run.step == 0:
                validate(run, None, watch)
            elif show and run.step < config.steps:
                show(run.history)  # how far it had come

            while run.step < config.steps and not stop.asked:
                run.start_clock()
                record = Record()
                mean_loss = 0.0
                for _ in range(config.accumulation):
                    x, y = run.batch("train", run.batches)  # (B, T) each
                    with autocast(model.device, number_format):
                        loss = objective = model.loss(x, y, record)
                        if model.config.balance_coef:
                            objective = loss + model.config.balance_coef * record.balance_loss()
                    scaler.scale(objective / config.accumulation).backward()
                    mean_loss = mean_loss + loss.detach() / config.accumulation

                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(run.step, config)
                scaler.unscale_(optimizer)  # so that clipping sees the true gradients
                grad_norm = scaler.step(optimizer, record)  # None where fp16 overflowed and the step is left out
                scaler.update()
                optimizer.zero_grad()
                if grad_norm is None:
                    grad_norm = torch.full_like(mean_loss, math.inf)
                else:
                    model.end_step_(record)
                run.count_step(mean_loss, grad_norm)

                bar.update()
                validation, checkpoint = due.validation(run.step), due.checkpoint(run.saved_step)
                if validation or checkpoint or due.losses(run.step):
                    run.read_losses(folder)
                if validation:
                    validate(run, record, watch)
                    if show:
                        show(run.history)
                if checkpoint:
                    run.save(folder)
                    due.saved_at = time.perf_counter()
                if run.history.step == run.step:  # all losses are read
                    bar.set_postfix_str(summary(run))
            run.read_losses(folder)
            if folder and run.step > run.saved_step:
                run.save(folder)

    if run.step < config.steps:
        where = f"it is saved in {folder}; go on with --resume (train(..., resume=True))"
        kept = where if folder and run.step else "nothing is saved"
        print(f"stopped after step {run.step} of {config.steps}: {kept}")
    return run.history


@torch.no_grad()
def validate(run: RunState, record: Record | None, watch: Callable[[Kimi], dict] | None) -> None:
    """Add a row to the history: validation loss over the same batches every time, and how the run goes.

    record: of the last training step, None before the first.
    """
    view = eval_view(run.model)
    fixed = torch.Generator().manual_seed(run.config.seed + 1)
    with autocast(view.device, run.number_format):
        losses = [view.loss(*run.batch("val", fixed)) for _ in range(run.config.eval_batches)]
    with fork_rng(view.device):
        found = watch(view) if watch else {}
    since = run.history.rows[-1]["step"] if run.history.rows else 0
    recent = run.history.losses[since:]
    run.history.rows.append({
        "step": run.step,
        "tokens": run.step * run.tokens_per_step,
        "loss": sum(recent) / len(recent) if recent else None,
        "val_loss": torch.stack(losses).mean().item(),
        "lr": learning_rate(max(0, run.step - 1), run.config),
        "expert_load": record and record.expert_load().tolist(),
        "dead_experts": record and record.dead_experts(),
        "max_logits": record and record.max_logits().tolist(),
        "tokens_per_second": run.tokens_per_second,
        "seconds": run.seconds,
        **found,
    })  # fmt: skip


def summary(run: RunState) -> str:
    """What stands behind the progress bar."""
    val = run.history.rows[-1]["val_loss"]
    return f"loss {run.history.losses[-1]:.3f}, val {val:.3f}, {run.tokens_per_second:,.0f} tokens/s"


@contextlib.contextmanager
def train_mode(model: torch.nn.Module) -> Iterator[None]:
    """In it the model is in training mode; afterwards each of its parts is in the mode that it was in."""
    modes = [(part, part.training) for part in model.modules()]
    model.train()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def refuse_other_run(folder: Path | None, resume: bool, overwrite: bool) -> None:
    """Raise FileExistsError rather than write over somebody's run, and OSError or ValueError rather than lose one.

    A folder that ends in .pt would be taken for a checkpoint, and not every folder can be written to.
    """
    if folder is None:
        return
    if folder.suffix == ".pt":
        better = folder.parent if folder.name == FILE_NAME else folder.with_suffix("")
        raise ValueError(f"{folder} is the name of a checkpoint, a run needs that of a folder, such as {better}")
    refuse_unwritable(folder)
    if checkpoint_file(folder).exists() and not (resume or overwrite):
        raise FileExistsError(f"{folder} holds another run: continue it with --resume or replace it with --overwrite")


def load_run(folder: Path, device: torch.device) -> dict:
    """The checkpoint of a run to continue. Raises ValueError where it holds a model only."""
    state = load_checkpoint(folder, device)
    if state["training"] is None:
        raise ValueError("this checkpoint holds a model only: there is no run to continue")
    return state
