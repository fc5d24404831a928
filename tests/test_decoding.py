"""The model as generation uses it: the same numbers, in the number format of training, beside an untouched model."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import TINY_MODELS, every_architecture, random_tokens
from utils.decoding import Decoder
from utils.fast.decoding import RepeatedStep, StaticKVCache
from utils.generation import generate
from utils.model import count_parameters, eval_view
from utils.moe import SigmoidRouter
from utils.record import Record
from utils.tokenizer import WordTokenizer

PIECES = [5, 1, 3, 1, 1, 1, 1, 1, 1, 1]  # of the 16 positions of a block


def decoded(step, tokens):
    """The logits after each piece, (pieces, B, V)."""
    return torch.stack([step(piece) for piece in tokens.split(PIECES, dim=1)])


def ends():
    """The position at which each piece ends."""
    return torch.tensor(PIECES).cumsum(0) - 1


def under_autocast(model, tokens):
    """What the model itself gives with the same pieces and a cache, under autocast in bf16."""
    cache = model.new_cache()

    def step(piece):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return model(piece, cache=cache)[:, -1].float()

    return decoded(step, tokens)


def remembered(model):
    """The bits of all parameters and buffers, and their formats."""
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def all_same_bits(before, model):
    after = model.state_dict()
    return before.keys() == after.keys() and all(
        after[name].dtype == t.dtype and torch.equal(after[name], t) for name, t in before.items()
    )


def shares_every_tensor(view, model):
    ours, theirs = ([*m.named_parameters(), *m.named_buffers()] for m in (view, model))
    return [name for name, _ in ours] == [name for name, _ in theirs] and all(
        a is b for (_, a), (_, b) in zip(ours, theirs, strict=True)
    )


# Numbers


@every_architecture
def test_a_decoder_in_fp32_gives_the_logits_of_the_model_at_every_position(architecture):
    model, tokens = TINY_MODELS[architecture]().eval(), random_tokens(3, 16)
    decoder = Decoder(model, "fp32")
    assert shares_every_tensor(decoder.model, model) and decoder.number_format == "fp32"
    expected = model(tokens)[:, ends()].transpose(0, 1)
    got = decoded(decoder, tokens)
    assert got.dtype == torch.float32 and got.std() > 0.3
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@every_architecture
def test_a_decoder_token_by_token_gives_the_logits_of_the_model(architecture):
    model, tokens = TINY_MODELS[architecture]().eval(), random_tokens(1, 16)
    decoder = Decoder(model, "fp32")
    for at, expected in enumerate(model(tokens)[0]):
        torch.testing.assert_close(decoder(tokens[:, at : at + 1])[0], expected, atol=1e-4, rtol=1e-4)
        assert decoder.length == at + 1


@every_architecture
@pytest.mark.parametrize("batch", [1, 3])
def test_a_decoder_in_bf16_gives_the_logits_of_the_model_under_autocast(architecture, batch):
    model, tokens = TINY_MODELS[architecture]().eval(), random_tokens(batch, 16)
    before = remembered(model)
    decoder = Decoder(model, "bf16")
    got, expected = decoded(decoder, tokens), under_autocast(model, tokens)
    assert decoder.number_format == "bf16" and got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert not torch.equal(got, model(tokens)[:, ends()].transpose(0, 1))  # bf16 it is
    assert all_same_bits(before, model)


@every_architecture
def test_a_decoder_in_bf16_decides_as_one_in_fp32_where_it_is_clear(architecture):
    model, tokens = TINY_MODELS[architecture]().eval(), random_tokens(3, 16)
    fine, rough = (decoded(Decoder(model, number_format), tokens) for number_format in ("fp32", "bf16"))
    assert (rough - fine).norm() < 0.1 * fine.norm()


def test_what_follows_does_not_count_without_a_gradient():
    decoder = Decoder(TINY_MODELS["nano"](), "fp32")
    assert not decoder(random_tokens(1, 3)).requires_grad


# The copy


@every_architecture
def test_matrices_are_in_bf16_and_all_else_is_shared(architecture):
    model = TINY_MODELS[architecture]()
    copied = eval_view(model, torch.bfloat16)
    assert copied is not model and type(copied) is type(model)
    parts, originals = copied.state_dict(), model.state_dict()
    assert parts.keys() == originals.keys()
    in_bf16 = {name for name, t in parts.items() if t.dtype == torch.bfloat16}
    for name, original in originals.items():
        if name in in_bf16:
            assert torch.equal(parts[name], original.bfloat16()), name
        else:
            assert parts[name].dtype == torch.float32 and parts[name].data_ptr() == original.data_ptr(), name
    names = {name.removeprefix("blocks.1.") for name in in_bf16 if name.startswith(("blocks.1.", "head"))}
    expected = {"head.weight", "attention.w_o.weight", "ffn.experts.w_up", "ffn.experts.w_down"}
    if architecture == "nano":
        expected |= {f"attention.{w}.weight" for w in ("w_q", "w_k", "w_v")} | {"ffn.router.gate.weight"}
    else:
        expected |= {f"attention.{w}.weight" for w in ("w_q_down", "w_q_up", "w_kv_down", "w_kv_up")}
        expected |= {"ffn.shared.w_up", "ffn.shared.w_down"}
        assert {"blocks.0.ffn.w_up", "blocks.0.ffn.w_down"} < in_bf16  # the dense layer
    assert names == expected
    assert not any(part in name for name in in_bf16 for part in ("embedding", "positions", "norm", "expert_bias"))
    assert not any(p.requires_grad for p in copied.parameters() if p.dtype == torch.bfloat16)


def test_the_routing_of_k2_is_that_of_the_model():
    """Its gates compute in fp32 in training as well: the copy must not choose other experts."""
    model = TINY_MODELS["k2"]().eval()
    copied = eval_view(model, torch.bfloat16)
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    for router, original in zip(copied.routers(), model.routers(), strict=True):
        assert isinstance(router, SigmoidRouter)
        with torch.autocast("cpu", torch.bfloat16):
            for ours, expected in zip(router(x), original(x), strict=True):
                assert torch.equal(ours, expected)


@every_architecture
def test_a_model_in_the_middle_of_its_training_can_be_copied(architecture):
    """The graph of its loss, the weights' gradients and the record of its step stay as they were."""
    model, tokens, record = TINY_MODELS[architecture](balance_coef=0.01), random_tokens(2, 9), Record()
    model.train()
    loss = model.loss(tokens[:, :-1], tokens[:, 1:], record)
    balance_loss, load = record.balance_loss(), record.expert_load()
    assert balance_loss.requires_grad
    before = remembered(model)
    decoder = Decoder(model, "bf16")
    got = decoder(tokens)
    assert model.training and not decoder.model.training
    assert record.balance_loss() == balance_loss and torch.equal(record.expert_load(), load)
    (loss + balance_loss).backward()  # the graph is still whole
    assert all(p.grad is not None and p.dtype == torch.float32 for p in model.parameters())
    assert all_same_bits(before, model)
    again = Decoder(model, "bf16")(tokens)  # with gradients there
    assert torch.equal(got, again)


