"""What a model and a run are made of: two frozen dataclasses and the size presets.

Every field checks itself: an impossible value raises ValueError naming the field, the value and what is allowed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

NUMBER_FORMATS = ("auto", "fp32", "bf16", "fp16")
ARCHITECTURES = ("nano", "k2")
OPTIMIZERS = ("muonclip", "adamw")


def _require(config, name: str, allowed: str, holds: bool) -> None:
    """Raise ValueError with one clear sentence unless `holds`."""
    if not holds:
        raise ValueError(f"{type(config).__name__}.{name} is {getattr(config, name)!r}, it must be {allowed}")


def _check_whole_numbers(config, minimum: dict[str, int]) -> None:
    for name, least in minimum.items():
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        _require(config, name, f"a whole number, {least} or more", whole and value >= least)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _field(default, help_text: str, only: str | None = None):
    """A field whose meaning the command line can show; `only` names the one architecture that has it."""
    return field(default=default, metadata={"help": help_text, "only": only})


@dataclass(frozen=True)
class KimiConfig:
    """Shape of a model: `.nano`, the first and simple one, or `.k2_mini` and `.k2`, small and full Kimi K2.

    The defaults are nano's published size (the original notebook's) and, where the size of a model does not matter,
    Kimi K2's published values. Where `config.json` of a DeepSeek-V3 has the field under the same name, it means the
    same.
    """

    vocab_size: int
    architecture: str = "nano"
    block_size: int = _field(256, "T: tokens in one window, the most that the model sees at once")
    d_model: int = _field(512, "D: width of the residual stream")
    n_heads: int = _field(8, "H: attention heads")
    n_layers: int = _field(6, "blocks of attention and experts")
    d_ff: int = _field(1024, "F: hidden width of one expert")
    n_experts: int = _field(4, "E: experts in each layer")
    top_k: int = _field(2, "K: experts that compute for each token")
    balance_coef: float = _field(0.01, "weight of the load-balancing loss in training, 0 switches it off")
    dropout: float = _field(0.1, "share of the values dropped in training", only="nano")
    q_lora_rank: int = _field(1536, "width of the query latent", only="k2")
    kv_lora_rank: int = _field(512, "C: width of the latent that keys and values share", only="k2")
    qk_nope_head_dim: int = _field(128, "channels of a head's query and key without rotation", only="k2")
    qk_rope_head_dim: int = _field(64, "R: rotated channels of a query, and of the key all heads share", only="k2")
    v_head_dim: int = _field(128, "channels of a head's value", only="k2")
    rope_theta: float = _field(50_000.0, "base of the rotary wavelengths", only="k2")
    yarn_factor: float = _field(1.0, "how much longer YaRN makes the context, 1 switches it off", only="k2")
    yarn_original: int = _field(4096, "context before YaRN", only="k2")
    yarn_beta_fast: float = _field(1.0, "pairs with more turns than this in that context stay", only="k2")
    yarn_beta_slow: float = _field(1.0, "pairs with fewer turns than this are stretched in full", only="k2")
    first_k_dense: int = _field(1, "first layers with one dense feed-forward instead of experts", only="k2")
    dense_ff: int = _field(18432, "hidden width of those", only="k2")
    n_shared_experts: int = _field(1, "experts that every token visits", only="k2")
    n_group: int = _field(1, "groups that the experts are in", only="k2")
    topk_group: int = _field(1, "groups that a token may choose from", only="k2")
    routed_scaling_factor: float = _field(2.827, "sum of a token's expert weights", only="k2")
    bias_rate: float = _field(0.001, "step of the bias that balances the experts, 0 holds it", only="k2")
    norm_eps: float = _field(1e-6, "what RMSNorm adds to the mean square", only="k2")

    def __post_init__(self):
        _require(self, "architecture", f"one of {', '.join(ARCHITECTURES)}", self.architecture in ARCHITECTURES)
        for f in fields(self):
            if self.architecture == "nano" and f.metadata.get("only") == "k2":
                _require(self, f.name, "left out: only k2 has it", getattr(self, f.name) == f.default)
        sizes = {f.name: 1 for f in fields(self) if f.type == "int"}
        _check_whole_numbers(self, sizes | {"vocab_size": 2, "first_k_dense": 0, "n_shared_experts": 0})
        for name in ("yarn_beta_fast", "yarn_beta_slow", "routed_scaling_factor", "norm_eps"):
            value = getattr(self, name)
            _require(self, name, "a finite number above 0", _is_number(value) and 0 < value < math.inf)
        for name in ("balance_coef", "bias_rate"):
            value = getattr(self, name)
            _require(self, name, "0 or more", _is_number(value) and 0 <= value < math.inf)
        for name, allowed, holds in (
            ("rope_theta", "a finite number above 1", lambda v: 1 < v < math.inf),
            ("yarn_factor", "1 or more", lambda v: 1 <= v < math.inf),
            ("yarn_beta_fast", f"at least yarn_beta_slow ({self.yarn_beta_slow})", lambda v: v >= self.yarn_beta_slow),
        ):
            value = getattr(self, name)
            _require(self, name, allowed, _is_number(value) and holds(value))
        _require(self, "dropout", "in [0, 1)", _is_number(self.dropout) and 0 <= self.dropout < 1)
        _require(self, "top_k", f"at most n_experts ({self.n_experts})", self.top_k <= self.n_experts)
        if self.architecture == "k2":
            self._check_k2()
        else:
            fits = self.d_model % self.n_heads == 0
            _require(self, "d_model", f"a multiple of n_heads ({self.n_heads})", fits)

    def _check_k2(self) -> None:
        _require(self, "dropout", "0: k2 has none", self.dropout == 0)
        _require(self, "qk_rope_head_dim", "even: channels turn in pairs", self.qk_rope_head_dim % 2 == 0)
        fewer = self.first_k_dense < self.n_layers
        _require(self, "first_k_dense", f"below n_layers ({self.n_layers}): some layer must have experts", fewer)
        if self.n_group > 1:
            size = self.n_experts // self.n_group
            fits = self.n_experts % self.n_group == 0 and size >= 2
            _require(self, "n_group", f"a divisor of n_experts ({self.n_experts}) that leaves 2 or more in each", fits)
            _require(self, "topk_group", f"at most n_group ({self.n_group})", self.topk_group <= self.n_group)
            enough = self.topk_group * size >= self.top_k
            _require(self, "topk_group", f"groups with at least top_k ({self.top_k}) experts in all", enough)
        else:
            _require(self, "topk_group", "1 with one group", self.topk_group == 1)

    @property
    def qk_head_dim(self) -> int:
        """Channels of a head's query and key in k2."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @classmethod
    def nano(cls, vocab_size: int, **changes) -> KimiConfig:
        """The first, simple model at its published size; `changes` override single fields."""
        return cls(vocab_size, **changes)

    @classmethod
    def k2_mini(cls, vocab_size: int, **changes) -> KimiConfig:
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
        small = dict(
            block_size=256, d_model=224, n_heads=8, n_layers=4, q_lora_rank=48, kv_lora_rank=16, qk_nope_head_dim=32,
            qk_rope_head_dim=16, v_head_dim=32, dense_ff=576, d_ff=64, n_experts=32, top_k=8, bias_rate=0.01,
            balance_coef=0.0, dropout=0.0,
        )  # fmt: skip
        return cls(vocab_size, "k2", **{**small, **changes})

    @classmethod
    def small(cls, architecture: str, vocab_size: int, **changes) -> KimiConfig:
        """`nano` or `k2_mini`, by the name of the architecture."""
        return {"nano": cls.nano, "k2": cls.k2_mini}[architecture](vocab_size, **changes)

    @classmethod
    def k2(cls, vocab_size: int = 163_840, **changes) -> KimiConfig:
        """Kimi K2 as published in July 2025: 1,026,408,209,408 parameters (report, table 2, and its config.json)."""
        published = dict(
            block_size=131_072, d_model=7168, n_heads=64, n_layers=61, d_ff=2048, n_experts=384, top_k=8,
            yarn_factor=32.0, balance_coef=0.0, dropout=0.0,
        )  # fmt: skip
        return cls(vocab_size, "k2", **{**published, **changes})

    @classmethod
    def deepseek_v3(cls, vocab_size: int = 129_280, **changes) -> KimiConfig:
        """DeepSeek-V3 (arXiv 2412.19437, without its second head), where Kimi K2 comes from: a check of the code."""
        published = dict(
            block_size=163_840, n_heads=128, n_experts=256, first_k_dense=3, n_group=8, topk_group=4,
            routed_scaling_factor=2.5, rope_theta=10_000.0, yarn_factor=40.0, yarn_beta_fast=32.0,
        )  # fmt: skip
        return cls.k2(vocab_size, **{**published, **changes})


