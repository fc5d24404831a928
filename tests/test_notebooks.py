"""The stored notebooks are whole: executed from top to bottom, free of what keeps GitHub from showing them."""

import ast

import nbformat
import pytest

from tests.notebooks import FOLDER, normalise

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
IGNORED = "nbval-ignore-output"


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def code(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_it_is_valid_and_in_the_stored_form(path):
    """Fault of the original notebook: 88 progress-bar widgets in its metadata keep GitHub from rendering it."""
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    assert nbformat.writes(normalise(notebook)).rstrip("\n") + "\n" == text, "run: python -m tests.notebooks"
    assert len(text) < 500_000


def test_every_cell_was_executed_in_order_without_an_error(code):
    """nbval compares nothing where a cell was not executed."""
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]


def test_what_nbval_does_not_compare_is_little_and_asserted(code):
    ignored = [cell for cell in code if IGNORED in cell.metadata.get("tags", [])]
    assert len(ignored) <= len(code) / 4
    for cell in ignored:
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source))), cell.source


def test_no_cell_is_longer_than_a_screen(code):
    assert max(len([line for line in cell.source.splitlines() if line.strip()]) for cell in code) <= 35


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
