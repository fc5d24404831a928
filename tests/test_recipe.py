"""A recipe is enough to build a run again, and a saved run carries its own."""

import json

import numpy as np
import pytest
import torch

from utils.checkpoint import save_checkpoint
from utils.config import KimiConfig
from utils.presets import PRESETS
from utils.recipe import build, new_recipe, read_recipe
from utils.training import train

SMALL = dict(stories=60, steps=4, eval_interval=2, eval_batches=1, d_model=16, n_heads=2, d_ff=16, number_format="fp32")


def small_recipe(architecture="k2", **changes):
    return new_recipe(architecture, "smoke", "builtin", **{**SMALL, **changes})


def test_a_preset_is_a_recipe_and_changes_find_their_place():
    recipe = new_recipe("nano", "colab")
    assert (recipe["stories"], recipe["min_count"], recipe["model"]) == (100_000, 3, {})
    assert recipe["training"]["steps"] == 2000 and recipe["training"]["batch_size"] == 32
    shorter = new_recipe("k2", "laptop", "builtin", steps=7, stories=50, n_experts=4)
    assert (shorter["training"]["steps"], shorter["stories"], shorter["model"]["n_experts"]) == (7, 50, 4)
    assert shorter["model"]["d_ff"] == PRESETS["k2"]["laptop"].model["d_ff"]
    assert json.loads(json.dumps(shorter)) == shorter
    with pytest.raises(ValueError, match="a recipe has no 'step', it must be one of accumulation"):
        new_recipe("k2", "laptop", step=7)


@pytest.mark.parametrize("architecture", ["nano", "k2"])
def test_building_twice_gives_the_same_model_and_data(architecture):
    one, other = (build(small_recipe(architecture)) for _ in range(2))
    assert isinstance(one.model.config, KimiConfig) and one.model.config.architecture == architecture
    assert one.model.config == other.model.config and one.config == other.config
    assert (
        np.array_equal(one.data.tokens, other.data.tokens) and one.model.tokenizer.words == other.model.tokenizer.words
    )
    assert all(torch.equal(p, q) for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_a_run_is_continued_from_its_folder_alone(tmp_path):
    recipe = small_recipe()
    model, data, config = build(recipe)
    history = train(model, data, config, out_dir=tmp_path, recipe=recipe)
    assert read_recipe(tmp_path) == recipe
    again, data, config = build(read_recipe(tmp_path), run=tmp_path)
    assert train(again, data, config, out_dir=tmp_path, resume=True) == history
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def test_the_vocabulary_of_a_run_is_its_own(tmp_path):
    """Stories that were changed since would give other numbers to the words; the run's own list stays."""
    model, data, config = build(small_recipe())
    train(model, data, config, out_dir=tmp_path)
    again = build(small_recipe(stories=30), run=tmp_path)
    assert again.model.tokenizer.words == model.tokenizer.words != build(small_recipe(stories=30)).model.tokenizer.words


def test_a_run_without_a_recipe_says_so(tmp_path):
    model, data, config = build(small_recipe())
    train(model, data, config, out_dir=tmp_path)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"without recipe=\.\.\.: it does not say how its stories are loaded"):
            read_recipe(tmp_path)
        save_checkpoint(tmp_path, model, 4)


def test_an_impossible_model_is_told_before_the_stories_are_loaded(capsys):
    with pytest.raises(ValueError, match="top_k"):
        build(small_recipe(top_k=9))
    assert capsys.readouterr().out == ""
