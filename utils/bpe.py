"""Pieces of words as tokens: byte-pair encoding, trained and applied by hand.

A text is cut into pre-tokens (a word with its space, a number, a run of signs), each pre-token into bytes, and the
pairs of neighbours that training found most frequent are joined again, in the order in which they were found. Every
byte is a token, so no text is unknown and every text comes back as it was.

    tok = BPETokenizer.train(["Once upon a time, there was a cat."], vocab_size=300)
    tok.decode(tok.encode("a CAT, 猫"))          # 'a CAT, 猫'

Sources: Sennrich, Haddow and Birch, https://arxiv.org/abs/1508.07909 (joining pairs); Radford et al., "Language Models
are Unsupervised Multitask Learners", 2019, section 2.2 (bytes and pre-tokens of GPT-2); the tokenizer published with
Kimi K2, https://huggingface.co/moonshotai/Kimi-K2-Instruct (its pattern, and its ranks in a file of tiktoken's form).
"""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import regex

from utils import merges
from utils.detokenizer import EOS, ByteDetokenizer, token_of
from utils.files import read_checked, write_checked, write_text

# How a text is cut before its bytes are joined: no token reaches from one pre-token into the next.
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"  # letters that can begin a word, or make up one of capitals
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_TAIL = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # Kimi K2's: Han characters apart, a new word at a capital, numbers in threes, line ends with the signs before them
    "kimi": "|".join([
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_TAIL}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_TAIL}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]),
}  # fmt: skip

CACHED_PRETOKENS = 1 << 17


