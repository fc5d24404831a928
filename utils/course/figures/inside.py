"""Figures of 09_inside_kimi_k2. Each function takes plain arrays and numbers and returns a figure, not shown yet.

What is of the reader's own model is blue, what is of a published one vermilion or green.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch

from utils.course.figures.frame import new_figure, styled
from utils.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

WHOSE = {"yours": BLUE, "Kimi K2": VERMILION, "Moonlight": GREEN}


@styled
def draw_parts(parameters: dict[str, dict[str, int]]) -> plt.Figure:
    """For each model a bar of the shares that its parts have of all parameters."""
    figure, axes = new_figure(size=(8, 2.9))
    names, colours = list(parameters), (VERMILION, BLUE, SKY, ORANGE, GREY)
    left = [0.0] * len(names)
    for part, colour in zip(parameters[names[0]], colours, strict=True):
        shares = [100 * counts[part] / sum(counts.values()) for counts in parameters.values()]
        axes.barh(names, shares, 0.62, left=left, color=colour, label=part)
        for y, (share, start) in enumerate(zip(shares, left, strict=True)):
            if share > 7:
                middle = dict(ha="center", va="center", color="white", weight="bold")
                axes.text(start + share / 2, y, f"{share:.0f} %", **middle)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.set(xlabel="% of all parameters", xlim=(0, 100))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.24), ncols=3)
    return figure


@styled
def draw_rounding(
    sizes: Sequence[float], lost: dict[str, Sequence[float]], typical: dict[str, Sequence[float]]
) -> plt.Figure:
    """The most that rounding loses around each size, relative to it, by form; bands: nine tenths of a matrix."""
    figure, axes = new_figure(size=(8, 3.6))
    for (name, (low, high)), colour in zip(typical.items(), (ORANGE, GREEN), strict=True):
        axes.axvspan(low, high, color=colour, alpha=0.18, lw=0)
        axes.text((low * high) ** 0.5, 1.25, f"weights,\n{name}", color="black", ha="center", va="bottom", fontsize=9)
    step = len(sizes) // 100
    for (name, values), colour in zip(lost.items(), (VERMILION, GREY), strict=True):
        most = [max(values[i : i + 2 * step]) for i in range(0, len(values) - step, step)]
        axes.plot(sizes[step::step][: len(most)], most, color=colour, lw=2, label=name)
    axes.axvline(2**-6, color="black", ls=":", lw=1.2)
    axes.set(xscale="log", yscale="log", xlim=(sizes[0], sizes[-1]), ylim=(1e-3, 1.1), xlabel="size of the number",
             ylabel="largest error, relative to it")  # fmt: skip
    axes.legend(loc="center", bbox_to_anchor=(0.55, 0.78))
    return figure


@styled
def draw_outlier(times: Sequence[float], errors: dict[str, Sequence[float]]) -> plt.Figure:
    """The relative error of all other weights against the size of one, by form."""
    figure, axes = new_figure(size=(7, 3.3))
    for (name, values), colour, line in zip(errors.items(), (GREEN, VERMILION, GREY), ("o-", "s-", "^--"), strict=True):
        axes.plot(times, values, line, ms=5, color=colour, label=name)
    axes.set(xscale="log", yscale="log", xlabel="the one weight, times", ylabel="error of the others")
    axes.set_ylim(0.0012, 1.6)
    axes.legend(loc="lower right")
    return figure


@styled
def draw_needed(
    grid: Sequence[int], by_chance: dict[str, Sequence[float]], lengths: Sequence[int], measured: Sequence[float]
) -> plt.Figure:
    """Share of a layer's experts that so many tokens need: by chance for each model, and measured for the reader's."""
    figure, axes = new_figure(size=(7, 3.4))
    for name, shares in by_chance.items():
        axes.plot(grid, [100 * share for share in shares], color=WHOSE[name], label=f"{name}, by chance")
    axes.plot(lengths, [100 * share for share in measured], "o", color=BLUE, label="yours, measured")
    axes.axvline(10, color=GREY, ls=":", lw=1)
    axes.set(xscale="log", xlabel="tokens", ylabel="% of a layer's experts", ylim=(0, 104), xlim=(0.9, 560))
    axes.set_xticks(grid, [str(n) for n in grid])
    axes.minorticks_off()
    axes.legend(loc="lower right")
    return figure


@styled
def draw_biases(biases: dict[str, torch.Tensor]) -> plt.Figure:
    """For each model a dot for every expert: its layer, its bias less the layer's mean."""
    figure, every = new_figure(len(biases), (7.5, 3.2), squeeze=False)
    for axes, (name, values) in zip(every[0], biases.items(), strict=True):
        for layer, row in enumerate(values.tolist(), 1):
            dots = dict(ms=5 if len(values) < 12 else 2, alpha=0.55, color=WHOSE[name], mew=0)
            axes.plot([layer] * len(row), row, "o", **dots)
        axes.axhline(0, color=GREY, lw=1)
        axes.set(title=name, xlabel="layer")
        if len(values) < 12:
            axes.set_xticks(range(1, len(values) + 1))
            axes.set_xlim(0.4, len(values) + 0.6)
    every[0][0].set_ylabel("bias less the layer's mean")
    return figure


