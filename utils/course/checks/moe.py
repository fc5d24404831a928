"""Checks of chapter 3: weights of the chosen experts, dispatch, the bias that balances."""

from __future__ import annotations

import torch

from utils.course.checks.verdict import check, close, expect, expect_tensor


@check
def check_top_k_weights(answer) -> str:
    """answer(logits (..., E), k) -> weights and chosen experts (..., k): a softmax over the k largest logits."""
    logits = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))  # (B, T, E)
    pair = answer(logits.clone(), 2)
    expect(isinstance(pair, tuple | list) and len(pair) == 2, "return two things: weights and chosen experts")
    weights, chosen = (expect_tensor(part, (2, 5, 2)) for part in pair)
    top, best = logits.topk(2, dim=-1)
    expect(
        not chosen.is_floating_point(),
        "the chosen experts must be whole numbers, their places:\n`topk` returns (values, indices)",
    )
    expect(
        torch.equal(chosen.sort(dim=-1).values, best.sort(dim=-1).values),
        f"token 0 has the logits {_shown(logits[0, 0])}:\n"
        f"experts {best[0, 0].tolist()} are its largest, yours are {chosen[0, 0].tolist()}",
    )
    logits_of_chosen = logits.gather(-1, chosen)
    expect(not close(weights, logits_of_chosen), "these are the logits themselves: they still need the softmax")
    over_all = logits.softmax(dim=-1).gather(-1, chosen)
    expect(
        not close(weights, over_all),
        "this is the softmax over all E experts, of which you keep k:\n"
        f"token 0's weights sum to {weights[0, 0].sum():.2f} and must sum to 1: take the softmax of the k alone",
    )
    for dim, name in ((0, "sequences"), (1, "tokens")):
        expect(
            not close(weights, logits_of_chosen.softmax(dim=dim)) and not close(weights, top.softmax(dim=dim)),
            f"your softmax runs over the {name} (dim={dim}), so a token's weights depend on others,\n"
            "later ones too: use dim=-1, the k experts of one token",
        )
    expect(
        close(weights.sum(dim=-1), torch.ones(2, 5)),
        f"the weights of a token must sum to 1, token 0's sum to {weights[0, 0].sum():.2f}",
    )
    expect(
        close(weights, logits_of_chosen.softmax(dim=-1)),
        "the weights sum to 1, but they are no softmax:\ndivide exp(logit) by the sum of exp, not logits by their sum",
    )
    return "two experts share one token's attention, and no other token has a say in it"


@check
def check_dispatch(answer) -> str:
    """answer(x (N, D), weights (N, K), chosen (N, K), experts) -> (N, D), each expert run on its own tokens alone."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 3, generator=generator)
    chosen = torch.tensor([[4, 0], [0, 2], [2, 4], [0, 4], [2, 0]])  # (N, K) nobody chose 1 and 3
    weights = torch.rand(5, 2, generator=generator)
    matrices = torch.randn(5, 3, 3, generator=generator)
    seen = [0] * 5  # rows that each expert computed

    def expert(e):
        def compute(rows):
            seen[e] += len(rows) if rows.ndim == 2 else 1
            return rows @ matrices[e]

        return compute

    y = expect_tensor(answer(x.clone(), weights.clone(), chosen.clone(), [expert(e) for e in range(5)]), (5, 3))
    order = chosen.flatten().argsort(stable=True)
    outputs = torch.einsum("nd,nkdm->nkm", x, matrices[chosen])  # (N, K, D)
    right = (outputs * weights[..., None]).sum(dim=1)
    in_order = outputs.flatten(0, 1)[order].unflatten(0, (5, 2))
    last_only = torch.zeros_like(x)
    last_only[order // 2] += (outputs * weights[..., None]).flatten(0, 1)[order]
    expect(
        not close(y, (in_order * weights[..., None]).sum(dim=1)),
        "your rows are still sorted by expert when they meet the weights:\nundo the sort first, outputs[order] = rows",
    )
    expect(
        not close(y, last_only),
        "each token got one of its two experts only: `y[token] += rows` with a token that stands twice\n"
        "keeps the last; undo the sort and sum over K, or use y.index_add_",
    )
    expect(
        not close(y, outputs.sum(dim=1)),
        "every expert counts fully: multiply its output by the weight that the router gave it",
    )
    expect(
        close(y, right),
        "the right tokens did not reach the right experts:\n"
        "row i of chosen.flatten() belongs to token i // K,\n"
        "so sorted rows come from x[order // K] (not x[order % K], not x[order % N])",
    )
    expect(
        sum(seen) == chosen.numel(),
        f"the result is right, but your experts computed {sum(seen)} rows and N K = {chosen.numel()} were asked for:\n"
        "every expert ran on tokens that did not choose it, which costs E/K times as much",
    )
    return "each expert saw its own tokens only, so more experts cost nothing more"


@check
def check_moved_bias(answer) -> str:
    """answer(bias (E,), load (E,), rate) -> new bias (E,): up by `rate` below the mean load, down above it."""
    bias = torch.tensor([0.1, -0.2, 0.0, 0.05])
    load = torch.tensor([7, 1, 3, 1])  # the mean is 3
    new = expect_tensor(answer(bias.clone(), load.clone(), 0.01), (4,))
    step = new - bias
    wanted = torch.tensor([-0.01, 0.01, 0.0, 0.01])
    expect(
        not close(step, -wanted),
        "the sign is the wrong way round:\nexpert 0 got 7 tokens, the mean is 3, and you made it more attractive",
    )
    expect(not close(new, wanted), "this is the step alone: add it to the old bias")
    missing = load.float().mean() - load
    expect(
        not close(step, 0.01 * missing) and not close(step, 0.01 * missing / load.sum()),
        "your step grows with what is missing:\nthe rule takes its sign only, so every step is `rate` long",
    )
    expect(
        not (step < 0).all(),
        "every bias went down, for every load is above 1/E:\ncompare counts with their mean, not with 1/E",
    )
    expect(
        abs(step[2]) < 1e-6,
        "expert 2 has exactly the mean load and its bias moved:\nthe sign of 0 is 0, it stays where it is",
    )
    expect(close(step, wanted), f"for the loads {load.tolist()} the biases must move by {_shown(wanted)}")
    return "no gradient, no extra loss: the router only changes whom it asks"


def _shown(numbers: torch.Tensor) -> str:
    return "[" + ", ".join(f"{n:.2f}" for n in numbers.tolist()) + "]"
