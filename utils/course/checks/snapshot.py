"""Check of an exercise of 06_training: what a run needs to go on as if it had never stopped."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from utils.course.checks.verdict import check, expect


class _Unsteady(nn.Module):
    """A model with all that a run carries along: weights, a buffer that moves, and dropout."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 1)
        self.register_buffer("bias", torch.zeros(6))

    def forward(self, x):
        hidden = self.inner(x).relu() + self.bias
        return self.outer(F.dropout(hidden, 0.5, self.training)).squeeze(-1)

    def move(self):
        self.bias += 0.1


def _fresh(seed: int) -> tuple[_Unsteady, torch.optim.Optimizer, torch.Generator]:
    torch.manual_seed(seed)
    model = _Unsteady()
    return model, torch.optim.AdamW(model.parameters(), lr=0.05), torch.Generator().manual_seed(seed)


def _go_on(model, optimizer, batches, steps: int) -> None:
    for _ in range(steps):
        x = torch.randn(5, 4, generator=batches)
        (model(x) - x.sum(-1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.move()


class _Snapshot:
    def __init__(self, model, optimizer, batches):
        kept = model.state_dict(), optimizer.state_dict(), batches.get_state(), torch.get_rng_state()
        self.model, self.optimizer, self.batches, self.random = copy.deepcopy(kept)

    def restore(self, model, optimizer, batches):
        model.load_state_dict(self.model)
        optimizer.load_state_dict(self.optimizer)
        batches.set_state(self.batches)
        torch.set_rng_state(self.random)


@check(ours=_Snapshot)
def check_snapshot(snapshot) -> str:
    """What is taken in the middle of a run puts fresh objects exactly there, though the run has gone on since."""
    random = torch.get_rng_state()
    try:
        return _judge_snapshot(snapshot)
    finally:
        torch.set_rng_state(random)


def _judge_snapshot(snapshot: Callable) -> str:
    model, optimizer, batches = _fresh(0)
    _go_on(model, optimizer, batches, 4)
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    drawn, random = batches.get_state(), torch.get_rng_state()
    taken = snapshot(model, optimizer, batches)
    for name, was, now in (("batches", drawn, batches.get_state()), ("torch", random, torch.get_rng_state())):
        expect(torch.equal(was, now), f"taking the snapshot has drawn random numbers from {name}: only read states")
    _go_on(model, optimizer, batches, 4)
    ends = copy.deepcopy(model.state_dict())
    expect(hasattr(taken, "restore"), "the class needs a second method: restore(self, model, optimizer, batches)")

    later = _fresh(1)
    torch.manual_seed(2)
    taken.restore(*later)
    new = later[0].state_dict()
    names = [name for name, _ in model.named_parameters()]
    expect(
        not all(torch.equal(new[name], ends[name]) for name in names),
        "the restored weights are those of the end, not of the snapshot: state_dict() gives the live tensors,\n"
        "which go on moving; keep copies (copy.deepcopy)",
    )
    expect(
        all(torch.equal(new[name], state[0][name]) for name in names),
        "the weights are not those of the snapshot: model.state_dict() has them, load_state_dict puts them back",
    )
    expect(
        torch.equal(new["bias"], state[0]["bias"]),
        "the weights are back, but not the buffer: like the experts' biases it is no parameter;\n"
        "model.state_dict() has both",
    )
    averages = later[1].state_dict()["state"]
    expect(len(averages) > 0, "the optimizer has no averages after `restore`: it begins anew; keep its state_dict()")
    same = all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(averages[i][kind]))
        for i, values in state[1].items()
        for kind, value in values.items()
    )
    expect(same, "the optimizer's averages are not those of the snapshot: its state_dict() is alive too, copy it")
    expect(
        torch.equal(later[2].get_state(), drawn),
        "the batches are not drawn from where the run stood: batches.get_state() and set_state()",
    )
    expect(
        torch.equal(torch.get_rng_state(), random),
        "dropout draws from torch's global random numbers, and those are not back:\n"
        "torch.get_rng_state() and torch.set_rng_state()",
    )
    _go_on(*later, 4)
    expect(
        all(torch.equal(value, ends[name]) for name, value in later[0].state_dict().items()),
        "all is back, but the next steps end elsewhere: do the new weights belong to the new model and optimizer?",
    )
    return "a run that goes on from this cannot be told from one that never stopped"
