"""Checks of the exercises of 08_scaling."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from utils.course.checks.verdict import check, close, expect, expect_tensor
from utils.course.processes import pretend
from utils.muonclip import newton_schulz

PATIENCE = 2.0  # seconds after which a process that waits is told that nobody comes


def _global_mean(gradient, n, all_reduce):
    return all_reduce(gradient * n) / all_reduce(n)


@check(ours=_global_mean)
def check_global_mean(global_mean) -> str:
    """The gradient of the mean over all windows of all processes, on each, though they have different numbers."""
    generator = torch.Generator().manual_seed(0)

    def answers(counts):
        gradients = [torch.randn(3, generator=generator) for _ in counts]
        calls = [0] * len(counts)

        def work(rank, all_reduce):
            def counted(value):
                calls[rank] += 1
                return all_reduce(value)

            return global_mean(gradients[rank].clone(), counts[rank], counted)

        try:
            got = pretend(len(counts), work, PATIENCE)
        except TimeoutError:
            expect(False, "one process waits in all_reduce for another that never comes: every process must call it")
        for answer in got:
            expect_tensor(answer, (3,))
        return gradients, got, calls

    for counts in ((6, 2), (5, 1, 2), (4, 4)):
        gradients, got, calls = answers(counts)
        total = sum(g * n for g, n in zip(gradients, counts, strict=True))
        whole, means = total / sum(counts), sum(gradients) / len(counts)
        expect(sum(calls), "nothing is exchanged: call all_reduce, the only way to learn something of the others")
        expect(not close(got[0], total), "that is the sum over all windows: divide it by how many there are")
        expect(
            not close(got[0], sum(gradients)),
            "that is the sum of the processes' means: it grows with every process that joins",
        )
        expect(
            not close(got[0], total / counts[0]),
            "you divide by this process' own n: all windows count, those of the others too",
        )
        if not close(means, whole):
            expect(
                not close(got[0], means),
                f"with {' and '.join(map(str, counts))} windows this is the mean of the means, in which windows of\n"
                "the smaller part count more than the others",
            )
        expect(close(got[0], whole), f"with {counts} windows process 0 must get {whole[0]:.4f} first, it has "
               f"{got[0][0]:.4f}")  # fmt: skip
        expect(all(close(g, whole) for g in got), "process 0 is right, another is not: all must get the same")
    return "every window counts the same, wherever it was computed"


def _owners(work, n):
    return _greedy(work, n, sorted(range(len(work)), key=lambda i: -work[i]))


def _greedy(work, n, order):
    owner, load = [0] * len(work), [0] * n
    for i in order:
        owner[i] = load.index(min(load))
        load[owner[i]] += work[i]
    return owner


def _loads(work, owner, n):
    return [sum(w for w, o in zip(work, owner, strict=True) if o == rank) for rank in range(n)]


@check(ours=_owners)
def check_share_out(share_out) -> str:
    """An owner for each matrix; the busiest has no more to do than when the largest go first, to whoever has least."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(1, 100, (12,), generator=generator).tolist() for _ in range(4)]
    asked = [([5, 5, 5, 5], 2), ([9, 1, 1, 1, 1, 1], 2), ([2, 1, 1, 4], 2), ([1, 2, 3, 4, 20], 3), ([7], 4)]
    asked += [(work, n) for work in drawn for n in (2, 3, 5)]
    answers = []
    for work, n in asked:
        owner = share_out(list(work), n)
        expect(owner is not None, "your function returns None: does it end in `return`?")
        owner = [int(o) for o in owner]
        expect(len(owner) == len(work), f"{len(work)} matrices need {len(work)} owners, you return {len(owner)}")
        expect(all(0 <= o < n for o in owner), f"owners are the numbers 0 to {n - 1}, yours are {owner}")
        expect(
            [int(o) for o in share_out(list(work), n)] == owner,
            "asked again, you answer otherwise: every process asks for itself, and all must get the same",
        )
        answers.append(owner)
    for (work, n), owner in zip(asked, answers, strict=True):  # after all were asked again: chance may be right once
        loads, best = _loads(work, owner, n), _loads(work, _owners(work, n), n)
        told = f"for work {work[:6]}{'...' if len(work) > 6 else ''} on {n} processes"
        if max(loads) > max(best):
            expect(len({*owner}) > 1, f"{told} all go to process {owner[0]}: look at how much each has already")
            turns = [i % n for i in range(len(work))]
            expect(owner != turns, f"{told} they take turns, as if all were as much work: {loads}, not {best}")
            ranked = sorted(range(len(work)), key=lambda i: -work[i])
            moved = [_owners(work, n)[i] for i in ranked]
            expect(owner != moved, f"{told} the owners are in the order of the sorted matrices, not of `work`")
            rising = _greedy(work, n, sorted(range(len(work)), key=work.__getitem__))
            expect(
                owner not in (rising, _greedy(work, n, range(len(work)))),
                f"{told} a large one comes late, and nothing is left\nto even it out: {loads}, not {best}",
            )
        expect(max(loads) <= max(best), f"{told} the loads are {loads}, the busiest could have {max(best)}")
    return "the slowest process has as little to do as the others"


