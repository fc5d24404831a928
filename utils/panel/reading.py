"""What a model was thinking while it told a story: each word with its probability, its rivals and its experts.

A `Reading` is told word by word, so whoever shows it can stop after any word, go on later, and keep it as JSON.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from utils.decoding import Decoder
from utils.detokenizer import texts_of
from utils.generation import Sampling, generator_of, prompt_ids, read_of, sample
from utils.model import Kimi
from utils.record import Record

N_RIVALS = 10
FORMAT = "kimi-k2-from-scratch reading 1"


@dataclass
class Word:
    """One token of a story and what the model knew of it."""

    token: int
    text: str = ""  # as it stands in the story, with its space and its capital; the last three words wait for theirs
    probability: float | None = None  # of this token at this place; None where the prompt said it
    rivals: list[tuple[int, float]] = field(default_factory=list)  # likeliest tokens here and their probabilities
    experts: dict[int, list[int]] = field(default_factory=dict)  # by layer, those that read it; {} before it is read


class Reading:
    """A story and what the model was thinking: `tell` it, then look at `words`.

    settings: the fields of `Sampling`; the probabilities are those that the choice was made with. Raises ValueError for
    impossible settings. Of a prompt longer than the model's block the model reads the end, and a warning says so.
    """

    def __init__(self, model: Kimi, prompt: str = "Once upon a time", seed: int = 0, **settings):
        self.tokenizer, self.seed = model.tokenizer, seed
        self.sampling = Sampling(**settings)
        self.ended = False  # the model said <|endoftext|>
        ids = prompt_ids(model, prompt)
        self.prompt = prompt if self.tokenizer.keeps_spaces else prompt.rstrip()
        is_empty = ids == [self.tokenizer.eos_id]  # no known word: a new story
        texts = self.tokenizer.pieces(self.prompt) or texts_of(self.tokenizer.detokenizer(), ids)
        self.words = [] if is_empty else [Word(i, text) for i, text in zip(ids, texts, strict=True)]
        self.n_prompt = len(self.words)
        self._said = {word.token for word in self.words if self.name(word.token).strip()[:1].isalnum()}
        read = read_of(model, ids)  # (1, T)
        self._unread = self.words[-read.shape[1] :] or [Word(ids[0])]  # what the model reads in its next step
        self._silent: deque[Word] = deque()  # words whose text is not certain yet
        self._detokenizer = self.tokenizer.detokenizer(after=[] if is_empty else ids)
        self._decoder = Decoder(model)
        self._steps = sample(self._decoder, read, self.sampling, generator_of(seed))

    @property
    def text(self) -> str:
        """The story so far; the prompt in the reader's own words."""
        told = "".join(word.text for word in self.words[self.n_prompt :])
        return f"{self.prompt} {told}" if told and self.prompt and not self.n_prompt else self.prompt + told

    def tell(self, max_new_tokens: int) -> Iterator[Word]:
        """The next words as they are made, at most `max_new_tokens`; fewer where the story ends.

        It may be left after any word, and called again to go on from there.
        """
        try:
            for _ in range(max_new_tokens):
                if self.ended:
                    break
                step = next(self._steps)
                self._note_experts(step.record)
                token, p = step.tokens.item(), step.probabilities[0]  # p (V,)
                if token == self.tokenizer.eos_id:
                    self.ended = True
                    break
                top = p.topk(min(N_RIVALS, len(p)))
                rivals = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
                word = Word(token, probability=p[token].item(), rivals=rivals)
                self.words.append(word)
                self._unread = [word]
                self._silent.append(word)
                text = self._detokenizer.push(token)
                while len(self._silent) > self._detokenizer.waiting:
                    self._silent.popleft().text, text = text, ""
                yield word
        finally:  # of a copy: what is told later may still change a space or a capital
            for word, text in zip(self._silent, copy.deepcopy(self._detokenizer).rest(), strict=False):
                word.text = text

    def _note_experts(self, record: Record) -> None:
        """The model has just read the last positions: `_unread`, and others before them when its block was full."""
        for layer in self.layers():
            chosen = record.layers[layer].chosen.flatten(0, -2)[-len(self._unread) :].tolist()  # (T, K)
            for word, experts in zip(self._unread, chosen, strict=True):
                word.experts[layer] = experts

    @property
    def n_experts(self) -> int:
        return self._decoder.model.config.n_experts

    def layers(self) -> list[int]:
        """The layers that have experts."""
        return self._decoder.model.layers_with_experts()

    def name(self, token: int) -> str:
        """The token as the vocabulary has it."""
        return self.tokenizer.words[token]

    def repeats_prompt(self, word: Word) -> bool:
        """Whether it is a word, not a sign, that stands in the prompt."""
        return word.token in self._said

    def expert_load(self) -> dict[int, list[int]]:
        """By layer, how many words of the story each expert has read."""
        load = {layer: [0] * self.n_experts for layer in self.layers()}
        for word in self.words:
            for layer, experts in word.experts.items():
                for expert in experts:
                    load[layer][expert] += 1
        return load

    def to_dict(self) -> dict:
        """Everything as numbers and text, for JSON."""
        words = [
            {
                "word": self.name(word.token),
                "text": word.text,
                "from_prompt": place < self.n_prompt,
                "probability": word.probability,
                "likeliest": [{"word": self.name(token), "probability": p} for token, p in word.rivals],
                "experts": word.experts,
            }
            for place, word in enumerate(self.words)
        ]
        return {
            "format": FORMAT,
            "prompt": self.prompt,
            "text": self.text,
            "settings": {**asdict(self.sampling), "seed": self.seed},
            "ended": self.ended,
            "expert_load": self.expert_load(),
            "words": words,
        }


def refuse_mute(model: object, name: str = "") -> None:
    """Raise ValueError for what tells no story: no model, or one without a tokenizer. name: which of several it is."""
    which = f"the model {name!r}" if name else "the model"
    if not isinstance(model, Kimi):
        path = repr(str(model)) if isinstance(model, str | Path) else None
        given = f"the path {path}" if path else f"a {type(model).__name__}"
        how = f"model, step = load_model({path or 'path'}), from utils.checkpoint, gives one"
        raise ValueError(f"{which} is {given}, it must be a Kimi: {how}")
    if model.tokenizer is None:
        raise ValueError(f"{which} has no tokenizer: set model.tokenizer to the one of its training")
