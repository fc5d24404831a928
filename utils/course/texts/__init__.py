"""A real book that comes with the course: see README.md beside it."""

from __future__ import annotations

from pathlib import Path

OZ = Path(__file__).with_name("oz.txt")


def wizard_of_oz() -> str:
    """The Wonderful Wizard of Oz (L. Frank Baum, 1900, public domain): 24 chapters, a paragraph in each line."""
    return OZ.read_text(encoding="utf-8")
