"""Attention: the cache, multi-head and latent attention, positions, the largest logits and QK-Clip."""

import copy
import math

import pytest
import torch

from tests.helpers import TINY_CONFIGS, TINY_MODELS, every_architecture, tiny_config, tiny_k2_config, tiny_k2_model
from utils.attention import (
    KVCache,
    MultiHeadAttention,
    MultiHeadLatentAttention,
    attend,
    causal_mask,
    causal_softmax,
    clip_factors,
)
from utils.config import KimiConfig
from utils.fast import speed_up
from utils.fast.attention import largest_logits
from utils.model import Kimi
from utils.positions import LearnedPositions, RotaryPositions, rope, rotary_frequencies
from utils.record import LayerRecord, Record

ATTENTION = {"nano": MultiHeadAttention, "k2": MultiHeadLatentAttention}
YARN = dict(yarn_factor=4.0, yarn_original=8, yarn_beta_fast=2.0, yarn_beta_slow=0.1, qk_rope_head_dim=8)
NO_LATENT = dict(q_lora_rank=0)  # the queries are read from x itself
every_form = pytest.mark.parametrize("fast", [False, True], ids=["textbook", "fast"])


def tiny_attention(architecture, kind=None, std=0.3, seed=0, fast=False, **changes):
    """One attention layer whose logits are far from 0 and whose norm weights are random."""
    attention = (kind or ATTENTION[architecture])(TINY_CONFIGS[architecture](**changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in attention.parameters():
            p.normal_(mean=0.0 if p.ndim > 1 else 1.0, std=std, generator=generator)
    if fast:
        speed_up(attention)
    return attention


def angles_of(attention, start, end):
    """The angles of these positions (end - start, R/2), None for attention that turns nothing."""
    if isinstance(attention, MultiHeadAttention):
        return None
    return torch.outer(torch.arange(start, end, dtype=torch.float), rotary_frequencies(attention.config))


def read(attention, x, cache=None, **more):
    """What the layer makes of x (B, T, D), whose positions follow those of the cache."""
    start = 0 if cache is None else cache.length
    return attention(x, angles_of(attention, start, start + x.shape[1]), cache, **more)


def logits_of(attention, x):
    """The record's largest logit of each head, (H,), after the layer has read x."""
    record = LayerRecord()
    read(attention, x, record=record)
    return record.max_logits


def states(batch, length, width=32, seed=1):
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed))


# References: the formulas in float64, head by head and query by query


