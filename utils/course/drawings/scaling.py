"""Drawings of 08_scaling: copies of a model, whole matrices for Muon, parts of each matrix, sums round a ring, tokens
that travel, and how Kimi K2 was spread out."""

from __future__ import annotations

from itertools import pairwise

from utils.course.drawings.sketch import MUTED, Sketch

OWN = ("sky", "orange")  # what belongs to process 0 and to process 1


def copies() -> Sketch:
    """One batch, two copies of the model, one gradient."""
    draw = Sketch(
        832, 280,
        "A batch of four windows is cut in two. Process 0 takes the first two windows, process 1 the other two; each "
        "has a copy of the model with the same weights and computes a gradient of its own. An all-reduce gives both "
        "the mean of the gradients. Each takes the same step, so the weights stay the same.",
    )  # fmt: skip
    draw.text(82, 10, "one batch", 14, bold=True)
    middle = draw.box(526, 36, 96, 218, "all-reduce:\nthe mean,\nin both", "yellow", 14, bold=True)
    for rank, texts in enumerate((("Lily lost her ...", "Tom found his ..."), ("Once upon a ...", "The dog saw ..."))):
        top = 36 + 122 * rank
        windows = [draw.box(0, top + 50 * i, 164, 40, text, OWN[rank], 14) for i, text in enumerate(texts)]
        y = top + 45
        model = draw.box(216, y - 33, 124, 66, "the model,\na copy", "plain", 15, bold=True)
        gradient = draw.box(378, y - 24, 110, 48, f"gradient {rank}", OWN[rank], 14)
        step = draw.box(660, y - 33, 172, 66, "the same step,\nthe same weights", "green", 14)
        draw.text(model.top[0], model.y - 12, f"process {rank}", 13, colour=MUTED)
        for window in windows:
            draw.arrow(window.right, (model.x, y - 14 if window is windows[0] else y + 14))
        draw.arrow(model.right, gradient.left)
        draw.arrow(gradient.right, (middle.x, y))
        draw.arrow((middle.x + middle.width, y), step.left)
    return draw


def shared_out() -> Sketch:
    """Newton-Schulz of five matrices, each by one process, and all results in both."""
    draw = Sketch(
        832, 262,
        "Both processes have the same five gradients, matrices of different sizes. Process 0 orthogonalises the "
        "largest one, process 1 the four smaller ones. An all-gather then gives the five results to both.",
    )  # fmt: skip
    draw.text(92, 10, "gradients, in both", 14, bold=True)
    sizes = {"A": (48, 32, 88, 88, 0), "B": (6, 134, 80, 46, 1), "C": (98, 134, 80, 46, 1), "D": (6, 190, 80, 46, 1),
             "E": (98, 190, 80, 46, 1)}  # fmt: skip
    for name, (x, y, width, height, owner) in sizes.items():
        draw.box(x, y, width, height, name, OWN[owner], 15, bold=True)
    gather = draw.box(514, 36, 110, 196, "all-gather", "yellow", 15, bold=True)
    results = draw.box(672, 36, 160, 196, "A  B  C\nD  E\northogonal,\nin both", "green", 15)
    for rank, (names, y) in enumerate((("A", 76), ("B, C, D, E", 185))):
        part = draw.box(258, y - 38, 206, 76, f"process {rank}:\nNewton-Schulz of {names}", OWN[rank], 14)
        draw.arrow((184 if rank else 136, y), part.left)
        draw.arrow(part.right, (gather.x, y))
    draw.arrow(gather.right, results.left)
    return draw


