"""Which files a path means, and which of them belong to training and to validation."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import NamedTuple

from utils.sources.opened import COMPRESSED

ENDINGS = (".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
DOCUMENTS = ("readme", "license", "licence", "changelog")  # of a folder, not texts of it
NAMES = {"train": ("train", "training"), "validation": ("valid", "validation", "val", "dev")}


class Files(NamedTuple):
    """The files of each split, and those that belong to none."""

    train: list[Path]
    validation: list[Path]
    left_out: list[Path]


def ending(path: Path) -> str:
    """The ending that tells what is in a file, that of the compression aside: .csv for a.csv.gz."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSED else path).suffix.lower()


def find_files(source: str | Path) -> Files:
    """The files of a path: a file of any name, a folder with those whose ending is known, or a glob with all it names.

    FileNotFoundError where nothing is there.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return Files([path], [], [])
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path)))
        known = [file for file in found if ending(file) in ENDINGS]
        if not known:
            raise ValueError(f"{path} holds no file that ends in one of {', '.join(ENDINGS)}: name others by a glob")
        return _by_split(known, path, [file for file in found if file not in set(known)])
    if glob.has_magic(str(path)):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            raise FileNotFoundError(f"no file has a name like {source}")
        named = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))  # what stands before is chosen
        return _by_split(found, Path(*path.parts[:named]), [])
    if path.exists():
        raise ValueError(f"{path} is neither a file nor a folder: pipes and devices are not read")
    raise FileNotFoundError(f"{path} does not exist, but texts should be read from it")


def _hidden(path: Path) -> bool:
    """What editors and systems leave in a folder, and what describes it."""
    named = path.name.partition(".")[0].lower()
    return named in DOCUMENTS or any(part.startswith((".", "~$", "__")) for part in path.parts)


def _by_split(files: list[Path], folder: Path, others: list[Path]) -> Files:
    """Names tell a split where they tell both, or where every file has one: a little train alone may be a story."""
    split_of = {file: _split_of(file, folder) for file in files}
    told = set(split_of.values())
    if told >= set(NAMES) or None not in told:
        parts = {split: [file for file in files if split_of[file] == split] for split in NAMES}
        return Files(parts["train"], parts["validation"], others + [file for file in files if split_of[file] is None])
    return Files(files, [], others)


def _split_of(file: Path, folder: Path) -> str | None:
    """The split that a whole word of the file's path below the folder tells."""
    inside = file.relative_to(folder)
    words = set(re.split(r"[^a-z]+", str(inside.with_name(inside.name.partition(".")[0])).lower()))
    return next((split for split, names in NAMES.items() if words & set(names)), None)
