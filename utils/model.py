"""The whole model: embedding, blocks of attention and experts, a linear head that is not tied to the embedding.

Pre-norm residual blocks: x + attention(norm(x)), then x + experts(norm(x)). nano has learned positions, LayerNorm and
multi-head attention; k2 has RMSNorm, latent attention with rotary positions, and in its first layers a dense
feed-forward instead of experts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from utils.attention import KVCache, MultiHeadAttention, MultiHeadLatentAttention
from utils.config import KimiConfig
from utils.dropout import Dropout
from utils.loss import chunked_cross_entropy
from utils.moe import Experts, MoE, SigmoidRouter
from utils.norm import RMSNorm
from utils.swiglu import FeedForward


def _norm(config: KimiConfig) -> nn.Module:
    return RMSNorm(config.d_model, config.norm_eps) if config.architecture == "k2" else nn.LayerNorm(config.d_model)


class Block(nn.Module):
    """One layer: tokens exchange information in attention, then each token visits its experts."""

    def __init__(self, config: KimiConfig, layer: int = 0):
        super().__init__()
        is_k2 = config.architecture == "k2"
        self.attention_norm = _norm(config)
        self.attention = MultiHeadLatentAttention(config) if is_k2 else MultiHeadAttention(config)
        self.ffn_norm = _norm(config)
        is_dense = is_k2 and layer < config.first_k_dense
        self.ffn = FeedForward(config.d_model, config.dense_ff) if is_dense else MoE(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), cache))  # (B, T, D)
        return x + self.dropout(self.ffn(self.ffn_norm(x)))  # (B, T, D)


class Kimi(nn.Module):
    """A language model: token ids in, the logits of each next token out.

    The weights are drawn from `seed` alone. `tokenizer` is set by whoever trains or loads the model, so that
    `generate(model, "Once upon a time")` works without further arguments.
    """

    def __init__(self, config: KimiConfig, seed: int = 0):
        super().__init__()
        self.config = config
        self.tokenizer = None
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        learned = config.architecture == "nano"
        self.positions = nn.Embedding(config.block_size, config.d_model) if learned else None
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = _norm(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self._initialise(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """Every layer passes on the size of what it gets, and the 2L branches together add as much as the input."""
        # The final norm gives the head inputs of size 1, so this keeps the logits near 0 and the loss near ln(V).
        head_std = 0.2 / math.sqrt(self.config.d_model)
        stds = {"embedding.weight": 0.3, "positions.weight": 0.3, "head.weight": head_std}
        for name, weight in self.named_parameters():
            if weight.ndim > 1 and not weight.is_meta:
                branches = 2 * self.config.n_layers if name.endswith(("w_o.weight", "w_down")) else 1
                weight.normal_(std=stds.get(name, 1 / math.sqrt(weight.shape[-1] * branches)), generator=generator)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None, cache: list[KVCache] | None = None):
        """tokens (B, T) int64 -> logits (B, T, V); with targets (B, T) also the mean cross-entropy in nats.

        With a cache (see `new_cache`) the tokens follow the cached ones. Raises ValueError when the positions do
        not fit into the block size.
        """
        logits = self.head(self.hidden(tokens, cache))  # (B, T, V)
        if targets is None:
            return logits
        return logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The cross-entropy that `forward` gives, in the form for training: the logits never exist as a whole."""
        return chunked_cross_entropy(self.hidden(tokens), self.head.weight, targets)

    def hidden(self, tokens: torch.Tensor, cache: list[KVCache] | None = None) -> torch.Tensor:
        """tokens (B, T) -> what the head reads, (B, T, D)."""
        start = cache[0].length if cache else 0
        end = start + tokens.shape[1]
        if end > self.config.block_size:
            raise ValueError(f"{end} positions were asked for, the block size is {self.config.block_size}")
        x = self.embedding(tokens)  # (B, T, D)
        if self.positions is not None:
            table = self.positions.weight
            x = x + (cache[0].rows_of_next(table, end - start) if cache else table[:end])
        x = self.dropout(x)
        for block, layer_cache in zip(self.blocks, cache or [None] * len(self.blocks), strict=True):
            x = block(x, layer_cache)  # (B, T, D)
        return self.norm(x)

    def new_cache(self) -> list[KVCache]:
        """An empty cache for each layer, as long as the block size."""
        return [KVCache(self.config.block_size) for _ in self.blocks]

    def routers(self) -> list[nn.Module]:
        """The router of each layer with experts."""
        return [block.ffn.router for block in self.blocks if isinstance(block.ffn, MoE)]

    def balance_loss(self) -> torch.Tensor:
        """Mean load-balancing loss of the layers with experts in the last training forward, 1 at perfect balance."""
        return torch.stack([router.balance_loss for router in self.routers()]).mean()

    def expert_load(self) -> torch.Tensor:
        """(layers with experts, E): how many tokens went to each expert in the last forward."""
        return torch.stack([router.load for router in self.routers()])

    def end_step_(self) -> None:
        """To be called after each optimizer step: move the experts' biases, begin to record loads and logits anew."""
        for block in self.blocks:
            block.attention.end_step_()
        for router in self.routers():
            router.balance_loss = router.balance_loss.detach()  # the step's graph is not needed any more
            if isinstance(router, SigmoidRouter):
                router.update_bias_()

    def max_logits(self) -> torch.Tensor:
        """(L, H): the largest attention logit of each head in the last training step."""
        return torch.stack([block.attention.max_logits for block in self.blocks])

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device


class ParameterCount(NamedTuple):
    total: int
    active: int  # of one token: everything but the routed experts that it does not visit


def count_parameters(model: Kimi) -> ParameterCount:
    """Total parameters, and those active for one token (embedding and head counted in full)."""
    total = sum(p.numel() for p in model.parameters())
    routed = sum(p.numel() for m in model.modules() if isinstance(m, Experts) for p in m.parameters())
    config = model.config
    return ParameterCount(total, total - routed + routed * config.top_k // config.n_experts)


def training_flops(model: Kimi) -> float:
    """Floating-point operations to train on one token: 6 for each active weight that multiplies, and attention.

    A multiplication and an addition, once forward and twice backward (PaLM, arXiv 2204.02311, app. B). Left out are
    the embeddings, which are looked up, pairs that the causal mask hides, and the optimizer.
    """
    config = model.config
    looked_up = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding))
    pairs = (config.block_size + 1) / 2  # keys that a query looks at, on average
    width = (
        config.qk_head_dim + config.v_head_dim if config.architecture == "k2" else 2 * config.d_model / config.n_heads
    )
    per_pair = 2 * config.n_layers * config.n_heads * width  # forward: query with key, weight with value
    return 6 * (count_parameters(model).active - looked_up) + 3 * per_pair * pairs
