"""Checkpoints of the first three formats, files of torch, brought into the form of today.

They are pickles. Even torch's reader of plain values could be made to execute them before torch 2.10
(CVE-2026-24747), so an older torch refuses; nothing else in this project reads such files.
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from dataclasses import fields
from pathlib import Path

import torch

from utils.checkpoint import FILE_NAME, FORM, MODEL, OLD_NAME, check_checkpoint
from utils.config import K2Config, NanoConfig
from utils.saved_run import tensors_of
from utils.sealed import write_sealed

FORMATS = FORMAT_2, FORMAT_3 = tuple(f"kimi-k2-from-scratch checkpoint {n}" for n in (2, 3))
SAFE_SINCE = (2, 10)


def convert(path: str | Path) -> Path:
    """Write the checkpoint at `path`, an old file or a folder with one, in the form of today; returns the new file.

    The old one stays. Raises FileNotFoundError where there is none, FileExistsError where there is a new one,
    ValueError where it is something else, or torch is too old to read it safely.
    """
    path = Path(path)
    old = path if path.suffix == ".pt" else path / OLD_NAME
    new = old.with_name(FILE_NAME) if old.name == OLD_NAME else old.with_suffix(".safetensors")
    if not old.is_file():
        raise FileNotFoundError(f"there is no old checkpoint at {old}")
    if new.exists():
        raise FileExistsError(f"{new} is there already")
    plain, weights, rest = _in_new_form(_read_old(old))
    try:
        check_checkpoint(plain, weights)
    except ValueError as error:
        raise ValueError(f"{old} holds no model of this project: {error}") from error
    write_sealed(new, FORM, {MODEL + name: tensor for name, tensor in weights.items()} | rest, plain)
    return new


def _read_old(file: Path) -> dict:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < SAFE_SINCE:
        raise ValueError(f"torch is {torch.__version__}, to convert {file} safely it must be 2.10 or newer")
    try:
        with zipfile.ZipFile(file) as parts:
            if (bad := parts.testzip()) is not None:  # torch itself compares no checksums
                raise ValueError(f"{bad} in it is not what was written")
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file} holds something else than tensors and plain values, and is not read") from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise ValueError(f"{file} is not a checkpoint or is cut off ({reason})") from error
    if not isinstance(state, dict) or state.get("format") not in FORMATS:
        raise ValueError(f"{file} is not a checkpoint of this project: its format is not one of {', '.join(FORMATS)}")
    if state["format"] == FORMAT_2:
        _to_3(state)
    return state


def _to_3(state: dict) -> None:
    """Bring what the second format said otherwise into the form of the third."""
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


def _in_new_form(state: dict) -> tuple[dict, dict, dict]:
    """(plain values, weights, other tensors) of a state of the third format."""
    training, rest = state["training"], {}
    if training is not None:
        rest = {name: training.pop(name) for name in ("batches", "rng", "device_rng")}
        rest = {name: tensor for name, tensor in rest.items() if tensor is not None}
        rest |= tensors_of(training.pop("optimizer"))
        rest["losses"] = torch.tensor(training["history"].pop("losses"), dtype=torch.float64)
        training["rows"] = training.pop("history")["rows"]
    plain = {name: state[name] for name in ("step", "config", "tokenizer")} | {"training": training}
    return plain, state["model"], rest
