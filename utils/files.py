"""Files that are written as a whole or not at all, and JSON that is what it should be."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, make sure that it is on the disk, then move it to `path`.

    A crash, or an error in `write`, leaves what stood at `path` before. Makes the folder where it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """`write_atomically` for a text, in UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def read_json(file: Path) -> dict:
    """The JSON object in a file. FileNotFoundError where there is none, ValueError where it is something else."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    try:
        state = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{file} holds a {type(state).__name__}, it must be a JSON object")
    return state


def json_part(state: dict, name: str) -> dict:
    """A copy of the JSON object under `name`, empty where it is missing or null."""
    value = state.get(name)
    if not isinstance(value, dict | None):
        raise ValueError(f"{name} is {value!r:.60}, it must be a JSON object")
    return dict(value or {})
