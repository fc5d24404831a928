"""What words as tokens leave out of a text, and how many bits it takes to say it.

A word tokenizer drops spaces, capitals and the spelling of unknown words.  A model over its ids has therefore not paid
for the whole text, and its bits per byte cannot be compared with those of a tokenizer that keeps everything.  `Dropped`
pays the rest: knowing the ids and how `decode` would write them, it predicts the text itself, with counts from training
texts smoothed as Witten and Bell did ("The zero-frequency problem", IEEE Transactions on Information Theory, 1991).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence

from utils.detokenizer import is_word, texts_of
from utils.tokenizer import WordTokenizer

CHARACTERS = 0x110000 + 1  # every code point, and the end of a word
END = ""
ORDER = 4  # characters that tell the next one
LEARN_FROM = 1_000  # texts are enough
LONG = 8  # white space of more characters is spelled: its own p would be too small for a float
FORMS = {"as decoded": lambda word: word, "small": str.lower, "large": str.upper, "capital": str.capitalize}


class Counts:
    """How often a symbol followed a context; p(symbol | context) from the longest context to none, then `p_new`."""

    def __init__(self):
        self._seen = defaultdict(Counter)

    def add(self, contexts: Sequence[Hashable], symbol: str) -> None:
        for context in contexts:
            self._seen[context][symbol] += 1

    def p(self, contexts: Sequence[Hashable], symbol: str, p_new: float) -> float:
        """contexts: from the least to the most specific. The p of all symbols sum to at most 1."""
        p = p_new
        for context in contexts:
            if seen := self._seen.get(context):
                p = (seen[symbol] + len(seen) * p) / (seen.total() + len(seen))
        return p


class Dropped:
    """Predicts the text of ids: the white space before a token, its capitals, and an unknown word letter by letter."""

    def __init__(self, tok: WordTokenizer, train: Sequence[str]):
        self.tok = tok
        self._spaces, self._forms, self._letters = Counts(), Counts(), Counts()
        different = set()
        for text in train[:LEARN_FROM]:
            different.update(text.split())
            for counts, contexts, symbol, _ in self._symbols(text):
                counts.add(contexts, symbol)
        for word in different:  # an unknown word is rather like one of these than like one of the frequent ones
            for counts, contexts, symbol, _ in self._spelled(word):
                counts.add(contexts, symbol)

    def bits(self, text: str) -> float:
        """Bits that it takes to say `text` to somebody who knows its ids."""
        return -sum(
            math.log2(counts.p(contexts, symbol, p_new)) for counts, contexts, symbol, p_new in self._symbols(text)
        )

    def _symbols(self, text: str) -> Iterator[tuple[Counts, tuple, str, float]]:
        """(counts, contexts, what is said, its p where nothing is known) of all that the ids do not tell."""
        ids = self.tok.encode(text)
        pieces = self.tok.pieces(text)
        before = ""
        for i, piece, told in zip(ids, pieces, texts_of(self.tok.detokenizer(), ids), strict=True):
            word, guess = piece.lstrip(), told.lstrip()
            space, expected = piece[: -len(word)], told[: -len(guess)]
            sign = before if before and not is_word(before) else "word"
            yield from self._spaced(space, ((), (expected,), (expected, sign)))
            if i == self.tok.unk_id:
                yield from self._spelled(word)
            elif is_word(word):
                form = next((name for name, form in FORMS.items() if form(guess) == word), "spelled")
                contexts = ((), (guess == guess.lower(), sign), (guess,))
                yield self._forms, contexts, form, 1 / (len(FORMS) + 1)
                if form == "spelled":
                    yield from self._spelled(word)
            before = word
        yield from self._spaced(text[sum(map(len, pieces)) :], (("end",),))

    def _spaced(self, space: str, contexts: tuple) -> Iterator[tuple[Counts, tuple, str, float]]:
        if len(space) <= LONG:
            yield self._spaces, contexts, space, CHARACTERS ** -(len(space) + 1.0)
        else:
            yield self._spaces, contexts, "spelled", CHARACTERS ** -(LONG + 2.0)
            yield from self._spelled(space)

    def _spelled(self, word: str) -> Iterator[tuple[Counts, tuple, str, float]]:
        for i, letter in enumerate([*word, END]):
            before = "^" + word[:i]  # ^ where the word begins
            contexts = tuple(before[len(before) - n :] for n in range(min(ORDER, len(before)) + 1))
            yield self._letters, contexts, letter, 1 / CHARACTERS
