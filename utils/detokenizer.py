"""Ids as text, piece by piece: `Detokenizer` for words, which need spaces and capitals, `ByteDetokenizer` for bytes."""

from __future__ import annotations

import codecs
import operator
import unicodedata
from collections import deque

UNK, EOS = "<unk>", "<|endoftext|>"
SPECIALS = [UNK, EOS]  # their ids are 0 and 1


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# The English that `Detokenizer` knows; where usage differs, the TinyStories sample was counted.
_NO_SPACE_BEFORE = frozenset(",.!?;:…)]}%”»।॥،؛؟۔")  # with the signs of Hindi, Arabic and Urdu
_NO_SPACE_AFTER = frozenset("([{$“‘«")
_TAILS = _set("s t m d re ve ll")  # it's, don't, I'm, she'd, you're, we've, I'll
_CONTRACTED = {("o", "clock"), ("ma", "am"), ("c", "mon")}
_VERBS_IN_S = _set("is was does says means")  # they own nothing: what does 'doll' mean?
_PRONOUNS = _set("i you he she it we they")
_DETERMINERS = _set("a an the this that my your his her its our their")
_REPORTING = _set(
    "said says asked asks cried replied shouted answered whispered called thought laughed yelled exclaimed "
    "screamed agreed begged added smiled giggled explained told wondered roared squeaked barked growled sang "
    "wailed chirped suggested demanded declared sobbed sighed"
)


def is_word(token: str | None) -> bool:
    """Is it a word or number, and no sign?"""
    return token is not None and (token[0].isalnum() or token[0] == "_" or token == UNK)


def _contracts(word: str | None, tail: str | None) -> bool:
    return is_word(word) and (tail in _TAILS or (word, tail) in _CONTRACTED)


def _clings(token: str) -> bool:
    """Would it become part of a sign that it touches: an accent, a joiner, a tone of skin?"""
    return unicodedata.category(token[0])[0] == "M" or token[0] == "\u200d" or "\U0001f3fb" <= token[0] <= "\U0001f3ff"


def _capitalised(word: str) -> str:
    """`word` with a capital, if it can be read back: "ß" cannot ("SS"), nor Σ, whose lower case varies."""
    capital = word[0].upper() + word[1:]
    return capital if capital.lower() == word and "Σ" not in capital else word


