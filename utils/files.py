"""Files that are written as a whole or not at all, and JSON that is what it should be."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"  # ends the name of a file that is being written
CHECKSUM = "sha256"


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object], keep: str | Path | None = None) -> None:
    """Let `write` fill a temporary file beside `path`, make sure that it is on the disk, then move it to `path`.

    A crash, or an error in `write`, leaves what stood at `path` before; afterwards `keep` names that, if it is given.
    Makes the folder where it is missing. Raises OSError with one sentence where the disk is full or does not take the
    file for another reason.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    partial.unlink(missing_ok=True)
    try:
        with open(partial, "xb") as file:  # a link that somebody planted there is not followed
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            _name_also(path, Path(keep))
        os.replace(partial, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        if reason := _of_the_disk(error):
            told = OSError(f"{path} could not be written: {reason.strerror or reason}")
            told.errno = reason.errno
            raise told from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _name_also(path: Path, other: Path) -> None:
    """Give a file a second name, at which nothing else is then; where a file has one name only, it moves there."""
    link = other.with_name(f"{other.name}.{os.getpid()}{PARTIAL}")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # the file system has no links
        os.replace(path, other)
    else:
        os.replace(link, other)


def _sync_folder(folder: Path) -> None:
    """Make sure that the names in a folder are on the disk, so that they outlive a loss of power."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):  # some file systems refuse
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
        reason = "it is a file" if os.path.isfile(folder) else error.strerror  # a name may be too long to ask
        raise OSError(f"{folder} cannot be a folder to write to: {reason}") from None
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()


def write_text(path: str | Path, text: str) -> None:
    """`write_atomically` for a text, in UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def sha256_of(file: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while piece := opened.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


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


def write_checked(path: str | Path, state: dict) -> None:
    """Write a JSON object, with a checksum of its values."""
    write_text(path, json.dumps({**state, CHECKSUM: _checksum(state)}))


def read_checked(file: str | Path) -> dict:
    """What `write_checked` wrote; a file from before there were checksums is taken as it is.

    Raises as `read_json`, and ValueError where its values are not those that were written.
    """
    state = read_json(Path(file))
    if CHECKSUM in state and state.pop(CHECKSUM) != _checksum(state):
        raise ValueError(f"{file} is damaged: its values are not those that were written")
    return state


def _checksum(state: dict) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def json_part(state: dict, name: str) -> dict:
    """A copy of the JSON object under `name`, empty where it is missing or null."""
    value = state.get(name)
    if not isinstance(value, dict | None):
        raise ValueError(f"{name} is {value!r:.60}, it must be a JSON object")
    return dict(value or {})


def check_kinds(state: dict, kinds: dict, where: str = "") -> None:
    """Raise ValueError naming the first value of a JSON object that is missing or of another kind than `kinds` says."""
    for name, kind in kinds.items():
        value = state.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{where}{name} is {value!r:.60}, it must be {getattr(kind, '__name__', kind)}")
