"""What a run is made of, as one plain dict that its checkpoint keeps: enough to build its model and data again."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch

from utils.checkpoint import load_checkpoint
from utils.config import K2Config, KimiConfig, NanoConfig, TrainConfig, from_dict
from utils.data import TokenData, split_texts
from utils.model import Kimi
from utils.presets import PRESETS
from utils.stories import NoValidationSplit, load_stories
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
RECIPE_FIELDS = MODEL_FIELDS | TRAIN_FIELDS | TEXT_FIELDS.keys() | {"stories", "min_count"}


def new_recipe(architecture: str, preset: str, source: str | list[str] | None = None, **changes) -> dict:
    """The recipe of a preset; `changes` are `stories`, `min_count`, TEXT_FIELDS, fields of KimiConfig and TrainConfig.

    source: as `load_stories` takes it.
    """
    chosen = PRESETS[architecture][preset]
    if unknown := sorted(set(changes) - RECIPE_FIELDS):
        raise ValueError(f"a recipe has no {unknown[0]!r}, it must be one of {', '.join(sorted(RECIPE_FIELDS))}")
    training = {name: value for name, value in changes.items() if name in TRAIN_FIELDS}
    return {
        "architecture": architecture,
        "preset": preset,
        "source": source,
        "stories": changes.get("stories", chosen.stories),
        "min_count": changes.get("min_count", chosen.min_count),
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
    return {**TEXT_FIELDS, **recipe, "training": training["config"]}


def load_split(recipe: dict) -> tuple[list[str], list[str]]:
    """Training and validation stories; a source without a validation part gives a tenth of its stories, or of its text.

    Writes into the recipe the source that was really taken, so that the same is taken again.
    """
    how = {name: recipe.get(name) for name in ("text_column", "encoding", "split_on")}
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


def build(recipe: dict, device: str | torch.device = "cpu", run: str | Path | None = None) -> Ingredients:
    """Model, data and configuration as the recipe says; with a saved `run` its vocabulary, to continue it.

    Only what `train(..., out_dir=run, resume=True)` then reads from the run makes the model the trained one.
    """
    config = from_dict(TrainConfig, recipe["training"])
    # an impossible model is told before the stories are loaded
    KimiConfig.small(recipe["architecture"], 2, **recipe["model"])
    train_stories, val_stories = load_split(recipe)
    if run is None:
        tok = _new_tokenizer(recipe, train_stories, val_stories)
    else:
        tok = tokenizer_from_dict(load_checkpoint(run)["tokenizer"])
    data = TokenData.from_stories(train_stories, tok, validation=val_stories)
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
