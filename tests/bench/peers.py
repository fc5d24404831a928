"""What `python -m tests.bench` measures against: the original notebook's form, and Hugging Face transformers."""

from __future__ import annotations

import tempfile

import torch
import torch.nn.functional as F
import transformers
from torch import nn

from utils.config import KimiConfig
from utils.hf import export_hf
from utils.hf_config import config_json
from utils.model import Kimi


class DenseExperts(nn.Module):
    """For each of the K slots every expert computes every token; what was not chosen is multiplied by zero."""

    def __init__(self, config: KimiConfig):
        super().__init__()
        self.top_k = config.top_k
        self.gate = nn.Linear(config.d_model, config.n_experts, bias=False)
        self.up = nn.ModuleList(nn.Linear(config.d_model, 2 * config.d_ff) for _ in range(config.n_experts))
        self.down = nn.ModuleList(nn.Linear(config.d_ff, config.d_model) for _ in range(config.n_experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        top, chosen = self.gate(x).softmax(dim=-1).topk(self.top_k, dim=-1)  # (B, T, K) each
        y = torch.zeros_like(x)
        for slot in range(self.top_k):
            for e, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
                value, gate = up(x).chunk(2, dim=-1)
                share = (top[..., slot] * (chosen[..., slot] == e))[..., None]  # (B, T, 1)
                y = y + share * down(value * F.silu(gate))
        return y


class DenseBlock(nn.Module):
    def __init__(self, config: KimiConfig):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(config.d_model) for _ in range(2))
        self.attention = nn.MultiheadAttention(config.d_model, config.n_heads, batch_first=True)
        self.experts = DenseExperts(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        h = self.norms[0](x)
        h, _ = self.attention(h, h, h, attn_mask=mask, need_weights=True)
        x = x + self.dropout(h)
        return x + self.dropout(self.experts(self.norms[1](x)))


class Dense(nn.Module):
    """The original notebook's model with its leaks mended: the same mathematics as nano, none of its speed."""

    def __init__(self, config: KimiConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Embedding(config.block_size, config.d_model)
        self.blocks = nn.ModuleList(DenseBlock(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocab_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (B, T) -> logits (B, T, V)."""
        length = tokens.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)  # True where it may not look
        x = self.embedding(tokens) + self.positions.weight[:length]
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self(tokens).flatten(0, 1), targets.flatten())


def transformers_twin(model: Kimi) -> transformers.PreTrainedModel:
    """`model` (k2) as transformers' DeepseekV3ForCausalLM with the same weights, in fp32."""
    with tempfile.TemporaryDirectory() as folder:
        export_hf(model, folder)
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def transformers_model(config: KimiConfig) -> transformers.PreTrainedModel:
    """transformers' DeepseekV3ForCausalLM of the same shape with its own initial weights, in fp32."""
    with torch.device("meta"):
        fields = config_json(Kimi(config))
    return transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**fields))
