"""SwiGLU and the dense feed-forward."""

import math

import pytest
import torch
import torch.nn.functional as F

from utils.moe import Experts
from utils.swiglu import FeedForward, SwiGLU


def test_swiglu_is_value_times_silu_of_the_second_half():
    value, gate = torch.tensor([[2.0, -3.0]]), torch.tensor([[1.0, -1.0]])
    by_hand = [[2 * 1 / (1 + math.exp(-1)), -3 * -1 / (1 + math.exp(1))]]
    torch.testing.assert_close(SwiGLU()(torch.cat([value, gate], dim=-1)), torch.tensor(by_hand))


def test_swiglu_needs_an_even_width():
    with pytest.raises(ValueError, match="5 and must be even"):
        SwiGLU()(torch.zeros(2, 5))


def test_feed_forward_has_three_matrices_worth_of_weights():
    assert sum(p.numel() for p in FeedForward(6, 10).parameters()) == 3 * 6 * 10


def test_silu_is_on_the_gate_in_a_dense_layer_and_in_an_expert():
    """Mistake 21 of public re-implementations: SiLU on the half of a fused projection that holds the values."""
    torch.manual_seed(0)
    dense, experts, x = FeedForward(6, 10), Experts(1, 6, 10), torch.randn(5, 6)
    with torch.no_grad():
        experts.w_up[0], experts.w_down[0] = dense.w_up, dense.w_down
    (value, gate), down = dense.w_up, dense.w_down
    expected = (x @ value.T * F.silu(x @ gate.T)) @ down.T
    torch.testing.assert_close(dense(x), expected)
    torch.testing.assert_close(experts(x, torch.ones(5, 1), torch.zeros(5, 1, dtype=torch.long)), expected)


def test_a_feed_forward_at_birth_passes_on_about_the_size_of_its_input():
    torch.manual_seed(0)
    assert 0.2 < FeedForward(64, 128)(torch.randn(100, 64)).std() < 1.5
