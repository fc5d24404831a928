"""What a proof found."""

from typing import NamedTuple


class Found(NamedTuple):
    """A line of figures, and whatever should not have happened."""

    summary: str
    problems: list[str]
