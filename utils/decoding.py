"""The model as generation uses it: one position at a time, with a cache, and weights in the device's number format.

Making one token reads every active weight once and computes little with it, so its time is that of reading. Weights of
two bytes instead of four are read twice as fast. They are the very numbers that autocast multiplied with in training
and validation; norms, k2's routing and the residual stream stay in fp32 as they did there.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from utils.attention import FixedKVCache
from utils.device import DTYPES, autocast, pick_number_format
from utils.model import Kimi, count_parameters
from utils.moe import SigmoidRouter
from utils.tokenizer import WordTokenizer

CPU_CACHE = 8_000_000  # parameters: 32 MB in fp32


class Decoder:
    """decoder(tokens) -> the logits after them, where `tokens` follow those of earlier calls.

    number_format: auto, fp32, bf16 or fp16, as for training; auto is fp32 for a model that stays in a CPU's cache.
    Raises ValueError for one that the device does not have.

    On a GPU a step of one token is recorded as a CUDA graph and repeated: launching its hundreds of small kernels one
    by one would take longer than running them.
    """

    def __init__(self, model: Kimi, number_format: str = "auto"):
        if number_format == "auto" and model.device.type == "cpu" and count_parameters(model).active < CPU_CACHE:
            number_format = "fp32"
        self.number_format, _ = pick_number_format(model.device, number_format)
        cast = self.number_format != "fp32"
        self.model = with_matrices_in(model, DTYPES[self.number_format]) if cast else model
        self.model.eval()
        self.restart()

    def restart(self) -> None:
        """Forget all tokens."""
        self.cache = self.model.new_cache()
        self._graph = None
        if self.model.device.type == "cuda":
            self.position = torch.zeros(1, dtype=torch.long, device=self.model.device)
            self.cache = [FixedKVCache(layer.capacity, self.position) for layer in self.cache]

    @property
    def length(self) -> int:
        """How many tokens the cache holds."""
        return self.cache[0].length

    @torch.inference_mode()
    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (B, T) -> logits (B, V) in fp32. Raises ValueError beyond the block size."""
        if tokens.shape[1] == 1 and self.length and isinstance(self.cache[0], FixedKVCache):
            return self._repeat(tokens)
        return self._logits(tokens)

    def _logits(self, tokens: torch.Tensor) -> torch.Tensor:
        with autocast(self.model.device, self.number_format):
            hidden = self.model.hidden(tokens, self.cache)[:, -1]  # (B, D)
            return self.model.head(hidden).float()

    def _repeat(self, tokens: torch.Tensor) -> torch.Tensor:
        """One more token, by the recorded step where there is one."""
        if self.length == self.cache[0].capacity:
            raise ValueError(f"{self.length + 1} positions were asked for, the block size is {self.length}")
        self.position.fill_(self.length)
        if self._graph is None:
            self._tokens = tokens.clone()
            self._graph, self._result = self._record()
        self._tokens.copy_(tokens)
        self._graph.replay()
        for layer in self.cache:
            layer.length += 1
        return self._result.clone()

    def _record(self) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        aside = torch.cuda.Stream()  # libraries set themselves up in the first calls, outside of the recording
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                self._logits(self._tokens)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = self._logits(self._tokens)
        return graph, result


def with_matrices_in(model: Kimi, dtype: torch.dtype) -> Kimi:
    """A model with the matrices of `model` in `dtype` that shares everything else with it; `model` stays as it is."""
    # an embedding is looked up, and k2's routers compute in fp32: no matmul to speed up
    kept = (nn.Embedding, SigmoidRouter)
    as_it_is = {id(p) for module in model.modules() if isinstance(module, kept) for p in module.parameters()}
    copies = {id(value): value for module in model.modules() for value in vars(module).values() if _is_shared(value)}
    for p in (*model.parameters(), *model.buffers()):
        cast = p.ndim > 1 and id(p) not in as_it_is
        copies[id(p)] = nn.Parameter(p.detach().to(dtype), requires_grad=False) if cast else p
    return copy.deepcopy(model, copies)  # what is among the copies is not copied again


def _is_shared(value) -> bool:
    return isinstance(value, torch.Tensor | WordTokenizer)
