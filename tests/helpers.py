"""What several test files share: models small enough to run in milliseconds, and tokens for them."""

import math

import pytest
import torch
import torch.nn.functional as F

from utils.checkpoint import FORM, MODEL, checkpoint_file
from utils.config import KimiConfig
from utils.model import Kimi
from utils.sealed import write_sealed
from utils.tokenizer import WordTokenizer

TINY = dict(block_size=16, d_model=32, n_heads=4, n_layers=2, d_ff=48, n_experts=4, top_k=2, dropout=0.0)
TINY_K2 = dict(
    block_size=16, d_model=32, n_heads=4, n_layers=3, q_lora_rank=20, kv_lora_rank=12, qk_nope_head_dim=8,
    qk_rope_head_dim=4, v_head_dim=6, dense_ff=40, d_ff=24, n_experts=8, top_k=2,
)  # fmt: skip


def tiny_config(vocab_size=50, **changes) -> KimiConfig:
    return KimiConfig.nano(vocab_size, **{**TINY, **changes})


def tiny_model(vocab_size=50, seed=0, **changes) -> Kimi:
    """A model with weights large enough that every part of it shows in the logits."""
    model = Kimi(tiny_config(vocab_size, **changes), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(std=0.2, generator=generator)
    return model


def tiny_k2_config(vocab_size=50, **changes) -> KimiConfig:
    return KimiConfig(vocab_size, "k2", **{**TINY_K2, **changes})


def tiny_k2_model(vocab_size=50, seed=0, **changes) -> Kimi:
    """The same for k2; its norm weights and the biases of its routers are random as well."""
    model = Kimi(tiny_k2_config(vocab_size, **changes), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(mean=0.0 if p.ndim > 1 else 1.0, std=0.2, generator=generator)
        for router in model.routers():
            router.expert_bias.normal_(std=0.2, generator=generator)
    return model


# what holds for every architecture is tested with each
TINY_CONFIGS = {"nano": tiny_config, "k2": tiny_k2_config}
TINY_MODELS = {"nano": tiny_model, "k2": tiny_k2_model}
every_architecture = pytest.mark.parametrize("architecture", TINY_MODELS)


def random_tokens(batch, length, vocab_size=50, seed=0) -> torch.Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def every_expert_on_every_token(experts, x, weights, chosen):
    """The published notebook's form, right but E/K times too expensive: each expert runs on all tokens."""
    y = torch.zeros_like(x)
    for e in range(len(experts.w_up)):
        value, gate = (F.linear(x, w) for w in experts.w_up[e])
        out = F.linear(value * F.silu(gate), experts.w_down[e])
        y = y + out * (weights * (chosen == e)).sum(-1, keepdim=True)
    return y


def storyteller(text: str, architecture="nano", seed=0, ends=True, **changes) -> Kimi:
    """A model that knows the words of `text`; where it never ends, <|endoftext|> is impossible."""
    tokenizer = WordTokenizer.train([text])
    model = TINY_MODELS[architecture](len(tokenizer), seed, **changes)
    model.tokenizer = tokenizer
    if not ends:
        eos = torch.tensor([tokenizer.eos_id])
        model.head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, eos, -math.inf))
    return model


def visible(folder) -> list[str]:
    """The names in a folder, but for the lock of a run."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def save_again(path, state: dict) -> None:
    """Write what `load_checkpoint` gave, changed by a test, whole and with right checksums."""
    plain = {name: state[name] for name in ("step", "config", "tokenizer", "training")}
    weights = {MODEL + name: tensor for name, tensor in state["model"].items()}
    write_sealed(checkpoint_file(path), FORM, weights | state["tensors"], plain)


def old_state(path, number: int = 3) -> dict:
    """The run at `path` as the third format had it, before checkpoints were sealed: a dict for torch.save."""
    from utils.checkpoint import load_checkpoint

    state = load_checkpoint(path)
    training, tensors = state["training"], state.pop("tensors")
    optimizer = {"state": {}, "param_groups": []}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, i, kind = name.split(".")
            optimizer["state"].setdefault(int(i), {})[kind] = tensor.item() if kind == "step" else tensor
    training["optimizer"] = optimizer
    training["history"] = {"losses": tensors["losses"].tolist(), "rows": training.pop("rows")}
    training |= {"batches": tensors["batches"], "rng": tensors["rng"], "device_rng": None}
    return {"format": f"kimi-k2-from-scratch checkpoint {number}", **state}
