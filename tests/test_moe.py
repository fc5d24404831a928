"""Experts and the two routers: who computes for a token, with what weight, and how the load stays even."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import (
    TINY_CONFIGS,
    TINY_MODELS,
    every_architecture,
    every_expert_on_every_token,
    random_tokens,
    tiny_config,
    tiny_k2_config,
    tiny_k2_model,
)
from utils.config import KimiConfig
from utils.fast import speed_up
from utils.model import PARTS
from utils.moe import Experts, MoE, SigmoidRouter, SoftmaxRouter
from utils.record import LayerRecord, Record

every_form = pytest.mark.parametrize("fast", [False, True], ids=["textbook", "fast"])
GROUPED = dict(n_experts=12, top_k=3, n_group=4, topk_group=2)


def states(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def experts_of(n_experts, d_model, d_ff, fast=False):
    experts = Experts(tiny_config(n_experts=n_experts, top_k=1, d_model=d_model, d_ff=d_ff))
    if fast:
        speed_up(experts)
    return experts


def softmax_router(d_model, n_experts, top_k, **changes):
    return SoftmaxRouter(tiny_config(d_model=d_model, n_experts=n_experts, top_k=top_k, **changes))


def layer_of(architecture, fast=False, **changes):
    """The last layer's router with its experts, and in k2 the shared one."""
    config = TINY_CONFIGS[architecture](**changes)
    moe = PARTS[architecture].feed_forward(config, config.n_layers - 1)
    if fast:
        speed_up(moe)
    return moe


def recorded(router, x):
    """What the router leaves behind when it reads x."""
    record = LayerRecord()
    router(x, record)
    return record


