"""The figures of chapter 4: activations, the product of value and gate, errors, learning rates, seeds, dead units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np

from utils.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, STYLE, VERMILION

COLOURS = {
    "sigmoid": GREY, "tanh": PURPLE, "ReLU": ORANGE, "GELU": GREEN, "SiLU": SKY, "bilinear": VERMILION, "SwiGLU": BLUE,
}  # fmt: skip
PAIR_COLOURS = GREY, ORANGE, GREEN, BLUE  # of the four activations: none, ReLU, GELU, SiLU


def closed(figure: plt.Figure) -> plt.Figure:
    """The figure, no longer known to pyplot, which would show it a second time."""
    plt.close(figure)
    return figure


def draw_bends(x, values: Mapping[str, Sequence], slopes: Mapping[str, Sequence]) -> plt.Figure:
    """Activation functions (left) and their slopes (right) at the points x, by name."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
        for name in values:
            style = dict(color=COLOURS[name], lw=1.8, ls="--" if name in ("sigmoid", "tanh") else "-")
            left.plot(x, values[name], label=name, **style)
            right.plot(x, slopes[name], **style)
        left.set(xlabel="x", ylabel="activation(x)", title="Five activation functions", ylim=(-1.2, 3))
        right.set(xlabel="x", ylabel="slope", title="and their slopes")
        left.legend()
    return closed(figure)


def draw_gate(value: float, gate: float, silu) -> plt.Figure:
    """value * silu(gate) along the gate (left), and for all pairs (right), with a dot at the pair that is given."""
    g = np.linspace(-4, 4, 81)
    open_ = np.array([silu(number) for number in g])
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
        left.plot(g, value * open_, color=BLUE)
        left.plot(gate, value * silu(gate), "o", color=VERMILION)
        left.set(xlabel="gate", ylabel="value · SiLU(gate)", ylim=(-16, 16), title=f"at value {value:.1f}")
        drawn = right.imshow(np.outer(g, open_), extent=(-4, 4, -4, 4), origin="lower", cmap="RdBu_r", clim=(-16, 16))
        right.plot(gate, value, "o", color=VERMILION, mec="white")
        right.set(xlabel="gate", ylabel="value", title="for all values")
        right.grid(False)
        figure.colorbar(drawn, ax=right, label="product")
    return figure


def draw_learning(curves: Mapping[str, np.ndarray], every: int) -> plt.Figure:
    """Errors (S, rows) of S networks of each kind, noted after 0, `every`, 2 `every`, ... steps: median and range."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
        for name, errors in curves.items():
            errors = np.asarray(errors)
            steps = every * np.arange(errors.shape[1])
            axes.plot(steps, np.median(errors, axis=0), color=COLOURS[name], lw=1.8, label=name)
            axes.fill_between(steps, errors.min(axis=0), errors.max(axis=0), color=COLOURS[name], alpha=0.15, lw=0)
        axes.set(yscale="log", xlabel="step", ylabel="error on new points (RMS)", title="Learning z = x · y")
        axes.legend(ncols=2)
    return closed(figure)


def draw_errors(errors: Mapping[str, np.ndarray], reach: float, trained: float, most: float) -> plt.Figure:
    """Error maps (n, n) over the square from -reach to reach; the box ends at `trained`, colours at `most`."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(errors), figsize=(8, 2.7), layout="constrained")
        for panel, (name, error) in zip(panels, errors.items(), strict=True):
            place = dict(extent=(-reach, reach, -reach, reach), origin="lower")
            drawn = panel.imshow(error, cmap="RdBu_r", clim=(-most, most), **place)
            corners = trained * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
            panel.plot(*corners.T, color="black", lw=1)
            panel.set(title=name, xlabel="x", ylabel="y")
            panel.grid(False)
        figure.colorbar(drawn, ax=panels, label="network − x · y")
    return closed(figure)


