"""Texts from a dataset on the Hugging Face hub, streamed: only the shards that are read are fetched."""

from __future__ import annotations

import gc
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from utils.sources.folders import NAMES
from utils.sources.opened import one_line
from utils.sources.read import NOT_TEXT
from utils.sources.tables import NoSuchColumn, column_of

HUB_DATASET = "roneneldan/TinyStories"
PROBE_SECONDS = 3.0
PATIENCE = (2.0, 8.0)  # seconds before a failed download is tried again
SHOW_PROGRESS_ABOVE = 10_000
T = TypeVar("T")


class NoSuchSplit(ValueError):
    """The dataset has no such split."""


FINAL = NoSuchSplit, NoSuchColumn


def hub_rows(n: int, split: str, dataset: str = HUB_DATASET, column: str | None = None) -> tuple[str, list[str]]:
    """(the column, the first `n` texts in it) of a split of `dataset`, see `HubSplit`."""
    from tqdm.auto import tqdm

    rows = HubSplit(split, dataset, column)
    # no text is asked for after the last one: it may lie in another shard
    texts = tqdm(islice(rows, n), "texts", n, leave=False, disable=n <= SHOW_PROGRESS_ABOVE)
    return rows.column, list(texts)


class HubSplit:
    """The texts of one split of `dataset`, "OWNER/NAME" or "OWNER/NAME:CONFIG", streamed as often as one asks.

    What fails is tried again, with patience. Raises ConnectionError where the hub cannot be reached or keeps failing,
    NoSuchSplit, and ValueError where the dataset has no such column.

    column: the one that is read. revision: the commit of the dataset, which stays the same while it is read.
    """

    def __init__(self, split: str, dataset: str = HUB_DATASET, column: str | None = None):
        name, _, config = dataset.partition(":")
        if problem := hub_problem(name):
            raise ConnectionError(f"no network: {problem}")
        self.revision, self.column, self._rows = patiently(lambda: _opened(split, name, config or None, column), *FINAL)

    def __iter__(self) -> Iterator[str]:
        done, texts = 0, None

        def following() -> str | None:
            nonlocal texts
            try:
                texts = texts or islice(self._texts(), done, None)
                return next(texts, None)
            except Exception:
                texts = None  # a stream that broke is opened anew
                raise

        try:
            while (text := patiently(following, *FINAL)) is not None:
                done += 1
                yield text
        finally:
            # Arrow's reading threads live on in the half-read stream and can abort Python when it ends
            # (github.com/huggingface/datasets/issues/7566), so the stream has to go now.
            texts = None
            gc.collect()

    def _texts(self) -> Iterator[str]:
        for row in self._rows:
            if text := NOT_TEXT.sub("", row[self.column] or "").strip():
                yield text


def patiently(attempt: Callable[[], T], *final: type[Exception]) -> T:
    """What `attempt` returns, tried again where it fails. Raises ConnectionError where it keeps failing.

    final: the errors that no patience helps against; they are raised at once.
    """
    for wait in (*PATIENCE, None):
        try:
            return attempt()
        except final:
            raise
        except Exception as error:  # whatever goes wrong out there
            problem = error
        if wait is None:
            raise ConnectionError(f"the hub failed: {one_line(problem)}") from problem
        print(f"hub: {one_line(problem)}; once more in {wait:g} seconds")
        time.sleep(wait)


def _opened(split: str, name: str, config: str | None, column: str | None) -> tuple[str, str, Iterable[dict]]:
    """(revision, column, rows) of a dataset's split; nothing is read but what tells its columns."""
    from datasets import load_dataset  # only now: the import alone takes seconds
    from huggingface_hub import HfApi

    revision = HfApi().dataset_info(name).sha
    splits = load_dataset(name, config, revision=revision, streaming=True)
    found = next((part for part in NAMES[split] if part in splits), None)
    if found is None:
        raise NoSuchSplit(f"{name} has no split for {split} (it has {', '.join(splits)})")
    rows = splits[found]
    features = rows.features or {}
    named = [name for name, kind in features.items() if getattr(kind, "dtype", None) in ("string", "large_string")]
    return revision, column_of(named, column, name), rows


def hub_problem(name: str = HUB_DATASET, kind: str = "datasets") -> str | None:
    """Why the hub cannot be used for a repository, or None; kind: datasets or models.

    It answers within PROBE_SECONDS, whatever the network does.
    """
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        if os.environ.get(variable, "").upper() in {"1", "ON", "YES", "TRUE"}:
            return f"{variable} is set"
    from huggingface_hub.constants import ENDPOINT

    problems = []

    def probe() -> None:
        try:
            with urllib.request.urlopen(f"{ENDPOINT}/api/{kind}/{name}", timeout=PROBE_SECONDS):
                problems.append(None)
        except urllib.error.HTTPError as error:
            # 401 asks for a token, which datasets sends; 429 and 5xx ask for patience, which there is.
            reachable = error.code in (401, 429) or error.code >= 500
            problems.append(None if reachable else f"{ENDPOINT} answers {error.code}")
        except Exception as error:
            problems.append(f"{ENDPOINT}: {one_line(getattr(error, 'reason', error))}")

    # A name look-up can block for longer than any time-out, so it gets a thread that can be left behind.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return problems[0] if problems else f"{ENDPOINT} does not answer within {PROBE_SECONDS:g} seconds"
