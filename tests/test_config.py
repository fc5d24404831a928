"""Configurations check themselves, and every preset fits together."""

import dataclasses

import pytest

from utils.config import PRESETS, KimiConfig, TrainConfig, from_dict
from utils.model import Kimi


def test_nano_is_the_published_size():
    config = KimiConfig.nano(8000)
    assert dataclasses.asdict(config) == {
        "vocab_size": 8000, "block_size": 256, "d_model": 512, "n_heads": 8, "n_layers": 6, "d_ff": 1024,
        "n_experts": 4, "top_k": 2, "dropout": 0.1, "balance_coef": 0.01,
    }  # fmt: skip
    colab = PRESETS["colab"]
    assert colab.model == {} and colab.stories == 100_000
    assert (colab.training.steps, colab.training.batch_size, colab.training.eval_interval) == (2000, 32, 100)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vocab_size": 1}, "KimiConfig.vocab_size is 1, it must be a whole number, 2 or more"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"n_layers": 2.0}, "n_layers is 2.0, it must be a whole number"),
        ({"n_heads": True}, "n_heads is True"),
        ({"d_model": 100}, r"d_model is 100, it must be a multiple of n_heads \(8\)"),
        ({"top_k": 5}, r"top_k is 5, it must be at most n_experts \(4\)"),
        ({"dropout": 1.0}, r"dropout is 1.0, it must be in \[0, 1\)"),
        ({"balance_coef": float("nan")}, "balance_coef is nan"),
    ],
)
def test_an_impossible_model_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        KimiConfig.nano(**{"vocab_size": 100, **changes})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "TrainConfig.steps is 0, it must be a whole number, 1 or more"),
        ({"lr": 0}, "lr is 0, it must be a number above 0"),
        ({"lr": "fast"}, "lr is 'fast'"),
        ({"warmup": 1.5}, r"warmup is 1.5, it must be in \[0, 1\]"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1, it must be 0 or more"),
        ({"schedule": "linear"}, "schedule is 'linear', it must be one of cosine, constant"),
        ({"number_format": "fp8"}, "number_format is 'fp8', it must be one of auto, fp32, bf16, fp16"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_an_impossible_run_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


def test_configs_are_frozen_and_know_their_fields():
    config = KimiConfig.nano(100)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.d_model = 8
    assert from_dict(KimiConfig, dataclasses.asdict(config)) == config
    with pytest.raises(ValueError, match="KimiConfig has no field 'heads'"):
        from_dict(KimiConfig, {"vocab_size": 5, "heads": 2})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_a_model_that_takes_its_blocks(name):
    preset = PRESETS[name]
    config = KimiConfig.nano(50, **preset.model)
    assert preset.training.block_size <= config.block_size
    if name != "colab":  # the published size takes a second to fill with random numbers
        Kimi(config)
