"""In which form the processes of a run hold its model."""

from __future__ import annotations

from utils.config import TrainConfig
from utils.model import Kimi
from utils.parallel.whole import Whole
from utils.ranks import Ranks

FORMS = ("auto", "ddp", "fsdp")


def form_of(model: Kimi, how: str, config: TrainConfig, ranks: Ranks) -> Whole:
    """The form in which these processes train `model`, which is changed in place; how: one of FORMS."""
    if how not in FORMS:
        raise ValueError(f"parallel is {how!r}, it must be one of {', '.join(FORMS)}")
    if ranks.size == 1:
        return Whole(model)
    from utils.parallel.spread import spread  # a second to import, and one process needs none

    return spread(model, how, config, ranks)
