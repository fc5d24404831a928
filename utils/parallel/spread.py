"""A model on several processes: a copy on each (DDP), or every matrix cut between them (FSDP2).

Both are PyTorch's. What they leave open is what is no mean over windows: a balance loss is a product of two means over
the whole batch, the largest logit is a maximum, Muon needs whole matrices, and QK-Clip the rows of its heads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from utils.config import TrainConfig
from utils.cost import plan
from utils.memory import free_bytes
from utils.model import Kimi
from utils.moe import SoftmaxRouter
from utils.parallel.muon import orthogonalise_shards, orthogonalise_shared
from utils.parallel.whole import Whole, cut_like
from utils.ranks import Ranks
from utils.record import Record, count_choices


def spread(model: Kimi, how: str, config: TrainConfig, ranks: Ranks) -> Whole:
    """The form of `model` on these processes, ddp, fsdp or auto (see `pick`). The model is changed in place."""
    how = pick(model, config, ranks) if how == "auto" else how
    held = {"ddp": "a copy of the model", "fsdp": "a part of each matrix"}[how]
    print(f"processes: {ranks.size}, {held} in each ({how})")
    for router in model.routers():
        if isinstance(router, SoftmaxRouter):
            router.balance_loss = partial(balance_loss, ranks, router.config.n_experts)
    return {"ddp": Copies, "fsdp": Shards}[how](model, ranks)


def pick(model: Kimi, config: TrainConfig, ranks: Ranks) -> str:
    """ddp while weights, gradients and optimizer fill no more than half of the first process' memory, else fsdp."""
    free = free_bytes(model.device)
    share = ranks.size if model.device.type == "cpu" else 1  # processes that have this memory together
    is_large = free is not None and plan(model, config).bytes > free / share / 2
    return "fsdp" if ranks.of_first(is_large) else "ddp"


class Copies(Whole):
    """The whole model in every process (DDP): gradients are exchanged, and Newton-Schulz is shared out."""

    def __init__(self, model: Kimi, ranks: Ranks):
        super().__init__(model, ranks)
        self.ddp = DistributedDataParallel(LossOf(model), gradient_as_bucket_view=True)

    def loss(self, x: torch.Tensor, y: torch.Tensor, record: Record | None = None) -> torch.Tensor:
        return self.ddp(x, y, record)

    def exchange_gradients(self, wanted: bool) -> None:
        self.ddp.require_backward_grad_sync = wanted

    def orthogonalise(self, matrices: list[torch.Tensor], dtype: torch.dtype | None = None) -> list[torch.Tensor]:
        return orthogonalise_shared(matrices, dtype, self.ranks)


class LossOf(nn.Module):
    """The loss of a model as a module: DDP wraps the forward of one."""

    def __init__(self, model: Kimi):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, y: torch.Tensor, record: Record | None = None) -> torch.Tensor:
        return self.model.loss(x, y, record)


class Shards(Whole):
    """Some rows of each matrix in every process (FSDP2): a block is put together where it computes, and let go."""

    is_sharded = True

    def __init__(self, model: Kimi, ranks: Ranks):
        super().__init__(model, ranks)
        mesh = DeviceMesh("cuda" if torch.cuda.is_available() else "cpu", torch.arange(ranks.size))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
            block.attention.qk_clip_ = partial(qk_clip_shards_, block.attention)
        fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model, "loss")

    def exchange_gradients(self, wanted: bool) -> None:
        self.model.set_requires_gradient_sync(wanted)

    def orthogonalise(self, matrices: list[DTensor], dtype: torch.dtype | None = None) -> list[DTensor]:
        return orthogonalise_shards(matrices, dtype, self.ranks)

    @contextlib.contextmanager
    def eval_form(self) -> Iterator[Kimi]:
        """The model itself, for no view shares the parts of it."""
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.train()


def balance_loss(ranks: Ranks, n_experts: int, logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """`SoftmaxRouter.balance_loss` with the shares of everybody's choices; its mean over processes is the batch's."""
    share = ranks.sum(count_choices(chosen, n_experts)) / (chosen.numel() * ranks.size)  # (E,)
    mean = logits.softmax(dim=-1).flatten(0, -2).mean(dim=0)  # (E,) of this process
    return n_experts * (share * mean).sum()


@torch.no_grad()
def qk_clip_shards_(attention: nn.Module, max_logits: torch.Tensor, tau: float) -> None:
    """`qk_clip_` of weights that are cut into rows: a row's factor is what clipping does to a column of ones."""
    weights = {name: part.weight for name, part in attention.named_children() if isinstance(part, nn.Linear)}
    ones = {name: SimpleNamespace(weight=max_logits.new_ones(len(weight), 1)) for name, weight in weights.items()}
    plain = {name: value for name, value in vars(attention).items() if not name.startswith("_")}
    type(attention).qk_clip_(SimpleNamespace(**plain, **ones), max_logits, tau)
    for name, weight in weights.items():
        weight.mul_(cut_like(ones[name].weight, weight))  # (rows, 1)
