"""The story demo: a panel that tells stories while you watch, stops when told, and shows what the model was thinking.

    story_demo(model)
    story_demo(model, before=load_model("runs/first")[0])    # the same prompt and seed, side by side

It runs in Colab, JupyterLab, Notebook and VS Code, with core widgets alone. What a story is and how it is stopped does
not depend on widgets: see `reading` and `runner`.
"""

from __future__ import annotations

import html
import itertools
import json
import random
import time
from collections.abc import Generator
from pathlib import Path

import ipywidgets as widgets

from utils.files import write_text
from utils.model import Kimi
from utils.panel import paint
from utils.panel.column import Column
from utils.panel.controls import LABEL, button, dropdown, escape_key, row, sampling_slider, side_by_side, slider, width
from utils.panel.reading import Reading, refuse_mute
from utils.panel.runner import Runner

EXAMPLES = (
    "Once upon a time",
    "Lily lost her red ball. She",
    "One day, Tom and his dog went to the park. Suddenly,",
    '"I am so sad," said the little bird.',
)
EVERY = 0.1  # seconds between two pictures of a growing story: the browser needs 20 ms for each, on the model's cores
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def story_demo(model: Kimi, **others: Kimi) -> StoryDemo:
    """A panel in which `model` tells stories, and beside it `others` by name, from the same prompt and seed.

    Raises ValueError for what is no model, such as the folder of a run, and for a model without a tokenizer.
    """
    return StoryDemo({"model": model, **others} if others else {"": model})


