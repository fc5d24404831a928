"""The whole model: embedding, blocks of attention and experts, a linear head that is not tied to the embedding.

Pre-norm residual blocks: x + attention(norm(x)), then x + experts(norm(x)). `PARTS` says which norm, positions,
attention and feed-forward layers the two architectures are made of; everything else they share.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from utils.attention import KVCache, MultiHeadAttention, MultiHeadLatentAttention
from utils.config import K2Config, KimiConfig, NanoConfig
from utils.loss import cross_entropy
from utils.moe import Experts, MoE, SigmoidRouter, SoftmaxRouter
from utils.norm import RMSNorm
from utils.positions import LearnedPositions, RotaryPositions
from utils.record import LayerRecord, Record
from utils.swiglu import FeedForward


class Dropout(nn.Module):
    """In training, each value is left out with probability p (Srivastava et al., JMLR 15, 2014): (...) -> (...)."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p
        self.dropout = F.dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(x, self.p, self.training)


def nano_feed_forward(config: NanoConfig, layer: int) -> MoE:
    """The feed-forward part of a layer of nano: experts everywhere."""
    return MoE(SoftmaxRouter(config), Experts(config))


def k2_feed_forward(config: K2Config, layer: int) -> FeedForward | MoE:
    """The feed-forward part of a layer of k2: dense in the first layers, then experts."""
    if layer < config.first_k_dense:
        return FeedForward(config.d_model, config.dense_ff)
    shared = FeedForward(config.d_model, config.n_shared_experts * config.d_ff) if config.n_shared_experts else None
    return MoE(SigmoidRouter(config), Experts(config), shared)


class Parts(NamedTuple):
    """What makes the parts of an architecture from its configuration."""

    norm: Callable[[KimiConfig], nn.Module]
    positions: Callable[[KimiConfig], nn.Module]
    attention: Callable[[KimiConfig], nn.Module]
    feed_forward: Callable[[KimiConfig, int], nn.Module]
    dropout: Callable[[KimiConfig], nn.Module]


PARTS = {
    "nano": Parts(
        norm=lambda config: nn.LayerNorm(config.d_model),
        positions=LearnedPositions,
        attention=MultiHeadAttention,
        feed_forward=nano_feed_forward,
        dropout=lambda config: Dropout(config.dropout),
    ),
    "k2": Parts(
        norm=lambda config: RMSNorm(config.d_model, config.norm_eps),
        positions=RotaryPositions,
        attention=MultiHeadLatentAttention,
        feed_forward=k2_feed_forward,
        dropout=lambda config: nn.Identity(),
    ),
}


class Block(nn.Module):
    """One layer: tokens exchange information in attention, then each token visits its experts."""

    def __init__(self, config: KimiConfig, layer: int = 0):
        super().__init__()
        parts = PARTS[config.architecture]
        self.attention_norm = parts.norm(config)
        self.attention = parts.attention(config)
        self.ffn_norm = parts.norm(config)
        self.ffn = parts.feed_forward(config, layer)
        self.dropout = parts.dropout(config)

    def forward(
        self, x: torch.Tensor, angles: torch.Tensor | None = None, cache: KVCache | None = None,
        record: LayerRecord | None = None,
    ) -> torch.Tensor:  # fmt: skip
        x = x + self.dropout(self.attention(self.attention_norm(x), angles, cache, record))  # (B, T, D)
        normed = self.ffn_norm(x)  # (B, T, D)
        y = self.ffn(normed, record) if isinstance(self.ffn, MoE) else self.ffn(normed)  # (B, T, D)
        return x + self.dropout(y)


