"""Checks of chapter 2: the mask with a past, a score that knows the distance alone, two matrices absorbed."""

from __future__ import annotations

import math

import torch
from torch.utils.flop_counter import FlopCounterMode

from utils.course.checks.verdict import check, close, expect, expect_tensor


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@check
def check_causal_mask(answer) -> str:
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
            mask.dtype == torch.bool, f"the mask must be bool, yours is {mask.dtype}: masked_fill needs True and False."
        )
        ones = torch.ones(n_queries, n_keys, dtype=torch.bool)
        may = ones.tril(n_keys - n_queries)
        expect(
            n_keys == 1 or not torch.equal(mask, ~may),
            f"{case} your mask is turned around: True must mean 'may look'.\nPrint it: the first column must be True.",
        )
        expect(
            n_keys == 1 or not torch.equal(mask, ones.triu(n_keys - n_queries)),
            f"{case} every word looks at itself and ahead: that is the upper triangle, take the lower.",
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
            f"{case} every query sees every position, the future included.",
        )
        expect(torch.equal(mask, may), f"{case} row t must be True up to column S - T + t, and False behind it.")
    return "nobody sees the future, and the cached past stays in sight."


def _pairs(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())  # (R,) -> (R/2,), neighbours are a pair


def _turned_score(q: torch.Tensor, k: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    turns = torch.polar(torch.ones_like(angles), angles)
    return (_pairs(q) * turns * _pairs(k).conj()).real.sum()


def _halves(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (2, -1)).mT.flatten()  # channels m and m + R/2 become neighbours


@check
def check_relative_score(answer) -> str:
    """answer(q (R,), k (R,), distance, frequencies (R/2,)) must be the score of q at distance + j and k at j, any j."""
    q, k, rates = _draw(8), _draw(8, seed=1), torch.tensor([1.0, 0.5, 0.2, 0.03])
    for distance in (0, 1, 7):
        score = answer(q, k, distance, rates)
        expect(score is not None, "your function returns None: does it end in `return`?")
        score = torch.as_tensor(score)
        expect(
            score.ndim == 0,
            f"one score was asked for, your answer has the shape {tuple(score.shape)}: sum over channels.",
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
                "all pairs turn at the first rate. Pair m has a rate of its own, frequencies[m].",
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


@check
def check_absorbed(answer) -> str:
    """answer(q (H, n), w_k (H, n, C), w_v (H, v, C), latents (S, C), scale): the naive form's result, for less work."""
    heads, n, v, width, length = 3, 5, 4, 6, 60
    q, latents, scale = _draw(heads, n), _draw(length, width, seed=1), 0.3
    w_k, w_v = _draw(heads, n, width, seed=2), _draw(heads, v, width, seed=3)
    with FlopCounterMode(display=False) as counter:
        mixtures = answer(q, w_k, w_v, latents, scale)
    expect_tensor(mixtures, (heads, v))

    logits = torch.einsum("hnc,sc,hn->hs", w_k, latents, q)  # (H, S)
    values = torch.einsum("hvc,sc->hsv", w_v, latents)  # (H, S, v)

    def mixed(weights: torch.Tensor) -> torch.Tensor:
        return torch.einsum("hs,hsv->hv", weights, values)

    weights = (logits * scale).softmax(dim=-1)
    for wrong, mistake in (
        (mixed(logits.softmax(dim=-1)), "the scale is missing: logits are multiplied by `scale` before the softmax."),
        (
            mixed((logits * scale).softmax(dim=0)),
            "the softmax runs over the heads. Over the positions it must be, dim=-1:\neach head's weights sum to 1.",
        ),
        (
            mixed((logits / math.sqrt(width)).softmax(dim=-1)),
            "you divide by the root of C. The scores are the same numbers as in the naive form,\n"
            "so they keep its scale.",
        ),
        (mixed(logits * scale), "there is no softmax between logits and mixture."),
        (
            torch.einsum("hvc,c->hv", w_v, weights.mean(0) @ latents),
            "the heads' mixtures of latents are averaged. Each head keeps its own, (H, C), until W_v.",
        ),
    ):
        expect(not close(mixtures, wrong), mistake)
    expect(close(mixtures, mixed(weights), 1e-4), "the mixtures are others than those of the naive form.")
    least = 2 * heads * width * (n + 2 * length + v)  # W_k into q, scores, mixture of latents, W_v
    flops = counter.get_total_flops()
    expect(
        flops < 1.5 * least,
        f"the numbers are right, but you spend {flops:,} FLOPs where {least:,} are enough: an old latent\n"
        "is expanded. Apply W_k to the query, and W_v to the mixture of latents.",
    )
    return "this is how Kimi K2 reads 576 numbers of each old token instead of 20,480."
