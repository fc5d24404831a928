"""The model and its parts: attention, SwiGLU, experts, loss."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import every_expert_on_every_token, random_tokens, tiny_config, tiny_model
from utils.attention import KVCache, MultiHeadAttention, causal_mask
from utils.config import KimiConfig
from utils.loss import CHUNK, chunked_cross_entropy
from utils.model import Kimi, count_parameters
from utils.moe import Experts, MoE, SoftmaxRouter
from utils.swiglu import FeedForward, SwiGLU

# Attention


def test_attention_equals_torch_multi_head_attention():
    config = tiny_config()
    ours = MultiHeadAttention(config).double()
    reference = torch.nn.MultiheadAttention(config.d_model, config.n_heads, bias=False, batch_first=True).double()
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([ours.w_q.weight, ours.w_k.weight, ours.w_v.weight]))
        reference.out_proj.weight.copy_(ours.w_o.weight)
    x = torch.randn(2, 7, config.d_model, dtype=torch.double)
    expected, expected_weights = reference(x, x, x, attn_mask=~causal_mask(7, 7), average_attn_weights=False)
    fused = ours(x)
    explicit, weights = ours(x, return_weights=True)
    torch.testing.assert_close(fused, expected)
    torch.testing.assert_close(explicit, expected, atol=1e-6, rtol=1e-6)  # its softmax is in fp32
    torch.testing.assert_close(weights.double(), expected_weights, atol=1e-6, rtol=1e-6)


def test_attention_weights_sum_to_one_and_never_look_ahead():
    attention = MultiHeadAttention(tiny_config())
    _, weights = attention(torch.randn(3, 9, 32), return_weights=True)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 9))
    assert weights.triu(1).count_nonzero() == 0


def test_the_last_queries_of_a_longer_context_get_the_last_rows_of_the_mask():
    assert torch.equal(causal_mask(3, 8), causal_mask(8, 8)[-3:])


def test_a_full_cache_says_how_much_it_holds():
    cache = KVCache(4)
    cache.append(torch.zeros(1, 2, 3, 8))
    with pytest.raises(ValueError, match="holds 4 positions, 5"):
        cache.append(torch.zeros(1, 2, 2, 8))


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 1, 4, 2]])
def test_decoding_with_the_cache_equals_the_full_forward(pieces):
    model, tokens = tiny_model().double().eval(), random_tokens(2, 12)
    cache = model.new_cache()
    logits = [model(part, cache=cache) for part in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(logits, dim=1), model(tokens))


# SwiGLU


def test_swiglu_is_value_times_silu_of_the_second_half():
    value, gate = torch.tensor([[2.0, -3.0]]), torch.tensor([[1.0, -1.0]])
    by_hand = [[2 * 1 / (1 + math.exp(-1)), -3 * -1 / (1 + math.exp(1))]]
    torch.testing.assert_close(SwiGLU()(torch.cat([value, gate], dim=-1)), torch.tensor(by_hand))


def test_swiglu_needs_an_even_width():
    with pytest.raises(ValueError, match="5 and must be even"):
        SwiGLU()(torch.zeros(2, 5))


def test_feed_forward_has_three_matrices_worth_of_weights():
    assert sum(p.numel() for p in FeedForward(6, 10).parameters()) == 3 * 6 * 10


# Experts


@pytest.mark.parametrize("n_experts, top_k, n_tokens", [(8, 2, 50), (4, 4, 50), (5, 1, 3), (8, 2, 700), (3, 1, 193)])
def test_sparse_dispatch_equals_every_expert_on_every_token(n_experts, top_k, n_tokens):
    torch.manual_seed(0)
    router = SoftmaxRouter(16, n_experts, top_k).double()
    experts = Experts(n_experts, 16, 24).double()
    x = torch.randn(n_tokens, 16, dtype=torch.double, requires_grad=True)
    results = []
    for dispatch in (experts, lambda *a: every_expert_on_every_token(experts, *a)):
        weights, chosen = router(x)
        y = dispatch(x, weights, chosen)
        params = [x, *router.parameters(), *experts.parameters()]
        results.append([y, *torch.autograd.grad(y.square().sum(), params)])
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-10, rtol=1e-10)


def test_only_the_chosen_experts_compute():
    """Fault of the original notebook: every expert ran on every token, k times over."""
    experts = Experts(4, 8, 8)
    with torch.no_grad():
        experts.w_up[3] = math.nan  # any work of expert 3 would show
    x, weights = torch.randn(6, 8), torch.full((6, 2), 0.5)
    assert experts(x, weights, torch.tensor([[0, 1]] * 6)).isfinite().all()
    assert experts(x, weights, torch.tensor([[0, 1]] * 5 + [[2, 3]]))[:5].isfinite().all()


def test_the_weights_of_a_token_sum_to_one():
    """Fault of the original notebook: a token's expert weights summed to anything."""
    router = SoftmaxRouter(16, 6, 3)
    weights, chosen = router(torch.randn(40, 16))
    torch.testing.assert_close(weights.sum(-1), torch.ones(40))
    assert all(len(set(row)) == 3 for row in chosen.tolist())


