"""A prompt through a published model, layer by layer: what it will read, told before, and what each layer did."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from utils.generation import prompt_ids, read_of
from utils.hf_names import block_tensors
from utils.moe import MoE
from utils.published.lazy import LazyKimi
from utils.record import LayerRecord
from utils.units import size

ENOUGH = 10_000_000  # bytes after which a speed is known


class Reading(NamedTuple):
    """What a prompt reads, in bytes. Which experts its tokens choose is known only when it runs."""

    always: int  # what every token needs, with the rows of the embedding and, behind the last layer, the head
    experts_least: int  # where all tokens choose the same experts
    experts_most: int  # where no two choose the same
    kept: int  # how much of `always` needs no fetching
    speed: float | None  # bytes a second, as measured so far; None where all is on this machine

    def minutes(self) -> tuple[float, float] | None:
        """The least and the most that fetching takes, None where there is nothing to fetch."""
        if self.speed is None:
            return None
        rest = self.always - self.kept
        return tuple((rest + experts) / self.speed / 60 for experts in (self.experts_least, self.experts_most))

    def __str__(self) -> str:
        experts = f"{size(self.experts_least)} to {size(self.experts_most)}"
        told = f"to read: {size(self.always)} that every token needs, {experts} of experts"
        if self.speed is None:
            return told
        least, most = self.minutes()
        here = f"; {size(self.kept)} are here already" if self.kept else ""
        return f"{told}{here}; {least:.1f} to {most:.1f} minutes at {size(self.speed)}/s"


class Layer(NamedTuple):
    """What a layer did with a prompt."""

    index: int
    x: torch.Tensor  # (T, D) the residual stream behind it
    record: LayerRecord  # each head's largest logit, each token's experts
    bytes_read: int


def reading(model: LazyKimi, prompt: str, n_layers: int | None = None) -> Reading:
    """What `stream_layers` with the same arguments will read. Reads attention of layer 0 where no speed is known."""
    tokens, n_layers = _tokens(model, prompt), _checked(model, n_layers)
    always, least, most = model.embedding.places(tokens), 0, 0
    for block in model.blocks[:n_layers]:
        always += block.places()
        if isinstance(block.ffn, MoE):
            one = sum(place.bytes for place in block.ffn.experts.places(0))
            least += one * model.config.top_k
            most += one * min(model.config.n_experts, model.config.top_k * tokens.numel())
    if n_layers == model.config.n_layers:
        always += model.head.places()
    source = model.tensors.source
    if source.is_remote and source.bytes < ENOUGH:
        attention = [name for name in block_tensors(model.blocks[0], 0) if "self_attn" in name]
        list(model.tensors.many(attention))  # as all is read; what comes is kept
    kept = sum(place.bytes for place in always if model.tensors.is_kept(place))
    speed = source.bytes / source.seconds if source.is_remote else None
    return Reading(sum(place.bytes for place in always), least, most, kept, speed)


@torch.inference_mode()
def stream_layers(model: LazyKimi, prompt: str, n_layers: int | None = None) -> Iterator[Layer]:
    """Run a prompt through the first `n_layers` layers, by default all, each read when its turn comes.

    Prints first what it will read. Behind the last layer, `model.head(model.norm(x))` are the logits. To go on telling,
    `generate(model, prompt)` keeps what attention needs and reads the layers again for each token.

    Raises ValueError for more layers than there are.
    """
    print(reading(model, prompt, n_layers))
    tokens = _tokens(model, prompt)
    positions = torch.arange(tokens.shape[1])  # (T,)
    x, angles = model.positions(model.embedding(tokens), positions)  # (1, T, D), (T, R/2)
    blocks = model.blocks[: _checked(model, n_layers)]
    for i, block in enumerate(tqdm(blocks, "layers", leave=False, disable=not model.tensors.source.is_remote)):
        before, record = model.tensors.bytes_read, LayerRecord()
        x = block(x, angles, record=record)  # (1, T, D)
        yield Layer(i, x[0], record, model.tensors.bytes_read - before)


def _tokens(model: LazyKimi, prompt: str) -> torch.Tensor:
    return read_of(model, prompt_ids(model, prompt))  # (1, T)


def _checked(model: LazyKimi, n_layers: int | None) -> int:
    most = model.config.n_layers
    if n_layers is not None and not 1 <= n_layers <= most:
        raise ValueError(f"n_layers is {n_layers}, it must be from 1 to {most}")
    return n_layers or most
