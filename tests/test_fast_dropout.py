"""Dropout: how often it drops, what it does to the rest, and that chance is shared out fairly."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import tiny_config
from utils.fast import dropout as fast_dropout
from utils.fast import speed_up
from utils.model import Dropout, Kimi

SHARES = [0.003, 0.1, 0.5, 0.9]


def dropout_of(p):
    """The layer as it is in a model."""
    layer = Dropout(p)
    speed_up(layer)
    return layer


def mask(p, n, seed=0):
    """Which of n values a training forward keeps."""
    torch.manual_seed(seed)
    return dropout_of(p)(torch.ones(n)) != 0


def within_chance(successes, n, p):
    """Five standard deviations of a binomial: 1 in 2 million is beyond."""
    return abs(successes - n * p) <= 5 * math.sqrt(n * p * (1 - p))


@pytest.mark.parametrize("p", SHARES)
def test_the_share_of_dropped_values_is_p(p):
    n = 400_000
    assert within_chance((~mask(p, n)).sum().item(), n, p)


@pytest.mark.parametrize("p", SHARES)
def test_each_of_the_four_values_of_one_number_is_dropped_as_often(p):
    lanes = ~mask(p, 400_000).view(-1, 4)
    assert all(within_chance(dropped, len(lanes), p) for dropped in lanes.sum(dim=0).tolist())


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("distance", [1, 2, 3, 4, 5, 8])
def test_neighbours_are_dropped_independently(p, distance):
    kept = (mask(p, 400_000).double() - (1 - p)) / math.sqrt(p * (1 - p))  # mean 0, variance 1
    n = len(kept) - distance
    products = kept[:-distance] * kept[distance:]
    assert abs(products.mean().item()) < 5 / math.sqrt(n)
    of_one_lane = products[: n - n % 4].view(-1, 4).mean(dim=0)  # an average must not hide what one pair does
    assert of_one_lane.abs().max().item() < 5 * 2 / math.sqrt(n)


@pytest.mark.parametrize("p", SHARES)
def test_what_is_kept_is_scaled_by_the_share_that_is_kept(p):
    torch.manual_seed(0)
    x = torch.randn(50, 60).T  # of any layout
    before, y = x.clone(), dropout_of(p)(x)
    assert y.shape == x.shape and torch.equal(x, before)
    torch.testing.assert_close(y, torch.where(y == 0, 0.0, x / (1 - p)))


@pytest.mark.parametrize("p", SHARES)
def test_the_expected_value_is_preserved(p):
    torch.manual_seed(0)
    n = 400_000
    mean = dropout_of(p)(torch.ones(n)).double().mean().item()
    assert abs(mean - 1) < 5 * math.sqrt(p / (1 - p) / n)


@pytest.mark.parametrize("p", [0.0, 2**-16, 0.1, 0.33333, 0.5, 0.75, 0.99])
def test_p_is_met_to_one_in_65536(p, monkeypatch):
    """Under chance that takes every value of its 16 bits exactly once."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.int64)
    monkeypatch.setattr(torch.Tensor, "random_", lambda self, *_: self.copy_(every))
    dropped = (dropout_of(p)(torch.ones(2**16)) == 0).sum().item()
    assert abs(dropped / 2**16 - p) <= 2**-17


def test_a_seed_means_a_mask():
    assert torch.equal(mask(0.5, 999, seed=1), mask(0.5, 999, seed=1))
    assert not torch.equal(mask(0.5, 999, seed=1), mask(0.5, 999, seed=2))
    torch.manual_seed(1)
    dropout = dropout_of(0.5)
    first, second = dropout(torch.ones(999)), dropout(torch.ones(999))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3,), (5,), (3, 7), (2, 3, 5), (0,), (4, 0)])
def test_any_number_of_values_will_do(shape):
    torch.manual_seed(0)
    dropout, x = dropout_of(0.5), torch.full(shape, 3.0)
    results = torch.stack([dropout(x) for _ in range(40)])
    assert results.shape == (40, *shape)
    assert set(results.flatten().tolist()) == ({0.0, 6.0} if x.numel() else set())
    assert all(0 < kept < 40 for kept in (results != 0).sum(dim=0).flatten().tolist())  # each has its own chance


def test_the_gradient_passes_where_the_value_passed():
    torch.manual_seed(0)
    x, upstream = torch.randn(37, 11, requires_grad=True), torch.randn(37, 11)
    y = dropout_of(0.3)(x)
    (grad,) = torch.autograd.grad(y, x, upstream)
    torch.testing.assert_close(grad, torch.where(y == 0, 0.0, upstream / 0.7))
    assert 0 < (grad == 0).sum() < grad.numel()


@pytest.mark.parametrize("dropout", [dropout_of(0.5).eval(), dropout_of(0.0), dropout_of(0.0).eval()])
def test_evaluation_and_a_share_of_zero_change_nothing(dropout):
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = dropout(x)
    assert torch.equal(y, x)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.ones(7, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_number_format_stays(dtype):
    torch.manual_seed(0)
    y = dropout_of(0.5)(torch.full((101,), 3.0, dtype=dtype))
    assert y.dtype == dtype and set(y.tolist()) == {0.0, 6.0}


def test_another_device_uses_torchs_own(monkeypatch):
    monkeypatch.setattr(F, "dropout", lambda x, p, training: ("torch's", p, training))
    dropout = dropout_of(0.25)
    assert dropout(torch.ones(3, device="meta")) == ("torch's", 0.25, True)
    assert isinstance(dropout(torch.ones(3)), torch.Tensor)


def test_a_models_dropout_is_this_one_by_default():
    for fast, function in ((True, fast_dropout), (False, F.dropout)):
        model = Kimi(tiny_config(dropout=0.1), fast=fast)
        layers = [part for part in model.modules() if isinstance(part, Dropout)]
        assert len(layers) == 3 and {layer.dropout for layer in layers} == {function}
        assert {layer.p for layer in layers} == {0.1}
