"""Figures of chapter 7. Each takes plain numbers and gives a figure that is shown once."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import NullFormatter

from utils.plots import BLUE, GREEN, GREY, PURPLE, SKY, STYLE, VERMILION

SHOWN = 12  # words with a bar of their own
SIGNS = {",": "comma", ".": "full stop", '"': "quotation mark", "'": "apostrophe"}  # too small to be read as labels
Bars = tuple[str, torch.Tensor, torch.Tensor | None]  # title, the model's own probabilities (V,), reshaped ones


def panels(rows: int, columns: int, width: float, height: float, **options) -> tuple[plt.Figure, np.ndarray]:
    """A closed figure, so that it is shown by who returns it and not a second time, and its panels (rows, columns)."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options)
    plt.close(figure)
    return figure, axes


def _bars(axes: plt.Axes, title: str, own: torch.Tensor, new: torch.Tensor | None, words: Sequence[str]) -> None:
    order = own.topk(min(SHOWN, len(own))).indices
    names = [words[i].strip() or repr(words[i]) for i in order.tolist()] + ["all the rest"]
    places = range(len(names))

    def heights(p):
        return [*p[order].tolist(), max(0.0, 1 - p[order].sum().item())]

    axes.bar(places, heights(own), color=GREY, alpha=0.45, label="the model's own")
    if new is not None:
        axes.bar(places, heights(new), width=0.4, color=VERMILION, label="reshaped")
    axes.set(ylabel="probability", title=title)
    axes.set_xticks(places, names, rotation=60, ha="right", rotation_mode="anchor")
    axes.grid(axis="x", visible=False)


def draw_next_word(shown: Sequence[Bars], words: Sequence[str]) -> plt.Figure:
    """The likeliest next words in grey and what became of them in colour, two panels a row."""
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    with plt.rc_context(STYLE):
        figure, axes = panels(rows, columns, 4.1 * columns if columns > 1 else 6, 2.9 * rows, sharey=True)
        for panel, (title, own, new) in zip(axes.flat, shown, strict=True):
            _bars(panel, title, own, new, words)
        if any(new is not None for _, _, new in shown):
            axes[0, 0].legend(loc="upper right")
        for panel in axes[:, 1:].flat:
            panel.set_ylabel("")
    return figure


def draw_choice(own: torch.Tensor, new: torch.Tensor, pair: dict[str, float], words: Sequence[str]) -> plt.Figure:
    """The bars of one prompt, and beside them two words by name with their reshaped probabilities."""
    with plt.rc_context(STYLE):
        figure, ((left, right),) = panels(1, 2, 8, 3.4, width_ratios=(4, 1))
        _bars(left, "the next word", own, new, words)
        left.legend(loc="upper right")
        right.bar(list(pair), list(pair.values()), color=(PURPLE, GREEN))
        right.set(ylim=(0, 1), title=" or ".join(pair) + "?")
    return figure


def draw_newness(fresh: dict[str, list[float]], window: int) -> plt.Figure:
    """Share of new sequences in each window of words, a line for each way of choosing."""
    with plt.rc_context(STYLE):
        figure, ((axes,),) = panels(1, 1, 7, 3.2)
        for (name, shares), colour in zip(fresh.items(), (GREY, VERMILION, BLUE), strict=False):
            axes.plot([window * (i + 1) for i in range(len(shares))], shares, "o-", color=colour, label=name)
        axes.set(xlabel="words told", ylabel="share of new six-word sequences", ylim=(-0.05, 1.05))
        figure.legend(loc="outside upper center", ncols=len(fresh))
    return figure


def draw_kept(words: Sequence[str], counts: dict[str, Sequence[int]]) -> plt.Figure:
    """How many words each rule keeps for each place of a story; `words` are those that came."""
    with plt.rc_context(STYLE):
        figure, ((axes,),) = panels(1, 1, 8.2, 3.5)
        for (name, count), colour, dash in zip(counts.items(), (GREY, SKY, VERMILION), ("--", "-", "-"), strict=True):
            axes.step(range(len(words)), count, where="mid", color=colour, ls=dash, label=name)
        most = max(max(count) for count in counts.values())
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if tick <= most]
        axes.set(ylabel="words kept for this place", yscale="log", xlim=(-1, len(words)))
        axes.set_yticks(ticks, ticks)
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(range(len(words)), words, rotation=90, fontsize=10)
        figure.legend(loc="outside upper center", ncols=len(counts))
    return figure


def draw_clock(seconds: dict[str, Sequence[float]]) -> plt.Figure:
    """Milliseconds for each word of a story, pale, and their running median, a line for each way of telling."""
    with plt.rc_context(STYLE):
        figure, ((axes,),) = panels(1, 1, 7, 3.2)
        for (name, each), colour in zip(seconds.items(), (GREY, VERMILION), strict=True):
            milliseconds = 1e3 * np.array(each)
            around = [np.median(milliseconds[max(0, i - 4) : i + 5]) for i in range(len(each))]
            axes.plot(range(1, len(each) + 1), milliseconds, color=colour, alpha=0.35, lw=1)
            axes.plot(range(1, len(each) + 1), around, color=colour, lw=2.5, label=name)
        axes.set(xlabel="word of the story", ylabel="milliseconds for this word", ylim=(0, None))
        axes.legend()
    return figure


