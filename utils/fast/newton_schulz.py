"""Newton-Schulz for many matrices at once, in the number format that the device multiplies fastest.

A GPU wants all matrices of a shape together, a CPU as many as stay in its cache.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # those of `muonclip`
CPU_CACHE = 1 << 20  # numbers that a CPU orthogonalises at once, so that they stay in its cache


@torch.no_grad()
def orthogonalise(matrices: list[torch.Tensor], dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """All singular values of each matrix brought near 1: tensors (..., n, m) -> tensors of the same shapes.

    dtype: what it computes in, the matrices' own by default. Published code takes bf16.
    """
    stacks = [m.reshape(-1, *m.shape[-2:]) for m in matrices]  # (S, n, m) each
    results = [torch.empty_like(stack) for stack in stacks]
    for batch in _batches_of_a_shape(stacks):
        pieces = [stacks[i][part] for i, part in batch]
        directions = _newton_schulz(torch.cat(pieces), dtype)
        for (i, part), direction in zip(batch, directions.split([len(p) for p in pieces]), strict=True):
            results[i][part] = direction
    return [result.view(m.shape) for result, m in zip(results, matrices, strict=True)]


def _batches_of_a_shape(stacks: list[torch.Tensor]) -> Iterator[list[tuple[int, slice]]]:
    """Lists of (which stack, which of its matrices), all of one shape and as many as are taken at once."""
    same_shape = defaultdict(list)
    for i, stack in enumerate(stacks):
        at_once = max(1, CPU_CACHE // stack.shape[-2:].numel()) if stack.device.type == "cpu" else sys.maxsize
        parts = [slice(start, min(start + at_once, len(stack))) for start in range(0, len(stack), at_once)]
        same_shape[stack.shape[-2:], stack.dtype, at_once] += [(i, part) for part in parts]
    for (_, _, at_once), pieces in same_shape.items():
        batch, size = [], 0
        for i, part in pieces:
            length = part.stop - part.start
            if size + length > at_once:
                yield batch
                batch, size = [], 0
            batch.append((i, part))
            size += length
        yield batch


def _newton_schulz(matrices: torch.Tensor, dtype: torch.dtype | None, steps: int = 5) -> torch.Tensor:
    """The textbook's `newton_schulz` of a stack (S, n, m), with each step's sums made inside of its products."""
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)  # (S, n, m) singular values <= 1
    x = x.to(dtype or matrices.dtype)
    tall = x.shape[-2] > x.shape[-1]
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x.mT @ x if tall else x @ x.mT  # (S, k, k) with k the smaller of n and m
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b A + c A^2
        x = torch.baddbmm(x, x, polynomial, beta=a) if tall else torch.baddbmm(x, polynomial, x, beta=a)
    return x.to(matrices.dtype)