def slow_frequencies(config):
    """The angle per position of each pair, YaRN included, from the formulas of the two papers."""
    width, base, rates = config.qk_rope_head_dim, config.rope_theta, []

    def pair_with(turns):  # the pair that turns so often in the original context, as a fraction
        return width * math.log(config.yarn_original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = math.floor(pair_with(config.yarn_beta_fast)), math.ceil(pair_with(config.yarn_beta_slow))
    for i in range(width // 2):
        rate = base ** (-2 * i / width)
        if config.yarn_factor != 1:
            stretched = min(max((i - max(low, 0)) / (min(high, width - 1) - max(low, 0)), 0.0), 1.0)
            rate = rate * (1 - stretched) + rate / config.yarn_factor * stretched
        rates.append(rate)
    return torch.tensor(rates, dtype=torch.double)


def mixtures(logits, values):
    """(T, S) logits of one head and (S, v) values -> what each query gets, looking at no later position."""
    rows = [logits[t, : t + 1].softmax(-1) @ values[: t + 1] for t in range(len(logits))]
    return torch.stack(rows)


def slow_multi_head(attention, x, gamma=None):
    """(output (B, T, D), all logits (B, H, T, T), also those of the future) of multi-head attention."""
    x, weights = x.double(), {name.split(".")[0]: p.detach().double() for name, p in attention.named_parameters()}
    heads, width = attention.n_heads, x.shape[-1] // attention.n_heads
    outputs, logits = [], []
    for sequence in x:
        mixed, of_heads = [], []
        for h in range(heads):
            rows = slice(h * width, (h + 1) * width)
            q, k, v = (sequence @ weights[name][rows].T for name in ("w_q", "w_k", "w_v"))
            head = q @ k.T / math.sqrt(width) * (1 if gamma is None else gamma[h])
            of_heads.append(head)
            mixed.append(mixtures(head, v))
        outputs.append(torch.cat(mixed, -1) @ weights["w_o"].T)
        logits.append(torch.stack(of_heads))
    return torch.stack(outputs), torch.stack(logits)


def slow_latent(attention, x, gamma=None):
    """The same of latent attention; positions turn the rope channels as complex numbers."""
    config, x = attention.config, x.double()
    weights = {name.split(".")[0]: p.detach().double() for name, p in attention.named_parameters()}
    n, r, c, value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.kv_lora_rank, config.v_head_dim
    scale = (n + r) ** -0.5 * (0.1 * math.log(config.yarn_factor) + 1) ** 2
    rates = slow_frequencies(config)

    def norm(a, weight):
        return weight * a / (a.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def turned(a):  # (T, R)
        places = torch.arange(len(a), dtype=torch.double)[:, None]
        pairs = torch.view_as_complex(a.reshape(len(a), -1, 2).contiguous())
        return torch.view_as_real(pairs * torch.exp(1j * places * rates)).flatten(1)

    outputs, logits = [], []
    for sequence in x:
        latent_and_key = sequence @ weights["w_kv_down"].T
        latent, rope_key = norm(latent_and_key[:, :c], weights["kv_norm"]), turned(latent_and_key[:, c:])
        read_by_queries = sequence
        if config.q_lora_rank:
            read_by_queries = norm(sequence @ weights["w_q_down"].T, weights["q_norm"])
        queries = read_by_queries @ weights["w_q_up"].T
        expanded = latent @ weights["w_kv_up"].T
        mixed, of_heads = [], []
        for h in range(config.n_heads):
            q = queries[:, h * (n + r) : (h + 1) * (n + r)]
            k_and_v = expanded[:, h * (n + value) : (h + 1) * (n + value)]
            head = scale * (q[:, :n] @ k_and_v[:, :n].T + turned(q[:, n:]) @ rope_key.T)
            head = head * (1 if gamma is None else gamma[h])
            of_heads.append(head)
            mixed.append(mixtures(head, k_and_v[:, n:]))
        outputs.append(torch.cat(mixed, -1) @ weights["w_o"].T)
        logits.append(torch.stack(of_heads))
    return torch.stack(outputs), torch.stack(logits)


def slow(attention, x, gamma=None):
    return (slow_latent if isinstance(attention, MultiHeadLatentAttention) else slow_multi_head)(attention, x, gamma)


def maxima(logits):
    """(B, H, T, T) -> (H,): the largest that is no look into the future."""
    future = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
    return logits.masked_fill(future, -math.inf).amax((0, 2, 3))


# Both kinds


@pytest.mark.parametrize(
    "architecture, changes",
    [
        ("nano", {}),
        ("k2", {}),
        ("k2", YARN),
        ("k2", dict(norm_eps=0.1)),
        ("k2", dict(v_head_dim=9)),
        ("k2", NO_LATENT),
        ("k2", NO_LATENT | YARN),
    ],
)
@every_form
def test_attention_equals_its_formulas(fast, architecture, changes):
    attention, x = tiny_attention(architecture, fast=fast, **changes), states(2, 7)
    expected, logits = slow(attention, x)
    assert logits.std() > 0.5  # far from an even mean of the values
    torch.testing.assert_close(read(attention, x).double(), expected, atol=1e-4, rtol=1e-4)


@every_architecture
@every_form
def test_weights_that_are_shown_are_those_that_are_used(fast, architecture):
    attention, x = tiny_attention(architecture, fast=fast), states(2, 7)
    output, weights = read(attention, x, return_weights=True)
    torch.testing.assert_close(output, read(attention, x), atol=1e-5, rtol=1e-4)
    future = torch.ones(7, 7, dtype=torch.bool).triu(1)
    expected = slow(attention, x)[1].masked_fill(future, -math.inf).softmax(-1)
    torch.testing.assert_close(weights.double(), expected, atol=1e-5, rtol=1e-4)


@every_architecture
def test_attention_weights_sum_to_one_and_never_look_ahead(architecture):
    _, weights = read(tiny_attention(architecture), states(3, 9), return_weights=True)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 9))
    assert weights.triu(1).count_nonzero() == 0


@every_architecture
@every_form
@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 1, 4, 2]])
def test_a_layer_that_reads_in_pieces_gives_what_it_gives_at_once(fast, architecture, pieces):
    attention, x, cache = tiny_attention(architecture, fast=fast).eval(), states(2, 12), KVCache(12)
    parts = [read(attention, part, cache) for part in x.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), read(attention, x), atol=2e-5, rtol=1e-4)
    cache = KVCache(12)
    read(attention, x[:, :5], cache)
    _, weights = read(attention, x[:, 5:], cache, return_weights=True)
    torch.testing.assert_close(weights, read(attention, x, return_weights=True)[1][:, :, 5:], atol=1e-5, rtol=1e-4)


