"""One story of the panel: text while it grows, then words to click."""

from __future__ import annotations

import html
import unicodedata
from itertools import pairwise

import ipywidgets as widgets

from utils.panel import paint
from utils.panel.reading import Reading

LOOKS = {"prompt": "font-style:italic;opacity:0.75;", "again": "text-decoration:underline dotted;"}
COPY = "const t = this.nextElementSibling; t.select(); document.execCommand('copy'); this.textContent = 'Copied'"
COPY_BUTTON = (
    '<button class="copy" onclick="{script}">Copy</button>'
    '<textarea readonly tabindex="-1" aria-hidden="true" style="opacity:0;height:1px;width:1px">{text}</textarea>'
)

GAP = 0.3  # em, between words
NARROW = frozenset(",.;:!?'\"’‘“”()-")
CLOSING, OPENING = ("Pe", "Pf", "Po"), ("Ps", "Pi")  # kinds of signs that no line begins with, and that none ends with
MOST_HELD = 10  # pieces on one line: what has no spaces at all must break somewhere


class Column:
    """One story: text while it grows, then words to click."""

    def __init__(self, title: str, reading: Reading):
        self.title, self.reading = title, reading
        self.mark = f"story-{id(self):x}"  # a class for the colours of its words
        self.heading = widgets.HTML(f"<b>{html.escape(title)}</b>" if title else "")
        self.text = widgets.HTML()
        self.text.add_class("growing")
        self.colours, self.details, self.load = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.words: widgets.ToggleButtons | None = None
        self.box = widgets.VBox(layout=widgets.Layout(min_width="0"))
        self.box.add_class(self.mark)
        self.grow(paint.UNCOLOURED)

    def grow(self, colouring: str | int) -> None:
        """Show the story so far."""
        self.text.value = paint.story(self.reading, colouring)
        if self.box.children[1:2] != (self.text,):
            self.box.children = [self.heading, self.text]

    def paint(self, colouring: str | int) -> None:
        """Show the words as buttons, each in its colour."""
        if self.words is None or len(self.words.options) != len(self.reading.words):
            options = [(word.text.strip() or " ", place) for place, word in enumerate(self.reading.words)]
            self.words = widgets.ToggleButtons(options=options, value=None, style={"button_width": "auto"})
            self.words.add_class("words")
            self.words.observe(self._clicked, names="value")
            self.details.value = ""
        rules = []
        for place, margin in enumerate(margins([word.text for word in self.reading.words])):
            colour = paint.veil(self.reading.words[place], colouring, self.reading.n_experts)
            rules.append(_rule(self.mark, place + 1, paint.kind(self.reading, place), colour, *margin))
        self.colours.value = f"<style>{''.join(rules)}</style>"
        self.load.value = f"<details><summary>Load of the experts</summary>{paint.expert_load(self.reading)}</details>"
        copy = COPY_BUTTON.format(script=html.escape(COPY), text=html.escape(self.reading.text))
        self.box.children = [self.heading, self.colours, self.words, self.details, widgets.HTML(copy), self.load]

    def _clicked(self, change: dict) -> None:
        if change["new"] is not None:
            self.details.value = paint.rivals(self.reading, change["new"])


def margins(texts: list[str]) -> list[tuple[float, float]]:
    """The margins of each piece's button, (left, right) in em, with which a row of them wraps between words alone.

    texts: the pieces of a story, each with the space before it. Between two buttons a row may always wrap. So the first
    piece of a word has room at its right for all that clings to it, which the second takes back: nothing moves, but
    where there is no place for both of them the first has wrapped already.
    """
    left, right = [0.0] * len(texts), [0.0] * len(texts)
    starts = [0]
    for place in range(1, len(texts)):
        if begins_line(texts[place], texts[place - 1]) or place - starts[-1] == MOST_HELD:
            starts.append(place)
    for start, end in pairwise([*starts, len(texts)]):
        gap = GAP if end < len(texts) and texts[end][:1].isspace() else 0.0
        if end - start > 1:
            clinging = "".join(texts[start + 1 : end])
            room = gap + sum(map(width_of, clinging))
            right[start], left[start + 1] = room, -room
        if gap:
            right[end - 1] += gap
    return list(zip(left, right, strict=True))


def begins_line(text: str, before: str) -> bool:
    """May a line begin with this piece? After a space, and with what is wide, such as the words of Chinese."""
    clings = unicodedata.category(text[0]) in CLOSING if text else True
    opened = unicodedata.category(before[-1]) in OPENING if before else False
    return text[:1].isspace() or (is_wide(text[:1]) and not clings and not opened)


def is_wide(sign: str) -> bool:
    """Is it one of the signs as wide as high, of Chinese and others, or an emoji?"""
    return sign != "" and unicodedata.east_asian_width(sign) in "WF"


def width_of(sign: str) -> float:
    """About how wide a sign is, in em, rather more than less: fonts differ."""
    if sign in NARROW:
        return 0.5
    return 0.75 if sign.isalnum() and not is_wide(sign) else 1.0


def _rule(mark: str, n: int, kind: str, colour: str, left: float, right: float) -> str:
    """The style of the n-th word's button, counted from 1."""
    looks = f"{LOOKS.get(kind, '')}background:{colour or 'transparent'};margin:1px {right:.2f}em 1px {left:.2f}em;"
    return f".{mark} .words button:nth-of-type({n}) {{ {looks} }}\n"
