"""SwiGLU, the textbook's and the fast one, and the dense feed-forward."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import tiny_config, tiny_k2_model
from utils.fast import speed_up
from utils.fast import swiglu as fast_swiglu
from utils.moe import Experts
from utils.swiglu import FeedForward, SwiGLU, swiglu

every_swiglu = pytest.mark.parametrize("swiglu", [swiglu, fast_swiglu], ids=["textbook", "fast"])


@pytest.mark.parametrize("swiglu", [swiglu, fast_swiglu, SwiGLU()], ids=["textbook", "fast", "layer"])
def test_swiglu_is_value_times_silu_of_the_second_half(swiglu):
    value, gate = torch.tensor([[2.0, -3.0]]), torch.tensor([[1.0, -1.0]])
    by_hand = [[2 * 1 / (1 + math.exp(-1)), -3 * -1 / (1 + math.exp(1))]]
    torch.testing.assert_close(swiglu(torch.cat([value, gate], dim=-1)), torch.tensor(by_hand))


def test_swiglu_needs_an_even_width():
    with pytest.raises(ValueError, match="5 and must be even"):
        SwiGLU()(torch.zeros(2, 5))


def test_feed_forward_has_three_matrices_worth_of_weights():
    assert sum(p.numel() for p in FeedForward(6, 10).parameters()) == 3 * 6 * 10


@pytest.mark.parametrize("fast", [False, True], ids=["textbook", "fast"])
def test_silu_is_on_the_gate_in_a_dense_layer_and_in_an_expert(fast):
    """Mistake 21 of public re-implementations: SiLU on the half of a fused projection that holds the values."""
    torch.manual_seed(0)
    config = tiny_config(n_experts=1, top_k=1, n_heads=1, d_model=6, d_ff=10)
    dense, experts, x = FeedForward(6, 10), Experts(config), torch.randn(5, 6)
    for part in (dense, experts) if fast else ():
        speed_up(part)
    with torch.no_grad():
        experts.w_up[0], experts.w_down[0] = dense.w_up, dense.w_down
    (value, gate), down = dense.w_up, dense.w_down
    expected = (x @ value.T * F.silu(x @ gate.T)) @ down.T
    torch.testing.assert_close(dense(x), expected)
    torch.testing.assert_close(experts(x, torch.ones(5, 1), torch.zeros(5, 1, dtype=torch.long)), expected)


def test_a_feed_forward_at_birth_passes_on_about_the_size_of_its_input():
    torch.manual_seed(0)
    assert 0.2 < FeedForward(64, 128)(torch.randn(100, 64)).std() < 1.5


@pytest.mark.parametrize("shape", [(2,), (3, 4), (2, 3, 6), (0, 4)])
@every_swiglu
def test_the_gradient_of_swiglu_is_that_of_finite_differences(swiglu, shape):
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(shape, generator=generator, dtype=torch.double)).requires_grad_()
    assert torch.autograd.gradcheck(swiglu, x)
    if x.ndim == 3:
        assert torch.autograd.gradcheck(lambda x: swiglu(x.transpose(0, 1)), x)  # of any layout


@every_swiglu
def test_swiglu_and_its_gradient_equal_those_of_torchs_parts(swiglu):
    x = torch.randn(5, 7, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value, gate = x[..., :6], x[..., 6:]
    upstream = torch.randn(7, 5, 6, generator=torch.Generator().manual_seed(1)).transpose(0, 1)
    results = [[y, *torch.autograd.grad(y, x, upstream)] for y in (swiglu(x), value * F.silu(gate))]
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_models_swiglu_is_the_fast_one_by_default():
    model, plain = tiny_k2_model(), FeedForward(6, 10)
    dense = [part for part in model.modules() if isinstance(part, FeedForward)]
    assert len(dense) == 3  # one layer that is dense, two with a shared expert
    assert {part.swiglu for part in dense} == {fast_swiglu} and plain.swiglu is swiglu
