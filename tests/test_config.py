"""Configurations check themselves, and every preset fits together."""

import dataclasses

import pytest

from utils.config import K2Config, KimiConfig, NanoConfig, TrainConfig, from_dict
from utils.model import Kimi
from utils.presets import PRESETS


def test_nano_is_the_published_size():
    assert dataclasses.asdict(KimiConfig.nano(8000)) == {
        "vocab_size": 8000, "architecture": "nano", "block_size": 256, "d_model": 512, "n_heads": 8, "n_layers": 6,
        "d_ff": 1024, "n_experts": 4, "top_k": 2, "dropout": 0.1, "balance_coef": 0.01,
    }  # fmt: skip
    colab = PRESETS["nano"]["colab"]
    assert colab.model == {} and colab.stories == 100_000
    assert (colab.training.steps, colab.training.batch_size, colab.training.eval_interval) == (2000, 32, 100)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vocab_size": 1}, "NanoConfig.vocab_size is 1, it must be a whole number, 2 or more"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"n_layers": 1001}, "n_layers is 1001, it must be a whole number, from 1 to 1,000"),
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


def test_k2_is_the_published_size():
    assert dataclasses.asdict(KimiConfig.k2()) == {
        "architecture": "k2", "vocab_size": 163_840, "d_model": 7168, "n_layers": 61, "first_k_dense": 1,
        "dense_ff": 18_432, "n_experts": 384, "top_k": 8, "d_ff": 2048, "n_shared_experts": 1, "n_heads": 64,
        "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827, "norm_eps": 1e-6, "rope_theta": 50_000.0,
        "yarn_factor": 32.0, "yarn_beta_fast": 1.0, "yarn_beta_slow": 1.0, "yarn_original": 4096,
        "block_size": 131_072, "bias_rate": 0.001, "balance_coef": 0.0,
    }  # fmt: skip
    assert KimiConfig.k2().qk_head_dim == 192


def test_deepseek_v3_differs_from_k2_where_the_reports_say():
    k2, v3 = dataclasses.asdict(KimiConfig.k2()), dataclasses.asdict(KimiConfig.deepseek_v3())
    assert {name: value for name, value in v3.items() if value != k2[name]} == {
        "vocab_size": 129_280, "first_k_dense": 3, "n_experts": 256, "n_heads": 128, "n_group": 8, "topk_group": 4,
        "routed_scaling_factor": 2.5, "rope_theta": 10_000.0, "yarn_factor": 40.0, "yarn_beta_fast": 32.0,
        "block_size": 163_840,
    }  # fmt: skip


def test_moonlight_is_the_published_size():
    """config.json of huggingface.co/moonshotai/Moonlight-16B-A3B; bias_rate: arXiv 2502.16982, sec. 3.3."""
    k2, moonlight = dataclasses.asdict(KimiConfig.k2()), dataclasses.asdict(KimiConfig.moonlight())
    assert {name: value for name, value in moonlight.items() if value != k2[name]} == {
        "d_model": 2048, "n_layers": 27, "dense_ff": 11_264, "n_experts": 64, "top_k": 6, "d_ff": 1408,
        "n_shared_experts": 2, "n_heads": 16, "q_lora_rank": 0, "routed_scaling_factor": 2.446, "norm_eps": 1e-5,
        "yarn_factor": 1.0, "block_size": 8192,
    }  # fmt: skip
    assert (k2["vocab_size"], k2["kv_lora_rank"], k2["qk_nope_head_dim"], k2["qk_rope_head_dim"]) == (
        163_840,
        512,
        128,
        64,
    )
    assert (k2["v_head_dim"], k2["rope_theta"], k2["first_k_dense"], k2["n_group"], k2["bias_rate"]) == (
        128,
        5e4,
        1,
        1,
        1e-3,
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architecture": "k3"}, "KimiConfig.architecture is 'k3', it must be one of nano, k2"),
        ({"vocab_size": 0}, "K2Config.vocab_size is 0, it must be a whole number, 2 or more"),
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim is 7, it must be even"),
        ({"first_k_dense": 4}, r"first_k_dense is 4, it must be below n_layers \(4\)"),
        ({"first_k_dense": -1}, "first_k_dense is -1, it must be a whole number, 0 or more"),
        ({"n_shared_experts": 1.0}, "n_shared_experts is 1.0, it must be a whole number, 0 or more"),
        ({"kv_lora_rank": 0}, "kv_lora_rank is 0, it must be a whole number, 1 or more"),
        ({"q_lora_rank": None}, "q_lora_rank is None, it must be a whole number, 0 or more"),
        ({"q_lora_rank": -1}, "q_lora_rank is -1, it must be a whole number, 0 or more"),
        ({"v_head_dim": True}, "v_head_dim is True"),
        ({"rope_theta": 0}, "rope_theta is 0, it must be a finite number above 1"),
        ({"norm_eps": -1e-6}, "norm_eps is -1e-06, it must be a finite number above 0"),
        ({"routed_scaling_factor": "2.8"}, "routed_scaling_factor is '2.8'"),
        ({"yarn_factor": 0.5}, "yarn_factor is 0.5, it must be 1 or more"),
        ({"rope_theta": float("inf")}, "rope_theta is inf, it must be a finite number above 1"),
        ({"yarn_beta_slow": 8.0}, r"yarn_beta_fast is 1.0, it must be at least yarn_beta_slow \(8.0\)"),
        ({"yarn_beta_fast": 0}, "yarn_beta_fast is 0, it must be a finite number above 0"),
        ({"bias_rate": -0.1}, "bias_rate is -0.1, it must be 0 or more"),
        ({"top_k": 9}, r"top_k is 9, it must be at most n_experts \(8\)"),
        ({"n_group": 3}, r"n_group is 3, it must be a divisor of n_experts \(8\) that leaves 2 or more in each"),
        ({"n_group": 8}, r"n_group is 8, it must be a divisor of n_experts \(8\) that leaves 2 or more in each"),
        ({"n_group": 2, "topk_group": 3}, r"topk_group is 3, it must be at most n_group \(2\)"),
        ({"n_group": 4, "top_k": 3}, r"topk_group is 1, it must be groups with at least top_k \(3\) experts in all"),
        ({"topk_group": 2}, r"topk_group is 2, it must be at most n_group \(1\)"),
    ],
)
def test_an_impossible_k2_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        KimiConfig(**{"vocab_size": 100, "architecture": "k2", "n_layers": 4, "n_experts": 8, "top_k": 2, **changes})


