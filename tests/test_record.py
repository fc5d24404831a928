"""A record collects what the forwards of one step leave behind, and nothing else remembers it."""

import copy
import math
import threading

import pytest
import torch

from tests.helpers import TINY_MODELS, every_architecture, random_tokens
from utils.record import LayerRecord, Record, count_choices


@every_architecture
def test_a_record_holds_every_choice_and_every_largest_logit(architecture):
    model, tokens = TINY_MODELS[architecture](), random_tokens(3, 16)
    record = Record()
    model(tokens, record=record)
    experts = model.layers_with_experts()
    assert record.expert_load().shape == (len(experts), model.config.n_experts)
    assert record.expert_load().sum(dim=1).tolist() == [tokens.numel() * model.config.top_k] * len(experts)
    assert record.max_logits().shape == (model.config.n_layers, model.config.n_heads)
    for i in experts:
        assert record.layers[i].chosen.shape == (*tokens.shape, model.config.top_k)
        assert torch.equal(count_choices(record.layers[i].chosen, model.config.n_experts), record.layers[i].load)


@every_architecture
def test_micro_batches_add_their_loads_and_share_a_maximum(architecture):
    model, halves = TINY_MODELS[architecture](), random_tokens(4, 16).split(2)
    together, whole, alone = Record(), Record(), [Record(), Record()]
    for half, own in zip(halves, alone, strict=True):
        model(half, record=together)
        model(half, record=own)
    model(torch.cat(halves), record=whole)
    assert torch.equal(together.expert_load(), whole.expert_load())
    assert torch.equal(together.expert_load(), alone[0].expert_load() + alone[1].expert_load())
    assert torch.equal(together.max_logits(), torch.maximum(alone[0].max_logits(), alone[1].max_logits()))


@every_architecture
def test_a_model_remembers_nothing(architecture):
    """No tensor of a graph stays behind: a model can be copied and pickled between forward and step, and told anew."""
    model, tokens = TINY_MODELS[architecture](balance_coef=0.01), random_tokens(2, 16)
    before = {id(part): dict(vars(part)) for part in model.modules()}
    loss = model.loss(tokens, tokens, Record())
    copied = copy.deepcopy(model)
    for part in model.modules():
        for name, value in vars(part).items():
            if name != "table":  # the angles of the positions, made once
                assert value is before[id(part)][name], f"{type(part).__name__}.{name} was changed by a forward"
    loss.backward()
    assert torch.equal(copied(tokens), model(tokens))


@every_architecture
def test_a_closed_record_takes_no_other_step(architecture):
    model, tokens = TINY_MODELS[architecture](), random_tokens(2, 16)
    record = Record()
    model(tokens, record=record)
    model.end_step_(record)
    assert record.expert_load().sum() > 0  # it may still be read
    with pytest.raises(ValueError, match="give the forwards of the next step a new Record"):
        model(tokens, record=record)


def test_without_a_balance_coefficient_no_balance_loss_is_computed():
    """Fault of the first edition: k2 computed it in every step and weighed it with 0."""
    tokens = random_tokens(2, 16)
    for model in (make(balance_coef=0.0) for make in TINY_MODELS.values()):
        record = Record()
        model(tokens, record=record)
        assert all(layer.balance_loss is None for layer in record.layers.values())
        with pytest.raises(ValueError, match="balance_coef is above 0"):
            record.balance_loss()


def test_the_share_of_dead_experts_is_that_of_experts_without_a_token():
    record = Record()
    for i, chosen in enumerate(([[0, 1], [0, 1]], [[0, 1], [2, 3]])):
        record.layers[i].note_choice(torch.tensor(chosen), n_experts=4)
    assert record.dead_experts() == pytest.approx(2 / 8)


def test_a_layer_without_experts_stays_empty():
    model = TINY_MODELS["k2"]()
    record = Record()
    model(random_tokens(1, 4), record=record)
    assert record.layers[0].load is None and record.layers[0].chosen is None
    assert record.layers[0].max_logits is not None


def test_largest_logits_keep_the_larger():
    layer = LayerRecord()
    layer.note_logits(torch.tensor([1.0, -math.inf]))
    layer.note_logits(torch.tensor([0.5, 3.0]))
    assert layer.max_logits.tolist() == [1.0, 3.0]


@every_architecture
def test_two_threads_may_read_one_model(architecture):
    model, texts = TINY_MODELS[architecture](), [random_tokens(2, 16, seed=s) for s in (0, 1)]
    with torch.no_grad():
        alone = []
        for text in texts:
            record = Record()
            alone.append((model(text, record=record), record))
        found = {}

        def read(i: int) -> None:
            with torch.no_grad():
                for _ in range(20):
                    record = Record()
                    logits = model(texts[i], record=record)
                    found.setdefault(i, []).append((logits, record))

        threads = [threading.Thread(target=read, args=(i,)) for i in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i, (logits, record) in enumerate(alone):
        assert len(found[i]) == 20
        for other, theirs in found[i]:
            torch.testing.assert_close(other, logits)
            assert torch.equal(theirs.expert_load(), record.expert_load())
