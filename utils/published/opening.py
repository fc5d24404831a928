"""`open_published`: a published model by its name or its folder, with nothing read yet but what describes it."""

from __future__ import annotations

import os
from pathlib import Path

from utils.bpe import BPETokenizer
from utils.config import K2Config
from utils.files import json_part, read_json
from utils.hf import CONFIG
from utils.hf_config import n_second_heads, read_config
from utils.hf_fp8 import fp8_block
from utils.hf_names import left_out, published_tensors, refuse_more_than_is_there
from utils.hf_tokenizer import SETTINGS, TOKENIZER, read_tokenizer
from utils.published.keeping import Kept
from utils.published.lazy import LazyKimi
from utils.published.source import NAME, Folder, Repository
from utils.published.tensors import Tensors
from utils.tokenizer import WordTokenizer

RANKS = "tiktoken.model"  # the file of ranks in Moonshot's repositories
CACHE = Path("~/.cache/kimi_k2_from_scratch/published")


def open_published(name: str | Path, *, cache: str | Path | None = None, cache_gb: float = 40.0) -> LazyKimi:
    """A published DeepSeek-V3 or Kimi K2, whose tensors are read when they are used.

    name: a folder, or a repository on the hub, "OWNER/NAME" or "OWNER/NAME@REVISION". cache: a folder for what is
    fetched, at most `cache_gb` of it. Nothing that is read is executed.

    Raises FileNotFoundError and ConnectionError where something is not there, ValueError where the model is one that
    this project cannot compute, or its files lack a tensor.
    """
    if not 0 <= cache_gb < float("inf"):
        raise ValueError(f"cache_gb is {cache_gb}, it must be 0 or more and finite")
    kept = None
    if os.path.isdir(name):
        source = Folder(name)
    elif not NAME.fullmatch(str(name)):
        raise FileNotFoundError(f"{name} is neither a folder nor OWNER/NAME, a repository on the hub")
    else:
        folder = Path(cache or CACHE).expanduser()
        source = Repository(str(name), folder)
        kept = Kept(source.kept / "tensors", int(cache_gb * 1e9))
    file = source.local(CONFIG) if CONFIG in source else Path(source.name) / CONFIG
    state = read_json(file)
    config, n_second = read_config(state, file), n_second_heads(state, file)
    tensors = Tensors(source, fp8_block(state, file), kept)
    refuse_more_than_is_there(config, n_second, file, len(tensors.names()))
    model = LazyKimi(config, tensors)
    _refuse_other_names(model, n_second)
    model.tokenizer = _tokenizer(source, config)
    return model


def _refuse_other_names(model: LazyKimi, n_second: int) -> None:
    """Raise ValueError where the files lack a tensor of the model, or have one that it has not."""
    described, names, where = published_tensors(model), model.tensors.names(), model.tensors.source.name
    if missing := {name for name, tensor in described.items() if tensor.numel()}.difference(names):
        raise ValueError(f"{where} has no tensor {min(missing)}, by config.json it must have one")
    if unknown := set(names).difference(described, left_out(names, model.config.n_layers, n_second, where)):
        raise ValueError(f"{where} has the tensor {min(unknown)}, which a model with this config.json must not have")


def _tokenizer(source: Folder | Repository, config: K2Config) -> WordTokenizer | BPETokenizer | None:
    """The tokenizer beside the weights, one of ours or one of Moonshot's; None where there is another."""
    if RANKS in source:
        return read_ranks(source.local(RANKS), source.local(SETTINGS), config.vocab_size)
    if TOKENIZER in source and SETTINGS in source:
        return read_tokenizer(source.local(SETTINGS).parent if source.local(TOKENIZER) else None)
    return None


def read_ranks(ranks: Path, settings: Path, vocab_size: int) -> BPETokenizer:
    """Moonshot's tokenizer from its two files: the ranks, and the names of the tokens that stand for no text.

    Ids that have neither, up to the vocabulary's size, are reserved ones (tokenization_kimi.py, beside the files).
    """
    state, n_ranks = read_json(settings), len(ranks.read_bytes().splitlines())
    named = {}
    for i, token in json_part(state, "added_tokens_decoder").items():
        if not i.isdecimal() or not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise ValueError(f"{settings} has the token {i!r:.20}: {token!r:.100}, it must have a number and a content")
        named[int(i)] = token["content"]
    specials = {named.get(i, f"<|reserved_token_{i}|>"): i for i in range(n_ranks, vocab_size)}
    end = state.get("eos_token")
    end = end.get("content") if isinstance(end, dict) else end
    if end not in specials:
        raise ValueError(f"{settings} has the eos_token {end!r:.60}, which is none of its tokens")
    return BPETokenizer.load_ranks(ranks, "kimi", {end: specials[end], **specials})  # the first ends a text
