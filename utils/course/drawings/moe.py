"""Drawings of chapter 3: an expert, a word's way to two of four, dispatch, and what chooses beside what weighs."""

from __future__ import annotations

from utils.course.drawings.sketch import LINE, MUTED, Sketch

EXPERT_FILL = ("blue", "vermilion", "green", "orange")
WORDS = ("lily", "lost", "her", "red", "ball", ".")
CHOSEN = ((0, 1), (1, 2), (0, 1), (2, 3), (3, 0), (3, 2))  # the experts of each word, first choice first


def one_expert() -> Sketch:
    """A gated feed-forward network, the thing that is chosen."""
    draw = Sketch(
        800, 200,
        "One expert. A word's vector of D numbers goes through two matrices into F numbers each: the value above, the "
        "gate below. The gate passes through SiLU, the two are multiplied, and a third matrix brings the product back "
        "to D numbers.",
    )  # fmt: skip
    x = draw.box(0, 76, 76, 48, "x", "plain")
    value = draw.box(136, 22, 140, 44, "value matrix", "blue")
    gate = draw.box(136, 134, 140, 44, "gate matrix", "blue")
    silu = draw.box(336, 134, 88, 44, "SiLU", "yellow")
    times = draw.circle(500, 100, 17, "×", "yellow")
    down = draw.box(576, 78, 140, 44, "down matrix", "blue")
    draw.arrow((x.x + x.width, 92), (106, 92), (106, value.left[1]), value.left)
    draw.arrow((x.x + x.width, 108), (106, 108), (106, gate.left[1]), gate.left)
    draw.arrow(value.right, (500, value.right[1]), times.top)
    draw.arrow(gate.right, silu.left)
    draw.arrow(silu.right, (500, silu.right[1]), times.bottom)
    draw.arrow(times.right, down.left)
    draw.arrow(down.right, (766, 100))
    draw.text(780, 100, "y")
    draw.shape(38, 140, "(N, D)")
    draw.shape(390, 30, "(N, F)")
    draw.shape(306, 142, "(N, F)")
    draw.shape(456, 142, "(N, F)")
    draw.shape(545, 86, "(N, F)")
    draw.shape(742, 86, "(N, D)")
    return draw


def in_the_block() -> Sketch:
    """What changes in a block of the model: one network becomes a router and several of them."""
    draw = Sketch(
        818, 330,
        "Two blocks of a model, norms and residual connections left out. Above: attention, then one feed-forward "
        "network, which all words pass. Below: attention, then a router, then four feed-forward networks, the experts. "
        "The word uses two of them, whose weighted outputs are added.",
    )  # fmt: skip
    for y, name in ((46, "dense block"), (224, "block with a\nmixture of\nexperts")):
        draw.text(0, y, name, 15, "start", bold=True)
        word = draw.box(124, y - 22, 64, 44, "her", "here", bold=True)
        attention = draw.box(226, y - 22, 116, 44, "attention", "sky")
        draw.arrow(word.right, attention.left)
        if y < 100:
            network = draw.box(532, y - 28, 156, 56, "feed-forward\nnetwork", "blue")
            draw.arrow(attention.right, network.left)
            draw.arrow(network.right, (806, y))
            continue
        router = draw.box(388, y - 22, 92, 44, "router", "yellow")
        draw.arrow(attention.right, router.left)
        plus = draw.circle(752, y, 17, "+")
        for e in range(4):
            runs = e < 2
            expert = draw.box(532, 116 + 56 * e, 156, 46, f"expert {e}", EXPERT_FILL[e] if runs else "none", 15,
                              bold=runs, dashed=not runs)  # fmt: skip
            if runs:
                draw.arrow(router.right, (506, y), (506, expert.left[1]), expert.left)
                end = ((752, expert.right[1]), plus.top) if e == 0 else ((712, expert.right[1]), (712, y), plus.left)
                draw.arrow(expert.right, *end)
            else:
                draw.text(706, expert.right[1], "not used", 13, "start", MUTED)
        draw.arrow(plus.right, (806, y))
    return draw


