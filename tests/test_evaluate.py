"""What a model is worth: told stories, repetition, coherence, loss in several units."""

import json
import math

import pytest
import torch

from tests.helpers import tiny_k2_model, tiny_model
from utils.bpe import BPETokenizer
from utils.course.watch import COMPLAINTS, complaint_of, look
from utils.data import TokenData, split_stories
from utils.dropped import Dropped
from utils.evaluate import distinct, evaluate, read_validation, repetition, validation_loss
from utils.generation import generate, next_token_probabilities, tell_stories
from utils.stories import builtin_stories
from utils.tokenizer import WordTokenizer

STORIES = builtin_stories(40, seed=2)
TOK = WordTokenizer.train(STORIES)
DATA = TokenData.from_stories(STORIES, TOK)


@pytest.fixture
def model():
    model = tiny_model(len(TOK), block_size=64)
    model.tokenizer = TOK
    return model


def test_a_model_that_knows_nothing_pays_ln_v_and_tells_nothing_coherent(model):
    with torch.no_grad():
        model.head.weight.zero_()
    result = evaluate(model, DATA, n_stories=3)
    assert result.loss == pytest.approx(math.log(len(TOK)), rel=1e-5)
    assert result.perplexity == pytest.approx(len(TOK), rel=1e-4)
    n_bytes = sum(len(story) for story in STORIES) - DATA.n_bytes["train"]
    assert result.bits_per_byte == pytest.approx(math.log2(len(TOK)) * len(DATA.split("val")) / n_bytes, rel=1e-4)
    assert result.coherent == 0 and result.dropped is None and result.faults is None


def test_words_pay_for_what_they_leave_out_and_bytes_have_nothing_to_pay(model):
    train, val = split_stories(STORIES)
    lower_bound = evaluate(model, DATA, n_stories=0)
    paid = evaluate(model, DATA, n_stories=0, texts=(train, val))
    rest = Dropped(TOK, train)
    assert paid.dropped == pytest.approx(sum(map(rest.bits, val)) / DATA.n_bytes["val"])
    assert paid.bits_per_byte == pytest.approx(lower_bound.bits_per_byte + paid.dropped)

    bpe = BPETokenizer.train(train, 300)
    other = tiny_model(len(bpe), block_size=64)
    other.tokenizer = bpe
    result = evaluate(other, TokenData.from_stories(train, bpe, validation=val), n_stories=0, texts=(train, val))
    assert result.dropped == 0


def test_bits_per_byte_are_those_of_the_whole_text_whatever_the_tokenizer(model):
    """The chance that a model without knowledge gives a text: ln V for each token, and every letter it never saw."""
    with torch.no_grad():
        model.head.weight.zero_()
    train, val = split_stories(STORIES)
    result = evaluate(model, DATA, n_stories=0, texts=(train, val))
    bits = math.log2(len(TOK)) * sum(len(TOK.encode(text)) + 1 for text in val) + sum(
        map(Dropped(TOK, train).bits, val)
    )
    assert result.bits_per_byte == pytest.approx(bits / sum(len(text.encode()) for text in val), rel=1e-5)


def test_accuracy_counts_the_tokens_that_were_the_likeliest(model):
    favourite = TOK.encode(".")[0]
    with torch.no_grad():
        for parameter in (model.head.weight, model.norm.weight):
            parameter.zero_()
        model.norm.bias.fill_(1.0)  # the head sees ones everywhere
        model.head.weight[favourite] = 1.0
    ids = DATA.split("val")[1:]
    read = read_validation(model, DATA, batch_size=3)
    assert read.accuracy == pytest.approx((ids == favourite).mean())
    assert read.loss == pytest.approx(validation_loss(model, DATA), rel=1e-5)
    assert read.tokens_per_second > 0


def test_stories_are_judged_by_what_the_training_texts_show(model, monkeypatch):
    told = [STORIES[0], STORIES[1].rstrip(".") + " and the zorble blorped", STORIES[2], STORIES[3]]
    monkeypatch.setattr("utils.evaluate.tell_stories", lambda *a, **k: told)
    train = builtin_stories(300, seed=5)
    faults = evaluate(model, DATA, n_stories=4, texts=(train, STORIES[:2])).faults
    assert faults["ending"] == 0.25 and faults["none"] <= 0.75
    assert evaluate(model, DATA, n_stories=0, texts=(train, STORIES[:2])).faults is None


def test_what_takes_long_is_told_while_it_is_done(model, monkeypatch):
    """Each stage hands on all that it goes through, and what is found is what nobody watched."""
    monkeypatch.setattr("utils.generation.STORIES_AT_ONCE", 2)
    seen, most = {}, {}

    def watched(things, stage, at_most):
        seen[stage], most[stage] = 0, at_most
        for thing in things:
            seen[stage] += 1
            yield thing

    found = evaluate(model, DATA, n_stories=3, texts=split_stories(STORIES), progress=watched)
    told = ["stories 1 to 2 of 3", "stories 3 to 3 of 3"]
    assert list(seen) == ["validation", "what words leave out", *told]
    for stage in ("validation", "what words leave out"):
        assert seen[stage] == most[stage] > 1
    assert all(1 < seen[stage] <= most[stage] == 250 for stage in told)
    unwatched = evaluate(model, DATA, n_stories=3, texts=split_stories(STORIES))
    assert found._replace(tokens_per_second=0) == unwatched._replace(tokens_per_second=0)


def test_a_negative_number_of_stories_is_refused(model):
    with pytest.raises(ValueError, match="n_stories is -3, it must be 0 or more"):
        evaluate(model, DATA, n_stories=-3)


