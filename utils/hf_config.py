"""A model's shape as the `config.json` of a DeepSeek-V3, and back.

Kimi K2's published files have the layout of DeepSeek-V3 under the name `kimi_k2`. The names of the fields are those of
transformers 5 (models/deepseek_v3) and of the checkpoints at huggingface.co/deepseek-ai.
"""

from __future__ import annotations

from pathlib import Path

from utils.config import KimiConfig, from_dict
from utils.files import json_part
from utils.model import Kimi

MODEL_TYPES = ("deepseek_v3", "kimi_k2")

# Our field and its name there.
FIELDS = dict(
    vocab_size="vocab_size", block_size="max_position_embeddings", d_model="hidden_size", n_heads="num_attention_heads",
    n_layers="num_hidden_layers", d_ff="moe_intermediate_size", n_experts="n_routed_experts",
    top_k="num_experts_per_tok", q_lora_rank="q_lora_rank", kv_lora_rank="kv_lora_rank",
    qk_nope_head_dim="qk_nope_head_dim", qk_rope_head_dim="qk_rope_head_dim", v_head_dim="v_head_dim",
    first_k_dense="first_k_dense_replace", dense_ff="intermediate_size", n_shared_experts="n_shared_experts",
    n_group="n_group", topk_group="topk_group", routed_scaling_factor="routed_scaling_factor", norm_eps="rms_norm_eps",
)  # fmt: skip
ORIGINAL = "original_max_position_embeddings"
YARN = dict(yarn_factor="factor", yarn_original=ORIGINAL, yarn_beta_fast="beta_fast", yarn_beta_slow="beta_slow")
# What a config.json without the field means to transformers.
DEFAULTS = KimiConfig.deepseek_v3(block_size=4096, yarn_factor=1.0)
# What this project computes in one way only. With YaRN, the two 1.0 give the softmax scale of `attention`.
FIXED = dict(
    hidden_act="silu", attention_bias=False, tie_word_embeddings=False, rope_interleave=True, norm_topk_prob=True,
    scoring_func="sigmoid", topk_method="noaux_tc", moe_layer_freq=1,
)  # fmt: skip
NULL_IS_FALSE = ("rope_interleave", "norm_topk_prob", "truncate")  # to transformers; else null is as if missing
YARN_FIXED = dict(mscale=1.0, mscale_all_dim=1.0)
OWN = "kimi_k2_from_scratch"  # a key for fields that transformers has no name for; it passes them over
OWN_FIELDS = ("balance_coef", "bias_rate", "yarn_original", "yarn_beta_fast", "yarn_beta_slow")


def config_json(model: Kimi) -> dict:
    """The `config.json` of a k2 model."""
    config, tok = model.config, model.tokenizer
    yarn = None
    if config.yarn_factor != 1:
        yarn = {"rope_type": "yarn"} | {theirs: getattr(config, ours) for ours, theirs in YARN.items()} | YARN_FIXED
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": MODEL_TYPES[0],
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
        "routed_scaling_factor": float(config.routed_scaling_factor),  # transformers takes no int for these two
        "rms_norm_eps": float(config.norm_eps),
        "q_lora_rank": config.q_lora_rank or None,  # null there is our 0: queries without a latent
        "num_key_value_heads": config.n_heads,
        "num_nextn_predict_layers": 0,
        **FIXED,
        "rope_parameters": (yarn or {"rope_type": "default"}) | {"rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,  # this and the next are the same for transformers 4
        "rope_scaling": yarn and yarn | {"type": "yarn"},
        "bos_token_id": tok and tok.eos_id,  # a story begins where another ended
        "eos_token_id": tok and tok.eos_id,
        "dtype": str(model.head.weight.dtype).removeprefix("torch."),
        OWN: {name: getattr(config, name) for name in OWN_FIELDS},
    }


def read_config(state: dict, file: Path) -> KimiConfig:
    """The config that `config.json` describes; raises ValueError for what this project does not have.

    How the weights are stored (`quantization_config`) is no part of it: see `hf_fp8`.
    """

    def check(values: dict, name: str, default, *allowed) -> None:
        value = values.get(name, default)
        if value not in allowed:
            raise ValueError(f"{name} is {value!r} in {file}, it must be {' or '.join(map(repr, allowed))}")

    check(state, "model_type", None, *MODEL_TYPES)
    given = without_nulls(state)
    for name, allowed in FIXED.items():
        check(given, name, allowed, allowed)
    values = {ours: state.get(theirs, getattr(DEFAULTS, ours)) for ours, theirs in FIELDS.items()}
    if values["q_lora_rank"] == 0:  # to transformers, a latent of no channels
        raise ValueError(f"q_lora_rank is {values['q_lora_rank']!r} in {file}, it must be 1 or more, or null")
    if values["q_lora_rank"] is None:  # Moonlight's queries have no latent
        values["q_lora_rank"] = 0
    if values["n_group"] is None:  # DeepSeek's own code calls it so where there are no groups
        values["n_group"] = 1
    if values["topk_group"] is None and values["n_group"] == 1:
        values["topk_group"] = 1
    rope = without_nulls(json_part(state, "rope_scaling") or json_part(state, "rope_parameters"))
    values["rope_theta"] = rope.get("rope_theta", given.get("rope_theta", DEFAULTS.rope_theta))
    rope.setdefault("rope_type", rope.get("type", "default"))
    check(rope, "rope_type", None, "default", "yarn")
    if rope["rope_type"] == "yarn":
        for name, allowed in {**YARN_FIXED, "attention_factor": None}.items():
            check(rope, name, None, allowed)
        check(rope, "truncate", True, True)
        rope.setdefault(ORIGINAL, values["block_size"])
        rope[ORIGINAL] = given.get(ORIGINAL, rope[ORIGINAL])  # transformers gives that of the whole file priority
        rope.setdefault("factor", None)  # nobody's default
        values |= {ours: rope.get(theirs, getattr(DEFAULTS, ours)) for ours, theirs in YARN.items()}
    own = {name: getattr(DEFAULTS, name) for name in ("balance_coef", "bias_rate")} | json_part(state, OWN)
    try:
        config = from_dict(KimiConfig, own | values | {"architecture": "k2"})
    except ValueError as error:
        raise ValueError(f"{file} describes no model of this project: {error}") from error
    check(state, "num_key_value_heads", DEFAULTS.n_heads, config.n_heads, None)
    return config


def without_nulls(values: dict) -> dict:
    """The fields that say something: null is as if missing where transformers does not take it for False."""
    return {name: value for name, value in values.items() if value is not None or name in NULL_IS_FALSE}


def n_second_heads(state: dict, file: Path) -> int:
    """How many layers, behind the others, serve a second head."""
    name = next((n for n in ("num_nextn_predict_layers", "num_mtp_layers") if state.get(n) is not None), None)
    value = 1 if name is None else state[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is {value!r:.200} in {file}, it must be a whole number, 0 or more")
    return value
