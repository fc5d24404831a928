"""Texts of any number, read one after another, as often as needed, and never all of them at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from utils.grammar import builtin_stories, endless_stories
from utils.sources.folders import find_files
from utils.sources.hub import HubSplit, NoSuchSplit, hub_problem
from utils.sources.read import How, Read, texts_of
from utils.stories import PATH_VARIABLE, SEEDS, NoValidationSplit, full_name, hub_dataset, is_hub, of_split


class Part(NamedTuple):
    """One source of a corpus."""

    texts: Callable[[], Iterable[str]]  # begins from the first text at each call
    identity: Callable[[], object]  # plain values that differ where the texts may differ
    read: Read  # what the texts are, as far as they have been read


class Corpus:
    """Up to `n` texts of one split of a source, or of several: those of `load_stories`, in the same order.

    source: what gives the same texts again, from any folder. Raises what `load_stories` raises.
    """

    def __init__(self, n: int, split: str, source: str | Path | Iterable[str | Path], how: How | None = None):
        self.n, self.how = n, how or How()
        names = [full_name(str(one)) for one in ([source] if isinstance(source, str | Path) else source)]
        self.source = names[0] if len(names) == 1 else names
        self.parts = [_part(name, split, self.how) for name in names]

    def __iter__(self) -> Iterator[str]:
        return islice(chain.from_iterable(part.texts() for part in self.parts), self.n)

    def __str__(self) -> str:
        """Where the texts come from, and what has been seen of them so far."""
        kinds = dict.fromkeys(kind for part in self.parts for kind in part.read.kinds)
        sources = self.source if isinstance(self.source, str) else ", ".join(self.source)
        return f"up to {self.n:,} from {sources} ({' and '.join(kinds)})"

    def identity(self) -> dict:
        """Plain values that change when the texts may have changed, without reading them.

        Of files: path, size and time of the last change. Of a dataset of the hub: its commit.
        """
        return {"n": self.n, "how": asdict(self.how), "parts": [part.identity() for part in self.parts]}


def _part(source: str, split: str, how: How) -> Part:
    if source == "builtin":
        seed = SEEDS[split]
        told = "\n".join(builtin_stories(100, seed)).encode()  # another grammar tells others
        identity = ["builtin", seed, hashlib.sha256(told).hexdigest()]
        return Part(lambda: endless_stories(seed), lambda: identity, _of("built-in stories"))
    if is_hub(source):
        dataset = hub_dataset(source)
        try:
            rows = HubSplit(split, dataset, how.text_column)
        except NoSuchSplit as error:
            raise NoValidationSplit(str(error)) from None
        identity = ["hub", dataset, split, rows.revision, rows.column]
        return Part(lambda: rows, lambda: identity, _of(f"column {rows.column!r} of {dataset}"))
    files, read = [file.absolute() for file in of_split(find_files(source), split, source)], Read()
    return Part(lambda: texts_of(files, how, read), lambda: [_state(file) for file in files], read)


def _of(kind: str) -> Read:
    return Read(kinds={kind: None})


def _state(file: Path) -> list:
    found = file.stat()
    return [str(file), found.st_size, found.st_mtime_ns]


def first_texts(texts: Iterable[str], most: int, most_characters: int) -> tuple[list[str], bool]:
    """(the first texts, whether these are all): `most` of them at most, and one, or no more than so many characters."""
    taken, size = [], 0
    for text in texts:
        if len(taken) == most or (taken and size + len(text) > most_characters):
            return taken, False
        taken.append(text)
        size += len(text)
    return taken, True


def usual_source() -> tuple[str, str | None]:
    """(the source where nobody names one, why it is not the real one), as `load_stories` picks it."""
    if source := os.environ.get(PATH_VARIABLE):
        return source, None
    if reason := hub_problem():
        print(f"stories: no network, so built-in stories ({reason})")
        return "builtin", "no network"
    return "hub", None
