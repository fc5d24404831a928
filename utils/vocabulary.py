"""Which tokenizer suits a text: whole words where they are known and stand as in English, else pieces of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from utils.tokenizer import BPETokenizer, WordTokenizer

TOKENIZERS = ("auto", "word", "bpe")
MOST_UNKNOWN, MOST_RESPACED, MOST_LINES = 0.02, 0.02, 0.1
LOOK_AT = 1_000_000  # characters of validation text by which words are judged
# Tokens of byte-pair encoding for training texts of so many bytes: a small text has few pairs worth a row of weights.
SIZES = {50_000: 512, 500_000: 1024, 2_000_000: 2048}
LARGEST = 4096


class Lost(NamedTuple):
    """What a text loses with words as tokens, each a share of its words."""

    unknown: float  # are not in the vocabulary
    respaced: float  # come back with other spaces, such as l ' ami
    lines: float  # line ends, which do not come back


def lost_with_words(tok: WordTokenizer, texts: Sequence[str]) -> Lost:
    """How much of `texts` the tokenizer loses."""
    ids = [i for text in texts for i in tok.encode(text)]
    spaced = Counter(word for text in texts for word in text.lower().split())
    n_words = max(1, spaced.total())
    whole = WordTokenizer.train([*texts, "word"])  # knows every word: what is left is spaces
    told = Counter(word for text in texts for word in whole.decode(whole.encode(text)).lower().split())
    return Lost(
        unknown=ids.count(tok.unk_id) / max(1, len(ids)),
        respaced=(spaced - told).total() / n_words,
        lines=sum(text.count("\n") for text in texts) / n_words,
    )


def bpe_size(texts: Sequence[str]) -> int:
    """How many tokens byte-pair encoding gets where nobody says it."""
    n_bytes = sum(len(text.encode("utf-8", "replace")) for text in texts)
    return next((size for most, size in SIZES.items() if n_bytes < most), LARGEST)


def make_tokenizer(
    kind: str, train: Sequence[str], validation: Sequence[str], min_count: int = 1, vocab_size: int | None = None
) -> tuple[WordTokenizer | BPETokenizer, str]:
    """(the tokenizer, why it is another one than expected or what it loses; else "").

    kind: "word", "bpe", or "auto": words, unless the text loses more with them than may be. Raises ValueError for
    another kind.
    """
    if kind not in TOKENIZERS:
        raise ValueError(f"tokenizer is {kind!r:.60}, it must be one of {', '.join(TOKENIZERS)}")
    if kind == "bpe":
        return BPETokenizer.train(train, vocab_size or bpe_size(train), "kimi"), ""
    tok = WordTokenizer.train(train, min_count=min_count, max_size=vocab_size)
    lost = lost_with_words(tok, _first(validation))
    told = [
        f"{share:.1%} {what}"
        for share, most, what in (
            (lost.unknown, MOST_UNKNOWN, "of the words unknown"),
            (lost.respaced, MOST_RESPACED, "of them spaced otherwise"),
            (lost.lines, MOST_LINES, "as many line ends gone"),
        )
        if share > most
    ]
    if not told:
        return tok, ""
    if kind == "word":
        return tok, f"words leave {' and '.join(told)}; --tokenizer bpe keeps every text as it is"
    return BPETokenizer.train(train, vocab_size or bpe_size(train), "kimi"), f"words would leave {' and '.join(told)}"


def _first(texts: Sequence[str]) -> list[str]:
    """The beginning of `texts`, LOOK_AT characters in all."""
    n, taken = 0, []
    for text in texts:
        taken.append(text[: LOOK_AT - n])
        n += len(text)
        if n >= LOOK_AT:
            break
    return taken
