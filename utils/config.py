"""What a model and a run are made of: frozen dataclasses and the size presets.

Every field checks itself: an impossible value raises ValueError naming the field, the value and what is allowed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from utils.settings import check_settings, choice, real, refuse_unknown, require, whole, with_default

NUMBER_FORMATS = ("auto", "fp32", "bf16", "fp16")
ARCHITECTURES = ("nano", "k2")
OPTIMIZERS = ("muonclip", "adamw")
ABOVE_0 = "a finite number above 0", lambda value: 0 < value < math.inf
POSITIVE = "a number above 0", lambda value: value > 0
FROM_0 = "0 or more and finite", lambda value: 0 <= value < math.inf
SHARE = "in [0, 1]", lambda value: 0 <= value <= 1


@dataclass(frozen=True)
class KimiConfig:
    """Shape of a model: `.nano`, the first and simple one, or `.k2_mini` and `.k2`, small and full Kimi K2.

    `KimiConfig(vocab_size, "k2", ...)` makes a `K2Config`, without "k2" a `NanoConfig`: each has the fields below and
    those of its architecture alone. The defaults are the sizes of `.nano` and `.k2_mini`. Where `config.json` of a
    DeepSeek-V3 has a field under the same name, it means the same.
    """

    vocab_size: int = whole(help="V: different tokens", least=2)
    architecture: str = choice("nano", "which of the two models", ARCHITECTURES)
    block_size: int = whole(256, "T: tokens in one window, the most that the model sees at once")
    d_model: int = whole(512, "D: width of the residual stream")
    n_heads: int = whole(8, "H: attention heads")
    n_layers: int = whole(6, "L: blocks of attention and experts", most=1000)
    d_ff: int = whole(1024, "F: hidden width of one expert")
    n_experts: int = whole(4, "E: experts in each layer")
    top_k: int = whole(2, "K: experts that compute for each token")
    balance_coef: float = real(0.01, "weight of the load-balancing loss in training, 0 switches it off", *FROM_0)

    def __new__(cls, *values, **named):
        if cls is KimiConfig:
            architecture = values[1] if len(values) > 1 else named.get("architecture", "nano")
            if architecture not in ARCHITECTURES:
                allowed = f"one of {', '.join(ARCHITECTURES)}"
                raise ValueError(f"KimiConfig.architecture is {architecture!r:.200}, it must be {allowed}")
            cls = K2Config if architecture == "k2" else NanoConfig
        refuse_unknown(cls, named)
        return object.__new__(cls)

    def __post_init__(self):
        check_settings(self)
        require(self, "top_k", f"at most n_experts ({self.n_experts})", self.top_k <= self.n_experts)

    @classmethod
    def nano(cls, vocab_size: int, **changes) -> NanoConfig:
        """The first, simple model at its published size; `changes` override single fields."""
        return NanoConfig(vocab_size, **changes)

    @classmethod
    def k2_mini(cls, vocab_size: int, **changes) -> K2Config:
        """Kimi K2 at 1/32 of its widths; `changes` override single fields.

        | field | here | Kimi K2 | |
        |---|---|---|---|
        | d_model, q_lora_rank, kv_lora_rank | 224, 48, 16 | 7168, 1536, 512 | 1/32 each |
        | d_ff, dense_ff | 64, 576 | 2048, 18432 | 1/32: one dense layer = 8 chosen experts and the shared one |
        | heads' values together | 8 x 32 = 256 | 64 x 128 = 8192 | 1/32: 8/7 of d_model |
        | qk_nope, qk_rope, v_head_dim | 32, 16, 32 | 128, 64, 128 | 1/4, so 2 : 1 : 2 as there |
        | n_heads, n_layers | 8, 4 | 64, 61 | 1/8, 1/15 |
        | n_experts of which top_k | 8 of 32 | 8 of 384 | sparsity 4 where Kimi K2 has 48 |
        | bias_rate | 0.01 | not published | a short run has few steps to balance in |

        What is not here is as published, but for YaRN: the model is trained at its full context.
        """
        return K2Config(vocab_size, **changes)

    @classmethod
    def small(cls, architecture: str, vocab_size: int, **changes) -> KimiConfig:
        """`nano` or `k2_mini`, by the name of the architecture."""
        return cls(vocab_size, architecture, **changes)

    @classmethod
    def k2(cls, vocab_size: int = 163_840, **changes) -> K2Config:
        """Kimi K2 as published in July 2025: 1,026,408,209,408 parameters (report, table 2, and its config.json)."""
        published = dict(
            block_size=131_072, d_model=7168, n_heads=64, n_layers=61, d_ff=2048, n_experts=384, top_k=8,
            q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
            yarn_factor=32.0, dense_ff=18432, bias_rate=0.001,
        )  # fmt: skip
        return K2Config(vocab_size, **{**published, **changes})

    @classmethod
    def deepseek_v3(cls, vocab_size: int = 129_280, **changes) -> K2Config:
        """DeepSeek-V3 (arXiv 2412.19437, without its second head), where Kimi K2 comes from: a check of the code."""
        published = dict(
            block_size=163_840, n_heads=128, n_experts=256, first_k_dense=3, n_group=8, topk_group=4,
            routed_scaling_factor=2.5, rope_theta=10_000.0, yarn_factor=40.0, yarn_beta_fast=32.0,
        )  # fmt: skip
        return cls.k2(vocab_size, **{**published, **changes})

    @classmethod
    def moonlight(cls, vocab_size: int = 163_840, **changes) -> K2Config:
        """Moonlight-16B-A3B, with which Moonshot AI tried Muon before Kimi K2 (arXiv 2502.16982, and its config.json).

        15,960,108,544 parameters, 2,914,774,528 of them active. Its queries have no latent, its shared experts are two.
        """
        published = dict(
            block_size=8192, d_model=2048, n_heads=16, n_layers=27, d_ff=1408, n_experts=64, top_k=6, q_lora_rank=0,
            yarn_factor=1.0, dense_ff=11264, n_shared_experts=2, routed_scaling_factor=2.446, norm_eps=1e-5,
        )  # fmt: skip
        return cls.k2(vocab_size, **{**published, **changes})


@dataclass(frozen=True)
class NanoConfig(KimiConfig):
    """nano: learned positions, multi-head attention, experts behind a softmax router."""

    dropout: float = real(0.1, "share of the values dropped in training", "in [0, 1)", lambda value: 0 <= value < 1)

    def __post_init__(self):
        super().__post_init__()
        require(self, "architecture", "nano", self.architecture == "nano")
        fits = self.d_model % self.n_heads == 0
        require(self, "d_model", f"a multiple of n_heads ({self.n_heads})", fits)

    @property
    def qk_head_dim(self) -> int:
        """Channels of a head's query and key."""
        return self.d_model // self.n_heads

    @property
    def v_head_dim(self) -> int:
        """Channels of a head's value."""
        return self.d_model // self.n_heads

    @property
    def cached_per_token(self) -> int:
        """Numbers that one layer's cache keeps for a token: a key and a value."""
        return 2 * self.d_model