def draw_batches(sizes: Sequence[int], seconds: Sequence[float]) -> plt.Figure:
    """Milliseconds a story against the size of the batch, both axes in powers, and what a free batch would take."""
    with plt.rc_context(STYLE):
        figure, ((axes,),) = panels(1, 1, 7, 3.4)
        per_story = [1e3 * second / size for size, second in zip(sizes, seconds, strict=True)]
        free = [per_story[0] / size for size in sizes]
        axes.loglog(sizes, free, "--", color=GREY, label="if a batch took no longer than one story")
        axes.loglog(sizes, per_story, "o-", color=VERMILION, label="measured")
        for size, value in zip(sizes, per_story, strict=True):
            axes.annotate(f"{value:.3g}", (size, value), (0, 8), textcoords="offset points", ha="center")
        axes.set(xlabel="stories told side by side", ylabel="milliseconds a story")
        axes.set_xticks(sizes, sizes)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_ylim(0.6 * min(free), 2 * max(per_story))
        axes.legend(loc="lower left")
    return figure


ROUND = ((1.9, 0), (-1.9, 0), (1, 0.7), (-1, 0.7), (1, -0.7), (-1, -0.7), (0, 1), (0, -1))  # beside an error bar first
OFFSETS = [(radius * x, radius * y) for radius in (14, 20, 28, 38) for x, y in ROUND]  # of a label, in pixels


def draw_tradeoff(
    results: dict[str, list[tuple[str, float, float, float]]], goal: tuple[float, float], n: int, width: float = 0.14
) -> plt.Figure:
    """Share of coherent stories among n, against temperature and against diversity; a star for `goal`.

    results: by name, points (label, temperature, coherence, diversity). On the right, what is more than `width` below
    the largest diversity is left out, and a note names it.
    """
    with plt.rc_context(STYLE):
        figure, ((left, right),) = panels(1, 2, 8.6, 4.2, sharey=True, width_ratios=(2, 3))
        least = max(goal[1], *(point[3] for points in results.values() for point in points)) - width
        taken_points, outside = [(goal[1], goal[0])], []
        for (name, points), colour, mark in zip(results.items(), (VERMILION, BLUE, GREY), "oDs", strict=False):
            _, temperature, coherent, diverse = map(np.array, zip(*points, strict=True))
            error = np.sqrt(coherent * (1 - coherent) / n)
            style = dict(marker=mark, ms=5, color=colour, label=name, elinewidth=1, capsize=2)
            left.errorbar(temperature, coherent, error, ls="-" if len(set(temperature)) > 1 else "", **style)
            right.errorbar(diverse, coherent, error, **style)
            taken_points += [point for point in zip(diverse, coherent, strict=True) if point[0] >= least]
            outside += [f"{label} (at {x:.2f})" for label, _, _, x in points if x < least]
        right.plot(goal[1], goal[0], "*", ms=14, color="black", label="stories of the data itself")
        left.set(xlabel="temperature", ylabel="share of coherent stories", ylim=(-0.05, 1.15))
        right.set_xlabel("diversity: share of different three-word sequences")
        right.set_xlim(least - 0.003, least + width + 0.012)
        if outside:
            right.text(0.02, 0.02, "further left: " + ", ".join(outside), transform=right.transAxes, color=GREY)
        figure.legend(*right.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9)
        figure.draw_without_rendering()
        taken = [right.transData.transform(point) for point in taken_points]
        for (_, points), colour in zip(results.items(), (VERMILION, BLUE, GREY), strict=False):
            for label, _, coherence, diversity in points:
                if diversity >= least:
                    _label(right, label, (diversity, coherence), colour, taken)
    return figure


def _label(axes: plt.Axes, label: str, point: tuple[float, float], colour: str, taken: list[np.ndarray]) -> None:
    """Write beside a point, where nothing that is `taken` is covered, and take that place."""
    here = axes.transData.transform(point)
    spot = next((spot for spot in OFFSETS if _is_free(here + spot, taken)), OFFSETS[0])
    taken.append(here + spot)
    far = abs(spot[0]) + abs(spot[1]) > 27
    axes.annotate(
        label, point, np.array(spot) * 72 / axes.figure.dpi, textcoords="offset points", color=colour,
        ha="center", va="center", fontsize=9, zorder=5,
        bbox=dict(boxstyle="square,pad=0.05", fc="white", ec="none", alpha=0.8),
        arrowprops=dict(arrowstyle="-", color=colour, lw=0.6, shrinkB=3) if far else None,
    )  # fmt: skip


def _is_free(spot: np.ndarray, taken: list[np.ndarray], width: float = 24, height: float = 13) -> bool:
    """Whether a label there touches no point and no other label."""
    return all(abs(x - spot[0]) > width or abs(y - spot[1]) > height for x, y in taken)


def draw_favourites(words: Sequence[str], shares: Sequence[Sequence[float]]) -> plt.Figure:
    """How often each expert was the first choice for each word, (words, E), words with the same favourite together."""
    table = np.array(shares)
    order = np.lexsort((-table.max(axis=1), table.argmax(axis=1)))  # by favourite, the surest first
    with plt.rc_context(STYLE):
        figure, ((axes,),) = panels(1, 1, 8.6, 1.9 + 0.2 * table.shape[1])
        picture = axes.imshow(table[order].T, aspect="auto", cmap="viridis", vmin=0, vmax=1)
        names = [SIGNS.get(words[i].strip(), words[i].strip()) or repr(words[i]) for i in order]
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
        every = max(1, table.shape[1] // 16)
        axes.set_yticks(range(0, table.shape[1], every))
        axes.set_ylabel("expert")
        axes.grid(False)
        figure.colorbar(picture, label="share of its places")
    return figure
