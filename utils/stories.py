"""Where the texts come from: files of many kinds, the hub's datasets, or our own grammar without a network.

Source of TinyStories: Eldan and Li, "TinyStories: How Small Can Language Models Be and Still Speak Coherent
English?", 2023, https://arxiv.org/abs/2305.07759.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from utils.grammar import builtin_stories, judge_story, story_faults
from utils.sources.folders import Files, find_files
from utils.sources.hub import HUB_DATASET, NoSuchSplit, hub_rows
from utils.sources.read import How, read_files

__all__ = ["NoValidationSplit", "Stories", "builtin_stories", "judge_story", "load_stories", "story_faults"]

PATH_VARIABLE = "TINYSTORIES_PATH"
SEEDS = {"train": 0, "validation": 1}  # of the built-in stories


class NoValidationSplit(ValueError):
    """The source has training texts only, so the caller has to split off some of them."""


class Stories(list):
    """A list of texts that knows its `source`: what to give `load_stories` to get the same ones again.

    problem: why it is not what was asked for, where the built-in stories stand in for the hub's.
    """

    def __init__(self, stories: list[str], source: str | list[str], problem: str | None = None):
        super().__init__(stories)
        self.source, self.problem = source, problem


def load_stories(
    n: int = 100_000,
    split: str = "train",
    source: str | Path | Iterable[str | Path] | None = None,
    *,
    text_column: str | None = None,
    encoding: str | None = None,
    split_on: str | None = None,
) -> Stories:
    """Load up to `n` texts and print in one line where they come from, what they are and what was left out.

    `source` is one of these or several: a file (plain text, Markdown, CSV, TSV, JSON, JSON lines or parquet, each also
    as .gz or .zst), a folder of such files, a glob, "hub" (TinyStories), "hub:OWNER/NAME" of another dataset (with
    ":CONFIG" where it has several), or "builtin". Without one, the environment variable TINYSTORIES_PATH names it;
    without that, it is the hub if it can be reached, else the built-in stories.

    What files do not say themselves: text_column, the column or field that holds the text (else the usual or the only
    one); encoding (else UTF-8, or what a byte order mark tells); split_on, what stands between the items of a plain
    text ("blank-line", "line", "none" or a line of one's own; else as `shape_of` sees it).

    Errors: ValueError for a wrong `n` or `split` and for files that hold no texts, FileNotFoundError for a missing
    path, NoValidationSplit, and ConnectionError if the hub is asked for and fails.
    """
    if split not in SEEDS:
        raise ValueError(f'split is {split!r}, but must be "train" or "validation"')
    if n < 1:
        raise ValueError(f"n is {n}, but the number of stories must be 1 or more")
    how = How(text_column, encoding, split_on)
    if source is None or source == "":
        source = os.environ.get(PATH_VARIABLE) or None
    if source is None:
        return _hub_or_builtin(n, split, how)
    sources = [source] if isinstance(source, str | Path) else list(source)
    stories, taken = [], []
    for one in sources:
        if len(stories) < n:
            found, line, name = _load(n - len(stories), split, str(one), how)
            print(f"stories: {line}")
            stories += found
            taken.append(name)
    return Stories(stories, taken[0] if len(taken) == 1 else taken)


def _hub_or_builtin(n: int, split: str, how: How) -> Stories:
    """Real stories if they can be had; what stands in for them says why, and that they are not real."""
    try:
        stories, line, taken = _load(n, split, "hub", how)
        problem = None
    except ConnectionError as error:
        stories, _, taken = _load(n, split, "builtin", how)
        problem, _, reason = str(error).partition(": ")
        line = f"{problem}, so {len(stories):,} built-in stories ({reason})"
    print(f"stories: {line}")
    return Stories(stories, taken, problem)


def _load(n: int, split: str, source: str, how: How) -> tuple[list[str], str, str]:
    """(texts, the line that tells what they are, the source that gives them again) of one source."""
    if source == "builtin":
        stories = builtin_stories(n, SEEDS[split])
        return stories, f"{len(stories):,} built-in stories ({split})", source
    if is_hub(source):
        dataset = hub_dataset(source)
        try:
            column, stories = hub_rows(n, split, dataset, how.text_column)
        except NoSuchSplit as error:
            raise NoValidationSplit(str(error)) from None
        which = "" if column == "text" else f", column {column!r}"
        return stories, f"{len(stories):,} from the hub ({dataset}, {split}{which})", source
    files = find_files(source)
    read = read_files(of_split(files, split, source), n, how)
    line = f"{len(read.texts):,} from {source} ({split}: {read})"
    if files.left_out and split == "train":
        names = ", ".join(file.name for file in files.left_out[:5])
        line += f"; {len(files.left_out)} files left out: {names}{', ...' if len(files.left_out) > 5 else ''}"
    return read.texts, line, full_name(source)


def of_split(files: Files, split: str, source: str) -> list[Path]:
    """The files of one split. NoValidationSplit or ValueError where `source` has none for it."""
    chosen = files.train if split == "train" else files.validation
    if not chosen and split == "validation":
        raise NoValidationSplit(f'{source} has no validation texts: no file or folder named "validation"')
    if not chosen:
        raise ValueError(f'{source} has validation texts only, and no file or folder named "train"')
    return chosen


def full_name(source: str) -> str:
    """What names the same source from any folder."""
    named = source == "builtin" or is_hub(source)
    return source if named else str(Path(source).expanduser().resolve())


def is_hub(source: str) -> bool:
    return source == "hub" or source.startswith("hub:")


def hub_dataset(source: str) -> str:
    """The dataset that "hub" or "hub:OWNER/NAME" means."""
    return source.removeprefix("hub").removeprefix(":") or HUB_DATASET
