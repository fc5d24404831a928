"""The whole model: its parts in the right order, its loss, its parameters, its view for evaluation; RMSNorm."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from tests.helpers import (
    TINY_CONFIGS,
    TINY_MODELS,
    every_architecture,
    random_tokens,
    tiny_k2_config,
    tiny_k2_model,
    tiny_model,
)
from utils import loss as textbook_loss
from utils.attention import MultiHeadLatentAttention
from utils.config import KimiConfig
from utils.cost import training_flops
from utils.fast import loss as fast_loss
from utils.fast.loss import CHUNK
from utils.model import Dropout, Kimi, count_parameters, eval_view
from utils.moe import MoE
from utils.norm import RMSNorm
from utils.record import Record
from utils.swiglu import FeedForward

# RMSNorm


def test_rms_norm_by_hand():
    norm = RMSNorm(2, eps=0.5)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 10.0]))
    root = math.sqrt((9 + 16) / 2 + 0.5)
    torch.testing.assert_close(norm(torch.tensor([[3.0, 4.0]])), torch.tensor([[3 / root, 40 / root]]))


def test_rms_norm_equals_torchs_and_keeps_the_mean():
    torch.manual_seed(0)
    norm, x = RMSNorm(24, eps=1e-3), torch.randn(3, 5, 24) + 4
    torch.nn.init.normal_(norm.weight)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (24,), norm.weight, 1e-3))
    even = RMSNorm(24)(torch.full((1, 24), 7.0))
    torch.testing.assert_close(even, torch.ones(1, 24))  # LayerNorm would give 0
    assert [p.shape for p in norm.parameters()] == [(24,)]


def test_rms_norm_of_bf16_computes_in_fp32():
    torch.manual_seed(0)
    norm, x = RMSNorm(4096), torch.randn(2, 4096).bfloat16() * 300
    assert torch.equal(norm(x), norm(x.float()).bfloat16())
    fine = torch.full((1, 4096), 1e-3, dtype=torch.half)  # its squares vanish in fp16
    torch.testing.assert_close(RMSNorm(4096, 1e-12)(fine), torch.ones(1, 4096, dtype=torch.half), atol=1e-3, rtol=0)


# The whole model


@every_architecture
def test_the_future_changes_nothing_before_it(architecture):
    """Mistake 2 of public re-implementations: a softmax over time let later tokens change earlier logits.

    It is a fault of the original notebook as well.
    """
    model, tokens = TINY_MODELS[architecture]().eval(), random_tokens(1, 12)
    before = model(tokens)
    for changed in range(1, 12):
        other = tokens.clone()
        other[0, changed] = (other[0, changed] + 1) % model.config.vocab_size
        after = model(other)
        torch.testing.assert_close(after[:, :changed], before[:, :changed], atol=1e-6, rtol=1e-5)
        assert (after[:, changed] - before[:, changed]).abs().max() > 1e-4


@every_architecture
def test_no_gradient_flows_from_a_logit_to_the_future(architecture):
    model = TINY_MODELS[architecture]().double().eval()
    embedded = []
    model.embedding.register_forward_hook(lambda _, __, out: embedded.append(out.requires_grad_()))
    logits = model(random_tokens(1, 10))
    (grad,) = torch.autograd.grad(logits[0, 4].sum(), embedded[0])
    assert grad[0, 5:].count_nonzero() == 0
    assert grad[0, :5].abs().sum(-1).min() > 0


@pytest.mark.parametrize("vocab_size, d_model", [(300, 32), (1000, 256), (8000, 512)])
@every_architecture
def test_the_loss_at_birth_is_that_of_a_uniform_guess(architecture, vocab_size, d_model):
    config = KimiConfig.small(architecture, vocab_size, d_model=d_model, n_layers=2, d_ff=64, block_size=32)
    model = Kimi(config).eval()
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randint(vocab_size, (2, 16, 32), generator=generator)
    _, loss = model(x, targets=y)
    assert loss.item() == pytest.approx(math.log(vocab_size), rel=0.02)


@every_architecture
def test_more_layers_do_not_make_the_stream_larger_at_birth(architecture):
    sizes = {}
    for n_layers in (2, 8):
        config = KimiConfig.small(architecture, 100, d_model=256, n_layers=n_layers, d_ff=64, block_size=32)
        model = Kimi(config).eval()
        model.norm.register_forward_pre_hook(lambda _, args, n=n_layers: sizes.update({n: args[0].std().item()}))
        model(random_tokens(2, 32, 100))
    assert sizes[8] == pytest.approx(sizes[2], rel=0.4)


@every_architecture
def test_the_loss_in_chunks_equals_the_plain_one_with_all_gradients(architecture):
    model = TINY_MODELS[architecture](vocab_size=97).double().eval()
    x, y = random_tokens(2, 12, 97), random_tokens(2, 12, 97, seed=1)
    gradients = []
    for loss in (model(x, targets=y)[1], model.loss(x, y)):
        gradients.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for plain, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(chunked, plain, atol=1e-6, rtol=1e-5)  # it sums in fp32


@pytest.mark.parametrize("loss", [textbook_loss, fast_loss], ids=["textbook", "fast"])
@pytest.mark.parametrize("n_tokens", [1, CHUNK - 1, CHUNK, 2 * CHUNK + 3])
def test_chunks_of_any_number_of_tokens_give_torch_cross_entropy(n_tokens, loss):
    torch.manual_seed(0)
    hidden, weight = torch.randn(n_tokens, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    targets = torch.randint(30, (n_tokens,))
    plain, chunked = F.cross_entropy(hidden @ weight.T, targets), loss.cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(chunked, plain)
    for ours, theirs in zip(
        torch.autograd.grad(3 * chunked, [hidden, weight]),
        torch.autograd.grad(3 * plain, [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("loss", [textbook_loss, fast_loss], ids=["textbook", "fast"])
@pytest.mark.parametrize("shape", [(3, 7), (2, CHUNK + 5)])
def test_targets_of_minus_100_do_not_count(shape, loss):
    """torch's convention for padding and for the prompt in a fine-tuning; the mean is over the other targets."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(*shape, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    targets = torch.randint(30, shape).masked_fill(torch.rand(shape) < 0.4, -100)
    kept = targets != -100
    plain = F.cross_entropy(hidden[kept] @ weight.T, targets[kept])
    ours = loss.cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(ours, plain)
    for grad, expected in zip(
        torch.autograd.grad(ours, [hidden, weight]), torch.autograd.grad(plain, [hidden, weight]), strict=True
    ):
        torch.testing.assert_close(grad, expected)
    assert loss.cross_entropy(hidden, weight, torch.full(shape, -100)).isnan()  # as torch's: a mean of nothing


