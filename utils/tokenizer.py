"""Words as tokens: text -> ids -> readable text, with the standard library only.

A token is a run of letters, digits and underscores or one single sign, in lower case.  A story of one
hundred words is about 120 ids, and a few thousand words cover the language of TinyStories.  Kimi K2 itself
cuts text into pieces of words (byte-pair encoding; `vocab_size` in its config.json is 163,840), which
leaves no word unknown but needs far more data than a course has.

    tok = WordTokenizer.train(["Once upon a time, there was a cat. We called it Tom."])
    tok.decode(tok.encode("a CAT, tom"))          # 'A cat, Tom'
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from utils.bpe import BPETokenizer
from utils.detokenizer import EOS, SPECIALS, UNK, Detokenizer, is_word
from utils.files import read_checked, write_checked

__all__ = [
    "EOS", "SPECIALS", "UNK", "BPETokenizer", "Detokenizer", "WordTokenizer", "split_words", "tokenizer_from_dict",
]  # fmt: skip

WRITTEN = {"i": "I"}  # what English writes so whatever the texts show

SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIALS)) + ")")
# Accents and vowel signs that are characters of their own belong to the letter or sign before them (category M), and so
# do joiners, tones of skin and the second half of a flag.
_MARKS = (
    "".join(chr(c) for c in range(0x300, 0x20000) if unicodedata.category(chr(c))[0] == "M") + "\U000e0100-\U000e01ef"
)


class _WordOrSign:
    """The pattern of a token; where all characters are ASCII a short one finds the same six times as fast."""

    pattern = (
        rf"\w[\w{_MARKS}\u200c\u200d]*"
        r"|[\U0001f1e6-\U0001f1ff]{2}"
        rf"|[^\w\s](?:[{_MARKS}\U0001f3fb-\U0001f3ff]|\u200d[^\w\s])*"
    )
    _any, _ascii = re.compile(pattern), re.compile(r"\w+|[^\w\s]")

    def findall(self, text: str) -> list[str]:
        return (self._ascii if text.isascii() else self._any).findall(text)


WORD_OR_SIGN = _WordOrSign()


def split_words(text: str) -> list[str]:
    """The tokens of `text`: specials as they stand, everything else in lower case."""
    if not isinstance(text, str):
        raise ValueError(f"a text must be a str, not {type(text).__name__}")
    tokens = []
    for i, part in enumerate(SPECIAL.split(text)):
        if i % 2:  # the odd parts are the specials
            tokens.append(part)
        else:
            tokens += WORD_OR_SIGN.findall(part.lower())
    return tokens


def _in_sentences(text: str) -> list[str]:
    """The words of `text` as they are written where no sentence or speech can begin: after a word or a comma."""
    tokens = WORD_OR_SIGN.findall(SPECIAL.sub(".", text))
    return [word for before, word in pairwise(tokens) if is_word(word) and (is_word(before) or before == ",")]


def _spellings(counts: Counter, words: Iterable[str]) -> dict[str, str]:
    """How each of `words` is written most often, where that is not in small letters and reads back as the same word."""
    usual = {}
    for spelling, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        usual.setdefault(spelling.lower(), spelling)
    usual |= WRITTEN
    return {word: usual[word] for word in words if usual.get(word, word) != word and _can_be_written(word, usual[word])}


def _can_be_written(word: str, spelling: str) -> bool:
    return spelling.lower() == word and "Σ" not in spelling  # whose lower case depends on what follows


class WordTokenizer:
    """A fixed list of words; the id of a word is its place in the list.

    `words` begins with the specials `<unk>` (id 0) and `<|endoftext|>` (id 1).  `written` says how words are
    written that have capitals even inside a sentence: {"lily": "Lily", "tv": "TV"}.  `train` learns both from
    texts, `load` reads them from a file.  The literal specials in a text are read as specials, as Hugging Face
    tokenizers do.

    Raises ValueError if `words` is not such a list of different tokens, `written` no such dict of some of them.
    """

    keeps_spaces = False  # they are put where English has them

    def __init__(self, words: list[str], written: dict[str, str] | None = None):
        if not isinstance(words, list) or words[:2] != SPECIALS:
            raise ValueError(f"words must be a list that begins with {SPECIALS}")
        for i, word in enumerate(words[2:], start=2):
            if not isinstance(word, str) or WORD_OR_SIGN.findall(word.lower()) != [word]:
                raise ValueError(f"words[{i}] is {word!r:.60}, it must be one lower-case word or one sign")
        self.words = list(words)
        self._ids = {word: i for i, word in enumerate(words)}
        if len(self._ids) < len(words):
            raise ValueError(f"words must differ, {Counter(words).most_common(1)[0][0]!r:.60} stands twice")
        if written is None:
            written = {word: spelling for word, spelling in WRITTEN.items() if word in self._ids}
        if not isinstance(written, dict):
            raise ValueError(f"written must be a dict of words and how they are written, not {type(written).__name__}")
        self.written = dict(written)
        for word, spelling in self.written.items():
            if word not in self._ids or not isinstance(spelling, str) or not _can_be_written(word, spelling):
                raise ValueError(f"written[{word!r:.60}] is {spelling!r:.60}, it must be that word with capitals")
        self.unk_id, self.eos_id = self._ids[UNK], self._ids[EOS]
        self.never_told = [self.unk_id]  # a story has no unknown words

    @classmethod
    def train(cls, texts: Iterable[str], min_count: int = 1, max_size: int | None = None) -> WordTokenizer:
        """Count the words of `texts`; keep the frequent ones, most frequent first, ties alphabetical.

        A word stays if it occurs at least `min_count` times; `max_size` limits len(tok), specials included.
        It will be written as the texts write it most often where no sentence begins.
        Raises ValueError if `texts` is a single string, holds something else than strings or no word to
        keep, if min_count < 1 or if max_size < 3.
        """
        if isinstance(texts, str):
            raise ValueError("texts is one str, it must be an iterable of them: put it in a list")
        if min_count < 1:
            raise ValueError(f"min_count is {min_count}, it must be at least 1")
        if max_size is not None and max_size < 3:
            raise ValueError(f"max_size is {max_size}, it must be at least 3: two specials and one word")
        counts, spelled = Counter(), Counter()
        for text in texts:
            counts.update(split_words(text))
            spelled.update(_in_sentences(text))
        kept = [word for word, n in counts.items() if n >= min_count and word not in SPECIALS]
        if not kept:
            raise ValueError(f"texts hold no word that occurs at least {min_count} time(s)")
        kept.sort(key=lambda word: (-counts[word], word))
        words = (SPECIALS + kept)[:max_size]
        return cls(words, _spellings(spelled, words))

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; a word that is not in the list becomes `unk_id`, so that no word vanishes.

        Raises ValueError if `text` is not a str.
        """
        return [self._ids.get(word, self.unk_id) for word in split_words(text)]

    def pieces(self, text: str) -> list[str]:
        """`text` cut before each token that `encode` finds, spaces and capitals as they stand."""
        found, space = [], ""
        for i, part in enumerate(SPECIAL.split(text)):  # first, as in `encode`: a joiner takes any sign, also a "<"
            if i % 2:
                found.append(space + part)
            else:
                found += re.findall(rf"\s*(?:{WORD_OR_SIGN.pattern})", part)
                space = part[len(part.rstrip()) :]
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """Readable English for `ids`, see `Detokenizer`; encode(decode(ids)) gives the ids back.

        Raises ValueError for an id outside 0..len(tok)-1.
        """
        detokenizer = self.detokenizer()
        return "".join([detokenizer.push(i) for i in ids]) + detokenizer.flush()

    def detokenizer(self, after: Iterable[int] = ()) -> Detokenizer:
        """A `Detokenizer` that continues the text of `after` and does not repeat it.

        Raises ValueError for an id outside 0..len(tok)-1.
        """
        detokenizer = Detokenizer(self.words, self.written)
        for i in after:
            detokenizer.push(i)
        detokenizer.flush()
        return detokenizer

    def to_dict(self) -> dict:
        """Everything `from_dict` needs, as plain JSON values."""
        return {"type": "WordTokenizer", "version": 2, "words": list(self.words), "written": dict(self.written)}

    @classmethod
    def from_dict(cls, state: dict) -> WordTokenizer:
        """The tokenizer that `to_dict` described; raises ValueError if `state` is nothing of the kind."""
        if not isinstance(state, dict) or state.get("type") != "WordTokenizer":
            raise ValueError("it must be a dict with the type 'WordTokenizer'")
        if state.get("version") not in (1, 2):  # 1 knew no capitals but those of sentences and I
            raise ValueError(f"its version is {state.get('version')!r:.60}, it must be 1 or 2")
        return cls(state.get("words"), state.get("written"))

    def save(self, path: str | os.PathLike) -> None:
        """Write JSON to `path`; a file already there is replaced in one step, never left half written.

        Raises OSError if the folder is missing or not writable.
        """
        write_checked(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike) -> WordTokenizer:
        """Read what `save` wrote.

        Raises FileNotFoundError without a file, ValueError if it holds something else.
        """
        try:
            return cls.from_dict(read_checked(path))
        except ValueError as error:
            raise ValueError(f"{path} is not a saved WordTokenizer: {error}") from error


def tokenizer_from_dict(state: dict) -> WordTokenizer | BPETokenizer:
    """The tokenizer of either kind that `to_dict` described; raises ValueError if `state` is nothing of the kind."""
    kinds = {kind.__name__: kind for kind in (WordTokenizer, BPETokenizer)}
    name = state.get("type") if isinstance(state, dict) else None
    if not isinstance(name, str) or name not in kinds:
        raise ValueError(f"a tokenizer's type is {name!r:.60}, it must be one of {', '.join(kinds)}")
    return kinds[name].from_dict(state)
