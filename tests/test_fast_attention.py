"""Causal attention: the form in chunks against the textbook's, its gradient, and what it must never build."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import TINY_MODELS, every_architecture
from utils.fast import attention
from utils.fast.attention import attend, largest_logits
from utils.record import LayerRecord

SCALE = 0.37  # no power of two, and not the usual 1 / sqrt(d)
LENGTHS = [1, 63, 64, 65, 130]  # around multiples of the 64 queries of a chunk


def qkv(length, d=6, d_v=6, batch=2, heads=3, dtype=torch.double, seed=0):
    """Queries, keys and values (B, H, T, d), as attention makes them: transposed, so not contiguous."""
    generator = torch.Generator().manual_seed(seed)
    widths = (d, d, d_v)
    made = [torch.randn(batch, length, heads, width, generator=generator, dtype=torch.double) for width in widths]
    return [x.to(dtype).transpose(1, 2).requires_grad_() for x in made]


def textbook_logits(q, k, scale=SCALE):
    """(B, H, T, S) with -inf where a query would look ahead; the queries are the last of the positions."""
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    place = torch.arange(n_queries)[:, None] + n_keys - n_queries
    logits = torch.einsum("bhtd,bhsd->bhts", q, k) * scale
    return torch.where(torch.arange(n_keys) <= place, logits, -math.inf)


def textbook(q, k, v, scale=SCALE):
    return torch.einsum("bhts,bhsv->bhtv", textbook_logits(q, k, scale).softmax(-1), v)


def with_gradients(function, inputs):
    """[output, gradients of the inputs], with a gradient of the output that is random and not contiguous."""
    output = function(*inputs)
    generator = torch.Generator().manual_seed(9)
    upstream = torch.randn(output.mT.shape, generator=generator, dtype=torch.double).to(output.dtype).mT
    return [output, *torch.autograd.grad(output, inputs, upstream)]


def ours(q, k, v):
    return attend(q, k, v, SCALE)


def measured(q, k, v):
    """(the mixtures, the largest logit of each head)."""
    record = LayerRecord()
    mixed = attend(q, k, v, SCALE, record=record)
    return mixed, record.max_logits


@every_architecture
def test_a_models_attention_is_this_one_by_default(architecture):
    assert {block.attention.attend for block in TINY_MODELS[architecture]().blocks} == {attend}


# Against the textbook


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("d, d_v", [(6, 6), (12, 5), (3, 8)])
def test_attention_in_chunks_and_its_gradient_equal_the_textbooks(length, d, d_v):
    inputs = qkv(length, d, d_v)
    for got, expected in zip(with_gradients(ours, inputs), with_gradients(textbook, inputs), strict=True):
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("length", LENGTHS)
def test_attention_in_chunks_and_its_gradient_equal_torchs(length):
    def torchs(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE)

    inputs = qkv(length, 8, 5)
    for got, expected in zip(with_gradients(ours, inputs), with_gradients(torchs, inputs), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
def test_the_gradient_is_that_of_finite_differences(chunk, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_CHUNK", chunk)
    assert torch.autograd.gradcheck(ours, qkv(7, 3, 2, batch=2, heads=2))


@pytest.mark.parametrize("chunk", [1, 5, 13, 40, 1000])
def test_the_size_of_a_chunk_changes_nothing(chunk, monkeypatch):
    inputs = qkv(40)
    expected = with_gradients(ours, inputs)
    monkeypatch.setattr(attention, "QUERY_CHUNK", chunk)
    for got, whole in zip(with_gradients(ours, inputs), expected, strict=True):
        torch.testing.assert_close(got, whole, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("n_queries", [1, 5, 64, 129, 130])
def test_fewer_queries_than_keys_get_the_last_rows_of_the_whole(n_queries):
    q, k, v = (x.detach() for x in qkv(130, 6, 4))
    expected = textbook(q, k, v)[..., -n_queries:, :]
    torch.testing.assert_close(attend(q[..., -n_queries:, :], k, v, SCALE), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("n_keys", [1, 5, 8])
def test_a_single_query_sees_the_keys_that_exist(n_keys):
    """Of a cache whose buffers are longer than what they hold."""
    q, k, v = (x.detach() for x in qkv(8, 6, 4))
    got = attend(q[..., :1, :], k, v, SCALE, mask=torch.arange(8) < n_keys)
    expected = textbook(q[..., :1, :], k[..., :n_keys, :], v[..., :n_keys, :])
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


def test_another_device_leaves_whole_windows_to_torchs_kernel(monkeypatch):
    """What `attend` asks the kernel for, on a device that only has shapes, is done on the CPU."""
    asked = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **how: asked.append(how) or v)
    q, k, v = (x.detach() for x in qkv(9))
    record = LayerRecord()
    attend(*(x.to("meta") for x in (q, k, v)), SCALE, record=record)
    (how,) = asked
    assert record.max_logits.shape == (3,)
    torch.testing.assert_close(kernel(q, k, v, **how), textbook(q, k, v), atol=1e-10, rtol=1e-10)


# The largest logit


@pytest.mark.parametrize("length", LENGTHS)
def test_the_largest_logit_of_each_head_comes_with_the_mixtures(length):
    q, k, v = qkv(length)
    mixed, largest = measured(q, k, v)
    assert torch.equal(mixed, ours(q, k, v))
    assert largest.shape == (3,) and largest.dtype == torch.float32 and not largest.requires_grad
    torch.testing.assert_close(largest, largest_logits(q, k, SCALE))
    torch.testing.assert_close(largest.double(), textbook_logits(q, k).amax((0, 2, 3)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("n_queries", [1, 5, 64, 130])
def test_the_largest_logits_of_the_last_queries_are_those_of_their_rows(n_queries):
    q, k, v = (x.detach() for x in qkv(130))
    _, largest = measured(q[..., -n_queries:, :], k, v)
    expected = textbook_logits(q, k)[..., -n_queries:, :].amax((0, 2, 3))
    torch.testing.assert_close(largest.double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 5, 11, 256])
def test_the_largest_logits_equal_those_of_a_search_through_all(chunk, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, 11, 8, generator=generator) for _ in range(2))
    expected = [
        max(0.5 * q[b, h, i].dot(k[b, h, j]).item() for b in range(2) for i in range(11) for j in range(i + 1))
        for h in range(3)
    ]
    torch.testing.assert_close(largest_logits(q, k, 0.5), torch.tensor(expected))


@pytest.mark.parametrize("chunk", [2, 256])
def test_a_huge_logit_in_the_future_does_not_count(chunk, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_CHUNK", chunk)
    q, k = torch.ones(1, 1, 6, 4), torch.ones(1, 1, 6, 4)
    q[..., 2, :] = 100
    k[..., 3, :] = 100
    q[..., 3:, :] = -1  # the huge key is met by these alone
    assert largest_logits(q, k, 1.0).tolist() == [400.0]


def test_the_largest_logits_have_a_sign():
    q = torch.ones(1, 2, 3, 4)
    assert largest_logits(q, -q, 1.0).tolist() == [-4.0, -4.0]


def test_the_largest_logits_are_those_that_the_number_format_has():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, 11, 8, generator=generator).bfloat16() for _ in range(2))
    exact = largest_logits(q.float(), k.float(), 0.25)
    rounded = largest_logits(q, k, 0.25)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0, rtol=2**-8)
    assert torch.equal(rounded, rounded.bfloat16().float())  # the very inputs of the softmax
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(largest_logits(q.float(), k.float(), 0.25), exact)


# The future


@pytest.mark.parametrize("cut", [1, 63, 64, 65, 100])
def test_the_future_changes_neither_output_nor_gradient_of_the_past(cut):
    past, results = qkv(130), []
    for seed in (1, 2):
        future = qkv(130, seed=seed)
        inputs = [torch.cat([p[..., :cut, :], 50 * f[..., cut:, :]], dim=2) for p, f in zip(past, future, strict=True)]
        seen = [x.detach().requires_grad_() for x in inputs]
        output = ours(*seen)[..., :cut, :]
        results.append([output, *torch.autograd.grad(output.square().sum(), seen)])
    (output, *grads), (again, *grads_then) = results
    torch.testing.assert_close(output, again, atol=1e-12, rtol=0)
    for grad, then in zip(grads, grads_then, strict=True):
        torch.testing.assert_close(grad[..., :cut, :], then[..., :cut, :], atol=1e-12, rtol=0)
        assert grad[..., cut:, :].count_nonzero() == 0


# Number formats and memory


def test_bf16_gives_what_fp32_gives_up_to_its_rounding():
    """A number of bf16 is off by 2^-9 at most, and a logit of 4 makes a weight that is off by four times that."""
    rough_inputs = qkv(130, 8, 8, dtype=torch.bfloat16)
    fine_inputs = [x.detach().float().requires_grad_() for x in rough_inputs]
    rough, fine = with_gradients(ours, rough_inputs), with_gradients(ours, fine_inputs)
    for got, expected in zip(rough, fine, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.float() - expected).norm() < 2**-6 * expected.norm()
        assert (got.float() - expected).abs().max() < 2**-5 * expected.abs().max()


def test_autocast_does_not_change_the_format_of_the_logits():
    q, k, v = (x.detach().float() for x in qkv(70))
    expected = measured(q, k, v)
    with torch.autocast("cpu", torch.bfloat16):
        got = measured(q, k, v)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


class Sizes(TorchDispatchMode):
    """Remembers the largest tensor that was made."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else [result]
        self.largest = max([self.largest, *(t.numel() for t in made if isinstance(t, torch.Tensor))])
        return result


