"""AdamW, Muon and gradient clipping against torch's own, Newton-Schulz against its polynomial, MuonClip as a whole."""

import copy
import io
import math
import warnings
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers import TINY_MODELS, every_architecture, random_tokens, tiny_k2_model, tiny_model
from utils import muonclip
from utils.config import TrainConfig
from utils.device import DTYPES
from utils.fast import newton_schulz as fast
from utils.fast.newton_schulz import orthogonalise
from utils.muonclip import (
    AdamW,
    Muon,
    MuonClip,
    clip_gradients_,
    decay_groups,
    muon_parameters,
    newton_schulz,
    newton_schulz_each,
)
from utils.record import Record
from utils.training import make_optimizer

# what holds for Newton-Schulz holds for the textbook's form and for the one that training takes
every_form = pytest.mark.parametrize("each", [newton_schulz_each, orthogonalise], ids=["textbook", "fast"])

# AdamW


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


def test_without_a_rate_or_without_decay_and_gradient_nothing_moves():
    """0 is allowed for both: a warm-up may begin with it, and decay is a choice."""
    for make in (AdamW, Muon):
        for settings, gradient in ((dict(lr=0.0, weight_decay=0.1), 1.0), (dict(lr=0.1, weight_decay=0.0), 0.0)):
            weight = torch.nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))
            before = weight.detach().clone()
            weight.grad = gradient * torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
            make([weight], **settings).step()
            assert torch.equal(weight, before)


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


# Groups and clipping


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


# Newton-Schulz


def matrix(singular_values, rows, columns, seed=0):
    """A random matrix with these singular values, in float64."""
    generator = torch.Generator().manual_seed(seed)
    k = len(singular_values)
    left, right = (torch.randn(n, k, generator=generator, dtype=torch.double) for n in (rows, columns))
    (left, _), (right, _) = torch.linalg.qr(left), torch.linalg.qr(right)
    return left @ torch.diag(torch.as_tensor(singular_values, dtype=torch.double)) @ right.T


