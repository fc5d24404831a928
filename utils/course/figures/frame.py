"""What the figures of the chapters have in common: the course's style, and being shown once."""

from __future__ import annotations

import functools
from collections.abc import Callable

import matplotlib.pyplot as plt

from utils.plots import STYLE


def styled(draw: Callable[..., plt.Figure]) -> Callable[..., plt.Figure]:
    """Let a function draw in the course's style, and its figure be shown once: as what the cell ends with."""

    @functools.wraps(draw)
    def drawn(*values, **named) -> plt.Figure:
        with plt.rc_context(STYLE):
            figure = draw(*values, **named)
        plt.close(figure)
        return figure

    return drawn


def new_figure(columns: int = 1, size: tuple[float, float] = (7, 3.6), **settings):
    """A figure and its axes, side by side."""
    return plt.subplots(1, columns, figsize=size, layout="constrained", **settings)
