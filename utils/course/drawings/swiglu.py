"""The drawings of chapter 4: one hidden unit with a gate, and a plain layer beside a gated one of equal size."""

from __future__ import annotations

from utils.course.drawings.sketch import MUTED, Sketch


def one_unit() -> Sketch:
    """One hidden unit: value times SiLU(gate), with the numbers of the chapter."""
    draw = Sketch(
        800, 250,
        "One hidden unit of a gated layer. The word's D numbers go two ways. Above, a row of w_up[0] makes the value, "
        "2. Below, a row of w_up[1] makes the gate, minus 3, and SiLU bends it to minus 0.142. The two are "
        "multiplied: minus 0.285 goes on to w_down.",
    )  # fmt: skip
    word = draw.box(0, 92, 116, 66, "one word\n(here: her)", "blue")
    draw.shape(58, 176, "(D,)")
    value = draw.box(176, 24, 128, 58, "a row of\nw_up[0]", "orange")
    gate = draw.box(176, 168, 128, 58, "a row of\nw_up[1]", "green")
    silu = draw.box(414, 168, 84, 58, "SiLU", "green", bold=True)
    times = draw.circle(584, 125, 22, "×", "yellow")
    down = draw.box(684, 96, 116, 58, "a column\nof w_down", "plain")
    draw.arrow(word.right, (146, word.right[1]), (146, value.left[1]), value.left)
    draw.arrow(word.right, (146, word.right[1]), (146, gate.left[1]), gate.left)
    draw.arrow(value.right, (584, value.right[1]), times.top)
    draw.arrow(gate.right, silu.left)
    draw.arrow(silu.right, (584, silu.right[1]), times.bottom)
    draw.arrow(times.right, down.left)
    draw.text(444, 38, "value 2: what could be said", 14)
    draw.text(359, 184, "gate −3", 14)
    draw.text(541, 184, "−0.142", 14)
    draw.text(456, 240, "how much of it passes", 14, colour=MUTED)
    draw.text(645, 112, "−0.285", 14)
    return draw


def plain_and_gated() -> Sketch:
    """A plain feed-forward layer beside a gated one, the area of each matrix to scale."""
    d = 45  # pixels for D
    draw = Sketch(
        814, 344,
        "Two layers of equal size, the areas of their matrices to scale. Left, the plain layer: x of width D goes "
        "through w_up, D wide and 4 D high, then SiLU, then w_down, 4 D wide and D high: two matrices, 8 D squared "
        "weights. Right, the gated layer: x goes through two matrices, value and gate, each D wide and 8/3 D high; the "
        "gate is bent by SiLU, the two are multiplied, and w_down leads back: three matrices, again 8 D squared "
        "weights.",
    )  # fmt: skip

    middle = 186
    draw.text(196, 10, "plain: 2 matrices of D · 4D = 8 D²", 16, bold=True)
    x = draw.box(0, middle - d / 2, 22, d, "x", "blue", round=3)
    up = draw.box(46, middle - 2 * d, d, 4 * d, "w_up", "orange", 14, round=2)
    silu = draw.box(115, middle - 20, 54, 40, "SiLU", "green", bold=True)
    down = draw.box(193, middle - d / 2, 4 * d, d, "w_down", "purple", round=2)
    y = draw.box(397, middle - d / 2, 22, d, "y", "blue", round=3)
    for start, end in ((x, up), (up, silu), (silu, down), (down, y)):
        draw.arrow(start.right, end.left)
    draw.shape(up.centre[0], middle + 2 * d + 16, "(4D, D)")
    draw.shape(down.centre[0], middle + d / 2 + 16, "(D, 4D)")

    left, f = 452, 8 / 3 * d
    draw.text(left + 180, 10, "gated: 3 matrices of D · 8/3 D = 8 D²", 16, bold=True)
    x = draw.box(left, middle - d / 2, 22, d, "x", "blue", round=3)
    value = draw.box(left + 56, middle - f - 10, d, f, "value", "orange", 14, round=2)
    gate = draw.box(left + 56, middle + 10, d, f, "gate", "green", 14, round=2)
    silu = draw.box(left + 123, gate.centre[1] - 20, 54, 40, "SiLU", "green", bold=True)
    times = draw.circle(left + 150, middle, 17, "×", "yellow")
    down = draw.box(left + 194, middle - d / 2, f, d, "w_down", "purple", round=2)
    y = draw.box(left + 340, middle - d / 2, 22, d, "y", "blue", round=3)
    draw.arrow(x.right, (left + 38, middle), (left + 38, value.left[1]), value.left)
    draw.arrow(x.right, (left + 38, middle), (left + 38, gate.left[1]), gate.left)
    draw.arrow(value.right, (times.top[0], value.right[1]), times.top)
    draw.arrow(gate.right, silu.left)
    draw.arrow(silu.top, times.bottom)
    draw.arrow(times.right, down.left)
    draw.arrow(down.right, y.left)
    draw.shape(value.centre[0], value.y - 14, "(8/3 D, D)")
    draw.shape(gate.centre[0], gate.y + f + 16, "(8/3 D, D)")
    draw.shape(down.centre[0], middle + d / 2 + 16, "(D, 8/3 D)")
    return draw
