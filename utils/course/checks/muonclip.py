"""Checks of the exercises of 05_muonclip."""

from __future__ import annotations

import math

import torch

from utils.course.checks.verdict import check, close, expect, expect_tensor
from utils.muonclip import NEWTON_SCHULZ


def _with_values(values: list[float], rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A matrix with these singular values, in float64, and its directions (rows, k) and (columns, k)."""
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(n, len(values), generator=generator, dtype=torch.double))[0]
        for n in (rows, columns)
    )
    return left @ torch.diag(torch.tensor(values, dtype=torch.double)) @ right.mT, left, right


def _newton_schulz_step(x: torch.Tensor) -> torch.Tensor:
    a, b, c = NEWTON_SCHULZ
    gram = x @ x.mT  # (n, n)
    return a * x + (b * gram + c * gram @ gram) @ x


@check(ours=_newton_schulz_step)
def check_newton_schulz_step(step) -> str:
    """One step moves each singular value by a s + b s^3 + c s^5 and turns no direction; wide, square and tall."""
    a, b, c = NEWTON_SCHULZ
    s = torch.tensor([0.7, 0.3, 0.1], dtype=torch.double)
    for rows, columns in ((3, 5), (3, 3), (5, 3)):
        x, left, right = _with_values(s.tolist(), rows, columns)
        got = expect_tensor(step(x.clone()), (rows, columns))
        rough = 2e-2 if got.element_size() < 4 else 1e-5  # bf16, in which public code computes this
        got = got.double()
        moved = left.mT @ got @ right  # (3, 3), diagonal while no direction turns
        values = moved.diagonal()
        expect(
            close(got, left @ torch.diag(values) @ right.mT, rough),
            "the directions turned: x**3 cubes each number on its own, but a power of the\n"
            "singular values is a product of matrices:\nx @ x.mT @ x has the values s**3",
        )
        for wrong, mistake in (
            (1.5 * s - 0.5 * s**3, "that is the cubic of the textbook:\n0.01 needs about 12 of its steps, not 5"),
            (a * s - b * s**3 + c * s**5, "b is negative already: with another minus sign the values only grow"),
            (a * s + b * s**3, "the fifth power is missing: c multiplies A @ A @ x,\nand only it stops the fall"),
            (a * s + (b + c) * s**3, "c multiplies A @ x in your step, it must be A @ A @ x: s**5, not s**3"),
            (b * s**3 + c * s**5, "a * x is missing: small values would vanish\ninstead of growing 3.44 times"),
        ):
            expect(not close(values, wrong, rough), mistake)
        shrunk = s / s.square().sum().sqrt()
        expect(
            not close(values, a * shrunk + b * shrunk**3 + c * shrunk**5, rough),
            "you divide by the norm inside the step:\nthat happens once, before the first step",
        )
        expected = a * s + b * s**3 + c * s**5
        expect(
            close(values, expected, rough),
            f"the value 0.3 must become {expected[1]:.4f} (a s + b s^3 + c s^5),\nyours becomes {values[1]:.4f}",
        )
    return "five of these take the place of a singular value decomposition"


def _muon_update(direction: torch.Tensor) -> torch.Tensor:
    return 0.2 * math.sqrt(max(direction.shape[-2:])) * direction


@check(ours=_muon_update)
def check_muon_update(update) -> str:
    """The update has RMS 0.2 for an orthogonal direction of any shape, also in stacks, and is linear in it."""
    for rows, columns in ((64, 16), (16, 64), (32, 32)):
        direction, _, _ = _with_values([1.0] * min(rows, columns), rows, columns)
        got = expect_tensor(update(direction.clone()), (rows, columns))
        factor = (got * direction).sum().item() / direction.square().sum().item()
        small, large = min(rows, columns), max(rows, columns)
        for wrong, mistake in (
            (math.sqrt(large), "the RMS is 1, five times AdamW's: the target 0.2 is missing"),
            (0.2 / math.sqrt(large), "multiply by the root: the RMS is 1 / sqrt(max(n, m)), and must become 0.2"),
            (0.2 * large, "the root is missing:\nthe RMS of an orthogonal matrix is 1 / sqrt(max(n, m))"),
            (0.2 * math.sqrt(rows * columns), "n * m is for one direction alone; min(n, m) of them share the matrix"),
            (math.sqrt(max(1, rows / columns)), "the first Muon scaled by rows / columns, Moonlight does not"),
            (1.0, "nothing was scaled: a wide layer would hardly move beside a narrow one"),
        ):
            expect(not close(factor, wrong), mistake)
        expect(
            small == large or not close(factor, 0.2 * math.sqrt(small)),
            "you took the smaller side: singular values fill the larger one,\nit must be max(n, m)",
        )
        rms = got.square().mean().sqrt().item()
        expect(close(rms, 0.2), f"for shape ({rows}, {columns}) the RMS must be 0.2, yours is {rms:.3f}")
    uneven, _, _ = _with_values([1.1, 0.9, 0.7], 3, 6)
    expect(
        close(update(uneven.clone()), 0.2 * math.sqrt(6) * uneven),
        "you divide by the measured RMS: then a direction of zeros becomes nan;\nthe factor depends on the shape alone",
    )
    stack = uneven.repeat(8, 1, 1)
    expect(
        close(update(stack.clone()), 0.2 * math.sqrt(6) * stack),
        "of a stack (8, 3, 6) the last two dimensions are the matrix:\ntake shape[-2:], not shape[0] or shape[1]",
    )
    return "one learning rate now fits every shape, and AdamW's weights beside them"


LARGEST, TAU = torch.tensor([120.0, 50.0, 400.0, -5.0], dtype=torch.double), 100.0  # of four heads
GAMMA = torch.tensor([100 / 120, 1.0, 100 / 400, 1.0], dtype=torch.double)  # what their logits must shrink by


def _heads(*sizes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator, dtype=torch.double) for size in sizes]


def _muon_step(weight, gradient, momentum, update_of, lr, mu, weight_decay, nesterov):
    momentum = mu * momentum + gradient
    ahead = gradient + mu * momentum if nesterov else momentum
    return (1 - lr * weight_decay) * weight - lr * update_of(ahead), momentum


@check(ours=_muon_step)
def check_muon_step(step) -> str:
    """M <- mu M + G, then W <- (1 - lr decay) W - lr update_of(M), with Nesterov of G + mu M."""
    old, g, m = _heads((3, 5), (3, 5), (3, 5))
    lr, mu, decay = 0.1, 0.9, 0.5

    def update_of(matrix: torch.Tensor) -> torch.Tensor:
        u, _, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
        return 0.2 * math.sqrt(5) * u @ vt

    new_m = mu * m + g
    for nesterov, ahead in ((False, new_m), (True, g + mu * new_m)):
        new = step(old.clone(), g.clone(), m.clone(), update_of, lr, mu, decay, nesterov)
        expect(isinstance(new, tuple | list) and len(new) == 2, "return two matrices: the new weight, the new momentum")
        weight, momentum = (expect_tensor(part, (3, 5)).double() for part in new)
        for wrong, mistake in (
            (mu * m + (1 - mu) * g, "that is an average: M <- mu M + G is a sum, G counts whole"),
            (update_of(g) + mu * m, "orthogonalise last: the momentum is a sum of gradients"),
            (new_m + decay * old, "the decay is in the gradient: orthogonalised, it loses its size"),
        ):
            expect(not close(momentum, wrong, 1e-4), mistake)
        kept_ahead = nesterov and close(momentum, ahead, 1e-4)
        expect(not kept_ahead, "only update_of gets G + mu M: what you keep is M <- mu M + G")
        expect(close(momentum, new_m, 1e-4), "the new momentum must be mu M + G")
        shrunk = (1 - lr * decay) * old
        size = 0.2 * math.sqrt(5)
        for wrong, mistake in (
            (old - lr * update_of(ahead), "the weight decay is missing"),
            (shrunk + lr * update_of(ahead), "a step goes against the gradient: minus, not plus"),
            (shrunk - update_of(ahead), "the update must be multiplied by the learning rate"),
            (shrunk - lr * ahead, "the momentum is not orthogonalised: call update_of"),
            (shrunk - lr * update_of(m), "the update is made of the old momentum: G comes in first"),
            (shrunk - lr * update_of(g), "the update is made of the gradient alone, without momentum"),
            ((1 - decay) * old - lr * update_of(ahead), "the decay must be multiplied by the learning rate"),
            ((1 - lr * decay * size) * old - lr * update_of(ahead), "the decay takes the raw rate, whatever the shape"),
        ):
            expect(not close(weight, wrong, 1e-4), mistake)
        other, mistake = (
            (new_m, "with nesterov, update_of gets G + mu M, with the M of this step")
            if nesterov
            else (g + mu * new_m, "without nesterov, update_of gets M")
        )
        expect(not close(weight, shrunk - lr * update_of(other), 1e-4), mistake)
        right = shrunk - lr * update_of(ahead)
        expect(close(weight, right, 1e-4), "the weight is off: it must be (1 - lr decay) W - lr update_of(...)")
    return "momentum, update, decay: that is all of Muon"


def _by_head(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """(H,) what the numbers of each head were multiplied by; nan where they were not all multiplied alike."""
    ratio = (new / old).flatten(1)  # (H, ...)
    alike = (ratio - ratio[:, :1]).abs().amax(1) < 1e-4
    return torch.where(alike, ratio[:, 0].double(), math.nan)


def _expect_gamma(by: torch.Tensor) -> None:
    """The mistakes that any clip can make; `by` (H,) is what the logits of the heads were multiplied by."""
    expect(not by[1] > 1.001, "head 1 is below tau and yet it grew:\ngamma is min(1, tau / S), never above 1")
    negative = (
        "head 3 has a largest logit of -5, so tau / S is negative there: {}.\nEvery head at or below tau stays as it is"
    )
    expect(by[0].isnan() or not by[3].isnan(), negative.format("its root is nan"))
    expect(not close(by[3], 0.0), negative.format("a clamp at 0 wipes it out"))
    expect(
        not close(by[:3], (TAU / LARGEST[2]).expand(3)),
        "all heads shrink alike: gamma has one value for each head,\nhealthy heads keep 1",
    )
    expect(not close(by, torch.ones(4)), "no head has changed: head 0 and head 2 are beyond tau")


def _clip_heads(w_q: torch.Tensor, w_k: torch.Tensor, largest: torch.Tensor, tau: float) -> tuple[torch.Tensor, ...]:
    gamma = (tau / largest.clamp(min=tau))[:, None, None]  # (H, 1, 1)
    return gamma.sqrt() * w_q, gamma.sqrt() * w_k


@check(ours=_clip_heads)
def check_clip_heads(clip) -> str:
    """Every logit of head h shrinks by min(1, tau / S_h), and query and key share the work."""
    old = _heads((4, 3, 6), (4, 3, 6))
    new = clip(*(w.clone() for w in old), LARGEST.clone(), TAU)
    expect(isinstance(new, tuple | list) and len(new) == 2, "return two tensors: the new w_q and w_k")
    w_q, w_k = (expect_tensor(w, (4, 3, 6)) for w in new)
    by_q, by_k = _by_head(w_q, old[0]), _by_head(w_k, old[1])
    by = by_q * by_k
    _expect_gamma(by)
    expect(not close(by, GAMMA**2), "gamma on the query and gamma on the key make gamma squared:\neach gets the root")
    expect(not close(by, GAMMA.sqrt()), "only half is done: query and key both shrink by the root of gamma")
    off = int((by - GAMMA).abs().nan_to_num(9).argmax())
    expect(close(by, GAMMA), f"head {off}: its logits must shrink by {GAMMA[off]:.3f},\nyours by {by[off]:.3f}")
    expect(close(by_q, by_k), "the logits are right, but one side carries it all:\nw_q and w_k share it evenly")
    return "a head beyond tau lands on tau, and no other head feels it"


def _clip_latent_heads(q_nope, q_rope, k_nope, k_rope, largest, tau):
    gamma = (tau / largest.clamp(min=tau))[:, None, None]  # (H, 1, 1)
    return gamma.sqrt() * q_nope, gamma * q_rope, gamma.sqrt() * k_nope, k_rope


@check(ours=_clip_latent_heads)
def check_clip_latent_heads(clip) -> str:
    """Every logit of head h shrinks by min(1, tau / S_h), the shared key stays, query and key share the work."""
    sizes = ((4, 5, 6), (4, 2, 6), (4, 5, 3), (2, 7))  # q_nope, q_rope, k_nope by head, k_rope for all
    old = _heads(*sizes)
    new = clip(*(w.clone() for w in old), LARGEST.clone(), TAU)
    expect(isinstance(new, tuple | list) and len(new) == 4, "return four tensors: q_nope, q_rope, k_nope, k_rope")
    q_n, q_r, k_n, k_r = (expect_tensor(w, size) for w, size in zip(new, sizes, strict=True))
    expect(
        close(k_r, old[3]),
        "the rotated key is shared by all heads:\nwhoever scales it changes the heads that are healthy",
    )
    by_q, by_r, by_k = (_by_head(w, was) for w, was in zip((q_n, q_r, k_n), old, strict=False))  # (H,) each
    _expect_gamma(by_q * by_k)
    expect(
        not close(by_q * by_k, GAMMA**2),
        "gamma on the query and gamma on the key make gamma squared:\neach side gets the root",
    )
    expect(
        not close(by_r, GAMMA.sqrt()),
        "sqrt(gamma) on q_rope leaves its logits too large: the shared key cannot give\n"
        "the other half, so q_rope takes all of gamma",
    )
    expect(not close(by_r, torch.ones(4)), "q_rope is untouched: its part of the logits stays as large as it was")
    for part, by in (("q_nope times k_nope", by_q * by_k), ("q_rope times k_rope", by_r)):
        off = int((by - GAMMA).abs().nan_to_num(9).argmax())
        expect(close(by, GAMMA), f"{part}, head {off}: must shrink by {GAMMA[off]:.3f},\nyours by {by[off]:.3f}")
    expect(close(by_q, by_k), "the logits are right, but one side carries it all:\nq_nope and k_nope share it evenly")
    return "each logit of a clipped head shrinks by its gamma, and what heads share keeps every bit"
