"""Figures of 01 · Tokenizer: words against their rank, growth, unknown words, pieces, and the losses of counting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from utils.plots import GREEN, GREY, ORANGE, PURPLE, STYLE

COLOURS = {"book": ORANGE, "stories": GREEN}  # the two kinds of text, in every figure


def zipf(shares: Mapping[str, np.ndarray]) -> Figure:
    """Share of all tokens against rank, both logarithmic. shares: by name of the text, largest first."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        for name, share in shares.items():
            axes.loglog(np.arange(1, len(share) + 1), 100 * share, color=COLOURS[name], lw=2, label=name)
        ranks = np.arange(1, 5_001)
        axes.loglog(ranks, 10 / ranks, color=GREY, ls="--", label="10 % / rank")
        axes.set(
            xlabel="rank of the word", ylabel="share of all words (%)", title="How often does the n-th word occur?"
        )
        axes.legend()
    plt.close(figure)
    return figure


def growth(curves: Mapping[str, Sequence[int]]) -> Figure:
    """Different words against words read. curves: by name of the text, after each word."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        for name, curve in curves.items():
            axes.plot(np.arange(1, len(curve) + 1), curve, color=COLOURS[name], lw=2)
            axes.annotate(
                f"{name}: {curve[-1]:,}", (len(curve), curve[-1]), xytext=(0, 6), textcoords="offset points",
                ha="right", va="bottom", color=COLOURS[name], weight="bold",
            )  # fmt: skip
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set(xlabel="words read", ylabel="different words so far", title="Do new words ever stop?")
        axes.set_ylim(0, 1.15 * max(curve[-1] for curve in curves.values()))
    plt.close(figure)
    return figure


def unknown_words(levels: Sequence[int], honest: Sequence[float], dishonest: Sequence[float]) -> Figure:
    """Share of unknown words in unseen chapters against min_count, for two ways to make the list."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        axes.plot(levels, 100 * np.array(honest), "o-", color=ORANGE, lw=2, label="list from the training chapters")
        axes.plot(levels, 100 * np.array(dishonest), "o--", color=GREY, label="list from the whole book (wrong)")
        axes.set_xticks(levels)
        axes.set(
            xlabel="min_count: a word must occur this often to be in the list", ylabel="unknown words (%)",
            title="Words of the last chapters that are not in the list", ylim=(-0.4, None),
        )  # fmt: skip
        axes.legend()
    plt.close(figure)
    return figure


def ladder(scores: Mapping[str, float]) -> Figure:
    """Bars: share of the words that come back exactly, after each rule."""
    with plt.rc_context({**STYLE, "figure.figsize": (7, 2.8)}):
        figure, axes = plt.subplots()
        bars = axes.barh(list(scores), [100 * score for score in scores.values()], color=GREEN)
        axes.bar_label(bars, fmt="%.1f", padding=3)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="words that come back exactly (%)", xlim=(0, 110), title="From ids back to English")
    plt.close(figure)
    return figure


def bytes_per_token(sizes: Sequence[int], curves: Mapping[str, Sequence[float]], words: float) -> Figure:
    """Bytes that a token carries against the number of pieces, and the line of words and punctuation."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        for (name, curve), line in zip(curves.items(), ("-", "--"), strict=True):
            axes.semilogx(sizes, curve, line, marker="o", ms=4, color=PURPLE, label=name)
        axes.axhline(words, color=GREY, ls=":", lw=2)
        axes.annotate("words and punctuation, the last chapters", (sizes[0], words), xytext=(0, 4),
                      textcoords="offset points", color="#505050")  # fmt: skip
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set(
            xlabel="pieces in the list", ylabel="bytes per token", title="What one token carries",
            ylim=(0, 1.2 * max(words, max(map(max, curves.values())))),
        )  # fmt: skip
        axes.legend(loc="lower right")
    plt.close(figure)
    return figure


def counting(losses: Mapping[str, Sequence[float]]) -> Figure:
    """Loss on unseen text against the length of the sequences that are counted; the first entry is the even guess."""
    with plt.rc_context({**STYLE, "figure.figsize": (8, 3.6)}):
        figure, panels = plt.subplots(1, len(losses), layout="constrained")
        for axes, (name, loss) in zip(panels, losses.items(), strict=True):
            axes.plot(range(len(loss)), loss, "o-", color=COLOURS[name], lw=2)
            for order, value in enumerate(loss):
                axes.annotate(f"{value:.2f}", (order, value), xytext=(2, 6), textcoords="offset points")
            axes.set_xticks(range(len(loss)), ["even\nguess", *map(str, range(1, len(loss)))])
            axes.set(xlabel="words in the counted sequence", ylim=(0, 1.2 * max(loss)), title=f"unseen {name}")
            axes.set_xlim(-0.5, len(loss))
        panels[0].set_ylabel("loss (nats per token)")
    plt.close(figure)
    return figure


def two_units(sizes: Sequence[int], nats: Sequence[float], bits: Sequence[float]) -> Figure:
    """One model per tokenizer: nats per token beside bits per byte, against the number of pieces."""
    with plt.rc_context({**STYLE, "figure.figsize": (8, 3.4)}):
        figure, panels = plt.subplots(1, 2, layout="constrained")
        titles = ("nats per token: no comparison", "bits per byte: a fair one")
        for axes, values, title in zip(panels, (nats, bits), titles, strict=True):
            axes.semilogx(sizes, values, "o-", color=PURPLE, lw=2)
            side, ha = (1, "left") if values[0] > values[-1] else (-1, "right")  # beside the line, not on it
            for size, value in zip(sizes, values, strict=True):
                axes.annotate(f"{value:.2f}", (size, value), xytext=(2 * side, 6), textcoords="offset points", ha=ha)
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
            axes.minorticks_off()
            axes.set(xlabel="pieces in the list", ylabel=title.partition(":")[0], title=title)
            axes.margins(x=0.16)
            axes.set_ylim(0, 1.2 * max(values))
    plt.close(figure)
    return figure
