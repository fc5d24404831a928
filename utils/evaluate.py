"""How good a model is, in numbers: what unseen texts cost it, and what its own stories are like."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from utils.accessories import Progress, silent
from utils.data import TokenData
from utils.device import autocast
from utils.dropped import Dropped
from utils.generation import tell_stories
from utils.judge import Judge
from utils.model import Kimi, eval_view
from utils.ranks import Ranks
from utils.record import Record
from utils.stories import judge_story


class Evaluation(NamedTuple):
    """What `evaluate` finds. Shares are from 0 to 1."""

    loss: float  # nats per token on the validation texts
    perplexity: float  # exp(loss)
    bits_per_byte: float  # for the UTF-8 bytes of the texts as they stand: compares tokenizers and models
    dropped: float | None  # of those, what words leave out costs; None: it was not paid, so they are a lower bound
    accuracy: float  # share of the validation tokens that were the likeliest
    dead_experts: float  # share of the experts that no validation token went to
    tokens_per_second: float  # read, not told; of this machine
    repetition: float  # share of the told four-word sequences that stood in the same story before
    distinct: tuple[float, float, float]  # different words, pairs and triples among all that were told
    coherent: float  # share of told stories that the judge of the built-in grammar accepts
    faults: dict[str, float] | None  # share of told stories with each fault that `Judge` knows, and with none


def evaluate(
    model: Kimi,
    data: TokenData,
    n_stories: int = 200,
    temperature: float = 0.8,
    seed: int = 0,
    number_format="fp32",
    *,
    texts: tuple[Sequence[str], Sequence[str]] | None = None,
    prompt: str = "Once upon a time",
    progress: Progress = silent,
) -> Evaluation:
    """Every validation token once, and the quality of `n_stories` stories told from `prompt`.

    texts: the training and validation texts of `data`. With them bits per byte are those of the original text, and
    stories are judged by what the training texts show. Several processes (see `ranks`) share the validation texts, and
    the first tells the stories. progress: is given what each long stage goes through, see `accessories`.
    """
    if n_stories < 0:
        raise ValueError(f"n_stories is {n_stories}, it must be 0 or more")
    ranks, read = Ranks(), read_validation(model, data, number_format, progress=progress)
    tokens, n_bytes = len(data.split("val")), data.n_bytes["val"]
    dropped = 0.0 if model.tokenizer.keeps_spaces else None
    if dropped is None and texts:
        rest = Dropped(model.tokenizer, texts[0])
        ours = texts[1][ranks.rank :: ranks.size]
        bits = sum(map(rest.bits, progress(ours, "what words leave out", len(ours))))
        dropped = ranks.sum(torch.tensor(bits, dtype=torch.float64)).item() / n_bytes
    tells = n_stories and ranks.is_first  # one after the other, from one seed: nothing to share
    how = dict(seed=seed, progress=progress, temperature=temperature)
    stories = tell_stories(model, n_stories, prompt, **how) if tells else []
    return Evaluation(
        loss=read.loss,
        perplexity=math.exp(min(read.loss, 700)),
        bits_per_byte=read.loss / math.log(2) * tokens / n_bytes + (dropped or 0.0),
        dropped=dropped,
        accuracy=read.accuracy,
        dead_experts=read.dead_experts,
        tokens_per_second=read.tokens_per_second,
        repetition=repetition(stories),
        distinct=tuple(distinct(stories, n) for n in (1, 2, 3)),
        coherent=sum(map(judge_story, stories)) / max(1, len(stories)),
        faults=Judge.learn(texts[0]).shares(stories) if texts and stories else None,
    )


class Read(NamedTuple):
    """What `read_validation` finds."""

    loss: float  # nats per token
    accuracy: float
    dead_experts: float
    tokens_per_second: float


@torch.no_grad()
def read_validation(
    model: Kimi, data: TokenData, number_format: str = "fp32", batch_size: int = 16, progress: Progress = silent
) -> Read:
    """Let the model read every validation token once, in the windows of `validation_loss`; processes share them."""
    view, record, ranks = eval_view(model), Record(), Ranks()
    nats = right = n = 0
    ours = list(windows(data, model.config.block_size, batch_size))[ranks.rank :: ranks.size]  # views
    started = time.perf_counter()
    for inputs, targets in progress(ours, "validation", len(ours)):
        targets = targets.to(view.device)
        with autocast(view.device, number_format):
            logits = view(inputs.to(view.device), record=record).flatten(0, 1).float()  # (B * T, V)
        nats += F.cross_entropy(logits, targets.flatten(), reduction="sum").item()
        right += (logits.argmax(-1) == targets.flatten()).sum().item()
        n += targets.numel()
    nats, right, n = ranks.sum(torch.tensor([nats, right, n], dtype=torch.float64)).tolist()
    load = torch.zeros(len(model.routers()), model.config.n_experts)
    if record.layers:  # a process may get nothing to read
        load += record.expert_load().cpu()
    dead = (ranks.sum(load) == 0).float().mean().item()
    return Read(nats / n, right / n, dead, n / (time.perf_counter() - started))


@torch.no_grad()
def validation_loss(model: Kimi, data: TokenData, number_format: str = "fp32", batch_size: int = 16) -> float:
    """Mean cross-entropy in nats of every validation token but the first, in windows that do not overlap."""
    view, total, n = eval_view(model), 0.0, 0
    for inputs, targets in windows(data, model.config.block_size, batch_size):
        with autocast(view.device, number_format):
            total += view.loss(inputs.to(view.device), targets.to(view.device)).item() * inputs.numel()
        n += inputs.numel()
    return total / n


def windows(data: TokenData, block: int, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """All validation tokens as x (B, T) and y (B, T), each token's successor; what fills no window comes last."""
    tokens = torch.from_numpy(data.split("val").astype(np.int64))
    x, y = tokens[:-1], tokens[1:]
    whole = len(x) // block * block  # tokens in full windows
    if whole:
        inputs, targets = (t[:whole].view(-1, block).split(batch_size) for t in (x, y))  # (B, T) each
        yield from zip(inputs, targets, strict=True)
    if whole < len(x):
        yield x[None, whole:], y[None, whole:]


def sequences(story: str, length: int) -> list[tuple[str, ...]]:
    """All runs of `length` words of a story, in small letters."""
    words = story.lower().split()
    return [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]


def repetition(stories: Sequence[str], length: int = 4) -> float:
    """Share of the sequences of `length` words that stood earlier in the same story, from 0 to 1."""
    told = [sequences(story, length) for story in stories]
    total = sum(map(len, told))
    return 1 - sum(len(set(story)) for story in told) / total if total else 0.0


def distinct(stories: Sequence[str], n: int) -> float:
    """distinct-n: different sequences of `n` words in all stories together, as a share of their number.

    Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", 2016, arXiv 1510.03055. It
    falls with the number of stories: compare equally many.
    """
    told = [words for story in stories for words in sequences(story, n)]
    return len(set(told)) / len(told) if told else 0.0
