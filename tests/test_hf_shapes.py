"""Import of every kind of DeepSeek-V3 that is published: random models of each kind, written by transformers or here.

What transformers computes on the same numbers is the reference; fp8 is written and read by loops of this file.
"""

import json
import math
import os
import warnings
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
import transformers

import utils.hf
from tests.test_hf import (
    TOLERANCE,
    changeable,
    difference,
    edit,
    edit_tensors,
    independent_config,
    oracle,
    random_model,
    randomise,
    same_tensors,
)
from utils.config import KimiConfig
from utils.hf import export_hf, import_hf
from utils.hf_config import read_config
from utils.hf_fp8 import dequantised, fp8_block

E4M3 = torch.float8_e4m3fn
YARN = dict(qk_rope_head_dim=16, yarn_factor=32.0, yarn_original=64, block_size=2048)
# What the published models have, in every combination that could hide a mistake.
KINDS = {
    "Moonlight": dict(q_lora_rank=0, n_shared_experts=2, norm_eps=1e-5, routed_scaling_factor=2.446),
    "three shared experts": dict(n_shared_experts=3),
    "three shared experts, no query latent, YaRN": dict(q_lora_rank=0, n_shared_experts=3, **YARN),
    "Kimi K2": YARN,
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def theirs_of(kind, seed=1):
    config = independent_config(random_model(**KINDS[kind]).config)
    model = transformers.DeepseekV3ForCausalLM._from_config(config, attn_implementation="eager")
    randomise(model, seed)
    return model.eval()


def read_state(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


# ------------------------------------------------------------------------------------ kinds of models


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shards", [1, 3])
@each_kind
def test_each_kind_gives_the_logits_of_transformers_and_goes_back(kind, shards, dtype, tmp_path):
    theirs_of(kind).to(dtype).save_pretrained(tmp_path / "there", max_shard_size="100KB" if shards > 1 else "1GB")
    theirs = oracle(tmp_path / "there", torch.float32)  # numbers in bf16, computed in fp32
    written = list((tmp_path / "there").glob("*.safetensors"))
    assert (len(written) >= 3) == (shards > 1) == (tmp_path / "there" / "model.safetensors.index.json").is_file()
    stored = {name: t for file in written for name, t in load_file(file).items()}
    assert (stored["lm_head.weight"].dtype, read_state(tmp_path / "there")["dtype"]) == (dtype, str(dtype)[6:])
    ours = import_hf(tmp_path / "there")
    assert ours.config == random_model(**KINDS[kind]).config
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert difference(ours, theirs) <= TOLERANCE
    export_hf(ours, tmp_path / "back")
    assert difference(ours, oracle(tmp_path / "back")) <= TOLERANCE
    assert difference(import_hf(tmp_path / "back"), theirs) <= TOLERANCE


SPELLINGS = {
    "transformers 5": lambda rope: {"rope_parameters": {"rope_type": "yarn", **rope}},
    "published": lambda rope: {"rope_theta": rope.pop("rope_theta"), "rope_scaling": {"type": "yarn", **rope}},
    "transformers 4.43": lambda rope: {
        "rope_theta": rope.pop("rope_theta"), "rope_scaling": {"rope_type": "yarn", **rope}
    },
    "both, and the old one counts": lambda rope: {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10.0}, "rope_scaling": {"rope_type": "yarn", **rope}
    },
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_yarn_is_read_as_transformers_reads_it_in_every_spelling(spelling, tmp_path):
    """The numbers are drawn so that each of them matters; one that is passed over would show."""
    theirs = theirs_of("Kimi K2")
    theirs.save_pretrained(tmp_path)
    rope = dict(
        rope_theta=300.0, factor=8.0, beta_fast=3.0, beta_slow=1.5, original_max_position_embeddings=128, mscale=1.0,
        mscale_all_dim=1.0,
    )  # fmt: skip
    before = import_hf(tmp_path)
    edit(tmp_path, **{"rope_theta": None, "rope_parameters": None, "rope_scaling": None} | SPELLINGS[spelling](rope))
    ours, config = import_hf(tmp_path), transformers.AutoConfig.from_pretrained(tmp_path)
    said = config.rope_parameters
    assert ours.config.rope_theta == said["rope_theta"] == 300.0
    assert ours.config.yarn_factor == said["factor"] == 8.0
    assert (
        (ours.config.yarn_beta_fast, ours.config.yarn_beta_slow) == (said["beta_fast"], said["beta_slow"]) == (3.0, 1.5)
    )
    assert ours.config.yarn_original == said["original_max_position_embeddings"] == 128
    there = oracle(tmp_path)
    assert difference(ours, there) <= TOLERANCE < 100 * TOLERANCE < difference(before, there)


def test_tied_heads_are_refused_in_a_sentence_that_names_the_field(tmp_path):
    config = independent_config(random_model().config)
    config.tie_word_embeddings = True
    transformers.DeepseekV3ForCausalLM(config).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"tie_word_embeddings is True in .*config\.json, it must be False$"):
        import_hf(tmp_path)


PUBLISHED = {  # what config.json says on the hub, at moonshotai/Moonlight-16B-A3B and moonshotai/Kimi-K2-Instruct
    "moonlight": dict(
        attention_bias=False, aux_loss_alpha=0.001, bos_token_id=163_584, eos_token_id=163_585, ep_size=1,
        first_k_dense_replace=1, hidden_act="silu", hidden_size=2048, intermediate_size=11_264, kv_lora_rank=512,
        max_position_embeddings=8192, model_type="deepseek_v3", moe_intermediate_size=1408, moe_layer_freq=1,
        n_group=1, n_routed_experts=64, n_shared_experts=2, norm_topk_prob=True, num_attention_heads=16,
        num_experts_per_tok=6, num_hidden_layers=27, num_key_value_heads=16, num_nextn_predict_layers=0,
        q_lora_rank=None, qk_nope_head_dim=128, qk_rope_head_dim=64, rms_norm_eps=1e-5, rope_theta=50_000.0,
        routed_scaling_factor=2.446, scoring_func="sigmoid", seq_aux=True, tie_word_embeddings=False, topk_group=1,
        topk_method="noaux_tc", torch_dtype="bfloat16", v_head_dim=128, vocab_size=163_840,
    ),
    "k2": dict(
        attention_bias=False, aux_loss_alpha=0.001, bos_token_id=163_584, eos_token_id=163_585, ep_size=1,
        first_k_dense_replace=1, hidden_act="silu", hidden_size=7168, intermediate_size=18_432, kv_lora_rank=512,
        max_position_embeddings=131_072, model_type="kimi_k2", moe_intermediate_size=2048, moe_layer_freq=1,
        n_group=1, n_routed_experts=384, n_shared_experts=1, norm_topk_prob=True, num_attention_heads=64,
        num_experts_per_tok=8, num_hidden_layers=61, num_key_value_heads=64, num_nextn_predict_layers=0,
        q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64, rms_norm_eps=1e-6, rope_theta=50_000.0,
        rope_scaling=dict(beta_fast=1.0, beta_slow=1.0, factor=32.0, mscale=1.0, mscale_all_dim=1.0,
                          original_max_position_embeddings=4096, type="yarn"),
        quantization_config=dict(activation_scheme="dynamic", fmt="e4m3", quant_method="fp8",
                                 weight_block_size=[128, 128]),
        routed_scaling_factor=2.827, scoring_func="sigmoid", seq_aux=True, tie_word_embeddings=False, topk_group=1,
        topk_method="noaux_tc", torch_dtype="bfloat16", v_head_dim=128, vocab_size=163_840,
    ),
}  # fmt: skip


def test_the_published_config_json_is_the_preset_of_the_same_name(tmp_path):
    assert read_config(PUBLISHED["moonlight"], tmp_path) == KimiConfig.moonlight()
    assert read_config(PUBLISHED["k2"], tmp_path) == KimiConfig.k2()
    assert fp8_block(PUBLISHED["moonlight"], tmp_path) is None
    assert fp8_block(PUBLISHED["k2"], tmp_path) == (128, 128)


# ----------------------------------------------------------------------------------------- fp8 in blocks


def quantised(weight, block) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix as the published files have it: each block divided by its largest absolute value / 448, and these."""
    n, m = weight.shape
    fp8, scales = torch.empty(n, m, dtype=E4M3), torch.empty(math.ceil(n / block[0]), math.ceil(m / block[1]))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            place = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
            scales[i, j] = weight[place].abs().max() / 448
            fp8[place] = (weight[place] / scales[i, j]).to(E4M3)
    return fp8, scales


def by_loop(fp8, scales, block) -> torch.Tensor:
    """Number by number: the one at (i, j) times the factor of the block that it is in."""
    numbers, factors = fp8.float().tolist(), scales.tolist()
    return torch.tensor(
        [[x * factors[i // block[0]][j // block[1]] for j, x in enumerate(row)] for i, row in enumerate(numbers)]
    )


@pytest.mark.parametrize("block", [(128, 128), (2, 3), (64, 256)])
@pytest.mark.parametrize("shape", [(128, 128), (1, 1), (129, 127), (127, 129), (256, 300), (5, 7)])
def test_a_matrix_in_fp8_is_each_number_times_the_factor_of_its_block(shape, block):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight *= torch.logspace(-3, 3, shape[0])[:, None] * torch.logspace(0, 2, shape[1])  # no two blocks of one size
    fp8, scales = quantised(weight, block)
    kept = fp8.clone(), scales.clone()
    ours = dequantised(fp8, scales, block)
    assert ours.dtype == torch.float32 and ours.shape == weight.shape
    torch.testing.assert_close(ours, by_loop(fp8, scales, block), rtol=1e-7, atol=0)  # the loop is in double
    largest = dequantised(torch.full_like(fp8, 448.0), scales, block)  # of each number's block
    assert (
        (ours - weight).abs() <= weight.abs() / 16 + largest / 448 * 2**-10 * (1 + 1e-6)
    ).all()  # 3 bits, or the smallest step
    assert torch.equal(fp8.float(), kept[0].float()) and torch.equal(scales, kept[1])


def test_the_block_is_128_by_128_unless_said_otherwise():
    fp8, scales = quantised(torch.randn(200, 300, generator=torch.Generator().manual_seed(0)), (128, 128))
    assert torch.equal(dequantised(fp8, scales), dequantised(fp8, scales, (128, 128)))


@pytest.mark.parametrize(
    ("weight", "scales", "message"),
    [
        (
            torch.ones(4, 4),
            torch.ones(1, 1),
            r"weight is torch\.float32 of shape \[4, 4\], it must be a matrix of .*e4m3fn",
        ),
        (torch.ones(4, 4).to(torch.float8_e5m2), torch.ones(1, 1), r"weight is torch\.float8_e5m2"),
        (torch.ones(4).to(E4M3), torch.ones(1), r"of shape \[4\], it must be a matrix"),
        (torch.ones(129, 4).to(E4M3), torch.ones(1, 1), r"scale_inv has the shape \[1, 1\], .* must have \[2, 1\]$"),
        (torch.ones(4, 129).to(E4M3), torch.ones(2, 1), r"scale_inv has the shape \[2, 1\], .* must have \[1, 2\]$"),
        (torch.ones(4, 4).to(E4M3), torch.ones(1), r"scale_inv has the shape \[1\], .* must have \[1, 1\]$"),
    ],
)
def test_what_does_not_belong_together_is_named(weight, scales, message):
    with pytest.raises(ValueError, match=message):
        dequantised(weight, scales)


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def without(name):
    return {key: value for key, value in FP8.items() if key != name}


@pytest.mark.parametrize(
    ("given", "block"),
    [
        (None, None),
        (FP8, (128, 128)),
        (FP8 | {"weight_block_size": [64, 256]}, (64, 256)),
        (FP8 | {"scale_fmt": "ue8m0"}, (128, 128)),  # DeepSeek-V3.1
        (without("fmt") | {"modules_to_not_convert": ["lm_head"]}, (128, 128)),  # as transformers writes it
        (without("activation_scheme"), (128, 128)),
    ],
)
def test_the_block_that_config_json_names(given, block, tmp_path):
    assert fp8_block({"quantization_config": given}, tmp_path) == block
    assert fp8_block({}, tmp_path) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
            r"\.quant_method is 'compressed-tensors' in",
        ),
        ({"quant_method": "mxfp4"}, r"\.quant_method is 'mxfp4' in .*, it must be 'fp8'"),
        ({"load_in_4bit": True}, r"\.quant_method is None in .*, it must be 'fp8'"),
        ({}, r"\.quant_method is None in .*, it must be 'fp8'"),
        (FP8 | {"fmt": "e5m2"}, r"\.fmt is 'e5m2' in .*, it must be 'e4m3'"),
        (FP8 | {"activation_scheme": "static"}, r"\.activation_scheme is 'static' in .*, it must be 'dynamic'"),
        (without("weight_block_size"), r"\.weight_block_size is None in .*, it must be two whole numbers, 1 or more"),
        (FP8 | {"weight_block_size": [128]}, r"\.weight_block_size is \[128\]"),
        (FP8 | {"weight_block_size": [128, 0]}, r"\.weight_block_size is \[128, 0\]"),
        (FP8 | {"weight_block_size": [128, True]}, r"\.weight_block_size is \[128, True\]"),
        (FP8 | {"weight_block_size": 128}, r"\.weight_block_size is 128"),
        ("fp8", r" is 'fp8', it must be a JSON object"),
        ([], r" is \[\], it must be a JSON object"),
    ],
)
def test_any_other_quantization_is_refused_by_its_field(given, message, tmp_path):
    changeable(random_model(), tmp_path)
    edit(tmp_path, quantization_config=given)
    with pytest.raises(ValueError, match="^quantization_config" + message) as error:
        import_hf(tmp_path)
    assert len(str(error.value).splitlines()) == 1


BLOCK = (16, 24)  # many blocks in a small model, all cut at some edge


def is_in_fp8(name, tensor) -> bool:
    """Which tensors of Kimi K2's files are: the matrices of attention and feed-forward, not the routers or tables."""
    return tensor.ndim == 2 and name.startswith("model.layers.") and "proj" in name and tensor.numel() > 0


def fp8_folder(theirs, folder, block=BLOCK, shards=1):
    """Store transformers' model as Kimi K2 is published; its own weights become what the files stand for."""
    theirs.bfloat16().float().save_pretrained(folder)  # the rest is in bf16
    plain = load_file(folder / "model.safetensors")
    stored = {}
    for name, tensor in plain.items():
        if is_in_fp8(name, tensor):
            stored[name], stored[f"{name}_scale_inv"] = quantised(tensor, block)
            plain[name] = by_loop(stored[name], stored[f"{name}_scale_inv"], block)
        else:
            stored[name] = tensor if name.endswith("bias") else tensor.bfloat16()
    assert sum(name.endswith("_scale_inv") for name in stored) >= 28
    save_file(plain, folder / "model.safetensors", {"format": "pt"})
    reference = oracle(folder)
    (folder / "model.safetensors").unlink()
    names, places = sorted(stored), {}
    for i in range(shards):  # a matrix and its factors are apart, as it happens at the end of a published shard
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        save_file({name: stored[name] for name in names[i::shards]}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(names[i::shards], file)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    edit(folder, quantization_config=FP8 | {"weight_block_size": list(block)}, dtype="bfloat16")
    return reference


@pytest.mark.parametrize("shards", [1, 4])
@each_kind
def test_a_folder_in_fp8_gives_the_logits_of_transformers_on_its_dequantised_weights(kind, shards, tmp_path):
    theirs = theirs_of(kind)
    reference = fp8_folder(theirs, tmp_path, shards=shards)
    ours = import_hf(tmp_path)
    assert difference(ours, reference) <= TOLERANCE
    assert difference(ours, theirs) > 100 * TOLERANCE  # 3 bits of fraction are few: it is not the model before
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    export_hf(ours, tmp_path / "back")
    assert "quantization_config" not in read_state(tmp_path / "back")
    assert difference(ours, oracle(tmp_path / "back")) <= TOLERANCE


def test_blocks_of_the_published_size(tmp_path):
    """Most matrices are larger than one block here, and no multiple of it."""
    shape = dict(d_model=136, kv_lora_rank=130, d_ff=140, dense_ff=260, n_layers=2, n_experts=4)
    config = independent_config(random_model(**shape).config)
    theirs = transformers.DeepseekV3ForCausalLM._from_config(config, attn_implementation="eager").eval()
    randomise(theirs, 1)
    reference = fp8_folder(theirs, tmp_path, block=(128, 128))
    ours = import_hf(tmp_path)
    assert difference(ours, reference) <= TOLERANCE


def test_only_one_matrix_at_a_time_is_in_fp32_beside_the_model(tmp_path, monkeypatch):
    fp8_folder(theirs_of("Kimi K2"), tmp_path)
    made, alive = [], []

    def counted(*arguments):
        alive.append(sum(matrix() is not None for matrix in made))
        matrix = dequantised(*arguments)
        made.append(weakref.ref(matrix))
        return matrix

    monkeypatch.setattr(utils.hf, "dequantised", counted)
    import_hf(tmp_path)
    assert len(made) > 60 and max(alive) == 0


def test_next_token_layers_in_fp8_are_left_out_with_their_factors(tmp_path):
    fp8_folder(theirs_of("Kimi K2"), tmp_path)
    expected = import_hf(tmp_path)

    def add(tensors):
        name = "model.layers.3.eh_proj.weight"
        tensors[name], tensors[f"{name}_scale_inv"] = quantised(torch.ones(20, 40), BLOCK)

    edit_tensors(tmp_path, add)
    edit(tmp_path, num_nextn_predict_layers=1)
    with pytest.warns(UserWarning, match="predict later tokens are left out: 3$"):
        assert same_tensors(import_hf(tmp_path), expected)


NAME = "model.layers.1.mlp.experts.3.down_proj.weight"  # (64, 32): 4 x 2 blocks
SCALE = f"{NAME}_scale_inv"


def poke(value):
    return lambda t: t[SCALE].__setitem__((1, 1), value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(SCALE), rf"{NAME} in .* is torch\.float8_e4m3fn, but there is no tensor {SCALE}"),
        (lambda t: t.pop(NAME), rf"has the tensor {SCALE}, but no {NAME} of torch\.float8_e4m3fn"),
        (lambda t: t.update({NAME: torch.ones(64, 32)}), rf"has the tensor {SCALE}, but no {NAME} of"),
        (
            lambda t: t.update({NAME: torch.ones(64, 32).to(torch.float8_e5m2)}),
            rf"has the tensor {SCALE}, but no {NAME}",
        ),
        (
            lambda t: t.update({"lm_head.weight_scale_inv": torch.ones(5, 3)}),
            r"lm_head\.weight_scale_inv, but no lm_head",
        ),
        (lambda t: t.update({SCALE: torch.ones(2, 4)}), rf"{SCALE} in .* shape \[2, 4\], .* it must be \[4, 2\]"),
        (lambda t: t.update({SCALE: torch.ones(4)}), rf"{SCALE} in .* shape \[4\], .* it must be \[4, 2\]"),
        (
            lambda t: t.update({SCALE: torch.ones(4, 2, dtype=torch.int64)}),
            rf"{SCALE} in .* is torch\.int64, it must be",
        ),
        (poke(0.0), rf"{SCALE} in .* holds factors that are not above 0 and finite"),
        (poke(-1e-3), rf"{SCALE} in .* holds factors that are not above 0 and finite"),
        (poke(math.nan), rf"{SCALE} in .* holds factors that are not above 0 and finite"),
        (poke(math.inf), rf"{SCALE} in .* holds factors that are not above 0 and finite"),
        (poke(1e36), rf"{SCALE} in .* holds factors that are not above 0 and finite"),  # times 448 it is infinite
        (lambda t: t.update({NAME: torch.full((64, 32), math.nan).to(E4M3)}), rf"{NAME} in .* are not finite"),
        (lambda t: t.update({NAME: torch.ones(64, 48).to(E4M3)}), rf"{NAME} in .* shape \[64, 48\], .* \[64, 32\]"),
    ],
)
def test_damaged_fp8_is_named(change, message, tmp_path):
    fp8_folder(theirs_of("Kimi K2"), tmp_path)
    import_hf(tmp_path)
    edit_tensors(tmp_path, change)
    with pytest.raises(ValueError, match=message) as error:
        import_hf(tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_fp8_is_read_only_where_config_json_says_so(tmp_path):
    fp8_folder(theirs_of("Kimi K2"), tmp_path)
    edit(tmp_path, quantization_config=None)
    with pytest.raises(ValueError, match=r"_scale_inv, but its config\.json has no quantization_config"):
        import_hf(tmp_path)
    edit_tensors(tmp_path, lambda t: [t.pop(name) for name in list(t) if name.endswith("_scale_inv")])
    with pytest.raises(ValueError, match=r"is torch\.float8_e4m3fn, it must be torch\.float32 or"):
        import_hf(tmp_path)


def test_a_folder_that_says_fp8_and_has_none_is_read_as_it_is(tmp_path):
    """All matrices may be among those that were not converted."""
    ours = random_model()
    changeable(ours, tmp_path)
    edit(tmp_path, quantization_config=FP8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_tensors(import_hf(tmp_path), ours)