class Detokenizer:
    """Turns ids into readable English piece by piece: `push` each id, then `flush`.

    written: the words that have capitals inside a sentence, and how they are written.

    Three tokens are held back, since spaces and capitals depend on what follows: "the dogs' ball" or "the
    'ball'", and no capital for "her" in '"Hello!" her mom said.'  The text reads back as the same ids, for
    two words never touch and only known signs lose a space: "<", "|", ">" keep theirs and form no special.
    """

    def __init__(self, words: list[str], written: dict[str, str]):
        self._words, self._written = words, written
        self._waiting = deque()  # tokens whose text is not certain yet
        self._begin(None)

    def _begin(self, last: str | None) -> None:
        self._before, self._last = None, last  # the last two tokens
        self._open = set()  # which of the straight quotes ' and " are open
        self._glued = False  # no space after the last token
        self._sentence_start = True

    def push(self, token_id: int) -> str:
        """Take one id; returns the text that has become certain.  Raises ValueError for an unknown id."""
        token_id = operator.index(token_id)  # an int, or an element of a tensor
        if not 0 <= token_id < len(self._words):
            raise ValueError(f"id {token_id} is out of range, it must be 0 to {len(self._words) - 1}")
        self._waiting.append(self._words[token_id])
        return self._next() if len(self._waiting) > 3 else ""

    @property
    def waiting(self) -> int:
        """How many tokens have a text that is not certain yet."""
        return len(self._waiting)

    def flush(self) -> str:
        """The text held back.  More ids may be pushed; they continue the text."""
        return "".join(self.rest())

    def rest(self) -> list[str]:
        """What `flush` returns, token by token."""
        return [self._next() for _ in range(len(self._waiting))]

    def _next(self) -> str:
        token = self._waiting.popleft()
        if token == EOS:
            line = EOS if self._last is None else "\n" + EOS
            self._begin(EOS)
            return line
        capital = self._sentence_start and not self._reports(token)
        ends = self._continues(token)
        word = token if ends else self._written.get(token, token)  # the s of Lily's is none of a TV's S
        left, right = self._attach(token)
        if self._last is None or self._last == EOS:
            space = "" if self._last is None else "\n"
        else:
            space = "" if left or ends or (self._glued and not _clings(token)) else " "
        if is_word(token) or token in ",;:":
            self._sentence_start = False
        elif token in ".!?…":
            self._sentence_start = True
        elif right and token in "\"'“‘«":  # a quotation opens: said, "Yes."
            self._sentence_start |= self._last in (",", ":") or self._last in _REPORTING
        self._before, self._last, self._glued = self._last, token, right
        return space + (_capitalised(word) if capital and word == token else word)

    def _attach(self, token: str) -> tuple[bool, bool]:
        """Does `token` touch what stands before it, and what follows?"""
        following = self._waiting[0] if self._waiting and self._waiting[0] != EOS else None
        if token in _NO_SPACE_BEFORE or token in _NO_SPACE_AFTER:
            return token in _NO_SPACE_BEFORE, token in _NO_SPACE_AFTER
        if token == "-":
            dash = following in _PRONOUNS or following in _DETERMINERS  # "special - a net", but "yo-yo"
            joins = is_word(self._last) and not dash and (following is None or is_word(following))
            return joins, joins
        if token in "'’" and _contracts(self._last, following):
            return True, True
        if token == "’":
            return True, False
        if token in "\"'":
            opens = self._opens(token, following)
            return not opens, opens
        return False, False

    def _opens(self, quote: str, following: str | None) -> bool:
        """Does a straight quote open (or else close) a quotation?  An apostrophe at a word's end closes."""
        if quote in self._open:
            resumes = quote == '"' and self._last == "," and self._before in _REPORTING  # one was forgotten
            if not resumes:
                self._open.remove(quote)
            return resumes
        closes = False
        if is_word(self._last):
            plural = self._last.endswith("s") and self._last not in _VERBS_IN_S  # the dogs' ball
            apostrophe = quote == "'" and (plural or not is_word(following))
            closes = apostrophe or following in (",", ".", "!", "?")
        if not closes:
            self._open.add(quote)
        return not closes

    def _continues(self, token: str) -> bool:
        """Does `token` end what the last two tokens began: don't, 3.5, 1,000 or 3:30?"""
        if self._last in ("'", "’"):
            return _contracts(self._before, token)
        if self._before is None or not (self._before.isdigit() and token.isdigit()):
            return False
        return self._last == "." or (self._last, len(token)) in ((",", 3), (":", 2))

    def _reports(self, token: str) -> bool:
        """Does a sentence go on after its quotation: "Hello!" said mom / she said / her mom said. ?"""
        if self._glued or self._last not in ('"', "'", "’", "”", "»") or self._before not in ("!", "?"):
            return False
        second, third, fourth = [*self._waiting, None, None, None][:3]
        if token in _DETERMINERS:  # but: "Hello!" Her mom said, "You are late."
            return third in _REPORTING and fourth in (None, ".", EOS)
        return token in _REPORTING or (token in _PRONOUNS and second in _REPORTING)  # not "Hello!" Lily said


class ByteDetokenizer:
    """Turns ids into text piece by piece: `push` each id, then `flush`. A character waits until its last byte is there.

    Bytes that are no UTF-8 come out as U+FFFD, the sign for "not a character".
    """

    def __init__(self, tokens: dict[int, bytes]):
        self._tokens = tokens
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self.waiting = 0  # tokens whose text is not certain yet

    def push(self, token_id: int) -> str:
        """Take one id; returns the text that has become certain. Raises ValueError for an unknown id."""
        text = self._characters.decode(token_of(self._tokens, token_id))
        incomplete = bool(self._characters.getstate()[0])
        self.waiting = (0 if text else self.waiting) + 1 if incomplete else 0
        return text

    def flush(self) -> str:
        """The text held back. More ids may be pushed; they continue the text."""
        self.waiting = 0
        return self._characters.decode(b"", final=True)

    def rest(self) -> list[str]:
        """What `flush` returns, token by token."""
        n = self.waiting
        return [self.flush(), *[""] * (n - 1)] if n else []


def token_of(tokens: dict[int, bytes], token_id: int) -> bytes:
    """The bytes of one id. Raises ValueError where it has none."""
    token_id = operator.index(token_id)  # an int, or an element of a tensor
    if token_id not in tokens:
        raise ValueError(f"id {token_id} is no token, it must be one of the {len(tokens)} up to {max(tokens)}")
    return tokens[token_id]


def texts_of(detokenizer: Detokenizer | ByteDetokenizer, ids: list[int]) -> list[str]:
    """The text of each id; of a character that takes several tokens, the first has it all and the others nothing."""
    texts = []
    for pushed, i in enumerate(ids, 1):
        text = detokenizer.push(i)
        while len(texts) < pushed - detokenizer.waiting:
            texts.append(text)
            text = ""
    return texts + detokenizer.rest()
