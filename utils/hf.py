"""A model as a folder that Hugging Face transformers reads, and back: nothing but JSON and safetensors.

`export_hf` writes the layout of DeepSeek-V3 (see `hf_config`), which transformers knows without foreign code:

    export_hf(model, "runs/mine/hf")
    transformers.pipeline("text-generation", model="runs/mine/hf")("Once upon a time")

`import_hf` reads such a folder, and any other DeepSeek-V3 of a shape that this project has. The names of fields and
tensors are those of transformers 5 (models/deepseek_v3) and of the checkpoints at huggingface.co/deepseek-ai.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from utils.config import KimiConfig
from utils.files import json_part, read_json, refuse_unwritable, sha256_of, write_atomically
from utils.hf_config import config_json, n_second_heads, read_config
from utils.hf_tokenizer import TOKENIZER, read_tokenizer, tokenizer_files
from utils.model import Kimi

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SUMS = "SHA256SUMS"  # of the other files, as sha256sum writes and checks it
COMPUTED = "rotary_emb.inv_freq"  # lies in Kimi K2's and Moonlight's files, and follows from config.json
FUSED = re.compile(r"(.+\.mlp\.experts)\.(gate_up_proj|down_proj)(?:\.weight)?")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def export_hf(model: Kimi, folder: str | Path) -> None:
    """Write `model`, and its tokenizer if it has one, so that transformers' DeepseekV3ForCausalLM gives its logits.

    The weights keep their dtype. With the tokenizer, `generate` there chooses the same tokens as `generate` here at
    temperature 0 until the block is full: transformers then reads on beyond it. Text is split as our tokenizer does,
    but for letters that Unicode got after the version that one of the two knows. It is decoded with fewer rules:
    signs and contractions touch the word before them, while straight quotation marks and hyphens stand alone, nothing
    gets a capital, and the text begins with a space. The words are the same.

    Raises ValueError for a nano model, and for one expert or a lone surrogate in a word, which transformers cannot
    have.
    """
    if model.config.architecture != "k2":
        raise ValueError(f"the model is {model.config.architecture}: only k2 has a form in transformers")
    if model.config.n_experts == 1:
        raise ValueError("n_experts is 1, transformers needs 2 or more")
    refuse_unwritable(folder)
    texts = {CONFIG: config_json(model)}
    if model.tokenizer is not None:
        texts |= tokenizer_files(model.tokenizer, model.config.block_size)
    # all in memory before the first is written
    files = {name: json.dumps(text, ensure_ascii=False, indent=2).encode() for name, text in texts.items()}
    tensors = {name: t.cpu().contiguous() for name, t in _tensors(model).items()}
    if model.head.weight is model.embedding.weight:  # tied: safetensors takes no memory twice
        tensors["lm_head.weight"] = tensors["lm_head.weight"].clone()
    files[WEIGHTS] = save(tensors, {"format": "pt"})
    files[SUMS] = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()).encode()
    for name, content in files.items():
        write_atomically(Path(folder) / name, lambda file, content=content: file.write(content))


def import_hf(folder: str | Path) -> Kimi:
    """The model in `folder`, ready to generate; fp32 whatever the dtype of the file, as all models begin here.

    It knows its tokenizer if that is one of ours, else `model.tokenizer` is None. Second heads for later tokens
    (num_nextn_predict_layers) are left out, as transformers does.

    Raises FileNotFoundError where a file is missing, and ValueError for whatever this project cannot compute in the
    same way: it names the field or tensor, its value and what is allowed. An export of ours has checksums, and is
    refused where a file is not the one that was written with the others.
    """
    folder = Path(folder)
    _check_sums(folder)
    state = read_json(folder / CONFIG)
    config = read_config(state, folder / CONFIG)
    _refuse_more_than_is_there(config, n_second_heads(state, folder / CONFIG), folder)
    with torch.device("meta"):  # shapes first: a wrong config.json may describe more than the memory holds
        wanted = _tensors(Kimi(config))
    n_second = n_second_heads(state, folder / CONFIG)
    second = tuple(f"model.layers.{config.n_layers + i}." for i in range(n_second))
    weights = {
        name: tensor
        for name, tensor in _separate_experts(_read_weights(folder)).items()
        if not name.startswith(second) and not name.endswith(COMPUTED)
    }
    _check_tensors(weights, wanted, folder)
    model = Kimi(config)
    for name, tensor in _tensors(model).items():
        tensor.copy_(weights[name])
    model.tokenizer = read_tokenizer(folder)
    if model.tokenizer is None and (folder / TOKENIZER).is_file():
        warnings.warn(f"{folder / TOKENIZER} is not one of ours: the model has no tokenizer", stacklevel=2)
    if model.tokenizer is not None and len(model.tokenizer) > config.vocab_size:
        raise ValueError(f"vocab_size is {config.vocab_size}, the tokenizer needs at least {len(model.tokenizer)}")
    return model.eval()


def _tensors(model: Kimi) -> dict[str, torch.Tensor]:
    """Every tensor of a k2 model under its published name, as a view of the model's memory."""
    named = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    for i, block in enumerate(model.blocks):
        layer, attention, ffn = f"model.layers.{i}", block.attention, block.ffn
        for name, module in {
            "input_layernorm": block.attention_norm,
            "self_attn.q_a_proj": attention.w_q_down,
            "self_attn.q_a_layernorm": attention.q_norm,
            "self_attn.q_b_proj": attention.w_q_up,
            "self_attn.kv_a_proj_with_mqa": attention.w_kv_down,
            "self_attn.kv_a_layernorm": attention.kv_norm,
            "self_attn.kv_b_proj": attention.w_kv_up,
            "self_attn.o_proj": attention.w_o,
            "post_attention_layernorm": block.ffn_norm,
        }.items():
            named[f"{layer}.{name}.weight"] = module.weight
        if i < model.config.first_k_dense:
            named |= named_as_published(f"{layer}.mlp", ffn.w_up, ffn.w_down)
            continue
        named[f"{layer}.mlp.gate.weight"] = ffn.router.gate.weight
        named[f"{layer}.mlp.gate.e_score_correction_bias"] = ffn.router.expert_bias
        for e, (w_up, w_down) in enumerate(zip(ffn.experts.w_up, ffn.experts.w_down, strict=True)):
            named |= named_as_published(f"{layer}.mlp.experts.{e}", w_up, w_down)
        # without a shared expert, transformers has one of width 0
        none = ffn.router.gate.weight.new_empty(2, 0, model.config.d_model)
        w_up, w_down = (none, none[0].T) if ffn.shared is None else (ffn.shared.w_up, ffn.shared.w_down)
        named |= named_as_published(f"{layer}.mlp.shared_experts", w_up, w_down)
    return {name: tensor.detach() for name, tensor in named.items()}


