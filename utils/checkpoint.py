"""What a run keeps: its model, its tokenizer and all that it needs to go on, in one sealed file, and the one before.

A checkpoint is written beside its place and moved there at once, so a crash never leaves half of one. The one that it
replaces stays as `checkpoint.previous.safetensors`. Reading one builds tensors, numbers and text, and executes nothing.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import torch

from utils.config import KimiConfig, from_dict
from utils.files import check_kinds
from utils.model import Kimi
from utils.sealed import Damaged, read_sealed, write_sealed
from utils.tokenizer import tokenizer_from_dict

FILE_NAME, PREVIOUS, DAMAGED = (f"checkpoint{which}.safetensors" for which in ("", ".previous", ".damaged"))
OLD_NAME = "checkpoint.pt"  # of the formats before: `convert` reads them
FORM = "kimi-k2-from-scratch checkpoint 4"
NUMBER_TYPES = (torch.float32, torch.bfloat16, torch.float16)
MODEL = "model."  # begins the names of the weights


def save_checkpoint(
    path: str | Path,
    model: Kimi,
    step: int,
    training: dict | None = None,
    tensors: dict[str, torch.Tensor] | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write model and tokenizer to `path`, a folder or a file, and what a run needs to go on.

    training: plain values, as JSON has them; tensors: what else it needs; weights: the model's state dict, where this
    process does not hold all of it. The checkpoint that was there before stays under another name. Raises OSError where
    the disk does not take it.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile has wrapped
    plain = {
        "step": step,
        "config": asdict(model.config),
        "tokenizer": model.tokenizer.to_dict() if model.tokenizer is not None else None,
        "training": training,
    }
    weights = {MODEL + name: tensor for name, tensor in (weights or model.state_dict()).items()}
    file = checkpoint_file(path)
    keep = file.with_name(PREVIOUS) if file.name == FILE_NAME else None
    write_sealed(file, FORM, weights | (tensors or {}), plain, keep)


def checkpoint_file(path: str | Path) -> Path:
    """The checkpoint that `path` means: itself, or the one in the run folder that it names."""
    path = Path(path)
    return path if path.suffix in (".safetensors", ".pt") else path / FILE_NAME


def holds_run(folder: str | Path) -> bool:
    """Whether a folder has a checkpoint, of whatever age and in whatever state."""
    return any(os.path.lexists(Path(folder) / name) for name in (FILE_NAME, PREVIOUS, DAMAGED, OLD_NAME))


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> dict:
    """What `save_checkpoint` wrote: step, config, tokenizer, model (its weights), training and tensors.

    Raises FileNotFoundError where nothing is, ValueError where it is something else or does not fit together, and
    `Damaged`, a ValueError too, where the file was changed since, with a word of the checkpoint before.
    """
    file = checkpoint_file(path)
    if file.suffix == ".pt" or (not file.is_file() and file.with_name(OLD_NAME).is_file()):
        old = file.with_name(OLD_NAME) if file.suffix != ".pt" else file
        raise ValueError(f"{old} has an older form: python -m utils convert --run {old.parent}")
    previous = file.with_name(PREVIOUS)
    way_back = f"; the one before it is taken by python -m utils restore --run {file.parent}"
    has_previous = file.name == FILE_NAME and previous.is_file()
    try:
        form, tensors, plain = read_sealed(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no checkpoint at {file}{way_back if has_previous else ''}") from None
    except Damaged as error:
        raise Damaged(f"{error}{way_back if has_previous else ''}") from error
    if form != FORM:
        raise ValueError(f"{file} is not a checkpoint of this project: its form is {form!r:.60}, not {FORM!r}")
    weights = {name.removeprefix(MODEL): t for name, t in tensors.items() if name.startswith(MODEL)}
    try:
        check_checkpoint(plain, weights)
    except ValueError as error:
        raise ValueError(f"{file} holds no model of this project: {error}") from error
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(MODEL)}
    return {
        **plain,
        "model": {name: tensor.to(device) for name, tensor in weights.items()},
        "tensors": {name: tensor.to(device) for name, tensor in rest.items()},
    }


def check_checkpoint(plain: dict, weights: dict[str, torch.Tensor]) -> None:
    """Raise ValueError, naming the field or tensor, unless they make a model."""
    check_kinds(plain, {"step": int, "config": dict, "tokenizer": dict | None, "training": dict | None})
    if plain["step"] < 0:
        raise ValueError(f"step is {plain['step']}, it must be 0 or more")
    config = from_dict(KimiConfig, plain["config"])
    if config.n_layers > len(weights):  # so many layers need not be described
        raise ValueError(f"n_layers is {config.n_layers}, and there are {len(weights)} tensors")
    check_weights(weights, shapes_of(config))
    if plain["tokenizer"] is not None:
        n_tokens = len(tokenizer_from_dict(plain["tokenizer"]))
        if n_tokens > config.vocab_size:
            raise ValueError(f"vocab_size is {config.vocab_size}, the tokenizer has {n_tokens} tokens")


def shapes_of(config: KimiConfig) -> dict[str, torch.Tensor]:
    """The tensors of a model of this configuration, without memory for their values."""
    try:
        with torch.device("meta"):
            return Kimi(config).state_dict()
    except RuntimeError as error:  # a product of sizes that torch cannot count
        raise ValueError(f"its sizes are too large ({str(error).partition(chr(10))[0]:.100})") from error


def check_weights(weights: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Raise ValueError for the first tensor that is missing, too much, of another shape or type, or not finite."""
    for name in wanted.keys() | weights.keys():
        if name not in weights:
            raise ValueError(f"there is no tensor {name}")
        if name not in wanted:
            raise ValueError(f"it has a tensor {name}, which a model of its config must not have")
        tensor, shape = weights[name], list(wanted[name].shape)
        if list(tensor.shape) != shape:
            raise ValueError(f"{name} has the shape {list(tensor.shape)}, by its config it must be {shape}")
        if tensor.dtype not in NUMBER_TYPES:
            raise ValueError(f"{name} is {tensor.dtype}, it must be one of {', '.join(map(str, NUMBER_TYPES))}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds numbers that are not finite: it was saved by a run that had failed")


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[Kimi, int]:
    """(model ready to generate, the step it was saved at) from a checkpoint or a run folder."""
    state = load_checkpoint(path)
    model = Kimi(from_dict(KimiConfig, state["config"]))
    model.load_state_dict(state["model"])
    if state["tokenizer"] is not None:
        model.tokenizer = tokenizer_from_dict(state["tokenizer"])
    return model.to(device).eval(), state["step"]


def restore_previous(folder: str | Path) -> int:
    """Put the checkpoint before the newest in its place, and return its step. The newest is kept, as DAMAGED.

    Raises FileNotFoundError where there is none, ValueError where it is damaged as well.
    """
    folder = Path(folder)
    step = load_checkpoint(folder / PREVIOUS)["step"]
    if (folder / FILE_NAME).exists():
        os.replace(folder / FILE_NAME, folder / DAMAGED)
    os.replace(folder / PREVIOUS, folder / FILE_NAME)
    return step
