"""AdamW and gradient clipping against torch's own."""

import copy

import pytest
import torch

from tests.helpers import random_tokens, tiny_model
from utils.muonclip import AdamW, clip_gradients_, decay_groups


def losses_under(make_optimizer, steps=100):
    model = tiny_model().double()
    optimizer = make_optimizer(model.parameters())
    tokens = random_tokens(8, 13)
    losses = []
    for _ in range(steps):
        loss = model(tokens[:, :-1], targets=tokens[:, 1:])[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


def test_adamw_equals_torch_adamw_over_100_steps():
    settings = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses, weights = losses_under(lambda p: AdamW(p, **settings))
    expected_losses, expected = losses_under(lambda p: torch.optim.AdamW(p, **settings))
    assert max(abs(a - b) for a, b in zip(losses, expected_losses, strict=True)) < 1e-6
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0)


def test_the_optimizer_is_not_sgd_with_decay_in_the_gradient():
    """Fault of the original notebook: its "MuonClip" equalled SGD with L2 decay and hardly learned in 300 steps."""
    adamw, _ = losses_under(lambda p: AdamW(p, lr=3e-3, weight_decay=0.1))
    sgd, _ = losses_under(lambda p: torch.optim.SGD(p, lr=3e-3, weight_decay=0.1))
    assert adamw[-1] < 0.5 * sgd[-1]
    # AdamW's step has the size of the rate, whatever the size of the gradient; SGD's has not
    for scale in (1.0, 1e4):
        p = torch.nn.Parameter(torch.ones(3))
        p.grad = scale * torch.tensor([1.0, -2.0, 0.5])
        AdamW([p], lr=0.1, weight_decay=0).step()
        torch.testing.assert_close(p.data, 1 - 0.1 * p.grad.sign())


def test_weight_decay_is_decoupled_from_the_gradient():
    p = torch.nn.Parameter(torch.full((3,), 2.0))
    p.grad = torch.zeros(3)
    AdamW([p], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(p.data, torch.full((3,), 2.0 * (1 - 0.1 * 0.5)))


def test_parameters_without_a_gradient_stay():
    p = torch.nn.Parameter(torch.ones(3))
    AdamW([p], lr=0.1).step()
    assert torch.equal(p.data, torch.ones(3))


def test_the_state_survives_saving():
    whole, _ = losses_under(lambda p: AdamW(p), steps=20)
    model = tiny_model().double()
    tokens = random_tokens(8, 13)
    optimizer, losses = AdamW(model.parameters()), []
    for step in range(20):
        if step == 10:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = AdamW(model.parameters(), lr=9.0)
            optimizer.load_state_dict(saved)
        loss = model(tokens[:, :-1], targets=tokens[:, 1:])[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == whole


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"lr": -1}, "lr is -1"),
        ({"betas": (0.9, 1)}, "in \\[0, 1\\)"),
        ({"eps": 0}, "eps is 0"),
        ({"weight_decay": -1}, "0 or"),
    ],
)
def test_impossible_settings_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        AdamW([torch.nn.Parameter(torch.ones(1))], **setting)


def test_matrices_decay_vectors_do_not_and_every_parameter_is_in_one_group():
    model = tiny_model()
    groups = decay_groups(model, 0.1)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    assert {p.ndim > 1 for p in groups[0]["params"]} == {True}
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_clipping_equals_torch_clip_grad_norm(max_norm):
    ours, reference = tiny_model(), tiny_model()
    for model in (ours, reference):
        model(random_tokens(2, 8), targets=random_tokens(2, 8, seed=1))[1].backward()
    norm = clip_gradients_(ours.parameters(), max_norm)
    expected = torch.nn.utils.clip_grad_norm_(reference.parameters(), max_norm)
    torch.testing.assert_close(norm, expected)
    for p, q in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