class Kimi(nn.Module):
    """A language model: token ids in, the logits of each next token out.

    The weights are drawn from `seed` alone, and the global random numbers stay where they are. `tokenizer` is set by
    whoever trains or loads the model, so that `generate(model, "Once upon a time")` works without further arguments.
    fast: compute with the hand-written forms of `utils.fast`; without them, every part is as the lessons show it.
    """

    def __init__(self, config: KimiConfig, seed: int = 0, fast: bool = True):
        super().__init__()
        self.config = config
        self.tokenizer = None
        parts = PARTS[config.architecture]
        device = torch.empty(0).device  # the one in whose context this stands, else the CPU
        with torch.device("meta"):  # shapes only: all values are drawn below, once
            self.embedding = nn.Embedding(config.vocab_size, config.d_model)
            self.positions = parts.positions(config)
            self.dropout = parts.dropout(config)
            self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
            self.norm = parts.norm(config)
            self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.cross_entropy = cross_entropy
        if device.type != "meta":
            self.to_empty(device=device)
            self._initialise(torch.Generator().manual_seed(seed))
        if fast:
            from utils.fast import speed_up  # here: who reads the textbook's forms need not know that there are others

            speed_up(self)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """Every layer passes on the size of what it gets, and the 2L branches together add as much as the input.

        So a matrix has std 1/sqrt(inputs), and one that ends a branch 1/sqrt(2L) of that.
        """
        # The final norm gives the head inputs of size 1, so this keeps the logits near 0 and the loss near ln(V).
        head_std = 0.2 / math.sqrt(self.config.d_model)
        stds = {"embedding.weight": 0.3, "positions.weight": 0.3, "head.weight": head_std}
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                branches = 2 * self.config.n_layers if name.endswith(("w_o.weight", "w_down")) else 1
                std = stds.get(name, 1 / math.sqrt(weight.shape[-1] * branches))
                drawn = torch.empty(weight.shape, device="cpu").normal_(std=std, generator=generator)
                weight.copy_(drawn)  # drawn on the CPU: a seed means the same on every device
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)  # norms
        for router in self.routers():
            for bias in router.buffers():
                bias.zero_()

    def forward(
        self, tokens: torch.Tensor, targets: torch.Tensor | None = None, cache: list[KVCache] | None = None,
        record: Record | None = None,
    ):  # fmt: skip
        """tokens (B, T) int64 -> logits (B, T, V); with targets (B, T) also the mean cross-entropy in nats,
        in which targets of -100 do not count.

        With a cache (see `new_cache`) the tokens follow the cached ones. record: takes what the layers leave behind.
        Raises ValueError when the positions do not fit into the block size.
        """
        logits = self.head(self.hidden(tokens, cache, record))  # (B, T, V)
        if targets is None:
            return logits
        return logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor, record: Record | None = None) -> torch.Tensor:
        """The cross-entropy that `forward` gives, in the form for training: the logits need not exist as a whole."""
        return self.cross_entropy(self.hidden(tokens, record=record), self.head.weight, targets)

    def hidden(
        self, tokens: torch.Tensor, cache: list[KVCache] | None = None, record: Record | None = None
    ) -> torch.Tensor:
        """tokens (B, T) -> what the head reads, (B, T, D)."""
        if not tokens.numel():
            raise ValueError(f"tokens has the shape {tuple(tokens.shape)}, it must be (B, T) with at least one token")
        n_new = tokens.shape[1]
        end = n_new + (cache[0].length if cache else 0)
        if end > self.config.block_size:
            raise ValueError(f"{end} positions were asked for, the block size is {self.config.block_size}")
        device = tokens.device
        positions = cache[0].next_positions(n_new, device) if cache else torch.arange(n_new, device=device)  # (T,)
        x, angles = self.positions(self.embedding(tokens), positions)  # (B, T, D), (T, R/2) or None
        x = self.dropout(x)
        for i, block in enumerate(self.blocks):
            layer_cache = cache[i] if cache else None
            layer_record = record.layers[i] if record is not None else None
            x = block(x, angles, layer_cache, layer_record)  # (B, T, D)
        return self.norm(x)

    def new_cache(self) -> list[KVCache]:
        """An empty cache for each layer, as long as the block size."""
        return [KVCache(self.config.block_size) for _ in self.blocks]

    def layers_with_experts(self) -> list[int]:
        """The numbers of the layers that have experts."""
        return [i for i, block in enumerate(self.blocks) if isinstance(block.ffn, MoE)]

    def routers(self) -> list[nn.Module]:
        """The router of each layer with experts."""
        return [self.blocks[i].ffn.router for i in self.layers_with_experts()]

    def qk_clip_(self, record: Record, tau: float) -> None:
        """After MuonClip's update: rescale the attention heads whose largest logit in `record` is beyond tau."""
        for i, block in enumerate(self.blocks):
            if record.layers[i].max_logits is not None:
                block.attention.qk_clip_(record.layers[i].max_logits, tau)

    def end_step_(self, record: Record) -> None:
        """After each optimizer step: move the experts' biases by the loads in `record`, and close it."""
        for i, router in zip(self.layers_with_experts(), self.routers(), strict=True):
            if isinstance(router, SigmoidRouter) and record.layers[i].load is not None:
                router.update_bias_(record.layers[i].load)
        record.close()

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device


def eval_view(model: Kimi, dtype: torch.dtype | None = None) -> Kimi:
    """A model in eval mode that shares every tensor with `model`, which stays in its own mode, whatever it is.

    dtype: its matrices are copies in this number format; None shares them too.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile has wrapped
    # an embedding is looked up, and k2's routers compute in fp32: no matmul to speed up
    kept = [p for m in model.modules() if isinstance(m, nn.Embedding | SigmoidRouter) for p in m.parameters()]
    as_it_is = {id(p) for p in kept}
    others = [model.tokenizer, *(v for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Tensor))]
    shared = {id(value): value for value in others}
    for tensor in (*model.parameters(), *model.buffers()):
        cast = dtype is not None and tensor.ndim > 1 and id(tensor) not in as_it_is
        shared[id(tensor)] = nn.Parameter(tensor.detach().to(dtype), requires_grad=False) if cast else tensor
    return copy.deepcopy(model, shared).eval()  # what is among the shared is not copied


class ParameterCount(NamedTuple):
    total: int
    active: int  # of one token: everything but the routed experts that it does not visit


def count_parameters(model: Kimi) -> ParameterCount:
    """Total parameters, and those active for one token (embedding and head counted in full)."""
    total = sum(p.numel() for p in model.parameters())
    routed = sum(p.numel() for m in model.modules() if isinstance(m, Experts) for p in m.parameters())
    config = model.config
    return ParameterCount(total, total - routed + routed * config.top_k // config.n_experts)
