"""Optimizers, by hand: AdamW, Muon, and MuonClip, with which Kimi K2 was trained (report, sec. 2.1, algorithm 1).

MuonClip = clipping by the global gradient norm, Muon for matrices and AdamW for all else, then QK-Clip: attention heads
whose logits grew beyond tau are scaled back. Only the bookkeeping of groups and state dicts is torch's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import nn

from utils.record import Record

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c: Keller Jordan's, steep at 0; singular values end in 0.68..1.20
NEWTON_SCHULZ_STEPS = 5
Orthogonalise = Callable[[list[torch.Tensor]], list[torch.Tensor]]


@torch.no_grad()
def clip_gradients_(params: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scale all gradients to a global 2-norm of at most `max_norm`; return the norm before."""
    grads = [p.grad for p in params if p.grad is not None]
    norm = torch.stack([g.norm() for g in grads]).norm()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # stays on the device: no wait for the GPU
    for g in grads:
        g.mul_(scale)
    return norm


@torch.no_grad()
def newton_schulz(matrices: torch.Tensor, steps: int = NEWTON_SCHULZ_STEPS) -> torch.Tensor:
    """Bring all singular values of each matrix (..., n, m) near 1 and keep its directions.

    Each step applies a s + b s^3 + c s^5 to the singular values, without computing them (Muon,
    Keller Jordan 2024; Moonlight, arXiv 2502.16982, eq. 2). Leading dimensions are a stack of
    matrices.
    """
    if matrices.ndim < 2:
        raise ValueError(f"newton_schulz takes matrices, it got a tensor of shape {tuple(matrices.shape)}")
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)  # (..., n, m) singular values <= 1
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT  # the Gram matrix below is then the smaller one
    a, b, c = NEWTON_SCHULZ
    for _ in range(steps):
        gram = x @ x.mT  # (..., k, k) with k the smaller of n and m
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def newton_schulz_each(matrices: list[torch.Tensor]) -> list[torch.Tensor]:
    """`newton_schulz` of one tensor after the other."""
    return [newton_schulz(stack) for stack in matrices]


class ClippingOptimizer(torch.optim.Optimizer):
    """What ours share: settings that check themselves, clipping by the global norm, and one loop over the groups."""

    def __init__(self, params, defaults: dict, clip_norm: float | None = None):
        for name, allowed, holds in (
            ("lr", "0 or more", lambda v: v >= 0),
            ("weight_decay", "0 or more", lambda v: v >= 0),
            ("betas", "in [0, 1) each", lambda v: all(0 <= b < 1 for b in v)),
            ("momentum", "in [0, 1)", lambda v: 0 <= v < 1),
            ("eps", "above 0", lambda v: v > 0),
        ):
            if name in defaults and not holds(defaults[name]):
                raise ValueError(f"{type(self).__name__}'s {name} is {defaults[name]!r}, it must be {allowed}")
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"{type(self).__name__}'s clip_norm is {clip_norm!r}, it must be above 0 or None")
        super().__init__(params, defaults)
        self.clip_norm = clip_norm
        self.register_step_pre_hook(call_closure)

    @torch.no_grad()
    def step(self, record: Record | None = None) -> torch.Tensor:
        """One update of every parameter that has a gradient; returns the global norm before clipping, 0 without it.

        record: what the forwards left behind, for those that need it. As with torch's optimizers, step(closure) calls
        it first, to compute the loss and its gradients.
        """
        norm = torch.zeros(())
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self.clip_norm is not None and params:
            norm = clip_gradients_(params, self.clip_norm)
        for group in self.param_groups:
            self.update_group(group, [p for p in group["params"] if p.grad is not None])
        return norm

    def update_group(self, group: dict, params: list[torch.Tensor]) -> None:
        """Update these parameters of a group, all of which have a gradient."""
        raise NotImplementedError


