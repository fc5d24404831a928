"""The training loop: batches in, better weights out, and nothing lost when it is cut off."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from utils.checkpoint import checkpoint_file, load_checkpoint, save_checkpoint, write_atomically
from utils.config import TrainConfig
from utils.data import TokenData
from utils.device import autocast, keep_freed_memory, pick_number_format
from utils.interrupt import StopRequest
from utils.model import Kimi
from utils.muonclip import AdamW, MuonClip, decay_groups

FIRST_SAVE_SECONDS = 20  # the first checkpoint comes early: a folder that cannot be written is found out at once
SETTLE_EVERY = 10  # steps between two looks at the losses: each look makes the CPU wait for a GPU


class TrainingDiverged(RuntimeError):
    """The loss or the gradient is not a finite number any more."""


@dataclass
class History:
    """What a run has done: `losses` of every step, and `rows`, one for each validation."""

    losses: list[float] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)

    @property
    def step(self) -> int:
        return len(self.losses)

    def save(self, path: str | Path) -> None:
        text = json.dumps(asdict(self), indent=1)
        write_atomically(Path(path), lambda file: file.write(text.encode()))

    @classmethod
    def load(cls, path: str | Path) -> History:
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of `step` (from 0): a linear warm-up, then the peak, then at the end a cosine down to `final_lr` of it.

    Kimi K2's schedule (report, sec. 2.5), in shares of the run: warm-up 0.002, decay 0.355, final_lr 0.1.
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
        dtype = torch.bfloat16 if number_format == "bf16" else None
        return MuonClip(model, config.lr, config.weight_decay, config.tau, config.clip_norm, dtype=dtype)
    return AdamW(decay_groups(model, config.weight_decay), config.lr, clip_norm=config.clip_norm)


def train(
    model: Kimi,
    data: TokenData,
    config: TrainConfig,
    out_dir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    notes: dict | None = None,
    watch: Callable[[Kimi], dict] | None = None,
    baselines: dict[str, float] | None = None,
) -> History:
    """Train `model` in place, on the device where it is, and return what happened.

    out_dir: folder for checkpoint.pt, history.json and loss.png; None keeps nothing.
    resume: continue the run in out_dir with its next batch, if there is one; overwrite: replace it.
    notes: plain values to keep in the checkpoint, such as the recipe of the run.
    watch: is shown the model, in eval mode, at each validation; the plain values that it returns join that row.
    baselines: losses, by name, to draw as lines into the loss figure.
    Raises FileExistsError when out_dir holds a run and neither is set, ValueError when that run had another model,
    configuration or data, TrainingDiverged when the loss is not finite. Ctrl-C ends the run after the current step.
    """
    folder = None if out_dir is None else Path(out_dir)
    refuse_other_run(folder, resume, overwrite)
    if model.device.type == "cpu":
        keep_freed_memory()
    with _own_chance(model.device):
        run = _Run(model, data, config, notes, watch)
        if resume and folder and checkpoint_file(folder).is_file():
            run.restore(load_checkpoint(folder, model.device))
        print(f"number format: {run.number_format} ({run.format_reason})")
        _loop(run, folder, baselines)
    if run.step < config.steps:
        kept = f"it is saved in {folder}; go on with --resume (train(..., resume=True))"
        kept = kept if folder and run.step else "nothing is saved"
        print(f"stopped after step {run.step} of {config.steps}: {kept}")
    return run.history


def _own_chance(device: torch.device):
    """What is drawn inside leaves the global random numbers outside as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def refuse_other_run(folder: Path | None, resume: bool, overwrite: bool) -> None:
    """Raise FileExistsError rather than write over somebody's run."""
    if folder and checkpoint_file(folder).exists() and not (resume or overwrite):
        raise FileExistsError(f"{folder} holds another run: continue it with --resume or replace it with --overwrite")


