"""Evaluations side by side: every figure in its column, whatever each run has."""

import json
import math

import matplotlib.pyplot as plt
import pytest

from utils.evaluate import Evaluation
from utils.plots import plot_evaluations, save_figure
from utils.report import Evaluated, table, write_json

FOUND = Evaluation(
    loss=2.0, perplexity=math.exp(2), bits_per_byte=0.75, dropped=0.05, accuracy=0.5, dead_experts=0.125,
    tokens_per_second=12345.0, repetition=0.01, distinct=(0.1, 0.2, 0.3), coherent=0.9,
    faults={"ending": 0.25, "none": 0.75},
)  # fmt: skip
ONE = Evaluated(1250, 2_000_000, 1_200_000, "a", True, FOUND)
OTHER = Evaluated(7, 100, 100, "b", False, FOUND._replace(dropped=None, faults={"names": 0.5, "none": 0.5}))


def rows(runs: dict) -> dict[str, list[str]]:
    """The table as name -> values, cut at two spaces or more."""
    lines = [line.strip().split("  ") for line in table(runs).split("\n")]
    return {cells[0]: [cell.strip() for cell in cells[1:] if cell.strip()] for cells in lines[1:]}


def test_a_table_has_a_column_for_each_run_and_says_what_is_missing():
    found = rows({"runs/one": ONE, "runs/other": OTHER})
    assert found["bits per byte of the text"] == ["0.750", ">= 0.750"]  # a lower bound where something is not paid
    assert found["of them for what words leave out"] == ["0.050", "not paid"]
    assert found["told: coherent (built-in grammar)"] == ["90.0%", "not judged"]
    assert found["fault of ending"] == ["25.0%", "not judged"] and found["fault of names"] == ["not judged", "50.0%"]
    assert found["none of these faults"] == ["75.0%", "50.0%"]
    assert {len(values) for values in found.values()} == {2}


def test_the_columns_stand_below_the_names_of_the_runs():
    header, *lines = table({"a run with a long name": ONE, "b": OTHER}).split("\n")
    assert {len(line) for line in lines} == {len(header)}
    assert header.index("long name") + len("long name") == lines[0].index("1,250") + len("1,250")


def test_json_holds_every_figure_as_it_is(tmp_path):
    write_json({"one": ONE, "other": OTHER}, tmp_path / "found.json", {"stories": 3})
    state = json.loads((tmp_path / "found.json").read_text())
    assert state["settings"] == {"stories": 3} and list(state["runs"]) == ["one", "other"]
    found = state["runs"]["one"]["found"]
    assert {**found, "distinct": tuple(found["distinct"])} == FOUND._asdict()
    assert state["runs"]["other"]["step"] == 7


@pytest.mark.parametrize("kind, begins", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_figure_is_drawn_for_any_number_of_runs(tmp_path, kind, begins):
    for n in (1, 2, 5):
        figure = plot_evaluations({f"run {i}": OTHER if i % 2 else ONE for i in range(n)})
        save_figure(figure, tmp_path / f"found.{kind}")
        assert (tmp_path / f"found.{kind}").read_bytes().startswith(begins)
        plt.close(figure)
        bars = figure.axes[0].patches
        assert len(bars) == 2 * n and bars[0].get_width() == pytest.approx(0.70)  # the model's part; 0.05 beside it
