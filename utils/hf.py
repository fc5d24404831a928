"""A model as a folder that Hugging Face transformers reads, and back: nothing but JSON and safetensors.

`export_hf` writes the layout of DeepSeek-V3 (see `hf_config`), which transformers knows without foreign code:

    export_hf(model, "runs/mine/hf")
    transformers.pipeline("text-generation", model="runs/mine/hf")("Once upon a time")

`import_hf` reads such a folder, and any other DeepSeek-V3 of a shape that this project has: Kimi K2's and Moonlight's
files, in one or in shards, in bf16 or in fp8. The names of fields and tensors are those of transformers 5
(models/deepseek_v3) and of the checkpoints at huggingface.co/deepseek-ai.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import torch
from safetensors.torch import save

from utils.files import read_json, refuse_unwritable, write_atomically
from utils.hf_config import config_json, n_second_heads, read_config
from utils.hf_fp8 import E4M3, dequantised, fp8_block, take_scales
from utils.hf_names import left_out, published_tensors, refuse_more_than_is_there
from utils.hf_tokenizer import TOKENIZER, read_tokenizer, tokenizer_files
from utils.hf_weights import SUMS, WEIGHTS, check_sums, read_weights, separate_experts, shapes_in
from utils.model import Kimi

CONFIG = "config.json"
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
    tensors = {name: t.cpu().contiguous() for name, t in published_tensors(model).items()}
    if model.head.weight is model.embedding.weight:  # tied: safetensors takes no memory twice
        tensors["lm_head.weight"] = tensors["lm_head.weight"].clone()
    files[WEIGHTS] = save(tensors, {"format": "pt"})
    files[SUMS] = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()).encode()
    for name, content in files.items():
        write_atomically(Path(folder) / name, lambda file, content=content: file.write(content))


def import_hf(folder: str | Path) -> Kimi:
    """The model in `folder`, ready to generate; fp32 whatever the dtype of the file, as all models begin here.

    It knows its tokenizer if that is one of ours, else `model.tokenizer` is None. Matrices in fp8 are multiplied by
    their factors one by one (see `hf_fp8`). Layers that predict later tokens (num_nextn_predict_layers) are left out,
    as transformers does, and a warning says so.

    Raises FileNotFoundError where a file is missing, and ValueError for whatever this project cannot compute in the
    same way: it names the field or tensor, its value and what is allowed. An export of ours has checksums, and is
    refused where a file is not the one that was written with the others.
    """
    folder = Path(folder)
    check_sums(folder)
    state = read_json(folder / CONFIG)
    config, block = read_config(state, folder / CONFIG), fp8_block(state, folder / CONFIG)
    n_second = n_second_heads(state, folder / CONFIG)
    shapes = shapes_in(folder)  # only headers are read
    stacked = max((shape[0] for shape in shapes if len(shape) == 3), default=0)  # experts in one tensor
    refuse_more_than_is_there(config, n_second, folder / CONFIG, len(shapes), stacked)
    with torch.device("meta"):  # shapes first: a wrong config.json may describe more than the memory holds
        wanted = published_tensors(Kimi(config))
    weights = separate_experts(read_weights(folder))
    for name in left_out(weights, config.n_layers, n_second, folder):
        del weights[name]
    scales = take_scales(weights, block, folder)
    _check_tensors(weights, wanted, folder, (*DTYPES, E4M3) if block else DTYPES)
    model = Kimi(config)
    for name, tensor in published_tensors(model).items():
        # one by one: all at once, the weights of a large model would be in memory twice
        tensor.copy_(dequantised(weights[name], scales[name], block) if name in scales else weights[name])
    model.tokenizer = read_tokenizer(folder)
    if model.tokenizer is None and (folder / TOKENIZER).is_file():
        warnings.warn(f"{folder / TOKENIZER} is not one of ours: the model has no tokenizer", stacklevel=2)
    if model.tokenizer is not None and len(model.tokenizer) > config.vocab_size:
        raise ValueError(f"vocab_size is {config.vocab_size}, the tokenizer needs at least {len(model.tokenizer)}")
    return model.eval()


def _check_tensors(
    weights: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], folder: Path, dtypes: tuple[torch.dtype, ...]
) -> None:
    for name, tensor in weights.items():
        if name not in wanted:
            raise ValueError(f"{folder} has the tensor {name}, which a model with this config.json must not have")
        shape, right = list(tensor.shape), list(wanted[name].shape)
        if shape != right:
            raise ValueError(f"{name} in {folder} has the shape {shape}, by config.json it must be {right}")
        if tensor.dtype not in dtypes:
            raise ValueError(f"{name} in {folder} is {tensor.dtype}, it must be {' or '.join(map(str, dtypes))}")
        if not torch.isfinite(tensor.float() if tensor.dtype == E4M3 else tensor).all():
            raise ValueError(f"{name} in {folder} holds numbers that are not finite")
    for name in wanted:
        if name not in weights:
            raise ValueError(f"{folder} has no tensor {name}, by config.json it must have one")
