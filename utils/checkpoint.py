"""One file holds a model, its tokenizer and all that a run needs to continue.

Files are written beside their place and moved there at once, so a crash never leaves half a checkpoint. They are read
with torch's `weights_only` reader, which builds tensors, numbers, text and lists, and executes nothing.
"""

from __future__ import annotations

import pickle
from dataclasses import asdict, fields
from pathlib import Path

import torch

from utils.config import K2Config, KimiConfig, NanoConfig, from_dict
from utils.files import write_atomically
from utils.model import Kimi
from utils.tokenizer import tokenizer_from_dict

FILE_NAME = "checkpoint.pt"
FORMAT = "kimi-k2-from-scratch checkpoint 3"
FORMAT_2 = "kimi-k2-from-scratch checkpoint 2"  # its configuration had the fields of both architectures


def save_checkpoint(path: str | Path, model: Kimi, step: int, training: dict | None = None) -> None:
    """Write model, tokenizer and `training` (tensors and plain values: optimizer, random states, ...) to `path`."""
    model = getattr(model, "_orig_mod", model)  # what torch.compile has wrapped
    state = {
        "format": FORMAT,
        "step": step,
        "config": asdict(model.config),
        "tokenizer": model.tokenizer.to_dict() if model.tokenizer is not None else None,
        "model": model.state_dict(),
        "training": training,
    }
    write_atomically(checkpoint_file(path), lambda file: torch.save(state, file))


def checkpoint_file(path: str | Path) -> Path:
    """The checkpoint that `path` means: itself, or the one in the run folder that it names."""
    path = Path(path)
    return path if path.suffix == ".pt" else path / FILE_NAME


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> dict:
    """What `save_checkpoint` wrote. FileNotFoundError where nothing is, ValueError where it is something else."""
    file = checkpoint_file(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {file}")
    try:
        state = torch.load(file, map_location=device, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{file} is not a checkpoint or is cut off ({reason})") from error
    if not isinstance(state, dict) or state.get("format") not in (FORMAT, FORMAT_2):
        raise ValueError(f"{file} is not a checkpoint of this project: its format is not {FORMAT!r}")
    if state["format"] == FORMAT_2:
        _convert_from_2(state)
    return state


def _convert_from_2(state: dict) -> None:
    """Bring what the second format said otherwise into the form of this one."""
    own = K2Config if state["config"].get("architecture") == "k2" else NanoConfig
    other = NanoConfig if own is K2Config else K2Config
    gone = {field.name for field in fields(other)} - {field.name for field in fields(own)}
    state["config"] = {name: value for name, value in state["config"].items() if name not in gone}
    if (training := state["training"]) is None:
        return
    training["device_rng"] = training.pop("cuda_rng", None)
    recipe = training["recipe"] = training.pop("notes", None)
    if recipe is not None:
        recipe.pop("training", None)  # it stood in the checkpoint twice
        recipe["model"] = {name: value for name, value in recipe.get("model", {}).items() if name not in gone}


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[Kimi, int]:
    """(model ready to generate, the step it was saved at) from a checkpoint or a run folder."""
    state = load_checkpoint(path)
    model = Kimi(from_dict(KimiConfig, state["config"]))
    model.load_state_dict(state["model"])
    if state["tokenizer"] is not None:
        model.tokenizer = tokenizer_from_dict(state["tokenizer"])
    return model.to(device).eval(), state["step"]
