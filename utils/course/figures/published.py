"""Figures of 06_training's second half: runs on real stories, and what too few stories do."""

from __future__ import annotations

import matplotlib.pyplot as plt

from utils.course.figures.frame import new_figure, styled
from utils.plots import COLOUR, GREEN, GREY, ORANGE, SKY


@styled
def draw_published(runs: dict[str, list[dict]], epoch: float, yours: dict[str, list[dict]]) -> plt.Figure:
    """Validation loss of the published runs, training paler; dotted, each pass over their text; `yours` dashed."""
    figure, axes = new_figure(size=(8, 3.8))
    last = 0.0
    for rows_of, line, note in ((runs, "o-", ""), (yours, "s--", ", yours")):
        for name, rows in rows_of.items():
            tokens = [row["tokens"] / 1e6 for row in rows[1:]]
            axes.plot(tokens, [row["val_loss"] for row in rows[1:]], line, ms=3, color=COLOUR[name], label=name + note)
            if rows_of is runs:
                axes.plot(tokens, [row["loss"] for row in rows[1:]], color=COLOUR[name], alpha=0.35)
                last = max(last, tokens[-1])
    for n in range(1, 1 + int(1e6 * last / epoch)):
        axes.axvline(n * epoch / 1e6, color=GREY, ls=":", lw=1)
        axes.annotate(f"pass {n}", (n * epoch / 1e6, 4.3), color=GREY, ha="right", rotation=90, va="top", fontsize=9)
    axes.set(xlabel="million tokens", ylabel="loss (nats per token)", ylim=(0.8, 4.4))
    axes.legend(loc="lower left")
    return figure


@styled
def draw_by_heart(steps: list[int], curves: dict[str, tuple[list[float], list[float]]]) -> plt.Figure:
    """By number of stories, (training loss, validation loss) at each look."""
    figure, axes = new_figure(size=(7, 3.4))
    for (name, (training, validation)), colour in zip(curves.items(), (ORANGE, GREEN, SKY), strict=False):
        axes.plot(steps[1:], training[1:], color=colour, alpha=0.45, label=f"{name}, training")
        axes.plot(steps[1:], validation[1:], "o-", ms=3, color=colour, label=f"{name}, validation")
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.legend()
    return figure
