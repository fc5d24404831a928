"""Drawings of chapter 2: one look back, the mask, heads and their shapes, a turn, the stream, the cache."""

from __future__ import annotations

import math
from collections.abc import Sequence

from utils.course.drawings.sketch import INK, MUTED, Sketch


def pair(vector: Sequence[float]) -> str:
    """A vector of few numbers as words: "2, 0.5"."""
    return ", ".join(f"{value:g}" for value in vector)


def look_back(
    words: Sequence[str], keys: Sequence, values: Sequence, query: Sequence, asks: str, scores: Sequence[float],
    weights: Sequence[float], mixture: Sequence[float],
) -> Sketch:  # fmt: skip
    """One word asks, every word answers: keys, scores, weights and values of a look back, one column for each word."""
    shares = ", ".join(f"{word} {weight:.1%}" for word, weight in zip(words, weights, strict=True))
    draw = Sketch(
        860, 356,
        f"One look back. The query of {asks} is compared with the key of every word, which gives a score for each; the "
        f"softmax makes shares of the scores: {shares}. The values, each times its share, add up to the mixture.",
    )  # fmt: skip
    left, step, width = 190, 128, 108
    for y, name in ((152, "score = q·k"), (206, "weight"), (326, "sum")):
        draw.text(left - 16, y, name, 14, "end", MUTED)
    ask = draw.box(0, 34, 124, 48, f"query of {asks}\n{pair(query)}", "orange", 14)
    along = ask.right[1]  # the query goes to every key
    draw.line(ask.right, (left + (len(words) - 1) * step + width / 2, along), colour=INK, width=1.6)
    for i, word in enumerate(words):
        x, middle = left + i * step, left + i * step + width / 2
        draw.box(x, 0, width, 38, word, "here" if word == asks else "plain", 15, bold=True)
        draw.arrow((middle, along), (middle, 80))
        draw.box(x, 82, width, 36, f"key {pair(keys[i])}", "sky", 15)
        draw.text(middle, 152, f"{scores[i]:g}", 16)
        draw.box(x, 192, width, 28, "", "none", round=4)
        draw.box(x, 192, max(weights[i] * width, 4), 28, "", "blue", round=4)
        draw.text(middle, 206, f"{weights[i]:.1%}", 14)
        draw.box(x, 256, width, 36, f"value {pair(values[i])}", "green", 15)
        draw.arrow((middle, 120), (middle, 140))
        draw.arrow((middle, 164), (middle, 190))
        draw.arrow((middle, 222), (middle, 254))
        draw.line((middle, 294), (middle, 326))
    last = left + len(words) * step
    draw.text(last - 8, 178, "softmax", 14, "start", MUTED)
    draw.text(last - 8, 238, "times the value", 14, "start", MUTED)
    draw.line((left + width / 2, 326), (last - step + width / 2, 326))
    mixed = draw.box(last + 12, 300, 860 - last - 12, 52, f"mixture:\n{pair(mixture)}", "orange", 14)
    draw.arrow((last - step + width / 2, 326), mixed.left)
    return draw


def grid(draw: Sketch, x: float, y: float, words: Sequence[str], seen: str, hidden: str, names: bool) -> None:
    """Rows ask, columns are looked at: `seen` on and below the diagonal, `hidden` above it."""
    cell = 46
    for i, word in enumerate(words):
        draw.text(x + (i + 0.5) * cell, y - 14, word, 14)
        if names:
            draw.text(x - 10, y + (i + 0.5) * cell, word, 14, "end")
        for j in range(len(words)):
            may = j <= i
            draw.box(x + j * cell, y + i * cell, cell, cell, seen if may else hidden, "blue" if may else "plain", 15,
                     round=0)  # fmt: skip


