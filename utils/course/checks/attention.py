"""Checks of chapter 2: the mask, one head, a score that knows the distance alone (`pieces` has the last)."""

from __future__ import annotations

import math

import torch

from utils.course.checks.verdict import check, close, expect, expect_tensor


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def may_look(n_queries: int, n_keys: int) -> torch.Tensor:
    return torch.ones(n_queries, n_keys, dtype=torch.bool).tril(diagonal=n_keys - n_queries)


@check(ours=may_look)
def check_may_look(answer) -> str:
    """answer(T, S) must be (T, S) bool, True where one of the last T of S positions may look: back and at itself."""
    for n_queries, n_keys in ((4, 4), (1, 5), (2, 5), (1, 1)):
        mask = expect_tensor(answer(n_queries, n_keys), (n_queries, n_keys))
        case = f"with T = {n_queries} and S = {n_keys}"
        expect(
            not (mask.is_floating_point() and mask.isinf().any()),
            "a mask of True and False was asked for, yours holds minus infinity.\n"
            "That is what the scores get where the mask is False.",
        )
        expect(
            mask.dtype == torch.bool,
            f"the mask must be bool, yours is {mask.dtype}:\nmasked_fill needs True and False.",
        )
        ones = torch.ones(n_queries, n_keys, dtype=torch.bool)
        may = ones.tril(n_keys - n_queries)
        expect(
            n_keys == n_queries or not torch.equal(mask, ones.tril(n_queries - n_keys)),
            f"{case} the diagonal has the wrong sign: the past must be in sight.\n"
            "A positive `diagonal` moves the edge to the right: S - T, not T - S.",
        )
        expect(
            n_keys == 1 or not torch.equal(mask, ~may),
            f"{case} your mask is turned around: True must mean 'may look'.\nPrint it: the first column must be True.",
        )
        expect(
            n_keys == 1 or not torch.equal(mask, ones.triu(n_keys - n_queries)),
            f"{case} every word looks at itself and ahead:\nthat is the upper triangle, take the lower.",
        )
        expect(
            not torch.equal(mask, ones.tril(n_keys - n_queries - 1)),
            f"{case} a word may not look at itself: the diagonal belongs to the mask.\n"
            "The first word would see nothing, and its softmax would be nan.",
        )
        expect(
            n_keys == n_queries or not torch.equal(mask, ones.tril()),
            f"{case} the first query sees one position only: you take it for the first of all.\n"
            "The queries are the last T of the S positions, so shift the diagonal by S - T.",
        )
        expect(
            n_keys == 1 or n_queries == 1 or not mask.all(),
            f"{case} every query sees all, the future included.",
        )
        expect(torch.equal(mask, may), f"{case} row t must be True up to column S - T + t, and False behind it.")
    return "nobody sees the future, and the cached past stays in sight."


def one_head(x: torch.Tensor, w_q: torch.Tensor, w_k: torch.Tensor, w_v: torch.Tensor) -> torch.Tensor:
    q, k, v = x @ w_q, x @ w_k, x @ w_v  # (T, d) each
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # (T, T)
    return scores.masked_fill(~may_look(*scores.shape), -math.inf).softmax(dim=-1) @ v


