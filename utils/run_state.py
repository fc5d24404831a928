"""All that changes while a model is trained, so that a run can be saved and restored as a whole."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from utils.checkpoint import save_checkpoint
from utils.config import NUMBER_FORMATS, TrainConfig, from_dict
from utils.data import TokenData
from utils.device import rng_state, set_rng_state
from utils.files import check_kinds, read_json, write_text
from utils.model import Kimi
from utils.muonclip import AdamW, MuonClip
from utils.record import Record

# the parts of a saved run that are no tensors
SAVED = {
    "config": dict, "recipe": dict | None, "data": str, "number_format": str, "scaler": dict, "rows": list,
    "seconds": int | float,
}  # fmt: skip


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
        write_text(path, json.dumps({"losses": self.losses, "rows": self.rows}))  # an indent takes 350 bytes a step

    @classmethod
    def load(cls, path: str | Path) -> History:
        """What `save` wrote. Raises FileNotFoundError where there is none, ValueError where it is something else."""
        state = read_json(Path(path))
        check_kinds(state, {"losses": list, "rows": list}, f"{path}: ")
        return cls(state["losses"], state["rows"])


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
        kept = f"the checkpoint of step {self.saved_step} is kept" if self.saved_step else "nothing was saved"
        return f"try a lower lr than {self.config.lr}; {kept}"

    @property
    def n_bytes(self) -> int:
        """Bytes of its checkpoint, about."""
        tensors = [*self.model.state_dict().values(), *tensors_of(self.optimizer.state_dict()).values()]
        return sum(tensor.nbytes for tensor in tensors)

    def start_clock(self) -> None:
        """What came before, such as a validation, does not count as time of training."""
        if not self._unread:
            self._unread_since = time.perf_counter()

    def save(self, folder: Path) -> None:
        """The checkpoint, atomically. Raises TrainingDiverged rather than keep weights that are not finite."""
        self.refuse_broken()
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
            **tensors_of(self.optimizer.state_dict()),
            "batches": self.batches.get_state(),
            "rng": torch.get_rng_state(),
            "losses": torch.tensor(self.history.losses, dtype=torch.float64),
        }
        if (device_rng := rng_state(self.model.device)) is not None:
            tensors["device_rng"] = device_rng
        save_checkpoint(folder, self.model, self.step, training, tensors)
        self.saved_step = self.step

    def refuse_broken(self) -> None:
        """Raise TrainingDiverged where a weight or an average of the optimizer is not finite."""
        kept = {**self.model.state_dict(), **tensors_of(self.optimizer.state_dict())}
        for name, tensor in kept.items():
            if not torch.isfinite(tensor).all():
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
        model.load_state_dict(state["model"])
        restore_optimizer(self.optimizer, tensors)
        self.scaler.load_state_dict(saved["scaler"])
        self.batches.set_state(tensors["batches"].cpu())
        torch.set_rng_state(tensors["rng"].cpu())
        set_rng_state(model.device, tensors.get("device_rng"))
        self.history = History(tensors["losses"].tolist(), saved["rows"])
        self.recipe = saved["recipe"] if self.recipe is None else self.recipe
        self.step = self.saved_step = state["step"]
        self.seconds = saved["seconds"]


def check_run(state: dict) -> None:
    """Raise ValueError naming the first part of a saved run that is missing or of another kind."""
    training, tensors = state["training"], state["tensors"]
    check_kinds(training, SAVED, "training.")
    if training["number_format"] not in NUMBER_FORMATS[1:]:  # what "auto" chose is saved
        raise ValueError(f"training.number_format is {training['number_format']!r:.60}")
    from_dict(TrainConfig, training["config"])
    for row in training["rows"]:
        check_kinds(row if isinstance(row, dict) else {}, {"step": int, "val_loss": float}, "a row of the history: ")
    check_kinds(training["scaler"], dict.fromkeys(training["scaler"], int | float), "training.scaler: ")
    length = len(torch.get_rng_state())
    wanted = {"losses": (torch.float64, state["step"]), "batches": (torch.uint8, length), "rng": (torch.uint8, length)}
    for name, (dtype, size) in wanted.items():
        tensor = tensors.get(name, torch.empty(0))
        if tensor.dtype != dtype or tensor.shape != (size,):
            found = f"{tensor.dtype} of shape {list(tensor.shape)}" if name in tensors else "not there"
            raise ValueError(f"the tensor {name} is {found}, it must be {dtype} of shape [{size}]")


def tensors_of(optimizer_state: dict) -> dict[str, torch.Tensor]:
    """The averages in the state dict of an optimizer, and its numbers as tensors without dimensions, by name."""
    return {
        f"optimizer.{i}.{kind}": torch.as_tensor(value)
        for i, state in optimizer_state["state"].items()
        for kind, value in state.items()
    }


def restore_optimizer(optimizer: AdamW | MuonClip, tensors: dict[str, torch.Tensor]) -> None:
    """Give an optimizer the averages that `tensors_of` named. Raises ValueError for those of other parameters.

    Its rates and settings are those that the configuration gave it, and stay.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict] = {i: {} for i in range(len(params))}
    for name, tensor in tensors.items():
        if not name.startswith("optimizer."):
            continue
        _, number, kind = name.split(".")
        i = int(number) if number.isdecimal() else -1
        if i not in state or kind not in ("momentum", "mean", "square", "step"):
            raise ValueError(f"the tensor {name} belongs to no parameter of this run")
        wanted = [] if kind == "step" else list(params[i].shape)
        if list(tensor.shape) != wanted:
            raise ValueError(f"{name} has the shape {list(tensor.shape)}, for this run it must be {wanted}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds numbers that are not finite: it was saved by a run that had failed")
        state[i][kind] = tensor.item() if kind == "step" else tensor
    for i, kinds in state.items():
        if set(kinds) not in ({"momentum"}, {"mean", "square", "step"}):
            raise ValueError(f"parameter {i} has {', '.join(kinds) or 'no averages'} in the saved optimizer")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def must_be_same(what: str, ours: dict, saved: dict) -> None:
    """Raise ValueError naming the first field in which a configuration differs from the saved one."""
    for name, value in ours.items():
        if value != saved.get(name):
            raise ValueError(
                f"the saved {what} has {name}={saved.get(name)!r}, to continue it must stay so, not {value!r}"
            )
