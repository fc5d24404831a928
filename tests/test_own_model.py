"""Chapter 7 finds the model of chapter 6 where there is one, and says why where there is none."""

import sys
import types

import pytest

from tests.helpers import tiny_model
from utils.checkpoint import checkpoint_file, save_checkpoint
from utils.course import own_model as module
from utils.course.own_model import first_model, own_model
from utils.tokenizer import WordTokenizer


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("KIMI_RUNS", str(tmp_path))
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    return tmp_path


def save(folder, source="builtin", words="Lily lost her red ball.", training=True, step=1234, steps=1234):
    tok = WordTokenizer.train([words]) if words else None
    model = tiny_model(len(tok) if tok else 9)
    model.tokenizer = tok
    recipe = {"architecture": "nano", "source": source, "stories": 1, "min_count": 1, "model": {}}
    save_checkpoint(folder, model, step, {"config": {"steps": steps}, "recipe": recipe} if training else None)


def test_where_there_is_no_run_it_says_so(runs):
    assert own_model(["06_training"]) == (None, "there is no run of chapter 6 here", None)


def test_the_first_run_that_is_there_is_taken(runs):
    save(runs / "06_training", source=["a", "b"])
    model, whose, source = own_model(["06_training-other", "06_training"])
    assert not model.training and model.tokenizer.decode(model.tokenizer.encode("lily lost")) == "Lily lost"
    assert whose == f"your model of chapter 6 (nano, step 1,234, {runs / '06_training'})" and source == ["a", "b"]
    save(runs / "06_training-other", training=False)
    assert own_model(["06_training-other", "06_training"]).source is None


def test_a_finished_run_goes_before_one_that_has_only_begun(runs):
    save(runs / "real", step=20, steps=2000)
    assert own_model(["real", "06_training"]).whose.endswith(f"(nano, step 20 of 2,000, {runs / 'real'})")
    save(runs / "06_training")
    assert str(runs / "06_training") in own_model(["real", "06_training"]).whose
    save(runs / "real", step=2000, steps=2000)
    assert own_model(["real", "06_training"]).whose.endswith(f"(nano, step 2,000, {runs / 'real'})")


def test_one_that_cannot_be_used_is_named_and_passed_over(runs, capsys):
    save(runs / "damaged")
    file = checkpoint_file(runs / "damaged")
    file.write_bytes(file.read_bytes()[:-9])
    save(runs / "mute", words="")
    save(runs / "good")
    found = first_model([runs / name for name in ("damaged", "mute", "none", "good")])
    assert str(runs / "good") in found.whose
    damaged, mute = capsys.readouterr().out.splitlines()
    assert damaged.startswith(f"the run in {runs / 'damaged'} cannot be loaded: ")
    assert mute == f"the model in {runs / 'mute'} has no tokenizer, so it cannot tell anything"
    assert first_model([runs / "mute"]).model is None


def test_in_colab_what_this_machine_does_not_have_is_looked_for_in_drive(runs, tmp_path, monkeypatch, capsys):
    save(runs / "06_training")
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))  # one without a Drive
    assert str(runs / "06_training") in own_model(["06_training-other", "another", "06_training"]).whose
    assert capsys.readouterr().out.count("so only this machine is searched") == 1
    drive, asked = tmp_path / "drive", []

    def run_folder(name, on_drive=False):
        asked.append((name, on_drive))
        return (drive if on_drive else runs) / name

    monkeypatch.setattr(module, "run_folder", run_folder)
    assert str(runs) in own_model(["06_training"]).whose and ("06_training", True) not in asked
    save(drive / "06_training-other")
    assert str(drive) in own_model(["06_training-other", "06_training"]).whose
    assert str(drive) not in own_model(["06_training-other", "06_training"], on_drive=False).whose