def the_mask(words: Sequence[str] = ("lily", "lost", "her", "red", "ball")) -> Sketch:
    """Scores with the future at minus infinity, and the weights that the softmax makes of them."""
    draw = Sketch(
        800, 320,
        "Two square tables, a row for each word that asks and a column for each word looked at. Left, scores: on and "
        "below the diagonal they stay, above it stands minus infinity. Right, after the softmax: weights on and below "
        "the diagonal, zero above it, and each row sums to 1.",
    )  # fmt: skip
    top = 66
    draw.text(185, 8, "scores", 16, bold=True)
    grid(draw, 70, top, words, "s", "−∞", True)
    draw.text(0, top + 250, "this word asks (row)", 13, "start", MUTED)
    draw.text(418, top + 86, "softmax\nof each row", 14, colour=MUTED)
    draw.arrow((330, top + 115), (506, top + 115))
    draw.text(637, 8, "weights", 16, bold=True)
    grid(draw, 522, top, words, "w", "0", False)
    draw.text(637, top + 250, "each row sums to 1", 13, colour=MUTED)
    return draw


def heads_and_shapes() -> Sketch:
    """Multi-head attention from (B, T, D) to (B, T, D), with the shape after each step."""
    draw = Sketch(
        880, 300,
        "The shapes of multi-head attention. x (B, T, D) goes through three matrices; queries, keys and values are "
        "split into heads, (B, H, T, d) each. Queries times keys are scores (B, H, T, T), the mask and the softmax "
        "make weights of them, weights times values give (B, H, T, d); the heads are merged to (B, T, D) and mixed by "
        "a last matrix.",
    )  # fmt: skip
    x = draw.box(0, 106, 62, 48, "x", "plain", 16, bold=True)
    draw.shape(31, 170, "(B, T, D)")
    rows = {"q": (18, "orange"), "k": (106, "sky"), "v": (194, "green")}
    split = {}
    for name, (y, fill) in rows.items():
        matrix = draw.box(104, y, 62, 48, f"W_{name}", "plain", 15)
        split[name] = draw.box(226, y, 92, 48, f"{name} in\nH heads", fill, 14)
        draw.arrow(x.right, (84, x.right[1]), (84, matrix.left[1]), matrix.left)
        draw.arrow(matrix.right, split[name].left)
        draw.shape(272, y + 62, "(B, H, T, d)")
    draw.text(196, 88, "split", 13, colour=MUTED)
    scores = draw.box(370, 58, 84, 54, "q kᵀ / √d", "plain", 14)
    draw.shape(412, 128, "(B, H, T, T)")
    draw.arrow(split["q"].right, (344, split["q"].right[1]), (344, 76), (370, 76))
    draw.arrow(split["k"].right, (344, split["k"].right[1]), (344, 96), (370, 96))
    weights = draw.box(496, 58, 84, 54, "mask,\nsoftmax", "plain", 14)
    draw.shape(538, 128, "(B, H, T, T)")
    draw.arrow(scores.right, weights.left)
    mixed = draw.box(496, 180, 84, 54, "weights\ntimes v", "green", 14)
    draw.shape(538, 250, "(B, H, T, d)")
    draw.arrow((538, 138), mixed.top)
    draw.arrow(split["v"].right, (470, split["v"].right[1]), (470, mixed.left[1]), mixed.left)
    merged = draw.box(630, 180, 78, 54, "merge\nheads", "plain", 14)
    draw.shape(669, 250, "(B, T, D)")
    draw.arrow(mixed.right, merged.left)
    last = draw.box(748, 180, 52, 54, "W_o", "plain", 15)
    draw.arrow(merged.right, last.left)
    draw.arrow(last.right, (838, 207))
    draw.text(858, 207, "y", 16, bold=True)
    draw.shape(841, 250, "(B, T, D)")
    draw.text(750, 62, "each head has a map of\nits own: H maps of T x T", 14, colour=MUTED)
    return draw


def hand(draw: Sketch, centre: tuple[float, float], angle: float, length: float, colour: str) -> None:
    """A hand of a clock, with an open head of its own colour."""
    x, y = centre
    tip = x + length * math.cos(angle), y - length * math.sin(angle)
    sides = [(tip[0] - 12 * math.cos(angle + turn), tip[1] + 12 * math.sin(angle + turn)) for turn in (0.45, -0.45)]
    draw.line(centre, tip, colour=colour, width=3)
    draw.line(sides[0], tip, sides[1], colour=colour, width=3)


