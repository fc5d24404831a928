"""Sparse dispatch: three forms of one grouped matmul, their layouts, and that two of them never ask the device."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import TINY_MODELS, every_architecture, random_tokens
from utils.grouped import count_choices, gather, group_by_expert, grouped_linear, pick_form
from utils.moe import Experts
from utils.muonclip import MuonClip
from utils.sdpa import largest_logits

needs_grouped_mm = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no F.grouped_mm")
every_form = pytest.mark.parametrize("form", ["loop", "tiles", pytest.param("grouped_mm", marks=needs_grouped_mm)])
forms_of_a_gpu = pytest.mark.parametrize("form", ["tiles", pytest.param("grouped_mm", marks=needs_grouped_mm)])
EXACT_FORMS = ["loop", "tiles"]  # grouped_mm has no float64
DISTRIBUTIONS = ["balanced", "random", "to one", "some empty", "skewed"]
every_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)
SIZES = [(1, 1, 1), (1, 2, 4), (7, 2, 5), (40, 3, 8), (33, 4, 4), (5, 1, 12), (75, 2, 2), (200, 2, 3)]  # N, K, E
every_size = pytest.mark.parametrize("n_tokens, top_k, n_experts", SIZES)


def choices(distribution, n_tokens, top_k, n_experts, seed=0):
    """Chosen experts (N, K)."""
    generator = torch.Generator().manual_seed(seed)
    if distribution == "balanced":
        return (torch.arange(n_tokens * top_k) % n_experts).view(n_tokens, top_k)
    if distribution == "to one":
        return torch.full((n_tokens, top_k), seed % n_experts)
    liking = torch.rand(n_tokens, n_experts, generator=generator)
    if distribution == "some empty":  # every other expert, as far as there are enough
        liking[:, 1::2] -= 1.0
    if distribution == "skewed":
        liking += torch.linspace(1, 0, n_experts)
    return liking.topk(top_k).indices


def tensors(chosen, n_experts, n=8, m=16, dtype=torch.double, seed=0):
    """Tokens (N, n), weights (E, m, n) and the gradient of the result, (N * K, m)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (len(chosen), n), (n_experts, m, n), (chosen.numel(), m)
    x, weight, upstream = (torch.randn(s, generator=generator, dtype=torch.double).to(dtype) for s in shapes)
    return x.requires_grad_(), weight.requires_grad_(), upstream


def row_by_row(x, weight, chosen):
    """What each choice of an expert gives, (N * K, m), one matrix and one vector at a time."""
    return torch.stack([weight[e] @ x[token] for token, experts in enumerate(chosen.tolist()) for e in experts])


def in_groups(form, x, weight, chosen):
    groups = group_by_expert(chosen, len(weight), form)
    return grouped_linear(gather(x, groups), weight, groups).index_select(0, groups.row)


def with_gradients(y, x, weight, upstream):
    return [y, *torch.autograd.grad(y, (x, weight), upstream)]


def expert_of_rows(groups, n_experts):
    """The expert whose matrix each row of the layout meets."""
    if groups.form == "loop":
        return torch.arange(n_experts).repeat_interleave(torch.tensor(groups.sizes))
    if groups.form == "tiles":
        return groups.sizes.repeat_interleave(len(groups.token) // len(groups.sizes))
    starts = [0, *groups.sizes.tolist()]
    return torch.arange(n_experts).repeat_interleave(torch.tensor(starts).diff())


# Numbers


@pytest.mark.parametrize("form", EXACT_FORMS)
@every_distribution
@every_size
def test_every_row_meets_the_matrix_of_its_expert(form, distribution, n_tokens, top_k, n_experts):
    for seed in range(3):
        chosen = choices(distribution, n_tokens, top_k, n_experts, seed)
        x, weight, upstream = tensors(chosen, n_experts, seed=seed)
        expected = with_gradients(row_by_row(x, weight, chosen), x, weight, upstream)
        got = with_gradients(in_groups(form, x, weight, chosen), x, weight, upstream)
        for ours, reference in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, reference, atol=1e-10, rtol=1e-10)


