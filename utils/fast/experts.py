"""One matmul per expert over rows that are sorted by expert, the heart of sparse dispatch, with three backends.

| backend | where | how |
|---|---|---|
| loop | CPU | one matmul per expert; needs the number of rows of each expert on the host |
| tiles | any GPU | rows are padded to tiles of one size, each with its expert's weights: one batched matmul |
| grouped_mm | Hopper and data-centre Blackwell in bf16 | torch's kernel, which reads the sizes of the groups itself |

A GPU runs behind the program that feeds it. Asking it how many tokens an expert got would empty its queue once per
layer, so the last two have shapes that depend on the number of tokens alone. Tiles are the idea of MegaBlocks
(arXiv 2211.15841). All three give the same numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from utils.device import compute_dtype, full_precision
from utils.fast.swiglu import swiglu

LOOP_TILE = 64  # rows
TILES_PER_EXPERT = 4  # tiles that an expert with the mean load fills: 1.25 x the matmuls, 5 x an expert's weights read


def run_experts(
    x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, w_up: torch.Tensor, w_down: torch.Tensor
) -> torch.Tensor:
    """Each token's weighted sum of experts: x (N, D), weights and chosen (N, K) -> (N, D).

    w_up (E, 2, F, D), value and gate, and w_down (E, D, F) are the experts' matrices.
    """
    if len(x) == 1 and x.device.type == "cpu":
        return _run_for_one_token(x, weights, chosen, w_up, w_down)
    dtype = compute_dtype(x)
    # In bf16, a CPU's oneDNN prepares a kernel for every new shape: multiples of a tile are few, again and again.
    loop_tile = 1 if dtype == torch.float32 else LOOP_TILE
    groups = group_by_expert(chosen, len(w_up), pick_backend(x, dtype), loop_tile)
    rows = gather(x.to(dtype), groups)  # (M, D), those of expert 0 first
    hidden = swiglu(grouped_linear(rows, w_up.flatten(1, 2), groups))  # (M, F)
    rows = grouped_linear(hidden, w_down, groups)  # (M, D)
    outputs = rows.index_select(0, groups.row_of_choice).unflatten(0, chosen.shape)  # (N, K, D)
    return (outputs * weights[..., None].type_as(outputs)).sum(dim=1).type_as(x)  # (N, D)


def _run_for_one_token(x, weights, chosen, w_up, w_down) -> torch.Tensor:
    """The same for N = 1, a step of generation: nothing to group."""
    outputs = [F.linear(swiglu(F.linear(x, w_up[e].flatten(0, 1))), w_down[e]) for e in chosen[0].tolist()]
    return (torch.cat(outputs) * weights.mT.type_as(outputs[0])).sum(dim=0, keepdim=True).type_as(x)  # (1, D)


class Groups(NamedTuple):
    """N * K rows, each a token for one of its K experts, sorted by expert, with some rows of padding between."""

    token_of_row: torch.Tensor  # (M,) the token that each row holds, N for padding
    row_of_choice: torch.Tensor  # (N * K,) where each choice of an expert went
    sizes: list[int] | torch.Tensor  # loop: rows of each expert; tiles: (M / tile,) experts; grouped_mm: (E,) ends
    backend: str


def pick_backend(x: torch.Tensor, dtype: torch.dtype) -> str:
    """The fastest backend for rows like x (..., D), computed in `dtype`, on the device where x is."""
    if x.device.type != "cuda":
        return "loop"
    # Elsewhere grouped_mm exists too, as a loop behind the scenes that makes the GPU wait (pytorch pull 161407). Its
    # rows must begin at multiples of 16 bytes.
    has_kernel = hasattr(F, "grouped_mm") and torch.cuda.get_device_capability(x.device)[0] in (9, 10)
    return "grouped_mm" if has_kernel and dtype == torch.bfloat16 and x.shape[-1] % 8 == 0 else "tiles"


def group_by_expert(chosen: torch.Tensor, n_experts: int, backend: str, loop_tile: int = LOOP_TILE) -> Groups:
    """Sort the choices (N, K) by expert. With every backend, one expert's rows are one after the other.

    loop_tile: the loop pads an expert's rows to a multiple of this. On the meta device, where nothing is known of the
    choices, each expert gets an equal share of the rows, so that FLOPs can be counted.
    """
    expert, order = chosen.flatten().sort(stable=True)  # (N*K,) choices, those of expert 0 first
    n = len(expert)
    counts = expert.new_zeros(n_experts).scatter_add_(0, expert, torch.ones_like(expert))  # (E,)
    if backend == "loop":
        tile = loop_tile if n > loop_tile * n_experts else 1  # the few rows of a decoding step stay as they are
    elif backend == "tiles":
        tile = -(-n // (TILES_PER_EXPERT * n_experts))  # rounded up
    else:
        tile = 1
    padded = (counts + tile - 1) // tile * tile  # (E,) rows of each expert, with padding
    ends = padded.cumsum(0)  # (E,)
    first_rows, first_choices = ends - padded, counts.cumsum(0) - counts  # (E,) where each expert's begin
    row = torch.arange(n, device=chosen.device) + (first_rows - first_choices)[expert]  # (N*K,)
    if chosen.is_meta:
        sizes = [n // n_experts + (e < n % n_experts) for e in range(n_experts)]
        n_rows = n
    elif backend == "loop":
        sizes = padded.tolist()
        n_rows = sum(sizes)
    elif backend == "tiles":
        n_tiles = (n + n_experts * (tile - 1)) // tile  # enough for every distribution
        starts = tile * torch.arange(n_tiles, device=chosen.device)
        # tiles behind the last group are padding as well
        sizes = torch.searchsorted(ends, starts, right=True).clamp_(max=n_experts - 1)  # (n_tiles,)
        n_rows = n_tiles * tile
    else:
        sizes, n_rows = ends.to(torch.int32), n
    token_of_row = order.new_full((n_rows,), len(chosen)).scatter_(0, row, order // chosen.shape[1])  # (M,)
    row_of_choice = torch.empty_like(row).scatter_(0, order, row)  # (N*K,)
    return Groups(token_of_row, row_of_choice, sizes, backend)


def gather(x: torch.Tensor, groups: Groups) -> torch.Tensor:
    """x (N, D) -> (M, D): the token of each row, zeros for padding."""
    return F.pad(x, (0, 0, 0, 1)).index_select(0, groups.token_of_row)


def grouped_linear(x: torch.Tensor, weight: torch.Tensor, groups: Groups) -> torch.Tensor:
    """x (M, n), sorted as `groups`, weight (E, m, n) -> (M, m): each row times its own expert's matrix.

    Under autocast it computes in autocast's number format.
    """
    dtype = compute_dtype(x)
    with full_precision(x.device):
        if groups.backend == "loop":
            return _GroupedLoop.apply(x.to(dtype), weight, groups.sizes)
        x, weight = x.to(dtype), weight.to(dtype)
        if groups.backend == "grouped_mm":
            return F.grouped_mm(x, weight.mT, offs=groups.sizes)
        tiles = x.unflatten(0, (len(groups.sizes), -1))  # (n_tiles, tile, n)
        return torch.bmm(tiles, weight[groups.sizes].mT).flatten(0, 1)


class _GroupedLoop(torch.autograd.Function):
    """The loop, with a backward that writes each expert's gradient to its place instead of joining E of them."""

    @staticmethod
    def forward(ctx, x, weight, sizes):
        ctx.save_for_backward(x, weight)
        ctx.sizes = sizes
        y = x.new_empty(len(x), weight.shape[1])
        for rows, matrix, out in zip(x.split(sizes), weight, y.split(sizes), strict=True):
            if len(rows):
                torch.mm(rows, matrix.to(x.dtype).T, out=out)  # cast one at a time, it is still in the cache
        return y

    @staticmethod
    def backward(ctx, grad_y):
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
        parts = (t.split(ctx.sizes) for t in (x, grad_y, grad_x))
        for rows, grad, out, matrix, grad_matrix in zip(*parts, weight, grad_weight, strict=True):
            torch.mm(grad, matrix.to(x.dtype), out=out)
            grad_matrix.copy_(grad.T @ rows)
        return grad_x, grad_weight, None
