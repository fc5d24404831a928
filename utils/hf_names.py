"""Every tensor of a k2 model under the name that Moonshot's and DeepSeek's files give it.

The names are those of transformers 5 (models/deepseek_v3) and of the checkpoints at huggingface.co/moonshotai.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch

from utils.config import KimiConfig
from utils.model import Block, Kimi
from utils.moe import MoE

COMPUTED = "rotary_emb.inv_freq"  # lies in Kimi K2's and Moonlight's files, and follows from config.json
LAYER = re.compile(r"model\.layers\.(\d+)\.")
NEXT_TOKEN = "eh_proj.weight"  # every layer that predicts later tokens has it, and no other


def published_tensors(model: Kimi) -> dict[str, torch.Tensor]:
    """Every tensor of a k2 model under its published name, as a view of the model's memory."""
    named = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    for i, block in enumerate(model.blocks):
        named |= block_tensors(block, i) | expert_tensors(block, i)
    return {name: tensor.detach() for name, tensor in named.items()}


def block_tensors(block: Block, layer: int) -> dict[str, torch.Tensor]:
    """Those of one block that every token needs: norms, attention, dense feed-forward or router and shared experts."""
    prefix, attention, ffn = f"model.layers.{layer}", block.attention, block.ffn
    queries = {"self_attn.q_proj": attention.w_q_up}
    if attention.config.q_lora_rank:
        queries = {
            "self_attn.q_a_proj": attention.w_q_down,
            "self_attn.q_a_layernorm": attention.q_norm,
            "self_attn.q_b_proj": attention.w_q_up,
        }
    named = {
        f"{prefix}.{name}.weight": module.weight
        for name, module in {
            "input_layernorm": block.attention_norm,
            **queries,
            "self_attn.kv_a_proj_with_mqa": attention.w_kv_down,
            "self_attn.kv_a_layernorm": attention.kv_norm,
            "self_attn.kv_b_proj": attention.w_kv_up,
            "self_attn.o_proj": attention.w_o,
            "post_attention_layernorm": block.ffn_norm,
        }.items()
    }
    if not isinstance(ffn, MoE):
        return named | named_as_published(f"{prefix}.mlp", ffn.w_up, ffn.w_down)
    named[f"{prefix}.mlp.gate.weight"] = ffn.router.gate.weight
    named[f"{prefix}.mlp.gate.e_score_correction_bias"] = ffn.router.expert_bias
    # without a shared expert, transformers has one of width 0
    none = ffn.router.gate.weight.new_empty(2, 0, ffn.router.gate.in_features)
    w_up, w_down = (none, none[0].T) if ffn.shared is None else (ffn.shared.w_up, ffn.shared.w_down)
    return named | named_as_published(f"{prefix}.mlp.shared_experts", w_up, w_down)


def expert_tensors(block: Block, layer: int) -> dict[str, torch.Tensor]:
    """Those of one block's routed experts."""
    if not isinstance(block.ffn, MoE):
        return {}
    named = {}
    for e, (w_up, w_down) in enumerate(zip(block.ffn.experts.w_up, block.ffn.experts.w_down, strict=True)):
        named |= named_as_published(expert_name(layer, e), w_up, w_down)
    return named


def expert_name(layer: int, expert: int) -> str:
    """How the names of a routed expert's tensors begin."""
    return f"model.layers.{layer}.mlp.experts.{expert}"


def named_as_published(name: str, w_up: torch.Tensor, w_down: torch.Tensor) -> dict[str, torch.Tensor]:
    """w_up (2, F, D), value then gate, and w_down (D, F); the published files call the value `up`."""
    value, gate = w_up
    return {f"{name}.up_proj.weight": value, f"{name}.gate_proj.weight": gate, f"{name}.down_proj.weight": w_down}


def left_out(names: Iterable[str], n_layers: int, n_second: int, where: str | Path) -> list[str]:
    """Those of a file's names that are no part of a model of n_layers, and known: a warning says what they are.

    They follow from config.json, or belong to layers that predict later tokens: the `n_second` behind the others that
    config.json counts, and such as are clearly of this kind.
    """
    names = set(names)
    layers = {name: int(layer[1]) for name in names if (layer := LAYER.match(name))}
    second = {
        layer
        for layer in layers.values()
        if n_layers <= layer and (layer < n_layers + n_second or f"model.layers.{layer}.{NEXT_TOKEN}" in names)
    }
    if second:
        which = ", ".join(map(str, sorted(second)))
        warnings.warn(f"the layers of {where} that predict later tokens are left out: {which}", stacklevel=3)
    return [name for name in names if name.endswith(COMPUTED) or layers.get(name) in second]


def refuse_more_than_is_there(
    config: KimiConfig, n_second: int, file: Path, n_tensors: int, stacked_experts: int = 0
) -> None:
    """Raise ValueError where the config.json in `file` counts more layers or experts than its weights have tensors.

    So many need not even be described. stacked_experts: the most that lie in one tensor.
    """
    for name, value, most in (
        ("num_hidden_layers", config.n_layers, n_tensors),
        ("n_routed_experts", config.n_experts, max(n_tensors, stacked_experts)),
        ("num_nextn_predict_layers", n_second, n_tensors),
    ):
        if value > most:
            raise ValueError(f"{name} is {value} in {file}, its files have {n_tensors} tensors")