def test_the_last_queries_of_a_longer_context_get_the_last_rows_of_the_mask():
    assert torch.equal(causal_mask(3, 8), causal_mask(8, 8)[-3:])


@pytest.mark.parametrize("n_queries, n_keys", [(1, 1), (1, 9), (4, 9), (9, 9)])
def test_weights_from_logits_are_those_of_the_formula_and_in_fp32(n_queries, n_keys):
    """A single query, the last position, looks everywhere."""
    logits = torch.randn(2, 3, n_queries, n_keys, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    weights = causal_softmax(logits)
    assert weights.dtype == torch.float32
    for t in range(n_queries):
        seen = n_keys - n_queries + t + 1
        torch.testing.assert_close(weights[..., t, :seen].double(), logits[..., t, :seen].softmax(-1))
        assert weights[..., t, seen:].count_nonzero() == 0
    assert causal_softmax(logits.bfloat16()).dtype == torch.float32


def test_a_full_cache_says_how_much_it_holds():
    cache = KVCache(4)
    cache.append(torch.zeros(1, 2, 3, 8))
    with pytest.raises(ValueError, match="holds 4 positions, 5"):
        cache.append(torch.zeros(1, 2, 2, 8))


# Multi-head attention


def test_attention_equals_torch_multi_head_attention():
    config = tiny_config()
    ours = MultiHeadAttention(config).double()
    reference = torch.nn.MultiheadAttention(config.d_model, config.n_heads, bias=False, batch_first=True).double()
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([ours.w_q.weight, ours.w_k.weight, ours.w_v.weight]))
        reference.out_proj.weight.copy_(ours.w_o.weight)
    x = torch.randn(2, 7, config.d_model, dtype=torch.double)
    expected, expected_weights = reference(x, x, x, attn_mask=~causal_mask(7, 7), average_attn_weights=False)
    plain = ours(x)
    speed_up(ours)
    fast = ours(x)
    explicit, weights = ours(x, return_weights=True)
    torch.testing.assert_close(fast, expected)
    for got in (plain, explicit):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)  # their softmax is in fp32
    torch.testing.assert_close(weights.double(), expected_weights, atol=1e-6, rtol=1e-6)


# Positions


def test_learned_positions_add_the_vectors_of_the_positions_that_are_asked_for():
    positions, x = LearnedPositions(tiny_config()), states(2, 3)
    with torch.no_grad():
        y, angles = positions(x, torch.tensor([4, 5, 9]))
    assert angles is None and positions.weight.shape == (16, 32)
    assert torch.equal(y, x + positions.weight[[4, 5, 9]])


def test_rotary_positions_give_the_angles_of_the_positions_that_are_asked_for_and_leave_the_stream_alone():
    config = tiny_k2_config(**YARN)
    positions, x = RotaryPositions(config).bfloat16(), states(2, 3).bfloat16()
    same, angles = positions(x, torch.tensor([15, 0, 7]))
    assert same is x and angles.shape == (3, 4) and angles.dtype == torch.float32  # whatever the model's format
    expected = torch.tensor([15.0, 0.0, 7.0]).double()[:, None] * slow_frequencies(config)
    torch.testing.assert_close(angles.double(), expected, atol=1e-5, rtol=1e-5)
    assert list(positions.parameters()) == [] and positions.state_dict() == {}


