"""Files that are written as a whole or not at all, and JSON that is what it should be."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, make sure that it is on the disk, then move it to `path`.

    A crash, or an error in `write`, leaves what stood at `path` before. Makes the folder where it is missing. Raises
    OSError with one sentence where the disk is full or does not take the file for another reason.
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
    except (OSError, RuntimeError) as error:
        if reason := _of_the_disk(error):
            raise OSError(f"{path} could not be written: {reason.strerror or reason}") from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _of_the_disk(error: BaseException | None) -> OSError | None:
    """The error itself, or what was the matter when it came up: of a full disk torch says only where the file ended."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def refuse_unwritable(folder: str | Path) -> None:
    """Raise OSError where no file can be written into `folder`, found out by trying; what is made for it goes again."""
    folder = Path(folder)
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"a byte")
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise OSError(f"{folder} cannot be a folder to write to: {reason}") from None
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()


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
