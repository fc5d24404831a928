"""A `Reading` as HTML: its words in colours, the rivals of a word, the load of the experts.

Colours are veils over the page's own background, so that the text stays readable in dark and light themes. Everything
that a reader or a model wrote is escaped.
"""

from __future__ import annotations

import base64
import colorsys
from html import escape

from utils.panel.reading import Reading, Word

STYLE = """
.story-demo { max-width: 60em; }
.story-demo .stories { margin: 8px 2px; overflow: visible; }
.story-demo .stories:empty::before { content: "Here a story will stand: press Generate."; opacity: 0.7; }
.story-demo .story, .story-demo .words { font-size: 16px; line-height: 1.7; }
.story-demo .story { white-space: pre-wrap; overflow-wrap: anywhere; margin: 4px 0; }
.story-demo .growing .story::after { content: "\\25CF"; margin-left: 0.3em; opacity: 0.5; }
.story-demo .story span { padding: 1px 0; border-radius: 3px; }
.story-demo .prompt { font-style: italic; opacity: 0.75; }
.story-demo .again { text-decoration: underline dotted; text-underline-offset: 3px; }
.story-demo .words, .story-demo .words > div { display: flex; flex-wrap: wrap; width: auto; height: auto; margin: 0; }
.story-demo .words { margin: 0 2px; }
.story-demo .words button { width: auto; height: auto; min-width: 0; padding: 0; margin: 1px 0; border: none;
  box-shadow: none; font: inherit; line-height: calc(1.7em - 2px); color: inherit; border-radius: 3px;
  cursor: pointer; }
.story-demo .words button:hover { outline: 1px solid currentColor; }
.story-demo .words button:focus-visible, .story-demo .words button.mod-active { outline: 2px solid currentColor; }
.story-demo .chosen { font-weight: bold; }
.story-demo .bar { display: inline-block; height: 0.8em; background: #0072B2; border-radius: 2px; }
.story-demo table.rivals td, .story-demo table.load td { padding: 0 8px 0 0; text-align: left; border: none;
  line-height: 1.4; white-space: nowrap; }
.story-demo table.rivals td:last-child { white-space: normal; }
.story-demo .copy { font: inherit; color: inherit; line-height: 1.4; padding: 4px 10px; border: none; cursor: pointer;
  background: rgba(128,128,128,0.2); border-radius: 2px; }
.story-demo .error { border-left: 4px solid #D55E00; padding-left: 8px; }
.story-demo .jupyter-widget-Collapse-header, .story-demo .p-Collapse-header { background: none; border: none;
  font-weight: normal; color: inherit; padding: 4px 0; }
.story-demo .jupyter-widget-Collapse-contents, .story-demo .p-Collapse-contents { border: none; padding: 0;
  background: none; }
@media (max-width: 600px) {
  .story-demo .widget-inline-hbox { flex-wrap: wrap; height: auto; }
  .story-demo .widget-inline-hbox > select { min-height: 28px; }
  .story-demo .widget-inline-hbox > .widget-label { width: 100% !important; text-align: left; }
}
"""
UNCOLOURED, BY_PROBABILITY = "not", "by probability"


def expert_colour(expert: int, n_experts: int) -> str:
    """A veil for an expert; neighbours differ in hue, and hues go round once."""
    r, g, b = colorsys.hsv_to_rgb(expert / n_experts, 0.8, 0.9)
    return f"rgba({255 * r:.0f},{255 * g:.0f},{255 * b:.0f},0.35)"


def veil(word: Word, colouring: str | int, n_experts: int) -> str:
    """The CSS background of a word: `colouring` is UNCOLOURED, BY_PROBABILITY or a layer. "" for none."""
    if colouring == BY_PROBABILITY and word.probability is not None:
        return f"rgba(213,94,0,{0.6 * (1 - word.probability):.2f})"  # the more surprising, the redder
    if colouring in word.experts:
        return expert_colour(word.experts[colouring][0], n_experts)
    return ""


def story(reading: Reading, colouring: str | int = UNCOLOURED) -> str:
    """The whole story, word by word."""
    n_experts = reading.n_experts
    spans = []
    for place, word in enumerate(reading.words):
        colour = veil(word, colouring, n_experts)
        style = f' style="background:{colour}"' if colour else ""
        text = word.text.lstrip(" ")  # the gap before a word belongs to no colour
        gap = " " * (len(word.text) - len(text))
        spans.append(f'{gap}<span class="{kind(reading, place)}"{style}>{escape(text)}</span>')
    return f'<div class="story">{"".join(spans)}</div>'


def kind(reading: Reading, place: int) -> str:
    """prompt, again (a word of the prompt that the model uses) or told."""
    if place < reading.n_prompt:
        return "prompt"
    return "again" if reading.repeats_prompt(reading.words[place]) else "told"


def rivals(reading: Reading, place: int) -> str:
    """The ten likeliest words at a place, with their probabilities; the chosen one stands out."""
    word = reading.words[place]
    name = escape(reading.name(word.token))
    experts = "".join(
        f"<br>layer {layer + 1}: read by expert{'s' if len(chosen) > 1 else ''} {', '.join(map(str, chosen))}"
        for layer, chosen in word.experts.items()
    )
    if word.probability is None:
        return f"<p><b>{name}</b>: said by the prompt{experts}</p>"
    rows = [_rival(reading, token, p, token == word.token) for token, p in word.rivals]
    if word.token not in [token for token, _ in word.rivals]:
        rows.append(_rival(reading, word.token, word.probability, True))
    head = f"<p>Word {place - reading.n_prompt + 1}: <b>{name}</b>, probability {word.probability:.3f}{experts}</p>"
    return f'{head}<table class="rivals">{"".join(rows)}</table>'


def _rival(reading: Reading, token: int, p: float, chosen: bool) -> str:
    mark = ' class="chosen"' if chosen else ""
    sign = "&larr;&nbsp;chosen" if chosen else ""
    bar = f'<span class="bar" style="width:{100 * p:.0f}px"></span>'
    return f"<tr{mark}><td>{escape(reading.name(token))}</td><td>{p:.3f}</td><td>{bar} {sign}</td></tr>"


def expert_load(reading: Reading) -> str:
    """How many words each expert of each layer has read, as bars in the experts' colours."""
    rows = []
    for layer, load in reading.expert_load().items():
        most = max(*load, 1)
        for expert, count in enumerate(load):
            colour = expert_colour(expert, len(load))
            bar = f'<span class="bar" style="width:{100 * count / most:.0f}px;background:{colour}"></span>'
            name = f"layer {layer + 1}" if expert == 0 else ""
            rows.append(f"<tr><td>{name}</td><td>expert {expert}</td><td>{bar} {count}</td></tr>")
    return f'<table class="load">{"".join(rows)}</table>'


def link(text: str, filename: str, content: str, kind: str) -> str:
    """A link that saves `content` as a file, without a server."""
    data = base64.b64encode(content.encode("utf-8")).decode("ascii")
    return f'<a download="{escape(filename)}" href="data:{kind};base64,{data}">{escape(text)}</a>'