def one_word() -> Sketch:
    """The way of *her* through the router and two of four experts, with the numbers of the chapter."""
    draw = Sketch(
        818, 330,
        "The word her, the vector 2, 1, meets a router with four directions. The logits are +2 for expert 0, +1 "
        "for expert 1, −2 and −1 for experts 2 and 3. Experts 0 and 1 compute, experts 2 and 3 stay idle. The outputs "
        "2, 1 and 4, 2 are multiplied by 0.731 and 0.269, the softmax of the two logits. Their sum is 2.54, 1.27.",
    )  # fmt: skip
    her = draw.box(0, 140, 88, 58, "her\n(2, 1)", "here", bold=True)
    draw.text(214, 14, "router: 4 logits", 14, colour=MUTED)
    draw.text(388, 14, "experts", 14, colour=MUTED)
    draw.text(566, 14, "× softmax of the top 2", 14, colour=MUTED)
    names = ("right", "up", "left", "down")
    logits, weights, outputs = ("+2", "+1", "−2", "−1"), ("0.731", "0.269"), ("(2, 1)", "(4, 2)")
    plus = draw.circle(672, 169, 17, "+")
    for e in range(4):
        y = 34 + 76 * e
        runs = e < 2
        fill = EXPERT_FILL[e] if runs else "none"
        logit = draw.box(152, y, 124, 50, f"{names[e]}: {logits[e]}", fill, bold=runs, dashed=not runs)
        draw.arrow((her.x + her.width, 169), (120, 169), (120, logit.left[1]), logit.left)
        expert = draw.box(326, y, 124, 50, f"expert {e}\n× {e + 1}" if runs else f"expert {e}\ndoes not run",
                          fill, 14, dashed=not runs)  # fmt: skip
        if runs:
            draw.arrow(logit.right, expert.left)
            weight = draw.box(526, y + 5, 90, 40, f"× {weights[e]}", fill, bold=True)
            draw.arrow(expert.right, weight.left)
            draw.text(488, y + 12, outputs[e], 13, colour=MUTED)
            way = ((672, weight.right[1]), plus.top) if e == 0 else ((638, weight.right[1]), (638, 169), plus.left)
            draw.arrow(weight.right, *way)
    out = draw.box(706, 140, 112, 58, "output\n(2.54, 1.27)", "plain", 14)
    draw.arrow(plus.right, out.left)
    draw.text(672, 256, "0.731 · (2, 1)\n+ 0.269 · (4, 2)", 14, colour=MUTED)
    return draw


def sort_and_group() -> Sketch:
    """Six words to their experts and back: the flow of shapes in sorted dispatch."""
    row, height = 25, 300
    draw = Sketch(
        818, 386,
        "Sorted dispatch in five columns. Six words, each with two experts. Their twelve visits are sorted by expert, "
        "so that the three rows of each of the four experts lie together. Each expert computes its block in one "
        "product. The results go back into the order of the words, two for each word, and are weighed and summed to "
        "six outputs.",
    )  # fmt: skip
    top = 36
    visits = sorted((e, n, k) for n, pair in enumerate(CHOSEN) for k, e in enumerate(pair))

    def of_word(n: int) -> float:
        return top + 50 * n

    def of_row(i: int) -> float:
        return top + row * i

    for n, word in enumerate(WORDS):
        draw.box(0, of_word(n) + 8, 62, 34, word, "plain", 14)
        draw.box(756, of_word(n) + 8, 62, 34, word, "plain", 14)
    for i, (e, n, k) in enumerate(visits):
        y = of_row(i) + row / 2
        draw.line((62, of_word(n) + 25), (150, y), colour=LINE)
        draw.box(150, of_row(i) + 1.5, 66, row - 3, WORDS[n], EXPERT_FILL[e], 13, round=3)
        draw.box(396, of_row(i) + 1.5, 66, row - 3, WORDS[n], EXPERT_FILL[e], 13, round=3)
        draw.line((462, y), (556, of_word(n) + row * (k + 0.5)), colour=LINE)
    for e in range(4):
        block = top + 3 * row * e
        expert = draw.box(256, block + 14, 100, 3 * row - 28, f"expert {e}", EXPERT_FILL[e], 14, bold=True)
        draw.arrow((216, expert.left[1]), expert.left)
        draw.arrow(expert.right, (396, expert.right[1]))
    for n, pair in enumerate(CHOSEN):
        for k, e in enumerate(pair):
            draw.box(556, of_word(n) + row * k + 1.5, 66, row - 3, WORDS[n], EXPERT_FILL[e], 13, round=3)
        draw.line((628, of_word(n) + 4), (634, of_word(n) + 4), (634, of_word(n) + 46), (628, of_word(n) + 46))
        draw.arrow((634, of_word(n) + 25), (756, of_word(n) + 25))
    for x, title in ((31, "words"), (183, "sorted"), (306, "4 products"), (429, "results"), (589, "sort undone")):
        draw.text(x, 14, title, 14, colour=MUTED)
    draw.text(787, 14, "output", 14, colour=MUTED)
    draw.text(694, of_word(0) + 12, "weigh, sum", 13, colour=MUTED)
    for x, shape in ((31, "(6, D)"), (183, "(12, D)"), (429, "(12, D)"), (589, "(6, 2, D)"), (787, "(6, D)")):
        draw.shape(x, top + height + 18, shape)
    for x, words in ((106, "collect the rows"), (509, "each row to its place")):
        draw.text(x, top + height + 42, words, 13, colour=MUTED)
    return draw


