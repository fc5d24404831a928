"""All texts of some files: surrounding space gone, empty ones left out, repeated ones counted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path

from utils.sources.folders import ending
from utils.sources.opened import lines
from utils.sources.shapes import items
from utils.sources.tables import csv_items, json_items, json_lines, parquet_items

# What a story cannot hold: it would move the cursor of a terminal, or could not be written as UTF-8.
NOT_TEXT = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class How:
    """How files are read, where they do not say it themselves: None is told from the file."""

    text_column: str | None = None  # column or field that holds the text
    encoding: str | None = None  # such as "cp1252"; UTF-8 or what a byte order mark tells
    split_on: str | None = None  # what stands between two items of a plain text, see `shapes`


READING = tuple(each.name for each in fields(How))  # the same names in a recipe and on the command line


@dataclass
class Read:
    """The texts of some files and what was seen on the way."""

    texts: list[str] = field(default_factory=list)
    kinds: dict[str, None] = field(default_factory=dict)  # what the files are, in the order of their first
    empty: int = 0  # left out
    repeated: int = 0  # kept, for how often something is said is a part of the data
    cleaned: int = 0  # with NOT_TEXT in them

    def __str__(self) -> str:
        seen = [" and ".join(self.kinds)]
        if self.empty:
            seen.append(f"{self.empty:,} empty left out")
        if self.repeated:
            seen.append(f"{self.repeated:,} repeated")
        if self.cleaned:
            seen.append(f"control characters and lone surrogates left out of {self.cleaned:,}")
        return ", ".join(seen)


def file_items(path: Path, how: How) -> tuple[str, Iterator[str]]:
    """(what a file is, its texts); a file with another ending is read as plain text."""
    match ending(path):
        case ".parquet":
            return parquet_items(path, how.text_column)
        case ".csv" | ".tsv" as kind:
            return csv_items(path, how.text_column, how.encoding, tab=kind == ".tsv")
        case ".json":
            return json_items(path, how.text_column, how.encoding)
        case ".jsonl" | ".ndjson":
            return json_lines(path, how.text_column, how.encoding)
        case kind:
            return items(lines(path, how.encoding), how.split_on, prose=kind != ".md")


def read_files(files: list[Path], n: int, how: How) -> Read:
    """The first `n` texts of `files`, no further read than needed. ValueError for a file that holds none."""
    read, seen = Read(), set()
    for text in islice(texts_of(files, how, read), n):
        read.repeated += text in seen
        seen.add(text)
        read.texts.append(text)
    return read


def texts_of(files: list[Path], how: How, read: Read) -> Iterator[str]:
    """The texts of `files` one after another, none of them kept; what the files are is noted in `read`."""
    for path in files:
        kind, texts = file_items(path, how)
        read.kinds[kind] = None
        holds_text = False
        for text in texts:
            if NOT_TEXT.search(text):
                read.cleaned += 1
                text = NOT_TEXT.sub("", text)
            if text := text.strip():
                holds_text = True
                yield text
            else:
                read.empty += 1
        if not holds_text:
            raise ValueError(f"{path} holds no text")
