"""All that changes while a model is trained, so that a run can be saved and restored as a whole."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from utils.checkpoint import save_checkpoint
from utils.config import TrainConfig
from utils.data import TokenData
from utils.device import rng_state, set_rng_state
from utils.files import write_text
from utils.model import Kimi
from utils.muonclip import AdamW, MuonClip


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
        write_text(path, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: str | Path) -> History:
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))


class RunState:
    """A model in training with its optimizer, its place in the data, its random numbers and its history."""

    def __init__(
        self, model: Kimi, data: TokenData, config: TrainConfig, number_format: str, optimizer: AdamW | MuonClip,
        recipe: dict | None = None,
    ):  # fmt: skip
        self.model, self.data, self.config = model, data, config
        self.number_format, self.optimizer, self.recipe = number_format, optimizer, recipe
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=number_format == "fp16")
        self.batches = torch.Generator().manual_seed(config.seed)
        self.history = History()
        self.step, self.saved_step = 0, 0
        self.seconds = self.tokens_per_second = 0.0
        self._unread: list[torch.Tensor] = []  # (loss, gradient norm) of the last steps, still on the device
        self._unread_since = time.perf_counter()

    @property
    def tokens_per_step(self) -> int:
        return self.config.accumulation * self.config.batch_size * self.config.block_size

    def batch(self, split: str, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """The next inputs and targets (B, T), on the device of the model; a short validation split has a smaller T."""
        block_size = min(self.config.block_size, len(self.data.split(split)) - 1)
        x, y = self.data.batch(split, self.config.batch_size, block_size, generator)
        if self.model.device.type == "cuda":  # from pinned memory, the copy does not hold up the program
            x, y = x.pin_memory(), y.pin_memory()
        return x.to(self.model.device, non_blocking=True), y.to(self.model.device, non_blocking=True)

    def count_step(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> None:
        """One more step is done, with this loss and norm of the gradient, scalars that nobody has looked at yet."""
        self._unread.append(torch.stack([loss, grad_norm.to(loss.device)]))
        self.step += 1

    def read_losses(self, folder: Path | None) -> None:
        """Move the losses of the last steps into the history, and the clock on. It makes the CPU wait for a GPU.

        Raises TrainingDiverged at the first loss or gradient that is not finite.
        """
        if not self._unread:
            return
        first = self.step - len(self._unread) + 1
        values = torch.stack(self._unread).tolist()
        now = time.perf_counter()
        elapsed = now - self._unread_since
        self.seconds += elapsed
        # a clock may be so coarse that it has not moved
        self.tokens_per_second = len(values) * self.tokens_per_step / max(elapsed, 1e-9)
        self._unread, self._unread_since = [], now
        for step, (loss, norm) in enumerate(values, first):
            # the scaler of fp16 meets infinite gradients by design and leaves those steps out
            if not math.isfinite(loss) or not (math.isfinite(norm) or self.scaler.is_enabled()):
                what = f"the loss became {loss}" if not math.isfinite(loss) else f"the gradient's norm became {norm}"
                has_saved = folder is not None and self.saved_step
                kept = f"the checkpoint of step {self.saved_step} in {folder} is kept" if has_saved else "no checkpoint"
                raise TrainingDiverged(f"{what} at step {step} (try a lower lr than {self.config.lr}); {kept}")
            self.history.losses.append(loss)

    def start_clock(self) -> None:
        """What came before, such as a validation, does not count as time of training."""
        if not self._unread:
            self._unread_since = time.perf_counter()

    def save(self, folder: Path) -> None:
        """The checkpoint, atomically, and the history beside it."""
        recipe = self.recipe and {k: v for k, v in self.recipe.items() if k != "training"}  # that is `config`
        save_checkpoint(folder, self.model, self.step, {
            "config": asdict(self.config),
            "recipe": recipe,
            "data": self.data.fingerprint(),
            "number_format": self.number_format,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "batches": self.batches.get_state(),
            "rng": torch.get_rng_state(),
            "device_rng": rng_state(self.model.device),
            "history": asdict(self.history),
            "seconds": self.seconds,
        })  # fmt: skip
        self.history.save(folder / "history.json")
        self.saved_step = self.step

    def restore(self, state: dict) -> None:
        """Take up where `save` left off. Raises ValueError when model, run or data are not the saved ones.

        More steps than were planned are allowed: the learning rate then goes on as in a run of that length.
        """
        saved = state["training"]
        model = getattr(self.model, "_orig_mod", self.model)
        must_be_same("model", asdict(model.config), state["config"])
        # how often to save is not part of what is computed
        same = {"checkpoint_minutes": 1.0, "steps": max(self.config.steps, saved["config"]["steps"])}
        must_be_same("run", asdict(replace(self.config, **same)), {**saved["config"], **same})
        if self.config.steps < saved["config"]["steps"]:
            must_be_same("run", asdict(self.config), saved["config"])
        if saved["data"] != self.data.fingerprint():
            raise ValueError("the stories are not those the run began with: give the same source to continue it")
        model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.batches.set_state(saved["batches"].cpu())
        torch.set_rng_state(saved["rng"].cpu())
        set_rng_state(model.device, saved["device_rng"])
        self.history = History(**saved["history"])
        self.recipe = saved["recipe"] if self.recipe is None else self.recipe
        self.step = self.saved_step = state["step"]
        self.seconds = saved["seconds"]


def must_be_same(what: str, ours: dict, saved: dict) -> None:
    """Raise ValueError naming the first field in which a configuration differs from the saved one."""
    for name, value in ours.items():
        if value != saved.get(name):
            raise ValueError(
                f"the saved {what} has {name}={saved.get(name)!r}, to continue it must stay so, not {value!r}"
            )
