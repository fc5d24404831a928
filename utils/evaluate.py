"""How good a model is, in numbers: loss on unseen stories, and what its own stories are like."""

from __future__ import annotations

import math
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from utils.data import TokenData
from utils.decoding import Decoder
from utils.device import autocast
from utils.generation import Sampling, next_token_probabilities, prompt_ids, sample
from utils.model import Kimi
from utils.stories import judge_story

BATCH = 50  # stories told side by side


class Evaluation(NamedTuple):
    loss: float  # nats per token on the validation stories
    perplexity: float  # exp(loss)
    bits_per_byte: float  # the same per UTF-8 byte of the stories' text, to compare tokenizers
    repetition: float  # share of the told four-word sequences that stood in the same story before
    coherent: float  # share of told stories that the judge of the built-in grammar accepts


def evaluate(
    model: Kimi,
    data: TokenData,
    n_stories: int = 200,
    temperature: float = 0.8,
    seed: int = 0,
    number_format="fp32",
) -> Evaluation:
    """Loss over every validation token once, and the quality of `n_stories` stories told from "Once upon a time"."""
    loss = validation_loss(model, data, number_format)
    tokens = len(data.split("val"))
    stories = tell_stories(model, n_stories, temperature=temperature, seed=seed)
    return Evaluation(
        loss=loss,
        perplexity=math.exp(min(loss, 700)),
        bits_per_byte=loss / math.log(2) * tokens / data.n_bytes["val"],
        repetition=repetition(stories),
        coherent=sum(map(judge_story, stories)) / max(1, len(stories)),
    )


@torch.no_grad()
def validation_loss(model: Kimi, data: TokenData, number_format: str = "fp32", batch_size: int = 16) -> float:
    """Mean cross-entropy in nats of every validation token but the first, in windows that do not overlap."""
    block = model.config.block_size
    tokens = torch.from_numpy(data.split("val").astype(np.int64))
    x, y = tokens[:-1], tokens[1:]
    whole = len(x) // block * block
    batches = list(
        zip(
            x[:whole].view(-1, block).split(batch_size),
            y[:whole].view(-1, block).split(batch_size),
            strict=True,
        )
    )
    if whole < len(x):
        batches.append((x[None, whole:], y[None, whole:]))
    model.eval()
    total = 0.0
    for inputs, targets in batches:
        with autocast(model.device, number_format):
            total += model.loss(inputs.to(model.device), targets.to(model.device)).item() * inputs.numel()
    return total / len(x)


def tell_stories(
    model: Kimi,
    n: int,
    prompt: str = "Once upon a time",
    max_new_tokens: int = 250,
    temperature: float = 0.8,
    seed: int = 0,
    **settings,
) -> list[str]:
    """`n` stories that begin with `prompt`, many at a time; each ends at <|endoftext|> or after max_new_tokens.

    `settings` as the other fields of `Sampling`.
    """
    tok, start = model.tokenizer, prompt_ids(model, prompt)
    generator = torch.Generator().manual_seed(seed)
    decoder, sampling, stories = Decoder(model), Sampling(temperature, **settings), []
    for first in range(0, n, BATCH):
        count = min(BATCH, n - first)
        columns, ended = [], torch.zeros(count, dtype=torch.bool)
        tokens = torch.tensor([start]).expand(count, -1)
        for new, _ in islice(sample(decoder, tokens, sampling, generator), max_new_tokens):
            columns.append(new.cpu())
            ended |= columns[-1] == tok.eos_id
            if ended.all():
                break
        for row in torch.stack(columns, dim=1).tolist():
            end = row.index(tok.eos_id) if tok.eos_id in row else len(row)
            stories.append(tok.decode(start + row[:end]))
    return stories


def repetition(stories: list[str], length: int = 4) -> float:
    """Share of the sequences of `length` words that stood earlier in the same story, from 0 to 1."""
    seen = total = 0
    for story in stories:
        words = story.lower().split()
        sequences = [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]
        total += len(sequences)
        seen += len(sequences) - len(set(sequences))
    return seen / total if total else 0.0


HEROES = {"her": ("girl", "Lily"), "his": ("boy", "Tom")}  # the right word: who is meant
LOST = "Once upon a time, there was a little {who} named {name}. {name} had a red ball. Then {name} lost"


def pronouns(model: Kimi) -> dict:
    """Probabilities of "her" and "his" when a hero has lost a ball: {"her": {"Lily": p, "Tom": p}, "his": ...}."""
    p = {name: next_token_probabilities(model, LOST.format(who=who, name=name)) for who, name in HEROES.values()}
    return {word: {name: p[name][model.tokenizer.encode(word)[0]].item() for name in p} for word in HEROES}


def look(model: Kimi, n_stories: int = 50) -> dict:
    """What the course watches while a model is trained: one story, the share of coherent ones, her and his.

    For `train(..., watch=look)`; all values are plain. Needs a tokenizer that knows "her" and "his".
    """
    stories = tell_stories(model, n_stories)
    return {"story": stories[0], "coherent": sum(map(judge_story, stories)) / n_stories, **pronouns(model)}