def test_angles_are_made_anew_for_another_device():
    positions = RotaryPositions(tiny_k2_config())
    for device in ("cpu", "meta", "cpu"):
        _, angles = positions(torch.zeros(1, 2, 32, device=device), torch.arange(2, device=device))
        assert angles.device.type == device
    assert angles[1].tolist() == rotary_frequencies(positions.config).tolist()


def test_rope_turns_one_pair_by_its_angle():
    x, angles = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.7], [0.7]])
    by_hand = [[math.cos(0.7), math.sin(0.7)], [-2 * math.sin(0.7), 2 * math.cos(0.7)]]
    torch.testing.assert_close(rope(x, angles), torch.tensor(by_hand))


def test_rope_pairs_neighbouring_channels():
    """Mistake 19 of public re-implementations: channels i and i + R/2 turned as a pair, with weights for neighbours."""
    x, angles = states(1, 5, 8), torch.zeros(5, 4)
    angles[:, 1] = 1.0
    changed = (rope(x, angles) != x).any(0).any(0)
    assert changed.nonzero().flatten().tolist() == [2, 3]


def test_rope_is_a_product_with_complex_numbers_of_size_one():
    x, angles = states(3, 5, 8).double(), torch.rand(5, 4, dtype=torch.double) * 6
    pairs = torch.complex(x[..., 0::2], x[..., 1::2]) * torch.exp(1j * angles)
    turned = rope(x, angles)
    torch.testing.assert_close(turned[..., 0::2], pairs.real, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(turned[..., 1::2], pairs.imag, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-6, rtol=1e-6)


def test_rope_in_bf16_turns_in_fp32():
    x, angles = states(1, 6, 8).bfloat16(), torch.rand(6, 4) * 100
    turned = rope(x, angles)
    assert turned.dtype == torch.bfloat16 and torch.equal(turned, rope(x.float(), angles).bfloat16())


def test_scores_depend_on_the_distance_alone():
    q, k = states(1, 1, 8), states(1, 1, 8, seed=2)
    frequencies = rotary_frequencies(tiny_k2_config(qk_rope_head_dim=8))
    scores = {}
    for at in range(20):
        for distance in (0, 1, 7):
            turned_q, turned_k = rope(q, frequencies[None] * (at + distance)), rope(k, frequencies[None] * at)
            scores.setdefault(distance, []).append((turned_q * turned_k).sum().item())
    for same in scores.values():
        assert max(same) - min(same) < 1e-5
    assert abs(scores[0][0] - scores[7][0]) > 0.01
    assert scores[0][0] == pytest.approx((q * k).sum().item(), abs=1e-5)


def test_rotary_frequencies_are_a_geometric_series():
    config = tiny_k2_config(qk_rope_head_dim=64, rope_theta=10_000.0)
    expected = torch.tensor([10_000 ** (-2 * i / 64) for i in range(32)])
    frequencies = rotary_frequencies(config)
    assert frequencies.dtype == torch.float32
    torch.testing.assert_close(frequencies, expected)


@pytest.mark.parametrize(
    "config, kept, between, divided",
    [(KimiConfig.k2(), 20, 0, 12), (KimiConfig.deepseek_v3(), 11, 12, 9), (KimiConfig.k2(yarn_factor=64.0), 20, 0, 12),
     (KimiConfig.k2(yarn_factor=64.0, yarn_beta_fast=32.0), 9, 11, 12)],
)  # fmt: skip
def test_yarn_stretches_the_slow_pairs(config, kept, between, divided):
    plain = torch.tensor([config.rope_theta ** (-2 * i / 64) for i in range(32)])
    ratio = plain / rotary_frequencies(config)  # 1 where nothing happens, the factor where all of it does
    is_kept, is_divided = (ratio - 1).abs() < 1e-5, (ratio / config.yarn_factor - 1).abs() < 1e-5
    assert (is_kept.sum().item(), is_divided.sum().item()) == (kept, divided)
    assert 32 - kept - divided == between
    assert is_kept[:kept].all() and is_divided[-divided:].all() and (ratio.diff() > -1e-5).all()
    torch.testing.assert_close(rotary_frequencies(config).double(), slow_frequencies(config), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(
    "config, scale",
    [(KimiConfig.k2(), 0.1308608), (KimiConfig.k2(yarn_factor=1.0), 0.0721688), (KimiConfig.deepseek_v3(), 0.1352338),
     (KimiConfig.k2(yarn_factor=64.0), 0.1446796)],
)  # fmt: skip
def test_yarn_sharpens_attention_and_plain_rope_does_not(config, scale):
    """Mistake 20 of public re-implementations: YaRN's frequencies without its sharper softmax, or that without YaRN."""
    with torch.device("meta"):
        assert MultiHeadLatentAttention(config).scale == pytest.approx(scale, abs=5e-8)


# Latent attention


def test_the_cache_of_latent_attention_keeps_one_latent_and_one_rope_key():
    """Mistake 8 of public re-implementations: full keys and values in the cache, or a rope key for each head."""
    model, tokens = tiny_k2_model().eval(), torch.arange(10)[None]
    cache = model.new_cache()
    model(tokens[:, :9], cache=cache)
    model(tokens[:, 9:], cache=cache)
    assert [[b.shape[:2].numel() * b.shape[3] for b in layer.buffers] for layer in cache] == [[12 + 4]] * 3
    attention, heads = model.blocks[0].attention, model.config.n_heads
    keys, _ = attention.expand(cache[0].buffers[0][..., :10, :])
    rope_keys = keys[0, :, :, -4:]
    assert torch.equal(rope_keys, rope_keys[:1].expand(heads, -1, -1))
    assert torch.equal(rope_keys[0], cache[0].buffers[0][0, 0, :10, -4:])
    assert attention.w_kv_down.weight.shape == (12 + 4, 32)


def test_the_cache_of_the_published_k2_takes_70272_bytes_per_token():
    with torch.device("meta"):  # shapes without memory
        model = Kimi(KimiConfig.k2()).to(torch.bfloat16)
        x = torch.empty(1, 1, model.config.d_model, dtype=torch.bfloat16)
        _, angles = model.positions(x, torch.zeros(1, dtype=torch.long))
        cache = model.new_cache()
        for block, layer in zip(model.blocks, cache, strict=True):
            block.attention(x, angles, layer)
    buffers = [buffer for layer in cache for buffer in layer.buffers]
    assert {buffer.dtype for buffer in buffers} == {torch.bfloat16}
    assert sum(buffer.nbytes for buffer in buffers) == 131_072 * 70_272


@pytest.mark.parametrize("changes", [{}, YARN, NO_LATENT])
@pytest.mark.parametrize("n_queries", [1, 5])
@pytest.mark.parametrize("dtype, tolerance", [(torch.double, 1e-6), (torch.float, 1e-4)])
def test_the_absorbed_form_equals_the_naive_one(changes, n_queries, dtype, tolerance):
    attention = tiny_attention("k2", **changes).to(dtype).eval()
    config, cache, x = attention.config, KVCache(9), states(2, 9).to(dtype)
    expected = read(attention, x, cache)[:, -n_queries:]  # expands the latents
    key = cache.buffers[0]
    queries = attention.w_q_up(attention.q_norm(attention.w_q_down(x))).unflatten(-1, (4, -1)).transpose(1, 2)
    q_n, q_r = queries.split((config.qk_nope_head_dim, config.qk_rope_head_dim), dim=-1)
    q_r = rope(q_r, angles_of(attention, 0, 9))
    mixed = attention.absorbed(q_n[:, :, -n_queries:], q_r[:, :, -n_queries:], key)  # (B, H, T, v)
    ours = attention.w_o(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)


def test_without_a_query_latent_one_matrix_takes_x_to_the_queries_of_all_heads():
    attention = tiny_attention("k2", **NO_LATENT)
    shapes = {name: tuple(p.shape) for name, p in attention.named_parameters()}
    of_queries = {name: shape for name, shape in shapes.items() if name.startswith(("w_q", "q_"))}
    assert of_queries == {"w_q_up.weight": (4 * (8 + 4), 32)}
    assert shapes.keys() < dict(tiny_attention("k2").named_parameters()).keys()


def test_a_single_new_token_never_expands_the_latents(monkeypatch):
    attention, cache = tiny_attention("k2").eval(), KVCache(8)
    read(attention, states(1, 5), cache)
    monkeypatch.setattr(attention, "expand", lambda key: pytest.fail("expanded the whole cache for one token"))
    read(attention, states(1, 1), cache)


# The largest logits


def largest_of(q, k, scale):
    """What the record takes of the textbook's attention: (B, H, T, d) twice -> (H,)."""
    record = LayerRecord()
    attend(q, k, torch.zeros_like(k), scale, record=record)
    return record.max_logits


def test_the_largest_logits_equal_those_of_a_search_through_all():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, 11, 8, generator=generator) for _ in range(2))
    expected = [
        max(0.5 * q[b, h, i].dot(k[b, h, j]).item() for b in range(2) for i in range(11) for j in range(i + 1))
        for h in range(3)
    ]
    torch.testing.assert_close(largest_of(q, k, 0.5), torch.tensor(expected))


