"""Figures of 06_training. Each function takes plain arrays and numbers and returns a figure that is not shown yet."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch

from utils.course.figures.frame import new_figure, styled
from utils.plots import BLUE, COLOUR, GREEN, GREY, ORANGE, PALETTE, PURPLE, SKY, VERMILION, draw_loss


@styled
def draw_parts(counts: dict[str, dict[str, int]], asleep: dict[str, float]) -> plt.Figure:
    """Parameters by part for each model; the pale part of its experts' bar, `asleep` of them, is not active."""
    figure, axes = new_figure(size=(8, 3.2))
    parts = list(dict.fromkeys(part for count in counts.values() for part in count))
    for shift, (name, count) in zip((-0.2, 0.2), counts.items(), strict=True):
        places = [i + shift for i in range(len(parts))]
        heights = [count.get(part, 0) / 1e3 for part in parts]
        axes.bar(places, heights, 0.38, color=COLOUR[name], label=name)
        experts = parts.index("experts")
        bottom = (count["experts"] - asleep[name]) / 1e3
        axes.bar(experts + shift, asleep[name] / 1e3, 0.38, bottom=bottom, color="white", alpha=0.65)
    axes.set_xticks(range(len(parts)), [part.replace(", ", ",\n") for part in parts])
    axes.set_ylabel("thousand parameters")
    axes.grid(axis="x", visible=False)
    axes.legend()
    return figure


@styled
def draw_causality(maps: dict[str, torch.Tensor]) -> plt.Figure:
    """For each model (T, T): row, the place of the changed word; column, how far the logits there moved."""
    figure, both = new_figure(len(maps), (6.8, 3.2))
    for axes, (name, moved) in zip(both, maps.items(), strict=True):
        picture = axes.imshow(moved, cmap="viridis", vmin=0)
        places = range(0, len(moved), 2)
        axes.set(xticks=places, yticks=places, title=name, xlabel="place of the logits")
        axes.grid(visible=False)
    both[0].set_ylabel("place of the changed word")
    figure.colorbar(picture, ax=both, label="largest change of a logit")
    return figure


@styled
def draw_schedules(rates: dict[str, list[float]]) -> plt.Figure:
    """The learning rate of each step, for each schedule."""
    figure, axes = new_figure(size=(7, 2.8))
    for (name, values), colour in zip(rates.items(), (VERMILION, GREY, SKY), strict=False):
        axes.plot(values, color=colour, lw=1.8, label=name)
    axes.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    axes.legend(loc="lower left")
    return figure


@styled
def draw_branches(before: list[float], curves: dict[str, torch.Tensor], every: int) -> plt.Figure:
    """Validation losses every so many steps: one run, and what becomes of it, (seeds, looks). Right, that enlarged."""
    figure, (whole, late) = new_figure(2, (8, 3.2))
    whole.plot([every * i for i in range(len(before))], before, color="black", lw=1.8, label="the plateau")
    for (name, losses), colour in zip(curves.items(), (GREY, VERMILION, SKY), strict=False):
        steps = [every * (len(before) - 1 + i) for i in range(losses.shape[1])]
        for axes in (whole, late):
            axes.plot(steps, losses.T, color=colour, lw=0.6, alpha=0.6)
            axes.plot(steps, losses.mean(0), "o-", ms=3, color=colour, lw=1.8, label=name)
    whole.set(xlabel="step", ylabel="validation loss (nats per token)", title="the whole run")
    late.set(xlabel="step", title="its end, enlarged")
    late.legend()
    return figure


@styled
def draw_operations(parts: dict[str, dict[str, float]]) -> plt.Figure:
    """A bar for each model, cut into the shares of what its operations are for."""
    figure, axes = new_figure(size=(8, 0.9 + 0.55 * len(parts)))
    left = torch.zeros(len(parts))
    for kind, colour in zip(next(iter(parts.values())), (SKY, BLUE, VERMILION, ORANGE), strict=False):
        shares = torch.tensor([of[kind] / sum(of.values()) for of in parts.values()])
        bars = axes.barh(list(parts), shares, 0.62, left=left, color=colour, label=kind)
        texts = [f"{share:.0%}" if share > 0.04 else "" for share in shares.tolist()]
        axes.bar_label(bars, texts, label_type="center", color="white" if colour in (BLUE, VERMILION) else "black")
        left += shares
    axes.invert_yaxis()
    axes.set(xlabel="share of a run's operations", xlim=(0, 1))
    axes.grid(axis="y", visible=False)
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


@styled
def draw_resumed(whole: list[float], later: dict[str, tuple[int, list[float]]]) -> plt.Figure:
    """The losses of a run without a break, wide and grey, and of runs that went on from a step."""
    figure, axes = new_figure(size=(7, 3))
    axes.plot(whole, color=GREY, lw=6, alpha=0.4, label="without a break")
    for (name, (first, losses)), colour in zip(later.items(), (VERMILION, SKY, GREEN), strict=False):
        axes.plot(range(first, first + len(losses)), losses, color=colour, lw=1.6, label=name)
    axes.axvline(first, color=GREY, ls=":", lw=1)
    axes.set(xlabel="step", ylabel="training loss (nats per token)")
    axes.legend()
    return figure


