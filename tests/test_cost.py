"""What a run costs, as counted, is what torch counts while it runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers import TINY_MODELS, every_architecture, random_tokens
from utils.config import KimiConfig, TrainConfig
from utils.cost import (
    activation_bytes,
    cache_bytes,
    flops_by_part,
    forward_flops,
    kept_bytes,
    n_looks,
    optimizer_bytes,
    optimizer_flops,
    plan,
    training_flops,
    weight_bytes,
)
from utils.data import TokenData
from utils.model import Kimi, count_parameters
from utils.muonclip import newton_schulz_each
from utils.training import make_optimizer, train

FULL_SIZE = {
    "nano": lambda: KimiConfig.nano(8000),
    "k2_mini": lambda: KimiConfig.k2_mini(8000),
    "k2": KimiConfig.k2,
    "deepseek_v3": KimiConfig.deepseek_v3,
}


def on_meta(config) -> Kimi:
    with torch.device("meta"):
        return Kimi(config)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_flops_of_a_forward_pass_are_those_that_torch_counts(name):
    """At full size too, on the meta device. Every expert gets an equal share; torch counts hidden pairs as well."""
    model = on_meta(FULL_SIZE[name]())
    tokens = torch.zeros(1, 256, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert model(tokens).shape == (1, 256, model.config.vocab_size)
    assert counter.get_total_flops() == pytest.approx(256 * forward_flops(model, pairs=256), rel=1e-3)


@every_architecture
def test_a_training_step_is_three_forward_passes(architecture):
    """Half of the pairs are hidden; a step computes chunks of 64 queries, so a little more than the other half."""
    model = Kimi(KimiConfig.small(architecture, 500, block_size=256, n_layers=2))
    tokens = torch.zeros(2, 256, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model.loss(tokens, tokens).backward()
    assert counter.get_total_flops() == pytest.approx(512 * training_flops(model), rel=0.1)
    assert training_flops(model) == 3 * forward_flops(model, pairs=257 / 2)


def test_newton_schulz_is_counted_as_torch_counts_it():
    model = TINY_MODELS["k2"]()
    matrices = [p for group in make_optimizer(model, TrainConfig()).param_groups for p in group["params"]
                if group["rule"] == "muon"]  # fmt: skip
    with FlopCounterMode(display=False) as counter:
        newton_schulz_each([p.detach() for p in matrices])
    assert optimizer_flops(model) == counter.get_total_flops() > 0


@every_architecture
@pytest.mark.parametrize("optimizer", ["adamw", "muonclip"])
def test_the_bytes_of_weights_and_optimizer_are_those_that_exist(architecture, optimizer):
    model = TINY_MODELS[architecture]()
    opt = make_optimizer(model, TrainConfig(optimizer=optimizer, tau=float("inf")))
    model.loss(random_tokens(2, 16), random_tokens(2, 16)).backward()
    opt.step()
    state = [t for values in opt.state.values() for t in values.values() if isinstance(t, torch.Tensor)]
    assert optimizer_bytes(model, optimizer) == sum(t.nbytes for t in state)
    assert weight_bytes(model) == sum(p.nbytes for p in model.parameters())


@every_architecture
def test_the_bytes_of_the_cache_are_those_of_its_buffers(architecture):
    model = TINY_MODELS[architecture]().eval()
    cache = model.new_cache()
    model(random_tokens(1, 3), cache=cache)
    held = sum(buffer.nbytes for layer in cache for buffer in layer.buffers)
    assert cache_bytes(model.config, bytes_each=4) * model.config.block_size == held
    assert cache_bytes(KimiConfig.k2()) == 70_272


@every_architecture
def test_activations_grow_with_the_batch_and_shrink_in_bf16(architecture):
    model = TINY_MODELS[architecture]()
    one, four = (activation_bytes(model, n, 16) for n in (1, 4))
    assert one > 16 * 4 * model.config.d_model * model.config.n_layers
    assert four == pytest.approx(kept_bytes(model, 4, 16), rel=0.05)  # by as many windows
    assert activation_bytes(model, 16, 16, "bf16") < activation_bytes(model, 16, 16)


def test_a_plan_counts_steps_optimizer_and_validations():
    model = TINY_MODELS["k2"]()
    config = TrainConfig(steps=10, batch_size=3, block_size=16, accumulation=2, eval_batches=3)
    planned, looks = plan(model, config), 2 * 3 * 48 * training_flops(model) / 3
    assert planned.flops == pytest.approx(10 * (96 * training_flops(model) + optimizer_flops(model)) + looks)
    assert planned.bytes == 2 * weight_bytes(model) + optimizer_bytes(model, "muonclip")
    assert planned.minutes(planned.flops / 60) == pytest.approx(1)
    without = plan(model, replace(config, optimizer="adamw"))
    assert without.flops == pytest.approx(planned.flops - 10 * optimizer_flops(model))
    assert without.bytes == 16 * count_parameters(model).total


@every_architecture
def test_the_parts_of_a_run_are_its_plan(architecture):
    model = TINY_MODELS[architecture]()
    config = TrainConfig(steps=25, eval_interval=10, eval_batches=3, batch_size=2, block_size=16, accumulation=2)
    parts = flops_by_part(model, config)
    assert sum(parts.values()) == pytest.approx(plan(model, config).flops)
    assert parts["backward"] == 2 * parts["forward"] and parts["Newton-Schulz"] == 25 * optimizer_flops(model)
    assert n_looks(config) == 4  # at steps 0, 10, 20 and 25
    assert parts["validation"] == pytest.approx(4 * 3 * 32 * training_flops(model) / 3)


@pytest.mark.parametrize("steps", [1, 9, 10, 11, 20])
def test_looks_are_counted_as_a_run_has_them(steps):
    model, config = TINY_MODELS["k2"](), TrainConfig(steps=steps, eval_interval=10, batch_size=1, block_size=8)
    data = TokenData(np.arange(60, dtype=np.uint16) % 10, 40, {"train": 40, "val": 20})
    assert len(train(model, data, config).rows) == n_looks(config)
