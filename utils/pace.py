"""How long a run will take on this machine, from a few steps and one look of a copy of its model."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from utils.accessories import Accessories
from utils.config import TrainConfig
from utils.cost import n_looks
from utils.data import TokenData
from utils.device import fork_rng, pick_number_format
from utils.memory import refuse_too_much
from utils.model import Kimi
from utils.run_state import RunState
from utils.training import make_optimizer, train_mode, train_step
from utils.validation import validate

WARM = 4  # steps, the first are slower: memory is found, kernels are chosen


class Pace(NamedTuple):
    """Seconds of what a run is made of."""

    step: float
    look: float  # the validation loss, and what the watcher does
    save: float  # one checkpoint

    def seconds(self, config: TrainConfig) -> float:
        """All of a run but its loading: steps, looks, and a checkpoint every few minutes."""
        busy = config.steps * self.step + n_looks(config) * self.look
        saves = min(config.steps, 1 + busy / (60 * config.checkpoint_minutes))  # after a step, at most
        return busy + saves * self.save

    def fit(self, config: TrainConfig, seconds: float, least: int = 100) -> TrainConfig:
        """The configuration with as many steps as fit into so many seconds: at least `least`, at most its own.

        A shorter run looks as often as the longer one would have.
        """
        if self.seconds(config) <= seconds or config.steps <= least:
            return config
        share = seconds / self.seconds(config)
        fewer = max(1, round(config.eval_interval * share))
        few, many = least, config.steps
        while few < many:  # the largest number of steps that fits
            middle = (few + many + 1) // 2
            fits = self.seconds(replace(config, steps=middle, eval_interval=fewer)) <= seconds
            few, many = (middle, many) if fits else (few, middle - 1)
        return replace(config, steps=few, eval_interval=fewer)


def measure_pace(
    model: Kimi, data: TokenData, config: TrainConfig, watch: Callable[[Kimi], dict] | None = None, steps: int = 12
) -> Pace:
    """The pace of a run of `model`, which stays as it is: a copy takes `steps` steps, two looks, and is saved once.

    An untrained model ends its stories late or not at all, so a watcher that has stories told takes longer here.
    Raises ValueError and MemoryError where the run itself would.
    """
    data.refuse_block(config.block_size)
    number_format, _ = pick_number_format(model.device, config.number_format)
    refuse_too_much(model, config, number_format)
    trained, attempt = copy.deepcopy(model), Accessories().attempt
    with fork_rng(model.device), train_mode(trained):
        optimizer = make_optimizer(trained, config, number_format)
        run = RunState(trained, data, config, number_format, optimizer)
        for _ in range(WARM):
            train_step(run)
        run.read_losses()  # waits for a GPU
        started = time.perf_counter()
        for _ in range(steps):
            train_step(run)
        run.read_losses()
        of_steps = time.perf_counter() - started
        looks = []
        for _ in range(2):  # the first also prepares what all of them use
            started = time.perf_counter()
            validate(run, None, watch, attempt)
            looks.append(time.perf_counter() - started)
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            run.save(Path(folder))
            of_save = time.perf_counter() - started
    return Pace(of_steps / steps, looks[-1], of_save)