def choice_and_weight() -> Sketch:
    """What chooses and what weighs, for *her* with a bias on expert 3."""
    draw = Sketch(
        818, 346,
        "Four columns for four experts. The scores of her are 0.881, 0.731, 0.119 and 0.269. On the left way a bias of "
        "0, 0, 0 and 0.5 is added, which gives 0.881, 0.731, 0.119 and 0.769: experts 0 and 3 are chosen. On the right "
        "way the scores without the bias are taken from these two, divided by their sum and multiplied by the square "
        "root of 2: the weights are 1.083 and 0.331.",
    )  # fmt: skip
    left, step, width = 180, 98, 84
    rows = (
        (30, "score s", ("0.881", "0.731", "0.119", "0.269")),
        (102, "bias b", ("0", "0", "0", "0.5")),
        (174, "choice score s + b", ("0.881", "0.731", "0.119", "0.769")),
    )
    for e in range(4):
        draw.text(left + step * e + width / 2, 12, f"expert {e}", 14, colour=MUTED)
    for y, name, values in rows:
        draw.text(left - 24, y + 21, name, 15, "end")
        for e, value in enumerate(values):
            on = e in (0, 3) or y < 170
            draw.box(left + step * e, y, width, 42, value, EXPERT_FILL[e] if on else "none", 15, dashed=not on,
                     bold=y > 170 and on)  # fmt: skip
    for e in range(4):
        draw.text(left + step * e + width / 2, 87, "+", 16, bold=True)
        draw.text(left + step * e + width / 2, 159, "=", 16, bold=True)
    draw.text(left - 24, 271, "the two largest", 15, "end")
    weights = {0: "1.083", 3: "0.331"}
    draw.text(left - 24, 319, "weight g", 15, "end")
    for e in range(4):
        x = left + step * e + width / 2
        if e in weights:
            draw.arrow((x, 216), (x, 250))
            draw.text(x, 271, "chosen", 14)
            draw.box(left + step * e, 298, width, 42, weights[e], EXPERT_FILL[e], 15, bold=True)
        else:
            draw.text(x, 271, "not chosen", 13, colour=MUTED)
    side = left + 4 * step + 30
    draw.arrow((left + 3 * step + width, 51), (side, 51), (side, 319), (left + 3 * step + width, 319))
    draw.text(side + 14, 51, "the weight takes\nthe score itself", 14, "start")
    draw.text(side + 14, 195, "the bias chooses\nand goes no further", 14, "start", MUTED)
    draw.text(side + 14, 306, "√2 · 0.881 / 1.150\n√2 · 0.269 / 1.150", 14, "start")
    return draw
