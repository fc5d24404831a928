"""The last check of chapter 2: attention of one query over a cache that comes in pieces, none of which is kept."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Iterator

import torch

from utils.course.checks.verdict import check, close, expect, expect_tensor


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def read_in_pieces(q: torch.Tensor, pieces: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    largest, total, mixed = -math.inf, 0.0, torch.zeros_like(q)
    for k, v in pieces:
        scores = k @ q / math.sqrt(len(q))  # (n,)
        new = max(largest, scores.max().item())
        parts = (scores - new).exp()  # (n,)
        shrink = math.exp(largest - new)
        total = total * shrink + parts.sum()
        mixed = mixed * shrink + parts @ v
        largest = new
    return mixed / total


def _lent(
    keys: torch.Tensor, values: torch.Tensor, sizes: Iterable[int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pieces of keys and values; each is overwritten when the next one is asked for."""
    start = 0
    for size in sizes:
        k, v = keys[start : start + size].clone(), values[start : start + size].clone()
        yield k, v
        k.fill_(math.nan), v.fill_(math.nan)
        start += size


def _alive() -> int:
    """How many numbers all tensors hold that Python still reaches."""
    return sum(thing.numel() for thing in gc.get_objects() if type(thing) is torch.Tensor)


def _kept_of_each_piece(answer, size: int, d: int = 6, count: int = 12) -> float:
    """How many numbers more are alive after each further piece of `size` keys and values."""
    alive = []

    def pieces() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number in range(count):
            if number in (2, count - 1):
                alive.append(_alive())
            yield _draw(size, d, seed=number), _draw(size, d, seed=number + 1)

    answer(_draw(d), pieces())
    return (alive[1] - alive[0]) / (count - 3)


@check(ours=read_in_pieces)
def check_read_in_pieces(answer) -> str:
    """answer(q (d,), pieces of (keys (n, d), values (n, d))) must be the mixture (d,) that one softmax would give."""
    d, sizes = 6, (3, 1, 8, 2)
    q, keys, values = _draw(d), _draw(sum(sizes), d, seed=1), _draw(sum(sizes), d, seed=2)
    mixture = expect_tensor(answer(q, _lent(keys, values, sizes)), (d,))
    expect(
        not mixture.isnan().any(),
        "there is a nan. A piece is gone when the next one comes: keep sums, not pieces.\n"
        "Or is it inf - inf? Subtract the NEW largest score, never the old.",
    )
    scores = keys @ q
    cut, cut_values = (scores / d**0.5).split(sizes), values.split(sizes)
    each = torch.stack([s.softmax(0) @ v for s, v in zip(cut, cut_values, strict=True)])
    share = torch.tensor(sizes) / sum(sizes)
    largest = torch.stack([s.max() for s in cut]).cummax(0).values
    parts = [(s - top).exp() for s, top in zip(cut, largest, strict=True)]
    totals = torch.stack([p.sum() for p in parts])
    mixed = torch.stack([p @ v for p, v in zip(parts, cut_values, strict=True)])
    kept = (largest - largest[-1]).exp()  # what the rescaling leaves of each piece
    for wrong, mistake in (
        (each.mean(0), "you average the pieces' own mixtures.\nA piece with high scores must count for more."),
        (share @ each, "you weigh pieces by their length.\nTheir share is their sum of exponentials."),
        (each.sum(0), "you add up the mixtures of single pieces:\ntheir weights sum to 1 in each piece, not over all."),
        (scores.softmax(0) @ values, "the scores are not divided by the root of d."),
        (mixed.sum(0) / totals.sum(), "the largest score changes from piece to piece, older sums keep the old one.\n"
         "When it rises by m, multiply total and mixture so far by exp(-m)."),
        (mixed.sum(0) / (kept @ totals), "the total is rescaled when the largest score rises, the mixture is not."),
        (kept @ mixed / totals.sum(), "the mixture is rescaled when the largest score rises, the total is not."),
        (kept @ mixed, "the mixture is not divided by the sum of the exponentials."),
    ):  # fmt: skip
        expect(not close(mixture, wrong), mistake)
    right = (scores / d**0.5).softmax(0) @ values
    expect(close(mixture, right, 1e-4), "it is not the mixture that one softmax over all positions gives.")
    expect(
        _kept_of_each_piece(answer, size=60) < 30,
        "the mixture is right, but you keep the scores or the values of every piece.\n"
        "Update a few sums while a piece is there, and let it go.",
    )
    for factor in (400.0, -400.0):
        loud = expect_tensor(answer(factor * q, _lent(keys, values, sizes)), (d,))
        expect(
            close(loud, (factor * scores / d**0.5).softmax(0) @ values, 1e-3),
            "right for small scores, but a score of some hundreds makes exp overflow or vanish.\n"
            "Subtract the largest score so far before the exponential.",
        )
    away = keys - 500 * q / q.square().sum()  # every score is far below 0
    low = expect_tensor(answer(q, _lent(away, values, sizes)), (d,))
    expect(
        close(low, (away @ q / d**0.5).softmax(0) @ values, 1e-3),
        "right until all scores are far below 0: then e to each of them is 0.\n"
        "The largest score so far begins at minus infinity, or as the first piece's, not at 0.",
    )
    return "this is how FlashAttention reads a cache of any length."
