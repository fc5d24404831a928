"""The model as generation uses it: one position at a time, with a cache, and weights in the device's number format.

Making one token reads every active weight once and computes little with it, so its time is that of reading. Weights of
two bytes instead of four are read twice as fast. They are the very numbers that autocast multiplied with in training
and validation; norms, k2's routing and the residual stream stay in fp32 as they did there.
"""

from __future__ import annotations

import torch

from utils.device import DTYPES, autocast, pick_number_format
from utils.fast.decoding import RepeatedStep, StaticKVCache
from utils.model import Kimi, count_parameters, eval_view
from utils.record import Record

CPU_CACHE = 8_000_000  # parameters: 32 MB in fp32


class Decoder:
    """decoder(tokens) -> the logits after them, where `tokens` follow those of earlier calls.

    It reads a view of `model`, which stays in its own mode; what the model learns meanwhile, the view knows in fp32.
    number_format: auto, fp32, bf16 or fp16, as for training; auto is fp32 for a model that stays in a CPU's cache.
    Raises ValueError for one that the device does not have.
    """

    def __init__(self, model: Kimi, number_format: str = "auto"):
        if number_format == "auto" and model.device.type == "cpu" and count_parameters(model).active < CPU_CACHE:
            number_format = "fp32"
        self.number_format, _ = pick_number_format(model.device, number_format)
        self.model = eval_view(model, DTYPES[self.number_format] if self.number_format != "fp32" else None)
        self.restart()

    def restart(self) -> None:
        """Forget all tokens."""
        self.cache, self._repeated = self.model.new_cache(), None
        if self.model.device.type == "cuda":
            position = torch.zeros(1, dtype=torch.long, device=self.model.device)
            self.cache = [StaticKVCache(layer.capacity, position) for layer in self.cache]
            self._repeated = RepeatedStep(self._read, self.cache, position)

    @property
    def length(self) -> int:
        """How many tokens the cache holds."""
        return self.cache[0].length

    @torch.inference_mode()
    def __call__(self, tokens: torch.Tensor, record: Record | None = None) -> torch.Tensor:
        """tokens (B, T) -> logits (B, V) in fp32. Raises ValueError beyond the block size.

        record: takes the experts that these tokens chose, until the next call.
        """
        if self._repeated is None or tokens.shape[1] > 1 or not self.length:
            return self._read(tokens, record)[0]
        if self.length == self.cache[0].capacity:
            raise ValueError(f"{self.length + 1} positions were asked for, the block size is {self.length}")
        logits, recorded = self._repeated(tokens)
        if record is not None:
            record.layers.update(recorded.layers)
        return logits.clone()

    def _read(self, tokens: torch.Tensor, record: Record | None = None) -> tuple[torch.Tensor, Record]:
        if record is None and self._repeated is not None:
            record = Record()  # what is repeated must always leave it behind
        with autocast(self.model.device, self.number_format):
            hidden = self.model.hidden(tokens, self.cache, record)[:, -1]  # (B, D)
            return self.model.head(hidden).float(), record