@needs_grouped_mm
@pytest.mark.parametrize("dtype, tolerance", [(torch.float, 1e-5), (torch.bfloat16, 2**-6)])
@every_distribution
@every_size
def test_torchs_kernel_gives_the_same(dtype, tolerance, distribution, n_tokens, top_k, n_experts):
    chosen = choices(distribution, n_tokens, top_k, n_experts, seed=1)
    x, weight, upstream = tensors(chosen, n_experts, dtype=dtype)
    got = with_gradients(in_groups("grouped_mm", x, weight, chosen), x, weight, upstream)
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    expected = with_gradients(row_by_row(*exact, chosen), *exact, upstream.double())
    for ours, reference in zip(got, expected, strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - reference).abs().max() <= tolerance * reference.abs().max()


@every_form
def test_experts_without_a_token_get_a_gradient_of_zero(form):
    chosen = choices("to one", 20, 2, 5, seed=3)
    x, weight, upstream = tensors(chosen, 5, dtype=torch.float)
    _, _, grad = with_gradients(in_groups(form, x, weight, chosen), x, weight, upstream)
    assert grad.flatten(1).any(dim=1).tolist() == [False, False, False, True, False]


@every_form
def test_under_autocast_rows_are_in_its_format_and_gradients_in_that_of_the_weights(form):
    chosen = choices("random", 30, 2, 4)
    x, weight, upstream = tensors(chosen, 4, dtype=torch.float)
    with torch.autocast("cpu", torch.bfloat16):
        y = in_groups(form, x, weight, chosen)
    assert y.dtype == torch.bfloat16
    _, *grads = with_gradients(y, x, weight, upstream.bfloat16())
    assert [g.dtype for g in grads] == [torch.float32] * 2
    rounded = [t.detach().bfloat16().double().requires_grad_() for t in (x, weight)]
    expected = with_gradients(row_by_row(*rounded, chosen), *rounded, upstream.bfloat16().double())
    for ours, reference in zip([y, *grads], expected, strict=True):
        assert (ours.double() - reference).abs().max() <= 2**-6 * reference.abs().max()


@every_architecture
@forms_of_a_gpu
def test_a_whole_model_has_the_same_loss_and_gradients_in_every_form(architecture, form, monkeypatch):
    results = []
    for chosen_form in ("loop", form):
        monkeypatch.setattr("utils.moe.pick_form", lambda x, dtype, chosen_form=chosen_form: chosen_form)
        model = TINY_MODELS[architecture]()
        tokens = random_tokens(3, 14)
        loss = model.loss(tokens[:, :-1], tokens[:, 1:]) + 0.1 * model.balance_loss()
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_a_model_asks_for_the_form_in_the_format_that_it_computes_in(monkeypatch):
    asked = []
    monkeypatch.setattr("utils.moe.pick_form", lambda x, dtype: asked.append((x.shape[-1], dtype)) or "tiles")
    model = TINY_MODELS["nano"]()
    model(random_tokens(2, 9))
    with torch.autocast("cpu", torch.bfloat16):
        model(random_tokens(2, 9))
    assert asked == [(32, torch.float32)] * 2 + [(32, torch.bfloat16)] * 2


@every_form
def test_a_single_token_gets_what_it_gets_among_others(form, monkeypatch):
    monkeypatch.setattr("utils.moe.pick_form", lambda x, dtype: form)
    torch.manual_seed(0)
    experts, x = Experts(5, 16, 24), torch.randn(6, 16)
    weights, chosen = torch.rand(6, 2), choices("random", 6, 2, 5)
    results = []
    for tokens in (slice(0, 1), slice(0, 6)):
        y = experts(x[tokens], weights[tokens], chosen[tokens])[:1]
        results.append([y, *torch.autograd.grad(y.square().sum(), list(experts.parameters()))])
    for alone, among in zip(*results, strict=True):
        torch.testing.assert_close(alone, among, atol=1e-5, rtol=1e-5)


# Layouts


@every_form
@every_distribution
@every_size
def test_every_choice_has_a_row_of_its_own_with_its_token_among_those_of_its_expert(
    form, distribution, n_tokens, top_k, n_experts
):
    for seed in range(5):
        chosen = choices(distribution, n_tokens, top_k, n_experts, seed)
        groups = group_by_expert(chosen, n_experts, form)
        assert groups.form == form and groups.row.shape == (chosen.numel(),)
        assert len(set(groups.row.tolist())) == chosen.numel()
        tokens = torch.arange(n_tokens).repeat_interleave(top_k)
        assert torch.equal(groups.token[groups.row], tokens)
        expert_of = expert_of_rows(groups, n_experts)
        assert len(expert_of) == len(groups.token)
        assert torch.equal(expert_of[groups.row], chosen.flatten())