@dataclass(frozen=True)
class TrainConfig:
    """What one training run needs, apart from the model and the data."""

    steps: int = _field(2000, "optimizer steps")
    batch_size: int = _field(32, "windows of tokens in one forward pass")
    block_size: int = _field(256, "T: tokens in one window, at most the model's")
    accumulation: int = _field(1, "forward passes whose gradients make one step")
    lr: float = _field(2e-3, "peak learning rate")
    warmup: float = _field(0.02, "share of the steps, the first, in which the rate rises from zero")
    decay: float = _field(0.5, "share of the steps, the last, in which the rate falls along a cosine")
    final_lr: float = _field(0.1, "rate at the end of the cosine, as a share of the peak")
    optimizer: str = _field("muonclip", "muonclip or adamw")
    tau: float = _field(100.0, "largest head logit that QK-Clip of muonclip lets stand, inf switches it off")
    weight_decay: float = _field(0.1, "decoupled weight decay")
    clip_norm: float = _field(1.0, "largest global norm of the gradient")
    eval_interval: int = _field(100, "steps between two validation losses")
    eval_batches: int = _field(8, "batches in one validation loss during training")
    checkpoint_minutes: float = _field(1.0, "minutes between two checkpoints")
    number_format: str = _field("auto", "auto, fp32, bf16 or fp16")
    seed: int = _field(0, "seed of batches and dropout")

    def __post_init__(self):
        _check_whole_numbers(self, {
            "steps": 1, "batch_size": 1, "block_size": 1, "accumulation": 1, "eval_interval": 1, "eval_batches": 1,
            "seed": 0,
        })  # fmt: skip
        for name in ("lr", "clip_norm", "tau", "checkpoint_minutes"):
            value = getattr(self, name)
            _require(self, name, "a number above 0", _is_number(value) and value > 0)
        for name in ("warmup", "decay", "final_lr"):
            value = getattr(self, name)
            _require(self, name, "in [0, 1]", _is_number(value) and 0 <= value <= 1)
        _require(self, "weight_decay", "0 or more", _is_number(self.weight_decay) and self.weight_decay >= 0)
        room = 1 - self.warmup
        _require(self, "decay", f"at most what the warm-up leaves ({room:g})", self.decay <= room + 1e-9)
        _require(self, "optimizer", f"one of {', '.join(OPTIMIZERS)}", self.optimizer in OPTIMIZERS)
        _require(self, "number_format", f"one of {', '.join(NUMBER_FORMATS)}", self.number_format in NUMBER_FORMATS)


