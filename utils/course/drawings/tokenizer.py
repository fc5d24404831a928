"""Drawings of 01 · Tokenizer: from text to rows of a table, bytes of some characters, the merges of one piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from utils.course.drawings.sketch import INK, MUTED, Sketch
from utils.merges import halves

ORANGE, BLUES = "#FAE7C0", ((0.002, "#E8F1F8"), (0.0002, "#B5D3E9"), (0.0, "#7FB2D9"))  # by the share of a token


def text_to_rows() -> Sketch:
    """The sentence as text, as tokens, as ids, and as rows of a table with four columns."""
    words, ids = ["lily", "lost", "her", "red", "ball", "."], [165, 64, 10, 45, 100, 2]
    draw = Sketch(
        800, 356,
        "Four stages from top to bottom. The text Lily lost her red ball with its full stop is cut into six tokens; "
        "each token has an id, such as 10 for her; and each id picks one row of a table with V rows and D columns, so "
        "that six tokens become six rows of numbers.",
    )  # fmt: skip
    for y, name, shape in (
        (22, "text", "str"),
        (98, "tokens", "T strings"),
        (174, "ids", "(T,)"),
        (286, "rows", "(T, D)"),
    ):
        draw.text(0, y - 9, name, 15, "start", bold=True)
        draw.shape(0, y + 12, shape, "start")
    left, step, width = 112, 80, 68
    draw.box(left, 0, 5 * step + width, 44, "“Lily lost her red ball.”", "none", 16)
    for i, (word, number) in enumerate(zip(words, ids, strict=True)):
        x, fill = left + i * step, "yellow" if word == "her" else "plain"
        middle = x + width / 2
        draw.box(x, 80, width, 36, word, fill, 15)
        draw.box(x, 156, width, 36, str(number), fill, 15)
        for k in range(4):
            draw.box(x + width / 2 - 15, 232 + 27 * k, 30, 27, "", "yellow" if word == "her" else "sky", round=2)
        draw.arrow((middle, 46), (middle, 78))
        draw.arrow((middle, 118), (middle, 154))
        draw.arrow((middle, 194), (middle, 230))
    draw.text(left + 5 * step + width + 14, 62, "cut", 14, "start", MUTED)
    draw.text(left + 5 * step + width + 14, 136, "number", 14, "start", MUTED)
    draw.text(left + 5 * step + width + 14, 212, "look up", 14, "start", MUTED)
    x, y, rows = 676, 232, 5
    draw.text(x + 54, 212, "the table", 14, bold=True)
    for r in range(rows):
        for k in range(4):
            draw.box(x + 27 * k, y + 22 * r, 27, 22, "", "yellow" if r == 3 else "plain", round=2)
    draw.shape(x + 54, y + 22 * rows + 14, "(V, D)")
    draw.text(x - 8, y + 22 * 3.5, "row 10", 14, "end", colour=INK)
    return draw


def bytes_of_characters() -> Sketch:
    """L, é, the euro and a balloon: one character each, and one to four bytes."""
    draw = Sketch(
        760, 236,
        "Four characters and the bytes that UTF-8 writes for them. The letter L is the one byte 76. The letter e with "
        "an acute accent is two bytes, 195 and 169. The euro sign is three, 226, 130 and 172. A balloon (an emoji) is "
        "four bytes, 240, 159, 142 and 136.",
    )  # fmt: skip
    draw.text(0, 40, "a character", 15, "start", bold=True)
    draw.text(0, 168, "its bytes", 15, "start", bold=True)
    draw.text(0, 190, "each 0 to 255", 13, "start", MUTED)
    x = 122
    for sign, fill in (("L", "blue"), ("é", "green"), ("€", "orange"), ("🎈", "vermilion")):
        values = list(sign.encode("utf-8"))
        width = 60 * len(values)
        middle = x + width / 2
        draw.box(middle - 30, 10, 60, 60, "" if sign == "🎈" else sign, "none", 30)
        if sign == "🎈":
            draw.circle(middle, 34, 15, "", "vermilion")
            draw.line((middle, 49), (middle + 4, 55), (middle - 3, 60), (middle, 66), colour=INK)
        draw.shape(middle, 88, f"U+{ord(sign):04X}")
        for k, value in enumerate(values):
            place = draw.box(x + 60 * k, 146, 60, 44, str(value), fill, 16, round=4)
            draw.arrow((middle, 100), (place.centre[0], 144))
        draw.text(middle, 212, f"{len(values)} byte{'s' if len(values) > 1 else ''}", 13, colour=MUTED)
        x += width + 12
    return draw


def merge_tree(token: bytes, ranks: Mapping[bytes, int]) -> Sketch:
    """How training joined the bytes of `token`, two pieces at a time, with the id of each piece."""
    found = []  # (first leaf, last leaf, height, text, id)

    def grow(piece: bytes, first: int) -> int:
        parts = halves(piece, ranks) if len(piece) > 1 else [piece]
        height = 0
        if len(parts) > 1:
            height = 1 + max(grow(parts[0], first), grow(parts[1], first + len(parts[0])))
        found.append((first, first + len(piece) - 1, height, piece, parts))
        return height

    levels = grow(token, 0)
    cell, step = 800 / max(8, len(token)), 78
    place = {(a, b): ((a + b + 1) / 2 * cell, (levels - height) * step) for a, b, height, *_ in found}
    written = token.decode().replace(" ", "␣")
    draw = Sketch(
        cell * len(token), levels * step + 62,
        f"A tree whose leaves are the bytes of the piece {written}, from left to right. Neighbours are joined two at a "
        f"time to larger pieces, each with the id that it got when it was learned, until one piece is left at the top.",
    )  # fmt: skip
    for first, last, height, _, parts in found:
        x, y = place[first, last]
        if height:
            middle = first + len(parts[0])
            for part in ((first, middle - 1), (middle, last)):
                below = place[part]
                draw.line((x, y + 46), (below[0], below[1]), width=1.6)
    for first, last, height, piece, _ in found:
        x, y = place[first, last]
        text = piece.decode().replace(" ", "␣")
        width = max(54, 11 * len(text) + 24)
        fill = "here" if height == levels else "sky" if height else "plain"
        box = draw.box(x - width / 2, y, width, 48, "", fill)
        draw.text(box.centre[0], y + 16, text, 16, bold=height > 0, code=True)
        draw.text(box.centre[0], y + 36, str(ranks[piece]), 13, colour=MUTED)
    return draw


def token_boxes(pieces: Sequence[str], ids: Sequence[int], shares: Sequence[float], unknown: int | None) -> str:
    """A sentence as boxes, as HTML: each piece over its id, the darker the rarer; unknown ones dashed and orange."""
    boxes = []
    for piece, i, share in zip(pieces, ids, shares, strict=True):
        colour = ORANGE if i == unknown else next(blue for least, blue in BLUES if share >= least)
        border = "2px dashed" if i == unknown else "1px solid"
        style = (
            f"display: inline-block; margin: 2px; padding: 2px 6px; border: {border} #333; border-radius: 4px; "
            f"color: #000; background: {colour}; text-align: center; white-space: pre; font-family: monospace"
        )
        boxes.append(f'<span style="{style}">{escape(piece)}<br><small>{i}</small></span>')
    return "".join(boxes)