def test_a_huge_logit_in_the_future_does_not_count():
    q, k = torch.ones(1, 1, 6, 4), torch.ones(1, 1, 6, 4)
    q[..., 2, :] = 100
    k[..., 3, :] = 100
    q[..., 3:, :] = -1  # the huge key is met by these alone
    assert largest_of(q, k, 1.0).tolist() == [400.0]


def test_the_largest_logits_have_a_sign():
    q = torch.ones(1, 2, 3, 4)
    assert largest_of(q, -q, 1.0).tolist() == [-4.0, -4.0]


def test_the_largest_logits_are_those_that_the_number_format_has():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, 11, 8, generator=generator).bfloat16() for _ in range(2))
    exact, rounded = largest_of(q.float(), k.float(), 0.25), largest_of(q, k, 0.25)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0, rtol=2**-8)
    assert torch.equal(rounded, rounded.bfloat16().float())  # the very inputs of the softmax


@pytest.mark.parametrize("architecture, changes", [("nano", {}), ("k2", {}), ("k2", YARN), ("k2", NO_LATENT)])
@pytest.mark.parametrize("training", [True, False])
@every_form
def test_a_record_takes_the_largest_logit_of_each_head(fast, training, architecture, changes):
    attention, x = tiny_attention(architecture, fast=fast, **changes).train(training), states(3, 9)
    largest = logits_of(attention, x)
    assert largest.shape == (4,) and largest.dtype == torch.float32 and not largest.requires_grad
    torch.testing.assert_close(largest.double(), maxima(slow(attention, x)[1]), atol=1e-4, rtol=1e-5)