def test_distinct_counts_different_words_and_pairs_over_all_stories():
    assert distinct(["a b a", "b a"], 1) == pytest.approx(2 / 5)
    assert distinct(["a b a", "b a"], 2) == pytest.approx(2 / 3)  # ab, ba, ba
    assert distinct(["A a"], 1) == 0.5
    assert distinct([], 1) == distinct(["a"], 2) == 0


def test_a_model_that_recites_a_story_is_coherent(model, monkeypatch):
    monkeypatch.setattr("utils.evaluate.tell_stories", lambda *a, **k: [STORIES[0].lower(), "Once upon a time, no."])
    assert evaluate(model, DATA, n_stories=2).coherent == 0.5


def test_stories_told_side_by_side_are_those_told_alone(model):
    together = tell_stories(model, 3, "Once upon", max_new_tokens=20, temperature=0)
    alone = generate(model, "Once upon", 20, temperature=0)
    assert together == [alone] * 3


def test_stories_differ_from_each_other_and_repeat_with_the_seed(model):
    told = tell_stories(model, 60, max_new_tokens=5, temperature=1.0, seed=1)
    assert len(told) == 60 and len(set(told)) > 50
    assert told == tell_stories(model, 60, max_new_tokens=5, temperature=1.0, seed=1)


def test_no_story_goes_on_after_its_end(model):
    with torch.no_grad():
        model.head.weight[TOK.eos_id] = 3 * model.head.weight[TOK.eos_id].sign()
    # one choice is left: greedy, whatever the temperature
    assert tell_stories(model, 2, max_new_tokens=5, temperature=9.0, top_k=1) == tell_stories(
        model, 2, max_new_tokens=5, temperature=0
    )
    assert not any("endoftext" in story for story in tell_stories(model, 20, max_new_tokens=40, temperature=1.0))


def test_repetition_counts_what_stood_before_in_the_same_story():
    assert repetition(["a b c d e f", "a b c d e f"]) == 0
    assert repetition(["a b c d a b c d"]) == pytest.approx(1 / 5)
    assert repetition(["la " * 13]) == pytest.approx(9 / 10)
    assert repetition([]) == repetition(["a b"]) == 0


def test_the_loss_does_not_depend_on_how_windows_are_batched(model):
    losses = [validation_loss(model, DATA, batch_size=size) for size in (1, 4, 100)]
    assert max(losses) - min(losses) < 1e-4


@pytest.mark.parametrize("favourites, expected", [(2, 6 / 8), (3, 5 / 8), (8, 0.0)])
def test_experts_that_no_validation_token_went_to_are_counted(favourites, expected):
    model = tiny_k2_model(len(TOK), block_size=64)
    model.tokenizer = TOK
    for router in model.routers():
        router.expert_bias.zero_()[:favourites] = 100.0  # two of these are chosen for every token
    assert evaluate(model, DATA, n_stories=1).dead_experts == pytest.approx(expected)


def test_measuring_leaves_the_model_in_its_mode(model):
    for mode in (True, False):
        model.train(mode)
        evaluate(model, DATA, n_stories=1)
        assert {part.training for part in model.modules()} == {mode}


def test_a_look_tells_stories_and_weighs_her_against_his(model):
    found = look(model, n_stories=3)
    assert json.loads(json.dumps(found)) == found  # plain values: they go into the history of a run
    assert found["story"] == tell_stories(model, 3)[0] and found["coherent"] == 0
    prompt = "Once upon a time, there was a little boy named Tom. Tom had a red ball. Then Tom lost"
    p = next_token_probabilities(model, prompt)
    for word in ("her", "his"):
        assert found[word]["Tom"] == p[TOK.encode(word)[0]].item() > 0
        assert set(found[word]) == {"Lily", "Tom"} and found[word]["Lily"] != found[word]["Tom"]


def test_a_look_counts_coherent_stories(model, monkeypatch):
    told = [STORIES[0].lower(), "Once upon a time, no."]
    monkeypatch.setattr("utils.course.watch.tell_stories", lambda *a, **k: told)
    assert look(model, n_stories=2)["coherent"] == 0.5


@pytest.mark.parametrize(
    "fault, kind",
    [
        ('no sentence of the grammar begins "one beautiful ."', "a sentence that is none"),
        ("the hero is molly, later eva", "the hero changes"),
        ("the thing is a red ball, later blue ball", "the thing changes"),
        ("a red ball was lost, but a blue ball was found", "another thing is found"),
        ("the helper is an old owl, later the black cat", "the helper changes"),
        ("the place is the park, later the zoo", "the place changes"),
        ("the solution comes twice", "stages out of order"),
        ("the outing comes after the problem", "stages out of order"),
        ("the search is missing before the solution", "stages out of order"),
        ("the story stops before its ending", "no ending"),
        ("something new", "other"),
    ],
)
def test_complaints_have_kinds(fault, kind):
    assert complaint_of(fault) == kind


def test_a_look_counts_each_kind_of_complaint_once_in_a_story(model, monkeypatch):
    told = [STORIES[0].lower(), "Once upon a time, no. No. And no."]
    monkeypatch.setattr("utils.course.watch.tell_stories", lambda *a, **k: told)
    found = look(model, n_stories=2)["complaints"]
    assert set(found) == set(COMPLAINTS) and found["a sentence that is none"] == 0.5 and found["no ending"] == 0.5
    assert found["the hero changes"] == 0
    assert look(model, n_stories=2)["often"]["the story stops before its ending"] == 0.5
