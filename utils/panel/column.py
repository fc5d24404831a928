"""One story of the panel: text while it grows, then words to click."""

from __future__ import annotations

import html

import ipywidgets as widgets

from utils.panel import paint
from utils.panel.reading import Reading

LOOKS = {"prompt": "font-style:italic;opacity:0.75;", "again": "text-decoration:underline dotted;"}
COPY = "const t = this.nextElementSibling; t.select(); document.execCommand('copy'); this.textContent = 'Copied'"
COPY_BUTTON = (
    '<button class="copy" onclick="{script}">Copy</button>'
    '<textarea readonly tabindex="-1" aria-hidden="true" style="opacity:0;height:1px;width:1px">{text}</textarea>'
)


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
        for place, word in enumerate(self.reading.words):
            colour = paint.veil(word, colouring, self.reading.n_experts)
            kind, after = paint.kind(self.reading, place), self.reading.words[place + 1 : place + 2]
            stands_apart = any(next_word.text[:1].isspace() for next_word in after)
            rules.append(_rule(self.mark, place + 1, kind, colour, stands_apart))
        self.colours.value = f"<style>{''.join(rules)}</style>"
        self.load.value = f"<details><summary>Load of the experts</summary>{paint.expert_load(self.reading)}</details>"
        copy = COPY_BUTTON.format(script=html.escape(COPY), text=html.escape(self.reading.text))
        self.box.children = [self.heading, self.colours, self.words, self.details, widgets.HTML(copy), self.load]

    def _clicked(self, change: dict) -> None:
        if change["new"] is not None:
            self.details.value = paint.rivals(self.reading, change["new"])


def _rule(mark: str, n: int, kind: str, colour: str, stands_apart: bool) -> str:
    """The style of the n-th word's button, counted from 1; one before a space stands apart from the next."""
    looks = LOOKS.get(kind, "")
    gap = "margin-right:0.3em;" if stands_apart else ""
    return f".{mark} .words button:nth-of-type({n}) {{ {looks}background:{colour or 'transparent'};{gap} }}\n"