def test_what_only_k2_has_is_an_error_elsewhere():
    nano, k2 = ({f.name for f in dataclasses.fields(config)} for config in (NanoConfig, K2Config))
    assert len(k2 - nano) > 10 and nano - k2 == {"dropout"}
    for name in k2 - nano:
        for make in (KimiConfig.nano, KimiConfig):
            with pytest.raises(ValueError, match=f"NanoConfig has no field '{name}', its fields are vocab_size, arch"):
                make(100, **{name: getattr(KimiConfig.k2_mini(100), name)})


def test_what_only_nano_has_is_an_error_elsewhere():
    for make in (KimiConfig.k2_mini, KimiConfig.k2, lambda vocab_size, **more: KimiConfig(vocab_size, "k2", **more)):
        with pytest.raises(ValueError, match="K2Config has no field 'dropout', its fields are vocab_size, architectu"):
            make(100, dropout=0.0)


def test_a_config_is_of_its_architectures_class_and_of_no_other():
    assert type(KimiConfig(100)) is type(KimiConfig(100, "nano")) is type(KimiConfig.nano(100)) is NanoConfig
    assert type(KimiConfig(100, "k2")) is type(KimiConfig(100, architecture="k2")) is K2Config
    assert KimiConfig(100, "k2") == KimiConfig.k2_mini(100) == K2Config(100)
    with pytest.raises(ValueError, match=r"K2Config\.architecture is 'nano', it must be k2"):
        K2Config(100, "nano")
    with pytest.raises(ValueError, match=r"NanoConfig\.architecture is 'k2', it must be nano"):
        NanoConfig(100, architecture="k2")


def test_a_small_k2_keeps_the_shape_of_the_large_one():
    small, large = KimiConfig.k2_mini(100), KimiConfig.k2()
    assert small.architecture == "k2" and KimiConfig.small("k2", 100) == small
    assert KimiConfig.small("nano", 100) == KimiConfig.nano(100)
    for width in ("d_model", "q_lora_rank", "kv_lora_rank", "d_ff", "dense_ff"):
        assert getattr(large, width) == 32 * getattr(small, width)
    # a dense layer computes as much as the chosen experts and the shared one
    for config in (small, large):
        assert config.dense_ff == config.d_ff * (config.top_k + config.n_shared_experts)
    assert small.n_shared_experts == small.first_k_dense == small.n_group == 1 and small.yarn_factor == 1
    assert KimiConfig.k2_mini(100, n_layers=2).n_layers == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "TrainConfig.steps is 0, it must be a whole number, 1 or more"),
        ({"lr": 0}, "lr is 0, it must be a finite number above 0"),
        ({"lr": "fast"}, "lr is 'fast'"),
        ({"warmup": 1.5}, r"warmup is 1.5, it must be in \[0, 1\]"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1, it must be 0 or more"),
        ({"warmup": 0.3, "decay": 0.8}, r"decay is 0.8, it must be at most what the warm-up leaves \(0.7\)"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd', it must be one of muonclip, adamw"),
        ({"tau": 0}, "tau is 0, it must be a number above 0"),
        ({"number_format": "fp8"}, "number_format is 'fp8', it must be one of auto, fp32, bf16, fp16"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_an_impossible_run_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


def test_configs_are_frozen_and_know_their_fields():
    for config in (KimiConfig.nano(100), KimiConfig.k2_mini(100)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.d_model = 8
        assert from_dict(KimiConfig, dataclasses.asdict(config)) == config
        with pytest.raises(ValueError, match=f"{type(config).__name__} has no field 'heads'"):
            from_dict(KimiConfig, {"vocab_size": 5, "architecture": config.architecture, "heads": 2})
    with pytest.raises(ValueError, match="TrainConfig has no field 'epochs'"):
        from_dict(TrainConfig, {"epochs": 2})


@pytest.mark.parametrize("architecture", PRESETS)
@pytest.mark.parametrize("name", ["smoke", "laptop", "colab"])
def test_every_preset_builds_a_model_that_takes_its_blocks(architecture, name):
    preset = PRESETS[architecture][name]
    config = KimiConfig.small(architecture, 50, **preset.model)
    assert config.architecture == architecture
    assert preset.training.block_size <= config.block_size
    if name != "colab":  # the published size takes a second to fill with random numbers
        Kimi(config)
