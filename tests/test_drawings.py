"""Drawings can be read: words inside the card, letters large enough, and a text for those who do not see them."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.lessons import LESSONS
from utils.course.drawings.model import CHAPTERS, the_model
from utils.course.drawings.sketch import MARGIN, Sketch

SVG = "{http://www.w3.org/2000/svg}"
STORED = [(lesson.name, i, svg) for lesson in LESSONS for i, svg in enumerate(lesson.drawings())]


def refuse_unreadable(svg: str) -> None:
    drawing = ET.fromstring(svg)
    width, height = (float(size) for size in drawing.get("viewBox").split()[2:])
    assert drawing.get("role") == "img" and len(drawing.get("aria-label").split()) >= 8
    scale = float(drawing.get("width")) / width
    assert scale > 0.9 and scale * width <= 840, "wider than a page"
    for text in drawing.iter(f"{SVG}text"):
        size = int(text.get("font-size"))
        assert size >= 13, text.text
        x, y, length = float(text.get("x")), float(text.get("y")), 0.62 * size * len(text.text)
        left = x - {"start": 0, "middle": length / 2, "end": length}[text.get("text-anchor")]
        assert left > -MARGIN and left + length < width, text.text
        assert -MARGIN < y < height - MARGIN, text.text
    for box in drawing.iter(f"{SVG}rect"):
        x, y, w, h = (float(box.get(name)) for name in ("x", "y", "width", "height"))
        assert x > -MARGIN and y > -MARGIN and x + w <= width and y + h <= height


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_model_can_be_read_with_every_chapter_lit(chapter):
    svg = the_model(chapter)._repr_svg_()
    refuse_unreadable(svg)
    assert svg != the_model("07_generation" if chapter != "07_generation" else "01_tokenizer")._repr_svg_()


def test_the_readme_shows_the_model_as_it_is_drawn():
    """python -m tests.pictures draws it anew."""
    svg = (Path(__file__).parents[1] / "docs" / "model.svg").read_text(encoding="utf-8")
    refuse_unreadable(svg)
    assert svg == the_model()._repr_svg_()


@pytest.mark.parametrize("name, i, svg", STORED, ids=[f"{name}-{i}" for name, i, _ in STORED])
def test_a_drawing_of_a_notebook_can_be_read(name, i, svg):
    refuse_unreadable(svg)


def test_a_drawing_without_words_for_it_is_refused():
    with pytest.raises(ValueError, match="needs an alt text"):
        Sketch(100, 100, " ")


def test_words_are_escaped():
    draw = Sketch(300, 60, "a smaller than b, in a box with a sign that XML has for itself")
    draw.box(0, 0, 200, 40, 'a < b & "c"')
    refuse_unreadable(draw._repr_svg_())