@every_form
@every_distribution
def test_the_rows_of_one_expert_are_one_after_the_other_and_experts_in_order(form, distribution):
    chosen = choices(distribution, 40, 3, 8)
    groups = group_by_expert(chosen, 8, form)
    last = -1
    for e in range(8):
        rows = groups.row[chosen.flatten() == e].sort().values.tolist()
        if rows:
            assert rows == list(range(rows[0], rows[0] + len(rows))) and rows[0] > last
            last = rows[-1]


@forms_of_a_gpu
@every_size
def test_shapes_depend_on_the_number_of_tokens_alone(form, n_tokens, top_k, n_experts):
    shapes = set()
    for distribution in DISTRIBUTIONS:
        for seed in range(3):
            groups = group_by_expert(choices(distribution, n_tokens, top_k, n_experts, seed), n_experts, form)
            shapes.add((groups.token.shape, groups.row.shape, groups.sizes.shape))
    assert len(shapes) == 1


@pytest.mark.parametrize("n_tokens, top_k, n_experts", [(64, 2, 8), (320, 3, 8), (4096, 2, 16)])
def test_tiles_compute_a_quarter_more_rows_at_most(n_tokens, top_k, n_experts):
    chosen = choices("random", n_tokens, top_k, n_experts)
    assert len(group_by_expert(chosen, n_experts, "tiles").token) <= 1.25 * chosen.numel()
    assert len(group_by_expert(chosen, n_experts, "grouped_mm").token) == chosen.numel()


@every_distribution
def test_the_loop_meets_few_shapes_in_training_and_no_filling_in_decoding(distribution):
    many, few = choices(distribution, 400, 2, 4), choices(distribution, 100, 2, 4)
    sizes = group_by_expert(many, 4, "loop").sizes
    counts = torch.bincount(many.flatten(), minlength=4).tolist()
    assert all(size % 64 == 0 and 0 <= size - count < 64 for size, count in zip(sizes, counts, strict=True))
    assert group_by_expert(few, 4, "loop").sizes == torch.bincount(few.flatten(), minlength=4).tolist()


# The device is never asked


@every_distribution
@pytest.mark.parametrize("shape", [(), (7,), (2, 5)])  # of the tokens
def test_choices_are_counted_as_bincount_does(distribution, shape):
    n_tokens = torch.Size(shape).numel()
    chosen = choices(distribution, n_tokens, 3, 6).view(*shape, 3)
    counts = count_choices(chosen, 6)
    assert torch.equal(counts, torch.bincount(chosen.flatten(), minlength=6)) and counts.dtype == torch.long


@forms_of_a_gpu
@pytest.mark.parametrize("n_tokens", [2, 50])
def test_grouping_and_its_gradient_need_no_value_on_the_host(form, n_tokens):
    """Fake tensors have shapes and no values: whoever asks for one, or for a shape made of them, gets an exception."""
    with FakeTensorMode():
        x = torch.randn(n_tokens, 8, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(4, 16, 8, dtype=torch.bfloat16, requires_grad=True)
        chosen = torch.randint(4, (n_tokens, 2))
        y = in_groups(form, x, weight, chosen)
        x_grad, weight_grad = torch.autograd.grad(y, (x, weight), torch.ones(2 * n_tokens, 16, dtype=torch.bfloat16))
        assert count_choices(chosen, 4).shape == (4,)
    assert y.shape == (2 * n_tokens, 16) and x_grad.shape == x.shape and weight_grad.shape == weight.shape


def test_the_loop_asks_and_so_would_bincount():
    """The test above can fail."""
    with FakeTensorMode():
        chosen = torch.randint(4, (50, 2))
        with pytest.raises(DataDependentOutputException):
            group_by_expert(chosen, 4, "loop")
        with pytest.raises(DynamicOutputShapeException):
            torch.bincount(chosen.flatten(), minlength=4)


def training_step(architecture, number_format):
    model = TINY_MODELS[architecture]()
    optimizer = MuonClip(model, tau=1.0, dtype=torch.bfloat16)
    tokens = torch.randint(50, (2, 10))
    with torch.autocast("cpu", torch.bfloat16, enabled=number_format == "bf16"):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:]) + 0.01 * model.balance_loss()
    loss.backward()
    optimizer.step()
    model.end_step_()
    return model