def by_singular_values(g, *_):
    """What five steps do to a matrix, on its singular values: s -> 3.4445 s - 4.775 s^3 + 2.0315 s^5."""
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    s = s / (s.square().sum(-1, keepdim=True).sqrt() + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s[..., None, :] @ v


def check_spectrum(update):
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.68 and values.max() < 1.21, f"singular values from {values.min():.3f} to {values.max():.3f}"


SHAPES = [(16, 16), (16, 40), (40, 16), (1, 12), (12, 1)]


@every_form
@pytest.mark.parametrize("rows, columns", SHAPES)
def test_newton_schulz_brings_singular_values_near_one(rows, columns, each):
    g = matrix(torch.logspace(-1.5, 0, min(rows, columns)), rows, columns)
    for update in each([g, g.float()]):
        check_spectrum(update)


@every_form
def test_cubic_newton_schulz_leaves_small_singular_values_small(each, monkeypatch):
    """Mistake 16 of public re-implementations: five steps of 1.5 s - 0.5 s^3, under which small values hardly grow."""
    monkeypatch.setattr(muonclip, "NEWTON_SCHULZ", (1.5, -0.5, 0.0))
    monkeypatch.setattr(fast, "COEFFICIENTS", (1.5, -0.5, 0.0))
    with pytest.raises(AssertionError, match=r"singular values from 0\.1"):
        check_spectrum(*each([matrix(torch.logspace(-1.5, 0, 16), 16, 40)]))


@every_form
@pytest.mark.parametrize("rows, columns", SHAPES)
def test_newton_schulz_is_a_polynomial_of_the_singular_values(rows, columns, each):
    g = torch.randn(rows, columns, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(*each([g]), by_singular_values(g), atol=1e-9, rtol=1e-9)


@every_form
def test_newton_schulz_of_a_diagonal_matrix_by_hand(each):
    values = []
    for s in (3.0, 0.4, 0.0):
        s = s / (math.sqrt(9.16) + 1e-7)
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        values.append(s)
    g = torch.diag(torch.tensor([3.0, 0.4, 0.0], dtype=torch.double))
    torch.testing.assert_close(*each([g]), torch.diag(torch.tensor(values, dtype=torch.double)))


@every_form
def test_newton_schulz_knows_neither_the_size_nor_the_side_of_a_matrix(each):
    g = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    expected, small, large, turned, nothing = each([g, 1e-3 * g, 1e4 * g, g.T, torch.zeros(3, 4)])
    for update in (small, large):
        torch.testing.assert_close(update, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(turned, expected.T, atol=1e-5, rtol=0)
    assert nothing.count_nonzero() == 0


@every_form
def test_a_tall_matrix_costs_no_more_than_a_wide_one(each):
    flops = []
    for shape in ((4, 100), (100, 4)):
        with FlopCounterMode(display=False) as counter:
            each([torch.ones(shape)])
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0


@every_form
def test_newton_schulz_of_a_stack_is_that_of_each_matrix(each):
    stack = torch.randn(3, 2, 7, 10, generator=torch.Generator().manual_seed(0))
    stack[1] *= 100  # no matrix may lend its size to another
    one_by_one = torch.stack([newton_schulz(g) for g in stack.flatten(0, 1)]).view(stack.shape)
    torch.testing.assert_close(*each([stack]), one_by_one, atol=1e-5, rtol=0)


def test_newton_schulz_is_for_matrices():
    with pytest.raises(ValueError, match=r"takes matrices, it got a tensor of shape \(7,\)"):
        newton_schulz(torch.ones(7))


@pytest.mark.parametrize("dtype, error", [(torch.bfloat16, 0.05), (torch.float16, 0.005)])
@pytest.mark.parametrize("smallest", [1.0, 1e-6])
def test_newton_schulz_in_16_bits_gives_the_same_direction_in_the_format_it_got(dtype, error, smallest):
    """Where the columns of a gradient are of very different sizes too: fp16 loses the small ones to zero."""
    g = torch.randn(24, 32, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, math.log10(smallest), 32)
    (coarse,), fine = orthogonalise([g], dtype), newton_schulz(g)
    assert coarse.dtype == torch.float32 and not torch.equal(coarse, fine)
    assert (coarse - fine).norm() < error * fine.norm()
    assert torch.equal(coarse, coarse.to(dtype).float())


# Muon


has_torchs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has a Muon since 2.9")


def torchs_muon(params, **settings):
    return torch.optim.Muon(params, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw", **settings)


def under_both(shape, steps, precision=torch.float32, **ours):
    """The weights at first, after Muon and after torch's, under the same random gradients."""
    generator = torch.Generator().manual_seed(0)
    start = 0.2 * torch.randn(shape, generator=generator, dtype=precision)
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    settings = dict(lr=0.02, weight_decay=0.1)
    optimizers = [Muon(weights[:1], **settings, **ours), torchs_muon(weights[1:], **settings)]
    for _ in range(steps):
        gradient = torch.randn(shape, generator=generator, dtype=precision)
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    return start, *(w.detach() for w in weights)


@has_torchs_muon
@pytest.mark.parametrize("shape", [(32, 48), (48, 32), (64, 64), (16, 200)])
@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize(
    "each, tolerances",
    [
        (newton_schulz_each, {1: 5e-4, 10: 1e-3}),
        (orthogonalise, {1: 5e-4, 10: 1e-3}),
        (partial(orthogonalise, dtype=torch.bfloat16), {1: 5e-4, 10: 2.5e-3}),
    ],
    ids=["textbook", "fast", "fast in bf16"],
)
def test_muon_moves_as_torchs_muon_does(shape, steps, each, tolerances):
    """torch's computes Newton-Schulz in bf16, so the two agree to its precision."""
    start, ours, theirs = under_both(shape, steps, orthogonalise=each)
    tolerance = tolerances[steps]
    move, expected = ours - start, theirs - start
    assert torch.nn.functional.cosine_similarity(move.flatten(), expected.flatten(), dim=0) > 0.999
    assert move.norm() == pytest.approx(expected.norm().item(), rel=0.01)
    assert (ours - theirs).abs().max() < tolerance < 0.1 * expected.abs().max()


@has_torchs_muon
@every_form
@pytest.mark.parametrize("shape", [(32, 48), (48, 32)])
@pytest.mark.parametrize("steps", [1, 10])
def test_muon_equals_torchs_muon_when_both_orthogonalise_alike(shape, steps, each, monkeypatch):
    """torch's own computes Newton-Schulz in bf16; with it done exactly, all that is around it must agree."""
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", by_singular_values)
    start, ours, theirs = under_both(shape, steps, precision=torch.double, orthogonalise=each)
    assert (theirs - start).abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=0)


def one_step(shape, gradient=None, lr=0.1, weight_decay=0.0, seed=0):
    """(weights before, after) one step of Muon with a random gradient."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.nn.Parameter(torch.randn(shape, generator=generator))
    before = p.detach().clone()
    p.grad = torch.randn(shape, generator=generator) if gradient is None else gradient.clone()
    Muon([p], lr=lr, weight_decay=weight_decay).step()
    return before, p.detach()


@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 16), (100, 30), (5, 2, 24, 32), (90, 48, 16)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_update_has_the_size_of_adamws_whatever_shape_and_gradient(shape, size):
    before, after = one_step(shape, size * torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    rms = (after - before).square().mean((-1, -2)).sqrt() / 0.1  # of each matrix of a stack
    assert rms.min() > 0.16 and rms.max() < 0.24


@pytest.mark.parametrize("shape", [(4, 4), (4, 400), (3, 2, 50, 4)])
def test_muon_decays_by_the_raw_rate_whatever_the_shape(shape):
    """Mistake 18 of public re-implementations: decay by the rate that is adjusted to the shape."""
    before, after = one_step(shape, torch.zeros(shape), lr=0.02, weight_decay=0.5)
    torch.testing.assert_close(after, before * (1 - 0.02 * 0.5))


def test_nesterov_looks_ahead_before_the_orthogonalisation():
    """Mistake 17 of public re-implementations: the raw gradient added to an update that is already orthogonal."""
    p = torch.nn.Parameter(torch.zeros(16, 24, dtype=torch.double))
    optimizer, momentum = Muon([p], lr=1.0, momentum=0.9, weight_decay=0.0), 0
    for seed, size in ((0, 1.0), (1, 30.0), (2, 5.0)):
        before, gradient = p.detach().clone(), matrix(size * torch.logspace(-0.5, 0, 16), 16, 24, seed)
        p.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + gradient
        update = (before - p.detach()) / (0.2 * math.sqrt(24))
        torch.testing.assert_close(update, by_singular_values(gradient + 0.9 * momentum), atol=1e-6, rtol=0)
        assert torch.linalg.svdvals(update).max() < 1.21


@every_form
def test_each_matrix_of_an_expert_is_its_own(each):
    """Mistake 15 of public re-implementations: experts' stacked weights orthogonalised as one matrix."""
    shape = (3, 2, 10, 16)  # experts, value and gate, F, D
    stacked = torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    single = [torch.nn.Parameter(w.clone()) for w in stacked.detach().flatten(0, 1)]
    optimizers, before = [Muon([stacked], lr=0.1, orthogonalise=each), Muon(single, lr=0.1)], stacked.detach().clone()
    for seed in (1, 2):
        stacked.grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        for w, g in zip(single, stacked.grad.flatten(0, 1), strict=True):
            w.grad = g.clone()
        for optimizer in optimizers:
            optimizer.step()
    alone = torch.stack([w.detach() for w in single]).view(shape)
    torch.testing.assert_close(stacked.detach(), alone, atol=1e-5, rtol=0)
    fused = newton_schulz(stacked.grad.flatten(1, 2)).view(shape)
    assert (fused - newton_schulz(stacked.grad)).norm() > 0.3 * fused.norm()
    assert (stacked.detach() - before).abs().max() > 0.05


@every_form
def test_muon_takes_gradients_of_any_layout_and_leaves_weights_without_one(each):
    gradient = torch.randn(24, 16, generator=torch.Generator().manual_seed(1)).T
    p, other = torch.nn.Parameter(torch.ones(16, 24)), torch.nn.Parameter(torch.ones(16, 24))
    p.grad = gradient
    Muon([p, other], lr=0.1, orthogonalise=each).step()
    assert torch.equal(other.detach(), torch.ones(16, 24))
    torch.testing.assert_close(p.detach(), 0.99 - 0.1 * 0.2 * math.sqrt(24) * newton_schulz(gradient))


@every_form
def test_muon_moves_kernels_of_a_convolution_alike_in_either_memory_format(each):
    generator = torch.Generator().manual_seed(1)
    weight, gradients = torch.randn(4, 3, 5, 6, generator=generator), torch.randn(2, 4, 3, 5, 6, generator=generator)
    moved = []
    for of_weight in (torch.contiguous_format, torch.channels_last):
        for of_gradient in (torch.contiguous_format, torch.channels_last):
            p = torch.nn.Parameter(weight.clone(memory_format=of_weight))
            optimizer = Muon([p], lr=0.1, orthogonalise=each)
            for gradient in gradients:
                p.grad = gradient.clone(memory_format=of_gradient)
                optimizer.step()
            moved.append(p.detach())
    assert not torch.allclose(moved[0], weight, atol=1e-3)
    for other in moved[1:]:
        torch.testing.assert_close(other, moved[0])


# As torch's optimizers are called

OPTIMIZERS = {
    "AdamW": lambda model: AdamW(model.parameters(), lr=0.1, clip_norm=1.0),
    "Muon": lambda model: Muon(model.parameters(), lr=0.1),
    "MuonClip": lambda model: MuonClip(model, lr=0.1),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


@every_optimizer
def test_a_step_before_any_backward_moves_nothing(make):
    layer = torch.nn.Linear(6, 4, bias=False)
    before, optimizer = layer.weight.detach().clone(), make(layer)
    for zero in (False, True):
        if zero:
            layer(torch.ones(6)).sum().backward()
            optimizer.zero_grad()
        assert optimizer.step() == 0
    assert torch.equal(layer.weight, before) and not optimizer.state


@every_optimizer
def test_a_step_calls_the_closure_that_it_is_given(make):
    """Lightning and others call step(closure=...) and leave the backward to it."""
    layers = [torch.nn.Linear(6, 4, bias=False) for _ in range(3)]
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    before = layers[0].weight.detach().clone()

    def closure(layer, optimizer):
        optimizer.zero_grad()
        loss = layer(torch.arange(6.0)).square().sum()
        loss.backward()
        return loss

    by_hand, positional, named = (make(layer) for layer in layers)
    for _ in range(2):
        closure(layers[0], by_hand)
        norm = by_hand.step()
        assert torch.equal(positional.step(lambda: closure(layers[1], positional)), norm)
        assert torch.equal(named.step(closure=lambda: closure(layers[2], named)), norm)
    assert all(torch.equal(layer.weight, layers[0].weight) for layer in layers[1:])
    assert not torch.equal(layers[0].weight, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_format_of_newton_schulz_can_be_chosen(dtype):
    layer = torch.nn.Linear(24, 16, bias=False)
    gradient = torch.randn(16, 24, generator=torch.Generator().manual_seed(1))
    chosen = partial(orthogonalise, dtype=dtype)
    (expected,), fine = chosen([1.95 * gradient]), newton_schulz(1.95 * gradient)
    assert torch.allclose(expected, fine, atol=1e-5) == (dtype == torch.float32)
    for make in (lambda **s: Muon(layer.parameters(), **s), lambda **s: MuonClip(layer, clip_norm=None, **s)):
        torch.nn.init.zeros_(layer.weight)
        layer.weight.grad = gradient.clone()
        make(lr=1.0, orthogonalise=chosen).step()
        update = layer.weight.detach() / (-0.2 * math.sqrt(24))
        torch.testing.assert_close(update, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("number_format", ["fp32", "bf16", "fp16"])
def test_a_run_orthogonalises_in_the_number_format_of_its_matmuls(number_format):
    optimizer = make_optimizer(tiny_k2_model(), TrainConfig(), number_format)
    matrix = torch.randn(16, 24, generator=torch.Generator().manual_seed(1))
    (update,) = optimizer.orthogonalise([matrix])
    same = {name for name, dtype in DTYPES.items() if torch.equal(update, *orthogonalise([matrix], dtype))}
    assert same == {number_format}


def test_muon_is_for_matrices():
    with pytest.raises(ValueError, match=r"Muon is for matrices, it got a parameter of shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(3))])
    with pytest.raises(ValueError, match=r"Muon is for matrices, it got a parameter of shape \(0, 4\)"):
        Muon([torch.nn.Parameter(torch.ones(0, 4))])
    with pytest.raises(ValueError, match=r"Muon's momentum is 1.0, it must be in \[0, 1\)"):
        Muon([torch.nn.Parameter(torch.ones(2, 2))], momentum=1.0)


# MuonClip


def is_for_adamw(name):
    return name in ("embedding.weight", "positions.weight", "head.weight") or "norm" in name


def backward(model, seed=0):
    """The record of a forward pass whose gradients the model then has."""
    tokens, record = random_tokens(4, 13, seed=seed), Record()
    loss = model(tokens[:, :-1], targets=tokens[:, 1:], record=record)[1]
    model.zero_grad()
    loss.backward()
    return record


def train(model, optimizer, steps):
    """Losses and largest logits of some steps on one batch."""
    tokens, losses, largest = random_tokens(8, 13), [], []
    for _ in range(steps):
        record = Record()
        loss = model(tokens[:, :-1], targets=tokens[:, 1:], record=record)[1]
        optimizer.zero_grad()
        loss.backward()
        largest.append(record.max_logits().max().item())
        optimizer.step(record)
        model.end_step_(record)
        losses.append(loss.item())
    return losses, largest


@every_architecture
def test_tables_and_norms_are_adamws_and_every_other_matrix_is_muons(architecture):
    """Mistake 15 of public re-implementations: Muon on the embedding and the head, which belong to AdamW."""
    model = TINY_MODELS[architecture]()
    names = {id(p): name for name, p in model.named_parameters()}
    matrices, others = ([names[id(p)] for p in group] for group in muon_parameters(model))
    assert sorted(matrices + others) == sorted(names.values())
    assert sorted(others) == sorted(name for name in names.values() if is_for_adamw(name))
    expected = {"nano": ["w_q", "w_k", "w_v", "w_o"], "k2": ["w_q_down", "w_q_up", "w_kv_down", "w_kv_up", "w_o"]}
    expected = [f"blocks.1.attention.{w}.weight" for w in expected[architecture]]
    expected += [f"blocks.1.ffn.{part}" for part in ("router.gate.weight", "experts.w_up", "experts.w_down")]
    if architecture == "k2":
        expected += ["blocks.1.ffn.shared.w_up", "blocks.1.ffn.shared.w_down", "blocks.0.ffn.w_up"]
    assert set(expected) <= set(matrices)
    groups = MuonClip(model).param_groups
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(names)


def test_the_one_matrix_of_queries_without_a_latent_is_muons_and_clipped():
    model = tiny_k2_model(q_lora_rank=0)
    names = {id(p): name for name, p in model.named_parameters()}
    matrices, others = ([names[id(p)] for p in group] for group in muon_parameters(model))
    assert "blocks.1.attention.w_q_up.weight" in matrices
    assert sorted(others) == sorted(name for name in names.values() if is_for_adamw(name))
    assert not any("w_q_down" in name or "q_norm" in name for name in names.values())
    tokens, records = random_tokens(8, 13), []
    optimizer = MuonClip(model, lr=0.0, tau=0.5)
    for _ in range(2):
        records.append(Record())
        model.loss(tokens[:, :-1], tokens[:, 1:], records[-1]).backward()
        optimizer.step(records[-1])
    before, after = (record.layers[0].max_logits for record in records)  # what the first layer reads did not change
    assert (before > 0.5).any()
    torch.testing.assert_close(after, before.clamp(max=0.5), atol=1e-5, rtol=1e-5)  # the clip alone, to tau itself


def test_only_a_module_called_head_is_a_head():
    outer = torch.nn.ModuleDict({"model": tiny_k2_model(), "multihead": torch.nn.MultiheadAttention(8, 2)})
    listed = {id(p) for p in muon_parameters(outer)[0]}
    assert id(outer["multihead"].in_proj_weight) in listed and id(outer["multihead"].out_proj.weight) in listed
    assert id(outer["model"].head.weight) not in listed and id(outer["model"].embedding.weight) not in listed


def test_frozen_weights_are_in_no_group():
    model = tiny_k2_model()
    model.head.requires_grad_(False)
    model.blocks[0].requires_grad_(False)
    listed = {id(p) for group in MuonClip(model).param_groups for p in group["params"]}
    assert listed == {id(p) for p in model.parameters() if p.requires_grad}


@every_architecture
def test_muonclip_is_more_than_a_clipped_gradient(architecture):
    """Mistake 1 of public re-implementations: gradient clipping before SGD or AdamW, called MuonClip."""
    model = TINY_MODELS[architecture]()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():  # gradients of very different strength in different directions
        rows, columns = p.shape[-2:] if p.ndim > 1 else (1, len(p))
        strengths = torch.logspace(-1.5, 0, min(rows, columns))
        matrices = [matrix(strengths, rows, columns, seed) for seed in range(p.numel() // (rows * columns))]
        p.grad = torch.stack(matrices).view(p.shape).float()
    MuonClip(model, lr=0.1, weight_decay=0.0, clip_norm=None, tau=math.inf).step()
    for name, p in model.named_parameters():
        update = (before[name] - p.detach()) / 0.1
        if is_for_adamw(name):  # AdamW's first step, as seen through fp32 weights
            torch.testing.assert_close(update, p.grad / (p.grad.abs() + 1e-8), atol=1e-4, rtol=0)
        else:
            check_spectrum(update / (0.2 * math.sqrt(max(p.shape[-2:]))))


def by_its_parts(model, record, lr, weight_decay, tau, clip_first=False):
    """The step of MuonClip, put together from parts that have their own tests; parts of the model are told by name."""
    named = list(model.named_parameters())

    def clip_heads():
        for block, logits in zip(model.blocks, record.max_logits(), strict=True):
            block.attention.qk_clip_(logits, tau)

    if clip_first:
        clip_heads()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    Muon([p for name, p in named if not is_for_adamw(name)], lr=lr, weight_decay=weight_decay).step()
    torch.optim.AdamW(
        [p for name, p in named if is_for_adamw(name)], lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay
    ).step()
    if not clip_first:
        clip_heads()


@every_architecture
def test_a_step_clips_gradients_then_updates_then_clips_heads(architecture):
    """Mistake 13 of public re-implementations: heads clipped before the update, or the update itself scaled."""
    models = [TINY_MODELS[architecture]() for _ in range(4)]
    records = [backward(model) for model in models]
    tau = records[0].max_logits().median().item()
    settings = dict(lr=0.05, weight_decay=0.1)
    optimizer = MuonClip(models[0], tau=tau, **settings)
    returned = optimizer.step(records[0])
    by_its_parts(models[1], records[1], tau=tau, **settings)
    by_its_parts(models[2], records[2], tau=tau, **settings, clip_first=True)
    by_its_parts(models[3], records[3], tau=math.inf, **settings)
    ours, right, too_early, without = (dict(model.named_parameters()) for model in models)
    for name, p in ours.items():
        torch.testing.assert_close(p, right[name], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(p.grad, right[name].grad)
    for wrong in (too_early, without):
        assert max((p - wrong[name]).abs().max() for name, p in ours.items()) > 1e-3
    norm = torch.stack([p.grad.norm() for p in ours.values()]).norm().item()
    assert norm == pytest.approx(1.0, rel=1e-3) and returned > 1


@every_architecture
def test_thirty_steps_of_muonclip_learn_a_batch(architecture):
    model = TINY_MODELS[architecture]()
    losses, _ = train(model, MuonClip(model, lr=0.01), 30)
    assert losses[0] > 3.5 and losses[-1] < 0.3


@every_architecture
def test_clipped_heads_stay_near_tau_where_others_grow(architecture):
    largest = {}
    for tau in (3.0, math.inf):
        model = TINY_MODELS[architecture]()
        _, largest[tau] = train(model, MuonClip(model, lr=0.05, weight_decay=0.0, tau=tau), 30)
    assert min(largest[math.inf][-5:]) > 7  # how far they grow depends on the last bits of sums
    assert max(largest[3.0][-20:]) < 5.5  # S is measured before the update that it clips


def test_heads_of_a_step_in_micro_batches_are_clipped_by_the_largest_of_them():
    whole, parts = tiny_k2_model(), tiny_k2_model()
    tokens, records = random_tokens(4, 13), (Record(), Record())
    whole(tokens, record=records[0])
    for part in tokens.split(1):
        parts(part, record=records[1])
    for model, record in zip((whole, parts), records, strict=True):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        MuonClip(model, tau=0.5).step(record)
    untouched = tiny_k2_model()
    assert not torch.equal(untouched.blocks[0].attention.w_q_up.weight, whole.blocks[0].attention.w_q_up.weight)
    for ours, expected in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


@every_architecture
def test_a_step_without_a_record_says_that_no_head_was_clipped(architecture):
    """All else is updated as if tau were infinite; where tau is, or the model has no heads, there is nothing to say."""
    models, optimizers = [TINY_MODELS[architecture]() for _ in range(2)], []
    for model, tau in zip(models, (0.1, math.inf), strict=True):
        backward(model)
        optimizers.append(MuonClip(model, tau=tau))
    with pytest.warns(UserWarning, match=r"QK-Clip did not act, for MuonClip\.step\(\) got no record: give the"):
        optimizers[0].step()
    layer = torch.nn.Linear(3, 2)
    layer(torch.ones(3)).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizers[1].step()
        MuonClip(layer, tau=0.1).step()
    assert all(torch.equal(p, q) for p, q in zip(*(model.parameters() for model in models), strict=True))


@every_architecture
def test_the_state_of_muonclip_survives_a_file_to_the_last_bit(architecture):
    whole = TINY_MODELS[architecture]()
    expected, _ = train(whole, MuonClip(whole, lr=0.02, tau=2.0), 10)
    model = TINY_MODELS[architecture]()
    optimizer = MuonClip(model, lr=0.02, tau=2.0)
    losses, _ = train(model, optimizer, 5)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    model = TINY_MODELS[architecture](seed=9)
    model.load_state_dict(saved["model"])
    optimizer = MuonClip(model, lr=9.0, tau=2.0)
    optimizer.load_state_dict(saved["optimizer"])
    losses += train(model, optimizer, 5)[0]
    assert losses == expected
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), whole.parameters(), strict=True))


def test_a_new_rate_holds_for_both_kinds_of_weights():
    model = tiny_k2_model()
    optimizer = MuonClip(model, lr=0.1)
    assert len(optimizer.param_groups) == 2
    record = backward(model)
    before = copy.deepcopy(model.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step(record)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    optimizer.step(record)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if p.grad.any())


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"tau": 0}, "MuonClip's tau is 0, it must be above 0"),
        ({"tau": math.nan}, "MuonClip's tau is nan"),
        ({"lr": -1}, "MuonClip's lr is -1, it must be 0 or more"),
        ({"momentum": 1.0}, "MuonClip's momentum is 1.0"),
        ({"clip_norm": 0}, "MuonClip's clip_norm is 0, it must be above 0 or None"),
        ({"weight_decay": -0.1}, "MuonClip's weight_decay is -0.1"),
        ({"betas": (1.0, 0.9)}, r"MuonClip's betas is \(1.0, 0.9\), it must be in \[0, 1\) each"),
        ({"eps": 0}, "MuonClip's eps is 0"),
    ],
)
def test_impossible_settings_of_muonclip_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        MuonClip(tiny_model(), **setting)


# Batches of Newton-Schulz


BATCHED = [(16, 24), (24, 16), (6, 16, 24), (3, 2, 16, 24), (5, 5), (1, 5, 5), (16, 24)]


def matrices_with_gradients(seed=0):
    """Parameters of several shapes and ranks, every other one with a gradient that is not contiguous."""
    generator, params = torch.Generator().manual_seed(seed), []
    for i, shape in enumerate(BATCHED):
        p = torch.nn.Parameter(torch.randn(shape, generator=generator))
        gradient = torch.randn(shape, generator=generator)
        p.grad = gradient.mT.contiguous().mT if i % 2 else gradient
        assert p.grad.is_contiguous() == (i % 2 == 0)
        params.append(p)
    return params


@pytest.mark.parametrize("numbers", [1, 16 * 24, 2 * 16 * 24, 5 * 16 * 24 - 1, 7 * 16 * 24, 1 << 20])
def test_how_many_matrices_are_orthogonalised_at_once_changes_no_update(numbers, monkeypatch):
    """The reference is the textbook, which takes one tensor after the other."""
    monkeypatch.setattr(fast, "CPU_CACHE", numbers)
    results = []
    for each in (orthogonalise, newton_schulz_each):
        params = matrices_with_gradients()
        optimizer = Muon(params, lr=0.1, orthogonalise=each)
        optimizer.step()
        for p, other in zip(params, matrices_with_gradients(seed=1), strict=True):
            p.grad = other.grad
        optimizer.step()
        results.append([t for p in params for t in (p.detach(), optimizer.state[p]["momentum"])])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


@every_form
def test_each_matrix_moves_as_if_it_were_alone_with_its_gradient(each):
    params, before = matrices_with_gradients(), [p.detach().clone() for p in matrices_with_gradients()]
    Muon(params, lr=0.1, momentum=0.9, weight_decay=0.5, orthogonalise=each).step()
    for p, start in zip(params, before, strict=True):
        direction = by_singular_values(p.grad.double())  # the first look ahead is a multiple of the gradient
        expected = 0.95 * start - 0.1 * 0.2 * math.sqrt(max(p.shape[-2:])) * direction.float()
        torch.testing.assert_close(p.detach(), expected, atol=1e-4, rtol=0)


def stacks_of(params):
    """The gradients as stacks of matrices (S, n, m)."""
    return [p.grad.reshape(-1, *p.shape[-2:]) for p in params]


@pytest.mark.parametrize("numbers", [1, 16 * 24, 4 * 16 * 24, 5 * 16 * 24 - 1, 1 << 20])
def test_every_matrix_is_in_one_batch_beside_others_of_its_shape(numbers, monkeypatch):
    monkeypatch.setattr(fast, "CPU_CACHE", numbers)
    stacks, seen = stacks_of(matrices_with_gradients()), []
    for batch in fast._batches_of_a_shape(stacks):
        assert batch, "an empty batch"
        assert len({stacks[i].shape[1:] for i, _ in batch}) == 1, "shapes are mixed"
        parts = [stacks[i][part] for i, part in batch]
        assert sum(part.numel() for part in parts) <= numbers or sum(map(len, parts)) == 1
        seen += [(i, j) for i, part in batch for j in range(len(stacks[i]))[part]]
    assert sorted(seen) == [(i, j) for i, stack in enumerate(stacks) for j in range(len(stack))], "not once each"


@pytest.mark.parametrize("numbers", [1, 16 * 24, 4 * 16 * 24, 5 * 16 * 24 - 1, 1 << 20])
def test_every_direction_comes_back_at_the_place_of_its_gradient(numbers, monkeypatch):
    monkeypatch.setattr(fast, "CPU_CACHE", numbers)
    gradients = [p.grad.double() for p in matrices_with_gradients()]
    for direction, gradient in zip(orthogonalise(gradients), gradients, strict=True):
        torch.testing.assert_close(direction, by_singular_values(gradient), atol=1e-9, rtol=1e-9)


def test_a_cache_that_is_large_enough_takes_all_matrices_of_a_shape_at_once():
    stacks = stacks_of(matrices_with_gradients())
    sizes = sorted(sum(len(stacks[i][part]) for i, part in batch) for batch in fast._batches_of_a_shape(stacks))
    assert sizes == [1, 2, 1 + 6 + 6 + 1]


@every_form
@pytest.mark.parametrize("shape", [(5, 9), (4, 5, 9), (2, 3, 9, 5), (3, 1, 6)])
def test_newton_schulz_of_a_transposed_stack_is_the_transposed_result(shape, each):
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    straight, turned = each([stack, stack.mT])
    torch.testing.assert_close(turned, straight.mT, atol=1e-10, rtol=1e-10)
