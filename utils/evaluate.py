"""How good a model is, in numbers: loss on unseen stories, and what its own stories are like."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from utils.data import TokenData
from utils.device import autocast
from utils.generation import tell_stories
from utils.model import Kimi, eval_view
from utils.record import Record
from utils.stories import judge_story


class Evaluation(NamedTuple):
    loss: float  # nats per token on the validation stories
    perplexity: float  # exp(loss)
    bits_per_byte: float  # the same per UTF-8 byte of the stories' text, to compare tokenizers
    repetition: float  # share of the told four-word sequences that stood in the same story before
    coherent: float  # share of told stories that the judge of the built-in grammar accepts
    dead_experts: float  # share of the experts that no token of the validation stories went to


def evaluate(
    model: Kimi,
    data: TokenData,
    n_stories: int = 200,
    temperature: float = 0.8,
    seed: int = 0,
    number_format="fp32",
) -> Evaluation:
    """Loss over every validation token once, and the quality of `n_stories` stories told from "Once upon a time"."""
    record = Record()
    loss = validation_loss(model, data, number_format, record=record)
    tokens = len(data.split("val"))
    stories = tell_stories(model, n_stories, temperature=temperature, seed=seed)
    return Evaluation(
        loss=loss,
        perplexity=math.exp(min(loss, 700)),
        bits_per_byte=loss / math.log(2) * tokens / data.n_bytes["val"],
        repetition=repetition(stories),
        coherent=sum(map(judge_story, stories)) / max(1, len(stories)),
        dead_experts=record.dead_experts(),
    )


@torch.no_grad()
def validation_loss(
    model: Kimi, data: TokenData, number_format: str = "fp32", batch_size: int = 16, record: Record | None = None
) -> float:
    """Mean cross-entropy in nats of every validation token but the first, in windows that do not overlap.

    record: takes how often each expert was chosen.
    """
    block = model.config.block_size
    tokens = torch.from_numpy(data.split("val").astype(np.int64))
    x, y = tokens[:-1], tokens[1:]
    whole = len(x) // block * block  # tokens in full windows
    inputs, targets = (t[:whole].view(-1, block).split(batch_size) for t in (x, y))  # (B, T) each
    batches = list(zip(inputs, targets, strict=True)) if whole else []
    if whole < len(x):
        batches.append((x[None, whole:], y[None, whole:]))
    view, total = eval_view(model), 0.0
    for inputs, targets in batches:
        with autocast(view.device, number_format):
            total += view.loss(inputs.to(view.device), targets.to(view.device), record).item() * inputs.numel()
    return total / len(x)


def repetition(stories: list[str], length: int = 4) -> float:
    """Share of the sequences of `length` words that stood earlier in the same story, from 0 to 1."""
    seen = total = 0
    for story in stories:
        words = story.lower().split()
        sequences = [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]
        total += len(sequences)
        seen += len(sequences) - len(set(sequences))
    return seen / total if total else 0.0