def as_on_a_gpu(q, k, v, scale):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale), largest_logits(q, k, scale)


@every_architecture
@pytest.mark.parametrize(
    "form, number_format",
    [("tiles", "fp32"), ("tiles", "bf16"), pytest.param("grouped_mm", "bf16", marks=needs_grouped_mm)],
)
def test_a_whole_training_step_needs_no_value_on_the_host(architecture, form, number_format, monkeypatch):
    """Loss, balance, backward, MuonClip and the experts' biases: a GPU's queue is never emptied in between."""
    monkeypatch.setattr("utils.moe.pick_form", lambda x, dtype: form)
    monkeypatch.setattr("utils.attention.attend_and_measure", as_on_a_gpu)
    with FakeTensorMode():
        model = training_step(architecture, number_format)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


@every_architecture
def test_a_training_step_with_the_loop_does_need_values(architecture, monkeypatch):
    """The test above can fail."""
    monkeypatch.setattr("utils.moe.pick_form", lambda x, dtype: "loop")
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        training_step(architecture, "fp32")


class Watch(TorchDispatchMode):
    """Raises where a tensor's value is read by the host, or decides on a shape."""

    asking = ("_local_scalar_dense", "item", "nonzero", "bincount", "masked_select", "equal", "unique", "_unique2")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.asking and "repeat_interleave" not in name, f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            assert all(i is None or i.dtype == torch.long for i in args[1]), f"{name} by a mask waits for the device"
        return function(*args, **(kwargs or {}))


@every_architecture
def test_no_operation_of_a_training_step_waits_for_the_device(architecture, monkeypatch):
    monkeypatch.setattr("utils.moe.pick_form", lambda x, dtype: "tiles")
    monkeypatch.setattr("utils.attention.attend_and_measure", as_on_a_gpu)
    with Watch():
        training_step(architecture, "fp32")


@pytest.mark.parametrize(
    "asking", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: bool(x.any())]
)
def test_an_operation_that_waits_is_found_out(asking):
    """The test above can fail."""
    with Watch(), pytest.raises(AssertionError, match="waits for the device"):
        asking(torch.ones(3))


# Which form


def rows_on(device, width):
    return SimpleNamespace(device=torch.device(device), shape=torch.Size([10, width]))


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_without_cuda_the_form_is_the_loop(device):
    for dtype in (torch.float32, torch.bfloat16):
        assert pick_form(rows_on(device, 64), dtype) == "loop"


@pytest.mark.parametrize(
    "capability, expected",
    [((7, 5), "tiles"), ((8, 0), "tiles"), ((8, 6), "tiles"), ((9, 0), "grouped_mm"), ((10, 0), "grouped_mm"),
     ((12, 0), "tiles")],
)  # fmt: skip
def test_torchs_kernel_is_for_the_gpus_that_have_it_and_for_bf16(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(F, "grouped_mm", lambda *a: None, raising=False)
    assert pick_form(rows_on("cuda", 64), torch.bfloat16) == expected
    assert {pick_form(rows_on("cuda", 64), dtype) for dtype in (torch.float16, torch.float32)} == {"tiles"}


def test_rows_that_do_not_begin_at_multiples_of_16_bytes_go_into_tiles(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(F, "grouped_mm", lambda *a: None, raising=False)
    forms = {width: pick_form(rows_on("cuda", width), torch.bfloat16) for width in (8, 12, 20, 24, 30, 33)}
    assert forms == {8: "grouped_mm", 12: "tiles", 20: "tiles", 24: "grouped_mm", 30: "tiles", 33: "tiles"}


def test_a_torch_without_the_kernel_gets_tiles(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.delattr(F, "grouped_mm", raising=False)
    assert pick_form(rows_on("cuda", 64), torch.bfloat16) == "tiles"
