"""The notebooks are whole: executed from top to bottom, in the form that a lesson needs, and true to `utils`."""

import ast
import re

import nbformat
import pytest

from tests.lessons import AS_IN_UTILS, CAPTION, IGNORED, LESSONS, Lesson, is_among
from tests.notebooks import FOLDER, normalise
from utils.course.colab import REPOSITORY, first_cell, with_badges

UTILS = FOLDER.parent / "utils"
HOMES = {  # else one module of the chapter's name
    "tokenizer": ("tokenizer", "detokenizer"),
    "attention": ("attention", "positions", "norm"),
    "latent_attention": ("attention", "positions"),
    "scaling": ("ranks",),
    "inside_kimi_k2": ("published/lazy",),
}
every_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)


@every_lesson
def test_it_is_valid_and_in_the_stored_form(lesson):
    """Fault of the original notebook: 88 progress-bar widgets in its metadata keep GitHub from rendering it."""
    text = lesson.path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    assert nbformat.writes(normalise(notebook)).rstrip("\n") + "\n" == text, "run: python -m tests.notebooks"


@every_lesson
def test_every_cell_was_executed_in_order_without_an_error(lesson):
    """nbval compares nothing where a cell was not executed."""
    assert [cell.execution_count for cell in lesson.code] == list(range(1, len(lesson.code) + 1))
    assert not [output for cell in lesson.code for output in cell.outputs if output.output_type == "error"]


@every_lesson
def test_what_nbval_does_not_compare_is_asserted(lesson):
    for cell in (*lesson.tagged(IGNORED), *lesson.tagged("within-100%")):
        assert asserts(cell), cell.source


@every_lesson
def test_no_line_of_code_is_cut_off_where_the_notebook_is_rendered(lesson):
    """Pages show about a hundred characters; what is longer can only be scrolled to."""
    code = [cell.source for cell in lesson.code]
    code += re.findall(r"```python\n(.*?)```", "\n".join(lesson.text), re.DOTALL)
    assert not [line for source in code for line in source.splitlines() if len(line) > 100]


@every_lesson
def test_it_begins_with_the_one_first_cell_and_a_place_for_its_badge(lesson):
    assert lesson.code[0].source == first_cell()
    place = f"<!-- colab:{lesson.name} -->"
    assert (with_badges(place, REPOSITORY) if REPOSITORY else place) in lesson.text[0].splitlines()
    for part in ("In this notebook you **", "**You need:**", "| hardware | minutes | memory |", "**Shapes.**"):
        assert part in lesson.text[0], part


@every_lesson
def test_it_ends_with_what_a_reader_takes_along(lesson):
    headings = re.findall(r"^#+ (.*)$", "\n".join(lesson.text), re.MULTILINE)
    for wanted in ("What Kimi K2 does differently at scale", "Takeaways", "What we left out", "References"):
        assert any(wanted in heading for heading in headings), wanted
    assert "> **At Kimi K2's size.**" in "\n".join(lesson.text) and "arXiv" in lesson.text[-1]


@every_lesson
def test_every_figure_is_said_in_words_and_a_fact_of_it_is_asserted(lesson):
    """Pictures are not compared by nbval. An explorer, which cannot be made without an alt text, needs no caption."""
    captions = []
    for cell, after in lesson.figures():
        assert asserts(cell), cell.source
        captions.append(CAPTION.match(after))
        assert captions[-1] or "Explorer(" in cell.source, f"{after[:80]!r} is no caption of\n{cell.source}"
    numbers = [int(caption[1]) for caption in captions if caption]
    assert numbers == list(range(1, len(numbers) + 1))


def asserts(cell) -> bool:
    return any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source)))