@every_architecture
def test_both_forms_of_a_models_loss_leave_out_the_same_targets(architecture):
    model, x, y = TINY_MODELS[architecture]().eval(), random_tokens(2, 12), random_tokens(2, 12, seed=1)
    y[:, :5] = -100
    torch.testing.assert_close(model.loss(x, y), model(x, targets=y)[1])
    assert not torch.isclose(model.loss(x, y), model.loss(x, random_tokens(2, 12, seed=1)))


@every_architecture
def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before(architecture):
    config = TINY_MODELS[architecture]().config
    first = Kimi(config, seed=3).state_dict()
    torch.rand(5)
    second, other = Kimi(config, seed=3).state_dict(), Kimi(config, seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [name for name, w in first.items() if w.ndim > 1 and torch.equal(w, other[name])] == []


def test_parameters_of_the_published_nano_size():
    vocab, d, f, layers, experts, block = 8000, 512, 1024, 6, 4, 256
    total, active = count_parameters(Kimi(KimiConfig.nano(vocab)))
    norms, attention, expert = 4 * d, 4 * d * d, 3 * d * f
    shared = 2 * vocab * d + block * d + layers * (norms + attention + experts * d) + 2 * d
    assert total == shared + layers * experts * expert
    assert active == shared + layers * 2 * expert


@every_architecture
def test_every_parameter_gets_a_gradient(architecture):
    model, record = TINY_MODELS[architecture](n_experts=2, balance_coef=0.01), Record()
    (model.loss(random_tokens(4, 12), random_tokens(4, 12, seed=1), record) + record.balance_loss()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.count_nonzero() == 0] == []


@every_architecture
def test_a_model_can_be_copied_after_a_step(architecture):
    model, record = TINY_MODELS[architecture](balance_coef=0.01), Record()
    (model.loss(random_tokens(2, 8), random_tokens(2, 8, seed=1), record) + record.balance_loss()).backward()
    model.end_step_(record)
    twin = copy.deepcopy(model)
    assert torch.equal(twin.eval()(random_tokens(1, 8)), model.eval()(random_tokens(1, 8)))


@every_architecture
def test_a_running_average_of_the_weights_tells_after_a_step(architecture):
    """torch's AveragedModel copies the model after a forward in training mode."""
    model, record = TINY_MODELS[architecture](balance_coef=0.01).train(), Record()
    x, y = random_tokens(2, 8), random_tokens(2, 8, seed=1)
    (model.loss(x, y, record) + record.balance_loss()).backward()
    average = torch.optim.swa_utils.AveragedModel(model)
    before = model.head.weight.detach().clone()
    for factor in (1.0, 3.0):
        with torch.no_grad():
            model.head.weight.copy_(factor * before)
        average.update_parameters(model)
    torch.testing.assert_close(average.module.head.weight, 2 * before)
    torch.testing.assert_close(average.eval()(x), model.eval()(x) * 2 / 3)


@every_architecture
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
def test_blocks_computed_again_in_the_backward_give_the_same_gradients(architecture, fast, reentrant):
    """Activation checkpointing, the usual answer to a GPU that is full."""
    model, x = Kimi(TINY_CONFIGS[architecture](), fast=fast), random_tokens(2, 12)
    gradients = []
    for again in (False, True):
        h, angles = model.positions(model.embedding(x), torch.arange(12))
        for block in model.blocks:
            h = checkpoint(block, h, angles, use_reentrant=reentrant) if again else block(h, angles)
        loss = model.cross_entropy(model.norm(h), model.head.weight, random_tokens(2, 12, seed=1))
        model.zero_grad()
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(plain, computed_again) for plain, computed_again in zip(*gradients, strict=True))


