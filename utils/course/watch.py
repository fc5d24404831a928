"""What the course watches while a model learns: one story, the share of coherent ones, and two pronouns."""

from __future__ import annotations

from utils.generation import next_token_probabilities, tell_stories
from utils.model import Kimi
from utils.stories import judge_story

HEROES = {"her": ("girl", "Lily"), "his": ("boy", "Tom")}  # the right word: who is meant
LOST = "Once upon a time, there was a little {who} named {name}. {name} had a red ball. Then {name} lost"


def pronouns(model: Kimi) -> dict:
    """Probabilities when a hero has lost a ball: {"her": {"Lily": p, "Tom": p}, "his": ...}."""
    p = {name: next_token_probabilities(model, LOST.format(who=who, name=name)) for who, name in HEROES.values()}
    return {word: {name: p[name][model.tokenizer.encode(word)[0]].item() for name in p} for word in HEROES}


def look(model: Kimi, n_stories: int = 50) -> dict:
    """What the course watches while a model is trained: one story, the share of coherent ones, her and his.

    For `train(..., watch=look)`; all values are plain. Needs a tokenizer that knows "her" and "his".
    """
    stories = tell_stories(model, n_stories)
    return {"story": stories[0], "coherent": sum(map(judge_story, stories)) / n_stories, **pronouns(model)}