def call_closure(optimizer: ClippingOptimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Before a step: call the closure that it was given instead of a record; the arguments that are left."""
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
    if not callable(closure):
        return args, kwargs
    with torch.enable_grad():
        closure()
    return args[:1], {name: value for name, value in kwargs.items() if name != "closure"}


class AdamW(ClippingOptimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2).

    clip_norm: largest global norm of the gradients, scaled down to it first; None leaves them.
    """

    def __init__(
        self, params, lr: float = 1e-3, betas=(0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.1,
        clip_norm: float | None = None,
    ):  # fmt: skip
        super().__init__(params, dict(lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay), clip_norm)

    def update_group(self, group: dict, params: list[torch.Tensor]) -> None:
        for p in params:
            adamw_update_(p, self.state[p], group)


def adamw_update_(p: torch.Tensor, state: dict, group: dict) -> None:
    """One step of AdamW for one parameter; `state` keeps its averages."""
    beta1, beta2 = group["betas"]
    if not state:
        state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
    state["step"] += 1
    p.mul_(1 - group["lr"] * group["weight_decay"])  # decay by the raw rate, not through the gradient
    state["mean"].lerp_(p.grad, 1 - beta1)
    state["square"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
    # both averages start at zero, so early ones are divided by the weight they have gathered
    mean_weight, square_weight = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
    root = state["square"].sqrt().div_(square_weight**0.5).add_(group["eps"])
    p.addcdiv_(state["mean"], root, value=-group["lr"] / mean_weight)


class Muon(ClippingOptimizer):
    """Momentum, orthogonalised and scaled to AdamW's size (Moonlight, arXiv 2502.16982, sec. 2.2).

    W <- W - lr (0.2 sqrt(max(n, m)) NS(G + mu M) + weight_decay W) for each matrix (n, m), with
    M <- mu M + G. To look ahead by G + mu M (Nesterov) is Keller Jordan's practice; algorithm 1 of
    Kimi K2's report writes NS(M). The last two dimensions of a parameter are a matrix, those before
    a stack of them: each expert's value, gate and down matrix is its own. orthogonalise: what makes
    NS of a list of matrices. Raises ValueError for a parameter with fewer than two dimensions.
    """

    def __init__(
        self, params, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.1,
        orthogonalise: Orthogonalise = newton_schulz_each,
    ):  # fmt: skip
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.orthogonalise = orthogonalise
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.ndim < 2 or not p.numel():
                raise ValueError(f"Muon is for matrices, it got a parameter of shape {tuple(p.shape)}")

    def update_group(self, group: dict, params: list[torch.Tensor]) -> None:
        muon_update_(params, self.state, group, self.orthogonalise)


def muon_update_(params: list[torch.Tensor], states: dict, group: dict, orthogonalise: Orthogonalise) -> None:
    """One step of Muon for matrices that have gradients; `states[p]` keeps the momentum of each."""
    ahead = []
    for p in params:
        if not states[p]:
            states[p]["momentum"] = torch.zeros_like(p)
        momentum = states[p]["momentum"]
        torch.add(p.grad, momentum, alpha=group["momentum"], out=momentum)  # M <- G + mu M
        ahead.append(torch.add(p.grad, momentum, alpha=group["momentum"]))  # G + mu M (Nesterov): one step ahead
    for p, direction in zip(params, orthogonalise(ahead), strict=True):
        p.mul_(1 - group["lr"] * group["weight_decay"])  # by the raw rate, whatever the shape
        p.add_(direction, alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape[-2:])))


def muon_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices for Muon, all else for AdamW), which takes embeddings, the `head` and vectors."""
    tables = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) or name.rpartition(".")[2] == "head":
            tables |= {id(p) for p in module.parameters()}
    params = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in params if p.ndim > 1 and id(p) not in tables]
    chosen = {id(p) for p in matrices}
    return matrices, [p for p in params if id(p) not in chosen]


class MuonClip(ClippingOptimizer):
    """Kimi K2's optimizer: one step(record) clips gradients, updates all weights, then clips heads.

    tau: largest attention logit that QK-Clip lets stand; math.inf switches it off. It needs the
    record of the step's forwards and calls `model.qk_clip_(record, tau)`.
    lr, weight_decay: shared by Muon and AdamW, whose updates have about the same size.
    clip_norm: largest global norm of the gradient, None leaves it.
    betas, eps: AdamW's; momentum, orthogonalise: Muon's.
    """

    def __init__(
        self, model: nn.Module, lr: float = 1e-3, weight_decay: float = 0.1, tau: float = 100.0,
        clip_norm: float | None = 1.0, momentum: float = 0.95, betas=(0.9, 0.95), eps: float = 1e-8,
        orthogonalise: Orthogonalise = newton_schulz_each,
    ):  # fmt: skip
        if not tau > 0:
            raise ValueError(f"MuonClip's tau is {tau!r}, it must be above 0 (math.inf switches QK-Clip off)")
        matrices, others = muon_parameters(model)
        listed = sorted(id(p) for p in (*matrices, *others))
        assert listed == sorted(id(p) for p in model.parameters() if p.requires_grad), "each in exactly one group"
        groups = [{"params": matrices, "rule": "muon"}, {"params": others, "rule": "adamw"}]
        defaults = dict(lr=lr, weight_decay=weight_decay, momentum=momentum, betas=tuple(betas), eps=eps)
        super().__init__([group for group in groups if group["params"]], defaults, clip_norm)
        self.model, self.tau, self.orthogonalise = model, tau, orthogonalise

    def step(self, record: Record | None = None) -> torch.Tensor:
        """Clip the gradients, update every parameter, then rescale the heads beyond tau.

        record: of the forwards that made the gradients. Without one QK-Clip cannot act, and a
        warning says so. Returns the global norm of the gradient before clipping.
        """
        norm = super().step()
        if hasattr(self.model, "qk_clip_") and self.tau < math.inf:
            if record is not None:
                self.model.qk_clip_(record, self.tau)
            else:
                warnings.warn(
                    "QK-Clip did not act, for MuonClip.step() got no record: give the forward and the step the same "
                    "one, model.loss(x, y, record) and step(record), or set tau=math.inf",
                    stacklevel=2,
                )
        return norm

    def update_group(self, group: dict, params: list[torch.Tensor]) -> None:
        if group["rule"] == "muon":
            muon_update_(params, self.state, group, self.orthogonalise)
        else:
            for p in params:
                adamw_update_(p, self.state[p], group)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups for AdamW alone: matrices decay, vectors (norms) do not. Every parameter is in exactly one."""
    params = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