@every_architecture
def test_the_textbooks_form_can_be_exported_as_a_graph(architecture):
    quick = TINY_MODELS[architecture]().eval()
    model = Kimi(quick.config, fast=False).eval()
    model.load_state_dict(quick.state_dict())
    tokens = random_tokens(2, 9)
    graph = torch.export.export(model, (tokens,)).module()
    other = random_tokens(2, 9, seed=1)
    torch.testing.assert_close(graph(other), quick(other))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
@every_architecture
def test_an_input_without_tokens_is_named(architecture, shape):
    with pytest.raises(ValueError, match=rf"tokens has the shape \({shape[0]}, {shape[1]}\), it must be \(B, T\)"):
        TINY_MODELS[architecture]()(torch.zeros(shape, dtype=torch.int64))


@every_architecture
def test_too_long_an_input_names_the_block_size(architecture):
    model = TINY_MODELS[architecture]()
    with pytest.raises(ValueError, match="17 positions were asked for, the block size is 16"):
        model(random_tokens(1, 17))
    cache = model.new_cache()
    model(random_tokens(1, 15), cache=cache)
    with pytest.raises(ValueError, match="17 positions were asked for, the block size is 16"):
        model(random_tokens(1, 2), cache=cache)


@every_architecture
@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 1, 4, 2]])
def test_decoding_with_the_cache_equals_the_full_forward(architecture, pieces):
    model, tokens = TINY_MODELS[architecture]().double().eval(), random_tokens(2, 12)
    cache = model.new_cache()
    logits = [model(part, cache=cache) for part in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(logits, dim=1), model(tokens), atol=1e-5, rtol=1e-5)  # norms are in fp32


@every_architecture
def test_the_likeliest_tokens_are_the_same_with_the_cache(architecture):
    model, told = TINY_MODELS[architecture]().eval(), random_tokens(2, 3)
    cache = model.new_cache()
    new = model(told, cache=cache)[:, -1:].argmax(-1)
    while told.shape[1] < 15:
        assert torch.equal(new, model(told)[:, -1:].argmax(-1))
        told = torch.cat([told, new], dim=1)
        new = model(new, cache=cache)[:, -1:].argmax(-1)
    assert len(set(told[0].tolist())) > 4  # no single word again and again


@pytest.mark.parametrize("norm_eps", [1e-6, 0.3])
def test_a_k2_block_adds_to_the_stream_what_its_normed_parts_say(norm_eps):
    model, tokens = tiny_k2_model(norm_eps=norm_eps).eval(), random_tokens(1, 6)
    block = model.blocks[1]
    x, angles = model.positions(model.embedding(tokens), torch.arange(6))
    middle = x + block.attention(F.rms_norm(x, (32,), block.attention_norm.weight, norm_eps), angles)
    expected = middle + block.ffn(F.rms_norm(middle, (32,), block.ffn_norm.weight, norm_eps))
    torch.testing.assert_close(block(x, angles), expected, atol=1e-4, rtol=1e-4)
    stream = x
    for block in model.blocks:
        stream = block(stream, angles)
    expected = F.rms_norm(stream, (32,), model.norm.weight, norm_eps) @ model.head.weight.T
    torch.testing.assert_close(model(tokens), expected, atol=1e-4, rtol=1e-4)


