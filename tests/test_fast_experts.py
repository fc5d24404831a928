"""Sparse dispatch: three backends of one grouped matmul, their layouts, and that two of them never ask the device."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import TINY_MODELS, every_architecture, random_tokens, tiny_config
from utils.fast.attention import largest_logits
from utils.fast.experts import gather, group_by_expert, grouped_linear, pick_backend, run_experts
from utils.fast.newton_schulz import orthogonalise
from utils.moe import Experts
from utils.muonclip import MuonClip
from utils.record import Record, count_choices

PICK_BACKEND = "utils.fast.experts.pick_backend"
needs_grouped_mm = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no F.grouped_mm")
every_backend = pytest.mark.parametrize(
    "backend", ["loop", "tiles", pytest.param("grouped_mm", marks=needs_grouped_mm)]
)
backends_of_a_gpu = pytest.mark.parametrize("backend", ["tiles", pytest.param("grouped_mm", marks=needs_grouped_mm)])
EXACT_BACKENDS = ["loop", "tiles"]  # grouped_mm has no float64
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


def in_groups(backend, x, weight, chosen):
    groups = group_by_expert(chosen, len(weight), backend)
    return grouped_linear(gather(x, groups), weight, groups).index_select(0, groups.row_of_choice)


def with_gradients(y, x, weight, upstream):
    return [y, *torch.autograd.grad(y, (x, weight), upstream)]


def expert_of_rows(groups, n_experts):
    """The expert whose matrix each row of the layout meets."""
    if groups.backend == "loop":
        return torch.arange(n_experts).repeat_interleave(torch.tensor(groups.sizes))
    if groups.backend == "tiles":
        return groups.sizes.repeat_interleave(len(groups.token_of_row) // len(groups.sizes))
    starts = [0, *groups.sizes.tolist()]
    return torch.arange(n_experts).repeat_interleave(torch.tensor(starts).diff())


# Numbers


@pytest.mark.parametrize("backend", EXACT_BACKENDS)
@every_distribution
@every_size
def test_every_row_meets_the_matrix_of_its_expert(backend, distribution, n_tokens, top_k, n_experts):
    for seed in range(3):
        chosen = choices(distribution, n_tokens, top_k, n_experts, seed)
        x, weight, upstream = tensors(chosen, n_experts, seed=seed)
        expected = with_gradients(row_by_row(x, weight, chosen), x, weight, upstream)
        got = with_gradients(in_groups(backend, x, weight, chosen), x, weight, upstream)
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


@every_backend
def test_experts_without_a_token_get_a_gradient_of_zero(backend):
    chosen = choices("to one", 20, 2, 5, seed=3)
    x, weight, upstream = tensors(chosen, 5, dtype=torch.float)
    _, _, grad = with_gradients(in_groups(backend, x, weight, chosen), x, weight, upstream)
    assert grad.flatten(1).any(dim=1).tolist() == [False, False, False, True, False]


@every_backend
def test_under_autocast_rows_are_in_its_format_and_gradients_in_that_of_the_weights(backend):
    chosen = choices("random", 30, 2, 4)
    x, weight, upstream = tensors(chosen, 4, dtype=torch.float)
    with torch.autocast("cpu", torch.bfloat16):
        y = in_groups(backend, x, weight, chosen)
    assert y.dtype == torch.bfloat16
    _, *grads = with_gradients(y, x, weight, upstream.bfloat16())
    assert [g.dtype for g in grads] == [torch.float32] * 2
    rounded = [t.detach().bfloat16().double().requires_grad_() for t in (x, weight)]
    expected = with_gradients(row_by_row(*rounded, chosen), *rounded, upstream.bfloat16().double())
    for ours, reference in zip([y, *grads], expected, strict=True):
        assert (ours.double() - reference).abs().max() <= 2**-6 * reference.abs().max()


@every_architecture
@backends_of_a_gpu
def test_a_whole_model_has_the_same_loss_and_gradients_with_every_backend(architecture, backend, monkeypatch):
    results = []
    for chosen_backend in ("loop", backend):
        monkeypatch.setattr(PICK_BACKEND, lambda x, dtype, chosen_backend=chosen_backend: chosen_backend)
        model, record = TINY_MODELS[architecture](balance_coef=0.1), Record()
        tokens = random_tokens(3, 14)
        loss = model.loss(tokens[:, :-1], tokens[:, 1:], record) + 0.1 * record.balance_loss()
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_a_model_asks_for_the_backend_in_the_format_that_it_computes_in(monkeypatch):
    asked = []
    monkeypatch.setattr(PICK_BACKEND, lambda x, dtype: asked.append((x.shape[-1], dtype)) or "tiles")
    model = TINY_MODELS["nano"]()
    model(random_tokens(2, 9))
    with torch.autocast("cpu", torch.bfloat16):
        model(random_tokens(2, 9))
    assert asked == [(32, torch.float32)] * 2 + [(32, torch.bfloat16)] * 2


@every_backend
def test_a_single_token_gets_what_it_gets_among_others(backend, monkeypatch):
    monkeypatch.setattr(PICK_BACKEND, lambda x, dtype: backend)
    torch.manual_seed(0)
    experts, x = Experts(tiny_config(n_experts=5, d_model=16, d_ff=24)), torch.randn(6, 16)
    weights, chosen = torch.rand(6, 2), choices("random", 6, 2, 5)
    results = []
    for tokens in (slice(0, 1), slice(0, 6)):
        y = run_experts(x[tokens], weights[tokens], chosen[tokens], experts.w_up, experts.w_down)[:1]
        results.append([y, *torch.autograd.grad(y.square().sum(), list(experts.parameters()))])
    for alone, among in zip(*results, strict=True):
        torch.testing.assert_close(alone, among, atol=1e-5, rtol=1e-5)


# Layouts


@every_backend
@every_distribution
@every_size
def test_every_choice_has_a_row_of_its_own_with_its_token_among_those_of_its_expert(
    backend, distribution, n_tokens, top_k, n_experts
):
    for seed in range(5):
        chosen = choices(distribution, n_tokens, top_k, n_experts, seed)
        groups = group_by_expert(chosen, n_experts, backend)
        assert groups.backend == backend and groups.row_of_choice.shape == (chosen.numel(),)
        assert len(set(groups.row_of_choice.tolist())) == chosen.numel()
        tokens = torch.arange(n_tokens).repeat_interleave(top_k)
        assert torch.equal(groups.token_of_row[groups.row_of_choice], tokens)
        expert_of = expert_of_rows(groups, n_experts)
        assert len(expert_of) == len(groups.token_of_row)
        assert torch.equal(expert_of[groups.row_of_choice], chosen.flatten())


@every_backend
@every_distribution
def test_the_rows_of_one_expert_are_one_after_the_other_and_experts_in_order(backend, distribution):
    chosen = choices(distribution, 40, 3, 8)
    groups = group_by_expert(chosen, 8, backend)
    last = -1
    for e in range(8):
        rows = groups.row_of_choice[chosen.flatten() == e].sort().values.tolist()
        if rows:
            assert rows == list(range(rows[0], rows[0] + len(rows))) and rows[0] > last
            last = rows[-1]


@backends_of_a_gpu
@every_size
def test_shapes_depend_on_the_number_of_tokens_alone(backend, n_tokens, top_k, n_experts):
    shapes = set()
    for distribution in DISTRIBUTIONS:
        for seed in range(3):
            groups = group_by_expert(choices(distribution, n_tokens, top_k, n_experts, seed), n_experts, backend)
            shapes.add((groups.token_of_row.shape, groups.row_of_choice.shape, groups.sizes.shape))
    assert len(shapes) == 1


@pytest.mark.parametrize("n_tokens, top_k, n_experts", [(64, 2, 8), (320, 3, 8), (4096, 2, 16)])
def test_tiles_compute_a_quarter_more_rows_at_most(n_tokens, top_k, n_experts):
    chosen = choices("random", n_tokens, top_k, n_experts)
    assert len(group_by_expert(chosen, n_experts, "tiles").token_of_row) <= 1.25 * chosen.numel()
    assert len(group_by_expert(chosen, n_experts, "grouped_mm").token_of_row) == chosen.numel()


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


@backends_of_a_gpu
@pytest.mark.parametrize("n_tokens", [2, 50])
def test_grouping_and_its_gradient_need_no_value_on_the_host(backend, n_tokens):
    """Fake tensors have shapes and no values: whoever asks for one, or for a shape made of them, gets an exception."""
    with FakeTensorMode():
        x = torch.randn(n_tokens, 8, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(4, 16, 8, dtype=torch.bfloat16, requires_grad=True)
        chosen = torch.randint(4, (n_tokens, 2))
        y = in_groups(backend, x, weight, chosen)
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


def training_step(model, number_format, attend=None):
    """One step as `train` takes it, but for the loss scaler; attend: what attention computes with instead."""
    for block in model.blocks if attend else ():
        block.attention.attend = attend
    optimizer = MuonClip(model, tau=1.0, orthogonalise=partial(orthogonalise, dtype=torch.bfloat16))
    tokens, record = torch.randint(50, (2, 10)), Record()
    with torch.autocast("cpu", torch.bfloat16, enabled=number_format == "bf16"):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:], record) + 0.01 * record.balance_loss()
    loss.backward()
    optimizer.step(record)
    model.end_step_(record)


def training_step_without_values(architecture, number_format, attend=None):
    """The same with tensors that have shapes and no values; returns the model."""
    mode = FakeTensorMode()
    with FakeCopyMode(mode):
        model = copy.deepcopy(TINY_MODELS[architecture](balance_coef=0.01))
    with mode:
        training_step(model, number_format, attend)
    return model


def as_on_a_gpu(q, k, v, scale, mask=None, record=None):
    record.note_logits(largest_logits(q, k, scale))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)


@every_architecture
@pytest.mark.parametrize(
    "backend, number_format",
    [("tiles", "fp32"), ("tiles", "bf16"), pytest.param("grouped_mm", "bf16", marks=needs_grouped_mm)],
)
def test_a_whole_training_step_needs_no_value_on_the_host(architecture, backend, number_format, monkeypatch):
    """Loss, balance, backward, MuonClip and the experts' biases: a GPU's queue is never emptied in between."""
    monkeypatch.setattr(PICK_BACKEND, lambda x, dtype: backend)
    model = training_step_without_values(architecture, number_format, as_on_a_gpu)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


@every_architecture
def test_a_training_step_with_the_loop_does_need_values(architecture, monkeypatch):
    """The test above can fail."""
    monkeypatch.setattr(PICK_BACKEND, lambda x, dtype: "loop")
    with pytest.raises(DataDependentOutputException):
        training_step_without_values(architecture, "fp32", as_on_a_gpu)


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
    monkeypatch.setattr(PICK_BACKEND, lambda x, dtype: "tiles")
    model = TINY_MODELS[architecture](balance_coef=0.01)
    with Watch():
        training_step(model, "fp32", as_on_a_gpu)


@pytest.mark.parametrize(
    "asking", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: bool(x.any())]
)
def test_an_operation_that_waits_is_found_out(asking):
    """The test above can fail."""
    with Watch(), pytest.raises(AssertionError, match="waits for the device"):
        asking(torch.ones(3))


# Which backend


def rows_on(device, width):
    return SimpleNamespace(device=torch.device(device), shape=torch.Size([10, width]))


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_without_cuda_the_backend_is_the_loop(device):
    for dtype in (torch.float32, torch.bfloat16):
        assert pick_backend(rows_on(device, 64), dtype) == "loop"


@pytest.mark.parametrize(
    "capability, expected",
    [((7, 5), "tiles"), ((8, 0), "tiles"), ((8, 6), "tiles"), ((9, 0), "grouped_mm"), ((10, 0), "grouped_mm"),
     ((12, 0), "tiles")],
)  # fmt: skip
def test_torchs_kernel_is_for_the_gpus_that_have_it_and_for_bf16(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(F, "grouped_mm", lambda *a: None, raising=False)
    assert pick_backend(rows_on("cuda", 64), torch.bfloat16) == expected
    assert {pick_backend(rows_on("cuda", 64), dtype) for dtype in (torch.float16, torch.float32)} == {"tiles"}


def test_rows_that_do_not_begin_at_multiples_of_16_bytes_go_into_tiles(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(F, "grouped_mm", lambda *a: None, raising=False)
    backends = {width: pick_backend(rows_on("cuda", width), torch.bfloat16) for width in (8, 12, 20, 24, 30, 33)}
    assert backends == {8: "grouped_mm", 12: "tiles", 20: "tiles", 24: "grouped_mm", 30: "tiles", 33: "tiles"}


def test_a_torch_without_the_kernel_gets_tiles(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.delattr(F, "grouped_mm", raising=False)
    assert pick_backend(rows_on("cuda", 64), torch.bfloat16) == "tiles"
