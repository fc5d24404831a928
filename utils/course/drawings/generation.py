"""Drawings of chapter 7: one step of generation, a line to throw at, the cache over time, one prompt for many."""

from __future__ import annotations

from collections.abc import Sequence

from utils.course.drawings.sketch import MUTED, Sketch

WORDS_FILL = ("purple", "green", "sky", "orange")


def one_step() -> Sketch:
    """One step of generation, with the section in which each part is built."""
    draw = Sketch(
        832, 336,
        "One step of generation. The prompt Lily lost becomes ids, which the model reads all at once; what it keeps of "
        "them goes into a cache. It gives a logit for every word of the vocabulary. The logits are reshaped by a "
        "penalty, a temperature and a cut, one word is drawn and becomes text. It is appended: the model reads this "
        "one word and the cache, and the next step begins.",
    )  # fmt: skip
    y = 92
    prompt = draw.box(0, y - 26, 86, 52, '"Lily\nlost"', "none", 15)
    model = draw.box(164, y - 36, 112, 72, "the model\nreads", "plain", 15, bold=True)
    logits = draw.box(318, y - 28, 96, 56, "logits (1)", "sky", 15)
    reshape = draw.box(456, y - 54, 144, 108, "reshape:\npenalty (6)\ntemperature (4)\ncut (5)", "vermilion", 15)
    dart = draw.box(662, y - 28, 76, 56, "draw\n(3)", "yellow", 15)
    draw.arrow(prompt.right, model.left)
    draw.text(112, y - 52, "prefill:\nall at once", 13, colour=MUTED)
    draw.arrow(model.right, logits.left)
    draw.arrow(logits.right, reshape.left)
    draw.arrow(reshape.right, dart.left)
    draw.shape(43, y + 42, "(B, T)")
    draw.shape(366, y + 44, "(B, V)")
    draw.shape(631, y + 20, "(B, V)")
    word = draw.box(762, 238, 70, 48, "her", "here", 15, bold=True)
    draw.arrow(dart.right, (797, y), word.top)
    draw.shape(802, y - 16, "(B,)")

    cache = draw.box(164, 176, 112, 48, "cache (8)", "green", 15)
    draw.arrow((192, y + 36), (192, cache.y))
    draw.arrow((248, cache.y), (248, y + 36))
    draw.text(288, 190, "keeps what it has", 13, "start", MUTED)
    draw.text(288, 210, "read of each word", 13, "start", MUTED)

    append = draw.box(456, 238, 144, 48, "append", "plain", 15)
    draw.arrow(word.left, append.right)
    draw.arrow(append.left, (124, append.left[1]), (124, y + 22), (164, y + 22))
    draw.text(302, append.left[1] - 14, "the next step reads this one word", 13, colour=MUTED)
    show = draw.box(650, 300, 100, 36, "show (11)", "none", 14)
    draw.arrow(word.bottom, (797, show.right[1]), show.right)
    return draw


def line_of_words(
    words: Sequence[str] = ("her", "his", "the", "cup"), p: Sequence[float] = (0.644, 0.237, 0.087, 0.032),
    dart: float = 0.7,
) -> Sketch:  # fmt: skip
    """The probabilities end to end from 0 to 1, and a dart."""
    draw = Sketch(
        800, 150,
        f"A line from 0 to 1, on which the words {', '.join(words)} lie end to end, each as long as its probability. "
        f"A dart at {dart} hits the second word.",
    )  # fmt: skip
    left, width, y, x = 20.0, 760.0, 62, 0.0
    for word, share, fill in zip(words, p, WORDS_FILL, strict=True):
        name = word if share > 0.06 else ""
        draw.box(left + width * x, y, width * share, 40, name, fill, 16, bold=True, round=0)
        if not name:
            draw.text(left + width * (x + share / 2), y - 14, word, 15, bold=True)
        x += share
        if x < 0.999:
            anchor = "middle" if x < 0.95 else "end"  # the 1 stands close behind it
            draw.text(left + width * x, y + 58, f"{x:.3f}", 14, anchor, MUTED)
    draw.text(left, y + 58, "0", 14, colour=MUTED)
    draw.text(left + width, y + 58, "1", 14, colour=MUTED)
    draw.arrow((left + width * dart, 22), (left + width * dart, y))
    draw.text(left + width * dart, 8, f"dart {dart}", 15)
    return draw


def cache_over_time(prompt: Sequence[str] = ("once", "upon", "a", "time"), told: int = 5) -> Sketch:
    """Which positions are computed in each step, without a cache and with one."""
    draw = Sketch(
        832, 330,
        "Two tables, a row for each step and a column for each position of the story. Left, without a cache: the first "
        "step computes 4 positions, the next 5, then 6, 7 and 8, together 30. Right, with a cache: the first step "
        "computes the 4 of the prompt, every later one only the newest, together 8; the older ones are kept.",
    )  # fmt: skip
    cell, gap = 38, 44
    total = len(prompt) + told - 1
    for left, again, title in ((70, True, "read again"), (478, False, "with a cache")):
        count = 0
        draw.text(left + total * cell / 2, 10, title, 16, bold=True)
        for step in range(told):
            y = 34 + step * gap
            n = len(prompt) + step
            for i in range(n):
                new = again or step == 0 or i == n - 1
                count += new
                draw.box(left + i * cell, y, cell - 4, 34, "", "vermilion" if new else "green", round=4)
            if left < 100:
                draw.text(left - 12, y + 17, f"step {step + 1}", 13, "end", MUTED)
        y = 34 + told * gap + 12
        draw.text(left + total * cell / 2, y, f"{count} positions computed", 15)
    y = 322
    draw.box(196, y - 14, 28, 24, "", "vermilion", round=4)
    draw.text(234, y - 2, "computed in this step", 14, "start")
    draw.box(448, y - 14, 28, 24, "", "green", round=4)
    draw.text(486, y - 2, "kept from an earlier step", 14, "start")
    return draw


def prefill_once() -> Sketch:
    """One prompt, read once, and the stories that go on from copies of its cache."""
    draw = Sketch(
        832, 210,
        "The prompt is read once and leaves one cache behind. Three copies of it are put together as a batch of three "
        "stories. From there on each step reads one new word of each of the three.",
    )  # fmt: skip
    prompt = draw.box(0, 78, 150, 54, '"... Lily lost"\nread once', "plain", 14)
    cache = draw.box(206, 78, 110, 54, "its cache", "green", 15, bold=True)
    draw.arrow(prompt.right, cache.left)
    draw.shape(261, 150, "(1, T, ...)")
    for i, words in enumerate((("her", "ball", "."), ("his", "kite", "."), ("her", "way", "in"))):
        y = 19 + 64 * i
        copy = draw.box(430, y, 110, 44, "a copy", "green", 15)
        draw.arrow(cache.right, (366, 105), (366, y + 22), copy.left)
        x = copy.x + copy.width
        for word in words:
            draw.box(x + 22, y, 66, 44, word, "here", 15)
            draw.arrow((x, y + 22), (x + 22, y + 22))
            x += 88
        draw.text(x + 16, y + 22, "...", 15, colour=MUTED)
    draw.text(700, 0, "one word of each story a step", 13, colour=MUTED)
    return draw
