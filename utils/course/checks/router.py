"""Check of chapter 3: what chooses experts in Kimi K2's router, and what weighs them."""

from __future__ import annotations

import torch

from utils.course.checks.moe import by_expert, shown, two_tensors
from utils.course.checks.verdict import check, close, expect


def choose_and_weigh(
    scores: torch.Tensor, bias: torch.Tensor, k: int, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = (scores + bias).topk(k, dim=-1).indices  # (..., k)
    weights = scores.gather(-1, chosen)  # (..., k)
    return factor * weights / weights.sum(dim=-1, keepdim=True), chosen


@check(ours=choose_and_weigh)
def check_choose_and_weigh(answer) -> str:
    """answer(scores (..., E), bias (E,), k, factor) -> weights and experts (..., k): the bias chooses only."""
    scores = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0)).sigmoid()  # (B, T, E)
    bias = torch.tensor([0.0, 0.3, -0.3, 0.1, -0.2, 0.2])
    weights, chosen = two_tensors(answer(scores.clone(), bias.clone(), 2, 3.0), (2, 5, 2))
    best = (scores + bias).topk(2, dim=-1).indices
    places = chosen.sort(dim=-1).values
    expect(
        not torch.equal(places, scores.topk(2, dim=-1).indices.sort(dim=-1).values),
        "you choose by the scores alone: add the bias before `topk`",
    )
    expect(
        torch.equal(places, best.sort(dim=-1).values),
        f"score + bias of token 0 is {shown((scores + bias)[0, 0])}:\n"
        f"experts {best[0, 0].tolist()} are its largest, yours are {chosen[0, 0].tolist()}",
    )
    of_chosen = scores.gather(-1, chosen)  # (..., k)
    right = 3.0 * of_chosen / of_chosen.sum(dim=-1, keepdim=True)
    biased = (scores + bias).gather(-1, chosen)
    expect(
        not any(close(weights, w) for w in (biased, 3.0 * biased, 3.0 * biased / biased.sum(dim=-1, keepdim=True))),
        "the bias has come into your weights:\nit chooses and goes no further, so gather the scores without it",
    )
    expect(
        not close(weights, 3.0 * of_chosen.softmax(dim=-1)),
        "this is a softmax of the scores: the sigmoid was taken already, so only divide by the sum",
    )
    expect(
        not close(weights, right / 3.0),
        "your weights sum to 1 for each token:\nthe factor is missing, here 3",
    )
    expect(
        close(weights.sum(dim=-1), torch.full((2, 5), 3.0)),
        f"a token's weights must sum to the factor, here 3, and token 0's sum to {weights[0, 0].sum():.2f}:\n"
        "divide by the sum over its own k chosen (dim=-1), not over all experts and not over tokens",
    )
    expect(close(weights, right), "the sums are right, the weights are not: weight i belongs to chosen[..., i]")
    for other, b, k in ((scores[0], bias, 3), (scores[0, 0], bias, 2), (scores, bias - 2, 2)):
        try:
            theirs = by_expert(answer(other.clone(), b.clone(), k, 2.5))
            same = all(map(close, theirs, by_expert(choose_and_weigh(other, b, k, 2.5))))
        except (IndexError, RuntimeError, ValueError):
            same = False
        lowered = (
            "" if b is bias else " with all biases lowered by 2:\nscore + bias is below 0 then, so do not mark with 0"
        )
        expect(same, f"right for scores (2, 5, 6) and k = 2, not for {tuple(other.shape)} and k = {k}{lowered}")
    expect(
        answer(scores.requires_grad_(), bias, 2, 3.0)[0].requires_grad,
        "the numbers are right, but no gradient flows from the weights to the scores:\n"
        "`tolist`, `item`, `torch.tensor`, `detach` cut it off",
    )
    return "the bias has a say in who works and none in how much it counts"
