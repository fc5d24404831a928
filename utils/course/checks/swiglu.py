"""Checks of chapter 4: the gated layer, its width, its gradient, and which half is the gate."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from utils.course.checks.verdict import check, close, expect, expect_tensor


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gated_layer(x: torch.Tensor, w_up: torch.Tensor, w_down: torch.Tensor) -> torch.Tensor:
    """x (N, D), w_up (2, F, D), value and gate, w_down (M, F) -> (N, M)."""
    value, gate = x @ w_up[0].T, x @ w_up[1].T  # (N, F) each
    return (value * F.silu(gate)) @ w_down.T


def matched_width(d_ff: int, multiple: int = 1) -> int:
    """The widest gated layer, in steps of `multiple`, that costs no more than a plain one of `d_ff`."""
    return 2 * d_ff // (3 * multiple) * multiple


def gated_layer_gradient(
    x: torch.Tensor, w_up: torch.Tensor, w_down: torch.Tensor, upstream: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x, w_up and w_down, from that of the layer's result, `upstream` (N, M)."""
    value, gate = x @ w_up[0].T, x @ w_up[1].T  # (N, F) each
    s = torch.sigmoid(gate)  # (N, F)
    hidden = value * gate * s  # (N, F)
    grad_hidden = upstream @ w_down  # (N, F)
    grad_value = grad_hidden * gate * s  # (N, F)
    grad_gate = grad_hidden * value * s * (1 + gate * (1 - s))  # (N, F)
    grad_x = grad_value @ w_up[0] + grad_gate @ w_up[1]  # (N, D)
    return grad_x, torch.stack([grad_value.T @ x, grad_gate.T @ x]), upstream.T @ hidden


def gate_half(layer, width: int) -> str:
    """Which half of its input a gated activation takes for the gate: "first" or "second"."""
    x = _draw(5, 2 * width)
    doubled = torch.cat([2 * x[:, :width], x[:, width:]], dim=1)
    return "second" if torch.allclose(layer(doubled), 2 * layer(x), rtol=1e-4, atol=1e-6) else "first"


@check(ours=gated_layer)
def check_gated_layer(answer) -> str:
    """answer(x (N, D), w_up (2, F, D), w_down (M, F)) must be w_down (value * SiLU(gate)), value before gate."""
    x, w_up, w_down = _draw(5, 4), _draw(2, 3, 4, seed=1), _draw(4, 3, seed=2)
    y = expect_tensor(answer(x, w_up, w_down), (5, 4)).to(x)
    value, gate = x @ w_up[0].T, x @ w_up[1].T  # (N, F) each
    for hidden, mistake in (
        (
            F.silu(value) * gate,
            "SiLU sits on the value. Here w_up[0] is the value and stays as it is,\nw_up[1] is the gate.",
        ),
        (F.silu(value) * F.silu(gate), "SiLU sits on both halves. Only the gate is bent,\nthe value passes as it is."),
        (
            value * gate.sigmoid(),
            "the gate gets the sigmoid alone, the older GLU.\nSiLU(gate) is gate * sigmoid(gate): compare at 3.",
        ),
        (value * gate, "nothing is bent: value * gate without SiLU.\nSee what a gate of -3 lets through."),
        (value + F.silu(gate), "value and SiLU(gate) are added. A gate multiplies:\nat gate 0 nothing may pass."),
        (F.silu(value * gate), "SiLU sits around the product. Bend the gate first,\nthen multiply by the value."),
        (F.silu(gate), "the value is missing: this is the plain layer down(SiLU(gate))."),
    ):
        expect(not close(y, hidden @ w_down.T), mistake)
    expect(close(y, gated_layer(x, w_up, w_down)), "the numbers are others than\nw_down (value * SiLU(gate)) gives.")
    one = expect_tensor(answer(x, w_up, w_down[:1]), (5, 1)).to(x)
    expect(close(one, gated_layer(x, w_up, w_down[:1])), "with a w_down (1, 3) the numbers are wrong.")
    leaves = [t.clone().requires_grad_() for t in (x, w_up, w_down)]
    through = answer(*leaves)
    expect(
        through.requires_grad,
        "the numbers are right, but no gradient passes through: .item(), .tolist(), .detach()\n"
        "and torch.tensor(...) of results cut it off, and the layer could not be trained.",
    )
    if _calls(answer, x.repeat(8, 1), w_up, w_down) > 2 * _calls(answer, x, w_up, w_down):
        return "but slow: a loop over the words. With all words at once the trainings below take seconds."
    return "this is the inside of every expert of Kimi K2, only narrower."


def _calls(function, *args) -> int:
    """How many functions of torch run in a call. A loop over the rows of an input lets it grow with their number."""

    class Count(TorchFunctionMode):
        n = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            Count.n += 1
            return func(*args, **(kwargs or {}))

    with Count():
        function(*args)
    return Count.n


@check(ours=matched_width)
def check_matched_width(answer) -> str:
    """answer(d_ff, multiple): the widest gated layer, in steps of `multiple`, that costs no more than a plain d_ff."""
    for d_ff, multiple in ((192, 1), (1000, 1), (1000, 64), (4096, 256), (12, 8)):
        width = answer(d_ff, multiple)
        ask = f"for d_ff = {d_ff}, multiple = {multiple} you say {width}"
        expect(width is not None, "your function returns None: does it end in `return`?")
        expect(_is_whole(width), f"{ask}: a width is a whole number,\ntake // instead of /.")
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
            3 * (width + multiple) > 2 * d_ff, f"{ask}: {width + multiple} fits as well,\nand the widest was asked for."
        )
    return "now a difference in loss cannot come from a difference in size."


