"""Checks of chapter 3: weights of the chosen experts, dispatch, the bias that balances."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from utils.course.checks.verdict import check, close, expect, expect_tensor


def top_k_weights(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    top, chosen = logits.topk(k, dim=-1)
    return top.softmax(dim=-1), chosen


@check(ours=top_k_weights)
def check_top_k_weights(answer) -> str:
    """answer(logits (..., E), k) -> weights and chosen experts (..., k): a softmax over the k largest logits."""
    logits = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))  # (B, T, E)
    weights, chosen = two_tensors(answer(logits.clone(), 2), (2, 5, 2))
    top, best = logits.topk(2, dim=-1)
    expect(
        torch.equal(chosen.sort(dim=-1).values, best.sort(dim=-1).values),
        f"token 0 has the logits {shown(logits[0, 0])}:\n"
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
        "the weights sum to 1, but they are no softmax, or not in the order of the chosen experts:\n"
        "weight i belongs to chosen[..., i] and is exp(logit) divided by the sum of exp",
    )
    for other, k in ((logits[0], 3), (logits[0, 0], 2), (logits, 6)):
        try:
            theirs, ours = by_expert(answer(other.clone(), k)), by_expert(top_k_weights(other, k))
            same = all(map(close, theirs, ours))
        except (IndexError, RuntimeError, ValueError):
            same = False
        expect(
            same,
            f"right for logits (2, 5, 6) and k = 2, not for {tuple(other.shape)} and k = {k}:\n"
            "take k as it comes, and dim=-1 for the experts whatever stands before",
        )
    logits = logits.requires_grad_()
    expect(
        answer(logits, 2)[0].requires_grad,
        "the numbers are right, but no gradient flows from the weights to the logits, so no router could learn:\n"
        "`tolist`, `item`, `torch.tensor`, `detach` cut it off",
    )
    return "each token shares out a weight of 1 among its experts, and no other token has a say in it"


def two_tensors(pair, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    expect(pair is not None, "your function returns None: does it end in `return`?")
    expect(isinstance(pair, tuple | list) and len(pair) == 2, "return two things: weights and chosen experts")
    weights, chosen = (expect_tensor(part, shape) for part in pair)
    expect(
        not chosen.is_floating_point(),
        "the chosen experts must be whole numbers, their places:\n`topk` returns (values, indices)",
    )
    return weights, chosen.long()


def by_expert(pair) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and experts, in the order of the experts."""
    weights, chosen = pair
    order = chosen.argsort(dim=-1)
    return weights.gather(-1, order), chosen.gather(-1, order)


