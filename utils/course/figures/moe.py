"""Figures of chapter 3. Each takes plain numbers and gives a figure that is shown once."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from utils.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, STYLE, VERMILION, YELLOW

COLOURS = [BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, YELLOW, GREY]  # of the experts, in every figure


def panels(n: int, width: float, height: float, **options) -> tuple[plt.Figure, np.ndarray]:
    """A closed figure, so that it is shown by who returns it and not a second time, and its n panels."""
    figure, axes = plt.subplots(1, n, figsize=(width, height), layout="constrained", squeeze=False, **options)
    plt.close(figure)
    return figure, axes[0]


def draw_directions(directions, x, words: Sequence[str], chosen) -> plt.Figure:
    """The experts' directions (E, 2) as arrows, the words (N, 2) as dots in the colours of their two experts (N, 2)."""
    with plt.rc_context(STYLE):
        figure, (axes,) = panels(1, 6, 4)
        for e, (a, b) in enumerate(np.asarray(directions).tolist()):
            axes.arrow(0, 0, 0.9 * a, 0.9 * b, color=COLOURS[e], width=0.06, length_includes_head=True)
            axes.text(1.55 * a, 1.3 * b, f"expert {e}", color=COLOURS[e], ha="center", va="center", weight="bold")
        for word, (a, b), (first, second) in zip(
            words, np.asarray(x).tolist(), np.asarray(chosen).tolist(), strict=True
        ):
            axes.plot(a, b, "o", ms=15, color=COLOURS[first], mec=COLOURS[second], mew=5)
            name = "full stop" if word == "." else word
            axes.annotate(name, (a, b), xytext=(0, 14), textcoords="offset points", ha="center", size=11)
        axes.set(xlim=(-3.2, 4), ylim=(-3, 3), xlabel="first number of the vector", ylabel="second number")
    return figure


def draw_moved(words: Sequence[str], moved: dict[str, Sequence[float]]) -> plt.Figure:
    """How far each position's output moved when the last word was changed, a panel for each softmax."""
    with plt.rc_context(STYLE):
        figure, axes = panels(len(moved), 8, 2.8, sharey=True)
        for panel, (name, distance) in zip(axes, moved.items(), strict=True):
            panel.bar(words, distance, color=[VERMILION] * (len(words) - 1) + ["#cccccc"])
            panel.set(title=f"softmax {name}", ylim=(0, 2))
            panel.tick_params(axis="x", rotation=60)
        axes[0].set_ylabel("change of the output")
    return figure


def draw_cost(experts: Sequence[int], flops: dict[str, list[float]], seconds: dict[str, list[float]]) -> plt.Figure:
    """FLOPs and milliseconds per token of the forms of dispatch against the number of experts, both axes in powers."""
    colours = dict(zip(seconds, (GREEN, SKY, BLUE, ORANGE, GREY), strict=True))
    with plt.rc_context(STYLE):
        figure, (counted, measured) = panels(2, 8, 3.6)
        for i, name in enumerate(flops):  # lines that lie on each other: the first are wide
            counted.plot(experts, np.array(flops[name]) / 1e6, "-", color=colours[name], lw=max(9 - 2.5 * i, 2))
        for name in seconds:
            measured.plot(experts, 1e3 * np.array(seconds[name]), "o-", ms=4, color=colours[name], label=name)
        counted.set(ylabel="million FLOPs per token", title="what is computed (counted)")
        measured.set(ylabel="milliseconds for all tokens", title="what it takes here (measured)")
        for panel, ticks in ((counted, (0.1, 0.2, 0.5, 1, 2, 5)), (measured, (1, 2, 5, 10, 20, 50, 100, 200))):
            panel.set(xscale="log", yscale="log", xlabel="experts E", xticks=experts, xticklabels=experts)
            low, high = panel.get_ylim()
            ticks = [tick for tick in ticks if low <= tick <= high]
            panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            panel.minorticks_off()
        figure.legend(*measured.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)
    return figure


def draw_sizes(counts: dict[str, tuple[int, int]]) -> plt.Figure:
    """Total and active parameters of each model, each in a unit of its own."""
    with plt.rc_context(STYLE):
        figure, axes = panels(len(counts), 7, 3.2)
        for panel, (name, (total, active)), colour in zip(axes, counts.items(), (BLUE, VERMILION), strict=True):
            unit, word = (1e9, "billions") if total > 1e9 else (1e6, "millions")
            bars = panel.bar(["total", "active"], [total / unit, active / unit], color=[colour + "55", colour])
            panel.bar_label(bars, fmt="%.1f")
            panel.set(title=name, ylabel=f"parameters ({word})")
            panel.margins(y=0.12)
    return figure


