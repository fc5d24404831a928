"""Figures of 08_scaling. Each function takes plain arrays and numbers and returns a figure that is not shown yet."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt

from utils.course.figures.frame import new_figure, styled
from utils.plots import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION


@styled
def draw_spectra(spectra: dict[str, Sequence[float]]) -> plt.Figure:
    """Singular values, largest first, of the update made in the right way, and in two others."""
    figure, axes = new_figure(size=(7, 3.2))
    for (name, values), colour in zip(spectra.items(), (VERMILION, GREY, SKY), strict=True):
        axes.plot(values, "o-", ms=3, color=colour, label=name)
    axes.set(xlabel="number of the singular value", ylabel="singular value", ylim=(0, None))
    axes.legend(loc="lower left")
    return figure


@styled
def draw_loads(loads: dict[str, Sequence[float]]) -> plt.Figure:
    """For each way to share out, the work of each process, as multiples of an equal share."""
    figure, every = new_figure(len(loads), (8, 2.9), sharey=True)
    for axes, (name, load) in zip(every, loads.items(), strict=True):
        mean = sum(load) / len(load)
        colours = [VERMILION if value == max(load) else SKY for value in load]
        axes.bar(range(len(load)), [value / mean for value in load], color=colours)
        axes.axhline(1, color=GREY, ls="--", lw=1)
        axes.set(title=name, xlabel="process", xticks=range(len(load)))
        axes.grid(axis="x", visible=False)
    every[0].set_ylabel("work / equal share")
    return figure


@styled
def draw_memory(n: Sequence[int], held: dict[str, dict[str, Sequence[float]]], gpu: float) -> plt.Figure:
    """For each model bytes per process against their number, one line for each form; gpu: what one has."""
    figure, both = new_figure(len(held), (8, 3.4))
    for axes, (name, forms) in zip(both, held.items(), strict=True):
        largest = max(map(max, forms.values()))
        unit, factor = ("GB", 1e9) if largest > 1e9 else ("MB", 1e6)
        for (form, values), colour in zip(forms.items(), (BLUE, GREEN, ORANGE), strict=True):
            axes.loglog(n, [value / factor for value in values], "o-", ms=3, color=colour, label=form)
        if gpu < 100 * largest:
            axes.axhline(gpu / factor, color=GREY, ls="--", lw=1)
            axes.annotate("one GPU", (2, gpu / factor), ha="left", va="bottom", color=GREY)
        ticks = (10, 15, 20, 25) if unit == "MB" else (100, 1000, 10_000)
        axes.set(title=name, xlabel="processes", ylabel=f"{unit} in each process")
        axes.set_xticks((2, 16, 128, 1024), ("2", "16", "128", "1,024"))
        axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
    both[0].legend(loc="upper right", bbox_to_anchor=(1, 0.94))
    return figure


@styled
def draw_travel(tokens: Sequence[int], models: dict[str, dict]) -> plt.Figure:
    """For each model bytes sent in a layer against tokens in a pass: weights travel or tokens do; a dot where it is.

    models: by name, a dict with weights (bytes), tokens (a list of bytes) and here, (tokens, bytes).
    """
    figure, both = new_figure(len(models), (8, 3.3), sharey=True)
    for axes, (name, sent) in zip(both, models.items(), strict=True):
        axes.axhline(sent["weights"], color=ORANGE, lw=1.8, label="experts' weights travel")
        axes.loglog(tokens, sent["tokens"], color=VERMILION, lw=1.8, label="tokens travel")
        axes.plot(*sent["here"], "o", color="black", label="a usual pass")
        axes.set(title=name, xlabel="tokens of a process in a pass")
    both[0].set_ylabel("bytes that it sends, a layer")
    both[0].legend(loc="upper left")
    return figure


@styled
def draw_losses(runs: dict[str, Sequence[float]], killed: int) -> plt.Figure:
    """The loss of each step of each run, thick lines first; `killed`: the step at which one of them was cut off."""
    figure, axes = new_figure(size=(7, 3.2))
    for i, ((name, losses), colour) in enumerate(zip(runs.items(), (GREY, SKY, ORANGE, VERMILION), strict=False)):
        axes.plot(range(1, len(losses) + 1), losses, color=colour, lw=9 - 2.4 * i, label=name, solid_capstyle="butt")
    axes.axvline(killed, color="black", ls=":", lw=1)
    axes.annotate(" one process killed", (killed, max(runs[next(iter(runs))])), va="top")
    axes.set(xlabel="step", ylabel="training loss (nats per token)")
    axes.legend()
    return figure
