"""A Kimi whose parts read their weights when they run, and let go of them after.

The parts are the course's own classes. They are made on the meta device, where a tensor has a shape and no memory; what
is added here is where their numbers come from.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from utils.attention import KVCache
from utils.config import K2Config
from utils.hf_names import block_tensors, expert_name, named_as_published
from utils.model import Block, Kimi
from utils.moe import Experts, MoE, run_experts
from utils.norm import RMSNorm
from utils.published.tensors import Place, Tensors
from utils.record import LayerRecord

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
ROWS_AT_ONCE = 8192  # of the head


@torch.no_grad()
def fill(views: dict[str, torch.Tensor], tensors: Tensors) -> None:
    """Read each tensor into the memory that a name stands for. Raises ValueError where it has another shape."""
    views = {name: view for name, view in views.items() if view.numel()}  # none is written for no shared expert
    for (name, view), tensor in zip(views.items(), tensors.many(views), strict=True):
        if tensor.shape != view.shape:
            shape, right = list(tensor.shape), list(view.shape)
            raise ValueError(
                f"{name} of {tensors.source.name} has the shape {shape}, by config.json it must be {right}"
            )
        view.copy_(tensor)


class LazyEmbedding(nn.Embedding):
    """An embedding that reads the rows of the tokens that it meets."""

    def __init__(self, config: K2Config, tensors: Tensors):
        super().__init__(config.vocab_size, config.d_model, device="meta")
        self.tensors = tensors

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (B, T) int64 -> (B, T, D)."""
        ids, place = tokens.unique(return_inverse=True)  # (n,), (B, T)
        rows = torch.cat([self.tensors.rows(EMBEDDING, i, i + 1) for i in ids.tolist()])  # (n, D)
        return rows.to(self.weight.dtype)[place]

    def places(self, tokens: torch.Tensor) -> list[Place]:
        """What it reads for these tokens."""
        return [self.tensors.rows_place(EMBEDDING, i, i + 1) for i in tokens.unique().tolist()]


class LazyHead(nn.Linear):
    """A head that reads some thousands of rows at a time."""

    def __init__(self, config: K2Config, tensors: Tensors):
        super().__init__(config.d_model, config.vocab_size, bias=False, device="meta")
        self.tensors = tensors

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., D) -> logits (..., V)."""
        logits = []
        for part in self._parts():
            rows = self.tensors.rows(HEAD, *part)  # (n, D)
            logits.append(F.linear(x, rows.to(self.weight.dtype)))
        return torch.cat(logits, dim=-1)

    def places(self) -> list[Place]:
        """What it reads."""
        return [self.tensors.rows_place(HEAD, *part) for part in self._parts()]

    def _parts(self) -> list[tuple[int, int]]:
        starts = range(0, self.out_features, ROWS_AT_ONCE)
        return [(start, min(start + ROWS_AT_ONCE, self.out_features)) for start in starts]


class LazyExperts(Experts):
    """Experts that are read when a token has chosen them, one after the other."""

    def __init__(self, config: K2Config, layer: int, tensors: Tensors):
        with torch.device("meta"):
            super().__init__(config)
        self.layer = layer
        self.tensors = tensors

    def forward(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """x (N, D), weights and chosen (N, K) -> (N, D), each token's weighted sum of experts."""
        y = torch.zeros_like(x)  # (N, D)
        for e in chosen.unique().tolist():
            w_up, w_down = self.read(e)
            only_e = torch.where(chosen == e, 0, -1)  # (N, K): e is number 0 of the one given
            y += run_experts(x, weights, only_e, w_up[None], w_down[None])
        return y

    def read(self, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The matrices of one expert: w_up (2, F, D), value and gate, and w_down (D, F)."""
        w_up = torch.empty_like(self.w_up[expert], device="cpu", requires_grad=False)
        w_down = torch.empty_like(self.w_down[expert], device="cpu", requires_grad=False)
        fill(named_as_published(expert_name(self.layer, expert), w_up, w_down), self.tensors)
        return w_up, w_down

    def places(self, expert: int) -> list[Place]:
        """What it reads for one expert."""
        views = named_as_published(expert_name(self.layer, expert), self.w_up[expert], self.w_down[expert])
        return [place for name in views for place in self.tensors.places(name)]


class LazyBlock(Block):
    """A block that reads its weights when it runs; of the experts those that are chosen."""

    def __init__(self, config: K2Config, layer: int, tensors: Tensors):
        with torch.device("meta"):
            super().__init__(config, layer)
        if isinstance(self.ffn, MoE):
            self.ffn.experts = LazyExperts(config, layer, tensors)
        self.layer = layer
        self.tensors = tensors

    def read(self) -> Block:
        """The block with its weights; its routed experts read theirs."""
        block = copy.deepcopy(self)  # without memory as yet
        if isinstance(self.ffn, MoE):
            block.ffn.experts = None
        block.to_empty(device="cpu")
        if isinstance(self.ffn, MoE):
            block.ffn.experts = self.ffn.experts  # these stay without
        fill(block_tensors(block, self.layer), self.tensors)
        return block

    def places(self) -> list[Place]:
        """What it reads for every token; its experts say what they read."""
        views = {name: view for name, view in block_tensors(self, self.layer).items() if view.numel()}
        return [place for name in views for place in self.tensors.places(name)]

    def forward(
        self, x: torch.Tensor, angles: torch.Tensor | None = None, cache: KVCache | None = None,
        record: LayerRecord | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """As `Block`'s."""
        return Block.forward(self.read(), x, angles, cache, record)


class LazyKimi(Kimi):
    """A k2 model that knows where its weights are: as large as one of its blocks, while it runs, on the CPU.

    `generate(model, "...")` and all that reads a model works with it; each token reads every block anew.
    """

    device = torch.device("cpu")  # the parameters are nowhere

    def __init__(self, config: K2Config, tensors: Tensors):
        with torch.device("meta"):
            super().__init__(config, fast=False)
        self.tensors = tensors
        self.embedding = LazyEmbedding(config, tensors)
        self.blocks = nn.ModuleList(LazyBlock(config, i, tensors) for i in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = LazyHead(config, tensors)
        fill({NORM: self.norm.weight}, tensors)
        self.requires_grad_(False).eval()
