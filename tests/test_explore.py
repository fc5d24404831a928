"""A picture with controls, moved as a reader's browser moves it: through the widgets' values."""

import base64

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pytest

from utils.panel.explore import WIDGET_VIEW, Explorer


def line(height: float, title: str = "a line") -> plt.Figure:
    figure, axes = plt.subplots()
    axes.plot([0, height])
    axes.set_title(title)
    return figure


def test_moving_a_control_draws_the_picture_anew():
    explorer = Explorer(lambda n, word: f"<p>{word} {n}</p>", "words", n=(0, 4, 1), word="ball")
    assert explorer.picture.value == "<p>ball 2</p>"
    explorer.controls["n"].value = 3
    explorer.controls["word"].value = "hat"
    assert explorer.picture.value == "<p>hat 3</p>"


def test_a_figure_becomes_a_picture_with_its_description_and_is_closed():
    explorer = Explorer(line, 'a "line" < 1', height=(0.0, 1.0, 0.1), title=["flat", "steep"])
    assert explorer.picture.value.startswith('<img alt="a &quot;line&quot; &lt; 1"')
    before = explorer.picture.value
    explorer.controls["height"].value = 0.9
    assert explorer.picture.value != before
    assert plt.get_fignums() == []


def test_where_no_kernel_runs_the_first_picture_stands_in_its_place():
    """A stored notebook keeps it when the widget's own view is stripped; with a kernel the view is shown."""
    figure = Explorer(line, "a line", height=(0.0, 1.0, 0.1))
    bundle = figure._repr_mimebundle_()
    assert bundle["text/plain"] == "Explorer(height=0.5)"
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert bundle[WIDGET_VIEW]["model_id"] == figure.box.model_id
    words = Explorer(lambda n: f"<b>{n}</b>", "bold", n=(0, 4))._repr_mimebundle_()
    assert words["text/html"] == "<b>2</b>" and "image/png" not in words


def test_an_error_is_shown_in_words_and_the_controls_stay_usable():
    explorer = Explorer(lambda n: f"{12 // n}", "a quotient", n=widgets.IntSlider(4, 0, 4))
    explorer.controls["n"].value = 0
    assert "ZeroDivisionError" in explorer.picture.value
    explorer.controls["n"].value = 3
    assert explorer.picture.value == "4"


def test_an_error_of_the_first_picture_is_the_authors():
    with pytest.raises(ZeroDivisionError):
        Explorer(lambda n: f"{12 // n}", "a quotient", n=widgets.IntSlider(0, 0, 4))


def test_a_slider_draws_where_it_rests_and_has_a_readable_name():
    explorer = Explorer(lambda top_k, t: "", "nothing", top_k=(1, 9), t=widgets.FloatSlider(description="temperature"))
    assert [control.description for control in explorer.controls.values()] == ["top k", "temperature"]
    assert not any(control.continuous_update for control in explorer.controls.values())
