"""Muon on several processes: every matrix is orthogonalised whole, and by one process.

Orthogonalising is no sum over parts of a matrix, so a process that holds some rows of one cannot do its share alone.
Where each process holds everything (DDP), each takes some matrices and hands its results to all. Where matrices are
cut into rows (FSDP2), the rows of a matrix travel to one process and its result back. Stacks of experts are cut
between experts: there each process has whole matrices already, and nothing travels.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from utils.fast.newton_schulz import orthogonalise
from utils.ranks import Ranks


def owners(shapes: list[torch.Size], n_ranks: int) -> list[int]:
    """Which process takes each matrix (n, m), so that all have about as much to do: the largest first, to whoever
    has least."""
    work = [min(shape) ** 2 * max(shape) for shape in shapes]  # multiplications of Newton-Schulz, up to a factor
    owner, load = [0] * len(shapes), [0] * n_ranks
    for i in sorted(range(len(shapes)), key=lambda i: -work[i]):
        owner[i] = load.index(min(load))
        load[owner[i]] += work[i]
    return owner


def orthogonalise_shared(matrices: list[torch.Tensor], dtype: torch.dtype | None, ranks: Ranks) -> list[torch.Tensor]:
    """`orthogonalise` of tensors (..., n, m) that are the same in every process, each matrix by one of them.

    dtype: what it computes in, and what is sent.
    """
    results = [torch.empty_like(m) for m in matrices]
    pieces = [piece for m in matrices for piece in m.reshape(-1, *m.shape[-2:])]  # (n, m) each
    places = [piece for result in results for piece in result.view(-1, *result.shape[-2:])]
    owner = owners([piece.shape for piece in pieces], ranks.size)
    sizes = [sum(p.numel() for p, o in zip(pieces, owner, strict=True) if o == rank) for rank in range(ranks.size)]
    ours = orthogonalise([piece for piece, o in zip(pieces, owner, strict=True) if o == ranks.rank], dtype)
    sent = matrices[0].new_zeros(max(sizes), dtype=dtype)  # as long for every process
    if ours:
        torch.cat([m.flatten() for m in ours], out=sent[: sizes[ranks.rank]])
    received = [torch.empty_like(sent) for _ in range(ranks.size)]
    dist.all_gather(received, sent)
    for rank in range(ranks.size):
        theirs = [place for place, o in zip(places, owner, strict=True) if o == rank]
        for place, flat in zip(theirs, received[rank][: sizes[rank]].split([p.numel() for p in theirs]), strict=True):
            place.copy_(flat.view_as(place))
    return results


def orthogonalise_shards(matrices: list[DTensor], dtype: torch.dtype | None, ranks: Ranks) -> list[DTensor]:
    """`orthogonalise` of tensors (..., n, m) that are cut along their first dimension."""
    results = [m.to_local() for m in matrices]
    stacks = [i for i, m in enumerate(matrices) if m.ndim > 2 and results[i].numel()]  # more processes than experts
    for i, result in zip(stacks, orthogonalise([results[i] for i in stacks], dtype), strict=True):
        results[i] = result
    cut = [i for i, m in enumerate(matrices) if m.ndim == 2]
    rows = _by_owner([matrices[i].shape for i in cut], [results[i] for i in cut], ranks, dtype)
    for i, result in zip(cut, rows, strict=True):
        results[i] = result
    return [_as(result, m) for result, m in zip(results, matrices, strict=True)]


def _by_owner(
    shapes: list[torch.Size], local: list[torch.Tensor], ranks: Ranks, dtype: torch.dtype | None
) -> list[torch.Tensor]:
    """Matrices of these shapes, of each of which this process holds some rows: the same rows, orthogonalised."""
    owner = owners(shapes, ranks.size)
    order = sorted(range(len(shapes)), key=lambda i: owner[i])  # those of process 0 first
    mine = [i for i in order if owner[i] == ranks.rank]
    held = [[rows_of(shape, rank, ranks.size) * shape[1] for shape in shapes] for rank in range(ranks.size)]
    out = [sum(held[ranks.rank][i] for i in order if owner[i] == rank) for rank in range(ranks.size)]
    back = [sum(held[rank][i] for i in mine) for rank in range(ranks.size)]
    sent = torch.cat([local[i].flatten() for i in order])
    received = _exchange(sent, out, back).split(back)  # from each process its rows of my matrices
    parts = [theirs.split([held[rank][i] for i in mine]) for rank, theirs in enumerate(received)]
    whole = [torch.cat([p[k] for p in parts]).view(shapes[i]) for k, i in enumerate(mine)]
    done = orthogonalise(whole, dtype)
    cut = [m.flatten().split([held[rank][i] for rank in range(ranks.size)]) for i, m in zip(mine, done, strict=True)]
    sent = torch.cat([sent.new_empty(0), *(pieces[rank] for rank in range(ranks.size) for pieces in cut)])
    received = _exchange(sent, back, out).split([held[ranks.rank][i] for i in order])
    results = dict(zip(order, received, strict=True))
    return [results[i].view_as(local[i]) for i in range(len(shapes))]


def rows_of(shape: torch.Size, rank: int, size: int) -> int:
    """How many rows of a matrix a process holds: as torch.chunk cuts them."""
    each = -(-shape[0] // size)
    return max(0, min(each, shape[0] - rank * each))


def _exchange(sent: torch.Tensor, out: list[int], back: list[int]) -> torch.Tensor:
    received = sent.new_empty(sum(back))
    dist.all_to_all_single(received, sent, back, out)
    return received


def _as(local: torch.Tensor, like: DTensor) -> DTensor:
    where = dict(shape=like.shape, stride=like.stride())
    return DTensor.from_local(local, like.device_mesh, like.placements, run_check=False, **where)
