"""A picture with controls: move a slider, and the picture is drawn anew.

Only core widgets that ipywidgets 7 and 8 share. Where no kernel runs (GitHub, a printed page) the first picture stands
in the place of the widget.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable

import ipywidgets as widgets
import matplotlib.pyplot as plt

from utils.plots import STYLE

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class Explorer:
    """Shows what draw(**values) returns, a figure or HTML, for the values of the controls.

    controls: by name, a widget or what stands for one: (lowest, highest, step) or (lowest, highest) of numbers for a
    slider, a list for a choice, a text for a text field. `alt` describes the picture to those who do not see it.
    """

    def __init__(self, draw: Callable[..., plt.Figure | str], alt: str, **controls):
        self.draw, self.alt = draw, alt
        self.controls = {name: _control(name, value) for name, value in controls.items()}
        self.first = self._drawn()
        self.picture = widgets.HTML(self._as_html(self.first))
        self.box = widgets.VBox([*self.controls.values(), self.picture])
        for control in self.controls.values():
            control.observe(self._redraw, names="value")

    def _drawn(self) -> bytes | str:
        """The picture for the present values: a PNG, or HTML."""
        with plt.rc_context(STYLE):
            drawn = self.draw(**{name: control.value for name, control in self.controls.items()})
        if isinstance(drawn, str):
            return drawn
        file = io.BytesIO()
        drawn.savefig(file, format="png")
        plt.close(drawn)
        return file.getvalue()

    def _as_html(self, drawn: bytes | str) -> str:
        if isinstance(drawn, str):
            return drawn
        data = base64.b64encode(drawn).decode("ascii")
        return f'<img alt="{html.escape(self.alt)}" style="max-width: 100%" src="data:image/png;base64,{data}">'

    def _redraw(self, _change) -> None:
        try:
            self.picture.value = self._as_html(self._drawn())
        except Exception as error:  # shown where the reader looks, and the controls stay usable
            self.picture.value = f"<p><b>{type(error).__name__}</b>: {html.escape(str(error))}</p>"

    def __repr__(self) -> str:
        return f"Explorer({', '.join(f'{name}={control.value!r}' for name, control in self.controls.items())})"

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        still = {"text/html": self.first} if isinstance(self.first, str) else {"image/png": self._still()}
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        return {"text/plain": repr(self), **still, WIDGET_VIEW: view}

    def _still(self) -> str:
        return base64.b64encode(self.first).decode("ascii")


def _control(name: str, value) -> widgets.Widget:
    control = value if isinstance(value, widgets.Widget) else widgets.interactive.widget_from_abbrev(value)
    control.description = control.description or name.replace("_", " ")
    if hasattr(control, "continuous_update"):
        control.continuous_update = False  # a picture for each resting place of the slider, not for each pixel
    return control