def test_training_goes_on_as_if_nobody_had_decoded():
    weights = []
    for decodes in (False, True):
        model, tokens = TINY_MODELS["k2"](balance_coef=0.01), random_tokens(2, 9)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            model.train()
            record = Record()
            (model.loss(tokens[:, :-1], tokens[:, 1:], record) + record.balance_loss()).backward()
            if decodes:
                Decoder(model, "bf16")(tokens)
            optimizer.step()
            model.end_step_(record)
        weights.append(model.state_dict())
    assert all(torch.equal(t, weights[1][name]) for name, t in weights[0].items())


@every_architecture
@pytest.mark.parametrize("number_format", ["fp32", "bf16"])
def test_decoding_leaves_the_model_in_its_mode(architecture, number_format):
    model = TINY_MODELS[architecture]()
    for mode in (True, False):
        model.train(mode)
        decoder = Decoder(model, number_format)
        decoder(random_tokens(1, 3))
        assert {part.training for part in model.modules()} == {mode}
        assert {part.training for part in decoder.model.modules()} == {False}


def test_what_the_model_learns_a_decoder_in_fp32_knows():
    model, tokens = TINY_MODELS["k2"]().eval(), random_tokens(1, 6)
    decoder = Decoder(model, "fp32")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    torch.testing.assert_close(decoder(tokens), model(tokens)[:, -1], atol=1e-4, rtol=1e-4)


