"""Where the stories come from: a file or folder, the hub's TinyStories, or our own grammar without a network.

Source of TinyStories: Eldan and Li, "TinyStories: How Small Can Language Models Be and Still Speak Coherent
English?", 2023, https://arxiv.org/abs/2305.07759.
"""

import gc
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from utils.grammar import builtin_stories, judge_story, story_faults

__all__ = ["NoValidationSplit", "Stories", "builtin_stories", "judge_story", "load_stories", "story_faults"]

HUB_DATASET = "roneneldan/TinyStories"
PATH_VARIABLE = "TINYSTORIES_PATH"
END_OF_STORY = "<|endoftext|>"
SEEDS = {"train": 0, "validation": 1}  # of the built-in stories
PROBE_SECONDS = 3.0
SHOW_PROGRESS_ABOVE = 10_000


class NoValidationSplit(ValueError):
    """The source has training stories only, so the caller has to split off some of them."""


class Stories(list):
    """A list of stories that knows its `source`: what to give `load_stories` to get the same ones again."""

    def __init__(self, stories: list[str], source: str):
        super().__init__(stories)
        self.source = source


def load_stories(n: int = 100_000, split: str = "train", source: str | Path | None = None) -> Stories:
    """Load up to `n` stories and print in one line where they come from.

    `source` is a .txt file (a line <|endoftext|> ends a story), a .jsonl or .parquet file (field or column
    "text"), a folder of such files, "hub" or "builtin". Without a `source`, the environment variable
    TINYSTORIES_PATH names one; without that, it is the hub if it can be reached, else the built-in stories.

    Errors: ValueError for a wrong `n` or `split` and for files that hold no stories, FileNotFoundError for a
    missing path, NoValidationSplit, and ConnectionError if "hub" is asked for and fails.
    """
    if split not in SEEDS:
        raise ValueError(f'split is {split!r}, but must be "train" or "validation"')
    if n < 1:
        raise ValueError(f"n is {n}, but the number of stories must be 1 or more")
    source = source or os.environ.get(PATH_VARIABLE)
    if source == "builtin":
        stories = builtin_stories(n, SEEDS[split])
        line, taken = f"{len(stories):,} built-in stories ({split})", "builtin"
    elif not source or source == "hub":
        try:
            stories = _hub_stories(n, split)
            line, taken = f"{len(stories):,} from the hub ({HUB_DATASET}, {split})", "hub"
        except ConnectionError as error:
            if source == "hub":
                raise
            stories = builtin_stories(n, SEEDS[split])
            problem, _, reason = str(error).partition(": ")
            line, taken = f"{problem}, so {len(stories):,} built-in stories ({reason})", "builtin"
    else:
        taken = str(Path(source).expanduser().resolve())
        files = _story_files(Path(source).expanduser(), split)
        stories = list(islice(chain.from_iterable(map(_file_stories, files)), n))
        line = f"{len(stories):,} from {source} ({split})"
    print(f"stories: {line}")
    return Stories(stories, taken)


# ----------------------------------------------------------------------------------------- files


def _story_files(path: Path, split: str) -> list[Path]:
    """The files of one split: told by their names in a folder, while a single file is all training."""
    allowed = ", ".join(READERS)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist, but stories should be read from it")
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in READERS and file.is_file())
        if not files:
            raise ValueError(f"{path} holds no story file, which would end in one of {allowed}")
    elif path.suffix.lower() in READERS:
        files = [path]
    else:
        raise ValueError(f"{path} ends in {path.suffix!r}, but a story file ends in one of {allowed}")

    splits = {"train": [], "validation": []}
    for file in files if path.is_dir() else []:
        name = file.name.lower()
        if "valid" in name:
            splits["validation"].append(file)
        elif "train" in name:
            splits["train"].append(file)
    if not any(splits.values()):
        splits["train"] = files
    if split == "validation" and not splits[split]:
        raise NoValidationSplit(f'{path} has no validation stories: no file in a folder named "...valid..."')
    if not splits[split]:
        raise ValueError(f'{path} has validation stories only, and no file with "train" in its name')
    return splits[split]


