"""A pencil for drawings in notebooks: boxes, arrows and words as SVG, on a card of its own.

The card keeps a drawing readable on a light page and on a dark one, and no font is smaller than 13 of its pixels, so
that it can be read at half size. What a screen reader says is the `alt` that each drawing must have.
"""

from __future__ import annotations

from html import escape
from typing import NamedTuple

INK, MUTED, PAPER, LINE = "#1b1f24", "#5b6470", "#fbfaf7", "#8a929c"
# Tints of the palette of `utils.plots`, to fill boxes with; names by what they stand for.
FILL = {
    "plain": "#eceff3", "blue": "#cfe3f3", "vermilion": "#f7d9c8", "green": "#cdeade", "orange": "#fae7c0",
    "sky": "#ddf0fa", "purple": "#f1dfe9", "yellow": "#fbf7cd", "here": "#ffd54d", "none": "none",
}  # fmt: skip
FONT = "font-family='DejaVu Sans, Verdana, Helvetica, Arial, sans-serif'"
MARGIN = 12
PAGE = 840  # a notebook's column: a wider drawing is shown smaller


class Place(NamedTuple):
    """Where a box stands: its left upper corner and its size."""

    x: float
    y: float
    width: float
    height: float

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2

    @property
    def top(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y

    @property
    def bottom(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height

    @property
    def left(self) -> tuple[float, float]:
        return self.x, self.y + self.height / 2

    @property
    def right(self) -> tuple[float, float]:
        return self.x + self.width, self.y + self.height / 2


class Sketch:
    """A drawing of `width` x `height` pixels, shown by a notebook as it is. `alt` says what is to be seen, in words."""

    def __init__(self, width: float, height: float, alt: str):
        if not alt.strip():
            raise ValueError("a drawing needs an alt text: say in words what is to be seen")
        self.width, self.height, self.alt = width, height, alt
        self.parts: list[str] = []

    def box(
        self, x: float, y: float, width: float, height: float, text: str = "", fill: str = "plain", size: int = 15,
        bold: bool = False, dashed: bool = False, round: float = 7,
    ) -> Place:  # fmt: skip
        """A box with words in its middle, a line for each line of them."""
        dash = " stroke-dasharray='6 4'" if dashed else ""
        self.parts.append(
            f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' rx='{round:g}' fill='{FILL[fill]}' "
            f"stroke='{LINE}' stroke-width='1.3'{dash}/>"
        )
        place = Place(x, y, width, height)
        self.text(*place.centre, text, size, bold=bold)
        return place

    def text(
        self, x: float, y: float, text: str, size: int = 15, anchor: str = "middle", colour: str = INK,
        bold: bool = False, code: bool = False,
    ) -> None:  # fmt: skip
        """Words whose middle line stands at y; anchor: start, middle or end."""
        lines = text.split("\n") if text else []
        font = "font-family='DejaVu Sans Mono, Consolas, monospace'" if code else FONT
        weight = " font-weight='bold'" if bold else ""
        for i, line in enumerate(lines):
            base = y + (i - (len(lines) - 1) / 2) * 1.3 * size + 0.35 * size
            self.parts.append(
                f"<text x='{x:g}' y='{base:.1f}' {font} font-size='{size}' text-anchor='{anchor}' fill='{colour}'"
                f"{weight}>{escape(line)}</text>"
            )

    def shape(self, x: float, y: float, text: str, anchor: str = "middle") -> None:
        """The shape of a tensor, small and grey."""
        self.text(x, y, text, 13, anchor, MUTED, code=True)

    def arrow(self, *points: tuple[float, float], dashed: bool = False, colour: str = INK, label: str = "") -> None:
        """A line through the points with a head at its end; the label stands beside its middle."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dash = " stroke-dasharray='5 4'" if dashed else ""
        self.parts.append(
            f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.6'{dash} "
            "marker-end='url(#head)'/>"
        )
        if label:
            (x1, y1), (x2, y2) = points[len(points) // 2 - 1], points[len(points) // 2]
            self.text((x1 + x2) / 2 + 8, (y1 + y2) / 2, label, 13, "start", MUTED)

    def line(self, *points: tuple[float, float], colour: str = LINE, width: float = 1.3) -> None:
        """A line without a head."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='{width:g}'/>")

    def circle(self, x: float, y: float, radius: float, text: str = "", fill: str = "plain") -> Place:
        """A round sign, such as that of a sum."""
        self.parts.append(
            f"<circle cx='{x:g}' cy='{y:g}' r='{radius:g}' fill='{FILL[fill]}' stroke='{LINE}' stroke-width='1.3'/>"
        )
        self.text(x, y, text, 16, bold=True)
        return Place(x - radius, y - radius, 2 * radius, 2 * radius)

    def _repr_svg_(self) -> str:
        """The drawing, as notebooks ask for it."""
        width, height = self.width + 2 * MARGIN, self.height + 2 * MARGIN
        scale = min(1.0, PAGE / width)
        head = (
            "<defs><marker id='head' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' markerHeight='7' "
            f"orient='auto-start-reverse'><path d='M0 0L10 5L0 10z' fill='{INK}'/></marker></defs>"
        )
        card = f"<rect x='0' y='0' width='{width:g}' height='{height:g}' rx='10' fill='{PAPER}'/>"
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:g} {height:g}' width='{scale * width:.0f}' "
            f"height='{scale * height:.0f}' style='max-width:100%;height:auto' role='img' "
            f"aria-label='{escape(self.alt, True)}'>"
            f"<title>{escape(self.alt)}</title>{head}{card}"
            f"<g transform='translate({MARGIN} {MARGIN})'>{''.join(self.parts)}</g></svg>"
        )

    def __repr__(self) -> str:
        return f"drawing: {self.alt}"