def sigmoid_router(bias=0.3, seed=0, **changes):
    """A router of 12 experts over states of 16 numbers, its bias random."""
    router = SigmoidRouter(tiny_k2_config(**{"d_model": 16, "n_experts": 12, "top_k": 3, **changes}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        router.gate.weight.normal_(std=0.4, generator=generator)
        router.expert_bias.normal_(std=bias, generator=generator)
    return router


def chosen_by_hand(router, x):
    """[(expert, weight), ...] of each token of x (N, D), best biased score first, from the report's formulas."""
    config, answers = router.config, []
    for token in x.double():
        scores = [1 / (1 + math.exp(-row.dot(token).item())) for row in router.gate.weight.double()]
        biased = [s + b for s, b in zip(scores, router.expert_bias.tolist(), strict=True)]
        size = len(scores) // config.n_group
        groups = [range(g * size, (g + 1) * size) for g in range(config.n_group)]
        if config.n_group > 1:
            groups.sort(key=lambda group: -sum(sorted(biased[e] for e in group)[-2:]))
        allowed = [e for group in groups[: config.topk_group] for e in group]
        best = sorted(allowed, key=lambda e: -biased[e])[: config.top_k]
        total = sum(scores[e] for e in best)
        answers.append([(e, config.routed_scaling_factor * scores[e] / total) for e in best])
    return answers


# Experts


@pytest.mark.parametrize("n_experts, top_k, n_tokens", [(8, 2, 50), (4, 4, 50), (5, 1, 3), (8, 2, 700), (3, 1, 193)])
@every_form
def test_sparse_dispatch_equals_every_expert_on_every_token(fast, n_experts, top_k, n_tokens):
    torch.manual_seed(0)
    router = softmax_router(16, n_experts, top_k).double()
    experts = experts_of(n_experts, 16, 24, fast).double()
    x = torch.randn(n_tokens, 16, dtype=torch.double, requires_grad=True)
    results = []
    for dispatch in (experts, lambda *a: every_expert_on_every_token(experts, *a)):
        weights, chosen = router(x)
        y = dispatch(x, weights, chosen)
        params = [x, *router.parameters(), *experts.parameters()]
        results.append([y, *torch.autograd.grad(y.square().sum(), params)])
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-10, rtol=1e-10)


@every_form
def test_only_the_chosen_experts_compute(fast):
    """Mistake 3 of public re-implementations: every expert ran on every token, in the original notebook K times."""
    experts = experts_of(4, 8, 8, fast)
    with torch.no_grad():
        experts.w_up[3] = math.nan  # any work of expert 3 would show
    x, weights = states(6, 8), torch.full((6, 2), 0.5)
    assert experts(x, weights, torch.tensor([[0, 1]] * 6)).isfinite().all()
    assert experts(x, weights, torch.tensor([[0, 1]] * 5 + [[2, 3]]))[:5].isfinite().all()


@every_architecture
@every_form
def test_a_layer_adds_up_its_weighted_experts_and_the_shared_one_as_it_is(fast, architecture):
    moe, x = layer_of(architecture, fast), states(2, 9, 32)
    weights, chosen = (part.flatten(0, 1) for part in moe.router(x))
    expected = every_expert_on_every_token(moe.experts, x.flatten(0, 1), weights, chosen).view_as(x)
    if architecture == "k2":
        value, gate = moe.shared.w_up
        expected = expected + F.linear(F.linear(x, value) * F.silu(F.linear(x, gate)), moe.shared.w_down)
    torch.testing.assert_close(moe(x), expected, atol=1e-5, rtol=1e-4)


@every_form
def test_an_expert_that_no_token_visits_does_not_compute_in_k2(fast):
    moe, record = layer_of("k2", fast), LayerRecord()
    with torch.no_grad():
        moe.router.expert_bias[5] = -10
        moe.experts.w_up[5] = math.nan
    y = moe(states(2, 9, 32), record)
    assert y.isfinite().all() and record.load[5] == 0
    y.sum().backward()
    assert moe.experts.w_down.grad.isfinite().all()


@pytest.mark.parametrize("n_shared", [0, 1, 2])
def test_shared_experts_are_one_as_wide_as_all_of_them(n_shared):
    shared = layer_of("k2", n_shared_experts=n_shared).shared
    assert shared is None if n_shared == 0 else shared.w_up.shape == (2, n_shared * 24, 32)


@every_architecture
def test_a_layer_is_put_together_from_a_router_and_experts(architecture):
    """Whatever their kinds: any router that gives weights and choices, with or without a shared expert."""
    moe, x = layer_of(architecture), states(2, 9, 32)
    weights, chosen = torch.full((2, 9, 1), 3.0), torch.full((2, 9, 1), 2)

    class ToOne(torch.nn.Module):
        def forward(self, x, record=None):
            return weights, chosen

    alone = MoE(ToOne(), moe.experts)
    value, gate = (F.linear(x, w) for w in moe.experts.w_up[2])
    expected = 3 * F.linear(value * F.silu(gate), moe.experts.w_down[2])
    torch.testing.assert_close(alone(x), expected)


# Routers


def test_the_weights_of_a_token_sum_to_one():
    """Fault of the original notebook: a token's expert weights summed to anything."""
    router = softmax_router(16, 6, 3)
    weights, chosen = router(states(40, 16))
    torch.testing.assert_close(weights.sum(-1), torch.ones(40))
    assert all(len(set(row)) == 3 for row in chosen.tolist())


def test_the_weights_are_a_softmax_over_the_largest_logits():
    router = softmax_router(4, 4, 2)
    with torch.no_grad():
        router.gate.weight.copy_(torch.eye(4))
    weights, chosen = router(torch.tensor([[0.0, 2.0, -1.0, 1.0]]))
    assert chosen.tolist() == [[1, 3]]
    torch.testing.assert_close(weights, torch.tensor([[math.e / (1 + math.e), 1 / (1 + math.e)]]))


@every_architecture
def test_the_router_counts_the_tokens_of_each_expert(architecture):
    model, record = TINY_MODELS[architecture](), Record()
    model(random_tokens(3, 8), record=record)
    load = record.expert_load()
    assert load.shape == (2, model.config.n_experts)
    assert load.sum(-1).tolist() == [3 * 8 * 2] * 2
    for layer, counts in zip(model.layers_with_experts(), load.tolist(), strict=True):
        chosen = record.layers[layer].chosen.flatten().tolist()
        assert counts == [chosen.count(e) for e in range(model.config.n_experts)]


@every_architecture
def test_a_router_remembers_nothing_and_a_record_what_it_chose(architecture):
    router, x, record = layer_of(architecture).router, states(2, 9, 32), LayerRecord()
    before = dict(vars(router))
    weights, chosen = router(x, record)
    assert torch.equal(record.chosen, chosen)
    assert {name for name, value in vars(router).items() if value is not before[name]} == set()
    assert all(torch.equal(a, b) for a, b in zip(router(x), (weights, chosen), strict=True))  # as without a record


@every_architecture
def test_a_closed_record_refuses_a_router(architecture):
    router, x, record = layer_of(architecture).router, states(2, 9, 32), Record()
    router(x, record.layers[0])
    load = record.expert_load()
    record.close()
    with pytest.raises(ValueError, match=r"this record's step is over: .* new Record\(\)"):
        router(x, record.layers[0])
    assert torch.equal(record.expert_load(), load)


def test_the_weights_of_a_k2_token_sum_to_the_routed_scaling_factor():
    weights, chosen = sigmoid_router()(states(4, 10, 16))
    torch.testing.assert_close(weights.sum(-1), torch.full((4, 10), 2.827))
    assert all(len(set(row)) == 3 for row in chosen.flatten(0, 1).tolist())


@pytest.mark.parametrize("changes", [{}, GROUPED, {**GROUPED, "topk_group": 3, "top_k": 5}, {"top_k": 12}])
def test_routing_equals_the_formulas_token_by_token(changes):
    """Also that scores are weighed without the bias, which is random here."""
    router, x = sigmoid_router(**changes), states(60, 16)
    weights, chosen = router(x)
    for ws, es, by_hand in zip(weights.tolist(), chosen.tolist(), chosen_by_hand(router, x), strict=True):
        assert es == [e for e, _ in by_hand]
        assert ws == pytest.approx([w for _, w in by_hand], rel=1e-5)


def test_groups_matter_unless_all_of_them_are_kept():
    x = states(200, 16)
    free, some, all_kept = (sigmoid_router(n_group=n, topk_group=kept)(x) for n, kept in ((1, 1), (4, 2), (4, 4)))
    assert torch.equal(free[1], all_kept[1]) and torch.equal(free[0], all_kept[0])
    assert not torch.equal(free[1], some[1])
    groups = (some[1] // 3).tolist()
    assert max(len(set(row)) for row in groups) == 2


def test_the_bias_chooses_and_never_weighs():
    """Mistake 4 of public re-implementations: the bias in the weights, or inside the sigmoid."""
    router, x = sigmoid_router(), states(50, 16)
    _, chosen = router(x)
    with torch.no_grad():
        router.expert_bias[7] = 5.0  # far beyond any score
    forced, chosen_then = router(x)
    assert (chosen != 7).all(-1).any() and (chosen_then == 7).any(-1).all()
    scores = (x @ router.gate.weight.T).sigmoid().gather(-1, chosen_then)
    torch.testing.assert_close(forced, 2.827 * scores / scores.sum(-1, keepdim=True))
    with torch.no_grad():
        router.expert_bias.fill_(-3.0)  # the same for all: as good as none
    assert torch.equal(router(x)[1], sigmoid_router(bias=0.0)(x)[1])
    torch.testing.assert_close(router(x)[0], sigmoid_router(bias=0.0)(x)[0])


def test_adding_one_number_to_every_bias_changes_nothing():
    router, x = sigmoid_router(), states(50, 16)
    weights, chosen = router(x)
    router.expert_bias += 0.5
    assert torch.equal(router(x)[0], weights) and torch.equal(router(x)[1], chosen)


@pytest.mark.parametrize("changes", [{}, GROUPED])
def test_how_many_dimensions_a_batch_has_changes_nothing(changes):
    router, x = sigmoid_router(balance_coef=0.01, **changes), states(2, 3, 5, 16)
    weights, chosen = router(x)
    flat_weights, flat_chosen = router(x.flatten(0, 1))
    assert torch.equal(chosen.flatten(0, 1), flat_chosen) and torch.equal(weights.flatten(0, 1), flat_weights)
    token_weights, token_chosen = router(x[1, 2])
    assert torch.equal(chosen[1, 2], token_chosen)
    torch.testing.assert_close(weights[1, 2], token_weights)
    torch.testing.assert_close(recorded(router, x).balance_loss, recorded(router, x.flatten(0, 1)).balance_loss)


def test_masked_groups_are_out_even_when_every_biased_score_is_negative():
    """Mistake 5 of public re-implementations: left-out groups masked with 0, which beats a negative biased score."""
    router, x = sigmoid_router(**GROUPED), states(50, 16)
    weights, chosen = router(x)
    router.expert_bias -= 4.0
    lowered, chosen_then = router(x)
    assert torch.equal(chosen, chosen_then) and torch.equal(weights, lowered)
    assert (chosen // 3).sort(-1).values.diff(dim=-1).count_nonzero(-1).max() <= 1  # two groups at most


def test_gradient_reaches_the_gate_through_the_selected_scores_alone():
    router, x = sigmoid_router(), states(1, 16)
    weights, chosen = router(x)
    (grad,) = torch.autograd.grad((weights * torch.tensor([1.0, -2.0, 3.0])).sum(), router.gate.weight)
    assert grad.abs().sum(-1).nonzero().flatten().tolist() == sorted(chosen[0].tolist())


def test_the_bias_of_the_experts_is_a_buffer_that_stays_fp32():
    """Mistake 6 of public re-implementations: the bias trained by gradient, decayed, or kept in bf16."""
    model = tiny_k2_model()
    router = model.routers()[0]
    assert "expert_bias" not in dict(router.named_parameters()) and not router.expert_bias.requires_grad
    assert "blocks.1.ffn.router.expert_bias" in model.state_dict()
    router.expert_bias.fill_(0.5).add_(0.001)  # in bf16 this is 0.5 again
    value = router.expert_bias.clone()
    for change in (torch.bfloat16, torch.double, torch.half, torch.float):
        model.to(change)
        assert router.gate.weight.dtype == change
        assert router.expert_bias.dtype == torch.float32 and torch.equal(router.expert_bias, value)
        assert not router.expert_bias.requires_grad
    model.bfloat16()
    model.load_state_dict(model.state_dict())
    assert torch.equal(model.routers()[0].expert_bias, value)
    weights, _ = router(states(2, 3, 32).bfloat16())
    assert weights.dtype == torch.float32


@pytest.mark.parametrize("d_model", [8, 32, 7168])
def test_the_bias_exists_at_every_width(d_model):
    """Mistake 7 of public re-implementations: the bias is there at the published width only."""
    with torch.device("meta"):
        router = SigmoidRouter(KimiConfig.k2(d_model=d_model))
    assert router.expert_bias.shape == (384,)


def test_scores_are_in_fp32_under_autocast():
    router, x = sigmoid_router(), states(2, 30, 16)
    weights, chosen = router(x)
    with torch.autocast("cpu", torch.bfloat16):
        again, chosen_then = router(x)
    assert torch.equal(weights, again) and torch.equal(chosen, chosen_then)


def test_the_published_scaling_factor_gives_experts_the_size_of_one():
    """2.827 is the mean of 1 / sqrt(sum p^2), p the weights of a token with random logits (Moonlight, app. C)."""
    scores = states(4000, 384).sigmoid()
    top = scores.topk(8).values
    p = top / top.sum(-1, keepdim=True)
    assert p.square().sum(-1).rsqrt().mean().item() == pytest.approx(2.8276, abs=0.002)
    assert KimiConfig.k2().routed_scaling_factor == pytest.approx(2.8276, abs=0.001)


# Balance


def picking_router(n_experts=4, top_k=1, **changes):
    """A router for tokens of `top_k` ones and else zeros, which like the experts of those places."""
    router = sigmoid_router(d_model=n_experts, n_experts=n_experts, top_k=top_k, bias_rate=0.01, **changes)
    with torch.no_grad():
        router.gate.weight.copy_(200 * torch.eye(n_experts) - 100 / top_k)
        router.expert_bias.zero_()
    return router


def test_the_bias_moves_by_the_sign_of_what_is_missing():
    router = picking_router()
    router.update_bias_(recorded(router, torch.eye(4)[[0, 0, 0, 0, 1, 1, 2, 2]]).load)  # the mean is 2
    torch.testing.assert_close(router.expert_bias, torch.tensor([-0.01, 0.0, 0.0, 0.01]))
    router.update_bias_(recorded(router, torch.eye(4)[[3, 3, 3, 1, 2, 1, 2, 0]]).load)  # the earlier step is forgotten
    torch.testing.assert_close(router.expert_bias, torch.zeros(4))


def test_the_bias_moves_once_by_the_counts_of_all_micro_batches():
    x = states(6, 8, 16)
    whole, parts = sigmoid_router(), sigmoid_router()
    before, record = whole.expert_bias.clone(), LayerRecord()
    for part in x.split([1, 2, 3]):
        parts(part, record)
    load = recorded(whole, x).load
    assert torch.equal(record.load, load) and torch.equal(before, parts.expert_bias)
    whole.update_bias_(load)
    parts.update_bias_(record.load)
    assert torch.equal(whole.expert_bias, parts.expert_bias)
    assert (whole.expert_bias - before).abs().max().item() == pytest.approx(0.01, rel=1e-3)


def test_evaluation_leaves_the_bias_and_its_counts():
    """The record of the step does not know of a forward that did not get it, whatever the mode."""
    model, record = tiny_k2_model(), Record()
    model(random_tokens(2, 8), record=record)
    before, load = {name: b.clone() for name, b in model.named_buffers()}, record.expert_load()
    model.eval()(random_tokens(2, 8, seed=1))
    model(random_tokens(2, 8, seed=2), record=Record())
    assert torch.equal(record.expert_load(), load)
    model.end_step_(Record())  # the record of no forward at all
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())


@pytest.mark.parametrize("architecture, moves", [("nano", False), ("k2", True)])
def test_the_end_of_a_step_moves_every_bias_of_the_model(architecture, moves):
    model, record = TINY_MODELS[architecture](), Record()
    before = {name: b.clone() for name, b in model.named_buffers()}
    model(random_tokens(2, 8), record=record)
    model.end_step_(record)
    assert len(before) == (2 if moves else 0)
    assert all(not torch.equal(b, before[name]) for name, b in model.named_buffers())
    again = {name: b.clone() for name, b in model.named_buffers()}
    with pytest.raises(ValueError, match="this record's step is over"):
        model(random_tokens(2, 8), record=record)
    model.end_step_(Record())  # nothing was counted in between
    assert all(torch.equal(b, again[name]) for name, b in model.named_buffers())


def test_the_bias_evens_out_a_skewed_router():
    config = tiny_k2_config(d_model=17, n_experts=48, top_k=4, bias_rate=0.005)
    router, generator = SigmoidRouter(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        router.gate.weight.normal_(std=0.25, generator=generator)
        router.gate.weight[:, -1] = torch.linspace(-1, 1, 48)  # experts that all tokens like, or dislike

    def unevenness():
        x = torch.randn(8192, 17, generator=generator)
        x[:, -1] = 1
        with torch.no_grad():
            load = recorded(router, x[None]).load
        router.update_bias_(load)
        return (load.max() / load.float().mean()).item()

    steps = [unevenness() for _ in range(400)]
    assert steps[0] > 3 and max(steps[-20:]) < 1.3, (steps[0], steps[-20:])


def test_balance_loss_is_one_when_even_and_experts_over_k_when_collapsed():
    router = softmax_router(4, 4, 1)
    with torch.no_grad():
        router.gate.weight.copy_(50 * torch.eye(4))
    assert recorded(router, torch.eye(4).repeat(5, 1)).balance_loss.item() == pytest.approx(1)
    assert recorded(router, torch.eye(4)[:1].repeat(20, 1)).balance_loss.item() == pytest.approx(4)


@pytest.mark.parametrize("top_k", [1, 3])
def test_the_balance_loss_of_a_sequence_is_one_when_even_and_experts_over_k_when_collapsed(top_k):
    router = picking_router(12, top_k, balance_coef=0.01)
    like = torch.stack([torch.eye(12).roll(e, 0)[:top_k].sum(0) for e in range(12)])  # (T, E)
    assert recorded(router, like[None]).balance_loss.item() == pytest.approx(1, rel=1e-4)
    collapsed = torch.stack([like[:1].expand(12, -1), like[5:6].expand(12, -1)])
    loss = recorded(router, collapsed).balance_loss  # two sequences, each on its own experts: as uneven as can be
    assert loss.item() == pytest.approx(12 / top_k, rel=1e-4)


def test_the_balance_loss_is_the_papers_and_its_counts_carry_no_gradient():
    router, x = sigmoid_router(balance_coef=0.01), states(3, 8, 16)
    record = recorded(router, x)
    loss, chosen = record.balance_loss, record.chosen
    (grad,) = torch.autograd.grad(loss, router.gate.weight)
    expected = 0
    for sequence, picks in zip(x, chosen.tolist(), strict=True):
        scores = (sequence @ router.gate.weight.T).sigmoid()
        mean_share = (scores / scores.sum(-1, keepdim=True)).mean(0)
        for i in range(12):
            share_of_choices = 12 / (3 * 8) * sum(i in row for row in picks)  # a plain number
            expected = expected + share_of_choices * mean_share[i] / 3
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, router.gate.weight)[0])


@every_architecture
def test_the_balance_loss_reaches_the_router(architecture):
    moe, record = layer_of(architecture, balance_coef=0.01), LayerRecord()
    moe(states(2, 8, 32), record)
    (grad,) = torch.autograd.grad(record.balance_loss, moe.router.gate.weight)
    assert grad.abs().sum() > 0


@pytest.mark.parametrize("score", [1e-25, 1e-35, 0.5])
def test_tiny_scores_of_all_experts_still_make_whole_weights(score):
    """Fault of the first edition: 1e-20 was added to their sum, so scores of 1e-25 gave weights of nearly 0."""
    router = SigmoidRouter(tiny_k2_config(balance_coef=0.1))
    with torch.no_grad():
        router.gate.weight.fill_(math.log(score / (1 - score)) / router.config.d_model)
    x = torch.ones(2, 3, router.config.d_model, requires_grad=True)
    record = LayerRecord()
    weights, _ = router(x, record)
    total = weights.sum(dim=-1)
    torch.testing.assert_close(total, torch.full_like(total, router.config.routed_scaling_factor))
    assert record.balance_loss.item() == pytest.approx(1, rel=1e-4)  # every expert has the same share
    (weights.square().sum() + record.balance_loss).backward()
    assert x.grad.isfinite().all() and router.gate.weight.grad.isfinite().all()