@dataclass(frozen=True)
class Preset:
    """One size of the whole job: how many stories, which words, which model, which run."""

    stories: int  # stories to train on, at most
    min_count: int  # words rarer than this in the training stories become <unk>
    model: dict  # fields of KimiConfig other than vocab_size
    training: TrainConfig


ADAMW = dict(optimizer="adamw", warmup=0.05, decay=0.95)  # how nano was trained before there was MuonClip
NANO = {
    # Seconds on any machine: the tests and a first look.
    "smoke": Preset(
        stories=2_000,
        min_count=1,
        model=dict(block_size=64, d_model=64, n_heads=4, n_layers=2, d_ff=128, dropout=0.0),
        training=TrainConfig(
            steps=100, batch_size=8, block_size=64, lr=3e-3, eval_interval=50, eval_batches=2, **ADAMW
        ),
    ),
    # Minutes on two CPU cores: the main job of the README.
    "laptop": Preset(
        stories=20_000,
        min_count=3,
        model=dict(block_size=128, d_model=256, n_heads=4, n_layers=2, d_ff=256, dropout=0.0),
        training=TrainConfig(steps=2500, batch_size=8, block_size=128, lr=2e-3, **ADAMW),
    ),
    # The published size, for a Colab GPU.
    "colab": Preset(stories=100_000, min_count=3, model={}, training=TrainConfig(lr=6e-4, **ADAMW)),
}

K2 = {
    "smoke": Preset(
        stories=2_000,
        min_count=1,
        model=dict(
            block_size=64, d_model=64, n_heads=4, n_layers=2, q_lora_rank=32, kv_lora_rank=16, qk_nope_head_dim=16,
            qk_rope_head_dim=8, v_head_dim=16, dense_ff=192, d_ff=64, n_experts=4, top_k=2,
        ),
        training=TrainConfig(
            steps=100, batch_size=8, block_size=64, lr=1e-2, eval_interval=50, eval_batches=2
        ),
    ),
    # A CPU pays for every expert: few and wide ones, as many active parameters as in k2_mini.
    "laptop": Preset(
        stories=20_000,
        min_count=3,
        model=dict(block_size=128, n_layers=2, kv_lora_rank=32, d_ff=192, n_experts=8, top_k=2),
        training=TrainConfig(steps=1250, batch_size=16, block_size=128, lr=4e-3),
    ),
    # Kimi K2 at 1/16 of its widths, for a Colab GPU.
    "colab": Preset(
        stories=100_000,
        min_count=3,
        model=dict(
            d_model=448, n_heads=16, n_layers=6, q_lora_rank=96, kv_lora_rank=32, dense_ff=1152, d_ff=384, n_experts=8,
            top_k=2,
        ),
        training=TrainConfig(),
    ),
}  # fmt: skip

PRESETS = {"nano": NANO, "k2": K2}


def from_dict(cls, values: dict):
    """Build a config from a plain dict read from a file, naming fields that it does not know."""
    unknown = sorted(set(values) - {f.name for f in fields(cls)})
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {unknown[0]!r}, its fields are {[f.name for f in fields(cls)]}")
    return cls(**values)
