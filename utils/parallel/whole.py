"""A model as one process trains it: the form that the others, of several processes, take the place of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from utils.fast.newton_schulz import orthogonalise
from utils.model import Kimi, eval_view
from utils.ranks import Ranks
from utils.record import Record


class Whole:
    """The model, all of it, in this process."""

    is_sharded = False  # whether a process holds a part of each matrix only

    def __init__(self, model: Kimi, ranks: Ranks | None = None):
        self.model, self.ranks = model, ranks or Ranks()

    def loss(self, x: torch.Tensor, y: torch.Tensor, record: Record | None = None) -> torch.Tensor:
        """The loss of this process' windows x, y (B, T); the gradients of its backward are those of all windows."""
        return self.model.loss(x, y, record)

    def exchange_gradients(self, wanted: bool) -> None:
        """Whether the processes exchange gradients in the next backward: in the last of a step is enough."""

    def orthogonalise(self, matrices: list[torch.Tensor], dtype: torch.dtype | None = None) -> list[torch.Tensor]:
        """`newton_schulz` of many matrices, as fast as it goes, computed in dtype."""
        return orthogonalise(matrices, dtype)

    @contextlib.contextmanager
    def eval_form(self) -> Iterator[Kimi]:
        """In it, the model in eval mode."""
        yield eval_view(self.model)


def full(value: torch.Tensor) -> torch.Tensor:
    """A tensor with what other processes hold of it."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def gathered(parts: dict[str, torch.Tensor], wanted: bool) -> dict[str, torch.Tensor]:
    """Whole tensors on the CPU, in a process that wants them; every process must call it.

    One after the other, for no device has room for all.
    """
    whole = {}
    for name, part in parts.items():
        tensor = full(part)
        if wanted:
            whole[name] = tensor.cpu()
    return whole


def cut_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`value`, whole in every process, as `like` is cut; nothing is sent."""
    if not hasattr(like, "placements"):
        return value
    from torch.distributed.tensor import DTensor, Replicate  # a second to import, and one process needs none

    whole = DTensor.from_local(value.to(like.device), like.device_mesh, [Replicate()], run_check=False)
    return whole.redistribute(placements=like.placements)
