"""From logits to a story: choose the next token, append it, repeat.

`sample` is the one loop, on token ids, for a whole batch at once. What else tells is a view of it: `stream` and
`generate` make text of it, `tell_stories` many stories at once, `next_token_probabilities` looks at its first step,
and the panel's `Reading` keeps what the model was thinking.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch

from utils.accessories import Progress, silent
from utils.decoding import Decoder
from utils.model import Kimi
from utils.record import Record
from utils.settings import check_settings, real, refuse_unknown, whole


@dataclass(frozen=True)
class Sampling:
    """How to turn logits into a choice. The defaults change nothing but the temperature.

    The command line takes its options and the panel its sliders from these declarations.
    """

    temperature: float = real(
        0.8, "0 takes the likeliest word, 1 the model's own probabilities", "0 or more (from 1e-6 on) and finite",
        lambda value: value == 0 or 1e-6 <= value < math.inf, slider=(0.0, 2.0, 0.05),
    )  # fmt: skip
    top_k: int | None = whole(None, "keep the k likeliest words; none: all", optional=True, slider=(0, 200, 1))
    # arXiv 1904.09751
    top_p: float = real(
        1.0, "keep the likeliest words that reach this probability together", "in [1e-6, 1]",
        lambda value: 1e-6 <= value <= 1, slider=(0.05, 1.0, 0.05),
    )  # fmt: skip
    # arXiv 2407.01082
    min_p: float = real(
        0.0, "keep words at least this times as likely as the likeliest", "in [0, 1]",
        lambda value: 0 <= value <= 1, slider=(0.0, 1.0, 0.01),
    )  # fmt: skip
    repetition_penalty: float = real(
        1.0, "divide the odds of words that have appeared by this", "1 or more",
        lambda value: 1 <= value < math.inf, slider=(1.0, 2.0, 0.05),
    )  # fmt: skip

    def __post_init__(self):
        check_settings(self)

    def probabilities(self, logits: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """`word_probabilities` with these settings."""
        return word_probabilities(logits, seen, self)


def word_probabilities(logits: torch.Tensor, seen: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """logits (B, V), seen (B, V) bool -> probabilities (B, V) in fp32; cut words have exactly 0."""
    logits = logits.float()
    # a difference of logits is a ratio of odds: this lowers a chance whatever the sign of the logit
    logits = logits - math.log(sampling.repetition_penalty) * seen  # (B, V)
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    # the largest logit becomes 0 first, so that no temperature is too small to divide by
    below = logits - logits.amax(dim=-1, keepdim=True)
    p = (below / sampling.temperature).softmax(dim=-1)  # (B, V)
    # words are ranked by logits, of which a softmax may round two to the same probability
    if sampling.top_k is not None and sampling.top_k < p.shape[-1]:
        index = logits.topk(sampling.top_k).indices  # (B, K)
        p = torch.zeros_like(p).scatter(-1, index, p.gather(-1, index))
        p = p / p.sum(dim=-1, keepdim=True)
    if sampling.top_p < 1:
        index = logits.argsort(dim=-1, descending=True, stable=True)  # (B, V)
        ordered = p.gather(-1, index)
        reached_before = ordered.cumsum(dim=-1) - ordered  # by the likelier ones
        inside = reached_before < sampling.top_p
        p = torch.zeros_like(p).scatter(-1, index, ordered * inside)
    if sampling.min_p > 0:
        p = p.masked_fill(p < sampling.min_p * p.amax(dim=-1, keepdim=True), 0)
    return p / p.sum(dim=-1, keepdim=True)


class Step(NamedTuple):
    """One step of `sample`."""

    tokens: torch.Tensor  # (B,) the next tokens
    probabilities: torch.Tensor  # (B, V) those that they were drawn with
    record: Record  # what the model left behind when it read the tokens before them


def sample(decoder: Decoder, tokens: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> Iterator[Step]:
    """Endless steps after `tokens` (B, T), T at most the block size.

    Each position is computed once and remembered in the cache. When the block is full, the newer
    half is read again from position 0 and the older half forgotten, so generation goes on for ever
    at the same speed.
    """
    model = decoder.model
    block, device = model.config.block_size, model.device
    decoder.restart()
    tokens = new = tokens.to(device)  # (B, T)
    seen = torch.zeros(len(tokens), model.config.vocab_size, dtype=torch.bool, device=device)  # (B, V)
    never = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=device)
    if model.tokenizer is not None:
        never[model.tokenizer.never_told] = True  # such as <unk>
    while True:
        seen.scatter_(1, new, True)
        record = Record()
        logits = decoder(new, record)  # (B, V)
        with torch.inference_mode():
            p = sampling.probabilities(logits.masked_fill(never, -math.inf), seen)  # (B, V)
            if sampling.temperature == 0:
                new = p.argmax(dim=-1, keepdim=True)  # (B, 1)
            else:  # drawn on the CPU, so that a seed means the same on every device
                new = p.cpu().multinomial(1, generator=generator).to(device)  # (B, 1)
        yield Step(new[:, 0], p, record)
        tokens = torch.cat([tokens, new], dim=1)[:, -block:]
        if decoder.length == block:
            decoder.restart()
            new = tokens[:, -max(1, block // 2) :]


def stream(
    model: Kimi, prompt: str = "Once upon a time", max_new_tokens: int = 200, *, seed: int | None = None,
    stop_at_eos: bool = True, number_format: str = "auto", **settings,
) -> Iterator[str]:  # fmt: skip
    """Tell a story that begins with `prompt`, in pieces of text as they are made; the prompt is the first piece.

    An empty prompt, or one without a known word, starts from <|endoftext|>, where stories begin. Without a seed every
    call tells another story. `number_format` is that of the matmuls (see `decoding`): a story can change with it where
    two words are nearly as likely. settings: the fields of `Sampling`. Raises ValueError for impossible settings. Of a
    prompt longer than the block the model reads the end, as it does of a story that grows beyond it, and a warning says
    what it leaves out.
    """
    refuse_unknown(Sampling, settings)
    sampling = Sampling(**settings)
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}, it must be 0 or more")
    ids = prompt_ids(model, prompt)
    steps = sample(Decoder(model, number_format), read_of(model, ids), sampling, generator_of(seed))
    return _pieces(model.tokenizer, prompt, ids, islice(steps, max_new_tokens), stop_at_eos)


def _pieces(tok, prompt: str, ids: list[int], steps: Iterator[Step], stop_at_eos: bool) -> Iterator[str]:
    shown = prompt if tok.keeps_spaces else prompt.rstrip()  # the reader's own words, not their lower-cased reading
    if ids == [tok.eos_id]:
        detokenizer = tok.detokenizer()
        shown = shown and shown + " "  # of words that are not known
    else:
        detokenizer = tok.detokenizer(after=ids)
    yield shown
    for step in steps:
        token = step.tokens.item()
        if token == tok.eos_id and stop_at_eos:
            break
        if piece := detokenizer.push(token):
            yield piece
    if piece := detokenizer.flush():
        yield piece


def generate(model: Kimi, prompt: str = "Once upon a time", max_new_tokens: int = 200, **settings) -> str:
    """The whole story as one string: all pieces of `stream`, which explains the settings."""
    return "".join(stream(model, prompt, max_new_tokens, **settings))


STORIES_AT_ONCE = 50


def tell_stories(
    model: Kimi, n: int, prompt: str = "Once upon a time", max_new_tokens: int = 250, seed: int = 0,
    progress: Progress = silent, **settings,
) -> list[str]:  # fmt: skip
    """`n` stories that begin with `prompt`, many at a time; each ends at <|endoftext|> or after max_new_tokens.

    settings: the fields of `Sampling`. progress: is given the tokens of so many stories, see `accessories`. Raises
    ValueError as `stream` does, and for less than one story.
    """
    if n < 1:
        raise ValueError(f"n is {n}, the number of stories to tell must be 1 or more")
    sampling, generator, stories = Sampling(**settings), generator_of(seed), []
    tok, start = model.tokenizer, prompt_ids(model, prompt)
    decoder, read = Decoder(model), read_of(model, start)  # (1, T)
    for first in range(0, n, STORIES_AT_ONCE):
        count = min(STORIES_AT_ONCE, n - first)
        columns, ended = [], torch.zeros(count, dtype=torch.bool)
        steps = islice(sample(decoder, read.expand(count, -1), sampling, generator), max_new_tokens)
        for step in progress(steps, f"stories {first + 1} to {first + count} of {n}", max_new_tokens):
            columns.append(step.tokens.cpu())
            ended |= columns[-1] == tok.eos_id
            if ended.all():
                break
        for row in torch.stack(columns, dim=1).tolist():
            end = row.index(tok.eos_id) if tok.eos_id in row else len(row)
            stories.append(tok.decode(start + row[:end]))
    return stories


def next_token_probabilities(model: Kimi, prompt: str, **settings) -> torch.Tensor:
    """(V,) probability of every token to come next after `prompt`; `settings` as the fields of `Sampling`.

    Without settings these are the model's own probabilities (temperature 1).
    """
    sampling = Sampling(**{"temperature": 1.0, **settings})
    read = read_of(model, prompt_ids(model, prompt))  # (1, T)
    step = next(sample(Decoder(model), read, sampling, torch.Generator()))
    return step.probabilities[0].cpu()


def prompt_ids(model: Kimi, prompt: str) -> list[int]:
    """The prompt as ids that the model can continue: one of no known word, with a warning, as the start of a story."""
    tok = model.tokenizer
    if tok is None:
        raise ValueError("this model has no tokenizer: set model.tokenizer to the one it was trained with")
    ids = tok.encode(prompt)
    if all(i == tok.unk_id for i in ids):
        if ids:
            warnings.warn(
                f"no word of the prompt {prompt!r} is known to this model: it begins a new story",
                stacklevel=3,
            )
        return [tok.eos_id]
    return ids


def read_of(model: Kimi, ids: list[int]) -> torch.Tensor:
    """What the model reads of a prompt, (1, T): the last ids that its block takes. A warning says what is left out."""
    block = model.config.block_size
    if len(ids) > block:
        left_out = model.tokenizer.decode(ids[:-block])
        left_out = left_out if len(left_out) <= 60 else f"{left_out[:30]} ... {left_out[-25:]}"
        limit = f"the model's block takes the last {block}: it does not read {left_out!r}"
        warnings.warn(f"the prompt has {len(ids)} tokens, {limit}", stacklevel=3)
    return torch.tensor([ids[-block:]])


def generator_of(seed: int | None) -> torch.Generator:
    """The random numbers of a seed, or others each time without one. ValueError for a seed that torch does not take."""
    if seed is not None and not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}, it must be a whole number, 0 or more and below 2^63")
    generator = torch.Generator()
    _ = generator.seed() if seed is None else generator.manual_seed(seed)
    return generator