@every_architecture
@every_form
def test_generation_records_no_logits(fast, architecture):
    attention, cache, record = tiny_attention(architecture, fast=fast), KVCache(5), LayerRecord()
    read(attention, 10 * states(1, 4), cache, record=record)
    read(attention, 10 * states(1, 1), cache, record=record)
    assert record.max_logits is None


@every_architecture
@every_form
def test_the_maximum_runs_over_the_micro_batches_of_a_step(fast, architecture):
    attention, record = tiny_attention(architecture, fast=fast), LayerRecord()
    parts, alone = states(6, 9).split(2), []
    for part in parts:
        alone.append(logits_of(attention, part))  # a record of its own begins anew
        torch.testing.assert_close(alone[-1].double(), maxima(slow(attention, part)[1]), atol=1e-4, rtol=1e-5)
        read(attention, part, record=record)
        assert torch.equal(record.max_logits, torch.stack(alone).amax(0))
    assert not torch.equal(record.max_logits, alone[-1])


# QK-Clip


def check_clip(attention, x):
    """What QK-Clip promises, of one layer and the input that its logits come from."""
    original = copy.deepcopy(attention)
    _, old = slow(attention, x)
    largest = maxima(old)
    tau = largest.sort().values[1:3].mean().item()  # two heads of the four are beyond it
    gamma = (tau / largest).clamp(max=1.0)
    clipped = gamma < 1
    assert clipped.sum() == 2, "the test needs healthy heads and others"
    attention.qk_clip_(logits_of(attention, x), tau)
    new_output, new = slow(attention, x)
    difference = (new - gamma[:, None, None] * old).abs().amax((0, 2, 3))
    assert difference[~clipped].max() < 3e-5, "logits of healthy heads changed"
    assert difference.max() < 3e-5, "logits are not gamma times what they were"
    assert (maxima(new) - largest.clamp(max=tau)).abs().max() < 3e-5, "the maxima are not min(S, tau)"
    expected, _ = slow(original, x, gamma)
    assert (new_output - expected).abs().max() < 1e-4, "outputs are not those of the scaled logits"
    for name, before in original.named_parameters():
        after = attention.get_parameter(name)
        if name in ("w_q.weight", "w_k.weight", "w_q_up.weight", "w_kv_up.weight"):
            before, after = (w.unflatten(0, (4, -1)) for w in (before, after))
            assert torch.equal(before[~clipped], after[~clipped]), f"{name} of a healthy head changed"
            assert not torch.equal(before[clipped], after[clipped]), f"{name} did not change"
            if name == "w_kv_up.weight":
                assert torch.equal(before[:, 8:], after[:, 8:]), "value rows changed"
        else:
            assert torch.equal(before, after), f"{name} changed"
    once = {name: p.clone() for name, p in attention.named_parameters()}
    attention.qk_clip_(logits_of(attention, x), tau)
    for name, p in attention.named_parameters():
        assert (p - once[name]).abs().max() < 1e-6, "a second clip is not a no-op"


