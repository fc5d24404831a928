"""The model that a reader trained in an earlier chapter, if there is one."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from utils.checkpoint import holds_run, load_model
from utils.course.colab import run_folder
from utils.model import Kimi


def own_model(run: str, device: str | torch.device = "cpu", on_drive: bool = True) -> tuple[Kimi | None, str]:
    """(model ready to generate, where it comes from) of the run named `run`; (None, why not) where there is none.

    on_drive: in Colab, look into Google Drive first, which asks for permission; elsewhere it changes nothing.
    """
    places = []
    if on_drive and "google.colab" in sys.modules:
        try:
            places.append(run_folder(run, on_drive=True))
        except Exception as error:  # permission refused, no Drive, or whatever else Colab raises
            print(f"Google Drive cannot be read ({error}), so only this machine is searched")
    places.append(run_folder(run))
    return first_model(places, device)


def first_model(places: list[Path], device: str | torch.device = "cpu") -> tuple[Kimi | None, str]:
    """`own_model` of these run folders: the first whose checkpoint can be read and has a tokenizer."""
    for place in filter(holds_run, places):
        try:
            model, step = load_model(place, device)
        except (OSError, ValueError) as error:  # damaged, or of an older form: the message says what to do
            print(f"the run in {place} cannot be loaded: {error}")
            continue
        if model.tokenizer is not None:
            return model, f"your model of chapter 6 ({model.config.architecture}, step {step:,}, from {place})"
        print(f"the model in {place} has no tokenizer, so it cannot tell anything")
    return None, "there is no run of chapter 6 yet"
