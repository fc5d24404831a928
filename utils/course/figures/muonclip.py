"""Figures of 05_muonclip. Each function takes plain arrays and numbers and returns a figure that is not shown yet."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import torch

from utils.course.figures.frame import new_figure, styled
from utils.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

STEPS = (GREY, SKY, BLUE, GREEN, ORANGE, VERMILION)  # Newton-Schulz steps, 0 to 5
BAND = (0.68, 1.2024)  # where five of them bring what began at 0.01 or above


@styled
def draw_valley(paths: dict[str, torch.Tensor], steepness: float) -> plt.Figure:
    """Paths (steps + 1, 2) down the valley (x^2 + steepness y^2) / 2, a panel for each."""
    figure, panels = new_figure(len(paths), (8.6, 2.6), sharey=True)
    x, y = torch.meshgrid(torch.linspace(-4.6, 1.6, 121), torch.linspace(-1.4, 1.4, 81), indexing="xy")
    height = 0.5 * (x**2 + steepness * y**2)
    for axes, (name, path), colour in zip(panels, paths.items(), (GREY, ORANGE, SKY, BLUE), strict=False):
        axes.contour(x, y, height, levels=[0.1, 1, 3, 6, 10, 16], colors=GREY, linewidths=0.5)
        axes.plot(*path.T, "o-", ms=3, lw=1.2, color=colour)
        axes.plot(*path[0], "s", ms=7, color=colour)
        axes.plot(0, 0, "k+", ms=10)
        axes.set(title=name, xlabel="x, flat", xlim=(-4.6, 1.6), ylim=(-1.4, 1.4))
        axes.grid(visible=False)
    panels[0].set_ylabel("y, steep")
    return figure


@styled
def draw_decay(means: dict[str, list[list[float]]], sizes: tuple[float, float]) -> plt.Figure:
    """Mean weight over steps: for each place of the decay, one curve for each size of the noise."""
    figure, axes = new_figure()
    for (name, curves), colour in zip(means.items(), (BLUE, GREY), strict=False):
        for curve, size, line in zip(curves, sizes, ("-", "--"), strict=True):
            axes.plot(curve, color=colour, ls=line, lw=1.8, label=f"{name}, gradients of size {size:g}")
    axes.set(xlabel="step", ylabel="mean of 1,000 weights", ylim=(-0.03, 1.03))
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.68))
    return figure


@styled
def draw_spectra(spectra: dict[str, torch.Tensor], colours=STEPS, relative: bool = False, band: bool = False):
    """Singular values, strongest first, on a log axis; relative to the largest, or with the band around 1."""
    figure, axes = new_figure()
    for (name, values), colour in zip(spectra.items(), colours, strict=False):
        values = values / values[0] if relative else values
        axes.semilogy(range(1, len(values) + 1), values, color=colour, lw=1.8, label=name)
    if band:
        axes.axhspan(*BAND, color=GREY, alpha=0.2, lw=0)
    axes.set(xlabel="direction, strongest first", ylabel="singular value" + " / largest" * relative, ylim=(1e-5, 3))
    axes.legend(loc="lower left")
    return figure


@styled
def draw_polynomial(inputs: torch.Tensor, outputs: list[torch.Tensor]) -> plt.Figure:
    """What one step, two steps and so on make of a singular value; on the right the part near zero."""
    figure, (whole, near) = new_figure(2, (8, 3.4), width_ratios=(3, 2), sharey=True)
    for axes, part in ((whole, inputs <= 1), (near, inputs <= 0.03)):
        for n, (values, colour) in enumerate(zip(outputs, STEPS[1:], strict=False), start=1):
            name = f"{n} step{'s' * (n > 1)}"
            axes.plot(inputs[part], values[part], color=colour, lw=2.2 if n == len(outputs) else 1, label=name)
        axes.axhspan(*BAND, color=GREY, alpha=0.2, lw=0)
    whole.set(xlabel="singular value before", ylabel="after", title="all values")
    near.set(xlabel="singular value before", title="near zero")
    near.axvline(0.01, color=GREY, ls=":", lw=1)
    whole.legend(ncols=2, loc="lower right")
    return figure


@styled
def draw_race(
    rates: dict[str, list[float]], ends: dict[str, torch.Tensor], curves: dict[str, torch.Tensor],
    seconds: dict[str, float], bigram: float,
) -> plt.Figure:  # fmt: skip
    """Left: validation loss (rates, seeds) against the rate. Middle, right: training loss (seeds, steps) of the best
    rate against steps and against seconds; thin lines are seeds."""
    figure, (sweep, by_step, by_clock) = new_figure(3, (8.8, 3.2))
    for name, colour in zip(rates, (BLUE, VERMILION), strict=False):
        means = ends[name].mean(1)
        spread = [means - ends[name].min(1).values, ends[name].max(1).values - means]
        sweep.errorbar(rates[name], means, [side.tolist() for side in spread], color=colour, marker="o", capsize=3)
        for axes, length in ((by_step, curves[name].shape[1]), (by_clock, seconds[name])):
            places = torch.linspace(0, length, curves[name].shape[1])
            for curve in curves[name]:
                axes.plot(places, curve, color=colour, lw=0.6, alpha=0.5)
            axes.plot(places, curves[name].mean(0), color=colour, lw=2, label=name)
    for axes in (sweep, by_step, by_clock):
        axes.axhline(bigram, color=GREY, ls=":", lw=1.3)
    by_step.annotate("bigram", (0.02, bigram), xycoords=("axes fraction", "data"), color=GREY, va="bottom")
    sweep.set(xscale="log", xlabel="peak learning rate", ylabel="loss, nats per word", title="validation")
    sweep.set_xticks([0.01, 0.03, 0.1])
    sweep.get_xaxis().set_major_formatter("{x:g}")
    sweep.minorticks_off()
    by_step.set(xlabel="step", title="training, by steps", ylim=(1.6, 4))
    by_clock.set(xlabel="seconds", title="training, by the clock", ylim=(1.6, 4))
    by_clock.tick_params(labelleft=False)
    by_step.legend()
    return figure


@styled
def draw_logits_and_loss(runs: dict[str, list[tuple[list[float], list[float]]]], tau: float, limits) -> plt.Figure:
    """By name, the seeds' (largest logit, loss) over steps: left on a log axis with a line at tau, right smoothed."""
    figure, (left, right) = new_figure(2, (8, 3.4))
    for (name, seeds), colour in zip(runs.items(), (GREY, VERMILION, BLUE), strict=False):
        for i, (largest, losses) in enumerate(seeds):
            label = name if i == 0 else None
            left.semilogy(largest, color=colour, lw=1.1)
            right.plot(smooth(losses), color=colour, lw=1.1, label=label)
    left.axhline(tau, color="black", ls="--", lw=1)
    left.annotate(f"tau = {tau:g}", (1, tau), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    left.set(xlabel="step", ylabel="largest logit of all heads")
    right.set(xlabel="step", ylabel="training loss, nats per word", ylim=limits)
    right.legend()
    return figure


def smooth(losses: list[float], over: int = 10) -> torch.Tensor:
    """Running mean over `over` steps."""
    return torch.tensor(losses).unfold(0, over, 1).mean(1)


@styled
def draw_damage(ratios: dict[str, torch.Tensor], hot: torch.Tensor) -> plt.Figure:
    """Each head's largest logit after clipping, over what it should be: min(before, tau). 1 is right."""
    figure, axes = new_figure(size=(8, 3.6))
    heads = len(hot)
    for i in torch.nonzero(hot).flatten().tolist():
        axes.axvspan(i - 0.5, i + 0.5, color=ORANGE, alpha=0.15, lw=0)
    marks = zip(ratios.items(), (VERMILION, PURPLE, SKY, GREEN, BLUE), "oDs^v", strict=False)
    for i, ((name, values), colour, mark) in enumerate(marks):
        places = torch.arange(heads) + 0.13 * (i - (len(ratios) - 1) / 2)
        axes.plot(places, values, mark, color=colour, ms=7, label=name)
    axes.axhline(1, color=GREY, ls="--", lw=1)
    names = [f"layer {1 + i // (heads // 2)}\nhead {1 + i % (heads // 2)}" for i in range(heads)]
    top = max(1.15, 1.1 * max(values.max().item() for values in ratios.values()))
    axes.set(ylabel="largest logit / what it should be", xticks=range(heads), ylim=(0, math.ceil(10 * top) / 10))
    axes.set_xticklabels(names)
    axes.legend(ncols=len(ratios), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9, columnspacing=1)
    return figure


@styled
def draw_heads(largest: torch.Tensor, of_adamw: torch.Tensor, limit: float = 100.0) -> plt.Figure:
    """The largest logit of each head, (steps, L, H), on a log axis, a colour for each layer; grey AdamW's, (steps,)."""
    figure, axes = new_figure()
    for layer, colour in zip(range(largest.shape[1]), (SKY, VERMILION), strict=False):
        for head in range(largest.shape[2]):
            label = f"Muon, layer {layer + 1}" if head == 0 else None
            axes.semilogy(largest[:, layer, head], color=colour, lw=1.1, label=label)
    axes.semilogy(of_adamw, color=GREY, lw=2, label="AdamW, both layers")
    axes.axhline(limit, color="black", ls="--", lw=1)
    axes.set(xlabel="step", ylabel="largest logit of a head")
    axes.legend(loc="upper left")
    return figure
