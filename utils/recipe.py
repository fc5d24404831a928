"""What a run is made of, as one plain dict that its checkpoint keeps: enough to build its model and data again."""

from __future__ import annotations

import os
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch

from utils.checkpoint import load_checkpoint
from utils.config import K2Config, KimiConfig, NanoConfig, TrainConfig, from_dict
from utils.corpus import Corpus, first_texts, usual_source
from utils.data import TokenData, split_texts
from utils.files import check_kinds, read_checked, write_checked
from utils.memory import refuse_too_large
from utils.model import Kimi
from utils.presets import PRESETS
from utils.sources.read import READING, How
from utils.stories import NoValidationSplit, load_stories
from utils.token_store import TokenStore, key_of
from utils.token_workers import held_out
from utils.tokenizer import BPETokenizer, WordTokenizer, tokenizer_from_dict
from utils.vocabulary import make_tokenizer


class Ingredients(NamedTuple):
    model: Kimi
    data: TokenData
    config: TrainConfig


# How the texts are read and cut, and what is told from them where nobody says it.
TEXT_FIELDS = {"text_column": None, "encoding": None, "split_on": None, "tokenizer": "auto", "vocab_size": None}
MODEL_FIELDS = {field.name for config in (NanoConfig, K2Config) for field in fields(config)} - {"vocab_size"}
TRAIN_FIELDS = {field.name for field in fields(TrainConfig)}
RECIPE_FIELDS = MODEL_FIELDS | TRAIN_FIELDS | TEXT_FIELDS.keys() | {"stories", "min_count", "tokens"}

KINDS = {
    "architecture": str, "source": str | list | None, "stories": int, "min_count": int, "model": dict, "training": dict,
}  # fmt: skip

IN_MEMORY = 100_000  # a run on more stories keeps their tokens on disk
SAMPLE_CHARACTERS = 32_000_000  # and its tokenizer is of the first IN_MEMORY stories, or of so many characters
MOST_STORIES = 100_000_000  # the built-in grammar would tell for ever
FEW = 10_000  # fewer texts than this are split by a draw, in memory
MOST_WORKERS = 4  # more would wait for the one process that reads, and take 512 MB together

Tokenizer = WordTokenizer | BPETokenizer


def new_recipe(architecture: str, preset: str, source: str | list[str] | None = None, **changes) -> dict:
    """The recipe of a preset; `changes` are `stories`, `min_count`, TEXT_FIELDS, fields of KimiConfig and TrainConfig.

    source: as `load_stories` takes it. Another change is `tokens`, the folder of `load_tokens`.
    """
    chosen = PRESETS[architecture][preset]
    if unknown := sorted(set(changes) - RECIPE_FIELDS):
        raise ValueError(f"a recipe has no {unknown[0]!r}, it must be one of {', '.join(sorted(RECIPE_FIELDS))}")
    training = {name: value for name, value in changes.items() if name in TRAIN_FIELDS}
    stories = changes.get("stories", chosen.stories)
    if not 1 <= stories <= MOST_STORIES:
        raise ValueError(f"stories is {stories}, it must be a whole number from 1 to {MOST_STORIES:,}")
    return {
        "architecture": architecture,
        "preset": preset,
        "source": source,
        "stories": stories,
        "min_count": changes.get("min_count", chosen.min_count),
        "tokens": changes.get("tokens", "runs/tokens"),
        **{name: changes.get(name, default) for name, default in TEXT_FIELDS.items()},
        "model": chosen.model | {name: value for name, value in changes.items() if name in MODEL_FIELDS},
        "training": asdict(replace(chosen.training, **training)),
    }


def read_recipe(run: str | Path) -> dict:
    """The recipe of a saved run. Raises ValueError where a run was saved without one, as load_checkpoint otherwise."""
    training = load_checkpoint(run)["training"] or {}
    recipe = training.get("recipe")
    if recipe is None:
        raise ValueError(f"{run} was trained without recipe=...: it does not say how its stories are loaded")
    recipe = {**TEXT_FIELDS, **recipe, "training": training.get("config")}
    check_kinds(recipe, KINDS, f"the recipe of {run}: ")
    return recipe


