"""What the course watches while a model learns: one story, what the judge finds wrong with fifty, and two pronouns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from utils.generation import next_token_probabilities, tell_stories
from utils.model import Kimi
from utils.stories import story_faults

HEROES = {"her": ("girl", "Lily"), "his": ("boy", "Tom")}  # the right word: who is meant
LOST = "Once upon a time, there was a little {who} named {name}. {name} had a red ball. Then {name} lost"

# What the judge complains of, from the first sentence of a story to its whole, and the words by which to know it.
COMPLAINTS = {
    "a sentence that is none": "no sentence of the grammar",
    "the hero changes": "the hero is",
    "the thing changes": "the thing is",
    "another thing is found": "was found",
    "the helper changes": "the helper is",
    "the place changes": "the place is",
    "stages out of order": ("comes twice", "comes after", "is missing before"),
    "no ending": "stops before its ending",
}


def complaint_of(fault: str) -> str:
    """The kind of complaint that a sentence of `story_faults` is, one of COMPLAINTS; else "other"."""
    for kind, marks in COMPLAINTS.items():
        if any(mark in fault for mark in ((marks,) if isinstance(marks, str) else marks)):
            return kind
    return "other"


def complaints(stories: Sequence[str]) -> dict[str, float]:
    """Each kind of complaint -> the share of the stories that have it, from 0 to 1."""
    counts = Counter(kind for story in stories for kind in set(map(complaint_of, story_faults(story))))
    return {kind: counts[kind] / max(1, len(stories)) for kind in COMPLAINTS}


def pronouns(model: Kimi) -> dict:
    """Probabilities when a hero has lost a ball: {"her": {"Lily": p, "Tom": p}, "his": ...}."""
    p = {name: next_token_probabilities(model, LOST.format(who=who, name=name)) for who, name in HEROES.values()}
    return {word: {name: p[name][model.tokenizer.encode(word)[0]].item() for name in p} for word in HEROES}


def look(model: Kimi, n_stories: int = 50) -> dict:
    """What the course watches while a model is trained: one story, the share of coherent ones, the judge's complaints
    by kind and the three that it makes most often, her and his.

    For `train(..., watch=look)`; all values are plain. Needs a tokenizer that knows "her" and "his".
    """
    stories = tell_stories(model, n_stories)
    faults = [story_faults(story) for story in stories]
    often = Counter(fault for found in faults for fault in found).most_common(3)
    return {
        "story": stories[0],
        "coherent": sum(not found for found in faults) / n_stories,
        "complaints": complaints(stories),
        "often": {fault: n / n_stories for fault, n in often},
        **pronouns(model),
    }