def named_as_published(name: str, w_up: torch.Tensor, w_down: torch.Tensor) -> dict[str, torch.Tensor]:
    """w_up (2, F, D), value then gate, and w_down (D, F); the published files call the value `up`."""
    value, gate = w_up
    return {f"{name}.up_proj.weight": value, f"{name}.gate_proj.weight": gate, f"{name}.down_proj.weight": w_down}


def _check_sums(folder: Path) -> None:
    """Raise ValueError where a file of an export is not the one that was written."""
    if not (folder / SUMS).is_file():
        return
    for line in (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        file = folder / _plain_name(name, SUMS)
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}, which {SUMS} lists")
        if sha256_of(file) != digest:
            raise ValueError(f"{file} is not the file that was exported with the others: it was damaged or changed (if "
                             f"you meant to change it, delete {SUMS})")  # fmt: skip


def _plain_name(name: object, where: str) -> str:
    """The name of a file in the folder itself. Raises ValueError for any other path."""
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
        raise ValueError(f"{where} names the file {name!r:.100}, it must be a plain name, without a folder")
    return name


def _weight_files(folder: Path) -> list[Path]:
    """The one file of weights, or the shards that an index names."""
    files = [folder / WEIGHTS]
    if not files[0].is_file() and (folder / INDEX).is_file():
        shards = json_part(read_json(folder / INDEX), "weight_map").values()
        files = [folder / name for name in sorted({_plain_name(shard, INDEX) for shard in shards})]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}")
    return files


def _refuse_more_than_is_there(config: KimiConfig, n_second: int, folder: Path) -> None:
    """Raise ValueError where config.json counts more layers or experts than the files have tensors for.

    Only their headers are read: so many layers need not even be described.
    """
    shapes = []
    for file in _weight_files(folder):
        with _refused(file), safe_open(file, "pt") as opened:
            shapes += [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118
    most = {name: len(shapes) for name in ("num_hidden_layers", "n_routed_experts", "num_nextn_predict_layers")}
    most["n_routed_experts"] = max([len(shapes), *(shape[0] for shape in shapes if len(shape) == 3)])  # in one tensor
    for name, value in zip(most, (config.n_layers, config.n_experts, n_second), strict=True):
        if value > most[name]:
            raise ValueError(f"{name} is {value} in {folder / CONFIG}, its files have {len(shapes)} tensors")


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    weights = {}
    for file in _weight_files(folder):
        with _refused(file):
            weights |= load_file(file)
    return weights


@contextlib.contextmanager
def _refused(file: Path) -> Iterator[None]:
    """In it, what is wrong with a file of weights is a ValueError that names it."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no safetensors file or is cut off ({error})") from error


def _separate_experts(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with published names for experts that lie in one tensor, as transformers 5 has them in memory.

    gate_up_proj (E, 2F, D), gate first, and down_proj (E, D, F).
    """
    separate = {}
    for name, tensor in weights.items():
        fused = FUSED.fullmatch(name)
        if fused is None or tensor.ndim != 3:
            separate[name] = tensor
            continue
        experts, kind = fused.groups()
        parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
        for e, matrix in enumerate(tensor):
            for part, piece in zip(parts, matrix.chunk(len(parts)), strict=False):
                separate[f"{experts}.{e}.{part}.weight"] = piece
    return separate


def _check_tensors(weights: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], folder: Path) -> None:
    for name, tensor in weights.items():
        if name.endswith("weight_scale_inv"):
            raise ValueError(f"{folder} has the tensor {name}: weights in fp8 must be converted to bf16 first")
        if name not in wanted:
            raise ValueError(f"{folder} has the tensor {name}, which a model with this config.json must not have")
        shape, right = list(tensor.shape), list(wanted[name].shape)
        if shape != right:
            raise ValueError(f"{name} in {folder} has the shape {shape}, by config.json it must be {right}")
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name} in {folder} is {tensor.dtype}, it must be {' or '.join(map(str, DTYPES))}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} in {folder} holds numbers that are not finite")
    for name in wanted:
        if name not in weights:
            raise ValueError(f"{folder} has no tensor {name}, by config.json it must have one")