@every_lesson
def test_what_it_shows_as_final_is_what_utils_has(lesson):
    """The syntax trees are equal. A name of this chapter's modules means the same in the notebook, tagged or not."""
    chapter = lesson.name.partition("_")[2]
    home = {name: tree for module in HOMES.get(chapter, (chapter,)) for name, tree in definitions(module)}
    paths = [path.relative_to(UTILS).with_suffix("") for path in sorted(UTILS.rglob("*.py"))]
    everywhere = {tree for path in paths for _, tree in definitions(path)}
    shown = [(cell, node) for cell in lesson.tagged(AS_IN_UTILS) for node in defined_in(cell.source)]
    assert shown
    for cell, node in shown:
        assert ast.dump(node) in everywhere, f"{node.name} is not as in utils:\n{cell.source}"
    for cell in lesson.code:
        for node in defined_in(cell.source):
            assert ast.dump(node) == home.get(node.name, ast.dump(node)), f"{node.name} differs from that of utils"


def definitions(module) -> list[tuple[str, str]]:
    """Name and syntax tree of each class and function of a file under utils, given without its .py."""
    return [(node.name, ast.dump(node)) for node in defined_in((UTILS / f"{module}.py").read_text(encoding="utf-8"))]


def defined_in(source: str) -> list[ast.stmt]:
    return [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]


@every_lesson
def test_numbers_in_the_text_are_those_that_the_notebook_shows(lesson):
    """Whoever changes code or runs the notebook again finds here what the text still says of the old one."""
    shown = lesson.shown()
    owed = {written: sentence for written, sentence in lesson.stated().items() if not is_among(written, shown)}
    assert not owed, "no code or output of the notebook has these numbers"


def test_numbers_are_read_from_prose_alone(tmp_path):
    text = """\
# 1,234 words
It has 1,026,408 weights (12.5 % of them *active*), that is −0.278 here and 99 there.[^1]
See [the table](https://example.org/777), section 3.25, heads 1.1 and 2.2, `x = 555`, $y = 4.44$, 2024 and 2026-11-25.
```python
z = 333
```
Is it 888? arXiv 2507.20534 says 999. In our run it was 666; in the stored run too, 667. Half-width-512 layers: 0.50.

> **At Kimi K2's size.** 7,168 channels. And
> 384 experts.

- 2.5 million, 700-1,500 steps

## What Kimi K2 does differently at scale
15.5 trillion.

## Takeaways
* About 224,000 of 0.1.

## References
[2002.05202](https://arxiv.org/abs/2002.05202), 123 pages"""
    code = nbformat.v4.new_code_cell("n = 1_026_408\nf(0.1249, 1e-3)", outputs=[
        nbformat.v4.new_output("stream", text="loss 0.27843 x 7,5 of 2,499,000\n"),
        nbformat.v4.new_output("execute_result", {"text/html": '<b style="width:42px">223606</b>'}),
    ])  # fmt: skip
    path = tmp_path / "00_test.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text), code]), path)
    lesson = Lesson(path)
    stated = ["1,026,408", "12.5 %", "0.278", "0.50", "2.5 million", "700", "1,500", "224,000", "0.1"]
    assert list(lesson.stated()) == stated
    shown = {1_026_408.0, 0.1249, 0.001, 0.27843, 75.0, 7.0, 5.0, 2_499_000.0, 223_606.0}
    assert lesson.shown() >= shown and not {42.0, 0.25} & lesson.shown()
    assert [word for word in stated if not is_among(word, shown)] == ["0.50", "700", "1,500"]


@pytest.mark.parametrize(
    "written, number, is_it",
    [
        ("0.73", 0.7251, True), ("0.73", 0.7249, False), ("0.730", 0.7251, False), ("2.0", 2, True),
        ("73.1 %", 0.7309, True), ("73.1 %", 73.12, True), ("73.1", 0.731, False),
        ("224,000", 223_500, True), ("224,000", 224_600, False), ("224,100", 224_149, True),
        ("224,100", 224_151, False), ("224,128", 224_129, False), ("700,000", 716_800, False),
        ("100", 100.4, True), ("100", 101, False),
        ("1.03 trillion", 1_026_408_209_408, True), ("1.03 billion", 1_026_408_209_408, False),
        ("128k", 128_000, True),
    ],
)  # fmt: skip
def test_a_number_is_among_others_rounded_to_the_digits_that_are_written(written, number, is_it):
    assert is_among(written, {5.0, number}) == is_it


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
