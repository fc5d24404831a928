"""The panel's controls: core widgets in its layout, and sliders as `Sampling` declares its settings."""

from __future__ import annotations

import html

import ipywidgets as widgets

from utils.generation import Sampling
from utils.settings import defaults_of, settings_of

# Core widgets have no keys of their own: the panel's style sheet, once loaded, lets Escape press Stop.
ESCAPE = """
const panel = this.closest('.story-demo');
const press = e => {
  if (!panel.isConnected) document.removeEventListener('keydown', press, true);
  else if (e.key === 'Escape') panel.querySelector('button.stop').click();
};
document.addEventListener('keydown', press, true);
"""
WHOLE = "calc(100% - 4px)"  # of a row, but for the margins that every widget has
LABEL = {"description_width": "110px"}  # of what stands at the left, so that all of it begins at one line


def slider(kind: type, description: str, value: float, lowest: float, highest: float, step: float) -> widgets.Widget:
    """A slider of the kind IntSlider or FloatSlider."""
    layout = widgets.Layout(width="330px", max_width=WHOLE)
    return kind(value=value, min=lowest, max=highest, step=step, description=description, style=LABEL, layout=layout)


def sampling_slider(name: str, description: str) -> widgets.Widget:
    """The slider of a field of `Sampling`, with its bounds, its default (0 for None) and its help text."""
    setting = settings_of(Sampling)[name]
    kind = widgets.IntSlider if setting.kind is int else widgets.FloatSlider
    made = slider(kind, description, defaults_of(Sampling)[name] or 0, *setting.slider)
    tooltip = "tooltip" if made.has_trait("tooltip") else "description_tooltip"  # ipywidgets 8, or 7
    setattr(made, tooltip, setting.help)
    return made


def dropdown(options: list, description: str, **others) -> widgets.Dropdown:
    """A choice, as wide as its words need."""
    layout = widgets.Layout(width="auto", max_width=WHOLE)
    return widgets.Dropdown(options=options, description=description, layout=layout, **others)


def width(value: str) -> widgets.Layout:
    return widgets.Layout(width=value)


def row(*children: widgets.Widget) -> widgets.Box:
    return widgets.Box(children, layout=widgets.Layout(display="flex", flex_flow="row wrap", align_items="flex-end"))


def side_by_side() -> widgets.Box:
    """Columns of one width, as many in a row as the page has room for."""
    columns = "repeat(auto-fit, minmax(min(300px, 100%), 1fr))"
    box = widgets.Box(layout=widgets.Layout(display="grid", grid_template_columns=columns, grid_gap="0 24px"))
    box.add_class("stories")
    return box


def button(description: str, style: str = "") -> widgets.Button:
    return widgets.Button(description=description, button_style=style, layout=widgets.Layout(width="auto"))


def escape_key(style: str) -> widgets.HTML:
    """An invisible widget with the panel's style sheet, which once loaded lets Escape press Stop."""
    return widgets.HTML(f'<style onload="{html.escape(ESCAPE)}">{style}</style>')