def _is_whole(width: object) -> bool:
    """Whether it can stand where Python asks for a whole number: an int, of numpy or torch as well."""
    try:
        operator.index(width)
    except TypeError:
        return False
    return not isinstance(width, bool)


@check(ours=gated_layer_gradient)
def check_gated_layer_gradient(answer) -> str:
    """answer(x, w_up, w_down, upstream) -> (grad_x, grad_w_up, grad_w_down) must be what autograd finds."""
    inputs = x, w_up, w_down = _draw(5, 4) / 2, _draw(2, 3, 4, seed=1) / 2, _draw(4, 3, seed=2) / 2
    upstream = _draw(5, 4, seed=3)
    try:
        with torch.no_grad():  # as the cells below call it
            result = answer(*inputs, upstream)
    except RuntimeError as error:
        expect(
            "grad" not in str(error),
            "without autograd your function stops: it seems to call torch.autograd or backward().\n"
            "The formulas are asked for, and the check runs under torch.no_grad().",
        )
        raise
    expect(result is not None, "your function returns None: does it end in `return`?")
    expect(
        isinstance(result, tuple | list) and len(result) == 3,
        "three tensors were asked for: (grad_x, grad_w_up, grad_w_down).",
    )
    for name, grad, like in zip(("grad_x", "grad_w_up", "grad_w_down"), result, inputs, strict=True):
        expect(
            isinstance(grad, torch.Tensor) and grad.shape == like.shape,
            f"{name} must have the shape of what it belongs to, {tuple(like.shape)},\n"
            f"yours is {tuple(getattr(grad, 'shape', ()))}.",
        )
    grad_x, grad_up, grad_down = (grad.to(x) for grad in result)
    right_x, right_up, right_down = gated_layer_gradient(*inputs, upstream)
    value, gate = x @ w_up[0].T, x @ w_up[1].T  # (N, F) each
    s, grad_hidden = gate.sigmoid(), upstream @ w_down  # (N, F) each
    expect(
        not close(grad_down, upstream.T @ value),
        "grad_w_down: its input is not the value alone,\nbut value * SiLU(gate).",
    )
    expect(
        not close(len(x) * grad_down, right_down),
        "grad_w_down is the mean over the words. `upstream` is given for each word,\nso what the words say is added.",
    )
    expect(close(grad_down, right_down), "grad_w_down is not upstream.T @ hidden: for each word, what arrives at\n"
           "the result times what w_down was given, summed over words.")  # fmt: skip
    expect(
        not close(grad_up, right_up.flip(0)), "grad_w_up: value and gate have traded places,\nthe value comes first."
    )
    expect(
        not close(grad_up[0], (grad_hidden * s).T @ x),
        "the value's factor is SiLU(gate) = gate * sigmoid(gate),\nnot sigmoid(gate).",
    )
    expect(
        not close(grad_up[0], (F.silu(gate) * value).T @ x),
        "grad_w_up[0]: the upstream gradient is missing.\nFirst take it back through w_down.",
    )
    expect(
        close(grad_up[0], right_up[0]),
        "grad_w_up[0] is wrong. The gradient of the value is grad_hidden * SiLU(gate)\n"
        "with grad_hidden = upstream @ w_down, and then the value's weights meet x.",
    )
    for factor, mistake in (
        (s * (1 + gate * (1 - s)), "the factor value is missing. With value = 0\nthe gate changes nothing."),
        (value * s, "sigmoid(gate) alone forgets that the sigmoid moves too.\nProduct rule: s + gate * s * (1 - s)."),
        (value * s * (1 - s), "that is the slope of the sigmoid. SiLU is gate * sigmoid(gate):\nproduct rule."),
        (value * F.silu(gate), "that is SiLU itself, its slope was asked for."),
    ):
        expect(not close(grad_up[1], (grad_hidden * factor).T @ x), f"grad_w_up[1]: {mistake}")
    expect(
        close(grad_up[1], right_up[1]),
        "grad_w_up[1] is not what autograd finds. For one unit, try value = 1, gate = 0:\nthe slope must be 0.5.",
    )
    grad_value, grad_gate = grad_hidden * gate * s, grad_hidden * value * s * (1 + gate * (1 - s))
    expect(
        not close(grad_x, grad_value @ w_up[0]) and not close(grad_x, grad_gate @ w_up[1]),
        "grad_x: x goes two ways, through the value and through the gate.\nAdd both.",
    )
    expect(
        close(grad_x, right_x), "grad_x is not what autograd finds:\nit is grad_value @ w_up[0] + grad_gate @ w_up[1]."
    )
    return "this is the backward pass of every expert, written by you."


@check(ours=gate_half)
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
    expect(set(said) <= {"first", "second"}, f'the answer must be "first" or "second", yours is {said[0]!r:.40}.')
    expect(
        said[0] != said[1],
        f'you say "{said[0]}" for both layers, so your input does not tell them apart. Zeros, equal halves\n'
        "and tiny numbers all look the same from either side.",
    )
    expect(
        said == ("second", "first"),
        "both answers are upside down. Doubling the *value* doubles the result exactly,\ndoubling the gate does not.",
    )
    for layer, name in ((value_first, "second"), (gate_first, "first")):
        expect(answer(layer, 9) == name, f'for layers of width 9 the answer is wrong once,\nwhere "{name}" is right.')
    return "no shape and no error would have told you; this does, in one line."
