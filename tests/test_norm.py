"""RMSNorm, the textbook's and the fast one: torch's formula and gradient, whatever the shape and the number format."""

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import tiny_k2_model
from utils import norm as textbook
from utils.fast import norm as fast
from utils.fast import speed_up
from utils.norm import RMSNorm

SHAPES = [(1, 8), (5, 8), (2, 3, 8), (2, 3, 4, 8), (6, 1), (300, 8)]


@pytest.fixture(params=["textbook", "fast"])
def norm_of(request):
    """norm_of(width): a norm with random weights, some of them negative; with seed=None all are 1 as at birth."""

    def make(width, eps=1e-6, seed=0):
        norm = RMSNorm(width, eps)
        if request.param == "fast":
            speed_up(norm)
        if seed is not None:
            torch.nn.init.normal_(norm.weight, mean=0.5, generator=torch.Generator().manual_seed(seed))
        return norm

    return make


def states(*shape, size=1.0, dtype=torch.float, seed=1):
    return (size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype).requires_grad_()


def formula(x, weight, eps):
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def with_gradients(function, x, weight):
    """[output, gradient of x, gradient of the weight], under a random gradient of the output."""
    y = function(x)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    return [y, *torch.autograd.grad(y, (x, weight), upstream)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [1e-6, 0.1])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_norm_and_its_gradient_are_torchs(norm_of, shape, eps, size):
    norm, x = norm_of(shape[-1], eps), states(*shape, size=size)
    expected = with_gradients(lambda x: F.rms_norm(x, shape[-1:], norm.weight, eps), x, norm.weight)
    for got, reference in zip(with_gradients(norm, x, norm.weight), expected, strict=True):
        assert got.shape == reference.shape and got.dtype == torch.float32
        torch.testing.assert_close(got, reference, atol=2e-6 * max(1, reference.abs().max().item()), rtol=1e-5)


def test_the_gradient_is_that_of_the_formula_in_float64(norm_of):
    norm, x = norm_of(8), states(40, 8)
    exact = [t.detach().double().requires_grad_() for t in (x, norm.weight)]
    expected = with_gradients(lambda x: formula(x, exact[1], norm.eps), *exact)
    for got, reference in zip(with_gradients(norm, x, norm.weight), expected, strict=True):
        torch.testing.assert_close(got.double(), reference, atol=1e-5, rtol=1e-5)


def test_the_gradient_is_that_of_finite_differences(norm_of):
    """Wide ones, for the norm computes in fp32."""
    norm, x = norm_of(5, eps=0.1).double(), states(3, 5, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda x, _: norm(x), (x, norm.weight), eps=1e-2, atol=2e-3, rtol=1e-3)


def test_a_norm_by_hand(norm_of):
    norm = norm_of(2, eps=0.0, seed=None)
    assert norm.weight.tolist() == [1.0, 1.0]
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 10.0]))
    size = (25 / 2) ** 0.5
    torch.testing.assert_close(norm(torch.tensor([3.0, 4.0]))[None], torch.tensor([[3 / size, 40 / size]]))


def test_the_size_of_the_input_does_not_matter_and_its_mean_does(norm_of):
    norm, x = norm_of(16), states(9, 16)
    for factor in (1e-1, 7.0, 1e4):
        torch.testing.assert_close(norm(factor * x), norm(x), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(norm(-factor * x), -norm(x), atol=1e-4, rtol=1e-4)
    assert (norm(x + 1) - norm(x)).abs().max() > 0.1  # LayerNorm would take it out
    torch.testing.assert_close(norm_of(16, seed=None)(x).square().mean(-1), torch.ones(9), atol=1e-4, rtol=0)


def test_growing_the_input_gets_no_gradient(norm_of):
    """What follows from it: the gradient is at right angles to the input."""
    norm, x = norm_of(16), states(9, 16)
    _, grad, _ = with_gradients(norm, x, norm.weight)
    assert (grad * x).sum(-1).abs().max() < 1e-4 and grad.norm(dim=-1).min() > 0.1


def test_positions_do_not_know_of_each_other(norm_of):
    norm, x = norm_of(8), states(2, 5, 8)
    one_by_one = torch.stack([torch.stack([norm(position[None])[0] for position in sequence]) for sequence in x])
    torch.testing.assert_close(norm(x), one_by_one)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_format_stays_and_is_computed_in_fp32(norm_of, dtype):
    norm, x = norm_of(8), states(50, 8, size=3.0, dtype=dtype)
    wide = x.detach().float().requires_grad_()
    got, expected = with_gradients(norm, x, norm.weight), with_gradients(norm, wide, norm.weight)
    assert [t.dtype for t in got] == [dtype, dtype, torch.float32]
    assert torch.equal(got[0], expected[0].to(dtype))  # one rounding, at the end
    for ours, reference in zip(got, expected, strict=True):
        assert (ours.float() - reference).abs().max() < 2**-7 * reference.abs().max()
    narrow = norm_of(8).to(dtype)
    assert [t.dtype for t in with_gradients(narrow, x, narrow.weight)] == [dtype] * 3


def test_squares_beyond_fp16_do_no_harm(norm_of):
    y = norm_of(4, seed=None)(torch.full((1, 4), 6e4, dtype=torch.float16))
    torch.testing.assert_close(y, torch.ones(1, 4, dtype=torch.float16))


def test_nothing_becomes_nothing(norm_of):
    norm, x = norm_of(8), torch.zeros(3, 8, requires_grad=True)
    y, grad, grad_weight = with_gradients(norm, x, norm.weight)
    assert y.count_nonzero() == 0 and grad.isfinite().all() and grad_weight.count_nonzero() == 0


def test_the_input_may_have_any_layout(norm_of):
    norm, x = norm_of(8), states(8, 5)
    transposed = with_gradients(norm, x.mT, norm.weight)
    contiguous = with_gradients(norm, x.mT.contiguous(), norm.weight)
    for got, expected in zip(transposed, contiguous, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_vector_alone_has_a_gradient_too(norm_of):
    norm, x = norm_of(8), states(8)
    expected = with_gradients(norm, x[None], norm.weight)
    for got, reference in zip(with_gradients(norm, x, norm.weight), expected, strict=True):
        torch.testing.assert_close(got, reference.view(8))


@pytest.mark.parametrize("grad", [True, False])
def test_without_a_gradient_the_numbers_are_the_same(norm_of, grad):
    norm, x = norm_of(8), states(5, 8)
    expected = norm(x)
    with torch.set_grad_enabled(grad):
        y = norm(x)
    assert torch.equal(y, expected) and y.requires_grad == grad


def test_a_models_norms_are_the_fast_ones_by_default():
    model, plain = tiny_k2_model(), RMSNorm(8)
    norms = [part for part in model.modules() if isinstance(part, RMSNorm)]
    assert len(norms) == 3 * 4 + 1
    assert {norm.rms_norm for norm in norms} == {fast.rms_norm} and plain.rms_norm is textbook.rms_norm
