"""The notebooks are whole: executed from top to bottom, in the form that a lesson needs, and true to `utils`."""

import ast
import importlib
import re

import nbformat
import pytest

from tests.form import AS_IN_UTILS, CAPTION, IGNORED, LESSONS
from tests.notebooks import FOLDER, normalise
from utils.colab import REPOSITORY, first_cell, with_badges

MODULES = [path.stem for path in sorted((FOLDER.parent / "utils").glob("[a-z]*.py"))]
every_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)


@every_lesson
def test_it_is_valid_and_in_the_stored_form(lesson):
    """Fault of the original notebook: 88 progress-bar widgets in its metadata keep GitHub from rendering it."""
    text = lesson.path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    assert nbformat.writes(normalise(notebook)).rstrip("\n") + "\n" == text, "run: python -m tests.notebooks"
    assert len(text) < 500_000


@every_lesson
def test_every_cell_was_executed_in_order_without_an_error(lesson):
    """nbval compares nothing where a cell was not executed."""
    assert [cell.execution_count for cell in lesson.code] == list(range(1, len(lesson.code) + 1))
    assert not [output for cell in lesson.code for output in cell.outputs if output.output_type == "error"]


@every_lesson
def test_what_nbval_does_not_compare_is_little_and_asserted(lesson):
    ignored = lesson.tagged(IGNORED)
    assert len(ignored) <= len(lesson.code) / 4
    for cell in ignored:
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source))), cell.source


@every_lesson
def test_no_cell_is_longer_than_a_screen(lesson):
    assert lesson.lines()[-1] <= 35


@every_lesson
def test_it_begins_with_the_one_first_cell_and_a_place_for_its_badge(lesson):
    assert lesson.code[0].source == first_cell()
    place = f"<!-- colab:{lesson.name} -->"
    assert (with_badges(place, REPOSITORY) if REPOSITORY else place) in lesson.text[0].splitlines()
    for part in ("In this notebook you **", "**You need:**", "| hardware | minutes | memory |", "**Shapes.**"):
        assert part in lesson.text[0], part


@every_lesson
def test_its_form_is_that_of_a_lesson(lesson):
    """The measures of good courses; see `python -m tests.form`."""
    form = lesson.form()
    assert 40 <= form["cells"] <= 90
    assert form["lines, median"] <= 7 and form["lines, 90 %"] <= 20
    assert 1.2 <= form["text : code"] <= 2
    assert 1500 <= form["words"] <= 3500
    assert 5 <= form["figures"] <= 12 and form["widgets"] >= 1
    assert form["predictions"] >= 2 and form["exercises"] >= 3
    assert "<summary>Why</summary>" in "\n".join(lesson.text)


@every_lesson
def test_it_ends_with_what_a_reader_takes_along(lesson):
    headings = re.findall(r"^#+ (.*)$", "\n".join(lesson.text), re.MULTILINE)
    for wanted in ("What Kimi K2 does differently at scale", "Takeaways", "What we left out", "References"):
        assert any(wanted in heading for heading in headings), wanted
    assert "> **At Kimi K2's size.**" in "\n".join(lesson.text) and "arXiv" in lesson.text[-1]


@every_lesson
def test_every_figure_has_a_caption_and_a_fact_that_is_asserted(lesson):
    """Pictures are not compared by nbval: what they show is said in words and in an assert."""
    for number, (cell, after) in enumerate(lesson.figures(), 1):
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source))), cell.source
        caption = CAPTION.match(after)
        assert caption and int(caption[1]) == number, f"figure {number}: {after[:80]!r}"


@every_lesson
def test_what_it_shows_as_final_is_what_utils_has(lesson):
    """The syntax trees are equal. A name of this chapter's module means the same in the notebook, tagged or not."""
    home = {**definitions_of(lesson.name.partition("_")[2])}
    everywhere = {name: tree for module in MODULES for name, tree in definitions_of(module).items()}
    shown = [(cell, node) for cell in lesson.tagged(AS_IN_UTILS) for node in defined_in(cell.source)]
    assert shown
    for cell, node in shown:
        assert ast.dump(node) == everywhere.get(node.name), f"{node.name} is not as in utils:\n{cell.source}"
    for cell in lesson.code:
        for node in defined_in(cell.source):
            assert ast.dump(node) == home.get(node.name, ast.dump(node)), f"{node.name} differs from that of utils"


def definitions_of(module: str) -> dict[str, str]:
    source = importlib.import_module(f"utils.{module}").__loader__.get_source(f"utils.{module}")
    return {node.name: ast.dump(node) for node in defined_in(source)}


def defined_in(source: str) -> list[ast.stmt]:
    return [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]


def test_storing_drops_progress_bars_and_keeps_pictures():
    view, bar, png = "application/vnd.jupyter.widget-view+json", "training:  40%|####  | 4/10", "image/png"
    cell = nbformat.v4.new_code_cell("train()  ", execution_count=7, metadata={"tags": ["kept"], "execution": {}})
    cell.outputs = [
        nbformat.v4.new_output("display_data", {view: {"model_id": "1"}, "text/plain": bar}),
        nbformat.v4.new_output("stream", name="stdout", text="one\n"),
        nbformat.v4.new_output("stream", name="stdout", text=" 10%\r100%\n"),
        nbformat.v4.new_output("display_data", {view: {"model_id": "2"}, "text/plain": "Demo()"}),
        nbformat.v4.new_output("execute_result", {png: "AA==", "text/plain": "<Figure>"}, execution_count=7),
    ]
    stored = normalise(
        nbformat.v4.new_notebook(
            cells=[cell], metadata={"widgets": {}, "language_info": {"name": "python", "version": "3"}}
        )
    )
    assert "widgets" not in stored.metadata and stored.metadata.language_info == {"name": "python"}
    (stored_cell,) = stored.cells
    assert (stored_cell.id, stored_cell.source, stored_cell.execution_count) == ("cell-00", "train()", 1)
    assert stored_cell.metadata == {"tags": ["kept"]}
    kinds = [output.get("text") or output.data for output in stored_cell.outputs]
    assert kinds == ["one\n100%\n", {"text/plain": "Demo()"}, {png: "AA==", "text/plain": "<Figure>"}]
    assert stored_cell.outputs[-1].execution_count == 1
