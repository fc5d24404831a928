"""The model that a reader trained in an earlier chapter, if there is one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from utils.checkpoint import holds_run, load_model
from utils.course.colab import run_folder
from utils.model import Kimi
from utils.recipe import read_recipe


class Own(NamedTuple):
    """A reader's model, or why there is none."""

    model: Kimi | None  # ready to generate
    whose: str  # in words
    source: str | list[str] | None  # of the stories that it was trained on, as `load_stories` takes it


def own_model(runs: Sequence[str], device: str | torch.device = "cpu", on_drive: bool = True) -> Own:
    """The model of the first of these runs that is finished, else of the first that has begun.

    on_drive: in Colab, where this machine does not have a run, look for the copy that chapter 6 keeps of it in Google
    Drive, which asks for permission; elsewhere it changes nothing.
    """
    on_drive = on_drive and "google.colab" in sys.modules
    places = []
    for run in runs:
        places.append(run_folder(run))
        if on_drive and not holds_run(places[-1]):
            try:
                places.append(run_folder(run, on_drive=True))
            except Exception as error:  # permission refused, no Drive, or whatever else Colab raises
                on_drive = False
                print(f"Google Drive cannot be read ({error}), so only this machine is searched")
    return first_model(places, device)


def first_model(places: Sequence[Path], device: str | torch.device = "cpu") -> Own:
    """`own_model` of these run folders, of those whose checkpoint can be read and has a tokenizer."""
    begun = None
    for place in filter(holds_run, places):
        try:
            model, step = load_model(place, device)
        except (OSError, ValueError) as error:  # damaged, or of an older form: the message says what to do
            print(f"the run in {place} cannot be loaded: {error}")
            continue
        if model.tokenizer is None:
            print(f"the model in {place} has no tokenizer, so it cannot tell anything")
            continue
        try:
            recipe = read_recipe(place)
        except ValueError:  # trained without a recipe
            recipe = {}
        planned = recipe.get("training", {}).get("steps", step)
        at = f"step {step:,}" if step >= planned else f"step {step:,} of {planned:,}"
        whose = f"your model of chapter 6 ({model.config.architecture}, {at}, {place})"
        found = Own(model, whose, recipe.get("source"))
        if step >= planned:
            return found
        begun = begun or found
    return begun or Own(None, "there is no run of chapter 6 here", None)