@styled
def draw_choices(loads: torch.Tensor, sentences: Sequence[str], title: str) -> plt.Figure:
    """(sentences, E) counts as a heat map."""
    figure, axes = new_figure(size=(8, 3.6))
    image = axes.imshow(loads.tolist(), aspect="auto", cmap="viridis", interpolation="nearest")
    axes.set(title=title, xlabel="expert")
    axes.set_yticks(range(len(sentences)), sentences)
    if loads.shape[1] <= 40:
        axes.set_xticks(range(loads.shape[1]))
    axes.grid(visible=False)
    figure.colorbar(image, label="tokens", ticks=range(int(loads.max()) + 1))
    return figure


@styled
def draw_head_logits(logits: dict[str, Sequence[float]], tau: float) -> plt.Figure:
    """For each model the largest logit of each head, sorted, and the bound of QK-Clip."""
    figure, every = new_figure(len(logits), (7, 3), squeeze=False, sharey=True)
    for axes, (name, values) in zip(every[0], logits.items(), strict=True):
        axes.bar(range(1, len(values) + 1), sorted(values, reverse=True), 0.6, color=WHOSE[name])
        axes.axhline(tau, color="black", ls="--", lw=1)
        axes.annotate("QK-Clip acts above this", (0.98, tau), xycoords=("axes fraction", "data"), ha="right",
                      va="bottom")  # fmt: skip
        axes.set(title=name, xlabel="head, largest first", ylim=(0, 1.15 * max(tau, *values)))
        axes.grid(axis="x", visible=False)
        if len(values) <= 16:
            axes.set_xticks(range(1, len(values) + 1))
    every[0][0].set_ylabel("largest logit")
    return figure


@styled
def draw_spectra(spectra: dict[str, dict[str, Sequence[Sequence[float]]]]) -> plt.Figure:
    """For each matrix singular values relative to the largest, a line for each run: by optimizer, or untrained."""
    figure, every = new_figure(len(spectra), (8, 3.3), sharey=True, squeeze=False)
    names = {"muonclip": "trained by Muon", "adamw": "trained by AdamW", "untrained": "drawn at random"}
    looks = {"muonclip": (VERMILION, "-"), "adamw": (GREY, "-"), "untrained": ("black", ":")}
    for axes, (title, kinds) in zip(every[0], spectra.items(), strict=True):
        for optimizer, runs in kinds.items():
            for i, values in enumerate(runs):
                colour, line = looks[optimizer]
                label = names[optimizer] if i == 0 else None
                order = 3 if optimizer == "untrained" else 2  # the dots above the lines
                axes.plot(range(1, len(values) + 1), values, line, color=colour, lw=1.6, alpha=0.85, zorder=order,
                          label=label)  # fmt: skip
        axes.set(title=title, xlabel="number of the singular value", ylim=(0, 1.03))
    every[0][0].set_ylabel("part of the largest")
    every[0][-1].legend(loc="upper right")
    return figure


@styled
def draw_latents(sizes: dict[str, list[list[float]]], shares: dict[str, Sequence[float]]) -> plt.Figure:
    """Left the size of the latents by place, a line for each sentence; right what the first directions hold."""
    figure, (left, right) = new_figure(2, (8, 3.2))
    for name, lines in sizes.items():
        for i, line in enumerate(lines):
            left.plot(range(1, len(line) + 1), line, "o-", ms=3, lw=1, alpha=0.6, color=WHOSE[name],
                      label=name if i == 0 else None)  # fmt: skip
        right.plot([100 * (i + 1) / len(shares[name]) for i in range(len(shares[name]))],
                   [100 * share for share in shares[name]], "o-", ms=3, color=WHOSE[name], label=name)  # fmt: skip
    left.set(xlabel="place in the sentence", ylabel="size of the latent", ylim=(0, None))
    right.plot([0, 100], [0, 100], color=GREY, ls="--", lw=1, label="all alike")
    right.set(xlabel="% of the directions, largest first", ylabel="% of the latents' squares", ylim=(0, 103))
    right.legend(loc="lower right")
    return figure


@styled
def draw_streams(streams: dict[str, torch.Tensor]) -> plt.Figure:
    """For each model the size of the stream behind each layer, (L, T): the first token, the range of the others."""
    figure, every = new_figure(len(streams), (7.5, 3.2), squeeze=False)
    for axes, (name, values) in zip(every[0], streams.items(), strict=True):
        layers, others = list(range(len(values))), values[:, 1:]
        low, high = others.amin(dim=1).tolist(), others.amax(dim=1).tolist()
        axes.fill_between(layers, low, high, color=WHOSE[name], alpha=0.2, lw=0)
        axes.plot(layers, others.median(dim=1).values.tolist(), "o-", ms=4, color=WHOSE[name], label="the others")
        axes.plot(layers, values[:, 0].tolist(), "s--", ms=4, color=PURPLE, label="first token")
        axes.set(title=name, xlabel="behind layer")
        if values.max() > 20 * values.min():
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        if len(layers) < 12:
            axes.set_xticks(layers)
        axes.legend()
    every[0][0].set_ylabel("size of the residual stream")
    return figure