def parts() -> Sketch:
    """A matrix of four rows, of which each process holds two, in a forward and a backward pass."""
    draw = Sketch(
        832, 304,
        "A matrix of four rows in five states, for process 0 above and process 1 below. At rest process 0 holds rows 0 "
        "and 1, process 1 rows 2 and 3. An all-gather gives both all four rows, while their block computes. The "
        "backward pass gives each a whole gradient, of its own windows. A reduce-scatter adds them up, and each "
        "keeps the sum of its own two rows. The step changes the two rows that it holds.",
    )  # fmt: skip
    columns = (("held", 72), ("to compute", 240), ("gradient", 408), ("summed", 576), ("after the step", 740))
    for name, x in columns:
        draw.text(x, 10, name, 14, bold=True)
    width, height = 92, 26

    def rows(x: float, y: float, fills: list[str | None], words: str) -> None:
        for i, fill in enumerate(fills):
            draw.box(x - width / 2, y + i * height, width, height, words.format(i) if fill else "",
                     fill or "none", 13, dashed=fill is None, round=2)  # fmt: skip

    for rank in (0, 1):
        y, own = 30 + 146 * rank, [OWN[rank] if i // 2 == rank else None for i in range(4)]
        rows(72, y, own, "row {}")
        rows(240, y, [OWN[0], OWN[0], OWN[1], OWN[1]], "row {}")
        rows(408, y, [OWN[rank]] * 4, f"of x{rank}")
        rows(576, y, ["yellow" if fill else None for fill in own], "of x0 + x1")
        rows(740, y, ["green" if fill else None for fill in own], "row {}")
        for (_, left), (_, right) in pairwise(columns):
            draw.arrow((left + width / 2 + 4, y + 2 * height), (right - width / 2 - 4, y + 2 * height))
    for x, words in ((156, "all-\ngather"), (324, "back-\nward"), (492, "reduce-\nscatter"), (658, "step")):
        draw.text(x, 155, words, 13, colour=MUTED)
    draw.text(0, 296, "above process 0, below process 1; x0 and x1 are their windows", 13, "start", MUTED)
    return draw


def ring() -> Sketch:
    """Three processes that add up three pieces, each talking to the next one only."""
    draw = Sketch(
        832, 274,
        "Three processes, one below the other, with three numbers each: 1, 2, 3, then 10, 20, 30, then 100, 200, 300. "
        "In each round every process passes one number on to the next, the last one to the first, where it is added. "
        "After the first round process 1 has 11, process 2 has 220 and process 0 has 303. After the second round each "
        "has one complete sum: process 0 has 222, process 1 has 333 and process 2 has 111.",
    )  # fmt: skip
    pieces = [[1, 2, 3], [10, 20, 30], [100, 200, 300]]
    width, height, rows = 62, 42, (44, 116, 188)
    for turn, title in enumerate(("at the beginning", "after round 1", "after round 2")):
        left = 104 + 262 * turn
        draw.text(left + 1.5 * width, 14, title, 14, bold=True)
        for rank, top in enumerate(rows):
            passed = (rank - turn) % 3
            for piece, value in enumerate(pieces[rank]):
                fill = ("yellow" if turn < 2 else "green") if piece == passed else "plain"
                draw.box(left + width * piece, top, width, height, str(value), fill, 15, bold=piece == passed, round=2)
            if turn < 2:
                draw.arrow((left + 3 * width + 8, top + height / 2), (left + 254, rows[(rank + 1) % 3] + height / 2))
        given = [pieces[rank][(rank - turn) % 3] for rank in range(3)]
        for rank in range(3):
            pieces[(rank + 1) % 3][(rank - turn) % 3] += given[rank]
    for rank, top in enumerate(rows):
        draw.text(0, top + height / 2, f"process {rank}", 14, "start", MUTED)
    rule = "yellow: passed on to the next process (the last one's to the first) and added there; green: complete"
    draw.text(0, 262, rule, 13, "start", MUTED)
    return draw


def travelling() -> Sketch:
    """Five tokens of two processes and eight experts of which each process holds four."""
    draw = Sketch(
        832, 250,
        "Process 0 has the tokens Lily and lost and the experts 0 to 3; process 1 has her, red and ball and the "
        "experts 4 to 7. Arrows lead from the tokens of each process to the experts of both: an all-to-all takes "
        "every token to its experts, and what they make of it comes back the same way.",
    )  # fmt: skip
    draw.text(416, 28, "all-to-all:\nthere and back", 15, bold=True)
    words = (("Lily", "lost"), ("her", "red", "ball"))
    for rank in (0, 1):
        y = 60 + 124 * rank
        draw.box(0, y - 52, 296, 104, "", "none", dashed=True, round=10)
        draw.text(12, y - 36, f"process {rank}: its tokens", 13, "start", MUTED)
        for i, word in enumerate(words[rank]):
            draw.box(14 + 92 * i, y - 18, 82, 48, word, OWN[rank], 15, bold=True)
        draw.box(536, y - 52, 296, 104, "", "none", dashed=True, round=10)
        draw.text(548, y - 36, f"process {rank}: its experts", 13, "start", MUTED)
        for i in range(4):
            draw.box(550 + 69 * i, y - 18, 60, 48, str(4 * rank + i), OWN[rank], 15, bold=True)
        for expert in (0, 1):
            draw.arrow((296, y + 6), (536, 60 + 124 * expert + (6 if expert == rank else 26 - 40 * expert)))
    return draw


def kimi_grid() -> Sketch:
    """Sixteen stages of layers, each of sixteen GPUs that share the experts: 256 GPUs hold the model once."""
    draw = Sketch(
        832, 290,
        "Sixteen boxes in a row, the stages of a pipeline, each with about four of Kimi K2's 61 layers; tokens go "
        "from left to right and gradients back. One stage is opened: sixteen GPUs, each with twenty-four of the 384 "
        "experts of its layers. Sixteen times sixteen are 256 GPUs, which hold the model once; further groups of 256 "
        "take other windows.",
    )  # fmt: skip
    draw.text(0, 10, "a pipeline of 16 stages: about 4 of the 61 layers in each", 14, "start", bold=True)
    stages = [draw.box(52.4 * i, 30, 44, 44, str(i), "here" if i == 5 else "plain", 14) for i in range(16)]
    for left, right in pairwise(stages):
        draw.line(left.right, right.left)
    frame = draw.box(0, 112, 832, 132, "", "none", dashed=True, round=10)
    draw.line((stages[5].x, 74), (frame.x + 8, frame.y))
    draw.line((stages[5].x + 44, 74), (frame.x + frame.width - 8, frame.y))
    draw.text(416, 130, "one stage: 16 GPUs, 24 of the 384 experts in each", 14, bold=True)
    for i in range(16):
        draw.box(10 + 102 * (i % 8), 148 + 46 * (i // 8), 96, 38, f"{24 * i}-{24 * i + 23}", "orange", 14)
    draw.text(0, 274, "16 x 16 = 256 GPUs hold the model once; further groups of 256 take other windows", 14, "start",
              MUTED)  # fmt: skip
    return draw
