"""The plan of a run in seconds, from a few measured steps: what it adds up, and that measuring changes nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.helpers import TINY_MODELS, every_architecture
from utils.config import TrainConfig
from utils.cost import n_looks
from utils.data import TokenData
from utils.pace import Pace, measure_pace

DATA = TokenData(np.arange(60, dtype=np.uint16) % 10, 40, {"train": 40, "val": 20})
CONFIG = TrainConfig(steps=50, batch_size=2, block_size=8, eval_interval=10)


@every_architecture
def test_a_pace_is_measured_on_a_copy(architecture):
    model = TINY_MODELS[architecture]()
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    seen = []
    pace = measure_pace(model, DATA, CONFIG, watch=lambda view: seen.append(view) or {}, steps=2)
    assert min(pace) > 0 and len(seen) == 2
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_steps_looks_and_checkpoints_add_up():
    assert n_looks(CONFIG) == 6
    assert Pace(step=2.0, look=30.0, save=0.0).seconds(CONFIG) == 50 * 2 + 6 * 30
    assert Pace(step=2.4, look=0.0, save=5.0).seconds(CONFIG) == pytest.approx(120 + 3 * 5)


@pytest.mark.parametrize("seconds", [10, 100, 279, 280, 1000])
def test_a_plan_that_is_too_long_loses_steps(seconds):
    pace, config = Pace(step=2.0, look=30.0, save=0.0), replace(CONFIG, steps=500, eval_interval=100)
    fitted = pace.fit(config, seconds, least=5)
    if seconds >= pace.seconds(config):
        assert fitted == config
    elif fitted.steps > 5:
        assert pace.seconds(fitted) <= seconds < pace.seconds(replace(fitted, steps=fitted.steps + 1))
    assert 5 <= fitted.steps <= 500