class BPETokenizer:
    """Byte-level BPE. The id of a token is its rank: the place in the order in which training joined it.

    ranks: every token's bytes and its id; all 256 single bytes are among them. pattern: "gpt2" or "kimi", how a text is
    cut before. specials: the names of tokens that stand for no text, with ids that no rank has; the first one ends a
    text. `words` are the tokens as one reads them. Raises ValueError where these do not fit together.
    """

    unk_id = None  # no text is unknown
    keeps_spaces = True

    def __init__(self, ranks: dict[bytes, int], pattern: str = "gpt2", specials: dict[str, int] | None = None):
        if not isinstance(pattern, str) or pattern not in PATTERNS:
            raise ValueError(f"pattern is {pattern!r:.60}, it must be one of {', '.join(PATTERNS)}")
        if missing := [byte for byte in merges.BYTES if byte not in ranks]:
            raise ValueError(f"ranks have no token for the byte {missing[0]!r}, all 256 bytes must be tokens")
        specials = {EOS: max(ranks.values()) + 1} if specials is None else specials
        self.ranks, self.pattern, self.specials = ranks, pattern, specials
        self._tokens = {i: token for token, i in ranks.items()}
        self._tokens |= {i: name.encode() for name, i in specials.items()}
        if len(self._tokens) < len(ranks) + len(specials) or min(self._tokens) < 0:
            raise ValueError("ids of tokens and specials must differ and be 0 or more")
        if not specials or "" in specials:
            raise ValueError("specials must be names, the first of which ends a text")
        self.eos_id = next(iter(specials.values()))
        self.words = [self._tokens.get(i, b"").decode("utf-8", "replace") for i in range(len(self))]
        self.never_told = sorted(set(range(len(self))) - set(ranks.values()) - {self.eos_id})
        self._pretokens = regex.compile(PATTERNS[pattern], regex.V1)
        self._specials = regex.compile("|".join(map(regex.escape, sorted(specials, key=len, reverse=True))))
        self._known: dict[str, list[int]] = {}  # pre-tokens met before

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, pattern: str = "gpt2") -> BPETokenizer:
        """Learn from `texts` which bytes to join; len(tok) is `vocab_size` or, where pairs run out, less.

        Raises ValueError if `texts` is a single string or holds something else than strings, or if vocab_size < 257:
        256 bytes and <|endoftext|>.
        """
        if isinstance(texts, str):
            raise ValueError("texts is one str, it must be an iterable of them: put it in a list")
        if vocab_size < 257:
            raise ValueError(f"vocab_size is {vocab_size}, it must be at least 257: 256 bytes and {EOS}")
        tok = cls({byte: i for i, byte in enumerate(merges.BYTES)}, pattern)
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(tok._pretokens.findall(_without_surrogates(text)))
        tokens = merges.learn({pretoken.encode(): n for pretoken, n in counts.items()}, vocab_size - 1)
        return cls({token: i for i, token in enumerate(tokens)}, pattern)

    def __len__(self) -> int:
        return max(self._tokens) + 1

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """The ids of `text`. Names of specials in it are text like any other, unless `specials` lets them stand for
        their tokens: whoever writes a text cannot end it by writing <|endoftext|>.

        Raises ValueError if `text` is not a str.
        """
        ids, end, text = [], 0, _without_surrogates(text)
        for special in self._specials.finditer(text) if specials else ():
            ids += self._encode(text[end : special.start()])
            ids.append(self.specials[special[0]])
            end = special.end()
        return ids + self._encode(text[end:])

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of any bytes, UTF-8 or not; `decode_bytes` gives them back."""
        return self._encode(data.decode("utf-8", "surrogateescape"))

    def encode_stream(self, chunks: Iterable[str], specials: bool = False) -> Iterator[int]:
        """The ids of a long text that comes in `chunks`, such as a file's lines: those of the whole, in little memory.

        The end of a chunk is held back, since what follows may change how it is cut, or make it a special's name.
        """
        longest = max(map(len, self.specials))
        held = ""
        for chunk in chunks:
            held += _without_surrogates(chunk)
            end, certain = 0, len(held) - longest  # a special that begins there is there in full
            for special in self._specials.finditer(held) if specials else ():
                if special.start() <= certain:
                    yield from self._encode(held[end : special.start()])
                    yield self.specials[special[0]]
                    end = special.end()
            cut = [match for match in self._pretokens.finditer(held, end) if match.start() <= certain][:-2]
            for match in cut:
                yield from self._ids(match[0])
            held = held[cut[-1].end() if cut else end :]
        yield from self.encode(held, specials)

    def _encode(self, text: str) -> list[int]:
        ids = []
        for pretoken in self._pretokens.findall(text):
            ids += self._ids(pretoken)
        return ids

    def _ids(self, pretoken: str) -> list[int]:
        if (ids := self._known.get(pretoken)) is None:
            parts = merges.join(pretoken.encode("utf-8", "surrogateescape"), self.ranks)
            ids = [self.ranks[part] for part in parts]
            if len(self._known) >= CACHED_PRETOKENS:
                self._known.clear()
            self._known[pretoken] = ids
        return ids

    def pieces(self, text: str) -> list[str]:
        """`text` cut before each token that `encode` finds; [] where a cut would go through a character."""
        try:
            return [self._tokens[i].decode() for i in self.encode(text)]
        except UnicodeDecodeError:
            return []

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 come out as U+FFFD. Raises ValueError for an unknown id."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`, as they are. Raises ValueError for an unknown id."""
        return b"".join([token_of(self._tokens, i) for i in ids])

    def detokenizer(self, after: Iterable[int] = ()) -> ByteDetokenizer:
        """A `ByteDetokenizer` that continues the text of `after` and does not repeat it."""
        detokenizer = ByteDetokenizer(self._tokens)
        for i in after:
            detokenizer.push(i)
        detokenizer.flush()
        return detokenizer

    def to_dict(self) -> dict:
        """Everything `from_dict` needs, as plain JSON values."""
        ranks = {base64.b64encode(token).decode(): i for token, i in self.ranks.items()}
        same = {"pattern": self.pattern, "specials": dict(self.specials)}
        return {"type": "BPETokenizer", "version": 1, **same, "ranks": ranks}

    @classmethod
    def from_dict(cls, state: dict) -> BPETokenizer:
        """The tokenizer that `to_dict` described; raises ValueError if `state` is nothing of the kind."""
        if not isinstance(state, dict) or state.get("type") != "BPETokenizer":
            raise ValueError("it must be a dict with the type 'BPETokenizer'")
        if state.get("version") != 1:
            raise ValueError(f"its version is {state.get('version')!r:.60}, it must be 1")
        ranks, specials = state.get("ranks"), state.get("specials")
        for part in (ranks, specials):
            if not isinstance(part, dict) or not all(isinstance(i, int) for i in part.values()):
                raise ValueError("its ranks and specials must be dicts of tokens and ids")
        return cls({base64.b64decode(token): i for token, i in ranks.items()}, state.get("pattern"), specials)

    def save(self, path: str | os.PathLike) -> None:
        """Write JSON to `path`; a file already there is replaced in one step, never left half written."""
        write_checked(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike) -> BPETokenizer:
        """Read what `save` wrote. Raises FileNotFoundError without a file, ValueError if it holds something else."""
        try:
            return cls.from_dict(read_checked(path))
        except ValueError as error:
            raise ValueError(f"{path} is not a saved BPETokenizer: {error}") from error

    def save_ranks(self, path: str | os.PathLike) -> None:
        """Write tiktoken's file: a line for each token, its bytes in base64 and its rank. Specials are not in it."""
        lines = [f"{base64.b64encode(token).decode()} {i}\n" for token, i in self.ranks.items()]
        write_text(path, "".join(lines))

    @classmethod
    def load_ranks(
        cls, path: str | os.PathLike, pattern: str = "gpt2", specials: dict[str, int] | None = None
    ) -> BPETokenizer:
        """A published tokenizer from tiktoken's file of ranks; its pattern and specials are published beside it.

        Raises FileNotFoundError without a file, ValueError for a line that is not a token and its rank.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}")
        ranks = {}
        for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except ValueError:
                raise ValueError(f"{path}, line {number}: {line!r:.60} is not a token in base64 and its rank") from None
        return cls(ranks, pattern, specials)


def _without_surrogates(text: str) -> str:
    """Halves of surrogate pairs are no characters and have no UTF-8: each becomes U+FFFD."""
    if not isinstance(text, str):
        raise ValueError(f"a text must be a str, not {type(text).__name__}")
    return text if text.isascii() else regex.sub(r"[\ud800-\udfff]", "\ufffd", text)
