"""A file of tensors and plain values in which no change goes unseen: safetensors, JSON and checksums in its header.

The header holds the plain values as one JSON text, and with them the SHA-256 of every tensor; beside it stands the
SHA-256 of that text. Any program that reads safetensors reads the tensors. Nothing in such a file can be executed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from utils.files import write_atomically

HEADER_LIMIT = 64 * 2**20  # bytes: longer ones are not parsed


class Damaged(ValueError):
    """A file is not what was written."""


def write_sealed(
    path: str | Path, form: str, tensors: dict[str, torch.Tensor], plain: dict, keep: str | Path | None = None
) -> None:
    """Write tensors and `plain`, values of JSON, as the file `path`, whole or not at all. `form` names what they are.

    keep: another name for what stood at `path` before. Raises OSError as `write_atomically`.
    """
    tensors = _apart(tensors)
    checksums = {name: checksum(tensor) for name, tensor in tensors.items()}
    content = json.dumps({"form": form, "plain": plain, "tensors": checksums})
    metadata = {"content": content, "sha256": hashlib.sha256(content.encode()).hexdigest()}
    data = save(tensors, metadata)
    write_atomically(path, lambda file: file.write(data), keep)


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same values on the CPU, none in memory that another has: safetensors writes no memory twice."""
    apart, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        apart[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in seen else tensor
        seen.add(tensor.untyped_storage().data_ptr())
    return apart


def checksum(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor on the CPU: of its type, its shape and its bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_sealed(file: Path) -> tuple[str, dict[str, torch.Tensor], dict]:
    """(form, tensors on the CPU, plain values) of a file that `write_sealed` wrote.

    Raises FileNotFoundError where there is none, `Damaged` where it is another file or one that was changed.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
    if length > HEADER_LIMIT:
        raise Damaged(f"{file} is damaged or something else: its header would have {length:,} bytes")
    try:
        with safe_open(file, "pt") as opened:  # compares the sizes in the header with the file's before it reads
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise Damaged(f"{file} is damaged or something else ({_first_line(error)})") from error
    content = metadata.get("content", "")
    if hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest() != metadata.get("sha256"):
        raise Damaged(f"{file} is damaged: its settings are not those that were written")
    state = json.loads(content)
    for name in tensors.keys() | state["tensors"].keys():
        if name not in tensors or state["tensors"].get(name) != checksum(tensors[name]):
            raise Damaged(f"{file} is damaged: the tensor {name} is not the one that was written")
    return state["form"], tensors, state["plain"]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
