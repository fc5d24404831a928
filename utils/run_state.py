"""All that changes while a model is trained, so that a run can be saved and restored as a whole."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from utils.checkpoint import save_checkpoint
from utils.config import TrainConfig
from utils.data import TokenData
from utils.device import rng_state, set_rng_state
from utils.history import History
from utils.model import Kimi
from utils.muonclip import AdamW, MuonClip
from utils.parallel.whole import Whole, cut_like, gathered
from utils.record import Record
from utils.saved_run import must_be_same, restore_optimizer, tensors_of


class TrainingDiverged(RuntimeError):
    """The loss or the gradient is not a finite number any more."""


class RunState:
    """A model in training with its optimizer, its place in the data, its random numbers and its history."""

    def __init__(
        self, model: Kimi, data: TokenData, config: TrainConfig, number_format: str, optimizer: AdamW | MuonClip,
        recipe: dict | None = None, form: Whole | None = None,
    ):  # fmt: skip
        self.model, self.data, self.config = model, data, config
        self.form = form or Whole(model)
        self.ranks = self.form.ranks
        self.number_format, self.optimizer, self.recipe = number_format, optimizer, recipe
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=number_format == "fp16")
        self.batches, self.part = torch.Generator().manual_seed(config.seed), self.ranks.part(config.batch_size)
        self.history = History()
        self.step, self.saved_step = 0, 0
        self.seconds = self.tokens_per_second = 0.0
        self._unread: list[torch.Tensor] = []  # (loss, gradient norm) of the last steps, still on the device
        self._unread_since = time.perf_counter()

    @property
    def tokens_per_step(self) -> int:
        return self.config.accumulation * self.config.batch_size * self.config.block_size

    def batch(self, split: str, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """The next inputs and targets (B, T), on the device of the model; a short validation split has a smaller T.

        Of several processes each gets its part of the B windows.
        """
        block_size, part = min(self.config.block_size, len(self.data.split(split)) - 1), self.part
        x, y = self.data.batch(split, self.config.batch_size, block_size, generator, part)
        if self.model.device.type == "cuda":  # from pinned memory, the copy does not hold up the program
            x, y = x.pin_memory(), y.pin_memory()
        return x.to(self.model.device, non_blocking=True), y.to(self.model.device, non_blocking=True)

    def count_step(self, loss: torch.Tensor, grad_norm: torch.Tensor, record: Record) -> None:
        """One more step is done, with this loss and norm of the gradient, scalars that nobody has looked at yet."""
        values = [loss[None], grad_norm.to(loss.device)[None], record.max_logits().flatten().to(loss.device)]
        self._unread.append(torch.cat(values))  # (2 + L H,)
        self.step += 1

    def read_losses(self) -> None:
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
        for step, (loss, norm, *logits) in enumerate(values, first):
            # the scaler of fp16 meets infinite gradients by design and leaves those steps out
            if not math.isfinite(loss) or not (math.isfinite(norm) or self.scaler.is_enabled()):
                what = f"the loss became {loss}" if not math.isfinite(loss) else f"the gradient's norm became {norm}"
                n_heads = self.model.config.n_heads
                largest = [max(logits[i : i + n_heads]) for i in range(0, len(logits), n_heads)]
                by_layer = ", ".join(f"{value:.3g}" for value in largest)
                raise TrainingDiverged(f"{what} at step {step}, the largest attention logit of each layer was "
                                       f"{by_layer}; {self.advice()}")  # fmt: skip
            self.history.losses.append(loss)

    def advice(self) -> str:
        """What to do about a run that has failed, and what is left of it."""
        return f"try a lower lr than {self.config.lr}; {self.what_is_left()}"

    def what_is_left(self) -> str:
        """Of a run that has failed."""
        return f"the checkpoint of step {self.saved_step} is kept" if self.saved_step else "nothing was saved"

    @property
    def n_bytes(self) -> int:
        """Bytes of its checkpoint, about."""
        tensors = [*self.model.state_dict().values(), *tensors_of(self.optimizer.state_dict()).values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)  # those of other processes too

    def start_clock(self) -> None:
        """What came before, such as a validation, does not count as time of training."""
        if not self._unread:
            self._unread_since = time.perf_counter()

    def save(self, folder: Path | None) -> None:
        """The checkpoint, atomically. Raises TrainingDiverged rather than keep weights that are not finite.

        folder: None in a process that does not write, but may hold a part of what is written.
        """
        self.refuse_broken()
        model = getattr(self.model, "_orig_mod", self.model)
        weights, averages = model.state_dict(), tensors_of(self.optimizer.state_dict())
        if self.form.is_sharded:
            weights, averages = (gathered(tensors, wanted=folder is not None) for tensors in (weights, averages))
        if folder is not None:
            self.write(folder, weights, averages)
        self.saved_step = self.step

    def write(self, folder: Path, weights: dict[str, torch.Tensor], averages: dict[str, torch.Tensor]) -> None:
        """The checkpoint, of whole tensors."""
        recipe = self.recipe and {k: v for k, v in self.recipe.items() if k != "training"}  # that is `config`
        training = {
            "config": asdict(self.config),
            "recipe": recipe,
            "data": self.data.fingerprint(),
            "number_format": self.number_format,
            "scaler": self.scaler.state_dict(),
            "rows": self.history.rows,
            "seconds": self.seconds,
        }
        tensors = {
            **averages,
            "batches": self.batches.get_state(),
            "rng": torch.get_rng_state(),
            "losses": torch.tensor(self.history.losses, dtype=torch.float64),
        }
        if (device_rng := rng_state(self.model.device)) is not None:
            tensors["device_rng"] = device_rng
        save_checkpoint(folder, self.model, self.step, training, tensors, weights)

    def refuse_broken(self) -> None:
        """Raise TrainingDiverged where a weight or an average of the optimizer is not finite."""
        kept = {**self.model.state_dict(), **tensors_of(self.optimizer.state_dict())}
        for name, tensor in kept.items():
            if not torch.isfinite(tensor.to_local() if hasattr(tensor, "to_local") else tensor).all():
                raise TrainingDiverged(f"{name} is not finite after step {self.step}; {self.advice()}")

    def restore(self, state: dict) -> None:
        """Take up where `save` left off. Raises ValueError when model, run or data are not the saved ones.

        More steps than were planned are allowed: the learning rate then goes on as in a run of that length.
        """
        saved, tensors = state["training"], state["tensors"]
        model = getattr(self.model, "_orig_mod", self.model)
        must_be_same("model", asdict(model.config), state["config"])
        # how often to save is not part of what is computed
        same = {"checkpoint_minutes": 1.0, "steps": max(self.config.steps, saved["config"]["steps"])}
        must_be_same("run", asdict(replace(self.config, **same)), {**saved["config"], **same})
        if self.config.steps < saved["config"]["steps"]:
            must_be_same("run", asdict(self.config), saved["config"])
        if saved["data"] != self.data.fingerprint():
            raise ValueError("the stories are not those the run began with: give the same source to continue it")
        shape = model.state_dict()
        model.load_state_dict({name: cut_like(tensor, shape[name]) for name, tensor in state["model"].items()})
        restore_optimizer(self.optimizer, tensors)
        self.scaler.load_state_dict(saved["scaler"])
        self.batches.set_state(tensors["batches"].cpu())
        torch.set_rng_state(tensors["rng"].cpu())
        set_rng_state(model.device, tensors.get("device_rng"))
        self.history = History(tensors["losses"].tolist(), saved["rows"])
        self.recipe = saved["recipe"] if self.recipe is None else self.recipe
        self.step = self.saved_step = state["step"]
        self.seconds = saved["seconds"]