@pytest.mark.parametrize("architecture, changes", [("nano", {}), ("k2", {}), ("k2", YARN), ("k2", NO_LATENT)])
@pytest.mark.parametrize("seed", [0, 1])
@every_form
def test_qk_clip_scales_every_logit_of_a_head_beyond_tau_and_nothing_else(fast, architecture, changes, seed):
    check_clip(tiny_attention(architecture, std=0.6, seed=seed, fast=fast, **changes), states(2, 9))


@every_architecture
def test_qk_clip_takes_half_of_gamma_from_either_side(architecture):
    attention, x = tiny_attention(architecture, std=0.6), states(2, 9)
    before = copy.deepcopy(attention)
    largest = logits_of(attention, x)
    tau = largest.min().item() / 4
    gamma = (tau / largest)[:, None, None]
    attention.qk_clip_(largest, tau)
    half = [(0, 8, 0.5)]
    for name, rows in {"w_q": half, "w_k": half, "w_q_up": [*half, (8, 12, 1.0)], "w_kv_up": half}.items():
        if hasattr(attention, name):
            old, new = (getattr(a, name).weight.unflatten(0, (4, -1)) for a in (before, attention))
            for start, end, power in rows:
                torch.testing.assert_close(new[:, start:end], old[:, start:end] * gamma**power)


@every_architecture
def test_heads_within_tau_keep_every_bit(architecture):
    attention, x = tiny_attention(architecture), states(2, 9)
    before = copy.deepcopy(attention.state_dict())
    largest = logits_of(attention, x)
    for tau in (math.inf, largest.max().item(), largest.max().item() + 1):
        attention.qk_clip_(largest, tau)
    assert all(torch.equal(after, before[name]) for name, after in attention.state_dict().items())


@every_architecture
def test_without_a_recorded_forward_there_is_nothing_to_clip(architecture):
    model, record = TINY_MODELS[architecture](), Record()
    before = copy.deepcopy(model.state_dict())
    model(torch.arange(9)[None])
    model.qk_clip_(record, 1e-3)  # nobody gave it to the forward
    model(torch.arange(9)[None], cache=model.new_cache(), record=record)
    model.qk_clip_(record, 1e-3)  # the logits of generation are not recorded
    assert all(torch.equal(after, before[name]) for name, after in model.state_dict().items())


@every_architecture
def test_each_layer_of_a_model_is_clipped_by_its_own_logits(architecture):
    model, record = TINY_MODELS[architecture](), Record()
    model(torch.arange(12)[None], record=record)
    of_layers = record.max_logits().amax(dim=1)  # (L,)
    tau = (of_layers.min() + of_layers.max()).item() / 2  # some layers are beyond it
    before = copy.deepcopy(model.state_dict())
    model.qk_clip_(record, tau)
    changed = {name for name, w in model.state_dict().items() if not torch.equal(w, before[name])}
    assert {int(name.split(".")[1]) for name in changed} == set((of_layers > tau).nonzero().flatten().tolist())
    again = Record()
    model(torch.arange(12)[None], record=again)
    first = (of_layers > tau).nonzero()[0].item()  # what it reads is as before
    torch.testing.assert_close(again.max_logits()[first], record.max_logits()[first].clamp(max=tau))


