"""Figures of chapter 2: each takes plain numbers and returns a figure that is closed, so that it shows once."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from utils.course.figures.frame import styled
from utils.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION


@styled
def how_far_back(distances: dict[str, Sequence[int]], reach: int, longest: int = 40) -> plt.Figure:
    """A histogram for each text: words from a pronoun back to the name; `reach` is what a trigram sees."""
    figure, all_axes = plt.subplots(1, len(distances), figsize=(8, 3), layout="constrained", sharey=True)
    for axes, (name, found), colour in zip(all_axes, distances.items(), (BLUE, GREEN), strict=False):
        found = np.minimum(found, longest)
        axes.hist(found, np.arange(0.5, longest + 1.5), weights=np.full(len(found), 100 / len(found)), color=colour)
        axes.axvline(reach + 0.5, color=GREY, ls="--")
        axes.set(title=name, xlabel=f"words back to the name ({longest}: or more)")
    all_axes[0].set(ylabel="% of the pronouns")
    return figure


@styled
def scores_against_width(widths: Sequence[int], variance: Sequence, raw: Sequence, scaled: Sequence) -> plt.Figure:
    """Variance of a score, and the largest of the weights with and without the division."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    left.loglog(widths, widths, "--", color=GREY, label="variance = d")
    left.loglog(widths, variance, "o", color=BLUE, label="measured")
    left.set(xlabel="head width d", ylabel="variance of the scores q·k")
    left.legend()
    right.semilogx(widths, raw, "o-", color=ORANGE, label="softmax(q·k)")
    right.semilogx(widths, scaled, "o-", color=BLUE, label="softmax(q·k / √d)")
    right.set(xlabel="head width d", ylabel="largest of 16 weights", ylim=(0, 1))
    right.legend(loc="center right", bbox_to_anchor=(1, 0.45))
    for axes in (left, right):
        axes.set_xticks(widths, widths)
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    return figure


@styled
def influences(matrices: dict[str, Sequence], words: Sequence[str]) -> plt.Figure:
    """A heat map for each matrix (T, T): how much answer i moves with input j. Exact zeros stay white.

    Colours are the root of the share of the map's maximum, which lets small influences be seen.
    """
    figure, all_axes = plt.subplots(1, len(matrices), figsize=(8.4, 3.3), layout="constrained")
    for axes, (title, matrix) in zip(all_axes, matrices.items(), strict=True):
        matrix = np.asarray(matrix)
        shares = np.ma.masked_equal(matrix, 0.0) / matrix.max()
        word_map(axes, np.ma.sqrt(shares), words, title)
        axes.set(xlabel="this word is changed", ylabel="")
    all_axes[0].set(ylabel="this answer moves")
    return figure


@styled
def attention_maps(maps: dict[str, Sequence], words: Sequence[str]) -> plt.Figure:
    """A heat map for each matrix of weights (T, T), by title: each row shows where one word looks."""
    figure, all_axes = plt.subplots(1, len(maps), figsize=(4.1 * len(maps), 3.9), layout="constrained", squeeze=False)
    for axes, (title, weights) in zip(all_axes[0], maps.items(), strict=True):
        picture = word_map(axes, np.asarray(weights), words, title)
        axes.set(xlabel="looks at", ylabel="this word")
    figure.colorbar(picture, ax=all_axes[0].tolist(), shrink=0.7, label="weight")
    return figure


def word_map(axes: plt.Axes, matrix: np.ndarray, words: Sequence[str], title: str):
    """A matrix (T, T) of numbers from 0 to 1, with the words along both sides."""
    picture = axes.imshow(matrix, cmap="viridis", vmin=0, vmax=1)
    axes.set_xticks(range(len(words)), words, rotation=90)
    axes.set_yticks(range(len(words)), words)
    axes.set_title(title, fontsize=10)
    axes.grid(False)
    return picture


@styled
def scores_by_distance(table: dict[int, Sequence], rotation: dict[int, Sequence], formula: Sequence) -> plt.Figure:
    """Scores of one query and key against their distance, for some places i of the query; `formula` by distance."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharey=True)
    right.plot(range(len(formula)), formula, color=GREY, lw=1, label="relative_score")
    marks = zip(table, (("o", VERMILION, 8), ("s", ORANGE, 5), (".", BLUE, 5)), strict=True)
    for i, (mark, colour, size) in marks:
        left.plot(range(len(table[i])), table[i], mark, ms=size / 2 + 1, color=colour, label=f"query at {i}")
        right.plot(range(len(rotation[i])), rotation[i], mark, ms=size, color=colour, label=f"query at {i}")
    left.set(xlabel="distance i − j in words", ylabel="score q·k", title="Learned positions (untrained)")
    right.set(xlabel="distance i − j in words", title="Rotation")
    right.set_ylim(bottom=right.get_ylim()[0] - 4)
    right.legend(fontsize=9, ncols=2, loc="lower center")
    return figure


@styled
def with_and_without(alike: dict[str, Sequence], gradients: dict[str, Sequence]) -> plt.Figure:
    """Over depth: how alike the words are, and the gradient of each layer's W_q. By name, (seeds, layers) each."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.1), layout="constrained")
    for name, colour in zip(alike, (BLUE, GREEN, VERMILION), strict=True):
        for axes, values, first in ((left, alike[name], 0), (right, gradients[name], 1)):
            values = np.asarray(values)
            layers = np.arange(first, first + values.shape[1])
            axes.fill_between(layers, values.min(0), values.max(0), color=colour, alpha=0.25, lw=0)
            axes.plot(layers, np.median(values, axis=0), color=colour, label=name)
    left.set(xlabel="after layer", ylabel="mean cosine of two words", ylim=(-0.05, 1.05))
    right.set(xlabel="layer", ylabel="gradient of W_q (RMS)", yscale="log")
    right.legend(*left.get_legend_handles_labels(), loc="center", bbox_to_anchor=(0.5, 0.6), fontsize=9)
    return figure


