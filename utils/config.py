"""What a model and a run are made of: two frozen dataclasses and the size presets.

Every field checks itself: an impossible value raises ValueError naming the field, the value and what is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

NUMBER_FORMATS = ("auto", "fp32", "bf16", "fp16")
SCHEDULES = ("cosine", "constant")


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


def _field(default, help_text: str):
    """A field whose meaning the command line can show."""
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class KimiConfig:
    """Shape of a model. The defaults are the published nano size (the original notebook's)."""

    vocab_size: int
    block_size: int = _field(256, "T: tokens in one window, the most that the model sees at once")
    d_model: int = _field(512, "D: width of the residual stream")
    n_heads: int = _field(8, "H: attention heads")
    n_layers: int = _field(6, "blocks of attention and experts")
    d_ff: int = _field(1024, "F: hidden width of one expert")
    n_experts: int = _field(4, "E: experts in each layer")
    top_k: int = _field(2, "K: experts that compute for each token")
    dropout: float = _field(0.1, "share of the values dropped in training")
    balance_coef: float = _field(0.01, "weight of the load-balancing loss in training, 0 switches it off")

    def __post_init__(self):
        _check_whole_numbers(self, {
            "vocab_size": 2, "block_size": 1, "d_model": 1, "n_heads": 1, "n_layers": 1, "d_ff": 1, "n_experts": 1,
            "top_k": 1,
        })  # fmt: skip
        fits = self.d_model % self.n_heads == 0
        _require(self, "d_model", f"a multiple of n_heads ({self.n_heads})", fits)
        _require(self, "top_k", f"at most n_experts ({self.n_experts})", self.top_k <= self.n_experts)
        _require(self, "dropout", "in [0, 1)", _is_number(self.dropout) and 0 <= self.dropout < 1)
        _require(self, "balance_coef", "0 or more", _is_number(self.balance_coef) and self.balance_coef >= 0)

    @classmethod
    def nano(cls, vocab_size: int, **changes) -> KimiConfig:
        """The first, simple model at its published size; `changes` override single fields."""
        return cls(vocab_size=vocab_size, **changes)


@dataclass(frozen=True)
class TrainConfig:
    """What one training run needs, apart from the model and the data."""

    steps: int = _field(2000, "optimizer steps")
    batch_size: int = _field(32, "windows of tokens in one forward pass")
    block_size: int = _field(256, "T: tokens in one window, at most the model's")
    accumulation: int = _field(1, "forward passes whose gradients make one step")
    lr: float = _field(6e-4, "peak learning rate")
    schedule: str = _field("cosine", "learning rate after the warm-up: cosine or constant")
    warmup: float = _field(0.05, "share of the steps in which the rate rises from zero")
    final_lr: float = _field(0.1, "rate at the end of the cosine, as a share of the peak")
    weight_decay: float = _field(0.1, "decoupled weight decay of the matrices")
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
        for name in ("lr", "clip_norm", "checkpoint_minutes"):
            value = getattr(self, name)
            _require(self, name, "a number above 0", _is_number(value) and value > 0)
        for name in ("warmup", "final_lr"):
            value = getattr(self, name)
            _require(self, name, "in [0, 1]", _is_number(value) and 0 <= value <= 1)
        _require(self, "weight_decay", "0 or more", _is_number(self.weight_decay) and self.weight_decay >= 0)
        _require(self, "schedule", f"one of {', '.join(SCHEDULES)}", self.schedule in SCHEDULES)
        _require(self, "number_format", f"one of {', '.join(NUMBER_FORMATS)}", self.number_format in NUMBER_FORMATS)


@dataclass(frozen=True)
class Preset:
    """One size of the whole job: how many stories, which words, which model, which run."""

    stories: int  # stories to train on, at most
    min_count: int  # words rarer than this in the training stories become <unk>
    model: dict  # fields of KimiConfig other than vocab_size
    training: TrainConfig


PRESETS = {
    # Seconds on any machine: the tests and a first look.
    "smoke": Preset(
        stories=2_000,
        min_count=1,
        model=dict(block_size=64, d_model=64, n_heads=4, n_layers=2, d_ff=128, dropout=0.0),
        training=TrainConfig(steps=100, batch_size=8, block_size=64, lr=3e-3, eval_interval=50, eval_batches=2),
    ),
    # Minutes on two CPU cores: the main job of the README.
    "laptop": Preset(
        stories=20_000,
        min_count=3,
        model=dict(block_size=128, d_model=256, n_heads=4, n_layers=2, d_ff=256, dropout=0.0),
        training=TrainConfig(steps=2500, batch_size=8, block_size=128, lr=2e-3),
    ),
    # The published size, for a Colab GPU.
    "colab": Preset(stories=100_000, min_count=3, model={}, training=TrainConfig()),
}


def from_dict(cls, values: dict):
    """Build a config from a plain dict read from a file, naming fields that it does not know."""
    unknown = sorted(set(values) - {f.name for f in fields(cls)})
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {unknown[0]!r}, its fields are {[f.name for f in fields(cls)]}")
    return cls(**values)
