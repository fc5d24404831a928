"""Random DeepSeek-V3 folders, written by transformers: imported with its logits, or refused in one sentence."""

from __future__ import annotations

import json
import logging
import random
import warnings
from collections import Counter
from pathlib import Path

import torch
import transformers

from tests.proofs.found import Found
from utils.hf import import_hf

TOLERANCE = 1e-4


def random_config(chance: random.Random) -> dict:
    """The fields of a small DeepSeek-V3, some of them at values that few models have."""

    def seldom(rare, usual):
        return rare if chance.random() < 0.05 else usual

    rope = {"rope_type": "default", "rope_theta": chance.choice([1e4, 5e4, 1e6])}
    if chance.random() < 0.4:
        slow = chance.choice([1.0, 2.0])
        mscale = seldom(0.7, 1.0)
        rope |= {
            "rope_type": "yarn", "factor": chance.choice([2.0, 32.0, 40.0]), "beta_slow": slow, "mscale": mscale,
            "beta_fast": chance.choice([slow, 1.0, 32.0]), "mscale_all_dim": mscale,
            "original_max_position_embeddings": chance.choice([16, 64, 4096]),
        }  # fmt: skip
    n_layers, n_group = chance.randint(1, 3), chance.choice([1, 1, 2, 4])
    n_experts = n_group * chance.randint(2, 4)
    topk_group = chance.randint(1, n_group)
    n_heads = chance.randint(1, 4)
    return dict(
        vocab_size=chance.choice([40, 97]), hidden_size=chance.choice([8, 30, 48]),
        intermediate_size=chance.choice([1, 40]),
        moe_intermediate_size=chance.choice([1, 24]), num_hidden_layers=n_layers, num_attention_heads=n_heads,
        num_key_value_heads=n_heads, n_shared_experts=chance.choice([1, 1, 2, 3, 0]), n_routed_experts=n_experts,
        routed_scaling_factor=chance.choice([1.0, 2.5, 2.827]), kv_lora_rank=chance.choice([1, 7, 16]),
        q_lora_rank=chance.choice([None, 5, 24]), qk_rope_head_dim=chance.choice([2, 8, 16]),
        v_head_dim=chance.choice([1, 6, 12]), qk_nope_head_dim=chance.choice([1, 5, 16]), n_group=n_group,
        topk_group=topk_group, num_experts_per_tok=chance.randint(1, topk_group * (n_experts // n_group)),
        first_k_dense_replace=chance.randint(0, n_layers - (chance.random() < 0.9)), norm_topk_prob=seldom(False, True),
        max_position_embeddings=chance.choice([32, 4096]), rms_norm_eps=chance.choice([1e-6, 1e-5, 1e-2]),
        rope_parameters=rope, rope_interleave=seldom(False, True), attention_bias=seldom(True, False),
        tie_word_embeddings=seldom(True, False), num_nextn_predict_layers=0,
        hidden_act=seldom("gelu", "silu"),
    )  # fmt: skip


def spoil(config: dict, chance: random.Random) -> str:
    """Now and then, one field of config.json as nobody would write it; says which."""
    if chance.random() < 0.7:
        return ""
    name = chance.choice(sorted(config))
    value = chance.choice([None, "x", -1, 0, 10**9, 1.5, [], {}, True, 10**30, "gone"])
    if value == "gone":
        del config[name]
    else:
        config[name] = value
    return f", {name} {value!r}"


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.normal_(1.0 if p.ndim == 1 else 0.0, 0.2, generator=generator)
    for name, bias in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            bias.normal_(0.0, 0.2, generator=generator)


def prove(folder: Path, n: int, seed: int) -> Found:
    """`n` folders."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    chance, problems, endings, worst = random.Random(seed), [], Counter(), 0.0
    for i in range(n):
        fields = random_config(chance)
        place = folder / str(i)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                theirs = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**fields)).eval()
            except Exception:
                endings["cannot be made by transformers"] += 1
                continue
            theirs.set_experts_implementation("eager")  # the faster ones take no odd widths
            randomise(theirs, i)
            theirs.save_pretrained(place)
            state = json.loads((place / "config.json").read_text())
            spoilt = spoil(state, chance)
            (place / "config.json").write_text(json.dumps(state))
            what = f"{i}: {fields}{spoilt}"
            try:
                ours = import_hf(place)
            except (ValueError, OSError) as error:
                endings["refused"] += 1
                if "\n" in str(error) or len(str(error)) > 1000:
                    problems.append(f"{what}: not one sentence: {error}")
                continue
            except Exception as error:
                problems.append(f"{what}: {type(error).__name__}: {error}")
                continue
            if spoilt:
                try:
                    theirs = transformers.DeepseekV3ForCausalLM.from_pretrained(place).eval()
                    theirs.set_experts_implementation("eager")
                except Exception:
                    endings["read by us alone"] += 1
                    continue
            tokens = torch.randint(fields["vocab_size"], (2, 24), generator=torch.Generator().manual_seed(i))
            with torch.no_grad():
                gap = (ours(tokens) - theirs(tokens).logits).abs().max().item()
        worst = max(worst, gap)
        endings["equal" if gap <= TOLERANCE else "other logits"] += 1
        if not gap <= TOLERANCE:
            problems.append(f"{what}: off by {gap:.2g}")
    told = ", ".join(f"{number} {name}" for name, number in endings.most_common())
    return Found(f"{n} folders: {told}; logits off by {worst:.1e} at most", problems)