def draw_rates(
    swept: Mapping[str, Mapping[float, Sequence[float]]], pairs: Mapping[str, tuple[str, str]]
) -> plt.Figure:
    """Final losses of the sweep against the rate; pairs: the kind without a gate and that with one, by activation."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(pairs), figsize=(9, 3), layout="constrained", sharey=True)
        for panel, (activation, names), colour in zip(panels, pairs.items(), PAIR_COLOURS, strict=False):
            for name, style in zip(names, (dict(ls="--", mfc="white"), dict(ls="-")), strict=True):
                rates = sorted(swept[name])
                means = [np.mean(swept[name][rate]) for rate in rates]
                panel.plot(rates, means, marker="o", ms=5, color=colour, lw=1.6, label=name, **style)
            panel.set_xscale("log")
            panel.set_xticks(rates, [f"{rate:g}".removeprefix("0") for rate in rates], fontsize=9)
            panel.minorticks_off()
            panel.set(xlabel="peak rate", title=f"activation: {activation}")
            panel.legend()
        panels[0].set(ylabel="loss (nats per token)")
    return closed(figure)


def draw_pairs(ends: Mapping[str, Sequence[float]], pairs: Mapping[str, tuple[str, str]]) -> plt.Figure:
    """Final losses with and without a gate, by activation: a thin line for each seed, a bar for the mean."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
        ticks = []
        for i, ((without, gated), colour) in enumerate(zip(pairs.values(), PAIR_COLOURS, strict=False)):
            places = 2.6 * i, 2.6 * i + 1
            ticks += zip(places, (without, gated), strict=True)
            for two in zip(ends[without], ends[gated], strict=True):
                axes.plot(places, two, color=colour, alpha=0.5, lw=0.9)
            for place, name, face in zip(places, (without, gated), ("white", colour), strict=True):
                axes.plot([place] * len(ends[name]), ends[name], "o", ms=5, color=colour, mfc=face)
                axes.plot([place - 0.32, place + 0.32], [np.mean(ends[name])] * 2, color="black", lw=2)
        axes.set_xticks(*zip(*ticks, strict=True))
        axes.grid(axis="x", visible=False)
        axes.set(ylabel="loss (nats per token)", title="Equal weights, each at its best rate: hollow without a gate")
    return closed(figure)


def draw_live(
    curves: Mapping[str, Sequence[float]], steps: Sequence[int], baselines: Mapping[str, float]
) -> plt.Figure:
    """Losses on held-out text while training, by kind; baselines are horizontal reference lines."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
        for name, losses in curves.items():
            axes.plot(steps, losses, ".-", color=COLOURS[name], lw=1.6, label=name)
        for name, loss in baselines.items():
            axes.axhline(loss, color=GREY, ls="--", lw=1)
            axes.annotate(name, (0.01, loss), xycoords=("axes fraction", "data"), va="bottom", color=GREY)
        axes.set(xlabel="step", ylabel="loss (nats per token)", title="The same activation, with a gate and without")
        axes.legend()
    return closed(figure)


def draw_dead(
    toy: Mapping[float, Sequence[float]],
    no_bias: Mapping[float, Sequence[float]],
    model: Mapping[float, Sequence[float]],
    steps: Sequence[int],
) -> plt.Figure:
    """Shares of dead ReLU units by learning rate: of small networks at every step, of the model at `steps`."""
    colours = SKY, ORANGE, PURPLE, GREEN, VERMILION, BLUE
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 3, figsize=(9.5, 3.2), layout="constrained", sharey=True)
        for panel, shares_by_rate in zip(panels, (toy, no_bias), strict=False):
            for (rate, shares), colour in zip(shares_by_rate.items(), colours, strict=False):
                panel.plot([100 * share for share in shares], color=colour, label=f"rate {rate:g}")
        for (_, shares), colour in zip(model.items(), colours, strict=False):
            panels[2].plot(steps, [100 * share for share in shares], ".-", color=colour)
        for panel, rates in zip(panels[1:], (no_bias, model), strict=True):
            told = f"{len(rates)} rates, {min(rates):g} to {max(rates):g}:\nall lines lie at the bottom"
            panel.text(0.5, 0.12, told, transform=panel.transAxes, ha="center")
        panels[0].set(xlabel="step", ylabel="dead ReLU units (%)", title="z = x · y, with a bias", ylim=(-3, 103))
        panels[1].set(xlabel="step", title="z = x · y, no bias")
        panels[2].set(xlabel="step", title="Language model, no bias")
        panels[0].legend(fontsize=9)
    return closed(figure)


def draw_openings(openings: np.ndarray, tokens: Sequence[str], marks: Mapping[int, str]) -> plt.Figure:
    """SiLU(gate) of some units (T, units) for each token of a text; marks: names of some of the columns."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.5, 1.2 + 0.27 * len(tokens)), layout="constrained")
        drawn = axes.imshow(openings, cmap="viridis", aspect="auto")
        axes.set_yticks(range(len(tokens)), tokens)
        for column, name in marks.items():
            place = dict(xycoords=("data", "axes fraction"), ha="center", va="bottom")
            axes.annotate(f"{name}\n▼", (column, 1.0), color=VERMILION, **place)
        axes.set(xlabel="hidden units, the most changeable first")
        axes.grid(False)
        figure.colorbar(drawn, label="SiLU(gate)")
    return closed(figure)