@styled
def draw_instruments(history, baselines: dict[str, float], rates: list[float], tau: float) -> plt.Figure:
    """Loss, rate under it, the largest logit of each head, the share of each expert of the last layer."""
    figure, ((top, heads), (below, experts)) = plt.subplots(2, 2, figsize=(8.4, 5), layout="constrained")
    rows = history.rows[1:]  # before the first step nothing was chosen
    steps = [row["step"] for row in rows]
    load = torch.tensor([row["expert_load"][-1] for row in rows], dtype=torch.float)  # (looks, E)
    draw_loss(top, history, baselines, VERMILION)
    top.set_ylim(0, 1.2 * max(baselines.values()))
    below.plot(rates, color=GREY)
    heads.plot(steps, torch.tensor([row["max_logits"] for row in rows]).flatten(1), color=VERMILION, lw=0.8)
    heads.axhline(tau, color=GREY, ls="--")
    experts.plot(steps, load / load.sum(1, keepdim=True), color=VERMILION, lw=0.8)
    experts.axhline(1 / load.shape[1], color=GREY, ls="--")
    for axes, label in ((below, "learning rate"), (heads, "largest logit of each head"), (experts, "share of tokens")):
        axes.set(xlabel="step", ylabel=label, ylim=(0, None))
    return figure


@styled
def draw_moment(early: dict[str, tuple[list[int], list[float]]], whole: dict[str, tuple[list[int], list[float]]]):
    """Left, the share of "her" after each hero in the first steps; right, shares over the whole run."""
    figure, (left, right) = new_figure(2, (8.4, 3.2))
    for (name, (steps, shares)), line in zip(early.items(), ("-", "--"), strict=True):
        left.plot(steps, shares, line, color=VERMILION, label=f"after {name}")
    left.axhline(0.5, color=GREY, ls=":", lw=1)
    for (name, (steps, shares)), colour in zip(whole.items(), (SKY, VERMILION), strict=False):
        right.plot(steps, shares, "o-", ms=3, color=colour, label=name)
    left.set(xlabel="step", ylabel="her / (her + his)", ylim=(0, 1.03), title="the first steps")
    right.set(xlabel="step", ylabel="share", ylim=(0, 1.03), title="the whole run")
    left.legend()
    right.legend(loc="lower right")
    return figure


@styled
def draw_complaints(steps: list[int], shares: dict[str, list[float]], coherent: list[float], decay: int) -> plt.Figure:
    """The share of the stories that have each kind of fault, and of those that have none; `decay`: where it begins."""
    figure, axes = new_figure(size=(8, 3.8))
    axes.axvline(decay, color=GREY, ls=":", lw=1.3, label="the rate begins to fall")
    axes.plot(steps, coherent, color="black", lw=2.4, label="coherent")
    for (kind, values), colour in zip(shares.items(), PALETTE, strict=False):
        axes.plot(steps, values, "o-", ms=3, lw=1.5, color=colour, label=kind)
    axes.set(xlabel="step", ylabel="share of the stories told", ylim=(0, 1.03))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_look(row: dict) -> plt.Figure:
    """The story told at one look, and the probabilities of her and his. For `Explorer`, which sets the style."""
    figure, (text, bars) = new_figure(2, (8.4, 3), width_ratios=(2.2, 1))
    text.axis("off")
    text.text(0, 1, textwrap.fill(row["story"][:520] + " ...", 62), va="top", fontsize=9)
    text.set_title(f"step {row['step']}, validation loss {row['val_loss']:.2f}")
    for shift, (word, colour) in zip((-0.2, 0.2), (("her", PURPLE), ("his", GREEN)), strict=True):
        bars.bar([shift, 1 + shift], [row[word]["Lily"], row[word]["Tom"]], 0.4, color=colour, label=word)
    bars.set(xticks=(0, 1), xticklabels=("Lily lost", "Tom lost"), ylabel="probability", ylim=(0, 1.05))
    bars.legend()
    return figure


@styled
def draw_visits(classes: Sequence[str], visits: torch.Tensor) -> plt.Figure:
    """(classes, E): where the words of each class go, as shares of the class's visits."""
    figure, axes = new_figure(size=(6.8, 3.6))
    picture = axes.imshow(visits, vmin=0, vmax=0.5, aspect="auto", cmap="viridis")
    figure.colorbar(picture, label="share of the class's visits")
    axes.set(xlabel="expert of the last layer", xticks=range(visits.shape[1]))
    axes.set_yticks(range(len(classes)), classes)
    axes.grid(visible=False)
    return figure


@styled
def draw_lookups(words: list[str], guesses: dict[str, torch.Tensor]) -> plt.Figure:
    """What each guess looks at: the attention weights (T,) of one head, by what is said."""
    figure, axes = new_figure(size=(8.4, 2.6))
    picture = axes.imshow(torch.stack(list(guesses.values())), cmap="viridis", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(picture, label="weight")
    axes.set_xticks(range(len(words)), words, rotation=60)
    axes.set_yticks(range(len(guesses)), list(guesses))
    axes.set_xlabel("looks at")
    axes.grid(visible=False)
    return figure