def draw_loads(shares: dict[str, np.ndarray], every: int = 10) -> plt.Figure:
    """Stacked shares of the choices, (steps, E) for each title, as means of `every` steps."""
    with plt.rc_context(STYLE):
        figure, axes = panels(len(shares), 8, 2.9, sharey=True)
        for panel, (title, share) in zip(axes, shares.items(), strict=True):
            share = np.asarray(share)
            smooth = share[: len(share) // every * every].reshape(-1, every, share.shape[1]).mean(axis=1)
            steps = np.arange(len(smooth)) * every + every / 2
            stripes = panel.stackplot(steps, smooth.T, colors=COLOURS, edgecolor="white", linewidth=0.4)
            panel.set(xlabel="step", title=title, xlim=(steps[0], steps[-1]), ylim=(0, 1))
            panel.grid(False)
        axes[0].set_ylabel("share of the choices")
        names = [f"expert {e}" for e in range(len(stripes))]  # from the bottom upwards, as they are stacked
        figure.legend(stripes[::-1], names[::-1], loc="outside right center", fontsize=9, frameon=False)
    return figure


def draw_head_start(with_help: np.ndarray, by_chance: float, help_ends: int, every: int = 10) -> plt.Figure:
    """The share of one expert over the steps, (seeds, steps), with a head start; what it would have by chance."""
    runs = np.asarray(with_help)
    smooth = runs.reshape(len(runs), -1, every).mean(axis=2)
    steps = np.arange(smooth.shape[1]) * every + every / 2
    with plt.rc_context(STYLE):
        figure, (axes,) = panels(1, 7, 3.4)
        axes.axvspan(0, help_ends, color=YELLOW, alpha=0.35, lw=0)
        axes.text(help_ends / 2, 0.56, "helped", ha="center", va="center")
        axes.plot(steps, smooth.T, color=VERMILION, lw=0.8, alpha=0.5)
        axes.plot(steps, smooth.mean(axis=0), color=VERMILION, lw=2.5, label="with a head start, mean")
        axes.axhline(by_chance, color="black", ls="--", lw=1.5, label="without, by chance")
        axes.set(xlabel="step", ylabel="share of expert 0", ylim=(0, 0.6), xlim=(0, runs.shape[1]))
        axes.legend(loc="upper right", ncols=2)  # above the lines, which end at 1/2
    return figure


def draw_losses(
    losses: dict[str, Sequence[float]], xlabel: str, colours: dict[str, str] | None = None, joined: bool = False
) -> plt.Figure:
    """A row for each name: every seed as a dot, the mean as a bar. joined: a line through the dots of one seed."""
    with plt.rc_context(STYLE):
        figure, (axes,) = panels(1, 7, 0.9 + 0.5 * len(losses))
        if joined:
            for seed in zip(*losses.values(), strict=True):
                axes.plot(seed, range(len(losses)), color="#bbbbbb", lw=1, zorder=1)
        for row, (name, values) in enumerate(losses.items()):
            colour = (colours or {}).get(name, COLOURS[row])
            axes.plot(values, [row] * len(values), "o", ms=9, mfc="white", mec=colour, mew=2)
            axes.plot([np.mean(values)] * 2, [row - 0.3, row + 0.3], color=colour, lw=3)
        axes.set_yticks(range(len(losses)), list(losses))
        axes.set(xlabel=xlabel, ylim=(len(losses) - 0.5, -0.5))
    return figure


def draw_scaling(
    ks: Sequence[int], factors: dict[int, Sequence[float]], published: dict[str, tuple[int, float]]
) -> plt.Figure:
    """What restores the size of a mixture of K of E experts, by random routers, {E: a factor for each K}, and published
    values. Left the factors, right the same divided by the square root of K, where the scale leaves out what is far."""
    with plt.rc_context(STYLE):
        figure, (left, right) = panels(2, 8.4, 3.6)
        root = np.sqrt(ks)
        left.plot(ks, root, color=GREY, ls="--", lw=1.2, label="square root of K: all weights equal")
        right.axhline(1, color=GREY, ls="--", lw=1.2)
        for (n_experts, values), colour in zip(factors.items(), (SKY, GREEN), strict=False):
            for panel, shown in ((left, values), (right, np.array(values) / root)):
                panel.plot(ks, shown, "o", ms=4, color=colour, label=f"random router, E = {n_experts}")
        for name, (k, factor) in published.items():
            colour = VERMILION if "K2" in name else "black"
            far = abs(factor / np.sqrt(k) - 1) > 0.01
            for panel, value in ((left, factor),) if far else ((left, factor), (right, factor / np.sqrt(k))):
                panel.plot(k, value, "D", ms=9, mfc="none", mec=colour, mew=1.6)
                below = panel is left and k == 8
                panel.annotate(f"{name} {factor}", (k, value), xytext=(9, -12) if below else (0, -20) if panel is right
                               else (-9, 9), textcoords="offset points", color=colour, fontsize=9,
                               ha="left" if below else "center" if panel is right else "right")  # fmt: skip
        for panel in (left, right):
            panel.set_xticks(ks[1::2])
        left.set(xlabel="chosen experts K", ylabel="scaling factor")
        right.set(xlabel="chosen experts K", ylabel="factor / square root of K", ylim=(0.9965, 1.0005))
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def draw_visits(words: Sequence[str], table) -> plt.Figure:
    """The weight (T, E) that each word gives to each expert."""
    with plt.rc_context(STYLE):
        figure, (axes,) = panels(1, 7, 2.8)
        image = axes.imshow(np.asarray(table), cmap="viridis", vmin=0, aspect="auto")
        axes.set_yticks(range(len(words)), words)
        axes.set(xticks=range(len(table[0])), xlabel="expert")
        axes.grid(False)
        figure.colorbar(image, label="weight")
    return figure


def draw_choice(scores, bias, picked: Sequence[int], weights) -> plt.Figure:
    """Left the scores (E,) with the biases (E,) on top of them, right the weights of the picked experts."""
    scores, bias = np.asarray(scores), np.asarray(bias)
    with plt.rc_context(STYLE):
        figure, (left, right) = panels(2, 8, 3, sharex=True)
        left.bar(range(len(scores)), scores, color=COLOURS[: len(scores)])
        left.bar(range(len(scores)), bias, bottom=scores, color="none", edgecolor="black", hatch="///")
        left.axhline(np.sort(scores + bias)[-len(picked)], color=GREY, ls="--", lw=1)
        left.set(xlabel="expert", ylabel="score, bias hatched", ylim=(-0.8, 1.4), title="what chooses")
        left.set_xticks(range(len(scores)))
        right.bar(picked, weights, color=[COLOURS[e] for e in picked])
        right.set(xlabel="expert", ylabel="weight", ylim=(0, 1.5), title="what weighs")
    return figure