def _rows_held(n_rows, rank, size):
    each = -(-n_rows // size)
    return min(rank * each, n_rows), min((rank + 1) * each, n_rows)


@check(ours=_rows_held)
def check_rows_held(rows_held) -> str:
    """(first, end) of the rows of each process, equal blocks of ceil(n_rows / size), the last ones shorter or empty."""

    def rows(n_rows, rank, size):
        got = rows_held(n_rows, rank, size)
        expect(got is not None, "your function returns None: does it end in `return`?")
        first, end = (got.start, got.stop) if isinstance(got, slice | range) else got
        return list(range(n_rows))[int(first) : int(end)] if int(first) < int(end) else [], int(first), int(end)

    for n_rows, size in ((8, 2), (8, 4), (7, 2), (6, 4), (3, 4), (1, 1), (10, 4)):
        got = [rows(n_rows, rank, size) for rank in range(size)]
        held, told = [r for r, _, _ in got], f"{n_rows} rows on {size} processes"
        lengths, flat = [len(h) for h in held], [row for h in held for row in h]
        missing = sorted({*range(n_rows)} - {*flat})
        expect(not missing, f"{told}: nobody holds row {missing[0] if missing else 0}; blocks of n_rows // size rows\n"
               "leave a rest")  # fmt: skip
        expect(
            len(flat) == len({*flat}),
            f"{told}: a row is held twice, process 0 has {lengths[0]} rows and the next\n"
            "one does not begin behind them",
        )
        expect(
            all(end <= n_rows or first >= end for _, first, end in got),
            f"{told}: a block ends at {max(end for _, _, end in got)}, behind the last row: cut it off at n_rows",
        )
        expect(flat == sorted(flat), f"{told}: the blocks must come in the order of the ranks, yours are {held}")
        wanted = [[*range(*_rows_held(n_rows, rank, size))] for rank in range(size)]
        expect(
            held == wanted,
            f"{told}: you hold {lengths} rows each, torch.chunk cuts {[len(w) for w in wanted]}: full blocks first,\n"
            "the last ones get what is left",
        )
    return "these are the rows that torch.chunk gives, and with them FSDP2"


def _orthogonalise_rows(rows, first, n_rows, owner, orthogonalise, ranks):
    padded = rows.new_zeros(n_rows, rows.shape[1])
    padded[first : first + len(rows)] = rows
    whole = ranks.sum(padded)
    result = orthogonalise(whole) if ranks.rank == owner else torch.zeros_like(whole)
    return ranks.sum(result)[first : first + len(rows)]


@check(ours=_orthogonalise_rows)
def check_orthogonalise_rows(orthogonalise_rows) -> str:
    """On each process its rows of the orthogonalised matrix, which the owner alone computes, from the whole matrix."""
    generator = torch.Generator().manual_seed(0)
    for n_rows, size, owner in ((4, 2, 1), (7, 3, 0), (6, 4, 2), (3, 1, 0)):
        matrix = torch.randn(n_rows, 5, generator=generator)
        bounds = [_rows_held(n_rows, rank, size) for rank in range(size)]
        calls = [[] for _ in range(size)]

        def work(rank, all_reduce, matrix=matrix, bounds=bounds, calls=calls, size=size, owner=owner):
            def orthogonalise(whole):
                whole = torch.as_tensor(whole)
                calls[rank].append(whole.detach().clone())
                return newton_schulz(whole)

            first, end = bounds[rank]
            ranks = SimpleNamespace(rank=rank, size=size, sum=all_reduce)
            return orthogonalise_rows(matrix[first:end].clone(), first, len(matrix), owner, orthogonalise, ranks)

        told = f"{n_rows} rows on {size} processes"
        try:
            got = pretend(size, work, PATIENCE)
        except TimeoutError:
            never = "one process waits in ranks.sum for another that never comes: all must call it equally often,"
            expect(False, f"{never}\nthe owner and the others")
        busy = [rank for rank, given in enumerate(calls) if given]
        expect(busy, "nobody calls `orthogonalise`")
        for rank in busy:
            for given in calls[rank]:
                shapes = f"{tuple(given.shape)} numbers, the whole matrix has {tuple(matrix.shape)}"
                expect(given.shape == matrix.shape, f"{told}: process {rank} orthogonalises {shapes}")
                places = "each row must stand in its place,\nand the others be added to zeros"
                expect(close(given, matrix), f"{told}: what is orthogonalised is not the matrix; {places}")
        expect(busy == [owner], f"{told}: {', '.join(map(str, busy))} orthogonalise, but the owner is {owner} alone")
        expect(len(calls[owner]) == 1, f"the owner orthogonalises the same matrix {len(calls[owner])} times")
        wanted = newton_schulz(matrix)
        for rank, (answer, (first, end)) in enumerate(zip(got, bounds, strict=True)):
            whole = isinstance(answer, torch.Tensor) and size > 1 and answer.shape == matrix.shape
            expect(not whole, "you return the whole matrix, a process keeps its own rows alone")
            expect_tensor(answer, (end - first, 5))
            expect(
                close(answer, wanted[first:end]),
                f"{told}: process {rank} has not its rows of what the owner found: does the result come to all?",
            )
    return "each matrix is orthogonalised whole and once, and nobody keeps more than its rows"


def _wire_bytes(n_bytes, n, form):
    passes = {"ddp": 2, "fsdp": 3}[form]
    return passes * (n - 1) / n * n_bytes


@check(ours=_wire_bytes)
def check_wire_bytes(wire_bytes) -> str:
    """2 (N-1)/N of the gradient's bytes for DDP, 3 (N-1)/N for FSDP."""
    expect(close(float(wire_bytes(1000, 1, "ddp")), 0), "one process alone sends nothing: (N-1)/N is 0 there")
    expect(close(float(wire_bytes(1000, 1, "fsdp")), 0), "one process alone sends nothing under fsdp either")
    ddp, fsdp = (float(wire_bytes(1000, 4, form)) for form in ("ddp", "fsdp"))
    expect(not close(ddp, 2 * 3 * 1000), "you send everything to each of the others: the ring sends pieces of 1/N")
    expect(not close(ddp, 750), "ddp: an all-reduce is two passes round the ring, first the sums, then the results")
    expect(not close(ddp, 2000), "ddp: its own piece need not travel, each pass sends (N-1)/N")
    expect(close(ddp, 1500), f"ddp: 1000 bytes on 4 processes must give 1500, you give {ddp:g}")
    expect(
        not close(fsdp, 1500),
        "fsdp: three passes, for the matrices are put together a second time in the backward pass",
    )
    expect(
        not close(fsdp, 2250 + 750), "fsdp: a reduce-scatter is one pass, each process needs the sum of its own rows"
    )
    expect(close(fsdp, 2250), f"fsdp: 1000 bytes on 4 processes must give 2250, you give {fsdp:g}")
    for n_bytes, n in ((1, 2), (7e9, 256), (4, 3)):
        for form in ("ddp", "fsdp"):
            got, wanted = float(wire_bytes(n_bytes, n, form)), _wire_bytes(n_bytes, n, form)
            expect(close(got, wanted), f"{form}: {n_bytes:g} bytes on {n} processes must give {wanted:g}, not {got:g}")
    return "FSDP pays half as much again on the wire as DDP, and holds 1/N"
