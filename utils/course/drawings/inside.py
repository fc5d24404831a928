"""Drawings of 09_inside_kimi_k2: a file of weights, a number of eight bits, and a block that reads what it uses."""

from __future__ import annotations

from utils.course.drawings.sketch import MUTED, Sketch


def weight_file() -> Sketch:
    """The tiny file: length, header, and the data of two tensors, to which the header's offsets lead."""
    draw = Sketch(
        832, 216,
        "A file of weights as a row of boxes. Eight bytes hold the length of the header. The header is JSON: norm is "
        "F32 of shape 2 from byte 0 to 8, words is BF16 of shape 2 by 3 from byte 8 to 20. Behind it lie the numbers: "
        "those of norm, then the two rows of words. Offsets count from the end of the header, and arrows lead from "
        "the header's entries to their places.",
    )  # fmt: skip
    y, height = 92, 52
    length = draw.box(0, y, 84, height, "length", "yellow", 15, bold=True, round=2)
    header = draw.box(84, y, 318, height, '{"norm": [0, 8], "words": [8, 20]}', "sky", 14, round=2)
    norm = draw.box(402, y, 130, height, "0.5  0.25", "green", 15, round=2)
    rows = [draw.box(532 + 150 * i, y, 150, height, text, "orange", 15, round=2)
            for i, text in enumerate(("1  2  3", "4  5  6"))]  # fmt: skip
    draw.text(length.centre[0], y + 72, "8 bytes", 13, colour=MUTED)
    draw.text(header.centre[0], y + 72, "the header, JSON", 13, colour=MUTED)
    draw.text(norm.centre[0], y + 72, "norm, F32", 13, colour=MUTED)
    draw.text(682, y + 72, "words, BF16, row by row", 13, colour=MUTED)
    draw.arrow((length.centre[0], y), (length.centre[0], 62), (header.x + 1, 62), (header.x + 1, y), dashed=True)
    draw.arrow((190, y), (190, 36), (norm.x + 6, 36), (norm.x + 6, y))
    draw.arrow((318, y), (318, 64), (rows[0].x + 6, 64), (rows[0].x + 6, y))
    draw.text(418, 36, "here norm begins", 13, "start", MUTED)
    draw.text(548, 64, "here words begins", 13, "start", MUTED)
    draw.text(402, 200, "byte 0 of the offsets is here", 13, colour=MUTED)
    draw.arrow((402, 188), (402, y + height + 2))
    return draw


def eight_bits() -> Sketch:
    """The eight bits of 1.125 in e4m3 and what they say."""
    draw = Sketch(
        832, 158,
        "Eight boxes in a row for the bits 0 0111 001. The first is the sign, plus. The next four are the exponent, 7, "
        "less 7 is 0. The last three are the fraction, one eighth. Together: plus, one and one eighth, times 2 to the "
        "power of 0, is 1.125.",
    )  # fmt: skip
    bits, fills = "00111001", ["plain"] + ["sky"] * 4 + ["orange"] * 3
    boxes = []
    for i, (bit, fill) in enumerate(zip(bits, fills, strict=True)):
        gap = 26 * ((i > 0) + (i > 4))
        boxes.append(draw.box(14 + 56 * i + gap, 30, 50, 56, bit, fill, 22, bold=True, round=3))
    sign, exponent, fraction = boxes[0], boxes[1:5], boxes[5:]
    draw.text(sign.centre[0], 12, "sign", 14, bold=True)
    draw.text((exponent[0].x + exponent[3].x + 50) / 2, 12, "exponent", 14, bold=True)
    draw.text((fraction[0].x + fraction[2].x + 50) / 2, 12, "fraction", 14, bold=True)
    places = (sign.centre[0], (exponent[0].x + exponent[3].x + 50) / 2, (fraction[0].x + fraction[2].x + 50) / 2)
    for x, words in zip(places, ("+", "7, and\n7 - 7 = 0", "1, an eighth"), strict=True):
        draw.arrow((x, 90), (x, 116))
        draw.text(x, 138 if "\n" in words else 132, words, 15)
    result = draw.box(590, 30, 242, 56, "+ (1 + 1/8) x 2^0 = 1.125", "green", 15, bold=True)
    draw.arrow((fraction[2].x + 54, 58), result.left)
    draw.text(711, 118, "exponent 0000 is special:\nno leading 1, so zero exists", 13, colour=MUTED)
    return draw


def lazily() -> Sketch:
    """A prompt through one lazy block: what is read from the disk, what stays there."""
    draw = Sketch(
        832, 328,
        "Above, the model in memory; below, the files on the disk. Six ids become vectors by reading six rows of the "
        "embedding's table. A block reads its attention, norms and router whole. The router chooses experts 1 and 4 "
        "for the tokens of the prompt, and only these two of eight are read; the others stay on the disk. After its "
        "turn the block lets go of everything, and the next block reads its own.",
    )  # fmt: skip
    draw.text(0, 12, "in memory, while it runs", 14, "start", bold=True)
    draw.text(0, 260, "on the disk,\nor on the hub", 14, "start", bold=True)
    ids = draw.box(0, 64, 96, 60, "ids of\nthe text", "none", 14)
    rows = draw.box(134, 64, 112, 60, "rows of\nits words", "orange", 14, bold=True)
    draw.box(284, 30, 470, 126, "", "none", dashed=True, round=12)
    draw.text(744, 44, "one block at a time", 13, "end", MUTED)
    attention = draw.box(304, 64, 120, 60, "attention\nand norms", "sky", 14, bold=True)
    router = draw.box(462, 64, 96, 60, "router", "sky", 14, bold=True)
    experts = draw.box(596, 64, 138, 60, "experts\n1 and 4", "orange", 14, bold=True)
    after = draw.box(786, 64, 46, 60, "...", "none", 15)
    for left, right in ((ids, rows), (rows, attention), (attention, router), (router, experts), (experts, after)):
        draw.arrow(left.right, right.left)
    table = draw.box(134, 218, 112, 84, "", "plain", round=3)
    for i in range(6):
        draw.box(table.x, table.y + 14 * i, table.width, 14, "", "orange" if i in (1, 4) else "plain", round=1)
    whole = draw.box(304, 218, 254, 84, "read whole", "sky", 14, round=3)
    store = []
    for i in range(8):
        x, y = 596 + 36 * (i % 4), 218 + 44 * (i // 4)
        chosen = i in (1, 4)
        store.append(draw.box(x, y, 30, 40, str(i), "orange" if chosen else "plain", 14, bold=chosen, round=3))
    draw.arrow((190, 218), (190, 128))
    draw.arrow((364, 218), (364, 128))
    draw.arrow((510, 218), (510, 128))
    draw.arrow((store[1].centre[0], 218), (store[1].centre[0], 128))
    draw.arrow((588, 282), (578, 282), (578, 190), (616, 190), (616, 128))
    draw.line(store[4].left, (588, 282), colour="#1b1f24", width=1.6)
    draw.text(670, 318, "the other six are not read", 13, colour=MUTED)
    draw.text(whole.centre[0], 318, "all of it, for every text", 13, colour=MUTED)
    draw.text(table.centre[0], 318, "single rows", 13, colour=MUTED)
    return draw