@every_architecture
def test_negative_logits_are_never_clipped(architecture):
    attention = tiny_attention(architecture)
    before = copy.deepcopy(attention.state_dict())
    attention.qk_clip_(-logits_of(attention, states(1, 4)).abs() - 1, 0.5)
    assert all(torch.equal(after, before[name]) for name, after in attention.state_dict().items())


def parts_of(attention):
    """Views of latent attention's weights by head: q_n, q_r, k_n, v, and the rows of the shared rope key."""
    q_n, q_r = attention.w_q_up.weight.unflatten(0, (4, -1)).split((8, 4), dim=1)
    k_n, v = attention.w_kv_up.weight.unflatten(0, (4, -1)).split((8, 6), dim=1)
    return q_n, q_r, k_n, v, attention.w_kv_down.weight[12:]


def must_fail(wrong, message):
    x = states(2, 9)
    check_clip(tiny_attention("k2", std=0.6), x)  # the right one passes with the same weights and input
    with pytest.raises(AssertionError, match=message):
        check_clip(tiny_attention("k2", wrong, std=0.6), x)


def test_clipping_the_shared_rope_key_is_found_out():
    """Mistake 9 of public re-implementations: the rope key is scaled too, but every head looks at it."""

    class ClipsTheSharedKey(MultiHeadLatentAttention):
        @torch.no_grad()
        def qk_clip_(self, max_logits, tau):
            gamma = clip_factors(max_logits, tau)
            q_n, q_r, k_n, _, shared = parts_of(self)
            for part in (q_n, q_r, k_n):
                part.mul_(gamma.sqrt())
            shared.mul_(gamma.sqrt().prod())

    must_fail(ClipsTheSharedKey, "logits of healthy heads changed")


def test_half_of_gamma_on_the_rope_query_is_found_out():
    """Mistake 10 of public re-implementations: sqrt(gamma) for the rope query, whose key nobody may scale."""

    class ScalesRopeByHalf(MultiHeadLatentAttention):
        @torch.no_grad()
        def qk_clip_(self, max_logits, tau):
            gamma = clip_factors(max_logits, tau)
            for part in parts_of(self)[:3]:
                part.mul_(gamma.sqrt())

    must_fail(ScalesRopeByHalf, "logits are not gamma times")


def test_one_scalar_for_all_heads_is_found_out():
    """Mistake 11 of public re-implementations: the largest logit of all heads decides for every head."""

    class OneForAll(MultiHeadLatentAttention):
        def qk_clip_(self, max_logits, tau):
            super().qk_clip_(max_logits.max().expand_as(max_logits), tau)

    must_fail(OneForAll, "logits of healthy heads changed")


def test_logits_without_the_softmax_scale_are_found_out():
    """Mistake 12 of public re-implementations: q.k measured before its scale, so heads are clipped from the start."""

    def attend_without_the_scale(q, k, v, scale, mask=None, record=None):
        if record is not None:
            record.note_logits(largest_logits(q, k, 1.0))
        return attend(q, k, v, scale, mask)

    class ForgetsTheScale(MultiHeadLatentAttention):
        def __init__(self, config):
            super().__init__(config)
            self.attend = attend_without_the_scale

    must_fail(ForgetsTheScale, "logits of healthy heads changed")


def test_clipping_the_values_is_found_out():
    """Mistake 14 of public re-implementations: a head's value rows are scaled with its key rows."""

    class ScalesValues(MultiHeadLatentAttention):
        @torch.no_grad()
        def qk_clip_(self, max_logits, tau):
            super().qk_clip_(max_logits, tau)
            parts_of(self)[3].mul_(clip_factors(max_logits, tau).sqrt())

    must_fail(ScalesValues, "outputs are not those of the scaled logits")


@every_architecture
@every_form
def test_recording_changes_neither_output_nor_gradient(fast, architecture):
    """Mistake 13 of public re-implementations: logits clamped in the forward pass. Here it only watches."""
    results = []
    for record in (LayerRecord(), None):
        attention, x = tiny_attention(architecture, std=0.6, fast=fast), states(2, 9).requires_grad_()
        y = read(attention, x, record=record)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *attention.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
