"""What a run takes on several GPUs: the figures of Kimi K2's report, and those of `cost` where there is one GPU."""

import pytest

from tests.helpers import TINY_CONFIGS, every_architecture
from utils.__main__ import main
from utils.config import KimiConfig, TrainConfig
from utils.cost import plan
from utils.model import count_parameters
from utils.plan_command import PUBLISHED
from utils.scale import (
    ddp,
    fsdp,
    on_meta,
    parameters_by_kind,
    seconds,
    stages_and_experts,
    tokens_sent,
    weights_sent,
)
from utils.units import duration, size


def test_kimi_k2_takes_what_its_report_says():
    """Sec. 2.4: weights in bf16 and gradients in fp32 take about 6 TB, and a GPU holds about 30 GB where many share the
    optimizer's states. Sec. 2.5: 15.5 T tokens; 6 FLOPs for each active parameter and token, and attention's."""
    model = on_meta(KimiConfig.k2())
    total, active = count_parameters(model)
    assert (
        stages_and_experts(model, 1, 1, 10**9).held
        == pytest.approx(6 * total, rel=1e-6)
        == pytest.approx(6.16e12, rel=1e-3)
    )
    assert 27e9 < stages_and_experts(model, 16, 16, 10**9).held < stages_and_experts(model, 16, 16, 2048).held < 33e9
    tokens = PUBLISHED.steps * PUBLISHED.batch_size * PUBLISHED.block_size * PUBLISHED.accumulation
    assert tokens == pytest.approx(15.5e12, rel=1e-3)
    assert 6 * active * tokens < plan(model, PUBLISHED).flops < 1.1 * 6 * active * tokens


@every_architecture
def test_on_one_gpu_nothing_is_sent_and_all_is_held(architecture):
    model, config = on_meta(TINY_CONFIGS[architecture]()), TrainConfig(steps=10, batch_size=2, block_size=16)
    for form in (ddp, fsdp):
        assert form(model, config, 1) == (plan(model, config).bytes, 0)
    assert sum(parameters_by_kind(model).values()) == count_parameters(model).total
    assert tokens_sent(model, 100, 1) == weights_sent(model, 1, 1) == 0
    assert seconds(model, config, 4, 1e9, 0.5) == plan(model, config).flops / 2e9


@every_architecture
def test_what_gpus_share(architecture):
    """More of them hold less each; a step's second forward pass sends the weights again, and no gradients."""
    model, config = on_meta(TINY_CONFIGS[architecture]()), TrainConfig(optimizer="adamw")
    twice = TrainConfig(optimizer="adamw", accumulation=2)
    assert fsdp(model, config, 8).held == ddp(model, config, 8).held / 8
    assert ddp(model, twice, 8) == ddp(model, config, 8)
    kinds = parameters_by_kind(model)
    again = 7 / 8 * 4 * (2 * (kinds["experts"] + kinds["blocks"]) + kinds["outside"])
    assert fsdp(model, twice, 8).sent - fsdp(model, config, 8).sent == pytest.approx(again)
    assert tokens_sent(model, 200, 4) == 2 * tokens_sent(model, 100, 4)
    one, two = (stages_and_experts(model, 1, over, 10**9).held for over in (1, 2))
    assert one - two == pytest.approx(6 * kinds["experts"] / 2, rel=1e-6)


def test_the_command_counts_before_there_is_a_machine(capsys):
    assert main(["plan", "--model", "kimi-k2", "--gpus", "2048", "--stages", "16", "--experts-over", "16"]) == 0
    told = capsys.readouterr().out
    assert (
        "1,026,408,209,408 parameters, 32,861,477,888 active" in told and "32.2 GB" in told and "231,000 steps" in told
    )
    assert (
        main(["plan", "--model", "nano", "--steps", "7", "--d-model", "64", "--vocab-size", "99", "--preset", "smoke"])
        == 0
    )
    assert "7 steps of 512 tokens" in capsys.readouterr().out
    assert main(["plan", "--gpus", "0"]) == 1
    assert "--gpus is 0, it must be above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "value, text",
    [(size(999), "999 bytes"), (size(1e3), "1 kB"), (size(5.29e14), "529 TB"), (duration(90), "90.0 seconds"),
     (duration(7_200), "2.0 hours"), (duration(10 * 86_400), "10.0 days"), (duration(600), "10.0 minutes")],
)  # fmt: skip
def test_units_suit_their_numbers(value, text):
    assert value == text