@styled
def looking_back(
    steps: Sequence[int], right: Sequence, trigram: float, looks: dict[str, Sequence], title: str
) -> plt.Figure:
    """Share of right pronouns, and what one head gives to some words, by name: (seeds, steps) each."""
    figure, (left_axes, right_axes) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
    colours = (BLUE, SKY, PURPLE)
    for seed, (share, colour) in enumerate(zip(right, colours, strict=True)):
        left_axes.plot(steps, share, "o-", ms=3, color=colour, label=f"seed {seed}")
    for (word, by_seed), line in zip(looks.items(), ("o-", ":"), strict=True):
        for seed, (weights, colour) in enumerate(zip(by_seed, colours, strict=True)):
            right_axes.plot(steps, weights, line, ms=3, color=colour, label=word if seed == 0 else None)
    left_axes.axhline(trigram, color=GREY, ls="--", label="trigram")
    left_axes.set(xlabel="training step", ylabel="share", ylim=(0, 1.03), title="the right one of 'her' and 'his'")
    right_axes.set(xlabel="training step", ylabel="weight", title=title)
    right_axes.tick_params(labelleft=True)
    for axes in (left_axes, right_axes):
        axes.legend()
    return figure


@styled
def how_far_it_reaches(distances: Sequence[int], shares: dict[str, Sequence[float]]) -> plt.Figure:
    """Share of right pronouns against the words back to the name, by model: a trigram first, then the readers."""
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    lines = (("s--", VERMILION), ("o-", BLUE), ("o-", SKY), ("o-", PURPLE))
    for (name, values), (line, colour) in zip(shares.items(), lines, strict=True):
        axes.plot(distances, values, line, ms=4, color=colour, label=name)
    axes.axhline(0.5, color=GREY, lw=1)
    axes.set_xticks(distances, [*map(str, distances[:-1]), f"{distances[-1]} or more"])
    axes.set(xlabel="words back to the name", ylabel="share of the right pronoun", ylim=(0.3, 1.03))
    axes.legend(fontsize=9, loc="center right", bbox_to_anchor=(1, 0.62))
    return figure


@styled
def without_heads(shares: dict[str, Sequence[float]]) -> plt.Figure:
    """Share of right pronouns when some heads are silenced: by name, a value for each seed; bars are means."""
    figure, axes = plt.subplots(figsize=(8, 3.1), layout="constrained")
    colours = [GREY if name == "none" else SKY if name.startswith("all") else BLUE for name in shares]
    axes.bar(list(shares), [np.mean(values) for values in shares.values()], color=colours, alpha=0.75)
    for place, values in enumerate(shares.values()):
        axes.plot([place] * len(values), values, "o", ms=4, color="black")
    axes.axhline(0.5, color=GREY, ls="--")
    axes.set(xlabel="silenced (layer.head)", ylabel="share of the right pronoun", ylim=(0, 1.05))
    return figure


@styled
def time_to_write(lengths: Sequence[int], seconds: dict[str, Sequence[float]]) -> plt.Figure:
    """Seconds to write so many words, by name: the first with a cache, the second without."""
    figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
    for (name, values), colour in zip(seconds.items(), (BLUE, VERMILION), strict=True):
        axes.plot(lengths, values, "o-", color=colour, label=name)
    axes.set(xlabel="words written", ylabel="seconds")
    axes.legend()
    return figure


@styled
def memory_of_a_cache(tokens: Sequence[int], bytes_per_token: dict[str, int], memory: float) -> plt.Figure:
    """GB of the cache against the length of the text, by name, with the memory of one GPU as a line."""
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for (name, size), colour in zip(bytes_per_token.items(), (VERMILION, ORANGE, BLUE), strict=False):
        axes.loglog(tokens, [size * n / 1e9 for n in tokens], "o-", ms=3, color=colour, label=name)
    axes.axhline(memory / 1e9, color=GREY, ls="--", label=f"one GPU of {memory / 1e9:.0f} GB")
    axes.set(xlabel="tokens in the cache", ylabel="GB")
    axes.set_xticks(tokens, [f"{n:,}" for n in tokens])
    axes.minorticks_off()
    axes.legend(loc="lower right", fontsize=9)
    return figure


@styled
def largest_logits(by_step: dict[int, Sequence[float]], heads: Sequence[str]) -> plt.Figure:
    """The largest logit of each head at some steps: {step: (heads,)}."""
    figure, axes = plt.subplots(figsize=(7.5, 3), layout="constrained")
    width = 0.8 / len(by_step)
    for n, ((step, values), colour) in enumerate(zip(by_step.items(), (GREY, SKY, BLUE), strict=False)):
        axes.bar(np.arange(len(heads)) + (n - 1) * width, values, width, color=colour, label=f"step {step}")
    axes.set_xticks(range(len(heads)), heads)
    axes.set(xlabel="layer.head", ylabel="largest logit")
    axes.legend(ncols=3)
    return figure
