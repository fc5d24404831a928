"""06_training as in Colab, on a CPU: real stories, Drive, a machine that is lost three times, and "Run all" each time.

The cells are the notebook's own. Only sizes are changed, so that minutes become seconds.
"""

import ast
import copy
import math
import shutil
import sys
import types

import matplotlib
import pytest

from tests.lessons import LESSONS
from utils.course import colab
from utils.history import History
from utils.stories import builtin_stories

matplotlib.use("Agg")
LESSON = next(lesson for lesson in LESSONS if lesson.name == "06_training")
SMALLER = {
    "smaller = dict(steps=800, stories=14_000, decay=0.3)":
        "smaller = dict(steps=24, stories=300, decay=0.35, eval_interval=8, checkpoint_minutes=1e-6)",
    'new_recipe("k2", "laptop", source="builtin", **smaller)':
        'new_recipe("k2", "smoke", source="builtin", **smaller)',
    'new_recipe("nano", "laptop", source="builtin")': 'new_recipe("nano", "smoke", source="builtin", stories=300)',
    'preset = "colab" if device.type == "cuda" else "laptop"': 'preset = "smoke"',
    "new_recipe(name, preset, source=few.source)":
        "new_recipe(name, preset, source=few.source, steps=12, eval_interval=6, checkpoint_minutes=1e-6)",
    "n_stories=100": "n_stories=4",
    "model, 6, 128": "model, 6, 64",
    "measure_pace(model, data, config, look)": "measure_pace(model, data, config)",
    "watch=look, ": "",
}  # fmt: skip
# What such small runs cannot show, and what takes long and is no part of training, saving and going on.
LEFT_OUT = ("the_model(", "def branch(", "draw_", "Explorer(", "by_heart", "pull_the_plug", "untrained_loss",
            "in (400, 800", "early = quiet_train", "def first_step(", "COMPLAINTS", "def counting_bets", "CLASSES",
            "sources = {", "losses[-1] < 0.1", "story_demo", "story_faults", "new_toy", "newton_schulz",
            "kept_of_a_run", "textwrap", "beginnings = {}", "tokens_a_story", "shelf = [")  # fmt: skip


class Disconnected(BaseException):
    """The machine is gone."""


def run_all(names: dict) -> None:
    """Every cell from the top, as "Run all" does."""
    for cell in LESSON.code[1:]:  # the first one finds the course
        source = cell.source
        if any(mark in source for mark in LEFT_OUT):
            continue
        for old, new in SMALLER.items():
            source = source.replace(old, new)
        exec(compile(ast.parse(source), "<cell>", "exec"), names)


@pytest.fixture
def in_colab(monkeypatch, tmp_path):
    """Colab's Drive as a folder, real stories as a file, and a disk that goes with the machine."""
    drive, stories, disk = tmp_path / "drive", tmp_path / "stories", tmp_path / "disk"
    module = types.ModuleType("google.colab")
    module.drive = types.SimpleNamespace(mount=lambda folder: None)
    monkeypatch.setitem(sys.modules, "google.colab", module)
    monkeypatch.setattr(colab, "DRIVE", str(drive))
    stories.mkdir()
    for name, seed in (("train", 3), ("validation", 4)):
        (stories / f"{name}.txt").write_text("\n<|endoftext|>\n".join(builtin_stories(120, seed)))
    monkeypatch.setenv("TINYSTORIES_PATH", str(stories))
    monkeypatch.setenv("KIMI_RUNS", str(disk))
    return drive / "MyDrive" / "kimi-k2-from-scratch", disk


def test_after_each_disconnect_run_all_goes_on_from_drive(in_colab, monkeypatch, capsys):
    on_drive, disk = in_colab
    import utils.training

    step, done = utils.training.train_step, []

    def counted(run):
        # those of `measure_pace` and of toys, which keep nothing, do not count
        if run.recipe is not None:
            if len(done) in pulled:
                pulled.remove(len(done))
                raise Disconnected
            done.append(run.config.steps)
        return step(run)

    pulled = [10, 30, 44]  # in the first run, and in each of the two on real stories
    monkeypatch.setattr(utils.training, "train_step", counted)
    machines = 0
    while True:
        machines += 1
        names = {"home": colab.HOME, "device": colab.setup(), "math": math, "copy": copy, "__name__": "__main__"}
        try:
            run_all(names)
            break
        except Disconnected:
            shutil.rmtree(disk)  # Colab takes the machine with all that was on it
    assert machines == 4 and not pulled
    assert set(names["real_runs"]) == {"k2", "nano"}
    for name, steps in (("06_training", 24), ("06_training-real-k2", 12), ("06_training-real-nano", 12)):
        assert History.load(on_drive / name / "history.json").step == steps
    assert "the run goes on from its copy" in capsys.readouterr().out
    assert len(done) < 48 + 3 * 12  # nothing was begun anew but what no checkpoint had yet
