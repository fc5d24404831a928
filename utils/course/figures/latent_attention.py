"""The figures of chapter 2b: what is kept, what a form costs, and how far a model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch

from utils.plots import BLUE, GREEN, GREY, ORANGE, STYLE, VERMILION

LATENT, PLAIN = VERMILION, GREY


def squeezed(shares: Mapping[str, Sequence[float]], losses: Mapping[int, float], full: int) -> plt.Figure:
    """Left: squared length in the first r directions. Right: loss when keys and values are squeezed through them."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3), layout="constrained")
        colours = {"untrained": GREY, "trained": BLUE}
        for name, share in shares.items():
            style = "--" if "2" in name else "-"
            left.plot(range(1, len(share) + 1), share, style, color=colours[name.split(",")[0]], label=name)
        left.axhline(0.9, color=GREY, lw=0.8, ls=":")
        left.set(
            xlabel=f"directions kept, of {full}",
            ylabel="share of the squared length",
            ylim=(0, 1.02),
            xlim=(0, full / 2),
        )
        left.legend(loc="lower right")
        right.plot(list(losses), list(losses.values()), "o-", color=BLUE)
        right.axhline(losses[full], color=GREY, ls="--")
        right.annotate("all directions", (full, losses[full]), (0, 5), textcoords="offset points",
                       ha="right", color=GREY)  # fmt: skip
        right.set(xlabel=f"directions kept, of {full}", ylabel="loss (nats per letter)")
    plt.close(figure)
    return figure


def absorbed_error(errors: Sequence[float], size: float) -> plt.Figure:
    """Error of the absorbed score against the distance, beside the mean size of a score."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
        axes.bar(range(len(errors)), errors, color=VERMILION, label="error of the absorbed score")
        axes.axhline(size, color=GREY, ls="--", label="mean size of a score")
        axes.set(xlabel="distance in words", ylabel="size", ylim=(0, 1.3 * max(max(errors), size)))
        axes.set_xticks(range(len(errors)))
        axes.set_axisbelow(True)
        axes.legend(ncols=2, loc="upper left")
    plt.close(figure)
    return figure


def cache_growth(tokens: Sequence[int], gigabytes: Mapping[str, Sequence[float]], limit: float) -> plt.Figure:
    """Size of the cache against the context, for each form, beside the memory of one GPU."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
        for (name, sizes), colour in zip(gigabytes.items(), (GREY, ORANGE, LATENT), strict=True):
            axes.loglog(tokens, sizes, "o-", ms=4, color=colour, label=name)
            axes.annotate(f"{sizes[-1]:,.1f} GB", (tokens[-1], sizes[-1]), (6, 0), textcoords="offset points",
                          va="center", color=colour)  # fmt: skip
        axes.axhline(limit, color=GREY, ls="--", lw=1)
        axes.annotate(f"memory of one {limit:.0f} GB GPU", (tokens[0], limit), (0, 4), textcoords="offset points",
                      color=GREY)  # fmt: skip
        axes.set(xlabel="tokens of context", ylabel="cache (GB)", xlim=(tokens[0] * 0.8, tokens[-1] * 2.6))
        axes.set_xticks(tokens, [f"{t:,}" for t in tokens])
        axes.minorticks_off()
        axes.legend(loc="lower right")
    plt.close(figure)
    return figure


def costs(
    lengths: Sequence[int], decode: Mapping[str, Sequence[float]], prefill: Mapping[str, Sequence[float]]
) -> plt.Figure:
    """FLOPs of one layer in each form: left for one new token, right for a whole prompt."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(7.5, 3.1), layout="constrained")
        titles = ("one new token", "a whole prompt")
        for axes, forms, title in zip(panels, (decode, prefill), titles, strict=True):
            for (name, flops), colour in zip(forms.items(), (BLUE, LATENT), strict=True):
                axes.loglog(lengths, flops, "o-", ms=4, color=colour, label=name)
            axes.set(xlabel="tokens to look at", ylabel="FLOPs in one layer", title=title)
            axes.set_xticks(lengths[::2], [f"{t:,}" for t in lengths[::2]])
            axes.minorticks_off()
            axes.legend()
    plt.close(figure)
    return figure


def wavelengths(tokens: Sequence[float], slowed: Sequence[float], contexts: Mapping[str, int]) -> plt.Figure:
    """Tokens that each channel pair needs for one turn, before and after YaRN, beside the contexts."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
        pairs = range(len(tokens))
        for pair, before, after in zip(pairs, tokens, slowed, strict=True):
            if after > 1.01 * before:
                axes.annotate("", (pair, after), (pair, before), arrowprops={"arrowstyle": "->", "color": VERMILION})
        axes.semilogy(pairs, tokens, "o", color=BLUE, label="as trained")
        moved = [pair for pair in pairs if slowed[pair] > 1.01 * tokens[pair]]
        axes.semilogy(moved, [slowed[p] for p in moved], "o", color=VERMILION, label="with YaRN, factor 32")
        for name, context in contexts.items():
            axes.axhline(context, color=GREY, ls="--", lw=1)
            axes.annotate(name, (0, context), (-4, 4), textcoords="offset points", color=GREY)
        axes.set(xlabel="channel pair", ylabel="tokens for one turn")
        axes.legend(loc="lower right")
    plt.close(figure)
    return figure


def by_place(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], trained: int, titles: tuple[str, str]
) -> plt.Figure:
    """Loss against the place in the text, (seeds, places) of each way: mean of the seeds, and all of them, faint."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(7.8, 3.6), layout="constrained")
        for axes, ways, title in zip(panels, (before, after), titles, strict=True):
            for (name, losses), colour in zip(ways.items(), (GREY, ORANGE, GREEN), strict=True):
                binned = losses.unflatten(1, (-1, 16)).mean(dim=2)  # (seeds, places / 16)
                places = torch.arange(binned.shape[1]) * 16 + 8
                for one in binned:
                    axes.plot(places, one, color=colour, lw=0.7, alpha=0.4)
                axes.plot(places, binned.mean(dim=0), color=colour, lw=2.2, label=name)
            axes.axvline(trained, color=GREY, ls=":", lw=1)
            axes.annotate(f"trained at {trained}", (trained, 0.02), (4, 0), xycoords=("data", "axes fraction"),
                          textcoords="offset points", color=GREY)  # fmt: skip
            axes.margins(y=0.12)
            axes.set(xlabel="place in the text (letters)", title=title)
        panels[0].set(ylabel="loss (nats per letter)")
        lines, names = panels[0].get_legend_handles_labels()
        figure.legend(lines, names, loc="outside upper center", ncols=len(names))
    plt.close(figure)
    return figure
