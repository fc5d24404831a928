"""One matmul per expert over rows that are sorted by expert, the heart of sparse dispatch, in three forms.

| form | where | how |
|---|---|---|
| loop | CPU, and the reference | one matmul per group; needs the sizes of the groups on the host |
| tiles | any GPU | rows are filled up to tiles of one size, each with its expert's weights: one batched matmul |
| grouped_mm | Hopper and data-centre Blackwell in bf16 | torch's kernel, which reads the sizes of the groups itself |

A GPU runs behind the program that feeds it. Asking it how many tokens an expert got would empty its queue once per
layer, so the last two forms have shapes that depend on the number of tokens alone. Tiles are the idea of MegaBlocks
(arXiv 2211.15841). All three give the same numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

LOOP_TILE = 64  # rows
TILES_PER_EXPERT = 4  # tiles that an expert with the mean load fills: 1.25 x the matmuls, 5 x an expert's weights read


class Groups(NamedTuple):
    """N * K rows, each a token for one of its K experts, laid out by expert with some rows of filling between."""

    token: torch.Tensor  # (M,) the token that each row holds, N for filling
    row: torch.Tensor  # (N * K,) where each choice of an expert went
    sizes: list[int] | torch.Tensor  # loop: rows of each expert; tiles: (M / tile,) experts; grouped_mm: (E,) ends
    form: str


def count_choices(chosen: torch.Tensor, n_experts: int) -> torch.Tensor:
    """(E,) how often each expert was chosen. (torch.bincount makes a GPU wait: its result's shape depends on data.)"""
    flat = chosen.flatten()
    return flat.new_zeros(n_experts).scatter_add_(0, flat, torch.ones_like(flat))


def pick_form(x: torch.Tensor, dtype: torch.dtype) -> str:
    """The fastest form for rows like x (..., D), computed in `dtype`, on the device where x is."""
    if x.device.type != "cuda":
        return "loop"
    # Elsewhere grouped_mm exists too, as a loop behind the scenes that makes the GPU wait (pytorch pull 161407). Its
    # rows must begin at multiples of 16 bytes.
    has_kernel = hasattr(F, "grouped_mm") and torch.cuda.get_device_capability(x.device)[0] in (9, 10)
    return "grouped_mm" if has_kernel and dtype == torch.bfloat16 and x.shape[-1] % 8 == 0 else "tiles"


def group_by_expert(chosen: torch.Tensor, n_experts: int, form: str, loop_tile: int = LOOP_TILE) -> Groups:
    """Lay out the choices (N, K) by expert. In every form, one expert's rows are one after the other.

    loop_tile: the loop fills an expert's rows up to a multiple of this.
    """
    expert, order = chosen.flatten().sort(stable=True)  # (N*K,) choices, those of expert 0 first
    n = len(expert)
    counts = count_choices(chosen, n_experts)  # (E,)
    if form == "loop":
        tile = loop_tile if n > loop_tile * n_experts else 1  # the few rows of a decoding step stay as they are
    elif form == "tiles":
        tile = -(-n // (TILES_PER_EXPERT * n_experts))  # rounded up
    else:
        tile = 1
    rooms = (counts + tile - 1) // tile * tile  # (E,) rows of each expert, with filling
    ends = rooms.cumsum(0)  # (E,)
    place = torch.arange(n, device=chosen.device) + (ends - rooms - counts.cumsum(0) + counts)[expert]  # (N*K,)
    if form == "loop":
        sizes = rooms.tolist()
        n_rows = sum(sizes)
    elif form == "tiles":
        n_tiles = (n + n_experts * (tile - 1)) // tile  # enough for every distribution
        starts = tile * torch.arange(n_tiles, device=chosen.device)
        # tiles behind the last group are filling as well
        sizes = torch.searchsorted(ends, starts, right=True).clamp_(max=n_experts - 1)  # (n_tiles,)
        n_rows = n_tiles * tile
    else:
        sizes, n_rows = ends.to(torch.int32), n
    token = order.new_full((n_rows,), len(chosen)).scatter_(0, place, order // chosen.shape[1])  # (M,)
    return Groups(token, torch.empty_like(place).scatter_(0, order, place), sizes, form)


def gather(x: torch.Tensor, groups: Groups) -> torch.Tensor:
    """x (N, D) -> (M, D): the token of each row, zeros for filling."""
    return F.pad(x, (0, 0, 0, 1)).index_select(0, groups.token)


def grouped_linear(x: torch.Tensor, weight: torch.Tensor, groups: Groups) -> torch.Tensor:
    """x (M, n) in the layout of `groups`, weight (E, m, n) -> (M, m): each row times its own expert's matrix.

    Under autocast it computes in autocast's number format.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        if groups.form == "loop":
            return _GroupedLoop.apply(x.to(dtype), weight, groups.sizes)
        x, weight = x.to(dtype), weight.to(dtype)
        if groups.form == "grouped_mm":
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