def test_the_tokenizer_is_not_copied():
    model = TINY_MODELS["nano"]()
    model.tokenizer = WordTokenizer.train(["a cat sat."])
    assert Decoder(model, "bf16").model.tokenizer is model.tokenizer


# Which format


def measured(monkeypatch, speedup):
    monkeypatch.setattr("utils.device._seconds", {torch.float32: 1.0, torch.bfloat16: 1 / speedup}.__getitem__)


@every_architecture
@pytest.mark.parametrize("speedup", [0.5, 4.0])
def test_a_small_model_stays_in_fp32_on_a_cpu(architecture, speedup, monkeypatch):
    measured(monkeypatch, speedup)
    model = TINY_MODELS[architecture]()
    decoder = Decoder(model)
    assert decoder.number_format == "fp32" and shares_every_tensor(decoder.model, model)


@pytest.mark.parametrize("speedup, expected", [(0.5, "fp32"), (4.0, "bf16")])
def test_a_large_model_gets_bf16_where_it_is_faster(speedup, expected, monkeypatch):
    measured(monkeypatch, speedup)
    monkeypatch.setattr("utils.decoding.CPU_CACHE", 0)
    decoder = Decoder(TINY_MODELS["nano"]())
    assert decoder.number_format == expected
    assert decoder.model.head.weight.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[expected]


def test_active_parameters_make_a_model_large(monkeypatch):
    """Those that one token reads: experts that it does not visit do not crowd the cache."""
    measured(monkeypatch, 4.0)
    model = TINY_MODELS["k2"]()
    total, active = count_parameters(model)
    assert active < total
    for limit, expected in ((active + 1, "fp32"), (active, "bf16")):
        monkeypatch.setattr("utils.decoding.CPU_CACHE", limit)
        assert Decoder(model).number_format == expected


def test_what_is_asked_for_is_taken_whatever_the_size_of_the_model():
    model = TINY_MODELS["nano"]()
    assert Decoder(model, "bf16").number_format == "bf16"
    with pytest.raises(ValueError, match="number_format is 'fp16', on a CPU it must be"):
        Decoder(model, "fp16")


# The cache


@every_architecture
@pytest.mark.parametrize("number_format", ["fp32", "bf16"])
def test_a_restart_forgets_all_tokens(architecture, number_format):
    decoder = Decoder(TINY_MODELS[architecture](), number_format)
    first, second = random_tokens(2, 6), random_tokens(2, 6, seed=1)
    expected = decoder(first)
    decoder(second)
    assert decoder.length == 12
    decoder.restart()
    assert decoder.length == 0
    assert torch.equal(decoder(first), expected)
    assert not torch.equal(decoder(first), expected)  # without a restart they are other positions


@every_architecture
def test_two_decoders_of_one_model_do_not_share_a_cache(architecture):
    model, tokens = TINY_MODELS[architecture](), random_tokens(1, 6)
    one, other = Decoder(model, "fp32"), Decoder(model, "fp32")
    expected = copy.deepcopy(one)(tokens)
    other(random_tokens(1, 4, seed=1))
    assert (one.length, other.length) == (0, 4)
    assert torch.equal(one(tokens), expected)


@every_architecture
@pytest.mark.parametrize("number_format", ["fp32", "bf16"])
def test_beyond_the_block_there_is_an_error_and_nothing_is_lost(architecture, number_format):
    decoder, tokens = Decoder(TINY_MODELS[architecture](), number_format), random_tokens(1, 17)
    decoder(tokens[:, :15])
    with pytest.raises(ValueError, match="17 positions were asked for, the block size is 16"):
        decoder(tokens[:, 15:])
    assert decoder.length == 15
    decoder(tokens[:, 15:16])
    assert decoder.length == 16


# Stories


@every_architecture
def test_a_story_in_bf16_is_a_story(architecture):
    tok = WordTokenizer.train(["Once upon a time, there was a cat, and it sat on a red mat."])
    model = TINY_MODELS[architecture](len(tok))
    model.tokenizer = tok
    before = remembered(model)
    settings = dict(max_new_tokens=30, temperature=1.5, seed=0, stop_at_eos=False)
    told = generate(model, "Once upon a time", number_format="bf16", **settings)
    assert told.startswith("Once upon a time") and len(tok.encode(told)) > 25  # beyond the block of 16
    assert told == generate(model, "Once upon a time", number_format="bf16", **settings)
    assert all_same_bits(before, model)


