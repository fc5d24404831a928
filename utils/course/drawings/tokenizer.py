"""Drawings of 01 · Tokenizer: from text to rows of a table, bytes, the merges of a piece, tokens as boxes, a window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape

from utils.bpe import BPETokenizer
from utils.course.drawings.sketch import INK, MUTED, Place, Sketch
from utils.merges import halves
from utils.tokenizer import WordTokenizer, split_words

ORANGE, BLUES = "#FAE7C0", ((0.002, "#E8F1F8"), (0.0002, "#B5D3E9"), (0.0, "#7FB2D9"))  # by the share of a token


def text_to_rows() -> Sketch:
    """The sentence as text, as tokens, as ids, and as the rows that the ids pick out of a table."""
    words, ids = ["lily", "lost", "her", "red", "ball", "."], [165, 64, 10, 45, 100, 2]
    draw = Sketch(
        720, 506,
        "Four stages from top to bottom. The text Lily lost her red ball with its full stop is cut into six tokens; "
        "each token has an id, such as 10 for her; and each id picks the row of that number out of a table with V rows "
        "and D columns. Lines lead from row 10 and the five others to six rows in the order of the sentence.",
    )  # fmt: skip
    for y, name, shape in ((22, "text", "str"), (98, "tokens", "T strings"), (174, "ids", "(T,)")):
        draw.text(0, y - 9, name, 15, "start", bold=True)
        draw.shape(0, y + 12, shape, "start")
    left, step, width = 112, 88, 74
    right = left + 5 * step + width
    draw.box(left, 0, right - left, 44, "“Lily lost her red ball.”", "none", 16)
    for i, (word, number) in enumerate(zip(words, ids, strict=True)):
        x, fill = left + i * step, "yellow" if word == "her" else "plain"
        draw.box(x, 80, width, 36, word, fill, 15)
        draw.box(x, 156, width, 36, str(number), fill, 15)
        draw.arrow((x + width / 2, 46), (x + width / 2, 78))
        draw.arrow((x + width / 2, 118), (x + width / 2, 154))
    draw.text(right + 14, 62, "cut", 14, "start", MUTED)
    draw.text(right + 14, 136, "number", 14, "start", MUTED)
    _look_up(draw, dict(zip(words, ids, strict=True)), top=278)
    return draw


def _look_up(draw: Sketch, ids: Mapping[str, int], top: float) -> None:
    """The table on the left, and on the right the rows that the words pick from it, in their order."""
    cell, table, picked, high, gap = 30, 178, 438, 24, 16
    height = len(ids) * high + (len(ids) - 1) * gap
    tall = height / len(ids)
    draw.text(table + 2 * cell, top - 36, "the table", 15, bold=True)
    draw.shape(table + 2 * cell, top - 15, "(V, D)")
    draw.text(picked + 2 * cell, top - 36, "the rows", 15, bold=True)
    draw.shape(picked + 2 * cell, top - 15, "(T, D)")
    draw.text((table + picked) / 2 + 2 * cell, top - 36, "look up", 14, colour=MUTED)
    place = {number: top + k * (high + gap) for k, number in enumerate(sorted(ids.values()))}
    for number, y in place.items():
        draw.text(table - 10, y + high / 2, f"row {number}", 14, "end")
        if y > top:
            draw.text(table + 2 * cell, y - gap / 2, "· · ·", 13, colour=MUTED)
    for i, (word, number) in enumerate(ids.items()):
        here, y = word == "her", top + i * tall
        for k in range(4):
            draw.box(table + k * cell, place[number], cell, high, "", "yellow" if here else "plain", round=2)
            draw.box(picked + k * cell, y, cell, tall, "", "yellow" if here else "sky", round=2)
        draw.text(picked + 4 * cell + 12, y + tall / 2, word, 15, "start", bold=here)
        ends = (table + 4 * cell + 4, place[number] + high / 2), (picked - 4, y + tall / 2)
        if here:
            draw.arrow(*ends)
        else:
            draw.line(*ends)


def one_window() -> Sketch:
    """One window of six tokens across the end of a story: x, and y one place further."""
    row = [(word, "blue") for word in ("lily", "lost", "her", "red", "ball", ".")]
    row += [("<|endof\ntext|>", "yellow")]
    row += [(word, "green") for word in ("tom", "found", "it", ".")]
    draw = Sketch(
        806, 262,
        "One long row of tokens: the end of a story, then the special token endoftext, then the beginning of the next "
        "story. A window of six tokens, x, runs across the border. Below it stands y, the same row one place further: "
        "an arrow leads from each token of x to the token that follows it.",
    )  # fmt: skip
    left, step, width, start, size = 80, 66, 62, 2, 6
    for name, shape, y in (("the row", "(n,)", 46), ("x", "(T,)", 146), ("y", "(T,)", 232)):
        draw.text(0, y - 10, name, 15, "start", bold=True)
        draw.shape(0, y + 11, shape, "start")

    def put(token: tuple[str, str], column: int, y: float) -> Place:
        word, fill = token
        return draw.box(left + column * step, y, width, 44, word, fill, 13 if "\n" in word else 15)

    for column, token in enumerate(row):
        put(token, column, 24)
    draw.text(left + 3 * step - 2, 8, "a story", 13, colour=MUTED)
    draw.text(left + 9 * step - 2, 8, "the next", 13, colour=MUTED)
    low, high = left + start * step, left + (start + size) * step - 4
    draw.line((low, 76), (low, 84), (high, 84), (high, 76), colour=INK, width=1.6)
    draw.text((low + high) / 2, 98, "a window of T = 6 tokens", 13, colour=MUTED)
    for column in range(start, start + size):
        above, below = put(row[column], column, 124), put(row[column + 1], column, 210)
        draw.arrow((above.bottom[0], above.bottom[1] + 2), (below.top[0], below.top[1] - 2))
    draw.text(high + 16, 188, "what comes next?", 13, "start", MUTED)
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


def as_they_cut(compared: Mapping[str, tuple[WordTokenizer | BPETokenizer, str]]) -> Callable[[str], str]:
    """A function that draws a sentence as boxes, once for each tokenizer. compared: by name, with its text."""
    seen = {name: Counter(tokenizer.encode(text)) for name, (tokenizer, text) in compared.items()}

    def draw(sentence: str) -> str:
        drawn = ""
        for name, (tokenizer, _) in compared.items():
            ids, pieces = tokenizer.encode(sentence), split_words(sentence)
            if isinstance(tokenizer, BPETokenizer):
                pieces = [tokenizer.decode_bytes([i]).decode("utf-8", "backslashreplace") for i in ids]
                pieces = [piece.replace(" ", "␣").replace("\n", "⏎") for piece in pieces]
            boxes = token_boxes(pieces, ids, [seen[name][i] / seen[name].total() for i in ids], tokenizer.unk_id)
            drawn += f"<p><b>{name}</b>: {len(ids)} tokens<br>{boxes}</p>"
        return drawn

    return draw
