"""The files of weights in a folder of Hugging Face's kind: which they are, whether they are whole, what they hold."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from utils.files import json_part, read_json, sha256_of

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SUMS = "SHA256SUMS"  # of the other files, as sha256sum writes and checks it
FUSED = re.compile(r"(.+\.mlp\.experts)\.(gate_up_proj|down_proj)(?:\.weight)?")


def check_sums(folder: Path) -> None:
    """Raise ValueError where a file of an export is not the one that was written."""
    if not (folder / SUMS).is_file():
        return
    for line in (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        file = folder / plain_name(name, SUMS)
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}, which {SUMS} lists")
        if sha256_of(file) != digest:
            raise ValueError(f"{file} is not the file that was exported with the others: it was damaged or changed (if "
                             f"you meant to change it, delete {SUMS})")  # fmt: skip


def plain_name(name: object, where: str) -> str:
    """The name of a file in the folder itself. Raises ValueError for any other path."""
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
        raise ValueError(f"{where} names the file {name!r:.100}, it must be a plain name, without a folder")
    return name


def weight_files(folder: Path) -> list[Path]:
    """The one file of weights, or the shards that an index names."""
    files = [folder / WEIGHTS]
    if not files[0].is_file() and (folder / INDEX).is_file():
        shards = json_part(read_json(folder / INDEX), "weight_map").values()
        files = [folder / name for name in sorted({plain_name(shard, INDEX) for shard in shards})]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}")
    return files


def shapes_in(folder: Path) -> list[list[int]]:
    """The shape of every tensor in the files, read from their headers."""
    shapes = []
    for file in weight_files(folder):
        with _refused(file), safe_open(file, "pt") as opened:
            shapes += [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118
    return shapes


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor in the files, by its name."""
    weights = {}
    for file in weight_files(folder):
        with _refused(file):
            weights |= load_file(file)
    return weights


@contextlib.contextmanager
def _refused(file: Path) -> Iterator[None]:
    """In it, what is wrong with a file of weights is a ValueError that names it."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no safetensors file or is cut off ({error})") from error


def separate_experts(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with published names for experts that lie in one tensor, as transformers 5 has them in memory.

    gate_up_proj (E, 2F, D), gate first, and down_proj (E, D, F).
    """
    separate = {}
    for name, tensor in weights.items():
        fused = FUSED.fullmatch(name)
        if fused is None or tensor.ndim != 3:
            separate[name] = tensor
            continue
        experts, kind = fused.groups()
        parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
        for e, matrix in enumerate(tensor):
            for part, piece in zip(parts, matrix.chunk(len(parts)), strict=False):
                separate[f"{experts}.{e}.{part}.weight"] = piece
    return separate
