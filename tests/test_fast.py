"""Each hand-written form of `utils.fast` gives what the textbook's form of the same name gives, gradients too."""

import inspect

import pytest
import torch
from torch import nn

from tests.helpers import TINY_MODELS, every_architecture, random_tokens
from utils import attention, loss, moe, norm, swiglu
from utils.config import KimiConfig
from utils.fast import FORMS, speed_up
from utils.fast.newton_schulz import orthogonalise
from utils.model import Kimi
from utils.muonclip import newton_schulz_each
from utils.record import LayerRecord, Record

TEXTBOOK = {
    "attend": attention.attend,
    "cross_entropy": loss.cross_entropy,
    "dropout": torch.nn.functional.dropout,
    "rms_norm": norm.rms_norm,
    "run_experts": moe.run_experts,
    "swiglu": swiglu.swiglu,
}
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"fp32": dict(atol=2e-5, rtol=1e-4), "bf16": dict(atol=3e-2, rtol=3e-2)}
every_format = pytest.mark.parametrize("number_format", FORMATS)


def drawn(*shape, seed=0, number_format="fp32", grad=True) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x.to(FORMATS[number_format]).requires_grad_(grad)


def same_values_and_gradients(name, inputs, number_format, *others):
    """Run both forms on the same inputs; compare what comes out and the gradient of every input."""
    results = []
    for form in (TEXTBOOK[name], FORMS[name]):
        leaves = [t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
        out = form(*leaves, *others)
        weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
        (out.float() * weights).sum().backward()
        results.append((out, [leaf.grad for leaf in leaves]))
    (plain, plain_grads), (fast, fast_grads) = results
    assert fast.dtype == plain.dtype and fast.shape == plain.shape
    torch.testing.assert_close(fast, plain, **TOLERANCE[number_format])
    for ours, theirs in zip(fast_grads, plain_grads, strict=True):
        if theirs is not None:
            scale = theirs.float().abs().max().clamp(min=1)
            torch.testing.assert_close(ours / scale, theirs / scale, **TOLERANCE[number_format])


@pytest.mark.parametrize("name", FORMS)
def test_both_forms_take_the_same_arguments(name):
    ours, theirs = (list(inspect.signature(form).parameters) for form in (FORMS[name], TEXTBOOK[name]))
    assert ours[1:] == theirs[1 : len(ours)]  # torch's dropout calls the first one `input`


@every_format
@pytest.mark.parametrize("length", [1, 7, 64, 150])
def test_attention(number_format, length):
    q, k = (drawn(2, 3, length, 8, seed=s, number_format=number_format) for s in (0, 1))
    v = drawn(2, 3, length, 5, seed=2, number_format=number_format)
    same_values_and_gradients("attend", [q, k, v], number_format, 0.35)


@every_format
@pytest.mark.parametrize("n_queries, mask", [(1, None), (1, [True] * 6 + [False] * 3), (4, None)])
def test_attention_to_more_keys_than_queries(number_format, n_queries, mask):
    q = drawn(2, 3, n_queries, 8, number_format=number_format)
    k, v = (drawn(2, 3, 9, 8, seed=s, number_format=number_format) for s in (1, 2))
    same_values_and_gradients("attend", [q, k, v], number_format, 0.35, mask and torch.tensor(mask))


@every_format
def test_attention_records_the_same_largest_logits(number_format):
    q, k, v = (drawn(2, 3, 130, 8, seed=s, number_format=number_format, grad=False) for s in range(3))
    records = LayerRecord(), LayerRecord()
    for form, record in zip((TEXTBOOK["attend"], FORMS["attend"]), records, strict=True):
        form(q, k, v, 0.35, record=record)
    torch.testing.assert_close(records[1].max_logits, records[0].max_logits, **TOLERANCE[number_format])
    assert records[0].max_logits.dtype == records[1].max_logits.dtype == torch.float32


@every_format
def test_rms_norm(number_format):
    x, weight = drawn(2, 5, 16, number_format=number_format), drawn(16, seed=1)
    same_values_and_gradients("rms_norm", [x, weight], number_format, 1e-6)


@every_format
def test_swiglu(number_format):
    same_values_and_gradients("swiglu", [drawn(2, 5, 14, number_format=number_format)], number_format)


@every_format
@pytest.mark.parametrize("n_tokens", [1, 5, 700])
def test_experts(number_format, n_tokens):
    first = torch.randint(4, (n_tokens,), generator=torch.Generator().manual_seed(3))
    chosen = torch.stack([first, (first + 1) % 4], dim=1)  # (N, K) of six experts, two get nothing
    x, weights = drawn(n_tokens, 12, number_format=number_format), drawn(n_tokens, 2, seed=1).abs()
    w_up, w_down = (drawn(*s, seed=2, number_format=number_format) for s in ((6, 2, 10, 12), (6, 12, 10)))
    results = []
    for form in (TEXTBOOK["run_experts"], FORMS["run_experts"]):
        leaves = [t.detach().clone().requires_grad_() for t in (x, weights, w_up, w_down)]
        out = form(leaves[0], leaves[1], chosen, leaves[2], leaves[3])
        out.float().square().sum().backward()
        results.append((out, *(leaf.grad for leaf in leaves)))
    for ours, theirs in zip(results[1], results[0], strict=True):
        scale = theirs.float().abs().max().clamp(min=1)
        torch.testing.assert_close(ours / scale, theirs / scale, **TOLERANCE[number_format])


@every_format
def test_cross_entropy(number_format):
    hidden = drawn(2, 400, 12, number_format=number_format)
    weight = drawn(30, 12, seed=1, number_format=number_format)
    targets = torch.randint(30, (2, 400), generator=torch.Generator().manual_seed(0))
    same_values_and_gradients("cross_entropy", [hidden, weight], number_format, targets)


def test_dropout_drops_as_many_and_scales_alike():
    x = torch.ones(400_000)
    for p in (0.1, 0.5):
        torch.manual_seed(0)
        plain, fast = TEXTBOOK["dropout"](x, p, True), FORMS["dropout"](x, p, True)
        assert fast.unique().tolist() == pytest.approx(plain.unique().tolist())
        assert (fast == 0).float().mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / len(x)) ** 0.5)
        assert FORMS["dropout"](x, p, False) is x or torch.equal(FORMS["dropout"](x, p, False), x)