def test_the_weights_are_a_softmax_over_the_largest_logits():
    router = SoftmaxRouter(4, 4, 2)
    with torch.no_grad():
        router.gate.weight.copy_(torch.eye(4))
    weights, chosen = router(torch.tensor([[0.0, 2.0, -1.0, 1.0]]))
    assert chosen.tolist() == [[1, 3]]
    torch.testing.assert_close(weights, torch.tensor([[math.e / (1 + math.e), 1 / (1 + math.e)]]))


def test_the_router_counts_the_tokens_of_each_expert():
    model = tiny_model()
    model(random_tokens(3, 8))
    load = model.expert_load()
    assert load.shape == (2, 4)
    assert load.sum(-1).tolist() == [3 * 8 * 2] * 2


def test_balance_loss_is_one_when_even_and_experts_over_k_when_collapsed():
    router = SoftmaxRouter(4, 4, 1)
    with torch.no_grad():
        router.gate.weight.copy_(50 * torch.eye(4))
    router(torch.eye(4).repeat(5, 1))
    assert router.balance_loss.item() == pytest.approx(1)
    router(torch.eye(4)[:1].repeat(20, 1))
    assert router.balance_loss.item() == pytest.approx(4)


def test_the_balance_loss_reaches_the_router():
    moe = MoE(tiny_config())
    moe(torch.randn(2, 8, 32))
    (grad,) = torch.autograd.grad(moe.router.balance_loss, moe.router.gate.weight)
    assert grad.abs().sum() > 0


# The whole model


def test_the_future_changes_nothing_before_it():
    """Fault of the original notebook: a softmax over time let later tokens change earlier logits."""
    model, tokens = tiny_model().eval(), random_tokens(1, 12)
    before = model(tokens)
    for changed in range(1, 12):
        other = tokens.clone()
        other[0, changed] = (other[0, changed] + 1) % model.config.vocab_size
        after = model(other)
        torch.testing.assert_close(after[:, :changed], before[:, :changed], atol=1e-6, rtol=1e-5)
        assert (after[:, changed] - before[:, changed]).abs().max() > 1e-4


def test_no_gradient_flows_from_a_logit_to_the_future():
    model = tiny_model().double().eval()
    embedded = []
    model.embedding.register_forward_hook(lambda _, __, out: embedded.append(out.requires_grad_()))
    logits = model(random_tokens(1, 10))
    (grad,) = torch.autograd.grad(logits[0, 4].sum(), embedded[0])
    assert grad[0, 5:].count_nonzero() == 0
    assert grad[0, :5].abs().sum(-1).min() > 0


@pytest.mark.parametrize("vocab_size, d_model", [(300, 32), (1000, 256), (8000, 512)])
def test_the_loss_at_birth_is_that_of_a_uniform_guess(vocab_size, d_model):
    model = Kimi(KimiConfig.nano(vocab_size, d_model=d_model, n_layers=2, d_ff=64, block_size=32)).eval()
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randint(vocab_size, (2, 16, 32), generator=generator)
    _, loss = model(x, targets=y)
    assert loss.item() == pytest.approx(math.log(vocab_size), rel=0.02)


def test_the_loss_in_chunks_equals_the_plain_one_with_all_gradients():
    model = tiny_model(vocab_size=97).double().eval()
    x, y = random_tokens(2, 12, 97), random_tokens(2, 12, 97, seed=1)
    gradients = []
    for loss in (model(x, targets=y)[1], model.loss(x, y)):
        gradients.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for plain, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(chunked, plain, atol=1e-6, rtol=1e-6)  # it sums in fp32


@pytest.mark.parametrize("n_tokens", [1, CHUNK - 1, CHUNK, 2 * CHUNK + 3])
def test_chunks_of_any_number_of_tokens_give_torch_cross_entropy(n_tokens):
    torch.manual_seed(0)
    hidden, weight = torch.randn(n_tokens, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    targets = torch.randint(30, (n_tokens,))
    plain, chunked = F.cross_entropy(hidden @ weight.T, targets), chunked_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(chunked, plain)
    for ours, theirs in zip(
        torch.autograd.grad(3 * chunked, [hidden, weight]),
        torch.autograd.grad(3 * plain, [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before():
    first = tiny_model(seed=3).state_dict()
    torch.rand(5)
    second, other = tiny_model(seed=3).state_dict(), tiny_model(seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_parameters_of_the_published_nano_size():
    vocab, d, f, layers, experts, block = 8000, 512, 1024, 6, 4, 256
    total, active = count_parameters(Kimi(KimiConfig.nano(vocab)))
    norms, attention, expert = 4 * d, 4 * d * d, 3 * d * f
    shared = 2 * vocab * d + block * d + layers * (norms + attention + experts * d) + 2 * d
    assert total == shared + layers * experts * expert
    assert active == shared + layers * 2 * expert


def test_every_parameter_gets_a_gradient():
    model = tiny_model(n_experts=2)
    (model.loss(random_tokens(4, 12), random_tokens(4, 12, seed=1)) + model.balance_loss()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.count_nonzero() == 0] == []


def test_too_long_an_input_names_the_block_size():
    with pytest.raises(ValueError, match="17 positions were asked for, the block size is 16"):
        tiny_model()(random_tokens(1, 17))