def test_the_first_layers_of_k2_are_dense():
    for n_dense in (0, 1, 2):
        model = Kimi(tiny_k2_config(first_k_dense=n_dense))
        kinds = [type(block.ffn) for block in model.blocks]
        assert kinds == [FeedForward] * n_dense + [MoE] * (3 - n_dense)
        assert len(model.routers()) == 3 - n_dense
        assert all(block.ffn.w_up.shape == (2, 40, 32) for block in model.blocks[:n_dense])


def test_k2_has_none_of_what_it_left_behind():
    """Mistake 22 of public re-implementations: learned positions, LayerNorm, biases, dropout, a tied head."""
    model = tiny_k2_model()
    assert list(model.positions.parameters()) == [] and list(model.positions.buffers()) == []
    x = model.embedding(random_tokens(1, 5))
    assert model.positions(x, torch.arange(5))[0] is x  # nothing is added to the embedding
    assert [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)] == []
    assert [m for m in model.modules() if getattr(m, "bias", None) is not None] == []
    assert [name for name, _ in model.named_parameters() if "bias" in name or "position" in name] == []
    assert [m for m in model.modules() if isinstance(m, torch.nn.Dropout | Dropout)] == []
    assert model.head.weight is not model.embedding.weight
    assert {type(block.attention) for block in model.blocks} == {MultiHeadLatentAttention}
    tokens = random_tokens(2, 9)
    assert torch.equal(model.train()(tokens), model.eval()(tokens))  # nothing happens by chance in training


def test_order_matters_to_k2_although_it_has_no_learned_positions():
    model, tokens = tiny_k2_model(n_layers=1, first_k_dense=0).eval(), torch.tensor([[3, 4, 5, 6]])
    swapped = tokens[:, [1, 0, 2, 3]]
    assert (model(tokens)[0, 3] - model(swapped)[0, 3]).abs().max() > 1e-3


def test_k2_computes_in_bf16_when_asked():
    model, tokens = tiny_k2_model(seed=1).eval(), random_tokens(2, 9)
    exact = model(tokens)
    model.to(torch.bfloat16)
    logits, loss = model(tokens, targets=tokens)
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    assert F.cosine_similarity(logits.float().flatten(), exact.flatten(), dim=0) > 0.98
    cache = model.new_cache()
    model(tokens[:, :4], cache=cache)
    assert model(tokens[:, 4:5], cache=cache).dtype == torch.bfloat16
    assert cache[0].buffers[0].dtype == torch.bfloat16
    model.train().loss(tokens, tokens).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every_architecture
def test_the_largest_logits_of_all_layers_are_in_one_table(architecture):
    model, record = TINY_MODELS[architecture](), Record()
    model(random_tokens(2, 9), record=record)
    first = record.max_logits()
    assert first.shape == (model.config.n_layers, 4) and first.isfinite().all()
    model(random_tokens(2, 2, seed=5), record=record)
    assert torch.equal(record.max_logits(), first.maximum(record.max_logits()))  # still the same step
    model.end_step_(record)
    with pytest.raises(ValueError, match="this record's step is over"):
        model(random_tokens(1, 1), record=record)
    following = Record()
    model(torch.zeros(1, 1, dtype=torch.long), record=following)
    assert (following.max_logits() < first).any()


# The same tensors in eval mode


def test_a_view_for_evaluation_shares_every_tensor_and_leaves_the_model_in_its_mode():
    model = tiny_model(dropout=0.5)
    x, y = random_tokens(2, 9), random_tokens(2, 9, seed=1)
    view = eval_view(model)
    assert model.training and not any(part.training for part in view.modules())
    ours, theirs = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (model, view))
    assert ours.keys() == theirs.keys() and all(ours[name] is theirs[name] for name in ours)
    assert not torch.equal(view(x), model(x))  # dropout
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)  # what the model learns, the view knows
    model.loss(x, y).backward()
    assert torch.equal(view(x), model.eval()(x))


