"""The training loop: batches in, better weights out, and nothing lost when it is cut off."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm

from utils.accessories import Accessories, patient_output
from utils.checkpoint import holds_run
from utils.config import NUMBER_FORMATS, TrainConfig
from utils.data import TokenData
from utils.device import DTYPES, autocast, fork_rng, pick_number_format
from utils.fast.newton_schulz import orthogonalise
from utils.history import History
from utils.interrupt import StopRequest
from utils.keeping import Keeper
from utils.memory import refuse_too_much, told_out_of_memory
from utils.mirror import Mirror, take_copy
from utils.model import Kimi
from utils.muonclip import AdamW, MuonClip, Orthogonalise, decay_groups
from utils.parallel.form import form_of
from utils.parallel.whole import full
from utils.ranks import Ranks, told_lost
from utils.record import Record
from utils.run_folder import held, move_aside, refuse_other_run
from utils.run_state import RunState, TrainingDiverged
from utils.saved_run import load_run
from utils.schedule import learning_rate
from utils.validation import validate

__all__ = ["History", "TrainingDiverged", "learning_rate", "make_optimizer", "refuse_other_run", "train"]


def make_optimizer(
    model: Kimi, config: TrainConfig, number_format: str = "fp32", orthogonalise: Orthogonalise = orthogonalise
) -> AdamW | MuonClip:
    """The optimizer that `config` names, for all parameters. Newton-Schulz computes in the number format of the run."""
    if config.optimizer == "muonclip":
        fast = partial(orthogonalise, dtype=None if number_format == "fp32" else DTYPES[number_format])
        return MuonClip(model, config.lr, config.weight_decay, config.tau, config.clip_norm, orthogonalise=fast)
    return AdamW(decay_groups(model, config.weight_decay), config.lr, clip_norm=config.clip_norm)


READ_EVERY = 10  # steps between two looks at the losses of a GPU, which make the CPU wait for it


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
    copy_to: str | Path | None = None,
    stop: StopRequest | None = None,
    parallel: str = "auto",
) -> History:
    """Train `model` in place, on the device where it is, and return what happened.

    out_dir: folder for the checkpoints and history.json; None keeps nothing.
    resume: continue the run in out_dir with its next batch, if there is one; overwrite: replace it.
    recipe: what the run is made of (see `recipe`), plain values to keep in the checkpoint.
    watch: is given the model, in eval mode, at each validation; the plain values that it returns join that row.
    show: is given the history after each validation, to draw it for example.
    copy_to: a second folder, such as one on Google Drive, that gets each checkpoint too. With resume, and nothing in
    out_dir, the run is taken from there.
    stop: is asked for the signal that ended the run, see `interrupt`.
    parallel: where torchrun has started several processes, ddp for a copy of the model in each or fsdp for a part; auto
    is ddp while it fits. The first process writes, prints, watches and shows.
    Raises FileExistsError when out_dir holds a run and neither is set, BlockingIOError while another process trains in
    it, OSError when it cannot be written to, ValueError when that run had another model, configuration or data, or the
    data are less than a block, TrainingDiverged when a loss or a weight is not finite, MemoryError when a device is
    full. Ctrl-C ends the run after the current step. What fails of `watch` and `show` is a warning.
    """
    ranks = Ranks()
    folder, copies = (None if path is None else Path(path) for path in (out_dir, copy_to))
    if copies and not folder:
        raise ValueError("copy_to copies the checkpoints of out_dir, which is None")
    ours, our_copies = (folder, copies) if ranks.is_first else (None, None)  # where this process writes
    refuse_other_run(ours, resume, overwrite)
    refuse_other_run(our_copies, resume, overwrite)
    if config.block_size > model.config.block_size:
        limit = model.config.block_size
        raise ValueError(f"TrainConfig.block_size is {config.block_size}, the model's is {limit}: at most that")
    data.refuse_block(config.block_size)
    form = form_of(model, parallel, config, ranks)
    if watch and form.is_sharded:
        raise ValueError("watch is given a whole model, and with parallel='fsdp' no process has one: take 'ddp'")
    watch, show = (watch, show) if ranks.is_first else (None, None)
    with held(ours), patient_output():
        with ranks.first_first():
            if resume:
                take_copy(ours, our_copies)
        saved = load_run(folder, model.device) if resume and folder and holds_run(folder) else None
        wanted = saved["training"]["number_format"] if saved else config.number_format
        number_format, reason = pick_number_format(model.device, wanted)
        number_format = NUMBER_FORMATS[ranks.of_first(NUMBER_FORMATS.index(number_format))]  # one that all compute in
        if number_format == "fp16" and form.is_sharded:
            raise ValueError(
                "number_format is 'fp16', with parallel='fsdp' it must be bf16 or fp32"
            )  # no scaler for it
        print(f"number format: {number_format} ({'as the run began' if saved else reason})")
        with fork_rng(model.device), train_mode(model), stop or StopRequest() as stop:
            if not form.is_sharded:
                refuse_too_much(model, config, number_format, ranks.size)
            optimizer = make_optimizer(model, config, number_format, form.orthogonalise)
            run = RunState(model, data, config, number_format, optimizer, recipe, form)
            if overwrite and ours:
                move_aside(ours)
            torch.manual_seed(config.seed)  # dropout
            if saved:
                run.restore(saved)
            accessories = Accessories()
            keeper = Keeper(run, folder, accessories, stop, our_copies and Mirror(ours, our_copies))
            with told_lost(run.what_is_left):
                keep_training(run, keeper, watch, show)
        accessories.remind()
    if run.step < config.steps:
        where = f"it is saved in {folder}; go on with --resume (train(..., resume=True))"
        kept = where if folder and run.step else "nothing is saved"
        print(f"stopped after step {run.step} of {config.steps}: {kept}")
    return run.history


def keep_training(
    run: RunState, keeper: Keeper, watch: Callable[[Kimi], dict] | None, show: Callable[[History], None] | None
) -> None:
    """Step after step until the run is done or asked to stop, then one more save."""
    config, attempt = run.config, keeper.accessories.attempt
    show_history = (lambda: attempt("its figure", lambda: show(run.history))) if show else (lambda: None)
    read_every = 1 if run.model.device.type == "cpu" else READ_EVERY
    how = dict(total=config.steps, initial=run.step, unit="step", desc="training", mininterval=1.0)
    bar = attempt("its progress bar", lambda: tqdm(**how, disable=not run.ranks.is_first))
    try:
        if run.step == 0:
            validate(run, None, watch, attempt)
        else:
            show_history()  # how far it had come
        (asked,) = run.ranks.any(keeper.stop.asked)
        while run.step < config.steps and not asked:
            with told_out_of_memory(run.model, config):
                record = train_step(run)
            is_validation = run.step % config.eval_interval == 0 or run.step == config.steps
            (is_due,) = run.ranks.any(keeper.is_due())
            if is_validation or is_due or run.step % read_every == 0:
                run.read_losses()
            if is_validation:
                validate(run, record, watch, attempt)
                show_history()
            if is_due:
                keeper.save()
            if bar is not None:
                attempt("its progress bar", lambda: advance(bar, run))
            (asked,) = run.ranks.any(keeper.stop.asked)
        run.read_losses()
    finally:
        if bar is not None:
            attempt("its progress bar", bar.close)
    keeper.save_last()


def train_step(run: RunState) -> Record:
    """One optimizer step, over as many batches as `accumulation` says; returns what the forwards left behind."""
    model, config, device, scaler = run.model, run.config, run.model.device, run.scaler
    run.start_clock()
    run.ranks.reseed(config.seed, run.step)
    record = Record()
    mean_loss = 0.0
    for i in range(config.accumulation):
        x, y = run.batch("train", run.batches)  # (B, T) each
        run.form.exchange_gradients(i == config.accumulation - 1)
        with autocast(device, run.number_format):
            loss = objective = run.form.loss(x, y, record)
            if model.config.balance_coef:
                objective = loss + model.config.balance_coef * record.balance_loss()
        scaler.scale(objective / config.accumulation).backward()
        mean_loss = mean_loss + loss.detach() / config.accumulation
    run.ranks.join_(record)

    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.step, config)
    scaler.unscale_(run.optimizer)  # so that clipping sees the true gradients
    grad_norm = scaler.step(run.optimizer, record)  # None where fp16 overflowed and the step is left out
    scaler.update()
    run.optimizer.zero_grad()
    if grad_norm is None:
        grad_norm = torch.full_like(mean_loss, math.inf)
    else:
        model.end_step_(record)
    run.count_step(run.ranks.mean(mean_loss), full(grad_norm), record)
    return record


def advance(bar: tqdm, run: RunState) -> None:
    """Move the progress bar to where the run is."""
    bar.update(run.step - bar.n)
    if run.history.step == run.step:  # all losses are read
        val = run.history.rows[-1]["val_loss"]
        bar.set_postfix_str(f"loss {run.history.losses[-1]:.3f}, val {val:.3f}, {run.tokens_per_second:,.0f} tokens/s")


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
