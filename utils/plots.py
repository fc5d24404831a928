"""Figures that more than one notebook or the command line draws, in one style (Okabe and Ito's palette)."""

from __future__ import annotations

import gc
import sys
from itertools import cycle
from pathlib import Path

import matplotlib

if "matplotlib.pyplot" not in sys.modules and "ipykernel" not in sys.modules:
    matplotlib.use("Agg")  # files only: works without a screen

import matplotlib.pyplot as plt

from utils.files import write_atomically
from utils.judge import FAULT_LABELS

PALETTE = BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, YELLOW = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#F0E442",
)  # fmt: skip
GREY = "#808080"
COLOUR = {"nano": BLUE, "k2": VERMILION}  # of the two architectures, everywhere
FIGURES = ("png", "pdf", "svg")
STYLE = {
    "figure.figsize": (7, 3.6), "figure.dpi": 100, "savefig.bbox": "tight", "font.size": 10, "axes.grid": True,
    "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
}  # fmt: skip


def plot_loss(history, baselines: dict[str, float] | None = None, colour: str = BLUE) -> plt.Figure:
    """Training and validation loss of a `History` against steps; `baselines` are horizontal reference lines."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        draw_loss(axes, history, baselines, colour)
    return figure


def draw_loss(axes: plt.Axes, history, baselines: dict[str, float] | None = None, colour: str = BLUE) -> None:
    """`plot_loss` into given axes."""
    rows = history.rows
    trained = [row for row in rows if row["loss"] is not None]
    axes.plot(
        [r["step"] for r in trained], [r["loss"] for r in trained], color=colour, alpha=0.4, label="training (mean)"
    )
    axes.plot([r["step"] for r in rows], [r["val_loss"] for r in rows], "o-", ms=3, color=colour, label="validation")
    for name, loss in (baselines or {}).items():
        axes.axhline(loss, color=GREY, ls="--", lw=1)
        axes.annotate(name, (1, loss), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=GREY)
    axes.set(xlabel="step", ylabel="loss (nats per token)", title="Loss")
    axes.legend()


def plot_evaluations(runs: dict) -> plt.Figure:
    """Bits per byte of each run, with what words leave out apart, and the faults of its stories. `runs`: Evaluated."""
    names, found = list(runs), [run.found for run in runs.values()]
    left_out = [result.dropped or 0.0 for result in found]
    model = [result.bits_per_byte - dropped for result, dropped in zip(found, left_out, strict=True)]
    judged = dict.fromkeys(fault for result in found for fault in result.faults or {})
    shares = {"repeated four-word sequences": [result.repetition for result in found]}
    for fault in judged:
        shares[FAULT_LABELS[fault]] = [(result.faults or {}).get(fault, 0.0) for result in found]
    height = 0.8 / len(names)
    with plt.rc_context({**STYLE, "figure.figsize": (10, 1.8 + 0.35 * max(len(shares), 2 * len(names)))}):
        figure, (cost, faults) = plt.subplots(1, 2, layout="constrained")
        cost.barh(names, model, 0.5, color=BLUE, label="the tokens")
        bars = cost.barh(names, left_out, 0.5, left=model, color=ORANGE, label="what words leave out")
        cost.bar_label(bars, [f"{result.bits_per_byte:.3f}" for result in found], padding=3)
        cost.set(xlabel="bits per byte of the text", title="What unseen texts cost")
        for i, (name, colour) in enumerate(zip(names, cycle(PALETTE), strict=False)):
            places = [row + i * height for row in range(len(shares))]
            faults.barh(places, [100 * values[i] for values in shares.values()], height, color=colour, label=name)
        faults.set_yticks([row + 0.4 - height / 2 for row in range(len(shares))], list(shares))
        faults.set(xlabel="% of the stories told", title="What its stories are like")
        for axes in (cost, faults):
            axes.invert_yaxis()
            axes.grid(axis="y", visible=False)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
    return figure


def save_figure(figure: plt.Figure, path: str | Path) -> None:
    """Write a figure as its ending says, whole or not at all. Raises ValueError for an ending not in FIGURES."""
    kind = figure_kind(path)
    write_atomically(path, lambda file: figure.savefig(file, format=kind))


def figure_kind(path: str | Path) -> str:
    """The kind of figure that the ending of a file tells. Raises ValueError for one not in FIGURES."""
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in FIGURES:
        raise ValueError(f"the figure's file is {str(path)!r}, its ending must be one of {', '.join(FIGURES)}")
    return kind


class LossFigure:
    """The loss curve while training runs, for `train(..., show=LossFigure(path))`.

    Written to `path`, and redrawn in place inside a notebook. baselines: losses, by name, to draw as lines.
    """

    def __init__(self, path: Path | None, baselines: dict[str, float] | None = None, colour: str = BLUE):
        self.path, self.baselines, self.colour = path, baselines, colour
        self.handle = None

    def __call__(self, history) -> None:
        in_notebook = "ipykernel" in sys.modules
        if not in_notebook and self.path is None:
            return
        figure = plot_loss(history, self.baselines, self.colour)
        if self.path is not None:
            save_figure(figure, self.path)
        if in_notebook:
            from IPython.display import display

            if self.handle is None:
                self.handle = display(figure, display_id=True)
            else:
                self.handle.update(figure)
        plt.close(figure)
        gc.collect()  # a figure refers to itself, and Python lets dozens of them gather before it looks
