"""Words as tokens: text -> ids -> readable text, with the standard library only.

A token is a run of letters, digits and underscores or one single sign, in lower case.  A story of one
hundred words is about 120 ids, and a few thousand words cover the language of TinyStories.  Kimi K2 itself
cuts text into pieces of words (byte-pair encoding; `vocab_size` in its config.json is 163,840), which
leaves no word unknown but needs far more data than a course has.

    tok = WordTokenizer.train(["Once upon a time, there was a cat."])
    tok.decode(tok.encode("a CAT, once"))          # 'A cat, once'
"""

import json
import operator
import os
import re
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path

UNK, EOS = "<unk>", "<|endoftext|>"
SPECIALS = [UNK, EOS]  # their ids are 0 and 1

_SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIALS)) + ")")
_TOKEN = re.compile(r"\w+|[^\w\s]")


def _split(text: str) -> list[str]:
    """The tokens of `text`: specials as they stand, everything else in lower case."""
    if not isinstance(text, str):
        raise ValueError(f"a text must be a str, not {type(text).__name__}")
    tokens = []
    for i, part in enumerate(_SPECIAL.split(text)):  # the odd parts are the specials
        tokens += [part] if i % 2 else _TOKEN.findall(part.lower())
    return tokens


class WordTokenizer:
    """A fixed list of words; the id of a word is its place in the list.

    `words` begins with the specials `<unk>` (id 0) and `<|endoftext|>` (id 1).  `train` makes the list
    from texts, `load` reads it from a file.  The literal specials in a text are read as specials, as
    Hugging Face tokenizers do.

    Raises ValueError if `words` is not such a list of different tokens.
    """

    def __init__(self, words: list[str]):
        if not isinstance(words, list) or words[:2] != SPECIALS:
            raise ValueError(f"words must be a list that begins with {SPECIALS}")
        for i, word in enumerate(words[2:], start=2):
            if not isinstance(word, str) or _TOKEN.findall(word.lower()) != [word]:
                raise ValueError(f"words[{i}] is {word!r:.60}, it must be one lower-case word or one sign")
        self.words = list(words)
        self._ids = {word: i for i, word in enumerate(words)}
        if len(self._ids) < len(words):
            raise ValueError(f"words must differ, {Counter(words).most_common(1)[0][0]!r:.60} stands twice")
        self.unk_id, self.eos_id = self._ids[UNK], self._ids[EOS]

    @classmethod
    def train(cls, texts: Iterable[str], min_count: int = 1, max_size: int | None = None) -> "WordTokenizer":
        """Count the words of `texts`; keep the frequent ones, most frequent first, ties alphabetical.

        A word stays if it occurs at least `min_count` times; `max_size` limits len(tok), specials included.
        Raises ValueError if `texts` is a single string, holds something else than strings or no word to
        keep, if min_count < 1 or if max_size < 3.
        """
        if isinstance(texts, str):
            raise ValueError("texts is one str, it must be an iterable of them: put it in a list")
        if min_count < 1:
            raise ValueError(f"min_count is {min_count}, it must be at least 1")
        if max_size is not None and max_size < 3:
            raise ValueError(f"max_size is {max_size}, it must be at least 3: two specials and one word")
        counts = Counter()
        for text in texts:
            counts.update(_split(text))
        kept = [word for word, n in counts.items() if n >= min_count and word not in SPECIALS]
        if not kept:
            raise ValueError(f"texts hold no word that occurs at least {min_count} time(s)")
        kept.sort(key=lambda word: (-counts[word], word))
        return cls((SPECIALS + kept)[:max_size])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; a word that is not in the list becomes `unk_id`, so that no word vanishes.

        Raises ValueError if `text` is not a str.
        """
        return [self._ids.get(word, self.unk_id) for word in _split(text)]

    def pieces(self, text: str) -> list[str]:
        """`text` cut before each token that `encode` finds, spaces and capitals as they stand; [] where it cannot be.

        (A letter that becomes two in lower case, İ, may become two tokens.)
        """
        cuts = [match[0] for match in re.finditer(rf"\s*(?:{_SPECIAL.pattern}|{_TOKEN.pattern})", text)]
        return cuts if len(cuts) == len(self.encode(text)) else []

    def decode(self, ids: Iterable[int]) -> str:
        """Readable English for `ids`, see `Detokenizer`; encode(decode(ids)) gives the ids back.

        Raises ValueError for an id outside 0..len(tok)-1.
        """
        detokenizer = self.detokenizer()
        return "".join([detokenizer.push(i) for i in ids]) + detokenizer.flush()

    def detokenizer(self, after: Iterable[int] = ()) -> "Detokenizer":
        """A `Detokenizer` that continues the text of `after` and does not repeat it.

        Raises ValueError for an id outside 0..len(tok)-1.
        """
        detokenizer = Detokenizer(self.words)
        for i in after:
            detokenizer.push(i)
        detokenizer.flush()
        return detokenizer

    def to_dict(self) -> dict:
        """Everything `from_dict` needs, as plain JSON values."""
        return {"type": "WordTokenizer", "version": 1, "words": list(self.words)}

    @classmethod
    def from_dict(cls, state: dict) -> "WordTokenizer":
        """The tokenizer that `to_dict` described; raises ValueError if `state` is nothing of the kind."""
        if not isinstance(state, dict) or state.get("type") != "WordTokenizer":
            raise ValueError("it must be a dict with the type 'WordTokenizer'")
        if state.get("version") != 1:
            raise ValueError(f"its version is {state.get('version')!r:.60}, it must be 1")
        return cls(state.get("words"))

    def save(self, path: str | os.PathLike) -> None:
        """Write JSON to `path`; a file already there is replaced in one step, never left half written.

        Raises OSError if the folder is missing or not writable.
        """
        path = Path(path)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(self.to_dict()), encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "WordTokenizer":
        """Read what `save` wrote.

        Raises FileNotFoundError without a file, ValueError if it holds something else.
        """
        content = Path(path).read_bytes()
        try:
            return cls.from_dict(json.loads(content.decode("utf-8")))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a saved WordTokenizer: {error}") from error


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# The English that `Detokenizer` knows; where usage differs, the TinyStories sample was counted.
_NO_SPACE_BEFORE = frozenset(",.!?;:…)]}%”»")
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


def _is_word(token: str | None) -> bool:
    return token is not None and (token[0].isalnum() or token[0] == "_" or token == UNK)


def _contracts(word: str | None, tail: str | None) -> bool:
    return _is_word(word) and (tail in _TAILS or (word, tail) in _CONTRACTED)


def _capitalised(word: str) -> str:
    """`word` with a capital, if it can be read back: "ß" cannot ("SS"), nor Σ, whose lower case varies."""
    capital = word[0].upper() + word[1:]
    return capital if capital.lower() == word and "Σ" not in capital else word


class Detokenizer:
    """Turns ids into readable English piece by piece: `push` each id, then `flush`.

    Three tokens are held back, since spaces and capitals depend on what follows: "the dogs' ball" or "the
    'ball'", and no capital for "her" in '"Hello!" her mom said.'  The text reads back as the same ids, for
    two words never touch and only known signs lose a space: "<", "|", ">" keep theirs and form no special.
    """

    def __init__(self, words: list[str]):
        self._words = words
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
        capital = token == "i" or (self._sentence_start and not self._reports(token))
        continues = self._glued or self._continues(token)
        left, right = self._attach(token)
        if self._last is None or self._last == EOS:
            space = "" if self._last is None else "\n"
        else:
            space = "" if left or continues else " "
        if _is_word(token) or token in ",;:":
            self._sentence_start = False
        elif token in ".!?…":
            self._sentence_start = True
        elif right and token in "\"'“‘«":  # a quotation opens: said, "Yes."
            self._sentence_start |= self._last in (",", ":") or self._last in _REPORTING
        self._before, self._last, self._glued = self._last, token, right
        return space + (_capitalised(token) if capital else token)

    def _attach(self, token: str) -> tuple[bool, bool]:
        """Does `token` touch what stands before it, and what follows?"""
        following = self._waiting[0] if self._waiting and self._waiting[0] != EOS else None
        if token in _NO_SPACE_BEFORE or token in _NO_SPACE_AFTER:
            return token in _NO_SPACE_BEFORE, token in _NO_SPACE_AFTER
        if token == "-":
            dash = following in _PRONOUNS or following in _DETERMINERS  # "special - a net", but "yo-yo"
            joins = _is_word(self._last) and not dash and (following is None or _is_word(following))
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
        if _is_word(self._last):
            plural = self._last.endswith("s") and self._last not in _VERBS_IN_S  # the dogs' ball
            apostrophe = quote == "'" and (plural or not _is_word(following))
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