def _loop(run: _Run, folder: Path | None, baselines: dict[str, float] | None) -> None:
    from utils.plots import COLOUR, LossFigure  # matplotlib takes half a second to import

    config, model = run.config, run.model
    figure = LossFigure(folder / "loss.png" if folder else None, baselines, COLOUR[model.config.architecture])
    was_training = model.training
    saved_at, saved_step = time.monotonic(), run.step
    bar = tqdm(total=config.steps, initial=run.step, unit="step", desc="training", mininterval=1.0)
    try:
        with StopRequest() as stop, bar:
            if run.step == 0:
                run.validate()
            elif run.step < config.steps:
                figure.update(run.history)  # how far it had come
            while run.step < config.steps and not stop.asked:
                run.advance()
                bar.update()
                measure = run.step % config.eval_interval == 0 or run.step == config.steps
                wait = 60 * config.checkpoint_minutes
                wait = wait if saved_step else min(wait, FIRST_SAVE_SECONDS)
                save = folder and time.monotonic() - saved_at > wait
                if measure or save or run.step % SETTLE_EVERY == 0:
                    run.settle(saved_step, folder)
                if measure:
                    run.validate()
                    figure.update(run.history)
                if save:
                    run.save(folder)
                    saved_at, saved_step = time.monotonic(), run.step
                if not run.pending:
                    bar.set_postfix_str(run.summary())
            run.settle(saved_step, folder)
            if folder and run.step > saved_step:
                run.save(folder)
    finally:
        model.train(was_training)


