"""Where one item of a plain text ends and the next begins: said by its writer, or seen in the text itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice, pairwise
from statistics import median

from utils.detokenizer import EOS

LOOK_AT = 5_000  # lines from which the shape of a text is told
# What --split-on may say, beside any line of one's own such as "---"; and how the line that a source prints calls it.
SHAPES = {
    EOS: f"items between {EOS}",
    "blank-line": "items between blank lines",
    "line": "an item in each line",
    "none": "one text",
}


def shape_of(head: list[str], prose: bool = True) -> str:
    """How a text that begins with these lines is divided: a key of SHAPES. Where nothing says so, it is one text.

    A novel has blank lines as well, and so has a play. They stand between items only where each item is a single line,
    and as long as a small story. prose: blank lines may be such; not in Markdown, where they are part of the form.
    """
    if any(EOS in line for line in head):
        return EOS
    filled = [line.strip() for line in head if line.strip()]
    if len(filled) < 3:
        return "none"
    has_blank = any(not line.strip() for line in head[:-1])
    if has_blank:
        alone = all(not (a.strip() and b.strip()) for a, b in pairwise(head))
        return "blank-line" if prose and alone and median(len(line.split()) for line in filled) >= 15 else "none"
    if len(filled) < 20:
        return "none"
    short = sum(len(line) <= 40 and len(line.split()) <= 3 for line in filled)
    sentences = sum(re.search(r"[.!?…。！？][\"'”’»)]*$", line) is not None and line[0] not in "-–—" for line in filled)
    return "line" if max(short, sentences) >= 0.9 * len(filled) else "none"


def items(lines: Iterable[str], split_on: str | None, prose: bool = True) -> tuple[str, Iterator[str]]:
    """(how the text is divided, its items): as `split_on` says, by default as `shape_of` sees it."""
    lines = iter(lines)
    head = list(islice(lines, LOOK_AT))
    split_on = split_on or shape_of(head, prose)
    lines = chain(head, lines)
    name = SHAPES.get(split_on, f"items between lines {split_on!r}")
    if split_on == "line":
        return name, lines
    if split_on == "none":
        return name, iter(["".join(lines)])
    if split_on == EOS:
        return name, _between_marks(lines)
    return name, _between(lines, "" if split_on == "blank-line" else split_on.strip())


def _between_marks(lines: Iterable[str]) -> Iterator[str]:
    """Items that end at the mark, wherever in a line it stands."""
    item = []
    for line in lines:
        first, *others = line.split(EOS)
        item.append(first)
        for other in others:
            yield "".join(item)
            item = [other]
    yield from _rest(item)


def _between(lines: Iterable[str], separator: str) -> Iterator[str]:
    item = []
    for line in lines:
        if line.strip() == separator:
            yield from _rest(item)
            item = []
        else:
            item.append(line)
    yield from _rest(item)


def _rest(item: list[str]) -> Iterator[str]:
    """What stands before a separator, which is nothing where two of them follow each other or one ends the file."""
    if text := "".join(item).strip():
        yield text