def load_split(recipe: dict) -> tuple[list[str], list[str]]:
    """Training and validation stories; a source without a validation part gives a tenth of its stories, or of its text.

    Writes into the recipe the source that was really taken, so that the same is taken again.
    """
    how = {name: recipe.get(name) for name in READING}
    stories = load_stories(recipe["stories"], "train", recipe["source"], **how)
    recipe["source"] = stories.source
    if stories.problem:
        recipe["problem"] = stories.problem
    try:
        val_stories = load_stories(max(1, recipe["stories"] // 10), "validation", stories.source, **how)
    except NoValidationSplit:
        return split_texts(stories)
    if n_both := len(set(stories) & set(val_stories)):
        print(f"stories: {n_both:,} texts are in training and in validation, whose loss will look too good")
    return stories, val_stories


def load_tokens(recipe: dict, tok: Tokenizer | None = None) -> tuple[Tokenizer, TokenData]:
    """(tokenizer, data) of a recipe. tok: that of a run; without one it is made from the training texts.

    More than IN_MEMORY stories are kept as tokens on disk, in the folder recipe["tokens"], by the first run that needs
    them. A source of few texts stays in memory, and so does a recipe from before there was such a folder.
    """
    if recipe["stories"] > IN_MEMORY and recipe.get("tokens"):
        stored = _load_stored(recipe, tok)
        if stored is not None:
            return stored
    train, val = load_split(recipe)
    tok = tok or _new_tokenizer(recipe, train, val)
    return tok, TokenData.from_stories(train, tok, validation=val)


def load_texts(recipe: dict) -> tuple[list[str], list[str]]:
    """Training and validation texts to look at; of a run whose tokens are on disk those among its first IN_MEMORY."""
    if recipe["stories"] > IN_MEMORY and recipe.get("tokens"):
        train, val = _corpora(recipe)
        first, are_all = first_texts(train, IN_MEMORY, SAMPLE_CHARACTERS)
        if not are_all or len(first) >= FEW:
            texts, held_out_texts = _split_sample(first, val)
            print(f"stories: {train}: the first {len(texts):,} and {len(held_out_texts):,} to validate")
            return texts, held_out_texts
    return load_split(recipe)


def _load_stored(recipe: dict, tok: Tokenizer | None) -> tuple[Tokenizer, TokenData] | None:
    """`load_tokens` from disk; None for a source of few texts."""
    train, val = _corpora(recipe)
    home, texts = Path(recipe["tokens"]), [train.identity(), val and val.identity()]
    wanted = [recipe.get(name) for name in ("tokenizer", "vocab_size", "min_count")]
    made_before = home / f"tokenizer-{key_of([texts, wanted])}.json"
    if tok is None and made_before.is_file():
        tok = tokenizer_from_dict(read_checked(made_before))
    if tok is not None:
        store = TokenStore(home, texts, tok)
        if data := store.open():
            print(f"tokens: {store.describe()}, from an earlier start")
            return tok, data

    first, are_all = first_texts(train, IN_MEMORY, SAMPLE_CHARACTERS)
    if are_all and len(first) < FEW:
        return None
    print(f"stories: {train}")
    if tok is None:
        print(f"tokenizer: made from the first {len(first):,} stories")
        tok = _new_tokenizer(recipe, *_split_sample(first, val))
    del first
    store = TokenStore(home, texts, tok)
    n_workers = 1 if are_all else min(MOST_WORKERS, os.cpu_count() or 1)
    print(f"tokens: kept on disk, as for more than {IN_MEMORY:,} stories, in {store.folder} (processes: {n_workers})")
    data = store.fill(train, val, n_workers)
    with store.alone():  # not beside another rank
        write_checked(made_before, tok.to_dict())
    print(f"tokens: {store.describe()}")
    return tok, data


def _corpora(recipe: dict) -> tuple[Corpus, Corpus | None]:
    """Training and validation texts as they can be read one by one; None where the source has none for validation.

    Writes into the recipe what `load_split` does.
    """
    how = How(*(recipe.get(name) for name in READING))
    source, problem = (recipe["source"], None) if recipe["source"] else usual_source()
    train = Corpus(recipe["stories"], "train", source, how)
    recipe["source"] = train.source
    if problem:
        recipe["problem"] = problem
    try:
        return train, Corpus(IN_MEMORY // 10, "validation", source, how)
    except NoValidationSplit:
        return train, None


def _split_sample(texts: list[str], val: Corpus | None) -> tuple[list[str], list[str]]:
    """What the tokenizer is made from, and some validation texts by which it is judged."""
    if val is not None:
        return texts, first_texts(val, IN_MEMORY // 10, SAMPLE_CHARACTERS)[0]
    return [text for text in texts if not held_out(text)], [text for text in texts if held_out(text)]


def build(recipe: dict, device: str | torch.device = "cpu", run: str | Path | None = None) -> Ingredients:
    """Model, data and configuration as the recipe says; with a saved `run` its vocabulary, to continue it.

    Only what `train(..., out_dir=run, resume=True)` then reads from the run makes the model the trained one.
    """
    config = from_dict(TrainConfig, recipe["training"])
    # an impossible model is told before the stories are loaded
    least = KimiConfig.small(recipe["architecture"], 2, **recipe["model"])
    refuse_too_large(least, torch.device(device))
    tok = None if run is None else tokenizer_from_dict(load_checkpoint(run)["tokenizer"])
    tok, data = load_tokens(recipe, tok)
    shape = KimiConfig.small(recipe["architecture"], len(tok), **recipe["model"])
    model = Kimi(shape, seed=config.seed).to(device)
    model.tokenizer = tok
    return Ingredients(model, data, config)


def _new_tokenizer(recipe: dict, train: list[str], val: list[str]) -> WordTokenizer | BPETokenizer:
    """The tokenizer that the recipe names, or that suits its texts; what is to be said of it is printed."""
    kind, size = recipe.get("tokenizer", "auto"), recipe.get("vocab_size")
    if kind == "auto" and recipe["source"] == "builtin":  # its grammar knows few words: nothing to look for
        return WordTokenizer.train(train, recipe["min_count"], size)
    tok, reason = make_tokenizer(kind, train, val, recipe["min_count"], size)
    if reason:
        print(f"tokenizer: {reason}")
    return tok