def _file_stories(path: Path) -> Iterator[str]:
    """The stories of a file, read only as far as they are asked for."""
    empty = True
    for text in READERS[path.suffix.lower()](path):
        if story := text.strip():
            empty = False
            yield story
    if empty:
        raise ValueError(f"{path} holds no story")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:  # a byte order mark can only stand at the very start
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise ValueError(f"{path}, line {number}: the text is not UTF-8") from None
            yield number, text.replace("\r\n", "\n")


def _text_stories(path: Path) -> Iterator[str]:
    story = []
    for _, line in _lines(path):
        first, *others = line.split(END_OF_STORY)
        story.append(first)
        for other in others:
            yield "".join(story)
            story = [other]
    yield "".join(story)


def _jsonl_stories(path: Path) -> Iterator[str]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: broken JSON ({error})") from None
        if not isinstance(record, dict):
            raise ValueError(f'{path}, line {number}: no object with a string "text"')
        if not isinstance(record.get("text"), str):
            raise ValueError(f'{path}, line {number}: no string "text" (fields: {", ".join(record)})')
        yield record["text"]


def _parquet_stories(path: Path) -> Iterator[str]:
    import pyarrow  # here, so that importing this module stays quick
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            kinds = {"string", "large_string"}
            if "text" not in schema.names or str(schema.field("text").type) not in kinds:
                raise KeyError(", ".join(f"{field.name}: {field.type}" for field in schema))
            for batch in file.iter_batches(batch_size=1000, columns=["text"]):
                yield from (text for text in batch.column("text").to_pylist() if text is not None)
    except KeyError as error:
        raise ValueError(f'{path}: no strings "text" (columns: {error.args[0]})') from None
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a whole parquet file ({_one_line(error)})") from None


READERS = {".txt": _text_stories, ".jsonl": _jsonl_stories, ".parquet": _parquet_stories}


# ------------------------------------------------------------------------------------------- hub


def _hub_stories(n: int, split: str) -> list[str]:
    if problem := _hub_problem():
        raise ConnectionError(f"no network: {problem}")
    try:
        stories = _stream(n, split)
    except Exception as error:  # whatever goes wrong out there, the course can go on with its own stories
        raise ConnectionError(f"the hub failed: {_one_line(error)}") from error
    # Arrow's reading threads live on in the half-read stream and can abort Python when it ends
    # (github.com/huggingface/datasets/issues/7566), so the stream has to go now.
    gc.collect()
    return stories


def _stream(n: int, split: str) -> list[str]:
    """The first stories of the hub; streaming fetches only the shards that they are in."""
    from datasets import load_dataset  # only now: the import alone takes seconds
    from tqdm.auto import tqdm

    rows = load_dataset(HUB_DATASET, split=split, streaming=True)
    stories = islice((story for row in rows if (story := row["text"].strip())), n)
    return list(tqdm(stories, "stories", n, leave=False, disable=n <= SHOW_PROGRESS_ABOVE))


def _hub_problem() -> str | None:
    """Why the hub cannot be used, or None. It answers within PROBE_SECONDS, whatever the network does."""
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        if os.environ.get(variable, "").upper() in {"1", "ON", "YES", "TRUE"}:
            return f"{variable} is set"
    from huggingface_hub.constants import ENDPOINT

    problems = []

    def probe() -> None:
        try:
            with urllib.request.urlopen(f"{ENDPOINT}/api/datasets/{HUB_DATASET}", timeout=PROBE_SECONDS):
                problems.append(None)
        except urllib.error.HTTPError as error:
            # 401 asks for a token, which datasets sends; 429 asks for patience, which datasets has.
            reachable = error.code in (401, 429)
            problems.append(None if reachable else f"{ENDPOINT} answers {error.code}")
        except Exception as error:
            problems.append(f"{ENDPOINT}: {_one_line(getattr(error, 'reason', error))}")

    # A name look-up can block for longer than any time-out, so it gets a thread that can be left behind.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return problems[0] if problems else f"{ENDPOINT} does not answer within {PROBE_SECONDS:g} seconds"


def _one_line(error: object) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