def test_newton_schulz():
    shapes = [(6, 4), (4, 6), (3, 2, 8, 4), (5, 5), (6, 4)]
    matrices = [torch.randn(*shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)]
    for ours, theirs in zip(orthogonalise(matrices), newton_schulz_each(matrices), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@every_architecture
@every_format
def test_a_whole_model(architecture, number_format):
    fast = TINY_MODELS[architecture](balance_coef=0.01)
    plain = Kimi(fast.config, fast=False)
    plain.load_state_dict(fast.state_dict())
    x, y = random_tokens(3, 16), random_tokens(3, 16, seed=1)
    results = []
    for model in (plain, fast):
        record = Record()
        with torch.autocast("cpu", torch.bfloat16, enabled=number_format == "bf16"):
            value = model.loss(x, y, record)
        value.backward()
        results.append((value, record, [p.grad for p in model.parameters()]))
    (loss_1, record_1, grads_1), (loss_2, record_2, grads_2) = results
    torch.testing.assert_close(loss_2, loss_1, **TOLERANCE[number_format])
    if number_format == "fp32":
        assert torch.equal(record_1.expert_load(), record_2.expert_load())
        torch.testing.assert_close(record_1.max_logits(), record_2.max_logits(), atol=1e-4, rtol=1e-4)
        for ours, theirs in zip(grads_2, grads_1, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)
    else:  # a token in a hundred may choose another expert: directions still agree
        for ours, theirs in zip(grads_2, grads_1, strict=True):
            if theirs.norm() > 1e-3:
                assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.9


@every_architecture
def test_without_fast_no_part_computes_with_a_fast_form(architecture):
    config = TINY_MODELS[architecture]().config
    plain, fast = Kimi(config, fast=False), Kimi(config)

    def forms(model):
        return {value for part in model.modules() for value in vars(part).values() if inspect.isfunction(value)}

    assert forms(plain) <= set(TEXTBOOK.values()) and forms(fast) <= set(FORMS.values())
    assert len(forms(fast)) == len(forms(plain)) >= 4
    assert {name: p.shape for name, p in plain.named_parameters()} == {n: p.shape for n, p in fast.named_parameters()}


def test_speed_up_changes_only_functions_that_a_part_keeps():
    part = nn.Sequential(swiglu.FeedForward(8, 12), nn.Linear(8, 8))
    speed_up(part)
    assert part[0].swiglu is FORMS["swiglu"] and not hasattr(part[1], "swiglu")


@pytest.mark.parametrize("fast", [True, False])
def test_activation_checkpointing_gives_the_same_gradients(fast):
    """Fault of the first edition: SwiGLU's backward looked at its saved tensors twice, which checkpointing forbids."""
    model = Kimi(KimiConfig.k2_mini(50, block_size=16, d_model=32, n_layers=2, n_experts=4, top_k=2), fast=fast)
    x = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0))
    for block in model.blocks:
        gradients = []
        for run in (block.ffn, lambda t, ffn=block.ffn: torch.utils.checkpoint.checkpoint(ffn, t, use_reentrant=False)):
            leaf = x.clone().requires_grad_()
            run(leaf).square().sum().backward()
            gradients.append(leaf.grad)
        assert torch.equal(*gradients)