# The repeated step


class Repeats:
    """Stands for a recorded CUDA graph: does the step again and leaves the results in the same tensors."""

    def __init__(self, step, forbidden):
        self.step, self.forbidden = step, forbidden

    def replay(self):
        lengths = [layer.length for layer in self.step.caches]
        for layer in self.step.caches:
            layer.length = self.forbidden  # a graph knows nothing of Python's numbers
        logits, record = self.step.compute(self.step.tokens)
        kept_logits, kept = self.step.result
        kept_logits.copy_(logits)
        for i, layer in record.layers.items():
            if layer.chosen is not None:
                kept.layers[i].chosen.copy_(layer.chosen)
        for layer, length in zip(self.step.caches, lengths, strict=True):
            layer.length = length


class RepeatedWithoutGraph(RepeatedStep):
    """A RepeatedStep whose recording computes the step once, at the tokens that it begins with."""

    recordings = 0

    def _record(self):
        self.recordings += 1
        self.result = self.compute(self.tokens)
        self.graph = Repeats(self, forbidden=1)


def repeating_decoder(model):
    """A Decoder as it is on a GPU, but for the recording."""
    decoder = Decoder(model)
    position = torch.zeros(1, dtype=torch.long)
    decoder.cache = [StaticKVCache(layer.capacity, position) for layer in decoder.cache]
    decoder._repeated = RepeatedWithoutGraph(decoder._read, decoder.cache, position)
    return decoder


@every_architecture
@pytest.mark.parametrize("prefill", [1, 2, 7])
def test_a_repeated_step_gives_the_logits_of_the_whole_text(architecture, prefill):
    model, tokens = TINY_MODELS[architecture]().eval(), random_tokens(2, 16)
    expected, decoder = model(tokens), repeating_decoder(model)
    torch.testing.assert_close(decoder(tokens[:, :prefill]), expected[:, prefill - 1], atol=1e-4, rtol=1e-4)
    assert decoder._repeated.recordings == 0
    earlier = []
    for i in range(prefill, 16):
        logits = decoder(tokens[:, i : i + 1])
        torch.testing.assert_close(logits, expected[:, i], atol=1e-4, rtol=1e-4)
        assert decoder.length == i + 1
        earlier.append((logits, logits.clone()))
    assert decoder._repeated.recordings == 1
    assert all(torch.equal(logits, as_it_was) for logits, as_it_was in earlier)  # no later step wrote over them
    with pytest.raises(ValueError, match="17 positions were asked for, the block size is 16"):
        decoder(tokens[:, :1])


@every_architecture
@pytest.mark.parametrize("make", [Decoder, repeating_decoder])
def test_a_decoders_record_has_the_experts_that_its_tokens_chose(architecture, make):
    model, tokens, whole = TINY_MODELS[architecture]().eval(), random_tokens(2, 16), Record()
    model(tokens, record=whole)
    decoder, start = make(model), 0
    for piece in tokens.split(PIECES, dim=1):
        record, end = Record(), start + piece.shape[1]
        decoder(piece, record)
        for i in model.layers_with_experts():
            assert torch.equal(record.layers[i].chosen, whole.layers[i].chosen[:, start:end])
        assert {layer.max_logits for layer in record.layers.values()} == {None}
        start = end


@every_architecture
def test_the_shapes_of_a_repeated_step_are_those_of_every_other(architecture, monkeypatch):
    """Or a CUDA graph could not repeat it."""
    monkeypatch.setattr("utils.fast.experts.pick_backend", lambda x, dtype: "tiles")  # as on a GPU

    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            seen.append((str(function), tuple(result.shape) if isinstance(result, torch.Tensor) else None))
            return result

    decoder, tokens, steps = repeating_decoder(TINY_MODELS[architecture]()), random_tokens(2, 12), []
    decoder(tokens[:, :3])
    for i in range(3, 12):
        seen = []
        decoder._repeated.position.fill_(i)
        with torch.inference_mode(), Shapes():
            decoder._repeated.compute(tokens[:, i : i + 1])
        steps.append(seen)
    assert len(steps[0]) > 50
    assert all(step == steps[0] for step in steps)