@check(ours=one_head)
def check_one_head(answer) -> str:
    """answer(x (T, D), w_q, w_k, w_v (D, d) each) must be softmax(q k^T / sqrt(d)) v with the future masked, (T, d)."""
    length, width, d = 7, 12, 5
    x, (w_q, w_k, w_v) = _draw(length, width), _draw(3, width, d, seed=1) / 2
    given = x.clone()
    mixtures = expect_tensor(answer(x, w_q, w_k, w_v), (length, d))
    expect(torch.equal(x, given), "your function changes x itself: work on a copy.")
    q, k, v = x @ w_q, x @ w_k, x @ w_v
    past, scores = may_look(length, length), q @ k.mT
    hidden = scores.masked_fill(~past, -math.inf)  # (T, T) without a scale
    scale = d**-0.5
    expect(
        mixtures[:-1].isnan().any() or not mixtures[-1].isnan().all(),
        "only the last row is nan, so True and False are exchanged: each word sees later words only.\n"
        "masked_fill fills where its mask is True, so it takes ~may_look(T, T).",
    )
    expect(
        not mixtures.isnan().any(),
        "there is a nan: a row of the softmax has nothing but minus infinity.\nA word may look at itself.",
    )
    for wrong, mistake in (
        ((scores * scale).softmax(-1) @ v, "nothing is masked: the answers depend on later words."),
        ((scores * scale).masked_fill(~past.mT, -math.inf).softmax(-1) @ v,
         "each word sees itself and later words:\nturn the mask around."),
        (hidden.softmax(-1) @ v, "the scores are not divided by the root of d."),
        ((hidden / d).softmax(-1) @ v,
         "the scores are divided by d.\nTheir variance is d, so their size is the root of d."),
        ((hidden / math.sqrt(width)).softmax(-1) @ v,
         f"you divide by the root of D = {width}.\nA score is a sum of d = {d} products: divide by the root of d."),
        ((hidden / math.sqrt(length)).softmax(-1) @ v,
         f"you divide by the root of T = {length}.\nA score is a sum of d = {d} products: divide by the root of d."),
        ((scores * scale).softmax(-1).masked_fill(~past, 0) @ v,
         "you mask the weights after the softmax, so the rows no longer sum to 1.\n"
         "Mask the scores before it, with minus infinity."),
        ((scores * scale).masked_fill(~past, 0).softmax(-1) @ v,
         "a masked score of 0 still gets a weight, for e to the 0 is 1.\nIt takes minus infinity."),
        ((hidden * scale).softmax(0) @ v, "the softmax runs down the columns. Each row must sum to 1."),
        ((scores.mT * scale).masked_fill(~past, -math.inf).softmax(-1) @ v,
         "queries and keys have changed places: row t asks for word t."),
        ((q @ v.mT * scale).masked_fill(~past, -math.inf).softmax(-1) @ k,
         "keys and values have changed places: the query meets the keys, and the values are mixed."),
        ((hidden * scale).masked_fill(~past, 0) @ v, "there is no softmax between scores and mixture."),
    ):  # fmt: skip
        expect(not close(mixtures, wrong), mistake)
    expect(
        close(mixtures, (hidden * scale).softmax(-1) @ v, 1e-4),
        "they are not softmax(q k^T / sqrt(d)) v with the future masked.",
    )
    return "one head, and word t sees words 0 to t."


def _pairs(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())  # (R,) -> (R/2,), neighbours are a pair


def _turned_score(q: torch.Tensor, k: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    turns = torch.polar(torch.ones_like(angles), angles)
    return (_pairs(q) * turns * _pairs(k).conj()).real.sum()


def _halves(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (2, -1)).mT.flatten()  # channels m and m + R/2 become neighbours


def relative_score(q: torch.Tensor, k: torch.Tensor, distance: int, frequencies: torch.Tensor) -> torch.Tensor:
    a, b = q[0::2], q[1::2]  # (R/2,) each
    cos, sin = (distance * frequencies).cos(), (distance * frequencies).sin()
    return (a * cos - b * sin) @ k[0::2] + (a * sin + b * cos) @ k[1::2]


@check(ours=relative_score)
def check_relative_score(answer) -> str:
    """answer(q (R,), k (R,), distance, frequencies (R/2,)) must be the score of q at distance + j and k at j, any j."""
    q, k, rates = _draw(8), _draw(8, seed=1), torch.tensor([1.0, 0.5, 0.2, 0.03])
    for distance in (0, 1, 7):
        score = answer(q, k, distance, rates)
        expect(score is not None, "your function returns None: does it end in `return`?")
        score = torch.as_tensor(score)
        expect(
            score.ndim == 0,
            f"one score was asked for, your answer has the shape {tuple(score.shape)}:\nsum over channels.",
        )
        if distance == 0:
            expect(close(score, q @ k), "at distance 0 nothing turns, so the score must be q . k and is not.")
            continue
        angles = distance * rates
        a, b = q[0::2], q[1::2]  # (R/2,) each
        mirrored = (a * angles.cos() + b * angles.sin()) @ k[0::2] + (a * angles.sin() + b * angles.cos()) @ k[1::2]
        for wrong, mistake in (
            (q @ k, "the score does not change with the distance: nothing is turned."),
            (
                _turned_score(q, k, -angles),
                "that is the score of a key `distance` places AHEAD of the query. Turn the query by\n"
                "+distance or the key by -distance: i - j is how far back the key stands.",
            ),
            (
                _turned_score(_halves(q), _halves(k), angles),
                "your pairs are channels m and m + R/2, the half-split layout.\n"
                "Here neighbours are a pair: x[0::2] and x[1::2].",
            ),
            (
                _turned_score(q, k, angles[:1].expand_as(angles)),
                "all pairs turn at the first rate.\nPair m has a rate of its own, frequencies[m].",
            ),
            (
                mirrored,
                "a sign: a turn is (a cos - b sin, a sin + b cos). With two plus signs the arrow's\n"
                "length changes: compare q's length before and after.",
            ),
        ):
            expect(not close(score, wrong), mistake)
        expect(
            close(score, _turned_score(q, k, angles)),
            f"at distance {distance} it is not the score of both turned by `rope`.",
        )
    return "two words apart means the same at place 5 and at place 50,000."