class StoryDemo:
    """The panel. `box` is its widget; `columns` hold the stories that stand side by side."""

    def __init__(self, models: dict[str, Kimi], opening_words: int = 250):
        for name, model in models.items():
            refuse_mute(model, name)
        self.models, self.columns = models, []
        self._make_controls()
        self.runner = Runner(self.stop, [self.generate, self.go_on, self.prompt])
        self.runner.on_click(self.generate, self._generate)
        self.runner.on_click(self.go_on, self._continue)
        self.runner.on_enter(self.prompt, self._generate)
        self.examples.observe(self._take_example, names="value")
        self.colouring.observe(lambda _: self._paint(), names="value")
        self.dice.on_click(lambda _: setattr(self.seed, "value", random.randrange(10_000)))
        self.clear.on_click(lambda _: self._clear())
        self.save.on_click(lambda _: self._save())
        self._open_with(opening_words)

    def _make_controls(self) -> None:
        block = min(model.config.block_size for model in self.models.values())
        self.prompt = widgets.Text(EXAMPLES[0], description="Prompt", style=LABEL, layout=width("100%"))
        self.examples = dropdown(["...", *EXAMPLES], "Examples", style=LABEL)
        self.temperature = sampling_slider("temperature", "Temperature")
        self.also_at = widgets.Text("", description="and at", placeholder="0.3, 1.2", layout=width("200px"))
        self.length = slider(widgets.IntSlider, "Length (words)", min(150, 4 * block), 10, 500, 10)
        self.top_k = sampling_slider("top_k", "Top-k (0: all)")
        self.top_p = sampling_slider("top_p", "Top-p")
        self.min_p = sampling_slider("min_p", "Min-p")
        self.penalty = sampling_slider("repetition_penalty", "Repetition")
        self.seed = widgets.BoundedIntText(0, min=0, max=2**31 - 1, description="Seed", layout=width("180px"))
        self.dice = button("Roll a seed")
        self.generate, self.stop = button("Generate", "primary"), button("Stop", "danger")
        self.go_on, self.clear, self.save = button("Continue"), button("Clear"), button("Save")
        self.stop.add_class("stop")
        first = next(iter(self.models.values()))
        layers = {f"by expert of layer {layer + 1}": layer for layer in first.layers_with_experts()}
        choices = {"not": paint.UNCOLOURED, "by probability": paint.BY_PROBABILITY, **layers}
        self.colouring = dropdown(list(choices.items()), "Colour", value=paint.BY_PROBABILITY)
        self.status, self.saved = widgets.HTML(), widgets.HTML()
        self.stories = side_by_side()
        more = widgets.Accordion([row(self.top_k, self.top_p, self.min_p, self.penalty)], selected_index=None)
        more.set_title(0, "More settings")
        self.box = widgets.VBox([
            escape_key(paint.STYLE), row(self.prompt), row(self.examples),
            row(self.temperature, self.also_at), row(self.length, self.seed, self.dice), more,
            row(self.generate, self.stop, self.go_on, self.clear, self.colouring), self.status,
            self.stories, row(self.save, self.saved),
        ])  # fmt: skip
        self.box.add_class("story-demo")

    # What the buttons do

    def _take_example(self, change: dict) -> None:
        if change["new"] in EXAMPLES:
            self.prompt.value = change["new"]

    def _generate(self) -> None:
        try:
            readings = self._new_readings()
        except ValueError as error:
            self._tell_error(error)
            return
        self._show(readings)
        self._run()

    def _continue(self) -> None:
        if self.columns:
            self._run()

    def _clear(self) -> None:
        if not self.runner.busy:
            self._show({})
            self._switch(running=False)
            self.status.value = self.saved.value = ""

    def _save(self) -> None:
        """Text and JSON of every story, as files beside the notebook and as links to download."""
        if not self.columns or self.runner.busy:
            return
        folder = Path("stories")
        number = next(n for n in itertools.count(1) if not list(folder.glob(f"story-{n:03d}*")))
        text = "\n\n".join(f"{column.title}\n{column.reading.text}".strip() for column in self.columns) + "\n"
        readings = [{"title": column.title, **column.reading.to_dict()} for column in self.columns]
        contents = {f"story-{number:03d}.txt": text, f"story-{number:03d}.json": json.dumps(readings, indent=1)}
        try:
            for name, content in contents.items():
                write_text(folder / name, content)
        except (OSError, UnicodeError) as error:
            self._tell_error(error)
            return
        kinds = ("text/plain", "application/json")
        links = [paint.link(n, n, c, kind) for (n, c), kind in zip(contents.items(), kinds, strict=True)]
        self.saved.value = f"saved in the folder {html.escape(str(folder))}; download: {', '.join(links)}"

    # One run

    def settings(self) -> dict:
        """What the controls say, as `Sampling` takes it, but for the temperature."""
        return dict(
            top_k=self.top_k.value or None, top_p=self.top_p.value, min_p=self.min_p.value,
            repetition_penalty=self.penalty.value,
        )  # fmt: skip

    def temperatures(self) -> list[float]:
        """The slider's and those beside it. Raises ValueError where one is not a number."""
        more = [part for part in self.also_at.value.replace(";", ",").split(",") if part.strip()]
        try:
            return list(dict.fromkeys([self.temperature.value, *map(float, more)]))
        except ValueError:
            raise ValueError(f"{self.also_at.value!r} must be numbers with commas between, such as 0.3, 1.2") from None

    def _new_readings(self) -> dict[str, Reading]:
        """Each model's story at each temperature, by title."""
        temperatures = self.temperatures()
        readings = {}
        for (name, model), temperature in itertools.product(self.models.items(), temperatures):
            at = f"temperature {temperature:g}" if len(temperatures) > 1 else ""
            reading = Reading(model, self.prompt.value, self.seed.value, temperature=temperature, **self.settings())
            readings[", ".join(filter(None, (name, at)))] = reading
        return readings

    def _show(self, readings: dict[str, Reading]) -> None:
        self.columns = [Column(title, reading) for title, reading in readings.items()]
        self.stories.children = [column.box for column in self.columns]

    def _run(self) -> None:
        self._told, self._seconds = 0, 0.0
        self._switch(running=True)
        self.runner.start(self._telling(), self._finish)

    def _telling(self) -> Generator:
        """One word of each story in turn, shown no more often than the eye can follow."""
        tellings = [column.reading.tell(self.length.value) for column in self.columns]
        began, shown = time.monotonic(), 0.0
        try:
            while tellings:
                tellings = [telling for telling in tellings if next(telling, None) is not None]
                self._told += len(tellings)
                if time.monotonic() - shown > EVERY:
                    shown = time.monotonic()
                    for column in self.columns:
                        column.grow(self.colouring.value)
                yield
        finally:
            self._seconds = time.monotonic() - began
            for telling in tellings:
                telling.close()

    def _finish(self, stopped: bool, error: Exception | None) -> None:
        self._paint()
        self._switch(running=False)
        if error is not None:
            self.go_on.disabled = True  # what broke off cannot go on
            self._tell_error(error)
            return
        ended = self.columns and all(column.reading.ended for column in self.columns)
        how = "stopped" if stopped else "the end" if ended else "done"
        self.status.value = f"{how}: {self._told} words, {self._told / max(self._seconds, 1e-9):.0f} words/s"

    def _switch(self, running: bool) -> None:
        ended = all(column.reading.ended for column in self.columns)
        self.generate.disabled = self.clear.disabled = running
        self.save.disabled = running or not self.columns
        self.stop.disabled, self.go_on.disabled = not running, running or ended
        if running:
            self.status.value, self.saved.value = "telling ...", ""

    def _paint(self) -> None:
        if not self.runner.busy:
            for column in self.columns:
                column.paint(self.colouring.value)

    def _tell_error(self, error: Exception) -> None:
        self.status.value = f'<div class="error" role="alert">{html.escape(str(error) or type(error).__name__)}</div>'

    # What stands there before anyone clicks

    def _open_with(self, n_words: int) -> None:
        """Tell a whole story, or so many words of it, for whoever reads a page without a kernel."""
        self._show(self._new_readings())
        for column in self.columns:
            for _ in column.reading.tell(n_words):
                pass
        self._paint()
        self._switch(running=False)
        self.status.value = "Press Generate, or click a word."

    def __repr__(self) -> str:
        return "StoryDemo: run this cell in Jupyter or Colab to use it"

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        return {"text/plain": repr(self), "text/html": self.still(), WIDGET_VIEW: view}

    def still(self) -> str:
        """The stories as a page without a kernel shows them."""
        stories = "".join(
            f"<p><b>{html.escape(column.title)}</b></p>{paint.story(column.reading, self.colouring.value)}"
            for column in self.columns
        )
        return f'<div class="story-demo"><style>{paint.STYLE}</style>{stories}</div>'