@dataclass(frozen=True)
class K2Config(KimiConfig):
    """k2: latent attention with rotary positions, a dense layer, then experts behind a sigmoid router."""

    architecture: str = with_default(KimiConfig, "architecture", "k2")
    d_model: int = with_default(KimiConfig, "d_model", 224)
    n_layers: int = with_default(KimiConfig, "n_layers", 4)
    d_ff: int = with_default(KimiConfig, "d_ff", 64)
    n_experts: int = with_default(KimiConfig, "n_experts", 32)
    top_k: int = with_default(KimiConfig, "top_k", 8)
    balance_coef: float = with_default(KimiConfig, "balance_coef", 0.0)
    q_lora_rank: int = whole(48, "width of the query latent, 0 reads the queries from x itself", least=0)
    kv_lora_rank: int = whole(16, "C: width of the latent that keys and values share")
    qk_nope_head_dim: int = whole(32, "channels of a head's query and key without rotation")
    qk_rope_head_dim: int = whole(16, "R: rotated channels of a query, and of the key all heads share")
    v_head_dim: int = whole(32, "channels of a head's value")
    rope_theta: float = real(50_000.0, "base of the rotary wavelengths", "a finite number above 1",
                             lambda value: 1 < value < math.inf)  # fmt: skip
    yarn_factor: float = real(1.0, "how much longer YaRN makes the context, 1 switches it off", "1 or more",
                              lambda value: 1 <= value < math.inf)  # fmt: skip
    yarn_original: int = whole(4096, "context before YaRN")
    yarn_beta_fast: float = real(1.0, "pairs with more turns than this in that context stay", *ABOVE_0)
    yarn_beta_slow: float = real(1.0, "pairs with fewer turns than this are stretched in full", *ABOVE_0)
    first_k_dense: int = whole(1, "first layers with one dense feed-forward instead of experts", least=0)
    dense_ff: int = whole(576, "hidden width of those")
    n_shared_experts: int = whole(1, "experts that every token visits", least=0)
    n_group: int = whole(1, "groups that the experts are in")
    topk_group: int = whole(1, "groups that a token may choose from")
    routed_scaling_factor: float = real(2.827, "sum of a token's expert weights", *ABOVE_0)
    bias_rate: float = real(0.01, "step of the bias that balances the experts, 0 holds it", *FROM_0)
    norm_eps: float = real(1e-6, "what RMSNorm adds to the mean square", *ABOVE_0)

    def __post_init__(self):
        super().__post_init__()
        require(self, "architecture", "k2", self.architecture == "k2")
        slow = self.yarn_beta_slow
        require(self, "yarn_beta_fast", f"at least yarn_beta_slow ({slow})", self.yarn_beta_fast >= slow)
        require(self, "qk_rope_head_dim", "even: channels turn in pairs", self.qk_rope_head_dim % 2 == 0)
        fewer = self.first_k_dense < self.n_layers
        require(self, "first_k_dense", f"below n_layers ({self.n_layers}): some layer must have experts", fewer)
        size = self.n_experts // self.n_group
        fits = self.n_group == 1 or (self.n_experts % self.n_group == 0 and size >= 2)
        require(self, "n_group", f"a divisor of n_experts ({self.n_experts}) that leaves 2 or more in each", fits)
        require(self, "topk_group", f"at most n_group ({self.n_group})", self.topk_group <= self.n_group)
        enough = self.topk_group * size >= self.top_k
        require(self, "topk_group", f"groups with at least top_k ({self.top_k}) experts in all", enough)

    @property
    def qk_head_dim(self) -> int:
        """Channels of a head's query and key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def cached_per_token(self) -> int:
        """Numbers that one layer's cache keeps for a token: the latent and the rotated key."""
        return self.kv_lora_rank + self.qk_rope_head_dim