class _Run:
    """All that changes while a model is trained, so that it can be saved and restored as a whole."""

    def __init__(self, model: Kimi, data: TokenData, config: TrainConfig, notes: dict | None, watch=None):
        if config.block_size > model.config.block_size:
            raise ValueError(
                f"TrainConfig.block_size is {config.block_size}, the model's is {model.config.block_size}: at most that"
            )
        self.model, self.data, self.config, self.notes, self.watch = model, data, config, notes, watch
        self.batches = torch.Generator().manual_seed(config.seed)
        torch.manual_seed(config.seed)  # dropout
        self.history = History()
        self.step = 0
        self.seconds = self.tokens_per_second = 0.0
        self.pending: list[torch.Tensor] = []  # (loss, gradient norm) of steps not looked at yet
        self.pending_since = 0.0
        self._use(*pick_number_format(model.device, config.number_format))

    def _use(self, number_format: str, reason: str) -> None:
        self.number_format, self.format_reason = number_format, reason
        self.scaler = torch.amp.GradScaler(self.model.device.type, enabled=number_format == "fp16")
        self.optimizer = make_optimizer(self.model, self.config, number_format)

    def advance(self) -> None:
        """One optimizer step over `accumulation` batches."""
        config, model = self.config, self.model
        if not self.pending:
            self.pending_since = time.monotonic()
        model.train()
        total = 0.0
        for _ in range(config.accumulation):
            x, y = self._batch("train", self.batches)
            with autocast(model.device, self.number_format):
                loss = model.loss(x, y)
                objective = loss
                if model.config.balance_coef:
                    objective = loss + model.config.balance_coef * model.balance_loss()
            self.scaler.scale(objective / config.accumulation).backward()
            total = total + loss.detach() / config.accumulation
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, config)
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        model.end_step_()
        self.pending.append(torch.stack([total, self.optimizer.grad_norm.to(total.device)]))
        self.step += 1

    def _batch(self, split: str, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        batch = self.data.batch(split, self.config.batch_size, self.config.block_size, generator)
        if self.model.device.type == "cuda":
            batch = (t.pin_memory() for t in batch)  # from pinned memory, the copy does not hold up the program
        return tuple(t.to(self.model.device, non_blocking=True) for t in batch)

    def settle(self, saved_step: int, folder: Path | None) -> None:
        """Read the losses of the pending steps into the history; raise TrainingDiverged at the first bad one."""
        if not self.pending:
            return
        first = self.step - len(self.pending) + 1
        values = torch.stack(self.pending).tolist()
        elapsed = time.monotonic() - self.pending_since
        tokens = len(values) * self.config.accumulation * self.config.batch_size * self.config.block_size
        self.seconds += elapsed
        self.tokens_per_second = tokens / elapsed
        self.pending = []
        for step, (loss, norm) in enumerate(values, first):
            # the scaler of fp16 meets infinite gradients by design and leaves those steps out
            bad = not math.isfinite(loss) or not (math.isfinite(norm) or self.scaler.is_enabled())
            if bad:
                what = f"the loss became {loss}" if not math.isfinite(loss) else f"the gradient's norm became {norm}"
                kept = (
                    f"the checkpoint of step {saved_step} in {folder} is kept"
                    if folder and saved_step
                    else "no checkpoint"
                )
                raise TrainingDiverged(f"{what} at step {step} (try a lower lr than {self.config.lr}); {kept}")
            self.history.losses.append(loss)

    @torch.no_grad()
    def validate(self) -> None:
        """Add a row to the history: validation loss over the same batches every time, and how the run goes."""
        load = self.model.expert_load().tolist()
        max_logits = self.model.max_logits().tolist() if self.step else None
        self.model.eval()
        fixed = torch.Generator().manual_seed(self.config.seed + 1)
        with autocast(self.model.device, self.number_format):
            losses = [self.model.loss(*self._batch("val", fixed)) for _ in range(self.config.eval_batches)]
        with _own_chance(self.model.device):
            found = self.watch(self.model) if self.watch else {}
        since = self.history.rows[-1]["step"] if self.history.rows else 0
        recent = self.history.losses[since:]
        self.history.rows.append({
            "step": self.step,
            "tokens": self.step * self.config.accumulation * self.config.batch_size * self.config.block_size,
            "loss": sum(recent) / len(recent) if recent else None,
            "val_loss": torch.stack(losses).mean().item(),
            "lr": learning_rate(max(0, self.step - 1), self.config),
            "expert_load": load,
            "max_logits": max_logits,
            "tokens_per_second": self.tokens_per_second,
            "seconds": self.seconds,
            **found,
        })  # fmt: skip

    def summary(self) -> str:
        val = self.history.rows[-1]["val_loss"]
        return f"loss {self.history.losses[-1]:.3f}, val {val:.3f}, {self.tokens_per_second:,.0f} tokens/s"

    def save(self, folder: Path) -> None:
        """The checkpoint, atomically, and the history beside it."""
        device = self.model.device
        save_checkpoint(folder, self.model, self.step, {
            "config": asdict(self.config),
            "notes": self.notes,
            "data": self.data.fingerprint(),
            "number_format": self.number_format,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "batches": self.batches.get_state(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "history": asdict(self.history),
            "seconds": self.seconds,
        })  # fmt: skip
        self.history.save(folder / "history.json")

    def restore(self, state: dict) -> None:
        """Take up where `save` left off. Raises ValueError when model, run or data are not the saved ones."""
        saved = state["training"]
        if saved is None:
            raise ValueError("this checkpoint holds a model only: there is no run to continue")
        for what, ours, theirs in (
            ("model", asdict(self.model.config), state["config"]),
            # how often to save is not part of what is computed
            (
                "run",
                asdict(replace(self.config, checkpoint_minutes=1.0)),
                {**saved["config"], "checkpoint_minutes": 1.0},
            ),
        ):
            for name, value in ours.items():
                if value != theirs.get(name):
                    raise ValueError(
                        f"the saved {what} has {name}={theirs.get(name)!r}, to continue it must stay so, not {value!r}"
                    )
        if saved["data"] != self.data.fingerprint():
            raise ValueError("the stories are not those the run began with: give the same source to continue it")
        self.model.load_state_dict(state["model"])
        self._use(saved["number_format"], "as the run began")
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.batches.set_state(saved["batches"].cpu())
        torch.set_rng_state(saved["rng"].cpu())
        if saved["cuda_rng"] is not None and self.model.device.type == "cuda":
            torch.cuda.set_rng_state(saved["cuda_rng"].cpu(), self.model.device)
        self.history = History(**saved["history"])
        self.notes = saved["notes"] if self.notes is None else self.notes
        self.step, self.seconds = state["step"], saved["seconds"]
