"""Checks of the exercises of 06_training; that of the snapshot is in `snapshot`."""

from __future__ import annotations

import math

import torch

from utils.course.checks.verdict import check, close, expect


def _accumulate(loss_of, parts):
    total, n = 0.0, sum(len(x) for x, _ in parts)
    for x, y in parts:
        loss = loss_of(x, y) * len(x) / n
        loss.backward()
        total += loss.item()
    return total


@check(ours=_accumulate)
def check_accumulate(accumulate) -> str:
    """Gradients and mean of the whole batch from pieces of different sizes, and one `backward` for each piece."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 3, generator=generator), torch.randn(12, generator=generator)
    start = torch.randn(3, generator=generator)
    weight, graphs = start.clone().requires_grad_(), []
    waiting, at_once = set(), []  # graphs whose backward pass has not come yet, and how many of them there were

    def loss_of(x, y):
        loss, number = (x @ weight - y).square().mean(), len(graphs)
        graphs.append(loss)
        if loss.requires_grad:
            waiting.add(number)
            loss.register_hook(lambda gradient: waiting.discard(number))
        at_once.append(len(waiting))
        return loss

    def run(sizes):
        weight.grad = None
        for noted in (graphs, waiting, at_once):
            noted.clear()
        returned = accumulate(loss_of, list(zip(x.split(sizes), y.split(sizes), strict=True)))
        expect(weight.grad is not None, "there are no gradients: call `backward` for each piece")
        return returned, weight.grad.clone()

    def gradient(x, y):
        (whole,) = torch.autograd.grad((x @ weight - y).square().mean(), weight)
        return whole

    def loss(x, y):
        return (x @ weight - y).square().mean().item()

    whole, (returned, got) = gradient(x, y), run([4, 4, 4])
    expect(
        not close(got, 3 * whole),
        "with three pieces the gradients are three times too large: each piece must count by its share",
    )
    expect(
        not close(got, gradient(x[8:], y[8:])) and not close(got, gradient(x[8:], y[8:]) / 3),
        "only the last piece is left: do not clear the gradients between pieces, they add up",
    )
    expect(
        close(got, whole),
        f"the first gradient of three equal pieces must be {whole[0]:.4f}, yours is {got[0]:.4f}",
    )
    returned, got = run([6, 5, 1])
    means = [loss(part, target) for part, target in zip(x.split([6, 5, 1]), y.split([6, 5, 1]), strict=True)]
    expect(
        close(got, whole),
        "equal pieces are right, pieces of 6, 5 and 1 are not: the mean of means counts the single\n"
        "example as much as the six; weigh each piece by len(x) / all",
    )
    expect(returned is not None, "the gradients are right; return the mean as well")
    expect(
        not (isinstance(returned, torch.Tensor) and returned.requires_grad),
        "you return a tensor: whoever keeps it keeps its graph and all activations; `.item()` gives the number",
    )
    expect(not close(returned, sum(means)), "the gradients are right, but you return the sum of the pieces' means")
    expect(
        not close(returned, sum(means) / 3),
        "the gradients are right, but you return the mean of means: the loss needs the shares as well",
    )
    expect(close(returned, loss(x, y)), f"the mean of the whole is {loss(x, y):.4f}, you return {float(returned):.4f}")
    expect(len(graphs) == 3, f"loss_of was called {len(graphs)} times for 3 pieces: each forward pass costs")
    expect(
        max(at_once) == 1,
        f"the numbers are right, but {max(at_once)} pieces are held at once: call `backward` for a piece before\n"
        "you compute the next one, for it frees what the piece has kept",
    )
    return "memory for one piece, and the step of the whole batch"


def _trapezoid(step, steps, peak, warmup, decay):
    return peak * min(1.0, (step + 1) / warmup, (steps - 1 - step) / decay)


@check(ours=_trapezoid)
def check_trapezoid(trapezoid) -> str:
    """A straight warm-up whose last step has the peak, the peak, a straight decay whose last step has rate 0."""
    steps, peak, warmup, decay = 20, 0.5, 4, 5
    rates = [float(trapezoid(step, steps, peak, warmup, decay)) for step in range(steps)]
    expect(rates[0] > 0, "step 0 has rate 0: it learns nothing; after step s, s + 1 steps are done")
    expect(max(rates) <= peak + 1e-9, f"the rate reaches {max(rates):g}, above the peak {peak:g}: a ceiling is missing")
    expect(min(rates) > -1e-9, f"the rate becomes {min(rates):g}: below 0 the optimizer would climb")
    expect(
        not close(rates[warmup - 1], peak * warmup / (warmup + 1)),
        "step warmup - 1 is the last of the warm-up and must have the peak: divide by warmup, not by warmup + 1",
    )
    expect(
        rates[steps - decay - 1] > 0.99 * peak,
        f"step {steps - decay - 1} is before the decay and has {rates[steps - decay - 1]:.3f}, not the peak: the fall\n"
        "must take `decay` steps, not begin where the warm-up ends",
    )
    expect(
        rates[-1] < 1e-9,
        f"the last step, steps - 1, has {rates[-1]:.3f} and must have 0: steps - 1 - step are left after it",
    )
    for step, rate in enumerate(rates):
        wanted = _trapezoid(step, steps, peak, warmup, decay)
        expect(
            close(rate, wanted),
            f"step {step} must have {wanted:.3f}, yours has {rate:.3f}: a straight line moves by equal steps",
        )
    return "no step is wasted at rate 0, and the last ones let the noise average out"


def _run_seconds(steps, every, step, look):
    return steps * step + (1 + math.ceil(steps / every)) * look


@check(ours=_run_seconds)
def check_run_seconds(run_seconds) -> str:
    """steps * step, and a look before the first step, every so many steps, and after the last one, once."""
    step, look = 0.5, 8.0
    got = float(run_seconds(1000, 100, step, look))
    expect(not close(got, 500), "the looks are missing: each takes `look` seconds")
    expect(not close(got, 88), "the steps are missing: each takes `step` seconds")
    expect(not close(got, 500 + 80), "the look before the first step is missing: it shows where the run begins")
    expect(
        not close(got, 500 + 96),
        "step 1000 is looked at once, not twice: it is the last one and a tenth hundred as well",
    )
    expect(not close(got, 1000 * (step + look)), "you look after every step: it is every `every` steps")
    expect(close(got, 588), f"1000 steps of 0.5 s, a look of 8 s every 100, must give 588 s, yours gives {got:g}")
    got = float(run_seconds(1250, 100, step, look))
    expect(
        not close(got, 625 + 13 * look),
        "1000 steps are right, 1250 are not: after the last step there is a look\n"
        "as well, though it is no multiple of 100",
    )
    expect(not close(got, 625 + 13.5 * look), "there is no half a look: with 1250 steps there are 14")
    for steps, every in ((1250, 100), (7, 3), (1, 10), (10, 10), (99, 100), (101, 100)):
        wanted, got = _run_seconds(steps, every, step, look), float(run_seconds(steps, every, step, look))
        looks = 1 + math.ceil(steps / every)
        expect(close(got, wanted), f"{steps} steps, every {every}: {looks} looks, {wanted:g} s; yours gives {got:g}")
    return "you know what a run costs before it begins, looks included"


def _right_share(her, his):
    right = {"Lily": her["Lily"], "Tom": his["Tom"]}
    return sum(right[name] / (her[name] + his[name]) for name in right) / 2


@check(ours=_right_share)
def check_right_share(right_share) -> str:
    """The mean of p(right) / (p(her) + p(his)) over Lily and Tom: 0.5 for a coin, 1 for a model that knows."""

    def of(her_lily, her_tom, his_lily, his_tom):
        return float(right_share({"Lily": her_lily, "Tom": her_tom}, {"Lily": his_lily, "Tom": his_tom}))

    expect(of(0.9, 0.1, 0.1, 0.9) < 1.01, "your number passes 1: average the two heroes, do not add them")
    always_her = of(0.6, 0.6, 0.0, 0.0)
    expect(always_her < 0.99, "a model that always says her gets 1 from you: after Tom the right word is his")
    expect(not close(of(0.9, 0.1, 0.1, 0.9), 0.1), "you take the wrong word: after Lily her is right, after Tom his")
    early = of(0.02, 0.01, 0.01, 0.02)
    expect(
        not close(early, 0.02),
        "when both pronouns are rare your number is small, though the right one leads two to one:\n"
        "divide by p(her) + p(his)",
    )
    expect(not close(early, 1.0), "you count which word leads: 0.51 would be as good as 0.99; take the share itself")
    uneven = of(0.9, 0.01, 0.0, 0.01)
    expect(
        not close(uneven, 0.91 / 0.92),
        "you add first and divide then, so the hero with larger probabilities drowns the other: divide first",
    )
    for numbers, wanted in (((0.02, 0.01, 0.01, 0.02), 2 / 3), ((0.9, 0.01, 0.0, 0.01), 0.75), ((0.3,) * 4, 0.5)):
        expect(close(of(*numbers), wanted), f"{numbers} must give {wanted:.3f}, you give {of(*numbers):.3f}")
    return "0.5 is a coin, 1 is a model that knows who lost the ball; the figures below draw this number"