def turns(places: Sequence[tuple[int, int]], theta: float, q_angle: float = 0.46, k_angle: float = -0.36) -> Sketch:
    """Query and key as arrows on a clock, turned by `theta` for each place; one clock for each (i, j) of `places`."""
    draw = Sketch(
        40 + 270 * len(places), 250,
        "Clocks with two hands, a query turned to its place and a key turned to its place: "
        + "; ".join(f"places {i} and {j}" for i, j in places)
        + ". Where the two places are equally far apart, the angle between the hands is the same.",
    )  # fmt: skip
    radius = 84
    for n, (i, j) in enumerate(places):
        x, y = 150 + 270 * n, 112
        draw.circle(x, y, radius)
        for place, angle, name, colour in ((i, q_angle, "q", "#b26a00"), (j, k_angle, "k", "#0072B2")):
            turned = angle + place * theta
            along, up = math.cos(turned), -math.sin(turned)
            hand(draw, (x, y), turned, 0.84 * radius, colour)
            draw.text(x + 1.17 * radius * along, y + 1.17 * radius * up, name, 16, colour=colour, bold=True)
        draw.text(x, 232, f"q at {i}, k at {j}: distance {i - j}", 14)
    return draw


def residual_stream() -> Sketch:
    """A block as two branches beside a stream: each reads a normed copy and adds what it found."""
    draw = Sketch(
        860, 250,
        "The residual stream runs straight through a block from left to right. Twice a copy leaves it, goes through a "
        "norm and then attention or the experts, and comes back to be added to the stream. Nothing else touches it.",
    )  # fmt: skip
    y = 196
    draw.box(96, y - 13, 664, 26, "", "blue", round=4)
    draw.text(0, y, "x from the\nblock before", 13, "start")
    draw.text(860, y, "x for the\nnext block", 13, "end")
    draw.text(552, y, "the residual stream: only added to", 14, colour=MUTED)
    branches = (130, "attention", "here", "looks at\nother words"), (450, "experts", "plain", "think about\nthis word")
    for x, name, fill, what in branches:
        norm = draw.box(x, 62, 72, 44, "norm", "plain", 15)
        branch = draw.box(x + 106, 56, 108, 56, name, fill, 16, bold=True)
        draw.text(x + 160, 24, what, 13, colour=MUTED)
        draw.arrow((x + 36, y - 14), norm.bottom)
        draw.arrow(norm.right, branch.left)
        plus = draw.circle(x + 262, y, 15, "+", fill)
        draw.arrow(branch.right, (x + 262, branch.right[1]), plus.top)
        draw.text(x + 48, 146, "a copy", 13, "start", MUTED)
        draw.text(x + 254, 146, "what it found", 13, "end", MUTED)
    draw.text(260, 236, "x = x + attention(norm(x))", 14, code=True)
    draw.text(600, 236, "x = x + experts(norm(x))", 14, code=True)
    return draw


def cache_steps(words: Sequence[str] = ("lily", "lost", "her", "red")) -> Sketch:
    """What is computed in each step of writing: without a cache every row again, with one the new row alone."""
    draw = Sketch(
        860, 320,
        "Four steps of writing, from left to right. Above, without a cache: in step t the keys and values of all t "
        "words are computed. Below, with a cache: the rows of earlier words are kept, and only the new word's row is "
        "computed.",
    )  # fmt: skip
    row, width = 26, 64
    for n in range(len(words)):
        x = 150 + 182 * n
        draw.text(x + width, 4, f"step {n + 1}", 14, bold=True)
        for top, keeps in ((20, False), (182, True)):
            for t in range(n + 1):
                new = t == n or not keeps
                for c, kind in enumerate(("k", "v")):
                    place = x + c * width, top + t * row, width, row
                    draw.box(*place, f"{kind} {words[t]}", "here" if new else "sky", 13, round=2)
    draw.text(0, 72, "without\na cache", 15, "start", bold=True)
    draw.text(0, 234, "with\na cache", 15, "start", bold=True)
    draw.line((0, 152), (860, 152))
    draw.box(0, 302, 22, 16, "", "here", round=2)
    draw.text(30, 310, "computed in this step", 13, "start")
    draw.box(220, 302, 22, 16, "", "sky", round=2)
    draw.text(250, 310, "kept from an earlier step", 13, "start")
    return draw
