"""The cells of chapter 9 that read real weights: they run, on folders of the published form in the place of the hub."""

import re

import pytest

from tests.lessons import LESSONS
from tests.test_hf import random_model
from utils.course.colab import RUNS_VARIABLE
from utils.hf import export_hf
from utils.tokenizer import WordTokenizer

CHAPTER = next(lesson for lesson in LESSONS if lesson.name == "09_inside_kimi_k2")
SHAPES = {
    "KIMI": dict(n_experts=12, top_k=3),
    "MOONLIGHT": dict(q_lora_rank=0, n_shared_experts=2, top_k=3),
    "DEEPSEEK": dict(n_experts=8, n_group=4, topk_group=2, top_k=2),
}
INSTEAD = {  # the models of the chapter hardly trained, and the folders with fewer layers than the published ones
    "REAL = False": "REAL = True",
    "AT_MOST_GB = 4 ": "AT_MOST_GB = 40 ",
    "steps=500": "steps=2",
    "stories=5000": "stories=200",
    "steps=100": "steps=2",
    "layers.30.": "layers.1.",
    'assert min(after_attention["muonclip"])': 'assert 1000 * min(after_attention["muonclip"])',
}


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the chapter's cells find and define; `shown` is what they display."""
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    sentences = next(cell.source for cell in CHAPTER.code if "SENTENCES = (" in cell.source)
    tok = WordTokenizer.train([" ".join(re.findall(r'"([^"\n]+\.)"', sentences)), "She looked for"])
    for name, shape in SHAPES.items():
        model = random_model("plain", vocab_size=len(tok), **shape)
        model.tokenizer = tok
        export_hf(model, tmp_path / name)
    shown = []
    return {"display": shown.append, "shown": shown}


def test_the_cells_for_real_weights_run(names, tmp_path, capsys):
    sources = [cell.source for cell in CHAPTER.code[1:]]
    for old in INSTEAD:
        assert any(old in source for source in sources), old
    for source in sources:
        for old, new in INSTEAD.items():
            source = source.replace(old, new)
        for name in SHAPES:
            source = re.sub(rf'^{name} = ".*"$', f"{name} = {str(tmp_path / name)!r}", source, flags=re.MULTILINE)
        exec(compile(source, CHAPTER.name, "exec"), names)
    printed = capsys.readouterr().out
    wanted = len(re.findall(r"^if real\(", "\n".join(sources), re.MULTILINE))
    assert printed.count("reads about ") == wanted >= 6 and "skipped" not in printed
    assert len(names["shown"]) == sum(source.count("display(") for source in sources)
    assert set(names["looks"]) == {"yours", "Kimi K2"} and set(names["streams"]) == {"yours", "Moonlight"}


def test_without_the_switch_each_says_what_it_would_read():
    for cell in (cell for cell in CHAPTER.code if re.search(r"^if real\(", cell.source, re.MULTILINE)):
        printed = "".join(output.get("text", "") for output in cell.outputs)
        assert re.search(r"skipped: REAL is False\. It would read about [\d.,]+ [kMG]B:\n  \w", printed), cell.source
