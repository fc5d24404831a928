"""A disk that is full at one write of a run after the other: nothing is lost but the steps since the last save."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import warnings
from pathlib import Path

from tests.proofs.found import Found
from utils import files
from utils.checkpoint import FILE_NAME, load_checkpoint
from utils.config import KimiConfig, TrainConfig
from utils.data import TokenData
from utils.grammar import builtin_stories
from utils.model import Kimi
from utils.tokenizer import WordTokenizer
from utils.training import train

STORIES = builtin_stories(60, 1)
TOK = WordTokenizer.train(STORIES)
CONFIG = TrainConfig(steps=8, batch_size=2, block_size=16, eval_interval=2, eval_batches=1, number_format="fp32",
                     checkpoint_minutes=1e-9)  # fmt: skip


class Disk:
    """Counts what is opened to be written, and is full from the start of one of them on, for `lasts` of them."""

    def __init__(self, full_at: int | None, lasts: int, share: float):
        self.full_at, self.lasts, self.share, self.n = full_at, lasts, share, 0

    def open(self, path, mode):
        self.n += 1
        file = io.open(path, mode)  # noqa: UP020, SIM115
        full = self.full_at is not None and self.full_at <= self.n - 1 < self.full_at + self.lasts
        return Full(file, self.share) if full else file


class Full:
    """A file of which only a share of each write fits."""

    def __init__(self, file, share: float):
        self.file, self.share = file, share

    def write(self, data) -> int:
        self.file.write(data[: int(self.share * len(data))])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


@contextlib.contextmanager
def quiet():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def run(folder: Path, disk: Disk, steps: int = CONFIG.steps, resume: bool = False):
    model = Kimi(KimiConfig.k2_mini(len(TOK), block_size=16, d_model=32, n_layers=2, n_heads=2, d_ff=16, dense_ff=32,
                                    n_experts=4, top_k=2))  # fmt: skip
    model.tokenizer = TOK
    data = TokenData.from_stories(STORIES, TOK)
    files.open = disk.open
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return train(model, data, CONFIG, folder, resume=resume)
    finally:
        del files.open


def prove(folder: Path, n: int, seed: int) -> Found:
    """Each write of a run in turn, for one, three and all later ones; `n` times over, with shares that fit."""
    whole, problems, tried, ended = Disk(None, 0, 0.0), [], 0, 0
    expected = run(folder / "whole", whole).losses
    for share in (0.0, 0.5, 0.999)[: max(1, n)]:
        for lasts in (1, 3, 10**9):
            for full_at in range(whole.n):
                place = folder / f"{share}-{lasts}-{full_at}"
                tried += 1
                try:
                    run(place, Disk(full_at, lasts, share))
                    ended += 1
                except OSError as error:
                    if "\n" in str(error) or "Make room" not in str(error):
                        problems.append(f"write {full_at}, {lasts}: {error}")
                if left := list(place.glob("*.partial")):
                    problems.append(f"write {full_at}, {lasts}: left {left}")
                saved = load_checkpoint(place)["step"] if (place / FILE_NAME).exists() else 0
                again = run(place, Disk(None, 0, 0.0), resume=True).losses
                if again != expected or saved > len(expected):
                    problems.append(f"write {full_at}, {lasts}: other losses after step {saved}")
    told = f"{tried} runs of {whole.n} writes on a full disk: {ended} ended, {tried - ended} said why not"
    return Found(f"{told}, {tried - len(problems)} went on to the same losses", problems)
