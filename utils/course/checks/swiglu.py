"""Checks of chapter 4: the gated layer, its width, its gradient, and which half is the gate."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from utils.course.checks.verdict import check, close, expect, expect_tensor


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@check
def check_gated_layer(answer) -> str:
    """answer(x (N, D), w_up (2, F, D), w_down (D, F)) must be w_down (value * SiLU(gate)), value before gate."""
    x, w_up, w_down = _draw(5, 4), _draw(2, 3, 4, seed=1), _draw(4, 3, seed=2)
    y = expect_tensor(answer(x, w_up, w_down), (5, 4))
    value, gate = x @ w_up[0].T, x @ w_up[1].T  # (N, F) each
    for hidden, mistake in (
        (
            F.silu(value) * gate,
            "SiLU sits on the value. Here w_up[0] is the value and stays as it is,\nw_up[1] is the gate.",
        ),
        (F.silu(value) * F.silu(gate), "SiLU sits on both halves. Only the gate is bent, the value passes as it is."),
        (
            value * gate.sigmoid(),
            "the gate gets the sigmoid alone, the older GLU.\nSiLU(gate) is gate * sigmoid(gate): compare at 3.",
        ),
        (value * gate, "nothing is bent: value * gate without SiLU. See what a gate of -3 lets through."),
        (value + F.silu(gate), "value and SiLU(gate) are added. A gate multiplies: at gate 0 nothing may pass."),
        (F.silu(gate), "the value is missing: this is the plain layer down(SiLU(gate))."),
    ):  # fmt: skip
        expect(not close(y, hidden @ w_down.T), mistake)
    expect(
        close(y, (value * F.silu(gate)) @ w_down.T), "the numbers are others than w_down (value * SiLU(gate)) gives."
    )
    return "this is the inside of every expert of Kimi K2, only narrower."


@check
def check_matched_width(answer) -> str:
    """answer(d_ff, multiple): the widest gated layer, in steps of `multiple`, that costs no more than a plain d_ff."""
    for d_ff, multiple in ((192, 1), (1000, 1), (1000, 64), (4096, 256), (12, 8)):
        width = answer(d_ff, multiple)
        ask = f"for d_ff = {d_ff}, multiple = {multiple} you say {width}"
        expect(width is not None, "your function returns None: does it end in `return`?")
        expect(isinstance(width, int), f"{ask}: a width is a whole number, take // instead of /.")
        expect(width != d_ff, f"{ask}: a third matrix of the same width makes the layer\nhalf as large again.")
        expect(width < d_ff, f"{ask}: that is upside down, the gated layer has three matrices\nand must be narrower.")
        expect(
            width != d_ff // 2 // multiple * multiple,
            f"{ask}: half the width counts the two matrices of w_up\nand forgets w_down: 3 D F' = 2 D F.",
        )
        expect(width % multiple == 0, f"{ask}: that is no multiple of {multiple}.")
        expect(
            3 * width <= 2 * d_ff,
            f"{ask}: 3 x {width} is more than 2 x {d_ff}.\nRound down, else the gated layer is the larger.",
        )
        expect(
            3 * (width + multiple) > 2 * d_ff, f"{ask}: {width + multiple} fits as well, and the widest was asked for."
        )
    return "now a difference in loss cannot come from a difference in size."


@check
def check_swiglu_gradient(answer) -> str:
    """answer(value, gate, upstream) -> (grad_value, grad_gate) must be what autograd finds for value * SiLU(gate)."""
    value, gate, upstream = (_draw(4, 3, seed=seed) for seed in range(3))
    result = answer(value, gate, upstream)
    expect(result is not None, "your function returns None: does it end in `return`?")
    expect(isinstance(result, tuple) and len(result) == 2, "two tensors were asked for: (grad_value, grad_gate).")
    grad_value, grad_gate = (expect_tensor(grad, (4, 3)) for grad in result)
    leaves = value.clone().requires_grad_(), gate.clone().requires_grad_()
    right_value, right_gate = torch.autograd.grad(leaves[0] * F.silu(leaves[1]), leaves, upstream)
    open_, slope = gate.sigmoid(), right_gate / (upstream * value)
    expect(
        not (close(grad_value, right_gate) and close(grad_gate, right_value)),
        "the two are in the wrong order: (grad_value, grad_gate) was asked for.",
    )
    expect(
        not (close(grad_value, F.silu(gate)) or close(grad_gate, value * slope)),
        "the upstream gradient is missing: the chain rule multiplies by what comes from above.",
    )
    expect(
        not close(grad_value, upstream),
        "grad_value: the factor SiLU(gate) is missing. A closed gate lets no gradient through.",
    )
    expect(
        not close(grad_value, upstream * open_),
        "grad_value: the factor is SiLU(gate) = gate * sigmoid(gate), not sigmoid(gate).",
    )
    expect(close(grad_value, right_value), "grad_value is not upstream * SiLU(gate).")
    for factor, mistake in (
        (slope, "the factor value is missing. With value = 0 the gate changes nothing."),
        (value * open_, "sigmoid(gate) alone forgets that the sigmoid moves too.\nProduct rule: s + gate * s'."),
        (value * open_ * (1 - open_), "that is the slope of the sigmoid. SiLU is gate * sigmoid(gate): product rule."),
    ):  # fmt: skip
        expect(not close(grad_gate, upstream * factor), f"grad_gate: {mistake}")
    expect(
        close(grad_gate, right_gate),
        "grad_gate is not what autograd finds. Try value = 1, gate = 0, upstream = 1:\nit must be 0.5.",
    )
    return "these two lines are the backward of `utils.swiglu`, and of every SwiGLU kernel there is."


@check
def check_gate_half(answer) -> str:
    """answer(layer, width) must say "first" or "second" for layers (N, 2 width) -> (N, width) of both kinds."""

    def value_first(x):
        value, gate = x.chunk(2, dim=-1)
        return value * F.silu(gate)

    def gate_first(x):
        gate, value = x.chunk(2, dim=-1)
        return value * F.silu(gate)

    said = answer(value_first, 6), answer(gate_first, 6)
    expect(None not in said, "your function returns None: does it end in `return`?")
    expect(set(said) <= {"first", "second"}, f'the answer must be "first" or "second", yours is {said[0]!r}.')
    expect(
        said[0] != said[1],
        f'you say "{said[0]}" for both layers, so your input does not tell them apart. Zeros, equal halves\n'
        "and tiny numbers all look the same from either side.",
    )
    expect(
        said == ("second", "first"),
        "both answers are upside down. Doubling the *value* doubles the result exactly,\ndoubling the gate does not.",
    )
    return "no shape and no error would have told you; this test does, in one line."