def test_the_logits_of_all_queries_exist_neither_in_forward_nor_in_backward(monkeypatch):
    monkeypatch.setattr(attention, "QUERY_CHUNK", 8)
    inputs = qkv(64, 4, 4, batch=1, heads=1, dtype=torch.float)
    with Sizes() as forward:
        output = ours(*inputs)
    with Sizes() as backward:
        output.sum().backward()
    for watched in (forward, backward):
        assert 7 * 64 < watched.largest <= 8 * 64  # a chunk of logits was seen, and nothing larger
    with Sizes() as plain:
        textbook(*inputs)
    assert plain.largest == 64 * 64


def test_the_logits_of_all_queries_never_exist_at_once(monkeypatch):
    monkeypatch.setattr(attention, "QUERY_CHUNK", 8)
    q, k, _ = qkv(64, 4, 4, batch=1, heads=1, dtype=torch.float)
    with Sizes() as watched:
        largest_logits(q, k, 1.0)
    assert 7 * 64 < watched.largest <= 8 * 64


def test_half_of_the_weights_are_kept_for_the_gradient(monkeypatch):
    monkeypatch.setattr(attention, "QUERY_CHUNK", 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        ours(*qkv(64, 4, 4, batch=1, heads=1))
    weights = sum(kept) - 4 * 64 * 4  # without q, k, v and the mixtures
    assert 0 < weights <= (64 * 64 + 8 * 64) / 2
