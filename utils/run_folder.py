"""The folder of a run: one process at a time, nothing of another run overwritten, nothing half left over."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from utils.checkpoint import DAMAGED, FILE_NAME, OLD_NAME, PREVIOUS, holds_run
from utils.files import PARTIAL, refuse_unwritable, write_text

HISTORY, FIGURE = "history.json", "loss.png"
LOCK, HOLDER = ".lock", ".lock.json"
REPLACED = "replaced"  # what --overwrite moves aside


def refuse_other_run(folder: Path | None, resume: bool, overwrite: bool) -> None:
    """Raise FileExistsError rather than write over somebody's run, and OSError or ValueError rather than lose one.

    A folder that ends as a checkpoint does would be taken for one, and not every folder can be written to.
    """
    if folder is None:
        return
    if folder.suffix in (".pt", ".safetensors"):
        better = folder.parent if folder.name in (FILE_NAME, OLD_NAME) else folder.with_suffix("")
        raise ValueError(f"{folder} is the name of a checkpoint, a run needs that of a folder, such as {better}")
    refuse_unwritable(folder)
    if holds_run(folder) and not (resume or overwrite):
        raise FileExistsError(f"{folder} holds another run: continue it with --resume or replace it with --overwrite")


@contextlib.contextmanager
def held(folder: Path | None) -> Iterator[None]:
    """In it no other process trains in this folder, and what one left half written is gone.

    A folder that was made for it goes again where nothing came into it. Raises BlockingIOError where another process
    trains there. Where the file system knows no locks, a line says so.
    """
    if folder is None:
        yield
        return
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(
            f"{folder} is in use by {_holder(folder)}: wait for it, or train with another --run"
        ) from None
    except (OSError, NotImplementedError) as error:
        print(f"{folder} cannot be locked ({error}): see to it that no other process trains there")
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name too
            write_text(folder / HOLDER, json.dumps({"process": os.getpid(), "machine": platform.node()}))
        for leftover in folder.glob(f"*{PARTIAL}"):
            leftover.unlink(missing_ok=True)
        yield
    finally:
        if lock.is_locked:
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()
        if is_new and [file.name for file in folder.iterdir()] == [LOCK]:
            shutil.rmtree(folder)


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_text())
        return f"process {int(holder['process'])} on {holder['machine']:.60}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def move_aside(folder: Path) -> None:
    """Move the run in `folder` into a folder of it, so that from here on there is none to resume but the new one."""
    files = [folder / name for name in (FILE_NAME, PREVIOUS, DAMAGED, OLD_NAME, HISTORY, FIGURE)]
    files = [file for file in files if os.path.lexists(file)]
    if not files:
        return
    aside = folder / REPLACED
    aside.mkdir(exist_ok=True)
    for old in aside.iterdir():
        old.unlink()
    for file in files:
        os.replace(file, aside / file.name)
    print(f"the run that was in {folder} is now in {aside}")
