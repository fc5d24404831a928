"""A copy of a run's checkpoints in a second place, such as Google Drive, made beside training."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

from utils.checkpoint import FILE_NAME, holds_run
from utils.files import write_atomically
from utils.run_folder import HISTORY

FILES = (FILE_NAME, HISTORY)


class Mirror:
    """Copies the newest checkpoint of a folder to another one, in a thread: training does not wait for a slow disk.

    Each copy is complete or absent. One that fails is tried again, with a pause that doubles; a newer checkpoint takes
    the place of one that is still waiting.
    """

    PAUSES = (1, 2, 4, 8, 16)  # seconds

    def __init__(self, folder: Path, to: Path):
        self.folder, self.to = folder, to
        self.problem: str | None = None  # of the last try
        self._wanted = self._made = 0  # copies
        self._ends, self._woken = False, threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def copy(self) -> None:
        """Ask for a copy of what the folder has now."""
        self._wanted += 1
        self._woken.set()

    def finish(self) -> None:
        """Wait for the copy that was asked for last. Raises OSError where it could not be made."""
        if self._made < self._wanted:
            print(f"copying to {self.to} ...")
        self._ends = True
        self._woken.set()
        while self._thread.is_alive():
            self._thread.join(0.2)  # so that Ctrl-C gets through
        if self.problem:
            raise OSError(f"the newest checkpoint is not in {self.to} ({self.problem}); it is in {self.folder}")

    def _work(self) -> None:
        while not (self._ends and self._made == self._wanted):
            self._woken.wait()
            self._woken.clear()
            wanted = self._wanted
            if wanted > self._made:
                self._try(wanted)
                self._made = wanted

    def _try(self, wanted: int) -> None:
        for pause in (*self.PAUSES, None):
            try:
                copy_run(self.folder, self.to)
                self.problem = None
                return
            except OSError as error:
                self.problem = str(error)
            if pause is None or self._wanted > wanted:
                return
            time.sleep(pause)


def copy_run(folder: Path, to: Path) -> None:
    """Copy the files of a run, each of them whole or not at all. Raises OSError where the place does not take them."""
    to.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if not (folder / name).is_file():
            continue
        with open(folder / name, "rb") as source:  # stays the same file when a newer one takes its name
            write_atomically(to / name, lambda file, source=source: shutil.copyfileobj(source, file, 2**20))


def take_copy(folder: Path | None, copies: Path | None) -> None:
    """Where a run is to go on and its folder has none, as after a disconnect of Colab, take it from its copy."""
    if folder and copies and holds_run(copies) and not holds_run(folder):
        copy_run(copies, folder)
        print(f"the run goes on from its copy in {copies}")