def dispatch(x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, n_experts: int, run_groups) -> torch.Tensor:
    flat = chosen.flatten()  # (N*K,)
    order = flat.argsort(stable=True)  # (N*K,)
    sizes = torch.bincount(flat, minlength=n_experts)  # (E,)
    rows = run_groups(x[order // chosen.shape[1]], sizes)  # (N*K, D) sorted by expert
    outputs = torch.empty_like(rows)
    outputs[order] = rows  # (N*K, D) in the order of the tokens
    return (outputs.unflatten(0, chosen.shape) * weights[..., None]).sum(dim=1)


@check(ours=dispatch)
def check_dispatch(answer) -> str:
    """answer(x (N, D), weights (N, K), chosen (N, K), E, run_groups) -> (N, D): sort, run, undo the sort, weigh."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 3, generator=generator)
    chosen = torch.tensor([[3, 0], [0, 2], [2, 3], [0, 3], [2, 0]])  # (N, K) nobody chose 1 and 4
    weights = torch.rand(5, 2, generator=generator)
    matrices = torch.randn(5, 3, 3, generator=generator)
    computed = []  # how many rows each call computed

    def run(rows, experts):  # (n, D) and the expert of each row, which is not linear
        return F.silu(torch.einsum("nd,ndm->nm", rows, matrices[experts]))

    def run_groups(rows, sizes):
        sizes = torch.as_tensor(sizes)
        expect(
            sizes.shape == (5,),
            f"`run_groups` needs a size for each of the 5 experts, it got {tuple(sizes.shape)}:\n"
            "an expert that nobody chose has size 0 (bincount takes `minlength`)",
        )
        expect(
            sizes.sum() == len(rows),
            f"`run_groups` got {len(rows)} rows and sizes that sum to {int(sizes.sum())}:\n"
            "each token stands in the rows once for each of its K experts",
        )
        computed.append(len(rows))
        return run(rows, torch.arange(5).repeat_interleave(sizes))

    y = expect_tensor(answer(x.clone(), weights.clone(), chosen.clone(), 5, run_groups), (5, 3))
    order = chosen.flatten().argsort(stable=True)
    twice_each = x.repeat_interleave(2, dim=0)  # (N*K, D)
    outputs = run(twice_each, chosen.flatten()).unflatten(0, (5, 2))  # (N, K, D)
    weighed = outputs * weights[..., None]  # (N, K, D)
    in_order = outputs.flatten(0, 1)[order]  # (N*K, D)
    twice = in_order[order].unflatten(0, (5, 2))
    last_only = torch.zeros_like(x)
    last_only[order // 2] += weighed.flatten(0, 1)[order]
    expect(
        not close(y, (in_order.unflatten(0, (5, 2)) * weights[..., None]).sum(dim=1)),
        "your rows are still sorted by expert when they meet the weights:\nundo the sort first, outputs[order] = rows",
    )
    expect(
        not close(y, (twice * weights[..., None]).sum(dim=1)),
        "rows[order] sorts a second time:\nto undo a sort, write to these places, outputs[order] = rows",
    )
    expect(
        not close(y, last_only),
        "each token got one of its two experts only: `y[token] += rows` with a token that stands twice\n"
        "keeps the last; undo the sort and sum over K, or use y.index_add_",
    )
    expect(
        not close(y, outputs.sum(dim=1)),
        "every expert counts fully:\nmultiply its output by the weight that the router gave it",
    )
    weighed_before = run(weights.flatten()[:, None] * twice_each, chosen.flatten()).unflatten(0, (5, 2))
    expect(
        not close(y, weighed_before.sum(dim=1)),
        "you weigh what goes into the experts, and an expert is not linear:\nweigh what comes out of it",
    )
    otherwise = [outputs * w[..., None] for w in (weights.softmax(dim=-1), weights / weights.sum(dim=-1, keepdim=True))]
    expect(
        not any(close(y, wrong.sum(dim=1)) for wrong in (*otherwise, weighed / 2)),
        "each output went to its token, but the sum is not weighed as asked:\n"
        "take the weights as they come, and the sum over K, no mean",
    )
    groups = torch.arange(5).repeat_interleave(torch.bincount(chosen.flatten(), minlength=5))
    mixed = run(twice_each, groups).unflatten(0, (5, 2))
    expect(
        not close(y, (mixed * weights[..., None]).sum(dim=1)),
        "your rows are in the order of the tokens, and `run_groups` takes the first ones for expert 0:\n"
        "sort them by expert first",
    )
    by_row = weights.flatten()[:, None] * in_order  # row i of the sorted list with weight i of the unsorted one
    sorted_weights = weights.flatten()[order].unflatten(0, (5, 2))
    expect(
        not close(y, torch.zeros_like(x).index_add_(0, order // 2, by_row))
        and not close(y, (outputs * sorted_weights[..., None]).sum(dim=1)),
        "results and weights are in different orders, one sorted by expert and the other by token:\n"
        "weigh after the sort is undone, or sort the weights too, weights.flatten()[order]",
    )
    expect(
        close(y, weighed.sum(dim=1)),
        "the right tokens did not reach the right experts:\n"
        "row i of chosen.flatten() belongs to token i // K,\n"
        "so sorted rows come from x[order // K] (not x[order % K], not x[order % N])",
    )
    expect(
        sum(computed) == chosen.numel(),
        f"the result is right, but {sum(computed)} rows were computed and N K = {chosen.numel()} were asked for",
    )
    one = torch.tensor([[1], [0], [1]])  # K = 1
    weight = torch.rand(3, 1, generator=generator)
    y = answer(x[:3].clone(), weight.clone(), one, 5, run_groups)
    expect(
        close(y, weight * run(x[:3], one[:, 0])),
        "right for K = 2, not for K = 1: take K from the shape of `chosen`",
    )
    return "each expert computed the rows of its own tokens and no others"


def moved_bias(bias: torch.Tensor, load: torch.Tensor, rate: float) -> torch.Tensor:
    load = load.float()
    return bias + rate * (load.mean() - load).sign()


@check(ours=moved_bias)
def check_moved_bias(answer) -> str:
    """answer(bias (E,), load (E,), rate) -> new bias (E,): up by `rate` below the mean load, down above it."""
    bias = torch.tensor([0.1, -0.2, 0.0, 0.05])
    load = torch.tensor([7, 1, 3, 1])  # the mean is 3
    try:
        new = answer(bias.clone(), load.clone(), 0.01)
    except RuntimeError as error:
        whole = "mean(): could not infer" in str(error)
        expect(not whole, "`load` holds whole numbers, of which torch takes no mean:\nload.float() first")
        raise
    new = expect_tensor(new, (4,))
    step = new - bias
    wanted = torch.tensor([-0.01, 0.01, 0.0, 0.01])
    expect(
        not close(step, -wanted),
        "the sign is the wrong way round:\nexpert 0 got 7 tokens, the mean is 3, and you made it more attractive",
    )
    expect(not close(new, wanted), "this is the step alone: add it to the old bias")
    missing = load.float().mean() - load
    expect(
        not close(step, step[1] / missing[1] * missing),
        "your step is proportional to what is missing:\nthe rule takes its sign only, so every step is `rate` long",
    )
    expect(
        not (step < 0).all(),
        "every bias went down, for every load is above 1/E:\ncompare counts with their mean, not with 1/E",
    )
    expect(
        abs(step[2]) < 1e-6,
        "expert 2 has exactly the mean load and its bias moved:\nthe sign of 0 is 0, it stays where it is",
    )
    expect(close(step, wanted), f"for the loads {load.tolist()} the biases must move by {shown(wanted)}")
    near = torch.tensor([4, 3, 4, 3])  # the mean is 3.5
    expect(
        close(answer(bias.clone(), near, 0.01) - bias, torch.tensor([-0.01, 0.01, -0.01, 0.01])),
        f"right for the loads {load.tolist()}, not for {near.tolist()}, whose mean is 3.5:\n"
        "the mean must not be rounded, and a small difference makes a whole step",
    )
    return "no gradient, no extra loss: the router only changes whom it asks"


def shown(numbers: torch.Tensor) -> str:
    return "[" + ", ".join(f"{n:.2f}" for n in numbers.tolist()) + "]"
