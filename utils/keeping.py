"""When a run is saved, what is saved beside it, and what is done where the disk does not take it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from utils.accessories import Accessories
from utils.checkpoint import FILE_NAME
from utils.interrupt import StopRequest
from utils.mirror import Mirror
from utils.run_folder import HISTORY
from utils.run_state import RunState


class Keeper:
    """Saves a run in its folder every few minutes; without a folder it keeps nothing.

    A save that fails is tried again at the next interval, and the last good one stays. mirror: copies each elsewhere.
    """

    FIRST_SAVE_SECONDS = 20  # the first checkpoint comes early: a folder that cannot be written is found out at once

    def __init__(
        self, run: RunState, folder: Path | None, accessories: Accessories, stop: StopRequest, mirror: Mirror | None
    ):
        self.run, self.folder, self.accessories, self.stop, self.mirror = run, folder, accessories, stop, mirror
        self.writes = run.ranks.is_first  # of several processes one
        self.saved_at = time.perf_counter()

    def is_due(self) -> bool:
        wait = 60 * self.run.config.checkpoint_minutes
        wait = wait if self.run.saved_step else min(wait, self.FIRST_SAVE_SECONDS)
        return self.writes and self.folder is not None and time.perf_counter() - self.saved_at > wait

    def save(self) -> None:
        """Save, or say why not and go on."""
        try:
            self._write()
        except OSError as error:
            self.accessories.failed("a checkpoint", error)
        self.saved_at = time.perf_counter()

    def save_last(self) -> None:
        """Save what is not saved yet, and wait for its copy.

        Raises OSError where the disk does not take it, saying how much it needs and what stays.
        """
        if self.folder is None:
            return
        (is_newer,) = self.run.ranks.any(self.run.step > self.run.saved_step)
        if is_newer:
            try:
                self._write()
            except OSError as error:
                raise OSError(f"{error}; {self.way_out()}") from error
        elif self.writes:
            self.write_history()
        if self.mirror:
            self.accessories.attempt("its newest copy", self.mirror.finish)

    def _write(self) -> None:
        self.stop.saving = True
        try:
            self.run.save(self.folder if self.writes else None)
        finally:
            self.stop.saving = False
        if not self.writes:
            return
        self.accessories.mended("a checkpoint")
        self.write_history()
        if self.mirror:
            self.mirror.copy()

    def write_history(self) -> None:
        """The history beside the checkpoint: a copy for people, nothing depends on it."""
        self.accessories.attempt(HISTORY, lambda: self.run.history.save(self.folder / HISTORY))

    def way_out(self) -> str:
        """What to do where a run cannot be saved."""
        free = shutil.disk_usage(self.folder).free
        kept = f"the checkpoint of step {self.run.saved_step} stays" if self.run.saved_step else "nothing is saved"
        return (
            f"{FILE_NAME} needs {self.run.n_bytes / 1e6:,.0f} MB beside the one that it replaces, {free / 1e6:,.0f} MB "
            f"are free; {kept}. Make room and go on with --resume, or copy the folder to another disk and give that as "
            "--run; in a notebook the model is still in memory: save_checkpoint(folder, model, step)"
        )