@dataclass(frozen=True)
class TrainConfig:
    """What one training run needs, apart from the model and the data."""

    steps: int = whole(2000, "optimizer steps")
    batch_size: int = whole(32, "windows of tokens in one forward pass")
    block_size: int = whole(256, "T: tokens in one window, at most the model's")
    accumulation: int = whole(1, "forward passes whose gradients make one step")
    lr: float = real(2e-3, "peak learning rate", *ABOVE_0)
    warmup: float = real(0.02, "share of the steps, the first, in which the rate rises from zero", *SHARE)
    decay: float = real(0.5, "share of the steps, the last, in which the rate falls along a cosine", *SHARE)
    final_lr: float = real(0.1, "rate at the end of the cosine, as a share of the peak", *SHARE)
    optimizer: str = choice("muonclip", "muonclip or adamw", OPTIMIZERS)
    tau: float = real(100.0, "largest head logit that QK-Clip of muonclip lets stand, inf switches it off", *POSITIVE)
    weight_decay: float = real(0.1, "decoupled weight decay", *FROM_0)
    clip_norm: float = real(1.0, "largest global norm of the gradient", *POSITIVE)
    eval_interval: int = whole(100, "steps between two validation losses")
    eval_batches: int = whole(8, "batches in one validation loss during training")
    checkpoint_minutes: float = real(
        1.0, "minutes between two checkpoints", "a number above 0", lambda value: value > 0
    )
    number_format: str = choice("auto", "auto, fp32, bf16 or fp16", NUMBER_FORMATS)
    seed: int = whole(0, "seed of batches and dropout", least=0)

    def __post_init__(self):
        check_settings(self)
        room = 1 - self.warmup
        require(self, "decay", f"at most what the warm-up leaves ({room:g})", self.decay <= room + 1e-9)


def from_dict(cls: type, values: dict):
    """Build a configuration from a plain dict read from a file, naming fields that it does not know."""
    if cls is not KimiConfig:
        refuse_unknown(cls, values)
    return cls(**values)
