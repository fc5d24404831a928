"""A decoding step recorded as a CUDA graph and repeated.

Launching its hundreds of small kernels one by one would take longer than running them. What a graph repeats must be the
same work on the same tensors each time, hence `StaticKVCache`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


class StaticKVCache:
    """The `KVCache` of `attention` for one layer, whose steps of one position all do the same on the same tensors.

    Such a step writes at `position`, (1,) int64 on the device, and returns the whole buffers; the mask says what of
    them exists. Whoever repeats a step sets `position` before it and `length` after it. The first piece, of whatever
    length, and longer ones are appended as in `KVCache`.
    """

    def __init__(self, capacity: int, position: torch.Tensor):
        self.capacity, self.length, self.position = capacity, 0, position
        self.buffers: list[torch.Tensor] = []

    def next_positions(self, n: int, device: torch.device) -> torch.Tensor:
        """(n,) int64, the positions of the next n tokens."""
        return self.position if n == 1 else torch.arange(self.length, self.length + n, device=device)

    def append(self, *new: torch.Tensor) -> list[torch.Tensor]:
        """Add tensors (..., T, d) of T new positions; return the whole buffers for T = 1, else all positions so far.

        Raises ValueError when a longer piece does not fit any more.
        """
        n, is_first = new[0].shape[-2], not self.buffers
        if is_first:
            self.buffers = [t.new_zeros(*t.shape[:-2], self.capacity, t.shape[-1]) for t in new]
        if n == 1 and not is_first:
            for buffer, tensor in zip(self.buffers, new, strict=True):
                buffer.index_copy_(buffer.ndim - 2, self.position, tensor)
            return self.buffers
        end = self.length + n
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, {end} were to be kept")
        for buffer, tensor in zip(self.buffers, new, strict=True):
            buffer[..., self.length : end, :] = tensor
        self.length = end
        return self.buffers if n == 1 else [buffer[..., :end, :] for buffer in self.buffers]

    def mask(self, n_queries: int) -> torch.Tensor | None:
        """(S,) bool, which of the positions that `append` returned exist; None where all do."""
        if n_queries > 1:
            return None
        return torch.arange(self.capacity, device=self.position.device) <= self.position


class RepeatedStep:
    """step(tokens): what `compute(tokens)` gives for tokens (B, 1), recorded once and then repeated.

    caches, position: those that `compute` reads and writes.
    """

    def __init__(self, compute: Callable, caches: list[StaticKVCache], position: torch.Tensor):
        self.compute, self.caches, self.position = compute, caches, position
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, tokens: torch.Tensor):
        self.position.fill_(self.caches[0].length)
        if self.graph is None:
            self.tokens = tokens.clone()
            self._record()
        self.tokens.copy_(tokens)
        self.graph.replay()
        for cache in self.caches:
            cache.length += 1
        return self.result

    def _record(self) -> None:
        aside = torch.cuda.Stream()  # libraries set themselves up in the first calls, outside of the recording
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                self.compute(self.tokens)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = self.compute(self.tokens)