@every_architecture
def test_a_view_in_another_format_has_copies_of_its_matrices_alone(architecture):
    model = TINY_MODELS[architecture]()
    view, of_model = eval_view(model, torch.bfloat16), dict(model.named_parameters())
    for name, p in view.named_parameters():
        cast = p.ndim > 1 and name not in ("embedding.weight", "positions.weight")
        cast = cast and not (architecture == "k2" and ".router." in name)  # its scores are in fp32
        assert p.dtype == (torch.bfloat16 if cast else torch.float32), name
        assert (p is of_model[name]) != cast
        assert torch.equal(p, of_model[name].to(p.dtype))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(a is b for a, b in zip(view.buffers(), model.buffers(), strict=True))


PUBLISHED = {
    "k2": (KimiConfig.k2(), 1_026_408_209_408, 32_861_477_888, 101_124_096),
    "deepseek_v3": (KimiConfig.deepseek_v3(), 671_026_404_352, 37_552_282_624, 187_107_328),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_the_published_models(name):
    config, total, active, attention = PUBLISHED[name]
    with torch.device("meta"):  # shapes without memory
        model = Kimi(config)
    assert count_parameters(model) == (total, active)
    assert sum(p.numel() for p in model.blocks[0].attention.parameters()) == attention
    assert sum(p.numel() for p in model.blocks[0].ffn.parameters()) == 396_361_728
    moe = model.blocks[-1].ffn
    assert sum(p.numel() for p in moe.shared.parameters()) == 44_040_192
    assert sum(len(router.expert_bias) for router in model.routers()) == {"k2": 23_040, "deepseek_v3": 14_848}[name]


def test_parameters_of_moonlight():
    """Its model card and arXiv 2502.16982 count 15.29 B, 2.24 B of them active, without embedding and head.

    The hub counts 15,960,111,936 numbers in its files. There are 3,392 that are no parameters here: the biases of 26
    routers, 64 each, and 64 for each of the 27 layers, which have a rotary buffer in the files.
    """
    with torch.device("meta"):
        model = Kimi(KimiConfig.moonlight())
    attention = 2048 * 16 * 192 + 2048 * (512 + 64) + 512 + 512 * 16 * 256 + 16 * 128 * 2048
    expert = 3 * 2048 * 1408
    layers = 27 * (attention + 2 * 2048) + 3 * 2048 * 11_264 + 26 * ((64 + 2) * expert + 64 * 2048)
    tables = 2 * 163_840 * 2048
    total, active = count_parameters(model)
    assert total == layers + 2048 + tables == 15_960_108_544
    assert active == total - 26 * (64 - 6) * expert == 2_914_774_528
    assert (round((total - tables) / 1e9, 2), round((active - tables) / 1e9, 2)) == (15.29, 2.24)
    biases = sum(len(router.expert_bias) for router in model.routers())
    assert total + biases + 27 * 64 == 15_960_111_936


def test_parameters_of_a_tiny_k2_by_hand():
    config = KimiConfig(
        97, "k2", d_model=64, dense_ff=96, d_ff=32, n_layers=3, n_heads=4, n_experts=8, top_k=2, kv_lora_rank=24,
        q_lora_rank=40, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=12,
    )  # fmt: skip
    attention = 64 * 40 + 40 + 40 * 4 * 24 + 64 * (24 + 8) + 24 + 24 * 4 * (16 + 12) + 4 * 12 * 64
    layers = 3 * (attention + 2 * 64) + 3 * 64 * 96 + 2 * (9 * 3 * 64 * 32 + 8 * 64)
    assert 2 * 97 * 64 + layers + 64 == 185_728
    assert count_parameters(Kimi(config)) == (185_728, 185_728 - 2 * 6 * 3 * 64 * 32)


def test_flops_of_training_by_hand():
    config = KimiConfig.nano(8000)
    weights = 6 * (4 * 512**2 + 512 * 4 + 2 * 3 * 512 * 1024) + 512 * 8000
    norms = 13 * 2 * 512
    attention = 3 * 6 * 2 * (2 * 512) * 257 / 2  # 3 for backward, layers, multiply and add, two products, mean keys
    assert training_flops(Kimi(config)) == 6 * (weights + norms) + attention


def test_flops_of_training_kimi_k2():
    """6 for each active parameter but the embedding, and 61 x 64 heads with keys of 192 and values of 128."""
    with torch.device("meta"):
        model = Kimi(KimiConfig.k2(block_size=4096))  # the context of its pre-training
    attention = 3 * 61 * 64 * 2 * (192 + 128) * 4097 / 2
    assert training_flops(model) == 6 * (32_861_477_888 - 163_840 * 7168) + attention
