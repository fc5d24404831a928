"""A run as its checkpoint has it: what must be there and fit, and the optimizer's averages by name."""

from __future__ import annotations

from pathlib import Path

import torch

from utils.checkpoint import load_checkpoint
from utils.config import NUMBER_FORMATS, TrainConfig, from_dict
from utils.files import check_kinds
from utils.muonclip import AdamW, MuonClip
from utils.parallel.whole import cut_like

# the parts of a saved run that are no tensors
SAVED = {
    "config": dict, "recipe": dict | None, "data": str, "number_format": str, "scaler": dict, "rows": list,
    "seconds": int | float,
}  # fmt: skip


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
        state[i][kind] = tensor.item() if kind == "step" else cut_like(tensor, params[i])
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


def load_run(folder: Path, device: torch.device) -> dict:
    """The checkpoint of a run to continue. Raises ValueError where it holds a model only, or half of a run."""
    state = load_checkpoint(folder, device)
    if state["training"] is None:
        raise ValueError("this checkpoint holds a model only: there is no run to continue")
    check_run(state)
    return state
